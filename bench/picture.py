# SPDX-License-Identifier: Apache-2.0
"""The figures as a picture (SVG), drawn by matplotlib, which only this file needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib

from bench.figures import Figures, Value, machine_cpu, throughput
from bench.measure import INGESTD_CRC32C, INGESTD_NONE, OURS, UPPER_BOUND, Run

matplotlib.use("Agg")
# The same figures make the same file: ids without randomness, text as text.
matplotlib.rcParams.update(
    {"svg.hashsalt": "ingestd", "svg.fonttype": "none", "font.family": "sans-serif"}
)

from matplotlib import pyplot  # noqa: E402 - after the choice of its backend

COLOURS: Final = {UPPER_BOUND: "#8a8a8a", INGESTD_NONE: "#1b6ca8", INGESTD_CRC32C: "#58a4d8"}
PEER_COLOUR: Final = "#d9a45b"
SIZE_INCHES: Final = (10, 6.4)


def _bars(axes: Any, figures: Figures, rows: Sequence[tuple[str, str, str]], value: Value) -> None:
    """One bar per (scenario, receiver, label), from top to bottom, with the spread."""
    for place, (scenario, receiver, _) in enumerate(rows):
        middle = figures.median(scenario, receiver, value)
        low, high = figures.spread(scenario, receiver, value)
        spread = [[max(middle - low, 0)], [max(high - middle, 0)]]
        colour = COLOURS.get(receiver, PEER_COLOUR)
        axes.barh(place, middle, xerr=spread, color=colour, ecolor="#444444", capsize=2)
        axes.text(high, place, f"  {middle:.2f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [label for _, _, label in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Throughput and the machine's CPU time: one flow against all, many flows against the bound."""
    figures = Figures(runs)
    one = [("flows-1", name, name) for name in figures.receivers("flows-1")]
    many = []
    for scenario in figures.scenarios():
        count = scenario.removeprefix("flows-")
        for name in (UPPER_BOUND, *OURS) if scenario.startswith("flows-") else ():
            many.append((scenario, name, f"{name}, {count}"))
    picture, grid = pyplot.subplots(2, 2, figsize=SIZE_INCHES, layout="constrained")
    panels = (
        (grid[0][0], one, throughput, "one flow: GiB/s, data on stable media"),
        (grid[0][1], one, machine_cpu, "one flow: CPU s/GiB of the whole machine"),
        (grid[1][0], many, throughput, "1 to many flows: GiB/s"),
        (grid[1][1], many, machine_cpu, "1 to many flows: CPU s/GiB of the whole machine"),
    )
    for axes, rows, value, title in panels:
        _bars(axes, figures, rows, value)
        axes.set_title(title, fontsize=9, loc="left")
    picture.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(picture)
