# SPDX-License-Identifier: Apache-2.0
"""The daemon's memory, descriptors and threads over each of its lives.

Sampled from proc(5) by a thread of its own: resident, proportional (PSS) and
private bytes of smaps_rollup. Flat means: in a life of LIFE_S_MIN or more, the
median of the last quarter is at most GROWTH_BYTES_MAX above that of the second;
in one below YOUNG_S, GROWTH_YOUNG_BYTES_MAX.
"""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

MIB: Final = 1024 * 1024
INTERVAL_S: Final = 0.5
KERNEL_THREAD: Final = "iou-"
LIFE_S_MIN: Final = 25.0
# What a Python process moves by without any trend; measured, see docs/reliability.md.
GROWTH_BYTES_MAX: Final = 3 * MIB
# Meanwhile the heap is still growing to what the stores' images and connections take of it.
YOUNG_S: Final = 60.0
GROWTH_YOUNG_BYTES_MAX: Final = 6 * MIB
# The one that looks up flows in a store is started when it is first needed.
THREADS_LATE_MAX: Final = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process; `age_s` since the life's first."""

    age_s: float
    rss_bytes: int
    pss_bytes: int
    private_bytes: int
    descriptors_count: int
    threads_count: int


@dataclass
class Life:
    """The samples of one run of the daemon."""

    pid: int
    started_s: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long it was sampled."""
        return self.samples[-1].age_s if self.samples else 0.0

    def quarter(self, number: int, key: str) -> float:
        """The median of one quarter, 0 to 3, of the life."""
        first, end = number * self.seconds / 4, (number + 1) * self.seconds / 4
        return float(median(getattr(s, key) for s in self.samples if first <= s.age_s <= end))

    def least(self, number: int, key: str) -> int:
        """The least of one quarter: what is there all the time."""
        first, end = number * self.seconds / 4, (number + 1) * self.seconds / 4
        return min(int(getattr(s, key)) for s in self.samples if first <= s.age_s <= end)

    def growth_bytes(self, key: str) -> float:
        """From the second quarter, in which everybody has come, to the last."""
        return self.quarter(3, key) - self.quarter(1, key)


def look(pid: int, age_s: float = 0.0) -> Sample:
    """Sample a process. Raises OSError, or AssertionError, once it is gone."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    lines = re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)
    found = {key: int(kib) * 1024 for key, kib in lines}
    assert "Rss" in found, f"process {pid} is gone"
    return Sample(
        age_s=age_s,
        rss_bytes=found["Rss"],
        pss_bytes=found["Pss"],
        private_bytes=found["Private_Clean"] + found["Private_Dirty"],
        descriptors_count=len(os.listdir(f"/proc/{pid}/fd")),
        threads_count=_threads_count(Path(f"/proc/{pid}/task")),
    )


def _threads_count(tasks: Path) -> int:
    """Threads of the program; those of io_uring in the kernel come and go as it likes."""
    names = [(task / "comm").read_text() for task in tasks.iterdir()]
    return sum(not name.startswith(KERNEL_THREAD) for name in names)


class Sampler:
    """One thread that samples whichever life is under way; begin(), end(), close()."""

    def __init__(self) -> None:
        self.lives: list[Life] = []
        self._life: Life | None = None
        self._mutex = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def begin(self, pid: int) -> None:
        """A daemon is ready."""
        with self._mutex:
            self._life = Life(pid)
            self.lives.append(self._life)

    def end(self) -> Life:
        """The daemon is about to end, or has; return its life."""
        with self._mutex:
            life, self._life = self._life, None
        assert life is not None
        return life

    def close(self) -> None:
        """Stop sampling."""
        self._closing.set()
        self._thread.join()

    def _main(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            with self._mutex:
                if self._life is None:
                    continue
                age_s = time.monotonic() - self._life.started_s
                with suppress(OSError, AssertionError):  # it may have died a moment ago
                    self._life.samples.append(look(self._life.pid, age_s))


def assert_flat(lives: list[Life]) -> str:
    """Every long life is flat, also in its threads; return a line about them."""
    long = [life for life in lives if life.seconds >= LIFE_S_MIN]
    assert long, "no life was long enough to be looked at"
    lines = []
    for life in long:
        grown = {key: life.growth_bytes(f"{key}_bytes") for key in ("rss", "pss", "private")}
        lines.append(
            f"{life.seconds:.0f} s: {life.quarter(1, 'rss_bytes') / MIB:.1f} MiB resident,"
            f" then {grown['rss'] / MIB:+.2f} (private {grown['private'] / MIB:+.2f})"
        )
        threads = life.least(1, "threads_count"), life.least(3, "threads_count")
        assert threads[1] - threads[0] <= THREADS_LATE_MAX, f"{threads} threads: {lines[-1]}"
        limit_bytes = GROWTH_YOUNG_BYTES_MAX if life.seconds < YOUNG_S else GROWTH_BYTES_MAX
        assert all(growth <= limit_bytes for growth in grown.values()), lines[-1]
    return "; ".join(lines)
