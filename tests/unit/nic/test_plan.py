# SPDX-License-Identifier: Apache-2.0
"""Plans: which changes lead from what an interface is to what zero-copy receive wants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.errors import EngineError
from ingestd.nic.changes import SpreadChange, is_default_spread, spread_arguments
from ingestd.nic.findings import nic_findings
from ingestd.nic.plan import Steered, last_queues, plan_changes, state_after
from ingestd.nic.state import SPLIT_ON, Family
from ingestd.nic.work import make
from support.fake_nic import TABLE_SLOTS, FakeNic

ONE: list[Steered] = [Steered((("tcp4", 7070), ("tcp6", 7070)), (3,))]
TWO: list[Steered] = [Steered((("tcp4", 7070),), (2, 3))]


def _commands(nic: FakeNic, wanted: list[Steered], rx_ring: int = 0) -> list[str]:
    return [change.command("zc0") for change in plan_changes(nic.read(), wanted, rx_ring)]


def test_one_queue() -> None:
    assert _commands(FakeNic(), ONE) == [
        "ethtool -G zc0 tcp-data-split on hds-thresh 0",
        "ethtool -K zc0 ntuple-filters on",
        "ethtool -X zc0 equal 3",
        "ethtool -N zc0 flow-type tcp4 dst-port 7070 action 3",
        "ethtool -N zc0 flow-type tcp6 dst-port 7070 action 3",
    ]


def test_several_queues_take_a_context() -> None:
    assert _commands(FakeNic(), TWO)[2:] == [
        "ethtool -X zc0 equal 2",
        "ethtool -X zc0 context new start 2 equal 2",
        "ethtool -N zc0 flow-type tcp4 dst-port 7070 context N",
    ]


def test_queues_in_the_middle_are_left_out_by_weights() -> None:
    wanted = [Steered((), (1,)), Steered((), (2,))]
    assert "ethtool -X zc0 weight 1 0 0 1" in _commands(FakeNic(), wanted)


def test_without_ports_nothing_is_steered() -> None:
    commands = _commands(FakeNic(), [Steered((), (3,))])
    assert commands == ["ethtool -G zc0 tcp-data-split on hds-thresh 0", "ethtool -X zc0 equal 3"]


def test_ring_size_only_if_asked_for() -> None:
    assert _commands(FakeNic(), [], 512)[0].endswith("tcp-data-split on hds-thresh 0 rx 512")
    assert "rx " not in _commands(FakeNic(), [], 64)[0]


def test_mellanox_wants_hardware_gro_first() -> None:
    nic = FakeNic(driver="mlx5_core")
    nic.now.rings["tcp_data_split"] = None  # it reports nothing as long as nothing was requested
    assert _commands(nic, [])[:2] == [
        "ethtool -K zc0 rx-gro-hw on",
        "ethtool -G zc0 tcp-data-split on hds-thresh 0",
    ]
    nic.now.rings["tcp_data_split"] = SPLIT_ON
    assert "ethtool -K zc0 rx-gro-hw on" not in _commands(nic, [])


def test_a_rule_that_leads_there_is_enough() -> None:
    nic = FakeNic()
    nic.now.features["ntuple-filters"] = True
    nic.run(["-N", "zc0", "flow-type", "tcp4", "dst-port", "7070", "action", "3"])
    assert _commands(nic, ONE)[-1] == "ethtool -N zc0 flow-type tcp6 dst-port 7070 action 3"
    assert sum("flow-type" in command for command in _commands(nic, ONE)) == 1


def test_a_rule_of_somebody_else_is_not_replaced() -> None:
    nic = FakeNic()
    nic.now.features["ntuple-filters"] = True
    nic.run(["-N", "zc0", "flow-type", "tcp4", "dst-port", "7070", "action", "1"])
    with pytest.raises(EngineError, match=r"rule 0 steers tcp4 port 7070 to queue 1 already.*del"):
        _commands(nic, ONE)


def _no_rings(nic: FakeNic) -> None:
    nic.has_rings = False


def _no_rules(nic: FakeNic) -> None:
    nic.has_rules = False


def _fixed(nic: FakeNic) -> None:
    nic.fixed.add("ntuple-filters")


def _no_table(nic: FakeNic) -> None:
    nic.now.spread = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (_no_rings, "has no ring parameters"),
        (_no_rules, "has no steering rules"),
        (_fixed, "ntuple-filters is off and the driver does not let it"),
        (_no_table, "RSS cannot be kept off single queues"),
    ],
)
def test_what_an_interface_cannot_do(trouble: Callable[[FakeNic], None], message: str) -> None:
    nic = FakeNic()
    trouble(nic)
    with pytest.raises(EngineError, match=message):
        _commands(nic, ONE)


def test_queues_that_are_not_there() -> None:
    with pytest.raises(EngineError, match="has no rx queue 4, but 0 to 3"):
        _commands(FakeNic(), [Steered((), (4,))])
    with pytest.raises(EngineError, match="none would be left"):
        _commands(FakeNic(), [Steered((), (0, 1, 2, 3))])


def test_last_queues() -> None:
    state = FakeNic().read()
    assert last_queues(state, 1) == (3,)
    assert last_queues(state, 3) == (1, 2, 3)
    for count in (0, 4, 5):
        with pytest.raises(EngineError, match="other traffic needs one"):
            last_queues(state, count)


families: st.SearchStrategy[Family] = st.sampled_from(["tcp4", "tcp6"])


@given(data=st.data(), queue_count=st.integers(2, 12))
def test_a_plan_once_done_leaves_nothing_to_do(data: st.DataObject, queue_count: int) -> None:
    """And other traffic never meets the queues that were taken."""
    queues = list(range(queue_count))
    taken = data.draw(st.lists(st.sampled_from(queues), min_size=1, unique=True))
    if len(taken) == queue_count:
        taken.pop()
    flows = data.draw(st.sets(st.tuples(families, st.integers(1, 65535)), max_size=4))
    wanted = [Steered(tuple(sorted(flows)), tuple(taken))]
    nic = FakeNic(queue_count)
    changes = plan_changes(nic.read(), wanted)
    foreseen = state_after(nic.read(), changes)
    for change in changes:
        make(nic, change)
    assert plan_changes(nic.read(), wanted) == []
    assert plan_changes(foreseen, wanted) == []
    assert nic_findings(foreseen, wanted)[2:] == nic_findings(nic.read(), wanted)[2:]
    assert foreseen.rules == nic.read().rules
    assert not set(nic.now.spread) & set(taken)
    targets = {target for _, _, target in nic.rules()}
    assert len(targets) == bool(flows)
    if len(taken) > 1 and flows:
        assert set(nic.now.contexts[1]) == set(taken)


@given(table=st.lists(st.integers(0, 5), min_size=TABLE_SLOTS, max_size=TABLE_SLOTS))
def test_the_undo_of_a_spread_keeps_each_queue_s_share(table: list[int]) -> None:
    nic = FakeNic(6)
    change = SpreadChange(before=tuple(table), after=(0,), queue_count=6)
    nic.run(["-X", "zc0", *change.arguments()])
    assert set(nic.now.spread) == {0}
    nic.run(["-X", "zc0", *change.undo_arguments()])
    assert sorted(nic.now.spread) == sorted(table)


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        ((0, 1, 2), "equal 3"),
        ((2, 3), "start 2 equal 2"),
        ((5,), "start 5 equal 1"),
        ((0, 2), "weight 1 0 1 0 0 0"),
    ],
)
def test_spread_arguments(queues: tuple[int, ...], words: str) -> None:
    assert " ".join(spread_arguments(queues, 6)) == words


def test_default_spread() -> None:
    assert is_default_spread((0, 1, 2, 0, 1), 3)
    assert not is_default_spread((0, 1, 0, 1), 3)
