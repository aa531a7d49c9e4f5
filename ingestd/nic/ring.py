# SPDX-License-Identifier: Apache-2.0
"""The rx ring's part of an area: how much memory its buffers hold, and what must be left.

Invariants: arithmetic by the drivers' sources (of about Linux 7.0), not measured on any
card; of drivers that are not known here it is the least they can hold. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from ingestd.finding import Finding
from ingestd.nic.shape import PAGE_BYTES
from ingestd.nic.state import NicState
from ingestd.sizes import exact_size, full_size

MLX5: Final = "mlx5_core"
# mlx5 (en/params.c) gives each packet a power of two that holds the frame (MTU, Ethernet and
# VLAN header, check sequence), a headroom (NET_SKB_PAD) and struct skb_shared_info.
MLX5_FRAME_BYTES: Final = 14 + 4 + 4
MLX5_ROOM_BYTES: Final = 64 + 320
# bnxt and bnge have this many buffers for payload to each descriptor, or what an MTU without
# the least TCP/IP header takes in pages, if that is more (bnxt_set_ring_params()).
BNXT_DRIVERS: Final = frozenset({"bnxt_en", "bnge"})
BNXT_BUFFERS_MIN: Final = 4
BNXT_HEADER_BYTES: Final = 40
# The core lets receive buffers of all connections take half of an area (zcrx.c).
WINDOW_PART: Final = 0.5
WRITES_SLACK: Final = 2  # one fills while one is written
AREA_BYTES_MAX: Final = 1 << 30  # of one registered buffer, io_uring_register(2)
RING_MIN: Final = 64  # no smaller ring is advised
MIB: Final = 1 << 20


class Demand(NamedTuple):
    """The bytes that an area has to hold at once."""

    ring_bytes: int  # lent to the card, for as long as the queue is held
    window_bytes: int  # receive buffers of connections
    slack_bytes: int  # writes that fill or are under way

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.ring_bytes + self.window_bytes + self.slack_bytes


def packet_bytes(state: NicState, rx_buf_bytes: int) -> int:
    """Return how many bytes of an area each descriptor of the rx ring holds."""
    if state.driver == MLX5:
        frame_bytes = state.mtu + MLX5_FRAME_BYTES + MLX5_ROOM_BYTES
        packed_bytes = 1 << (frame_bytes - 1).bit_length()
        # Whether packets share a buffer larger than a page was not found out: the most, then.
        return packed_bytes if rx_buf_bytes <= PAGE_BYTES else max(packed_bytes, rx_buf_bytes)
    if state.driver in BNXT_DRIVERS:
        jumbo = -(-(state.mtu - BNXT_HEADER_BYTES) // PAGE_BYTES)
        return max(BNXT_BUFFERS_MIN, jumbo) * rx_buf_bytes
    return rx_buf_bytes


def ring_demand(
    state: NicState, rx_buf_bytes: int, area_bytes: int, write_bytes: int
) -> Demand | None:
    """Return what an area has to hold; None: the driver does not report its ring."""
    if state.rings is None or state.rings.rx is None:
        return None
    return Demand(
        state.rings.rx * packet_bytes(state, rx_buf_bytes),
        int(area_bytes * WINDOW_PART),
        WRITES_SLACK * write_bytes,
    )


def ring_finding(
    state: NicState, rx_buf_bytes: int, area_bytes: int, write_bytes: int, subject: str = "rx ring"
) -> Finding:
    """Return whether an area holds the rx ring and what else has to be in it.

    mlx5 keeps what its ring holds, so that an area that is not larger than the ring has
    nothing to receive with, and the registration fails or starves: that is refused.
    """
    demand = ring_demand(state, rx_buf_bytes, area_bytes, write_bytes)
    if demand is None or state.rings is None or state.rings.rx is None:
        return Finding(
            subject,
            "unknown",
            "the driver does not report its ring, whose buffers are taken from the area",
            f"ethtool -g {state.interface}, and compare RX x the size of a packet with the area",
        )
    text = (
        f"{state.rings.rx} descriptors hold {full_size(demand.ring_bytes)} of an area of"
        f" {full_size(area_bytes)}"
    )
    if demand.total_bytes <= area_bytes:
        return Finding(subject, "ok", text)
    text += (
        f", which is to have {full_size(demand.window_bytes)} for receive buffers and"
        f" {full_size(demand.slack_bytes)} for writes as well"
    )
    is_hopeless = state.driver == MLX5 and demand.ring_bytes + demand.slack_bytes >= area_bytes
    return Finding(
        subject,
        "fail" if is_hopeless else "warn",
        text,
        _remedy(state, rx_buf_bytes, demand, area_bytes),
    )


def rx_buf_findings(state: NicState, queues: Sequence[int], rx_buf_bytes: int) -> Iterator[Finding]:
    """Return which size of receive buffers the kernel reports of queues that are held.

    netdev-genl's queue-get has it in Linux 7.3, and only of a queue that io_uring holds.
    """
    for index in queues:
        if index >= state.queue_count:
            continue
        queue, subject = state.queues[index], f"buffers of queue {index}"
        if queue.held_by == "io_uring" and queue.rx_buf_len is not None:
            text = f"the card has {queue.rx_buf_len} bytes each, of {rx_buf_bytes} asked for"
            remedy = f"see dmesg for why; engine.rx_buf = {queue.rx_buf_len} states what it has"
            if queue.rx_buf_len >= rx_buf_bytes:
                yield Finding(subject, "ok", text)
            else:
                yield Finding(subject, "warn", text, remedy)
        elif queue.held_by == "io_uring" or rx_buf_bytes > PAGE_BYTES:
            yield Finding(
                subject,
                "unknown",
                f"whether the card takes {rx_buf_bytes} bytes each is not reported",
                "examine again while the daemon runs, on Linux 7.3 or newer",
            )


def _remedy(state: NicState, rx_buf_bytes: int, demand: Demand, area_bytes: int) -> str:
    """Return a smaller ring that fits, a larger area, or both."""
    advice = []
    room_bytes = area_bytes - demand.window_bytes - demand.slack_bytes
    fitting = room_bytes // packet_bytes(state, rx_buf_bytes)
    if fitting >= RING_MIN:
        ring = 1 << (fitting.bit_length() - 1)
        advice.append(f"make the ring smaller: ethtool -G {state.interface} rx {ring}")
    wanted_bytes = int((demand.ring_bytes + demand.slack_bytes) / (1 - WINDOW_PART))
    wanted_bytes += -wanted_bytes % MIB
    if wanted_bytes <= AREA_BYTES_MAX:
        advice.append(f"make the area {exact_size(wanted_bytes)}")
    if not advice:
        advice.append("make the ring, the writes (write_bytes_max) or the MTU smaller")
    return ", or ".join(advice)
