# SPDX-License-Identifier: Apache-2.0
"""The payload that MTU and headers leave: arithmetic, nothing is asked of the system.

TCP over Ethernet with timestamps, without IP options, extension headers or
SACK blocks: data segments of a bulk sender look like that. Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ingestd.nic.state import Family

# RFC 791, RFC 8200, RFC 9293; RFC 7323 appendix A: timestamps take 12 with padding.
IP_HEADER_BYTES: Final[dict[Family, int]] = {"tcp4": 20, "tcp6": 40}
TCP_HEADER_BYTES: Final = 20
TIMESTAMPS_BYTES: Final = 12
PAYLOAD_BYTES_BEST: Final = 4096  # a page, and a block of every store
PAGE_BYTES: Final = 4096
FAMILY_NAMES: Final[dict[Family, str]] = {"tcp4": "IPv4", "tcp6": "IPv6"}


def header_bytes(family: Family) -> int:
    """Return the bytes of a packet, within the MTU, that are not payload."""
    return IP_HEADER_BYTES[family] + TCP_HEADER_BYTES + TIMESTAMPS_BYTES


def payload_bytes(mtu: int, family: Family) -> int:
    """Return the payload of a full segment."""
    return max(0, mtu - header_bytes(family))


def mtu_for_payload(payload: int, family: Family) -> int:
    """Return the MTU whose full segments carry so much."""
    return payload + header_bytes(family)


def mss_for_payload(payload: int) -> int:
    """Return the MSS to advertise (`ip route ... advmss`) for segments of that payload.

    RFC 6691: an MSS counts options in, so the timestamps come on top.
    """
    return payload + TIMESTAMPS_BYTES


class Prediction(NamedTuple):
    """Of one segment's payload, what is written from where the NIC put it."""

    payload_bytes: int
    direct_bytes: int

    @property
    def ratio(self) -> float:
        """The part that nobody copies."""
        return self.direct_bytes / self.payload_bytes if self.payload_bytes else 0.0


def predict(
    mtu: int,
    family: Family,
    *,
    mem_align: int,
    virt_mask: int,
    rx_buf_bytes: int,
    copy_below: int,
) -> Prediction:
    """Return what the planner makes of full segments, each beginning on a chunk.

    A model: a fragment's whole multiples of max(mem_align, virt_mask + 1) are
    written directly unless they are fewer than copy_below bytes, what is behind
    is copied (core/storage/plan.h); a segment larger than a chunk is cut at its end. A
    NIC that packs segments into a chunk makes fragments that begin elsewhere:
    where their alignment is below mem_align, less is direct than predicted
    here; contiguous ones are merged, and more is.
    """
    edge = max(mem_align, virt_mask + 1)
    payload = payload_bytes(mtu, family)
    whole, rest = divmod(payload, rx_buf_bytes)
    pieces = [rx_buf_bytes // edge * edge] * whole + [rest // edge * edge]
    return Prediction(payload, sum(piece for piece in pieces if piece >= copy_below))
