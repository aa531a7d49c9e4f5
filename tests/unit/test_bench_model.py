# SPDX-License-Identifier: Apache-2.0
"""The model beside the bench: what published throughput and the planner's cost come to."""

from __future__ import annotations

import math

import pytest

from bench import model, report
from bench.figures import Figures, _ratio, bars
from bench.run import DOCUMENT

PLANNER = [
    {"scenario": name, "ns_median": 30.0, "ns_min": 29.0, "ns_max": 31.0}
    | {"instructions": None, "iovecs": 0.0, "bounced_bytes": 0.0, "padding_bytes": 0.0}
    for name in model.PLANNER_SCENARIOS
]


def test_a_published_rate_is_a_time_per_fragment() -> None:
    one_core = model.Published("", 80.0, 4096)
    assert one_core.ns_per_fragment == pytest.approx(409.6)
    assert model.with_planner(one_core, 409.6) == pytest.approx(40.0)
    assert model.with_planner(one_core, 0) == 80.0


def test_larger_fragments_feel_the_planner_less() -> None:
    small, *_, large = model.PUBLISHED
    lost = [1 - model.with_planner(p, 30) / p.gbit_per_s for p in (small, large)]
    assert lost[0] > 2 * lost[1] > 0


def test_an_area_holds_two_latencies_and_what_is_posted() -> None:
    assert model.area_bytes(8, 0.001, 5) == 2 * 1e9 * 0.001 + 5


def test_a_scenario_that_was_not_measured_is_an_error() -> None:
    with pytest.raises(KeyError, match="no-such"):
        model.planner_ns(PLANNER, "no-such")


def test_bars_of_the_planner_need_its_figures() -> None:
    slow = [{**figure, "ns_median": 41.0} for figure in PLANNER]
    text = "planner, refill account included"
    for planner, holds in ((PLANNER, True), (slow, False)):
        verdicts = [b.holds for b in bars(_no_runs(), planner) if b.text.startswith(text)]
        assert verdicts == [holds] * len(model.PLANNER_SCENARIOS)
    assert not [b for b in bars(_no_runs()) if b.text.startswith(text)]


def test_every_part_has_its_place_in_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in report.PARTS:
        assert text.count(f"<!-- bench:{name} -->") == 1, name


def test_a_run_may_be_too_short_for_the_clock() -> None:
    assert (_ratio(1, 2), _ratio(0, 0), _ratio(1, 0)) == (0.5, 1, math.inf)


def _no_runs() -> Figures:
    return Figures([])
