# SPDX-License-Identifier: Apache-2.0
"""Python's cycle collector while a store is read: off for a command, untouched in a daemon."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from ingestd.store.format.segment import SegmentImage
from ingestd.store.read.image import read_image
from ingestd.store.read.scan import Scanner
from ingestd.store.serve.served_store import open_for_serving
from support.store_builder import StoreBuilder


def test_only_commands_keep_the_collector_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = StoreBuilder().save(tmp_path / "store.img")
    scan = Scanner.scan
    seen: set[bool] = set()

    def look(scanner: Scanner, index: int) -> SegmentImage:
        seen.add(gc.isenabled())
        return scan(scanner, index)

    monkeypatch.setattr(Scanner, "scan", look)
    assert gc.isenabled()
    read_image(str(path)).close()
    assert seen == {False}
    assert gc.isenabled()
    seen.clear()
    with open_for_serving(str(path)) as store:
        store.sweeper.scan()
    assert seen == {True}
