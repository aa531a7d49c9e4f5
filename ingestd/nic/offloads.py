# SPDX-License-Identifier: Apache-2.0
"""Settings of a card that its driver does not combine with zero-copy receive.

By patches to mlx5_core (en_main.c and en_ethtool.c) and the texts in its module of Linux
7.3.4, not tried on any card. Of other drivers no such settings are known, so nothing is said. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from ingestd.finding import Finding
from ingestd.nic.ring import MLX5
from ingestd.nic.state import NicState
from ingestd.nic.timestamps import FILTER_NONE


class _Flag(NamedTuple):
    """A private flag (`ethtool --show-priv-flags`) and the state that header split wants."""

    name: str
    subject: str
    is_wanted: bool
    reason: str  # said of the other state


_NO_GRO: Final = "the driver then has no hardware GRO, without which it splits no headers"
_FLAGS: Final = (
    _Flag("rx_cqe_compress", "CQE compression", is_wanted=False, reason=_NO_GRO),
    _Flag("rx_striding_rq", "striding RQ", is_wanted=True, reason=_NO_GRO),
    _Flag(
        "tx_port_ts",
        "port time stamps",
        is_wanted=False,
        reason="the driver then refuses to set up single queues",
    ),
)


def offload_findings(state: NicState) -> Iterator[Finding]:
    """Return what is to be said of a card's private flags, time stamps and HTB offload."""
    if state.driver != MLX5:
        return
    for flag in _FLAGS:
        yield _flag(state, flag)
    yield _rx_filter(state)
    yield _htb(state)


def _flag(state: NicState, flag: _Flag) -> Finding:
    is_on = None if state.private_flags is None else state.private_flags.get(flag.name)
    if is_on is None:
        return Finding(
            flag.subject,
            "unknown",
            f"the driver does not report {flag.name}",
            f"ethtool --show-priv-flags {state.interface}",
        )
    shown = "on" if is_on else "off"
    if is_on == flag.is_wanted:
        return Finding(flag.subject, "ok", f"{flag.name} is {shown}")
    wanted = "on" if flag.is_wanted else "off"
    return Finding(
        flag.subject,
        "fail",
        f"{flag.name} is {shown}, and {flag.reason}",
        f"ethtool --set-priv-flags {state.interface} {flag.name} {wanted}",
    )


def _rx_filter(state: NicState) -> Finding:
    subject = "PTP rx filter"
    if state.rx_filter is None:
        return Finding(
            subject,
            "unknown",
            "the driver does not report whether received packets get hardware time stamps",
            f"hwstamp_ctl -i {state.interface}",
        )
    if state.rx_filter == FILTER_NONE:
        return Finding(subject, "ok", "received packets get no hardware time stamps")
    return Finding(
        subject,
        "warn",
        f"received packets get hardware time stamps (filter {state.rx_filter}); where the driver"
        " takes PTP on a channel of its own, it refuses to set up single queues",
        f"if the registration fails, stop ptp4l, and hwstamp_ctl -i {state.interface} -r 0",
    )


def _htb(state: NicState) -> Finding:
    subject = "HTB offload"
    if state.has_htb_offload is None:
        return Finding(
            subject,
            "unknown",
            "the kernel does not report the queueing disciplines",
            f"tc qdisc show dev {state.interface}",
        )
    if not state.has_htb_offload:
        return Finding(subject, "ok", "no HTB is offloaded to the card")
    return Finding(
        subject,
        "fail",
        "HTB is offloaded to the card, and the driver then refuses to set up single queues",
        f"tc qdisc del dev {state.interface} root, and shape without `offload`",
    )
