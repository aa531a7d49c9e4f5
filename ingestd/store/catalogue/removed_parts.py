# SPDX-License-Identifier: Apache-2.0
"""An image of a served store cut down to what the reclaim of removed flows needs to see.

Segments that removed flows fill are read from the device, as are those that the catalogue does not
have; of all others only the removed flows' parts are shown, and they are no candidates for reclaim:
their state is `open`. So the memory that it takes grows with the table of removed flows, which is
bounded, and whatever is reclaimed was read from the device. Any thread may call.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from ingestd.store.catalogue.answers import Answers
from ingestd.store.catalogue.schema import CatalogueError
from ingestd.store.catalogue.snapshot import Snapshot
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.freed_record import read_freed
from ingestd.store.metadata.tombstones import read_removals
from ingestd.store.read.image import ScanStoppedError, StoreImage
from ingestd.store.read.scan import Scanner


def image_of_removed(answers: Answers, asked: Iterable[bytes]) -> StoreImage | None:
    """Return an image whose `flows` are those that are asked about, as far as they are there.

    They may be removed on its strength, and the sweep that follows sees them as removed. None:
    there is damage, or the catalogue cannot be used, so that all of the store is to be read.
    Raises StoreDamagedError, and ScanStoppedError.
    """
    if answers.is_damaged:
        return None
    wanted = frozenset(asked)
    table = read_removals(answers.device, answers.superblock)
    try:
        segments = _segments(answers, table.flows | wanted)
        found = answers.find(wanted).flows.values() if wanted else ()
    except CatalogueError:
        return None
    if any(segment.state is SegmentState.DAMAGED for segment in segments):
        return None
    # Read last: whatever was reclaimed before a segment was read is known by then.
    freed = read_freed(answers.device, answers.superblock)
    return StoreImage(
        answers.device,
        answers.superblock,
        freed.without_reclaimed(segments),
        [flow for flow in found if flow.flow_id not in table.flows],
        served=True,
        warnings=[],
        removed_count=len(table.flows),
    )


def _segments(answers: Answers, removed: Set[bytes]) -> list[SegmentImage]:
    """The segments in use, as far as they concern these flows."""
    scanner = Scanner(answers.device, answers.superblock, live=True)
    segments: list[SegmentImage] = []
    with answers.catalogue.snapshot() as snapshot:
        facts = snapshot.segments()
        closed = {item.sequence for item in facts if item.is_closed}
        in_use = answers.in_use()
        full = _filled(snapshot, closed, removed)
        for sequence, index in in_use.items():
            if sequence in closed and sequence not in full:
                continue
            if answers.is_stopped():
                raise ScanStoppedError
            segment = scanner.scan(index)
            if segment.sequence in (0, sequence):
                segments.append(segment)
        gone = {item.sequence for item in facts} - in_use.keys()
        others = snapshot.parts_of(removed, gone | full)
    for part in others:
        if part.sequence in closed:
            part.state = SegmentState.OPEN  # as there is more in it than is shown here
            segments.append(part)
    return segments


def _filled(snapshot: Snapshot, closed: Set[int], removed: Set[bytes]) -> set[int]:
    """Return the closed segments in which nothing is but what belongs to these flows."""
    touched = {part.sequence for part in snapshot.parts_of(removed)} & closed
    return {sequence for sequence in touched if snapshot.flow_ids_in([sequence]) <= removed}
