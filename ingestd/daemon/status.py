# SPDX-License-Identifier: Apache-2.0
"""The one line that `systemctl status` shows.

Invariant: rates are of the time between two calls of line(). Owned by the main
thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ingestd.sizes import short_size

_RATES: Final = (("received_bytes", "received"), ("durable_bytes", "durable"))


class StatusLine:
    """Knows the totals of the last call."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at_s = clock()
        self._totals = {name: 0 for name, _ in _RATES}

    def line(self, counters: Iterable[dict[str, int]], store_texts: Sequence[str]) -> str:
        """Return flows, rates and what is wrong: `store_texts`, a phrase for each such store."""
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
        parts += [f"store {text}" for text in store_texts]
        return ", ".join(parts)
