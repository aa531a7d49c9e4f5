# SPDX-License-Identifier: Apache-2.0
"""The planner's benchmark runs and its accounts are sane; nothing here looks at time."""

from __future__ import annotations

import shutil

import pytest

from bench import plan_bench


@pytest.mark.timeout(300)
def test_every_scenario_accounts_for_its_bytes() -> None:
    figures = plan_bench.measure(
        [], rounds_count=1, fragments_count=5000, callgrind_fragments_count=0
    )
    assert {figure.scenario for figure in figures} == set(
        plan_bench.scenario_names(plan_bench.build())
    )
    for figure in figures:
        fragment_bytes = int(figure.scenario.split("-")[0])
        assert figure.direct_bytes + figure.bounced_bytes == pytest.approx(fragment_bytes)
        assert figure.batches > 1
        assert figure.ns_median > 0
    by_name = {figure.scenario: figure for figure in figures}
    assert by_name["4096-pages-M4-L4096"].bounced_bytes == 0
    assert by_name["1448-pages-M4-L4096"].bounced_bytes == 0
    assert by_name["1448-pages-M512-L4096"].bounced_bytes == 1448 % 512
    assert by_name["1448-pages-M512-copied"].direct_bytes == 0


@pytest.mark.timeout(300)
def test_instructions_are_counted() -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    counted = plan_bench.instructions_per_fragment(plan_bench.build(), "4096-pages-M4-L4096", 5000)
    assert counted is not None
    assert counted > 10


def test_figures_make_a_table() -> None:
    run = {
        "scenario": "made-up",
        "fragments": 10,
        "ns_per_fragment": 3.0,
        "batches": 2,
        "iovecs": 20,
        "direct_bytes": 100,
        "bounced_bytes": 50,
        "padding_bytes": 0,
    }
    runs = [run, {**run, "ns_per_fragment": 9.0}, {**run, "ns_per_fragment": 4.0}]
    figure = plan_bench.figure_of(runs, None)
    assert (figure.ns_median, figure.ns_min, figure.ns_max) == (4.0, 3.0, 9.0)
    assert (figure.iovecs, figure.direct_bytes, figure.bounced_bytes) == (2.0, 10.0, 5.0)
    assert "made-up" in plan_bench.table([figure])
