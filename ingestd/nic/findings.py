# SPDX-License-Identifier: Apache-2.0
"""Findings about an interface: obstacles to zero-copy receive, and what is only worth knowing.

Pure. Invariants: what would make the registration fail, or would break other
traffic, fails; what costs speed warns; what cannot be known does not fail,
since the registration itself will show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from ingestd.finding import Finding
from ingestd.nic.changes import spread_arguments
from ingestd.nic.offloads import offload_findings
from ingestd.nic.plan import HARDWARE_GRO, SPLIT_WANTS_GRO, Steered
from ingestd.nic.shape import (
    FAMILY_NAMES,
    PAYLOAD_BYTES_BEST,
    mss_for_payload,
    mtu_for_payload,
    payload_bytes,
)
from ingestd.nic.state import SPLIT_ON, Family, NicState

# Drivers of Linux 7.3 with the queue operations that zero-copy receive needs.
DRIVERS_KNOWN: Final = frozenset({"bnxt_en", "mlx5_core", "gve", "fbnic", "bnge"})
# Drivers that are common and have not got them, so that nobody need try.
DRIVERS_WITHOUT: Final = frozenset({"virtio_net", "veth", "ena", "netdevsim", "e1000e", "igb"})


def nic_findings(state: NicState, wanted: Sequence[Steered]) -> list[Finding]:
    """Return what is to be said of an interface whose queues are to take flows."""
    queues = [queue for steered in wanted for queue in steered.queues]
    return [
        _driver(state),
        _link(state),
        *_queues(state, queues),
        *_split(state),
        *_xdp(state),
        *_spread(state, queues),
        *_steering(state, wanted),
        *offload_findings(state),
        *_mtu(state, _families(wanted)),
    ]


def _driver(state: NicState) -> Finding:
    name = state.driver or "unknown"
    if name in DRIVERS_KNOWN:
        return Finding("driver", "ok", f"{name} is known to support zero-copy receive")
    if name in DRIVERS_WITHOUT:
        return Finding(
            "driver",
            "fail",
            f"{name} has no queue operations for zero-copy receive",
            f"use a network card of one of {', '.join(sorted(DRIVERS_KNOWN))}",
        )
    return Finding(
        "driver",
        "warn",
        f"{name} is not among the drivers known to support zero-copy receive",
        'start ingestd with engine.kind = "zcrx": the kernel then reports whether it does',
    )


def _link(state: NicState) -> Finding:
    if state.is_up:
        return Finding("link", "ok", f"{state.interface} is up")
    return Finding(
        "link", "warn", f"{state.interface} is down", f"ip link set {state.interface} up"
    )


def _queues(state: NicState, queues: Sequence[int]) -> Iterator[Finding]:
    count = state.queue_count
    for index in queues:
        subject = f"queue {index}"
        if index >= count:
            yield Finding(
                subject,
                "fail",
                f"{state.interface} has no rx queue {index}, but {count}",
                f"name queues from 0 to {count - 1}, or get more: ethtool -L {state.interface}"
                f" combined {index + 1}",
            )
            continue
        queue = state.queues[index]
        if queue.held_by == "io_uring":
            size = f", buffers of {queue.rx_buf_len} bytes" if queue.rx_buf_len else ""
            yield Finding(
                subject,
                "warn",
                f"it is in use for zero-copy receive now{size}",
                "if that is not this ingestd, stop the process that has it, or name another queue",
            )
        elif queue.held_by is not None:
            yield Finding(
                subject,
                "fail",
                f"it is held by {queue.held_by}",
                "stop the process that has it, or name another queue",
            )
        else:
            yield Finding(subject, "ok", "nothing else holds it")
    if queues and len(set(queues)) >= count:
        yield Finding(
            "queues",
            "fail",
            f"{state.interface} has {count} rx queues, and none is left for other traffic",
            f"take fewer, or get more: ethtool -L {state.interface} combined {len(queues) + 1}",
        )


def _split(state: NicState) -> Iterator[Finding]:
    rings, name = state.rings, state.interface
    if rings is not None and rings.tcp_data_split == SPLIT_ON:
        yield Finding("header split", "ok", "tcp-data-split is on")
    else:
        gro = state.features.get(HARDWARE_GRO)
        wants_gro = state.driver in SPLIT_WANTS_GRO and gro is not None and not gro.is_on
        first = f"ethtool -K {name} {HARDWARE_GRO} on && " if wants_gro else ""
        yield Finding(
            "header split",
            "fail",
            "tcp-data-split is not on, so payload does not get into buffers of its own",
            f"ingestd nic apply {name}, or {first}ethtool -G {name} tcp-data-split on, if"
            " ethtool is new enough to know the word",
        )
    if rings is not None and rings.hds_thresh:
        yield Finding(
            "hds-thresh",
            "fail",
            f"hds-thresh is {rings.hds_thresh}, so shorter payload is not split from its header",
            f"ingestd nic apply {name}, or ethtool -G {name} hds-thresh 0, if ethtool is new"
            " enough to know the word",
        )
    elif rings is not None and rings.hds_thresh is not None:
        yield Finding("hds-thresh", "ok", "it is 0: all payload is split from its header")


def _xdp(state: NicState) -> Iterator[Finding]:
    if state.has_xdp:
        yield Finding(
            "XDP",
            "fail",
            f"an XDP program is attached to {state.interface}, which excludes zero-copy receive",
            f"ip link set dev {state.interface} xdp off",
        )
    else:
        yield Finding("XDP", "ok", "no XDP program is attached")


def _spread(state: NicState, queues: Sequence[int]) -> Iterator[Finding]:
    others = [index for index in range(state.queue_count) if index not in queues]
    if state.spread is None:
        yield Finding(
            "RSS",
            "warn",
            "the driver does not show an RSS table, so other traffic may come by these queues,"
            " and its sockets then fail with EFAULT",
            f"ethtool -x {state.interface}",
        )
        return
    hit = sorted(set(state.spread).intersection(queues))
    if hit:
        arguments = " ".join(spread_arguments(others, state.queue_count)) if others else "..."
        yield Finding(
            "RSS",
            "fail",
            f"other traffic is spread over rx queue {', '.join(map(str, hit))} too, and its sockets"
            " would fail with EFAULT",
            f"{apply_command(state, queues)}ethtool -X {state.interface} {arguments}",
        )
    else:
        shown = ", ".join(map(str, sorted(set(state.spread))))
        yield Finding("RSS", "ok", f"other traffic goes to rx queue {shown} only")


def apply_command(state: NicState, queues: Sequence[int]) -> str:
    """Return `ingestd nic apply ... or `, if that takes just these queues."""
    count = len(queues)
    if tuple(sorted(queues)) != tuple(range(state.queue_count - count, state.queue_count)):
        return ""
    return f"ingestd nic apply {state.interface} --queues {count}, or "


def _steering(state: NicState, wanted: Sequence[Steered]) -> Iterator[Finding]:
    for steered in wanted:
        target = ", ".join(map(str, steered.queues))
        for family, port in steered.flows:
            rules = state.plain_rules(family, port)
            subject = f"steering {family} port {port}"
            if any(state.leads_to(rule, steered.queues) for rule in rules):
                yield Finding(subject, "ok", f"a rule leads to rx queue {target}")
            else:
                yield Finding(
                    subject,
                    "warn",
                    f"no rule leads to rx queue {target}: such flows arrive by the kernel's copy",
                    steering_command(state.interface, family, port, steered.queues),
                )


def steering_command(interface: str, family: Family, port: int, queues: Sequence[int]) -> str:
    """Return the command that brings a port's flows to queues."""
    if len(queues) == 1:
        return f"ethtool -N {interface} flow-type {family} dst-port {port} action {queues[0]}"
    return (
        f"ingestd nic apply {interface} --queues {len(queues)} --port {port}"
        " (an RSS context over the queues, and a rule to it)"
    )


def _families(wanted: Sequence[Steered]) -> list[Family]:
    found = {family for steered in wanted for family, _ in steered.flows}
    return sorted(found) or ["tcp4", "tcp6"]


def _mtu(state: NicState, families: Sequence[Family]) -> Iterator[Finding]:
    for family in families:
        payload = payload_bytes(state.mtu, family)
        best = mtu_for_payload(PAYLOAD_BYTES_BEST, family)
        subject = f"MTU over {FAMILY_NAMES[family]}"
        text = f"{state.mtu} carries {payload} bytes of payload (TCP timestamps on)"
        if payload and payload % PAYLOAD_BYTES_BEST == 0:
            yield Finding(subject, "ok", f"{text}, whole blocks")
        else:
            remedy = (
                f"ip link set {state.interface} mtu {best}, at the senders too, if the switches"
                " allow it"
            )
            if state.mtu > best:
                mss = mss_for_payload(PAYLOAD_BYTES_BEST)
                remedy += f"; or keep it, and add `advmss {mss}` to the route to the senders"
            yield Finding(
                subject,
                "warn",
                f"{text}; every device can take {PAYLOAD_BYTES_BEST} as they lie",
                remedy,
            )
