# SPDX-License-Identifier: Apache-2.0
"""Keeping a catalogue up to date with the store that it is of.

Invariants: what is to be fed or taken out follows from what is in use and what is in, never from
an event that could be lost; a segment is fed once it does not change any more: it has a footer,
or an earlier generation left it. A catalogue that turns out to be damaged is taken away, and made
anew. turn() and begin() are one thread's; answers() is for any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ingestd.store.catalogue.answers import Answers
from ingestd.store.catalogue.catalogue import Catalogue
from ingestd.store.catalogue.rows import SegmentFacts
from ingestd.store.catalogue.schema import CatalogueError, Context, path_of
from ingestd.store.device.device import Device
from ingestd.store.format.layout import generation_of
from ingestd.store.format.segment import SegmentImage, SegmentState
from ingestd.store.metadata.freed_record import read_freed
from ingestd.store.metadata.superblock import Superblock
from ingestd.store.metadata.tombstones import read_removals
from ingestd.store.read.scan import Scanner

# A segment gets its footer a little later than the grant of the one behind it.
LOOKS_AFTER_CHANGE: Final = 10


class CatalogueFeeder:
    """Of one store that this process serves.

    `in_use`: as of Answers; `is_damaged`: likewise.
    """

    def __init__(
        self,
        directory: Path,
        device: Device,
        superblock: Superblock,
        in_use: Callable[[], Mapping[int, int]],
        *,
        is_damaged: bool,
        catalogue: Catalogue | None = None,
    ) -> None:
        """`catalogue`: what is open already; else it is opened when it is needed."""
        self._directory = directory
        self._device = device
        self._superblock = superblock
        self._in_use = in_use
        self._is_damaged = is_damaged
        self._scanner = Scanner(device, superblock, live=True)
        self._catalogue = catalogue
        self._is_stopping = False
        self._is_compared = False  # what is in was found in the store by its opening
        self._seen: Mapping[int, int] | None = None  # what was in use at the last turn
        self._looks_left = 0
        self.made_because = catalogue.made_because if catalogue else None  # why it is a new one
        self.unfed_count = 0  # of segments in use, as of the last turn
        self.unfed_older_count = 0  # of these, of earlier generations: they could not be read

    @property
    def store_uuid(self) -> bytes:
        """Return the UUID of the store that it is of."""
        return self._superblock.store_uuid

    @property
    def path(self) -> Path:
        """Return the catalogue's file."""
        return path_of(self._directory, self._superblock.store_uuid)

    @property
    def is_ready(self) -> bool:
        """Return whether there is a catalogue to be asked."""
        return self._catalogue is not None

    def begin(self, segments: Iterable[SegmentImage]) -> None:
        """Open the catalogue, and take out what is not as the opening of the store found it.

        Raises CatalogueError; then turn() tries again to open it, and it is empty.
        """
        catalogue = self._catalogue or self._open()
        found = {segment.sequence: segment for segment in segments if segment.sequence}
        try:
            with catalogue.snapshot() as snapshot:
                facts = snapshot.segments()
            stale = [item.sequence for item in facts if not _is_of(item, found.get(item.sequence))]
            if 2 * len(stale) > len(facts):  # another life of the store: to begin anew is quicker
                self._take_away(catalogue)
                self._open()
                self.made_because = "it did not fit the store"
            else:
                catalogue.drop(stale)
            self._is_compared = True
        except CatalogueError:
            self._take_away(catalogue)
            raise

    def turn(self, segments_max: int | None = None) -> None:
        """Feed what can be fed, take out what is gone.

        Nothing is fed if it is more than `segments_max`. Raises CatalogueError, and
        StoreDamagedError where the device cannot be read.
        """
        in_use = self._in_use()
        if self._catalogue is not None and in_use == self._seen:
            if self._looks_left == 0:
                return
            self._looks_left -= 1
        else:
            self._looks_left = LOOKS_AFTER_CHANGE
        catalogue = self._catalogue or self._open_later()
        try:
            self._feed(catalogue, in_use, segments_max)
        except CatalogueError as error:
            if error.is_damage:
                self._take_away(catalogue)
            raise
        self._seen = in_use

    def stop(self) -> None:
        """Let a turn end soon. By any thread."""
        self._is_stopping = True

    def close(self) -> None:
        """Close the catalogue; turn() is over."""
        catalogue, self._catalogue = self._catalogue, None
        if catalogue is not None:
            catalogue.close()

    def answers(self, is_stopped: Callable[[], bool] = lambda: False) -> Answers | None:
        """Return who answers; None: there is no catalogue now. By any thread."""
        catalogue = self._catalogue
        if catalogue is None:
            return None
        return Answers(
            catalogue, self._device, self._superblock, self._in_use, self._is_damaged, is_stopped
        )

    def _found(self) -> Catalogue:
        if self._catalogue is None:
            raise CatalogueError(f"{self.path} is not there now", is_damage=False)
        return self._catalogue

    def _open(self) -> Catalogue:
        catalogue = Catalogue.open(self._directory, self._superblock.store_uuid)
        self.made_because = catalogue.made_because
        self._catalogue = catalogue
        return catalogue

    def _open_later(self) -> Catalogue:
        """Open the catalogue while the store is served, when nothing vouches for what it has."""
        catalogue = self._open()
        if not self._is_compared and catalogue.made_because is None:
            self._take_away(catalogue)
            catalogue = self._open()
            self.made_because = "it was not compared with the store when that was opened"
        return catalogue

    def _take_away(self, catalogue: Catalogue) -> None:
        self._catalogue, self._is_compared = None, False
        catalogue.take_away()

    @contextmanager
    def flow_ids(self) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Read the ids of all flows that are in, and their number. Raises CatalogueError."""
        with self._found().snapshot() as snapshot:
            yield snapshot.flow_counts().total(), snapshot.flow_ids()

    def counts(self) -> Counter[str]:
        """Return how many flows there are, by state, once all is fed. Raises CatalogueError."""
        removed = read_removals(self._device, self._superblock).flows
        with self._found().snapshot() as snapshot:
            return snapshot.flow_counts() - snapshot.flow_counts(removed)

    def _feed(
        self, catalogue: Catalogue, in_use: Mapping[int, int], segments_max: int | None
    ) -> None:
        with catalogue.snapshot() as snapshot:
            fed = snapshot.sequences()
        catalogue.drop(fed - in_use.keys())
        unfed_set = in_use.keys() - fed
        unfed = sorted(unfed_set)
        self.unfed_count = len(unfed)
        generation = self._superblock.generation
        self.unfed_older_count = sum(generation_of(sequence) < generation for sequence in unfed)
        has_evicted = read_freed(self._device, self._superblock).sequence > 0
        catalogue.set_context(Context(generation, has_evicted, self._is_damaged))
        if segments_max is not None and len(unfed) > segments_max:
            return
        catalogue.put(self._settled_of(in_use, unfed))
        with catalogue.snapshot() as snapshot:
            left = unfed_set - snapshot.sequences()
        self.unfed_count = len(left)
        self.unfed_older_count = sum(generation_of(sequence) < generation for sequence in left)

    def _settled_of(self, in_use: Mapping[int, int], unfed: list[int]) -> Iterator[SegmentImage]:
        """Read segments that do not change any more, the oldest first, until it is to end."""
        for sequence in unfed:
            if self._is_stopping:
                return
            segment = self._settled(in_use[sequence], sequence)
            if segment is not None:
                yield segment

    def _settled(self, index: int, sequence: int) -> SegmentImage | None:
        """Read a segment that does not change any more; None: it may."""
        is_older = generation_of(sequence) < self._superblock.generation
        if not is_older and not self._scanner.has_footer(index, sequence):
            return None
        segment = self._scanner.scan(index)
        if segment.sequence != sequence:  # reclaimed meanwhile, or its header is damaged
            return None
        return segment if is_older or segment.state is SegmentState.CLOSED else None


def _is_of(facts: SegmentFacts, segment: SegmentImage | None) -> bool:
    """Return whether a segment is in as it was found, and is not to be read again."""
    if segment is None or segment.state is not SegmentState.CLOSED or not facts.is_closed:
        return False
    footer = segment.footer
    # A store that was put back from a copy may have used the same sequence again.
    return (facts.place, facts.opened_ns) == (segment.index, segment.opened_ns) and (
        footer is None
        or (facts.closed_ns, facts.records_crc32c) == (footer.closed_ns, footer.records_crc32c)
    )
