# SPDX-License-Identifier: Apache-2.0
"""Flows of a hundred bytes, by the thousand, and of none: what a store keeps of them.

Invariant: a segment that holds short flows is as full as any other, and a crash between two parts
of its footer loses nothing that was acknowledged.
"""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.store.format.segment import SegmentImage
from ingestd.store.read.image import read_image
from support.daemon import Daemon, format_store
from support.observe import assert_clean, image_bytes, scrape, wait_until
from support.payload import Payload
from support.senders import Sent, SocketSender, assert_sealed
from support.stores import write_config

FLOWS_COUNT = 2400
AT_ONCE = 300
BYTES = 100


def send_all(daemon: Daemon, first: int) -> list[Sent]:
    """Send flows, so many at a time, and return them with their receipts.

    Meanwhile the daemon stands still, so that it meets them all at the same moment.
    """
    sent: list[Sent] = []
    for begin in range(first, first + FLOWS_COUNT, AT_ONCE):
        payloads = [Payload(number, BYTES) for number in range(begin, begin + AT_ONCE)]
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            senders = [SocketSender(daemon.address) for _ in payloads]
            for payload, sender in zip(payloads, senders, strict=True):
                sender.write(payload.data())
                sender.sock.shutdown(socket.SHUT_WR)
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        sent += [Sent(p, s.answer()) for p, s in zip(payloads, senders, strict=True)]
    for one in sent:
        assert_sealed(one)
    return sent


def assert_there(store: Path, sent: list[Sent]) -> None:
    """Each flow that has a receipt is in the store, byte by byte."""
    stored = image_bytes(store, [one.flow for one in sent])
    assert all(stored[one.flow] == one.payload.data() for one in sent)


def segments_of(store: Path) -> list[SegmentImage]:
    """The segments in use, oldest first."""
    with read_image(str(store)) as image:
        return sorted((s for s in image.segments if s.sequence), key=lambda s: s.sequence)


@pytest.mark.timeout(300)
def test_a_segment_holds_thousands_of_short_flows(
    tmp_path: Path, start_daemon: Callable[..., Daemon], seed: int
) -> None:
    store = format_store(tmp_path / "store.img", "--segment-size", "1MiB", size="32MiB")
    daemon = start_daemon(store)
    sent = send_all(daemon, seed)
    assert daemon.stop() == 0
    assert_there(store, sent)
    assert_clean(store)
    used = segments_of(store)
    assert all(segment.footer is not None for segment in used)
    # Of a segment that is closed as it is full, a batch and a footer at most are left over. How
    # many flows it holds, and whether its footer has parts, depends on how fast the device is.
    assert all(segment.batches_end > 640 * 1024 for segment in used[:-1])


@pytest.mark.timeout(300)
def test_a_crash_behind_a_part_loses_nothing(
    tmp_path: Path, start_daemon: Callable[..., Daemon], seed: int
) -> None:
    store = format_store(tmp_path / "store.img", "--segment-size", "4MiB", size="64MiB")
    daemon = start_daemon(store)
    sent = send_all(daemon, seed)
    daemon.kill()
    assert_there(store, sent)
    daemon.start()
    sent += send_all(daemon, seed + FLOWS_COUNT)
    assert daemon.stop() == 0
    assert_there(store, sent)
    assert_clean(store)
    assert all(segment.footer is not None for segment in segments_of(store))


def test_connections_without_a_byte_leave_nothing(
    tmp_path: Path, start_daemon: Callable[..., Daemon]
) -> None:
    """Half-closed, reset, or silent: unless the listener keeps them."""
    store = format_store(tmp_path / "store.img")
    config = write_config(
        tmp_path / "c.toml",
        listener={
            "default": {"keep_empty": False, "idle_timeout_s": 1.0},
            "keeps": {"address": "127.0.0.1:0"},
        },
        log={"level": "debug"},
    )
    daemon = start_daemon(store, config=config)
    half_closed, reset, silent = (SocketSender(daemon.address) for _ in range(3))
    answer = half_closed.finish()
    assert (answer["flow"], answer["state"], answer["error"]) == (None, "refused", "empty")
    assert answer["durable"] is False
    reset.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    reset.close()
    assert silent.answer()["error"] == "empty"
    one_byte = SocketSender(daemon.address)
    one_byte.write(b"1")
    assert one_byte.finish()["bytes"] == 1
    kept = SocketSender(daemon.listener("keeps")).finish()
    assert (kept["state"], kept["bytes"], kept["durable"]) == ("sealed", 0, True)
    wait_until(
        lambda: scrape(daemon).total("ingestd_flows_total", outcome="empty") == 3,
        "all three are counted",
    )
    assert scrape(daemon).total("ingestd_flows_total", outcome="refused") == 0
    assert daemon.stop() == 0
    assert len(daemon.events("flow_empty")) == 3
    with read_image(str(store)) as image:
        assert sorted(flow.bytes for flow in image.flows) == [0, 1]
    assert_clean(store)
