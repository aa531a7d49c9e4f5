# SPDX-License-Identifier: Apache-2.0
"""What the planner's measured cost would mean beside published zcrx figures: a model.

Pure. Nothing here has been measured with a NIC. The published figures are those
that came with the kernel's patches: a receiver that only takes fragments and
gives them back, on a BCM57508 with an MTU of 4 KiB (116.2 Gbit/s with the
interrupts on a core of their own, 80.9 Gbit/s all on one), and 183 to 192 Gbit/s
with buffers of 32 KiB. To the time per fragment that they come to, the model
adds what the planner costs, and nothing for the writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

KIB: Final = 1024
GBIT: Final = 1e9 / 8
NS_PER_S: Final = 1e9
PLANNER_NS_MAX: Final = 40
PLANNER_SCENARIOS: Final = ("4096-pages-M4-L4096", "1448-pages-M4-L4096")


@dataclass(frozen=True, slots=True)
class Published:
    """A figure that others measured: how, Gbit/s, and bytes of a fragment."""

    setting: str
    gbit_per_s: float
    fragment_bytes: int

    @property
    def ns_per_fragment(self) -> float:
        """From one fragment to the next at that throughput."""
        return self.fragment_bytes / (self.gbit_per_s * GBIT) * NS_PER_S


PUBLISHED: Final = (
    Published("4 KiB, interrupts on another core", 116.2, 4 * KIB),
    Published("4 KiB, all on one core", 80.9, 4 * KIB),
    Published("32 KiB, the lower of two", 183.0, 32 * KIB),
    Published("32 KiB, the higher of two", 192.0, 32 * KIB),
)


def planner_ns(planner: Sequence[dict[str, Any]], scenario: str) -> float:
    """The measured median of a scenario. Raises KeyError if it was not measured."""
    for figure in planner:
        if figure["scenario"] == scenario:
            return float(figure["ns_median"])
    raise KeyError(scenario)


def with_planner(published: Published, planner_ns: float) -> float:
    """Gbit/s when each fragment costs the same core that much more."""
    return published.gbit_per_s / (1 + planner_ns / published.ns_per_fragment)


def planner_limit(fragment_bytes: int, planner_ns: float) -> float:
    """Gbit/s at which a core would do nothing but plan."""
    return fragment_bytes / (planner_ns / NS_PER_S) / GBIT


def area_bytes(gbit_per_s: float, write_latency_s: float, posted_bytes: int) -> float:
    """The area that a rate needs.

    Half of it may lie in batches under way, which hold what came in during one
    write's latency; the NIC has buffers of `posted_bytes` besides.
    """
    return 2 * gbit_per_s * GBIT * write_latency_s + posted_bytes
