# SPDX-License-Identifier: Apache-2.0
"""The figures as Markdown tables, put between the markers of docs/performance.md.

A part named NAME stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``;
what is outside of markers is written by people and stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench import model
from bench.figures import MIB, Bar, Figures, cpu, machine_cpu, throughput
from bench.machine import Facts
from bench.measure import INGESTD_CRC32C, INGESTD_NONE, OURS, UPPER_BOUND, Run
from bench.receivers import BenchError

PICTURE_NAME: Final = "performance-throughput.svg"
LABELS: Final = {
    UPPER_BOUND: "upper bound (no framing, index, acknowledgement)",
    INGESTD_NONE: 'ingestd, `checksum = "none"`',
    INGESTD_CRC32C: 'ingestd, `checksum = "crc32c"` (default)',
    "socat": "`socat`, then `sync FILE`",
    "nc-dd": "`nc` into `dd oflag=direct conv=fsync`",
    "mbuffer": "`mbuffer`, then `sync FILE`",
    "asyncio": "Python `asyncio`, then `fsync`",
}


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report is made of."""

    facts: Facts
    rounds_count: int
    total_bytes: int
    date: str
    version: str
    runs: Sequence[Run]
    bars: Sequence[Bar]
    planner: Sequence[dict[str, Any]]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; every column but the first is aligned right."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _span(figures: Figures, scenario: str, receiver: str) -> str:
    low, high = figures.spread(scenario, receiver, throughput)
    return f"{figures.median(scenario, receiver, throughput):.2f} ({low:.2f} to {high:.2f})"


def _by_bound(figures: Figures, scenario: str, receiver: str) -> list[str]:
    if UPPER_BOUND not in figures.receivers(scenario):
        return ["", ""]
    pair = ((scenario, receiver), (scenario, UPPER_BOUND))
    return [f"{figures.ratio(*pair, throughput):.2f}", f"{figures.ratio(*pair, cpu):.2f}"]


def _receiver_rows(figures: Figures, scenario: str) -> list[list[str]]:
    rows = []
    for receiver in figures.receivers(scenario):
        row = [LABELS[receiver], _span(figures, scenario, receiver)]
        row += _by_bound(figures, scenario, receiver)[:1]
        row += [f"{figures.median(scenario, receiver, cpu):.3f}"]
        row += _by_bound(figures, scenario, receiver)[1:]
        row += [f"{figures.median(scenario, receiver, machine_cpu):.3f}"]
        rows.append(row)
    return rows


HEADS: Final = (
    "GiB/s, median (least to most)",
    "by the upper bound's",
    "own CPU s/GiB",
    "by the upper bound's",
    "machine's CPU s/GiB",
)


def _one_flow(report: Report, figures: Figures) -> str:
    del report
    return table(("one flow", *HEADS), _receiver_rows(figures, "flows-1"))


def _many_flows(report: Report, figures: Figures) -> str:
    parts = []
    for scenario in figures.scenarios():
        if not scenario.startswith("flows-") or scenario == "flows-1":
            continue
        count = int(scenario.removeprefix("flows-"))
        each = report.total_bytes / count / MIB
        head = f"{count:,} flows of {each:.1f} MiB"
        parts.append(table((head, *HEADS), _receiver_rows(figures, scenario)))
    return "\n\n".join(parts)


def _idle(report: Report, figures: Figures) -> str:
    del report
    rows = []
    for scenario in figures.scenarios():
        if scenario.startswith("idle-"):
            memory = figures.memory_beyond_area_mib(scenario, INGESTD_CRC32C)
            row = [f"{int(scenario.removeprefix('idle-')):,}"]
            row += [_span(figures, scenario, INGESTD_CRC32C)]
            row += [f"{figures.median(scenario, INGESTD_CRC32C, cpu):.3f}", f"{memory:.1f}"]
            rows.append(row)
    heads = ("idle connections", HEADS[0], HEADS[2], "memory beyond the area, MiB")
    return table(heads, rows)


def _where_bytes_went(report: Report, figures: Figures) -> str:
    """What ingestd counted, per GiB of payload, in the last round."""
    del report
    rows = []
    for scenario in figures.scenarios():
        for name in figures.receivers(scenario):
            if name not in OURS:
                continue
            run = figures.runs[scenario, name][-1]
            count = run.counters
            beyond = count["ingestd_written_bytes_total"] / run.payload_bytes - 1
            rows.append(
                [
                    f"{scenario}, {name}",
                    f"{count['ingestd_batches_total'] / run.gib:,.0f}",
                    f"{beyond:.2%}",
                    f"{count['ingestd_padding_bytes_total'] / run.payload_bytes:.3%}",
                    f"{count['ingestd_bounced_bytes_total'] / run.payload_bytes:.3%}",
                    f"{count['ingestd_kernel_copied_bytes_total'] / run.payload_bytes:.0%}",
                ]
            )
    heads = ("", "writes per GiB", "written beyond payload", "padding", "copied by us", "by kernel")
    return table(heads, rows)


def _bars(report: Report, figures: Figures) -> str:
    del figures
    rows = [
        [
            bar.text,
            f"{bar.sense} {bar.limit:g} {bar.unit}",
            f"{bar.measured:.2f} {bar.unit}",
            "holds" if bar.holds else "**missed**",
        ]
        for bar in report.bars
    ]
    return table(("bar", "wanted", "measured", "verdict"), rows)


def _machine(report: Report, figures: Figures) -> str:
    f = report.facts
    baselines = [run.baseline_cpu_per_s for runs in figures.runs.values() for run in runs]
    rows = [
        ["CPU", f"{f.cpu}, {f.cpus_count} CPUs"],
        ["memory", f"{f.memory_gib} GiB, {f.hugepages_reserved_count} hugepages set aside"],
        ["kernel", f"Linux {f.kernel}"],
        ["data on", f"{f.filesystem}; {f.device}"],
        ["TCP", f"loopback, congestion control {f.congestion_control}"],
        ["Python", f.python],
        ["ingestd", report.version],
        ["measured", f"{report.date}, {report.rounds_count} rounds"],
        ["payload of a run", f"{report.total_bytes / 2**30:.2f} GiB"],
        ["CPU in use beside, before each run", f"{100 * max(baselines):.0f}% of one CPU at most"],
    ]
    return table(("", "on what"), rows).replace("--:", "---")


def _picture(report: Report, figures: Figures) -> str:
    """The link is made with the picture: before the first run there is neither."""
    del report, figures
    return f"![Throughput and CPU seconds per GiB]({PICTURE_NAME})"


def _planner(report: Report, figures: Figures) -> str:
    del figures
    rows = [
        [
            f"`{p['scenario']}`",
            f"{p['ns_median']:.1f} ({p['ns_min']:.1f} to {p['ns_max']:.1f})",
            "not counted" if p["instructions"] is None else f"{p['instructions']:.0f}",
            f"{p['iovecs']:.2f}",
            f"{p['bounced_bytes']:.1f}",
            f"{p['padding_bytes']:.1f}",
        ]
        for p in report.planner
    ]
    heads = ("per fragment", "ns, median (least to most)", "instructions", "iovecs")
    return table((*heads, "bytes copied", "bytes of padding"), rows)


def _model_receive(report: Report, figures: Figures) -> str:
    del figures
    ns = model.planner_ns(report.planner, model.PLANNER_SCENARIOS[0])
    rows = [
        [
            p.setting,
            f"{p.gbit_per_s:.1f}",
            f"{p.ns_per_fragment:.0f}",
            f"{ns:.0f}",
            f"{model.with_planner(p, ns):.1f}",
        ]
        for p in model.PUBLISHED
    ]
    heads = ("fragments", "published, Gbit/s", "ns per fragment", "planner, ns", "model, Gbit/s")
    return table(heads, rows)


RATES_GBIT_PER_S: Final = (10, 25, 100)
LATENCIES_MS: Final = (1, 5, 20)
POSTED_BYTES: Final = 1024 * 4096


def _model_area(report: Report, figures: Figures) -> str:
    del report, figures
    rows = [
        [f"{rate} Gbit/s"]
        + [f"{model.area_bytes(rate, ms / 1e3, POSTED_BYTES) / MIB:.0f} MiB" for ms in LATENCIES_MS]
        for rate in RATES_GBIT_PER_S
    ]
    return table(("rate", *(f"writes of {ms} ms" for ms in LATENCIES_MS)), rows)


PARTS: Final = {
    "machine": _machine,
    "bars": _bars,
    "one-flow": _one_flow,
    "picture": _picture,
    "many-flows": _many_flows,
    "idle": _idle,
    "bytes": _where_bytes_went,
    "planner": _planner,
    "model-receive": _model_receive,
    "model-area": _model_area,
}
OF_PLANNER: Final = ("planner", "model-receive")


def parts(report: Report) -> dict[str, str]:
    """Every part as Markdown, by name; the planner's only if it was measured."""
    figures = Figures(report.runs)
    wanted = [name for name in PARTS if name not in OF_PLANNER or report.planner]
    return {name: PARTS[name](report, figures) for name in wanted}


def insert(text: str, made: dict[str, str]) -> str:
    """`text` with every part put between its markers.

    Raises BenchError if a part's markers are missing.
    """
    for name, part in made.items():
        begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        pattern = re.escape(begin) + r".*?" + re.escape(end)
        whole = f"{begin}\n{part}\n{end}".replace("\\", "\\\\")
        text, count = re.subn(pattern, whole, text, flags=re.DOTALL)
        if count != 1:
            raise BenchError(f"the document has {count} places for {name}: it needs one {begin}")
    return text
