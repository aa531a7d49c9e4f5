# SPDX-License-Identifier: Apache-2.0
"""How much of an area the rx ring holds, by the drivers' sources, and what is advised."""

from __future__ import annotations

import pytest

from ingestd.nic.ring import ring_demand, ring_finding, rx_buf_findings
from ingestd.nic.state import NicState, Queue, Rings

MIB = 1 << 20


def _state(driver: str, rx: int | None, mtu: int) -> NicState:
    return NicState("eth0", 2, mtu, True, driver=driver, rings=Rings(rx=rx))


@pytest.mark.parametrize(
    ("driver", "rx", "mtu", "rx_buf", "ring_bytes"),
    [
        ("mlx5_core", 8192, 9000, 4096, 128 * MIB),
        ("mlx5_core", 1024, 9000, 4096, 16 * MIB),
        ("mlx5_core", 8192, 4148, 4096, 64 * MIB),
        ("mlx5_core", 8192, 1500, 4096, 16 * MIB),
        ("mlx5_core", 1024, 9000, 65536, 64 * MIB),
        ("bnxt_en", 1024, 1500, 4096, 16 * MIB),
        ("bnxt_en", 1024, 32808, 4096, 32 * MIB),
        ("bnge", 1024, 1500, 4096, 16 * MIB),
        ("gve", 1024, 9000, 4096, 4 * MIB),
        ("new", 1024, 9000, 4096, 4 * MIB),
    ],
)
def test_what_a_ring_holds(driver: str, rx: int, mtu: int, rx_buf: int, ring_bytes: int) -> None:
    demand = ring_demand(_state(driver, rx, mtu), rx_buf, 256 * MIB, 4 * MIB)
    assert demand == (ring_bytes, 128 * MIB, 8 * MIB)
    assert demand.total_bytes == ring_bytes + 136 * MIB


def test_an_area_that_holds_all() -> None:
    found = ring_finding(_state("mlx5_core", 4096, 9000), 4096, 256 * MIB, 4 * MIB)
    assert (found.verdict, found.remedy) == ("ok", "")
    assert "4096 descriptors hold" in found.text


def test_both_ways_out_lead_out() -> None:
    state = _state("mlx5_core", 8192, 9000)
    found = ring_finding(state, 4096, 256 * MIB, 4 * MIB)
    assert found.verdict == "warn"
    assert found.remedy == (
        "make the ring smaller: ethtool -G eth0 rx 4096, or make the area 272MiB"
    )
    smaller = ring_finding(_state("mlx5_core", 4096, 9000), 4096, 256 * MIB, 4 * MIB)
    larger = ring_finding(state, 4096, 272 * MIB, 4 * MIB)
    assert smaller.verdict == larger.verdict == "ok"


def test_a_card_that_keeps_it_all_is_refused() -> None:
    found = ring_finding(_state("mlx5_core", 8192, 9000), 4096, 128 * MIB, 4 * MIB)
    assert found.verdict == "fail"
    assert "ethtool -G eth0 rx 2048" in found.remedy
    other = ring_finding(_state("new", 65536, 1500), 4096, 128 * MIB, 4 * MIB)
    assert other.verdict == "warn", "of others it is not known that they keep it"


def test_no_way_but_less() -> None:
    found = ring_finding(_state("mlx5_core", 32768, 9000), 65536, MIB, MIB)
    assert found.verdict == "fail"
    assert found.remedy.startswith("make the ring, the writes")


@pytest.mark.parametrize("rings", [None, Rings()])
def test_a_driver_that_does_not_report_its_ring(rings: Rings | None) -> None:
    state = NicState("eth0", 2, 1500, True, driver="mlx5_core", rings=rings)
    assert ring_demand(state, 4096, 256 * MIB, MIB) is None
    found = ring_finding(state, 4096, 256 * MIB, MIB)
    assert found.verdict == "unknown"
    assert "ethtool -g eth0" in found.remedy


@pytest.mark.parametrize(
    ("queue", "asked", "verdict"),
    [
        (Queue(0, held_by="io_uring", rx_buf_len=65536), 65536, "ok"),
        (Queue(0, held_by="io_uring", rx_buf_len=4096), 4096, "ok"),
        (Queue(0, held_by="io_uring", rx_buf_len=4096), 65536, "warn"),
        (Queue(0, held_by="io_uring"), 4096, "unknown"),  # a kernel that has no such answer
        (Queue(0), 65536, "unknown"),  # nobody has asked the card yet
        (Queue(0), 4096, None),  # every card has pages
    ],
)
def test_the_size_that_the_card_has_given(queue: Queue, asked: int, verdict: str | None) -> None:
    state = NicState("eth0", 2, 1500, True, queues=(queue,))
    found = list(rx_buf_findings(state, [0, 7], asked))
    assert [finding.verdict for finding in found] == ([verdict] if verdict else [])
    assert all(finding.remedy for finding in found if finding.verdict != "ok")
