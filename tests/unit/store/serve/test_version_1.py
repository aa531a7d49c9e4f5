# SPDX-License-Identifier: Apache-2.0
"""A store of format version 1, as ingestd 0.2.0 left it: read, served, and then of version 2.

version-1.store.xz has two flows: one of protocol raw in the default listener, 70000 bytes that
count modulo 251, and `short.txt` of protocol ingest, 6 bytes. Its segments have footers.
"""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from ingestd.store.format.layout import FORMAT_VERSION
from ingestd.store.read.image import read_image
from ingestd.store.serve.served_store import open_for_serving
from support.observe import assert_clean, image_bytes

OLD_STORE = Path(__file__).with_name("version-1.store.xz")
RAW = bytes(i % 251 for i in range(70000))
NAMED = b"short\n"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The store, unpacked."""
    path = tmp_path / "old.store"
    path.write_bytes(lzma.decompress(OLD_STORE.read_bytes()))
    return path


def version_of(store: Path) -> int:
    """The version that the first superblock states: docs/format.md."""
    return int.from_bytes(store.read_bytes()[12:16], "little")


def assert_whole(store: Path) -> None:
    """Both flows are there, byte by byte."""
    with read_image(str(store)) as image:
        flows = {flow.name: flow for flow in image.flows}
    assert {name: flow.state for name, flow in flows.items()} == {
        None: "sealed",
        "short.txt": "sealed",
    }
    stored = image_bytes(store, [flow.flow for flow in flows.values()])
    assert stored[flows[None].flow] == RAW
    assert stored[flows["short.txt"].flow] == NAMED
    assert_clean(store)


def test_it_is_read(store: Path) -> None:
    assert version_of(store) == 1
    assert_whole(store)
    assert version_of(store) == 1


def test_it_becomes_version_2_when_it_is_served(store: Path) -> None:
    with open_for_serving(str(store)) as served:
        assert served.recovery.flows == 2
        assert served.recovery.warnings == ()
    assert version_of(store) == FORMAT_VERSION
    assert_whole(store)
