# SPDX-License-Identifier: Apache-2.0
"""The free space of a store, judged by the share that its configuration warns at.

Invariants: only reads, also while a daemon serves the store; that room is short
is a warning, as it stands in no engine's way. Any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestd.errors import IngestdError, NotAStoreError
from ingestd.finding import Finding, Verdict
from ingestd.store.read.image import read_image

if TYPE_CHECKING:
    from ingestd.config.settings import StoreSettings

SUBJECT: Final = "room"


class Capacity(NamedTuple):
    """Segments of a store, and how many of them are free."""

    segments_free: int
    segments: int


def capacity_of(path: str) -> Capacity:
    """Return the room of a store. Raises NotAStoreError, StoreDamagedError or StoreError."""
    with read_image(path) as image:
        return Capacity(image.segment_counts()["free"], image.superblock.segment_count)


def capacity_finding(
    store: StoreSettings, read: Callable[[str], Capacity] = capacity_of
) -> Finding:
    """Return whether a store is full, nearly so, or whether that cannot be known."""
    try:
        room = read(store.path)
    except IngestdError as error:
        text, _, remedy = str(error).partition(": ")
        # No engine starts on what is no store; of one that cannot be read now, serve may do more.
        verdict: Verdict = "fail" if isinstance(error, NotAStoreError) else "warn"
        return Finding(SUBJECT, verdict, text, remedy or f"ingestd verify {store.path}")
    percent = 100 * room.segments_free / room.segments
    text = f"{room.segments_free} of {room.segments} segments are free ({percent:.1f}%)"
    if store.on_full == "overwrite-oldest":
        return Finding(SUBJECT, "ok", f"{text}; without one, the oldest is overwritten")
    if room.segments_free and percent >= store.warn_free_percent:
        return Finding(SUBJECT, "ok", text)
    if room.segments_free:
        text = f"{text}, less than warn_free_percent = {store.warn_free_percent:g}"
    else:
        text = f"{text}: new flows are refused"
    return Finding(
        SUBJECT,
        "warn",
        text,
        f"see what takes it with `ingestd ls {store.path}`, and add a store for new flows:"
        " `ingestd format PATH`, and a [store.NAME] with that path",
    )
