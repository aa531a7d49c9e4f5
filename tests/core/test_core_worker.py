# SPDX-License-Identifier: Apache-2.0
"""What the compiled worker owes to those who talk to it when it does not run (any more)."""

from __future__ import annotations

import socket

import pytest

from ingestd.core import _core
from ingestd.core.border import WorkerSettings, WorkerShape
from support.patience import WAIT_S

MIB = 1024 * 1024


def make_worker() -> _core.Worker:
    """One that was never set up, as one whose loop has ended: it takes no commands any more."""
    shape = WorkerShape(
        segment_bytes=MIB,
        block_bytes=4096,
        mem_align=512,
        write_align=512,
        virt_mask=0,
        iovecs_max=1024,
        area_bytes=8 * MIB,
        write_bytes_max=512 * 1024,
        writes_in_flight_max=4,
        flows_max=16,
    )
    return _core.Worker(
        WorkerSettings(
            shape=shape,
            store_fd=-1,
            store_uuid=bytes(16),
            segments_offset=MIB,
            worker_index=0,
            flush_interval_ns=1_000_000,
            commit_interval_ns=1_000_000,
            checksum=True,
        )
    )


def test_a_connection_handed_to_a_worker_that_has_ended_is_closed_with_it() -> None:
    """Its sender is not left waiting for ever, and no descriptor leaks."""
    worker = make_worker()
    senders = []
    for _ in range(3):
        sender, receiver = socket.socketpair()
        sender.setblocking(False)
        senders.append(sender)
        worker.adopt(receiver.detach(), 0)
    with pytest.raises(BlockingIOError):
        senders[0].recv(1)
    del worker
    for sender in senders:
        sender.settimeout(WAIT_S)
        with sender:
            assert sender.recv(1) == b""
