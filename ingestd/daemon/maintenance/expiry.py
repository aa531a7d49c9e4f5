# SPDX-License-Identifier: Apache-2.0
"""Expiry of one store's flows, and log lines about the clock that it goes by.

Invariants: a clock that was set, and a flow whose date cannot be right, are logged once
each. Owned by the store's maintainer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from ingestd.daemon.maintenance.steady_clock import STEADY_NS, SteadyClock
from ingestd.log_events import LogEvent
from ingestd.store.read.flow_age import floor_ns, newest_ns
from ingestd.store.reclaim.retention import NS_PER_S, Retention, expired_flows

if TYPE_CHECKING:
    from ingestd.store.read.flows import Flow
    from ingestd.store.read.image import StoreImage

# Of a term that has come, so small a part of it may pass before the store is read.
TERM_STEPS: Final = 1000


class Expiry:
    """`retentions`: by the names of listeners; `report` takes an event and its fields."""

    def __init__(
        self,
        retentions: Mapping[str, Retention],
        report: Callable[..., None],
        clock: SteadyClock | None = None,
    ) -> None:
        self._retentions = retentions
        self._report = report
        self._clock = clock or SteadyClock()
        self._next_s = 0.0
        self._misdated_count = 0  # as logged last

    def __bool__(self) -> bool:
        """Return whether any listener's flows have a term or a limit."""
        return bool(self._retentions)

    def look(self) -> None:
        """Notice what became of the clock; at each turn."""
        step_ns = self._clock.look()
        if step_ns and self._retentions:
            self._report(
                LogEvent.CLOCK_SET,
                step_s=round(step_ns / NS_PER_S, 3),
                hint=f"terms go by the clock as it was, until the new time has run for"
                f" {STEADY_NS // NS_PER_S} s: see that the clock is right",
            )

    def is_due(self) -> bool:
        """Return whether a flow may have expired since the store was read last."""
        return bool(self._retentions) and time.monotonic() >= self._next_s

    def expired(self, image: StoreImage) -> frozenset[bytes]:
        """Return the expired flows; note when to look again."""
        if not self._retentions:
            return frozenset()
        superblock = image.superblock
        floor = floor_ns(superblock, self._clock.wall_ns)
        clock = self._clock.for_store(
            newest_ns(image.flows, image.segments, floor), floor, superblock.generation
        )
        expired = expired_flows(image.flows, image.segments, self._retentions, clock)
        self._report_misdated(expired.misdated)
        self._next_s = math.inf
        if terms := [r.for_ns for r in self._retentions.values() if r.for_ns is not None]:
            # What ends from now on cannot expire before that.
            wait_ns = min(terms) if expired.wait_ns is None else expired.wait_ns
            if not self._clock.is_trusted:
                wait_ns = min(wait_ns, STEADY_NS)
            wait_ns = max(min(wait_ns, min(terms)), min(terms) // TERM_STEPS)
            self._next_s = time.monotonic() + wait_ns / NS_PER_S
        return expired.flows

    def _report_misdated(self, flows: tuple[Flow, ...]) -> None:
        if len(flows) > self._misdated_count:
            self._report(
                LogEvent.FLOWS_MISDATED,
                count=len(flows),
                flow=flows[0].flow,
                ended=flows[0].ended,
                hint="their terms begin when they were seen first, at the latest at the start of"
                " this process: see that the clock is right; ingestd ls marks them",
            )
        self._misdated_count = len(flows)
