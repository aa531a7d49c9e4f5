# SPDX-License-Identifier: Apache-2.0
"""The image of a store: all of its segments and flows at one moment.

Invariants: making an image writes nothing and needs nobody's help; while a
daemon writes, it shows at least all that was acknowledged when it was begun.
An image keeps the device open for its readers: close it, or use it as a
context manager. One thread makes it; any may read it.
"""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from ingestd.errors import FlowNotFoundError, UsageError
from ingestd.store.device.claim import is_claimed
from ingestd.store.device.device import Device
from ingestd.store.device.opening import open_device
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.freed_record import read_freed
from ingestd.store.metadata.superblock import Superblock, SuperblockReading, read_superblock
from ingestd.store.metadata.tombstones import read_removals
from ingestd.store.read.assembly import assemble
from ingestd.store.read.flows import Anomaly, Flow
from ingestd.store.read.scan import Scanner

# Enough to keep a device busy with small reads; the decoding shares one processor anyway.
SCAN_THREADS: Final = 8
SCAN_TRIES: Final = 3
CANDIDATES_MAX: Final = 5
ID_DIGITS: Final = 32


class ScanStoppedError(Exception):
    """Raised by a callback of a scan that is to end; no error of the store."""


@dataclass(slots=True)
class StoreImage:
    """A store as it was found; `served`: a daemon held it at that time.

    `warnings` are sentences about damage that the image could do without;
    `removed` are flows that do not count any more, as far as segments hold them still.
    """

    device: Device
    superblock: Superblock
    segments: list[SegmentImage]
    flows: list[Flow]
    served: bool
    warnings: list[str]
    anomalies: list[Anomaly] = field(default_factory=list)
    removed: list[Flow] = field(default_factory=list)
    segments_missing_count: int = 0  # behind the device's end, of which there are no images
    removed_count: int = 0  # of ids in the table, also those of which nothing is seen
    half_freed: list[int] = field(default_factory=list)  # indexes; free, with their headers there

    @property
    def path(self) -> str:
        """The store's file or block device."""
        return self.device.path

    def segment_counts(self) -> dict[str, int]:
        """Return how many segments are in each state, every state named."""
        counts = Counter(segment.state for segment in self.segments)
        counts[SegmentState.DAMAGED] += self.segments_missing_count
        return {str(state): counts[state] for state in SegmentState}

    def find(self, prefix: str) -> Flow:
        """Return the one flow whose id begins with `prefix`, dashes and case aside.

        Raises UsageError if that is no beginning of an id, FlowNotFoundError if there
        is no such flow, or more than one.
        """
        wanted = id_prefix(prefix)
        found = [flow for flow in self.flows if flow.flow_id.hex().startswith(wanted)]
        if not found:
            raise FlowNotFoundError(
                f"{self.path} has no flow {prefix!r}: list its flows with: ingestd ls {self.path}"
            )
        if len(found) > 1:
            names = ", ".join(flow.flow for flow in found[:CANDIDATES_MAX])
            more = len(found) - CANDIDATES_MAX
            raise FlowNotFoundError(
                f"{len(found)} flows of {self.path} begin with {prefix!r}, write more of the id:"
                f" {names}{f' and {more} more' if more > 0 else ''}"
            )
        return found[0]

    def close(self) -> None:
        """Close the device; the flows can no longer be read."""
        self.device.close()

    def __enter__(self) -> StoreImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def id_prefix(text: str, digits_min: int = 1) -> str:
    """Return the hexadecimal digits with which an id begins. Raises UsageError.

    An empty text is the beginning of every id, and is what a script's variable that
    was never set would name.
    """
    wanted = text.strip().replace("-", "").lower()
    if not wanted:
        raise UsageError("a flow is named by its id, and this one is empty: ingestd ls shows ids")
    if len(wanted) > ID_DIGITS or not set(wanted) <= set("0123456789abcdef"):
        raise UsageError(f"{text!r:.60} is not the beginning of a flow's id: ingestd ls shows ids")
    if len(wanted) < digits_min:
        raise UsageError(
            f"{text!r} is too short to name a flow by: write {digits_min} or more digits of its id"
        )
    return wanted


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python's cycle collector out: of a million new objects, it would find none to free.

    It concerns the whole process: for commands, whose work the reading is. A daemon, with much else
    to do, calls image_of().
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_collector()
def read_image(path: str, *, thorough: bool = False) -> StoreImage:
    """Read what a store holds, whether or not a daemon serves it.

    `thorough` also looks for proof of lost batches, at the price of reading all
    of the segments without a footer. Raises NotAStoreError, StoreDamagedError
    or StoreError.
    """
    device = open_device(path)
    try:
        return _read(device, thorough)
    except BaseException:
        device.close()
        raise


def _read(device: Device, thorough: bool) -> StoreImage:
    for left in reversed(range(SCAN_TRIES)):
        served = is_claimed(device)
        reading = read_superblock(device)
        image = image_of(device, reading, live=served, thorough=thorough and not served)
        # A daemon that started meanwhile has changed what the states mean.
        if not left or read_superblock(device).superblock.generation == (
            reading.superblock.generation
        ):
            break
    return image


def image_of(
    device: Device,
    reading: SuperblockReading,
    *,
    live: bool,
    thorough: bool,
    on_progress: Callable[[int, int], None] | None = None,
    scan: Callable[[int], SegmentImage] | None = None,
) -> StoreImage:
    """Scan every segment of an open store and put its flows together.

    `scan` reads a segment in another way; then the flows are only what it returns of them.

    `on_progress` is called by several threads with how many segments are scanned, and
    how many there are; what it raises ends the scan, and is raised.
    """
    superblock = reading.superblock
    warnings = list(reading.warnings)
    if device.size_bytes < superblock.store_bytes:
        warnings.append(
            f"{device.path} has {device.size_bytes} bytes and was formatted with"
            f" {superblock.store_bytes}: its end is missing, and what lay there with it"
        )
    read = scan or Scanner(device, superblock, live=live, thorough=thorough).scan
    # Behind the device's end there is nothing to be read, whatever size the superblock states.
    room_bytes = max(0, device.size_bytes - superblock.segments_offset)
    present_count = min(superblock.segment_count, room_bytes // superblock.segment_bytes)
    numbers = itertools.count()

    def scan_next(index: int) -> SegmentImage:
        if on_progress is not None:
            on_progress(next(numbers), present_count)
        return read(index)

    with ThreadPoolExecutor(SCAN_THREADS, "store-scan") as pool:
        segments = list(pool.map(scan_next, range(present_count)))
    # Whatever number the superblock states, those that cannot be there cost nothing.
    missing_count = superblock.segment_count - present_count
    # Read last: whatever was reclaimed, or removed, before a segment was scanned is known by then.
    freed = read_freed(device, superblock)
    found, segments = segments, freed.without_reclaimed(segments)
    half_freed = [a.index for a, b in zip(found, segments, strict=True) if a is not b]
    for segment in segments:
        warnings += segment.warnings
    flows, anomalies = assemble(
        segments,
        generation=superblock.generation,
        live=live,
        freed_sequence=freed.sequence,
        is_cut=missing_count > 0,
    )
    removals = read_removals(device, superblock)
    warnings += removals.warnings()
    gone = removals.flows
    hidden = {flow.flow for flow in flows if flow.flow_id in gone}
    return StoreImage(
        device,
        superblock,
        segments,
        [flow for flow in flows if flow.flow not in hidden],
        live,
        warnings,
        [anomaly for anomaly in anomalies if anomaly.flow not in hidden],
        [flow for flow in flows if flow.flow in hidden],
        missing_count,
        len(gone),
        half_freed,
    )
