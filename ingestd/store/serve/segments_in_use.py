# SPDX-License-Identifier: Apache-2.0
"""The segments of a served store that are in use: granted, or found by the opening, not reclaimed.

Invariants: a segment is in before anyone can begin it, and out once its header is gone from stable
media; its memory grows with the store's segments, not with what was ever written. Any thread may
call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ingestd.store.format.segment import SegmentImage


class SegmentsInUse:
    """Indexes by sequence."""

    def __init__(self, found: Iterable[SegmentImage] = ()) -> None:
        self._mutex = threading.Lock()
        self._indexes = {s.sequence: s.index for s in found if s.sequence}

    def __call__(self) -> dict[int, int]:
        """Return what is in use now."""
        with self._mutex:
            return dict(self._indexes)

    def add(self, index: int, sequence: int) -> None:
        """Know of a segment that is about to be granted."""
        with self._mutex:
            self._indexes[sequence] = index

    def discard(self, segments: Iterable[SegmentImage]) -> None:
        """Know of segments that are free again."""
        with self._mutex:
            for segment in segments:
                self._indexes.pop(segment.sequence, None)
