# SPDX-License-Identifier: Apache-2.0
"""Flows that come in at a steady rate, until this process is killed.

    python bench/ack_load.py PORT FLOWS MIB_PER_S

All connections are of one thread; what a receiver does not take in time is not
made up for.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from typing import Final

INTERVAL_S: Final = 0.02
MIB: Final = 1 << 20


def main(port: int, flows_count: int, mib_per_s: int) -> None:
    """Send to all flows in turn, a share in each interval; ends when a connection does."""
    data = os.urandom(int(mib_per_s * MIB * INTERVAL_S / flows_count))
    flows = [socket.create_connection(("127.0.0.1", port)) for _ in range(flows_count)]
    for flow in flows:
        flow.setblocking(False)
    due_s = time.monotonic()
    while True:
        for number, flow in enumerate(flows):
            with suppress(BlockingIOError):
                flow.send(data)
            due_s = max(due_s + INTERVAL_S / flows_count, time.monotonic() - INTERVAL_S)
            if number % 8 == 7:  # spread over the interval: real senders do not come in step
                time.sleep(max(0.0, due_s - time.monotonic()))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
