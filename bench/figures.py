# SPDX-License-Identifier: Apache-2.0
"""From runs to figures: medians, ratios within a round, and the bars.

Pure. A ratio is the median over the rounds of the ratio within each round: two
receivers of one round have met much the same machine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from bench import model
from bench.measure import INGESTD_CRC32C, INGESTD_NONE, OURS, UPPER_BOUND, Run

MIB: Final = 1 << 20
MEMORY_BEYOND_AREA_MAX_MIB: Final = 64
Value: TypeAlias = Callable[[Run], float]


def throughput(run: Run) -> float:
    """GiB/s."""
    return run.gib_per_s


def cpu(run: Run) -> float:
    """CPU seconds of the receiver's processes per GiB."""
    return run.cpu_s_per_gib


def machine_cpu(run: Run) -> float:
    """CPU seconds of the whole machine per GiB."""
    return run.machine_cpu_s_per_gib


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing that must hold: `measured` compared with `limit` by `sense`."""

    text: str
    sense: str  # ">=" or "<="
    limit: float
    measured: float
    unit: str = "x"

    @property
    def holds(self) -> bool:
        """Return whether it does."""
        return self.measured >= self.limit if self.sense == ">=" else self.measured <= self.limit


def _ratio(over: float, under: float) -> float:
    """A run too short for the machine's clock ticks may have used none of them."""
    if under == 0:
        return 1.0 if over == 0 else math.inf
    return over / under


class Figures:
    """What the runs say. Asking for a scenario or receiver without runs is a KeyError."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs: dict[tuple[str, str], list[Run]] = {}
        for run in sorted(runs, key=lambda run: run.round):
            self.runs.setdefault((run.scenario, run.receiver), []).append(run)

    def scenarios(self) -> list[str]:
        """Names of the scenarios, in the order in which they first ran."""
        return list(dict.fromkeys(scenario for scenario, _ in self.runs))

    def receivers(self, scenario: str) -> list[str]:
        """Names of the receivers of a scenario, in the same order."""
        return [receiver for name, receiver in self.runs if name == scenario]

    def median(self, scenario: str, receiver: str, value: Value) -> float:
        """Median over the rounds."""
        return statistics.median(value(run) for run in self.runs[scenario, receiver])

    def spread(self, scenario: str, receiver: str, value: Value) -> tuple[float, float]:
        """Least and most over the rounds."""
        values = [value(run) for run in self.runs[scenario, receiver]]
        return min(values), max(values)

    def ratio(self, over: tuple[str, str], under: tuple[str, str], value: Value) -> float:
        """Median over the rounds of the ratio of two (scenario, receiver) within a round."""
        pairs = zip(self.runs[over], self.runs[under], strict=True)
        return statistics.median(_ratio(value(a), value(b)) for a, b in pairs)

    def memory_beyond_area_mib(self, scenario: str, receiver: str) -> float:
        """The most resident memory beyond the area over the rounds, MiB."""
        return max(
            ((run.memory_peak_bytes or 0) - (run.area_bytes or 0)) / MIB
            for run in self.runs[scenario, receiver]
        )


def _upper_bound_bars(figures: Figures) -> list[Bar]:
    bars = []
    bound = ("flows-1", UPPER_BOUND)
    for name, cpu_limit in ((INGESTD_NONE, 1.15), (INGESTD_CRC32C, 1.5)):
        ours = ("flows-1", name)
        speed = figures.ratio(ours, bound, throughput)
        cost = figures.ratio(ours, bound, cpu)
        bars.append(Bar(f"{name}: one flow, throughput by the upper bound's", ">=", 0.95, speed))
        bars.append(Bar(f"{name}: one flow, CPU by the upper bound's", "<=", cpu_limit, cost))
    return bars


def _peer_bars(figures: Figures) -> list[Bar]:
    peers = [name for name in figures.receivers("flows-1") if name not in (UPPER_BOUND, *OURS)]
    if not peers:
        return []
    fastest = max(peers, key=lambda name: figures.median("flows-1", name, throughput))
    cheapest = min(peers, key=lambda name: figures.median("flows-1", name, machine_cpu))
    bars = []
    for name in OURS:
        ours = ("flows-1", name)
        speed = figures.ratio(ours, ("flows-1", fastest), throughput)
        cost = figures.ratio(ours, ("flows-1", cheapest), machine_cpu)
        bars.append(
            Bar(f"{name}: one flow, throughput by the fastest peer's ({fastest})", ">=", 3, speed)
        )
        bars.append(
            Bar(f"{name}: machine's CPU by the cheapest peer's ({cheapest})", "<=", 1, cost)
        )
    return bars


def _many_flows_bars(figures: Figures) -> list[Bar]:
    bars = []
    for scenario, limit in (("flows-64", 0.9), ("flows-1000", 0.8)):
        for name in OURS if scenario in figures.scenarios() else ():
            speed = figures.ratio((scenario, name), ("flows-1", name), throughput)
            count = scenario.removeprefix("flows-")
            bars.append(Bar(f"{name}: {count} flows, throughput by one flow's", ">=", limit, speed))
    return bars


def _idle_bars(figures: Figures) -> list[Bar]:
    bars = []
    for scenario in figures.scenarios():
        if not scenario.startswith("idle-") or scenario == "idle-0":
            continue
        count = scenario.removeprefix("idle-")
        ours = (scenario, INGESTD_CRC32C)
        speed = figures.ratio(ours, ("idle-0", INGESTD_CRC32C), throughput)
        memory = figures.memory_beyond_area_mib(*ours)
        text = f"{INGESTD_CRC32C}: one flow beside {count} idle connections"
        bars.append(Bar(f"{text}, throughput by that without", ">=", 0.95, speed))
        bars.append(
            Bar(f"{text}, memory beyond the area", "<=", MEMORY_BEYOND_AREA_MAX_MIB, memory, "MiB")
        )
    return bars


def _memory_bars(figures: Figures) -> list[Bar]:
    if not figures.scenarios():
        return []
    most = max(
        figures.memory_beyond_area_mib(scenario, name)
        for scenario in figures.scenarios()
        for name in figures.receivers(scenario)
        if name in OURS
    )
    text = "ingestd: most memory beyond the area, all scenarios"
    return [Bar(text, "<=", MEMORY_BEYOND_AREA_MAX_MIB, most, "MiB")]


def _planner_bars(planner: Sequence[dict[str, Any]]) -> list[Bar]:
    return [
        Bar(
            f"planner, refill account included: `{scenario}`, per fragment",
            "<=",
            model.PLANNER_NS_MAX,
            model.planner_ns(planner, scenario),
            "ns",
        )
        for scenario in (model.PLANNER_SCENARIOS if planner else ())
    ]


def bars(figures: Figures, planner: Sequence[dict[str, Any]] = ()) -> list[Bar]:
    """Every bar for which there are runs, or figures of the planner."""
    found = _planner_bars(planner)
    if "flows-1" in figures.scenarios():
        found += _upper_bound_bars(figures) + _peer_bars(figures) + _many_flows_bars(figures)
    return found + _idle_bars(figures) + _memory_bars(figures)
