# SPDX-License-Identifier: Apache-2.0
"""The ledger complains: about bytes that are missing, wrong, or there though they were removed."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from ingestd.store.read.image import read_image
from soak.content import CELL_BYTES, Content
from soak.ledger import Ledger
from soak.memory import MIB, Life, Sample, assert_flat
from soak.sender import Begun
from support.store_builder import Close, Extent, Open, StoreBuilder

NAME = "store"
SIZE = 3 * CELL_BYTES + 1000
FLOW = uuid.UUID("0192f0c1-2b3c-4def-8000-123456789abc")
BEGUN = Begun(NAME, str(FLOW), SIZE, is_stated=True, has_trailer=False, name="run", labels={})
DATA = Content(BEGUN.seed).get(0, SIZE)


def _store(path: Path, data: bytes, *, is_sealed: bool = True) -> Path:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW.bytes, name="run"), Extent(FLOW.bytes, data))
    if is_sealed:
        segment.batch(Close(FLOW.bytes))
    segment.close()
    return builder.save(path)


def _ledger(*, told: int = SIZE, is_sealed: bool = True) -> Ledger:
    ledger = Ledger(set(), workers_count=1)
    ledger.note("begun", BEGUN)
    ledger.note("accepted", BEGUN.flow, 0)
    ledger.note("told", BEGUN.flow, told)
    if is_sealed:
        ledger.note("sealed", BEGUN.flow, SIZE, Content(BEGUN.seed).checksum(SIZE))
    return ledger


def _compare(ledger: Ledger, store: Path) -> None:
    with read_image(str(store)) as image:
        ledger.compare(NAME, ledger.snapshot(NAME), image)


def test_content_is_the_same_from_any_byte_on() -> None:
    content = Content(7)
    whole = content.get(0, SIZE)
    for start, end in ((0, 1), (15, 17), (CELL_BYTES - 1, CELL_BYTES + 1), (SIZE - 1, SIZE)):
        assert content.get(start, end) == whole[start:end]
    assert content.first_difference([whole[5:99], whole[99:]], 5) is None
    assert content.first_difference([whole[5:99], b"?" + whole[100:]], 5) == 99


def test_what_is_there_is_right(tmp_path: Path) -> None:
    _compare(_ledger(), _store(tmp_path / "s.img", DATA))
    more_than_was_told = _ledger(told=10, is_sealed=False)
    _compare(more_than_was_told, _store(tmp_path / "s.img", DATA[:-10], is_sealed=False))


@pytest.mark.parametrize(
    ("data", "is_sealed", "complaint"),
    [
        (DATA[:-1], False, "acknowledged, and missing"),
        (DATA, False, "shown as .*'interrupted'"),
        (DATA[:500] + b"?" + DATA[501:], True, "checksum|wrong at byte 500"),
    ],
)
def test_what_is_missing_or_wrong(
    tmp_path: Path, data: bytes, is_sealed: bool, complaint: str
) -> None:
    ledger, store = _ledger(), _store(tmp_path / "s.img", data, is_sealed=is_sealed)
    # A connection more: only a store that overwrites may show less for it.
    ledger.note("accepted", BEGUN.flow, SIZE)
    with pytest.raises(AssertionError, match=complaint):
        _compare(ledger, store)


def test_wrong_bytes_that_nobody_was_told_of(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="wrong at byte 0"):
        _compare(_ledger(told=0, is_sealed=False), _store(tmp_path / "s.img", b"?" * 9))


def test_a_flow_that_is_gone_or_should_be(tmp_path: Path) -> None:
    ledger, empty = _ledger(), StoreBuilder().save(tmp_path / "empty.img")
    with pytest.raises(AssertionError, match="acknowledged, and missing"):
        _compare(ledger, empty)
    ledger.note("lost", BEGUN.flow, "unknown_flow")
    assert ledger.complaints
    ledger.note_removal([BEGUN.flow], "done")
    _compare(ledger, empty)
    with pytest.raises(AssertionError, match="removed, and there"):
        _compare(ledger, _store(tmp_path / "s.img", DATA))


def test_memory_that_grows_is_not_flat() -> None:
    def life(grown_bytes: int, seconds: int = 40) -> Life:
        made = Life(1)
        for second in range(seconds + 1):
            size = 50 * MIB + grown_bytes * second // seconds
            made.samples.append(Sample(float(second), size, size, size, 9, 3))
        return made

    assert "40 s" in assert_flat([life(0), life(10 * MIB), life(5 * MIB, 80)])
    with pytest.raises(AssertionError, match="40 s: "):
        assert_flat([life(0), life(20 * MIB)])
    with pytest.raises(AssertionError, match="80 s: "):
        assert_flat([life(0), life(10 * MIB, 80)])
    with pytest.raises(AssertionError, match="long enough"):
        assert_flat([])
