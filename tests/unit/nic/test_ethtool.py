# SPDX-License-Identifier: Apache-2.0
"""What ethtool prints, read: rules in all their wordings, features, refusals."""

from __future__ import annotations

import pytest

from ingestd.errors import EngineError
from ingestd.nic import ethtool
from ingestd.nic.ethtool import Ethtool, EthtoolResult, parse_rules, run_ethtool
from ingestd.nic.state import Feature, Rule
from support.fake_nic import FakeNic, rule_text

# Recorded: ethtool 6.14.2 on Linux 7.3.4.
RECORDED = """4 RX rings available
Total 3 rules

Filter: 0
	Rule Type: TCP over IPv4
	Src IP addr: 0.0.0.0 mask: 255.255.255.255
	Dest IP addr: 0.0.0.0 mask: 255.255.255.255
	TOS: 0x0 mask: 0xff
	Src port: 0 mask: 0xffff
	Dest port: 7001 mask: 0x0
	Action: Direct to queue 2

Filter: 1
	Rule Type: TCP over IPv6
	Src IP addr: :: mask: ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
	Dest IP addr: :: mask: ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
	Traffic Class: 0x0 mask: 0xff
	Src port: 0 mask: 0xffff
	Dest port: 7001 mask: 0x0
	Action: Direct to queue 2

Filter: 2
	Rule Type: TCP over IPv4
	Src IP addr: 0.0.0.0 mask: 255.255.255.255
	Dest IP addr: 0.0.0.0 mask: 255.255.255.255
	TOS: 0x0 mask: 0xff
	Src port: 0 mask: 0xffff
	Dest port: 7006 mask: 0x0
	Action: Direct to RSS Context 1

"""


def test_recorded_rules() -> None:
    assert parse_rules(RECORDED) == (
        Rule(0, "tcp4", 7001, queue=2, context=None, is_plain=True),
        Rule(1, "tcp6", 7001, queue=2, context=None, is_plain=True),
        Rule(2, "tcp4", 7006, queue=None, context=1, is_plain=True),
    )


def test_no_rules() -> None:
    assert parse_rules("4 RX rings available\nTotal 0 rules\n\n") == ()


@pytest.mark.parametrize(
    ("was", "said"),
    [
        ("Src IP addr: 0.0.0.0 mask: 255.255.255.255", "Src IP addr: 10.0.0.1 mask: 0.0.0.0"),
        ("Dest IP addr: 0.0.0.0 mask: 255.255.255.255", "Dest IP addr: 10.0.0.1 mask: 0.0.0.255"),
        ("TOS: 0x0 mask: 0xff", "TOS: 0x10 mask: 0x0"),
        ("Src port: 0 mask: 0xffff", "Src port: 9 mask: 0x0"),
        ("Dest port: 7 mask: 0x0", "Dest port: 7 mask: 0xff"),
        ("\tAction", "\tVLAN EtherType: 0x0 mask: 0xffff\n\tAction"),
    ],
)
def test_rules_that_ask_for_more_are_not_plain(was: str, said: str) -> None:
    text = rule_text(3, "tcp4", 7, queue=1)
    (plain,) = parse_rules(text)
    assert plain.is_plain
    assert was in text
    (other,) = parse_rules(text.replace(was, said))
    assert other.id == 3
    assert not other.is_plain


@pytest.mark.parametrize(
    ("action", "queue", "context"),
    [
        ("Action: Direct to queue 5", 5, None),
        ("Action: Direct to RSS Context 3", None, 3),
        ("Action: Direct to RSS context id 3 (queue base offset: 0)", None, 3),
        ("RSS Context ID: 3\n\tAction: Direct to queue 0", None, 3),
        ("Action: Drop", None, None),
        ("Action: Direct to VF 1 queue 2", None, None),
    ],
)
def test_wordings_of_actions(action: str, queue: int | None, context: int | None) -> None:
    text = rule_text(1, "tcp4", 7, queue=9).replace("Action: Direct to queue 9", action)
    (rule,) = parse_rules(text)
    assert (rule.queue, rule.context) == (queue, context)


def test_rules_of_other_protocols_have_no_family() -> None:
    text = rule_text(1, "tcp4", 7, queue=1).replace("TCP over IPv4", "UDP over IPv4")
    assert parse_rules(text)[0].family is None


def test_features_and_driver() -> None:
    nic = FakeNic()
    nic.now.features["ntuple-filters"] = True
    nic.fixed.add("rx-gro-hw")
    assert nic.ethtool.features() == {
        "ntuple-filters": Feature(is_on=True, is_fixed=False),
        "rx-gro-hw": Feature(is_on=False, is_fixed=True),
    }
    assert nic.ethtool.driver() == "zcsim"


def test_what_a_driver_does_not_have() -> None:
    nothing = Ethtool(
        "eth0", lambda _: EthtoolResult(1, "", "netlink error: Operation not supported\n")
    )
    assert nothing.driver() is None
    assert nothing.features() == {}
    assert nothing.rules() is None


def test_a_refusal_names_command_and_reason() -> None:
    reason = "rmgr: Cannot insert RX class rule: Invalid argument\nCannot insert\n"
    refusing = Ethtool("eth0", lambda _: EthtoolResult(1, "", reason))
    with pytest.raises(EngineError) as caught:
        refusing.add_rule(["flow-type", "tcp4", "dst-port", "1", "action", "9"])
    assert str(caught.value) == (
        "interface eth0: `ethtool -N eth0 flow-type tcp4 dst-port 1 action 9` failed:"
        " rmgr: Cannot insert RX class rule: Invalid argument"
    )


def test_what_was_made_must_be_told() -> None:
    silent = Ethtool("eth0", lambda _: EthtoolResult(0, "done\n", ""))
    with pytest.raises(EngineError, match=r"did not say what it made, but 'done'"):
        silent.add_context(["equal", "2"])


def test_the_program_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ethtool.shutil, "which", lambda *_, **__: None)
    with pytest.raises(EngineError, match="apt-get install ethtool"):
        run_ethtool(["-i", "lo"])
    monkeypatch.setattr(ethtool.shutil, "which", lambda *_, **__: "/bin/echo")
    assert run_ethtool(["-i", "lo"]) == EthtoolResult(0, "-i lo\n", "")
    monkeypatch.setattr(ethtool.shutil, "which", lambda *_, **__: "/bin/sleep")
    monkeypatch.setattr(ethtool, "TIMEOUT_S", 0.05)
    with pytest.raises(EngineError, match=r"`ethtool 60` took longer than 0\.05 s"):
        run_ethtool(["60"])
