# SPDX-License-Identifier: Apache-2.0
"""Ids that the daemon makes for flows: core/format/flow_id.h has the layout of those with a mark.

Flows of protocol `raw` get theirs from a worker and bear the mark of their store. So
a sender of protocol `ingest` that names such an id is known by the id alone, whenever
the flow came and whichever worker or generation has it. Pure; any thread may call.
"""

from __future__ import annotations

import os
import time

from crc32c import crc32c

_MARK_OFFSET = 12


def is_raw_id(flow: bytes, store_uuid: bytes) -> bool:
    """Return whether a worker of this store made the id: no sender may choose it."""
    return (
        flow[6] >> 4 == 7
        and flow[8] >> 6 == 2
        and crc32c(flow[:_MARK_OFFSET], crc32c(store_uuid))
        == int.from_bytes(flow[_MARK_OFFSET:], "big")
    )


def new_flow_id(store_uuid: bytes) -> bytes:
    """Return a UUID of version 7 (RFC 9562) without the mark: Unix time in ms, then random bits."""
    while True:
        value = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
        value[6] = value[6] & 0x0F | 0x70
        value[8] = value[8] & 0x3F | 0x80
        if not is_raw_id(bytes(value), store_uuid):
            return bytes(value)
