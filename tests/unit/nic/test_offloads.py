# SPDX-License-Identifier: Apache-2.0
"""Settings that mlx5 does not combine with zero-copy receive, and how they are read."""

from __future__ import annotations

import fcntl
import socket
from collections.abc import Callable
from typing import Any

import pytest
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from ingestd.finding import Finding
from ingestd.nic.ethtool import Ethtool, EthtoolResult
from ingestd.nic.netlink import is_htb_offload, read_htb_offload
from ingestd.nic.offloads import offload_findings
from ingestd.nic.timestamps import SIOCGHWTSTAMP, read_rx_filter
from support.fake_nic import FakeNic

SUBJECTS = {
    "CQE compression",
    "striding RQ",
    "port time stamps",
    "PTP rx filter",
    "HTB offload",
}


@pytest.fixture
def nic() -> FakeNic:
    return FakeNic(driver="mlx5_core")


def _found(nic: FakeNic) -> dict[str, Finding]:
    return {finding.subject: finding for finding in offload_findings(nic.read())}


def test_a_card_without_any_of_them(nic: FakeNic) -> None:
    found = _found(nic)
    assert found.keys() == SUBJECTS
    assert {finding.verdict for finding in found.values()} == {"ok"}


def test_other_drivers_are_not_judged_by_what_mlx5_does() -> None:
    assert _found(FakeNic(driver="bnxt_en")) == {}


@pytest.mark.parametrize(
    ("spoil", "subject", "verdict", "remedy"),
    [
        (
            lambda n: n.private_flags.update(rx_cqe_compress=True),
            "CQE compression",
            "fail",
            "ethtool --set-priv-flags zc0 rx_cqe_compress off",
        ),
        (
            lambda n: n.private_flags.update(rx_striding_rq=False),
            "striding RQ",
            "fail",
            "ethtool --set-priv-flags zc0 rx_striding_rq on",
        ),
        (
            lambda n: n.private_flags.update(tx_port_ts=True),
            "port time stamps",
            "fail",
            "ethtool --set-priv-flags zc0 tx_port_ts off",
        ),
        (
            lambda n: n.private_flags.pop("rx_cqe_compress"),
            "CQE compression",
            "unknown",
            "ethtool --show-priv-flags zc0",
        ),
        (lambda n: setattr(n, "rx_filter", 1), "PTP rx filter", "warn", "hwstamp_ctl -i zc0 -r 0"),
        (lambda n: setattr(n, "rx_filter", None), "PTP rx filter", "unknown", "hwstamp_ctl"),
        (lambda n: setattr(n, "has_htb_offload", True), "HTB offload", "fail", "tc qdisc del"),
        (lambda n: setattr(n, "has_htb_offload", None), "HTB offload", "unknown", "tc qdisc"),
    ],
)
def test_each(
    nic: FakeNic, spoil: Callable[[FakeNic], Any], subject: str, verdict: str, remedy: str
) -> None:
    spoil(nic)
    found = _found(nic)
    assert found[subject].verdict == verdict
    assert remedy in found[subject].remedy
    assert {f.verdict for name, f in found.items() if name != subject} == {"ok"}


def test_a_driver_that_reports_nothing_is_unknown_not_fine(nic: FakeNic) -> None:
    nic.private_flags = nic.rx_filter = nic.has_htb_offload = None
    found = _found(nic)
    assert found.keys() == SUBJECTS
    assert {finding.verdict for finding in found.values()} == {"unknown"}
    assert all(finding.remedy for finding in found.values())


# --- Reading ------------------------------------------------------------------------


def test_private_flags() -> None:
    text = "Private flags for eth0:\nrx_cqe_moder       : on\nrx_cqe_compress    : off\n"
    ethtool = Ethtool("eth0", lambda _: EthtoolResult(0, text, ""))
    assert ethtool.private_flags() == {"rx_cqe_moder": True, "rx_cqe_compress": False}
    nothing = Ethtool("eth0", lambda _: EthtoolResult(1, "", "Operation not supported\n"))
    assert nothing.private_flags() is None


def test_loopback_has_no_time_stamps_and_no_htb() -> None:
    assert read_rx_filter("lo") is None
    assert read_htb_offload("lo", socket.if_nametoindex("lo")) is False


def test_the_rx_filter_is_read_from_where_the_kernel_writes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(_: Any, request: int, argument: bytes) -> int:
        assert request == SIOCGHWTSTAMP
        assert len(argument) == 40
        assert argument.startswith(b"eth0\0")
        import ctypes

        address = int.from_bytes(argument[16:24], "little")
        (ctypes.c_int * 3).from_address(address)[2] = 12
        return 0

    monkeypatch.setattr(fcntl, "ioctl", answer)
    assert read_rx_filter("eth0") == 12


@pytest.mark.parametrize(
    ("kind", "options", "is_offload"),
    [
        ("htb", [["TCA_HTB_OFFLOAD", ""]], True),
        ("htb", [["TCA_HTB_DIRECT_QLEN", 1000]], False),
        ("mq", None, False),
    ],
)
def test_htb_offload(kind: str, options: list[Any] | None, is_offload: bool) -> None:
    message = tcmsg()
    message["attrs"] = [("TCA_KIND", kind)]
    if options is not None:
        message["attrs"].append(("TCA_OPTIONS", {"attrs": [tuple(one) for one in options]}))
    assert is_htb_offload(message) is is_offload
