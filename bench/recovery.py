# SPDX-License-Identifier: Apache-2.0
"""Measures how long a large store takes to open; writes it into docs/reliability.md.

    python bench/recovery.py [--size-tib 1] [--flows 10000] [--directory build] [--no-docs]

The store is a sparse file whose payload is holes and whose headers, records and
marks are what a daemon without checksums would have written, so that opening it
reads what it would read of a full device. Takes some GiB and minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
# Behind the installed package: the source tree's `ingestd` has no compiled core.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path += [str(ROOT), str(ROOT / "tests")]  # for `bench` and `support`

from bench import machine, report  # noqa: E402
from ingestd.store.create.geometry import Geometry, plan_geometry  # noqa: E402
from ingestd.store.device.opening import open_device  # noqa: E402
from ingestd.store.format import layout  # noqa: E402
from ingestd.store.metadata.superblock import Superblock, write_superblocks  # noqa: E402
from ingestd.store.read.image import read_image  # noqa: E402
from ingestd.store.serve.served_store import open_for_serving  # noqa: E402

DOCUMENT: Final = ROOT / "docs" / "reliability.md"
TIB: Final = 1 << 40
FLOWS_AT_ONCE: Final = 40
EXTENTS_OF_BATCH: Final = 8
EXTENT_BYTES: Final = 512 * 1024
FOOTER_ROOM_BYTES: Final = 1024 * 1024
STARTED_NS: Final = 1_700_000_000_000_000_000


@dataclass(slots=True)
class _Flow:
    flow_id: bytes
    left: int  # extents to come
    sent_bytes: int = 0


class _Flows:
    """Gives each extent to the next of the flows under way; they open and close in turn."""

    def __init__(self, flows_count: int, extents_count: int) -> None:
        self._extents_of_flow = -(-extents_count // flows_count)
        self._started = 0
        self._under_way: list[_Flow] = []

    def records(self) -> Iterator[bytes]:
        """The records of one batch."""
        for slot in range(EXTENTS_OF_BATCH):
            if len(self._under_way) < FLOWS_AT_ONCE:
                yield self._open()
            flow = self._under_way.pop(0)
            yield layout.EXTENT.pack(
                layout.RecordExtentRow(
                    layout.RECORD_EXTENT,
                    layout.EXTENT.size_bytes,
                    0,
                    flow.flow_id,
                    flow.sent_bytes,
                    slot * EXTENT_BYTES,
                    EXTENT_BYTES,
                    0,
                    0,
                )
            )
            flow.sent_bytes += EXTENT_BYTES
            flow.left -= 1
            if flow.left:
                self._under_way.append(flow)
            else:
                yield self._close(flow)

    def _open(self) -> bytes:
        self._started += 1
        flow = _Flow(self._started.to_bytes(16, "big"), self._extents_of_flow)
        self._under_way.append(flow)
        row = layout.RecordOpenRow(
            layout.RECORD_OPEN,
            layout.OPEN.size_bytes,
            0,
            flow.flow_id,
            STARTED_NS + self._started,
            0,
            bytes([192, 0, 2, 1]).ljust(16, b"\0"),
            4000,
            4,
            1,
            0,
            0,
            0,
        )
        return layout.OPEN.pack(row)

    def _close(self, flow: _Flow) -> bytes:
        row = layout.RecordCloseRow(
            layout.RECORD_CLOSE,
            layout.CLOSE.size_bytes,
            0,
            flow.flow_id,
            flow.sent_bytes,
            STARTED_NS,
            layout.FLOW_STATE_SEALED,
            layout.CLOSE_REASON_NONE,
            0,
            0,
        )
        return layout.CLOSE.pack(row)


def _batch_bytes(block_bytes: int) -> int:
    return block_bytes + EXTENTS_OF_BATCH * EXTENT_BYTES


def _batches_of_segment(superblock: Superblock) -> int:
    block_bytes = superblock.block_bytes
    room = superblock.segment_bytes - layout.SEGMENT_DATA_BLOCK * block_bytes - FOOTER_ROOM_BYTES
    return room // _batch_bytes(block_bytes)


def _segment(superblock: Superblock, index: int, flows: _Flows) -> Iterator[tuple[int, bytes]]:
    """What a full segment has without its footer: byte of the segment, and block."""
    block_bytes, uuid = superblock.block_bytes, superblock.store_uuid
    sequence = layout.sequence_of(superblock.generation, index + 1)
    header = layout.SegmentHeaderRow(
        layout.SEGMENT_MAGIC, 0, layout.FORMAT_VERSION, uuid, sequence, index, 0, STARTED_NS
    )
    yield 0, layout.sealed(layout.SEGMENT_HEADER.pack(header))
    count, at = _batches_of_segment(superblock), layout.SEGMENT_DATA_BLOCK * block_bytes
    for number in range(count):
        records = list(flows.records())
        raw = b"".join(records)
        row = layout.BatchHeaderRow(
            magic=layout.BATCH_MAGIC,
            crc32c=0,
            header_bytes=block_bytes,
            store_uuid=uuid,
            segment_sequence=sequence,
            batch_index=number,
            batches_committed=number,
            batch_bytes=_batch_bytes(block_bytes),
            record_count=len(records),
            record_bytes=len(raw),
            flags=0,
            reserved=0,
            payload_bytes=EXTENTS_OF_BATCH * EXTENT_BYTES,
            made_ns=STARTED_NS,
        )
        yield at, layout.sealed((layout.BATCH_HEADER.pack(row) + raw).ljust(block_bytes, b"\0"))
        at += _batch_bytes(block_bytes)
    mark = layout.CommitMarkRow(
        layout.MARK_MAGIC, 0, layout.FORMAT_VERSION, uuid, sequence, 1, count, 0, at
    )
    yield layout.SEGMENT_MARK_BLOCK * block_bytes, layout.sealed(layout.COMMIT_MARK.pack(mark))


def _superblock(geometry: Geometry) -> Superblock:
    """What `ingestd format` would write; it would also allocate the file, which is not wanted."""
    return Superblock(
        store_uuid=b"\x11" * 16,
        generation=1,
        store_bytes=geometry.store_bytes,
        segments_offset=layout.SEGMENTS_OFFSET,
        segment_bytes=geometry.segment_bytes,
        segment_count=geometry.segment_count,
        block_bytes=geometry.block_bytes,
        label="",
        created_ns=STARTED_NS,
    )


def make_store(path: Path, size_bytes: int, flows_count: int) -> int:
    """Make a full store without any footer; returns how many batches it has."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    with open_device(str(path), write=True) as device:
        superblock = _superblock(plan_geometry(str(path), size_bytes, None, device.align_bytes))
        write_superblocks(device, superblock)
        per_segment = _batches_of_segment(superblock)
        count = superblock.segment_count * per_segment
        flows = _Flows(flows_count, count * EXTENTS_OF_BATCH)
        with path.open("r+b", buffering=0) as file:
            for index in range(superblock.segment_count):
                base = superblock.segment_offset(index)
                for at, block in _segment(superblock, index, flows):
                    file.seek(base + at)
                    file.write(block)
        device.sync()
    return count


def _timed(what: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the wall clock, and of CPU."""
    begun, cpu = time.perf_counter(), time.process_time()
    what()
    return time.perf_counter() - begun, time.process_time() - cpu


def _look(path: Path) -> None:
    with read_image(str(path)):
        pass


def _serve(path: Path) -> None:
    with open_for_serving(str(path)) as served:
        assert served.recovery.segments_damaged == 0
        assert served.recovery.segments_open == 0


def measure(path: Path) -> list[tuple[str, float, float]]:
    """Open it in every way: what was done, seconds, CPU seconds."""
    return [
        ("list, no footer: every batch header is read", *_timed(lambda: _look(path))),
        ("open to serve, no footer: all are written", *_timed(lambda: _serve(path))),
        ("open to serve, a footer in every segment", *_timed(lambda: _serve(path))),
        ("list, a footer in every segment", *_timed(lambda: _look(path))),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Make the store, measure, tell, and write the document."""
    parser = argparse.ArgumentParser(description="Measure how long a large store takes to open.")
    parser.add_argument("--size-tib", type=float, default=1)
    parser.add_argument("--flows", type=int, default=10_000)
    parser.add_argument("--directory", type=Path, default=ROOT / "build")
    parser.add_argument("--no-docs", action="store_true")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        path = Path(directory) / "store.img"
        batches = make_store(path, int(arguments.size_tib * TIB), arguments.flows)
        figures = measure(path)
        with read_image(str(path)) as image:
            flows, segments = len(image.flows), len(image.segments)
    facts = machine.facts(arguments.directory, "none")
    lines = [
        f"{arguments.size_tib:g} TiB, {segments} segments, {batches} batches, {flows} flows;"
        f" {facts.cpus_count} CPUs ({facts.cpu}), Linux {facts.kernel}, {facts.filesystem} on"
        f" {facts.device}; load average {os.getloadavg()[0]:.1f} (the less, the truer the seconds"
        f" beside the CPU seconds); {time.strftime('%Y-%m-%d')}:",
        "",
        "| what | seconds | CPU seconds |",
        "|---|--:|--:|",
        *(f"| {what} | {wall:.2f} | {cpu:.2f} |" for what, wall, cpu in figures),
    ]
    print("\n".join(lines))
    if not arguments.no_docs:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(report.insert(text, {"recovery": "\n".join(lines)}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
