# SPDX-License-Identifier: Apache-2.0
"""Measures a store of many small flows that is served with a catalogue.

    python bench/catalogue.py [--flows 1000000] [--directory build] [--no-docs]

The store is written as a daemon would have left it: flows of 100 bytes, sealed, a footer in every
segment. A daemon serves it; listings and look-ups are made in a process of their own, on the same
code that the daemon runs. Takes some GiB and minutes; writes the table of docs/operations.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
# Behind the installed package: the source tree's `ingestd` has no compiled core.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path += [str(ROOT), str(ROOT / "tests")]  # for `bench` and `support`

from crc32c import crc32c  # noqa: E402

from bench import machine, report  # noqa: E402
from ingestd.store.create.formatting import format_store  # noqa: E402
from ingestd.store.format import layout  # noqa: E402
from ingestd.store.format.layout import round_up  # noqa: E402
from ingestd.store.metadata.superblock import Superblock  # noqa: E402
from ingestd.store.serve.served_store import open_for_serving  # noqa: E402
from support.daemon import Daemon  # noqa: E402
from support.ingest import Ingest  # noqa: E402
from support.stores import both_protocols_config  # noqa: E402

DOCUMENT: Final = ROOT / "docs" / "operations.md"
MIB: Final = 1 << 20
SEGMENT_BYTES: Final = 16 * MIB
FLOW_BYTES: Final = 100
EXTENT_ALIGN: Final = 512
FLOWS_OF_BATCH: Final = 256
STARTED_NS: Final = 1_795_000_000_000_000_000  # in November 2026
AREA_BYTES: Final = 8 * MIB
FED_TIMEOUT_S: Final = 900
LISTING: Final = "listing"  # what a process of its own is asked to do


# --- The store --------------------------------------------------------------------------


def flow_id(number: int) -> bytes:
    """The id of the n-th flow: as random as one that a sender chose."""
    return random.Random(number).randbytes(16)


class _Segment:
    """A segment that is being filled."""

    def __init__(self, superblock: Superblock, index: int) -> None:
        self.superblock = superblock
        self.index = index
        self.sequence = layout.sequence_of(superblock.generation, index + 1)
        self.at = layout.SEGMENT_DATA_BLOCK * superblock.block_bytes
        self.batch_count = 0
        self.payload_bytes = 0
        self.copies: list[bytes] = []
        self.spans: list[bytes] = []

    @property
    def is_full(self) -> bool:
        """Whether the next batch may find no room in the segment, or in its footer."""
        flows = len(self.spans) + FLOWS_OF_BATCH
        records = sum(map(len, self.copies[:2])) + layout.SPAN.size_bytes
        footer = layout.footer_bytes_max(self.superblock.segment_bytes)
        batch = FLOWS_OF_BATCH * (EXTENT_ALIGN + records)
        room = self.superblock.segment_bytes - footer - self.superblock.block_bytes
        return flows * records > footer or self.at + batch > room

    def header(self) -> bytes:
        row = layout.SegmentHeaderRow(
            layout.SEGMENT_MAGIC,
            0,
            layout.FORMAT_VERSION,
            self.superblock.store_uuid,
            self.sequence,
            self.index,
            0,
            STARTED_NS,
        )
        return layout.sealed(layout.SEGMENT_HEADER.pack(row))

    def batch(self, numbers: Sequence[int]) -> bytes:
        """The next batch: whole flows."""
        records, payload = [], bytearray()
        block = self.at // self.superblock.block_bytes
        for number in numbers:
            flow, data = flow_id(number), number.to_bytes(FLOW_BYTES, "big")
            crc = crc32c(data)
            opened, closed = _open(number, flow), _close(number, flow, crc)
            extent = layout.RecordExtentRow(
                *(layout.RECORD_EXTENT, layout.EXTENT.size_bytes, 0, flow, 0, len(payload)),
                *(FLOW_BYTES, 0, crc),
            )
            records += [opened, layout.EXTENT.pack(extent), closed]
            payload += data.ljust(EXTENT_ALIGN, b"\0")
            self.copies += [opened, closed]
            span = layout.RecordSpanRow(
                *(layout.RECORD_SPAN, layout.SPAN.size_bytes),
                *(layout.SPAN_HAS_OPEN | layout.SPAN_HAS_CLOSE, flow, 0, FLOW_BYTES),
                *(block, block, 0, crc),
            )
            self.spans.append(layout.SPAN.pack(span))
        return self._sealed_batch(b"".join(records), 3 * len(numbers), payload)

    def _sealed_batch(self, records: bytes, record_count: int, payload: bytearray) -> bytes:
        block_bytes = self.superblock.block_bytes
        header_bytes = round_up(layout.BATCH_HEADER.size_bytes + len(records), block_bytes)
        batch_bytes = header_bytes + round_up(len(payload), block_bytes)
        payload_bytes = record_count // 3 * FLOW_BYTES
        row = layout.BatchHeaderRow(
            magic=layout.BATCH_MAGIC,
            crc32c=0,
            header_bytes=header_bytes,
            store_uuid=self.superblock.store_uuid,
            segment_sequence=self.sequence,
            batch_index=self.batch_count,
            batches_committed=self.batch_count,
            batch_bytes=batch_bytes,
            record_count=record_count,
            record_bytes=len(records),
            flags=layout.BATCH_HAS_CRC32C,
            reserved=0,
            payload_bytes=payload_bytes,
            made_ns=STARTED_NS,
        )
        head = (layout.BATCH_HEADER.pack(row) + records).ljust(header_bytes, b"\0")
        self.batch_count += 1
        self.payload_bytes += payload_bytes
        self.at += batch_bytes
        return layout.sealed(head) + payload.ljust(batch_bytes - header_bytes, b"\0")

    def footer(self) -> tuple[int, bytes]:
        """Where the footer begins in the segment, and its bytes."""
        records = b"".join(self.copies) + b"".join(self.spans)
        block_bytes, segment_bytes = self.superblock.block_bytes, self.superblock.segment_bytes
        region_bytes = round_up(len(records), block_bytes)
        row = layout.SegmentFooterRow(
            magic=layout.FOOTER_MAGIC,
            crc32c=0,
            version=layout.FORMAT_VERSION,
            store_uuid=self.superblock.store_uuid,
            segment_sequence=self.sequence,
            batch_count=self.batch_count,
            record_count=len(self.copies) + len(self.spans),
            records_offset=segment_bytes - block_bytes - region_bytes,
            record_bytes=len(records),
            batches_end=self.at,
            payload_bytes=self.payload_bytes,
            closed_ns=STARTED_NS,
            records_crc32c=crc32c(records),
            span_count=len(self.spans),
        )
        block = layout.sealed(layout.SEGMENT_FOOTER.pack(row)).ljust(block_bytes, b"\0")
        return row.records_offset, records.ljust(region_bytes, b"\0") + block


def _open(number: int, flow: bytes) -> bytes:
    texts = [b"ingest", b"flow-%d" % number, b"source=bench\n"]
    size = round_up(layout.OPEN.size_bytes + sum(map(len, texts)), 8)
    row = layout.RecordOpenRow(
        *(layout.RECORD_OPEN, size, 0, flow, STARTED_NS + number * 1_000_000, 0),
        *(bytes([192, 0, 2, 1]).ljust(16, b"\0"), 4000, 4, 2, *map(len, texts)),
    )
    return (layout.OPEN.pack(row) + b"".join(texts)).ljust(size, b"\0")


def _close(number: int, flow: bytes, crc: int) -> bytes:
    row = layout.RecordCloseRow(
        *(layout.RECORD_CLOSE, layout.CLOSE.size_bytes, layout.CLOSE_HAS_CRC32C, flow),
        *(FLOW_BYTES, STARTED_NS + number * 1_000_000 + 500_000),
        *(layout.FLOW_STATE_SEALED, layout.CLOSE_REASON_NONE, crc, 0),
    )
    return layout.CLOSE.pack(row)


def make_store(path: Path, flows_count: int) -> int:
    """Make a store with that many flows and some free segments; return its used segments."""
    of_segment = layout.footer_bytes_max(SEGMENT_BYTES) // 280
    segments_count = flows_count // of_segment + 2 * 16
    superblock = format_store(
        str(path),
        size_bytes=MIB + segments_count * SEGMENT_BYTES,
        segment_bytes=SEGMENT_BYTES,
        zero=False,
        label="",
        force=False,
    )
    segment: _Segment | None = None
    used_count = 0
    with path.open("r+b") as file:

        def close() -> None:
            if segment is not None:
                base = superblock.segment_offset(segment.index)
                at, footer = segment.footer()
                os.pwrite(file.fileno(), footer, base + at)
                os.pwrite(file.fileno(), segment.header(), base)

        for first in range(0, flows_count, FLOWS_OF_BATCH):
            if segment is None or segment.is_full:
                close()
                segment = _Segment(superblock, used_count)
                used_count += 1
            at = superblock.segment_offset(segment.index) + segment.at
            numbers = range(first, min(first + FLOWS_OF_BATCH, flows_count))
            os.pwrite(file.fileno(), segment.batch(numbers), at)
        close()
        os.fsync(file.fileno())
    return used_count


# --- What is measured -------------------------------------------------------------------


@dataclass
class Figure:
    """One row of the table; a bar of None: no promise."""

    what: str
    value: float
    unit: str
    bar: float | None = None

    def row(self) -> str:
        bar = "" if self.bar is None else f"{self.bar:g} {self.unit}"
        return f"| {self.what} | {self.value:.3g} {self.unit} | {bar} |"


def _timed(what: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    what()
    return time.perf_counter() - begun_s


def _rss_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _wait_fed(daemon: Daemon, count: int) -> float:
    begun_s = time.monotonic()
    while len(daemon.events("catalogue_fed")) < count:
        assert time.monotonic() - begun_s < FED_TIMEOUT_S
        time.sleep(0.05)
    return float(daemon.events("catalogue_fed")[-1]["seconds"])


def _refusal_s(daemon: Daemon, number: int) -> float:
    """Seconds from a hello that names a sealed flow to the answer, which needs its state."""
    with Ingest(daemon.listener("ingest")) as sender:
        flow = str(uuid.UUID(bytes=flow_id(number)))
        greeting = sender.expect("hello")
        begun_s = time.perf_counter()
        sender.answer(greeting, flow=flow, resume=True)
        error = sender.error()
        assert error["code"] == "sealed", error
        return time.perf_counter() - begun_s


def measure_daemon(path: Path, directory: Path, flows_count: int) -> Iterator[Figure]:
    """Start a daemon in every way, and ask it."""
    config = both_protocols_config(
        directory / "c.toml", daemon={"state_dir": str(directory / "state")}
    )
    with Daemon(path, config=config) as daemon:
        fed_s = _wait_fed(daemon, 1)
        yield Figure("feeding a catalogue that was lost, while the daemon serves", fed_s, "s")
        peak = machine.memory_peak_bytes(daemon.process.pid) - AREA_BYTES
        yield Figure("... most memory meanwhile, beyond the area", peak / MIB, "MiB", 200)
        catalogue = next((directory / "state").glob("catalogue/*.sqlite"))
        assert daemon.stop() == 0
        yield Figure("size of the catalogue", catalogue.stat().st_size / MIB, "MiB")
        for number, (end, bar) in enumerate([("a clean stop", 2.0), ("kill -9", 10.0)], 2):
            ready_s = _timed(daemon.start)
            yield Figure(f"ready after {end}", ready_s, "s", bar)
            cpu_s = machine.process_cpu_s(daemon.process.pid)
            yield Figure("... CPU time until then", cpu_s, "s")
            opened_s = float(daemon.events("recovered")[-1]["seconds"])
            yield Figure("... of it, opening the store", opened_s, "s")
            _wait_fed(daemon, number)
            first_s = _refusal_s(daemon, flows_count // 3)
            yield Figure("... a resume: where a flow is", first_s, "s", 0.2)
            resident = _rss_bytes(daemon.process.pid) - AREA_BYTES
            yield Figure("... resident beyond the area", resident / MIB, "MiB", 200)
            daemon.kill()


def listing(path: Path, catalogues: Path) -> dict[str, float]:
    """Open a store and list it, in this process; seconds by what was done."""
    found: dict[str, float] = {}
    begun_s = time.perf_counter()
    store = open_for_serving(str(path), catalogues=catalogues)
    found["open"] = time.perf_counter() - begun_s
    source = store.flow_source()
    found["limit"] = _timed(lambda: list(source.flows(limit=20)))
    found["one"] = _timed(lambda: source.flow(flow_id(1)))
    found["remove"] = _timed(lambda: store.sweeper.remove([flow_id(2)], "removed"))
    begun_s = time.perf_counter()
    with open(os.devnull, "w", encoding="utf-8") as out:
        count = 0
        for flow in source.flows():
            out.write(json.dumps(flow.as_dict()) + "\n")
            count += 1
    found["all"] = time.perf_counter() - begun_s
    found["count"] = count
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    store.close()
    return found


def measure_listing(path: Path, directory: Path, flows_count: int) -> Iterator[Figure]:
    """List the store in a process of its own, so that its memory is no other's."""
    command = [sys.executable, "-P", __file__, LISTING, str(path), str(directory)]
    answer = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    found: dict[str, Any] = json.loads(answer)
    assert found["count"] == flows_count - 1, found
    yield Figure("opening the store", found["open"], "s")
    yield Figure("the first 20 flows of a listing", found["limit"], "s", 0.2)
    yield Figure("one flow and where its bytes are", found["one"], "s", 0.2)
    yield Figure("removing one flow", found["remove"], "s", 0.2)
    yield Figure("a listing of all flows as JSON", found["all"], "s", 15)
    yield Figure("... most memory of the process", found["peak"] / MIB, "MiB", 200)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the store, measure, print, and write the document."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == [LISTING]:
        print(json.dumps(listing(Path(words[1]), Path(words[2]) / "state" / "catalogue")))
        return 0
    parser = argparse.ArgumentParser(description="Measure a store of many flows.")
    parser.add_argument("--flows", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, default=ROOT / "build")
    parser.add_argument("--no-docs", action="store_true")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        path = directory / "store.img"
        segments_count = make_store(path, arguments.flows)
        figures = []
        for figure in measure_daemon(path, directory, arguments.flows):
            figures.append(figure)
            print(figure.row(), flush=True)
        for figure in measure_listing(path, directory, arguments.flows):
            figures.append(figure)
            print(figure.row(), flush=True)
    facts = machine.facts(arguments.directory, "none")
    lines = [
        f"{arguments.flows} flows of {FLOW_BYTES} bytes in {segments_count} segments;"
        f" {facts.cpus_count} CPUs ({facts.cpu}), Linux {facts.kernel}, {facts.filesystem} on"
        f" {facts.device}; load average {os.getloadavg()[0]:.1f}; {time.strftime('%Y-%m-%d')}:",
        "",
        "| what | measured | goal |",
        "|---|--:|--:|",
        *(figure.row() for figure in figures),
    ]
    if not arguments.no_docs:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(report.insert(text, {"catalogue": "\n".join(lines)}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
