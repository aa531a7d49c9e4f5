# SPDX-License-Identifier: Apache-2.0
"""Ids that a file's flow gets again: as docs/protocol.md has them, and of all that is compared."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ingestd.client.repeat import NAMESPACE, file_flow_id, next_flow_id

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = " ".join((ROOT / "docs" / "protocol.md").read_text("utf-8").split())
FILES = st.tuples(
    st.text(st.characters(), max_size=4),  # surrogates too: names may be no text
    st.integers(0, 3),
    st.integers(-1, 3),
    st.dictionaries(st.sampled_from("ab"), st.sampled_from("cd")),
)


def test_example_of_the_document_is_right() -> None:
    found = re.search(r"`(\[\"run-12/a\".*?\])` makes `([0-9a-f-]{36})`", DOCUMENT, re.DOTALL)
    assert found is not None
    name, labels, size, mtime_ns = json.loads(found[1])
    assert file_flow_id(name, size, mtime_ns, dict(labels)) == found[2]
    assert f"namespace `{NAMESPACE}`" in DOCUMENT


@given(FILES, FILES)
def test_ids_are_the_same_exactly_for_the_same_files(
    one: tuple[str, int, int, dict[str, str]], other: tuple[str, int, int, dict[str, str]]
) -> None:
    assert (file_flow_id(*one) == file_flow_id(*other)) == (one == other)
    assert uuid.UUID(file_flow_id(*one)).version == 5


def test_next_id_depends_on_the_content_that_is_there() -> None:
    flow = file_flow_id("f", 1, 1)
    ids = {flow, next_flow_id(flow, "crc32c:00000000"), next_flow_id(flow, "crc32c:00000001")}
    assert len(ids) == 3
