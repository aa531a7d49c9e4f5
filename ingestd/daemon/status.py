# SPDX-License-Identifier: Apache-2.0
"""The one line that `systemctl status` shows.

Invariant: rates are of the time between two calls of line(). Owned by the main
thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

from ingestd.sizes import short_size

_RATES: Final = (("received_bytes", "received"), ("durable_bytes", "durable"))


class StatusLine:
    """Knows the totals of the last call."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at_s = clock()
        self._totals = {name: 0 for name, _ in _RATES}

    def line(self, counters: Iterable[dict[str, int]], failed_stores: Collection[str]) -> str:
        """Return flows, rates and what is wrong, from the counters of all workers."""
        shots = list(counters)
        now_s = self._clock()
        elapsed_s = max(now_s - self._at_s, 1e-3)
        parts = [f"{sum(shot['flows_open'] for shot in shots)} flows"]
        for name, text in _RATES:
            total = sum(shot[name] for shot in shots)
            rate = max(0, total - self._totals[name]) / elapsed_s
            parts.append(f"{short_size(int(rate))}/s {text}")
            self._totals[name] = total
        self._at_s = now_s
        if any(shot["store_is_full"] for shot in shots):
            parts.append("a store is full")
        if failed_stores:
            parts.append(f"FAILED: store {', '.join(sorted(failed_stores))}")
        return ", ".join(parts)
