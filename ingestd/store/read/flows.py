# SPDX-License-Identifier: Apache-2.0
"""Flows as a store shows them; assembly.py puts them together.

Invariants: a flow's bytes are [first_offset, bytes), which its spans cover without a hole, durable
up to durable_bytes; only where a segment is damaged may bytes be missing in between or at the end,
and the flow says which (state `damaged`). first_offset is 0 but for flows whose first bytes went
with reclaimed segments. Values; any thread may read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, TypeAlias

from ingestd.store.format.layout import (
    FLOW_STATE_INTERRUPTED,
    FLOW_STATE_OPEN,
    FLOW_STATE_SEALED,
    FLOW_STATES,
)
from ingestd.store.format.segment import Span

STATE_OPEN: Final = FLOW_STATES[FLOW_STATE_OPEN]
STATE_SEALED: Final = FLOW_STATES[FLOW_STATE_SEALED]
STATE_INTERRUPTED: Final = FLOW_STATES[FLOW_STATE_INTERRUPTED]
STATE_DAMAGED: Final = "damaged"  # bytes are missing, and a damaged segment may have had them
STATES: Final = (STATE_OPEN, STATE_SEALED, STATE_INTERRUPTED, STATE_DAMAGED)

FlowId: TypeAlias = bytes


@dataclass(frozen=True, slots=True)
class Flow:
    """One flow as the store shows it.

    `flow` is the UUID in text, `peer` "1.2.3.4:5" or "[::1]:5", `state` one of
    open, sealed, interrupted, damaged; times are RFC 3339 in UTC; `checksum` is
    "crc32c:" and eight hexadecimal digits of all of its bytes. `reason` says
    why it was interrupted; None also where no CLOSE record came to be, as after
    a crash. What a reader needs is in `spans`. `bytes` and `durable_bytes` count
    from the flow's beginning, though only those from `first_offset` on are there.
    `started_ns` and `ended_ns` are Unix times; the former is 0 where no OPEN record is left, the
    latter as long as it is not over, and where no CLOSE record says. `missing` are the
    ranges [from, to) of bytes that a damaged flow lacks, in order.
    """

    flow: str
    name: str | None
    peer: str | None
    listener: str | None
    state: str
    bytes: int
    durable_bytes: int
    started: str | None
    ended: str | None
    checksum: str | None
    reason: str | None = None
    protocol: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    flow_id: FlowId = b""
    spans: tuple[Span, ...] = ()
    first_offset: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    missing: tuple[tuple[int, int], ...] = ()

    @property
    def resume_bytes(self) -> int:
        """The byte at which a sender resumes: behind all that follows without a hole."""
        return self.missing[0][0] if self.missing else self.bytes

    def as_dict(self) -> dict[str, object]:
        """Return what a listing shows of a flow, in its order."""
        return {
            "flow": self.flow,
            "name": self.name,
            "peer": self.peer,
            "listener": self.listener,
            "state": self.state,
            "bytes": self.bytes,
            "durable_bytes": self.durable_bytes,
            "started": self.started,
            "ended": self.ended,
            "checksum": self.checksum,
            "first_offset": self.first_offset,
            "head_overwritten": self.first_offset > 0,
            "labels": self.labels,
            "protocol": self.protocol,
            "reason": self.reason,
            "missing": [list(pair) for pair in self.missing],
        }


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something odd about a flow's spans; `is_damage`: no crash leaves it so."""

    flow: str
    text: str
    is_damage: bool


def checksum_text(crc: int) -> str:
    """Return a CRC32C as receipts and listings show it."""
    return f"crc32c:{crc:08x}"


def utc_text(time_ns: int) -> str | None:
    """Return a Unix time in RFC 3339, UTC, to the microsecond; None for 0."""
    if not time_ns:
        return None
    seconds, rest_ns = divmod(time_ns, 10**9)
    return f"{_second_text(seconds)}.{rest_ns // 1000:06d}Z"


# Flows of a listing began one after the other: most share their second with the one before.
@lru_cache(maxsize=1024)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()
