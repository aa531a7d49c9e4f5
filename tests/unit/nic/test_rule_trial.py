# SPDX-License-Identifier: Apache-2.0
"""A rule on trial: what each answer of the card means, and that nothing stays behind."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ingestd.finding import Finding
from ingestd.nic.ethtool import Ethtool, EthtoolResult
from ingestd.nic.plan import Steered
from ingestd.nic.rule_trial import rule_trial_findings
from support.fake_nic import FakeNic

WANTED = [Steered((("tcp4", 7070),), (3,))]
TRIAL = ["-N", "zc0", "flow-type", "tcp4", "dst-port", "9", "action", "3"]


@pytest.fixture
def nic() -> FakeNic:
    nic = FakeNic()
    nic.now.features["ntuple-filters"] = True
    return nic


def _trial(nic: FakeNic, ethtool: Ethtool | None = None) -> Finding:
    (found,) = rule_trial_findings(nic.read(), WANTED, ethtool or nic.ethtool)
    return found


def test_a_card_that_takes_one(nic: FakeNic) -> None:
    before = nic.snapshot()
    assert _trial(nic).verdict == "ok"
    assert nic.done == [TRIAL, ["-N", "zc0", "delete", "0"]]
    assert nic.snapshot() == before


def test_a_card_that_takes_none(nic: FakeNic) -> None:
    nic.refuse["-N zc0 flow-type"] = "Invalid argument"
    found = _trial(nic)
    assert found.verdict == "fail"
    assert "Invalid argument" in found.text
    assert " ".join(TRIAL) in found.remedy
    (mild,) = rule_trial_findings(nic.read(), WANTED, nic.ethtool, "warn")
    assert mild.verdict == "warn"


def test_nobody_who_may(nic: FakeNic) -> None:
    nic.refuse["-N zc0 flow-type"] = "Operation not permitted"
    assert _trial(nic).verdict == "unknown"


def test_a_rule_that_is_there_is_not_tried_again(nic: FakeNic) -> None:
    nic.run(["-N", "zc0", "flow-type", "tcp4", "dst-port", "7070", "action", "3"])
    nic.done.clear()
    assert _trial(nic).verdict == "ok"
    assert nic.done == []


def test_rules_that_are_off_stay_off(nic: FakeNic) -> None:
    nic.now.features["ntuple-filters"] = False
    found = _trial(nic)
    assert found.verdict == "unknown"
    assert "ethtool -K zc0 ntuple on" in found.remedy
    assert nic.done == []


def test_where_nothing_is_steered_nothing_is_tried(nic: FakeNic) -> None:
    assert rule_trial_findings(nic.read(), [Steered((), (3,))], nic.ethtool) == []
    assert nic.done == []


def test_a_rule_that_stays_is_named(nic: FakeNic) -> None:
    nic.refuse["-N zc0 delete"] = "Device or resource busy"
    found = _trial(nic)
    assert found.verdict == "warn"
    assert found.remedy == "ethtool -N zc0 delete 0"


def test_a_rule_of_unknown_number_is_taken_away_as_well(nic: FakeNic) -> None:
    def silent(arguments: Sequence[str]) -> EthtoolResult:
        result = nic.run(arguments)
        return result._replace(out="") if "Added" in result.out else result

    assert _trial(nic, Ethtool("zc0", silent)).verdict == "fail"
    assert nic.now.rules == {}


def test_a_card_that_does_not_list_its_rules(nic: FakeNic) -> None:
    state = nic.read()
    nic.has_rules = False
    (found,) = rule_trial_findings(state, WANTED, nic.ethtool)
    assert found.verdict == "unknown"
    assert nic.now.rules == {}
