# SPDX-License-Identifier: Apache-2.0
"""Verifying: a sound store has no findings, and each fault is found and named."""

from __future__ import annotations

import fcntl
import json
import os
import re
from pathlib import Path

import pytest
from crc32c import crc32c

from ingestd.errors import StoreDamagedError
from ingestd.store.format import layout
from ingestd.store.read import verify
from ingestd.store.read.verify import verify_store
from support.store_builder import Close, Extent, Open, StoreBuilder

FLOW = b"\xab" * 16
ID = "abababab-abab-abab-abab-abababababab"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.img"


def sound() -> StoreBuilder:
    """A closed segment at 0 and an open one at 1 with two batches and two marks."""
    builder = StoreBuilder()
    closed = builder.segment(0)
    closed.batch(Open(FLOW), Extent(FLOW, b"a" * 4096))
    closed.batch(Extent(FLOW, b"b" * 4096))
    closed.close()
    opened = builder.segment(1)
    opened.batch(Extent(FLOW, b"c" * 4096))
    opened.batch(Extent(FLOW, b"d" * 4096), Close(FLOW), committed=1)
    opened.mark(1)
    opened.mark(2)
    return builder


def findings(builder: StoreBuilder, path: Path) -> list[str]:
    return [str(finding) for finding in verify_store(str(builder.save(path))).findings]


def test_a_sound_store(path: Path) -> None:
    steps: list[tuple[int, int]] = []
    sound().save(path)
    report = verify_store(str(path), lambda done, total: steps.append((done, total)))
    assert report.findings == []
    assert not report.is_damaged
    assert (report.flows, report.batches, report.bytes_checked) == (1, 4, 16384)
    assert report.bytes_without_checksum == 0
    assert report.segments == {"free": 2, "open": 1, "closed": 1, "damaged": 0}
    assert steps[0][0] == 0
    assert steps[-1][0] == steps[-1][1] > 16384
    assert json.loads(json.dumps(report.as_dict()))["store_uuid"] == report.store_uuid


def test_a_connection_without_bytes_behind_those_of_another_segment(path: Path) -> None:
    """A flow continues by another worker, and ends by the first one again."""
    builder = StoreBuilder()
    first, other = builder.segment(0), builder.segment(1)
    interrupted = Close(FLOW, layout.FLOW_STATE_INTERRUPTED)
    first.batch(Open(FLOW), Extent(FLOW, b"a"), interrupted)
    other.batch(Open(FLOW), Extent(FLOW, b"b" * 7), interrupted)
    first.batch(Open(FLOW), Close(FLOW))
    first.close()
    other.close()
    assert findings(builder, path) == []


S0, S1 = layout.SEGMENTS_OFFSET, layout.SEGMENTS_OFFSET + 1024 * 1024
END0 = S0 + 1024 * 1024


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (40, "damage: .*superblock A"),
        (layout.SUPERBLOCK_B_OFFSET, "damage: .*superblock B"),
        (S0 + 3, "damage: .*segment 0: its header is damaged"),
        (S0 + 4 * 4096 + 9, "damage: segment 0: the header of batch 0"),
        (S0 + 5 * 4096 + 9, f"damage: segment 0: batch 0 .*bytes 0 to 4096 of flow {ID}"),
        (S0 + 6 * 4096 + 9, "damage: segment 0: the header of batch 1 at byte 24576"),
        (END0 - 4096 + 20, "doubt: segment 0: its footer is torn or damaged"),
        (END0 - 8192, "doubt: segment 0: the records of its footer are torn or damaged"),
        (S1 + 16, "damage: .*segment 1: its header is damaged"),
        (S1 + 4096, "doubt: segment 1: its commit mark 0 is torn or damaged"),
        (S1 + 8192 + 4095, "doubt: segment 1: its commit mark 1 is torn or damaged"),
        (S1 + 4 * 4096, "damage: .*segment 1: batch 0 is damaged.* 2 that were committed"),
        (S1 + 7 * 4096, "damage: segment 1: batch 1 .*bytes 12288 to 16384"),
    ],
)
def test_a_fault_is_named(path: Path, at: int, expected: str) -> None:
    builder = sound()
    builder.image[at] ^= 0x10
    found = findings(builder, path)
    assert any(re.match(expected, text) for text in found), found


def test_unused_bytes_do_not_count(path: Path) -> None:
    builder = sound()
    for at in (S0 + 3 * 4096, S0 + 4096, S0 + 500_000, S1 + 900_000, S1 + 2 * 1024 * 1024):
        builder.image[at] ^= 0x10
    assert findings(builder, path) == []


def test_a_footer_that_lies(path: Path) -> None:
    """Every checksum is right, but the footer lists another flow than the batches."""
    builder = sound()
    at = END0 - 8192
    size = layout.SEGMENT_FOOTER.unpack(builder.image, END0 - 4096).record_bytes
    region = bytearray(builder.image[at : at + size])
    region[size - 1] ^= 1
    builder.image[at : at + size] = region
    footer = layout.SEGMENT_FOOTER.unpack(builder.image, END0 - 4096)
    footer = footer._replace(records_crc32c=crc32c(bytes(region)), crc32c=0)
    block = layout.sealed(layout.SEGMENT_FOOTER.pack(footer))
    builder.image[END0 - 4096 : END0] = block
    found = findings(builder, path)
    assert any("footer's spans are not those of its batches" in text for text in found), found


def test_a_close_record_that_lies(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 100))
    builder.flows[FLOW].crc ^= 1
    segment.batch(Close(FLOW))
    assert any("its CLOSE record states" in text for text in findings(builder, path))


def test_what_a_crash_leaves_is_a_doubt(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 8192))
    segment.batch(Extent(FLOW, b"b" * 8192), lost="payload_tail")
    second = builder.segment(1)
    second.batch(Extent(FLOW, b"c" * 8192), Close(FLOW))
    report = verify_store(str(builder.save(path)))
    assert {finding.severity for finding in report.findings} == {"doubt"}
    assert not report.is_damaged
    texts = "\n".join(map(str, report.findings))
    assert "segment 0: 1 batches from batch 1 on are torn or were not committed" in texts
    assert f"flow {ID}: bytes 8192 to 16384 are not there" in texts
    assert "it ended with 24576 bytes, and 8192 are there" in texts


def test_under_a_daemon_nothing_half_done_is_a_finding(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 8192))
    segment.batch(Extent(FLOW, b"b" * 8192), lost="payload_tail")
    builder.save(path)
    holder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        report = verify_store(str(path))
        assert (report.served, report.findings) == (True, [])
    finally:
        os.close(holder)


def test_a_lost_header_is_proved_by_a_later_one(path: Path) -> None:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"a" * 100))
    segment.batch(Extent(FLOW, b"b" * 100), lost="all")
    segment.batch(Extent(FLOW, b"c" * 100), committed=2)
    assert any("batch 1 is damaged" in text for text in findings(builder, path))


def test_too_many_findings_are_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "FINDINGS_MAX", 2)
    builder = StoreBuilder()
    segment = builder.segment(0)
    for _ in range(5):
        segment.batch(Extent(FLOW, b"a" * 4096))
    segment.close()
    for number in range(5):
        builder.image[S0 + (5 + 2 * number) * 4096] ^= 1
    report = verify_store(str(builder.save(path)))
    assert (len(report.findings), report.findings_omitted) == (2, 3)


def test_no_superblock_is_an_error(path: Path) -> None:
    builder = sound()
    builder.image[40] ^= 1
    builder.image[layout.SUPERBLOCK_B_OFFSET + 40] ^= 1
    builder.save(path)
    with pytest.raises(StoreDamagedError):
        verify_store(str(path))


def test_doubts_never_hide_damage() -> None:
    """However many doubts come first, one damage behind them is kept, and decides."""
    report = verify.VerifyReport("x", "u", False, {})
    for number in range(verify.FINDINGS_MAX + 5):
        report.add(verify.Discrepancy(verify.DOUBT, f"flow {number}", "cut off"))
    assert not report.is_damaged
    report.add(verify.Discrepancy(verify.DAMAGE, "segment 1", "broken"))
    assert report.is_damaged
    assert report.findings[0].where == "segment 1"
    assert len(report.findings) == verify.FINDINGS_MAX
    assert report.findings_omitted == 6
    for number in range(2 * verify.FINDINGS_MAX):
        report.add(verify.Discrepancy(verify.DAMAGE, f"segment {number}", "broken"))
    assert len(report.findings) == verify.FINDINGS_MAX
    assert {finding.severity for finding in report.findings} == {verify.DAMAGE}
    assert report.damages == 1 + 2 * verify.FINDINGS_MAX
