# SPDX-License-Identifier: Apache-2.0
"""Protocol ingest on stores with a fault or another setting: what was reported stays true."""

from __future__ import annotations

import resource
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from support.daemon import Daemon, format_store
from support.ingest import Ingest, checksum, data_of, stored, trailer_block
from support.observe import assert_clean
from support.stores import MIB, write_config

StartDaemon = Callable[..., Daemon]
FLOW = str(uuid.uuid4())
RECEIPT_S_MAX = 30.0  # on a busy machine, and less than the longest interval by far


def test_checksums_switched_on_and_off_between_connections(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """A checksum is reported where it is that of all bytes, and nowhere else."""
    store, data = format_store(tmp_path / "store.img", size="256MiB"), data_of(seed, MIB)
    for order in (["none", "crc32c"], ["crc32c", "none"], ["crc32c", "crc32c"], ["none", "none"]):
        flow, half = str(uuid.uuid4()), len(data) // 2
        for number, setting in enumerate(order):
            config = write_config(
                tmp_path / "ingestd.toml",
                store={"default": {"checksum": setting, "area": 32 * MIB}},
                listener={"default": {"protocol": "ingest"}},
            )
            daemon = start_daemon(store, config=config)
            with Ingest(daemon.address) as sender:
                offset = sender.begin(flow=flow, resume="auto", trailer=True, bytes=len(data))
                assert offset == number * half
                if number == 0:
                    sender.send(data[:half])
                    sender.durable(half)
                    sender.reset()
                else:
                    sender.send(data[half:] + trailer_block(data))
                    sealed = sender.sealed()
            assert daemon.stop() == 0
        is_known = set(order) == {"crc32c"}
        assert sealed["checksum"] == (checksum(data) if is_known else None)
        assert sealed["sender_checksum"] == checksum(data)
        shown, found = stored(daemon, flow)
        assert (shown["state"], shown["checksum"], found) == ("sealed", sealed["checksum"], data)
    assert_clean(store)


def test_a_full_store_is_told_and_nothing_is_lost(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    store = format_store(tmp_path / "store.img", "--segment-size", "1MiB", size="8MiB")
    config = write_config(
        tmp_path / "ingestd.toml",
        store={"default": {"area": 8 * MIB, "write_bytes_max": "64KiB"}},
        listener={"default": {"protocol": "ingest", "ack_interval_s": 0.05}},
    )
    daemon, data = start_daemon(store, config=config), data_of(seed, 16 * MIB)
    with Ingest(daemon.address) as waiting, Ingest(daemon.address) as sender:
        sender.begin(flow=FLOW)
        with suppress(OSError):  # it closes once it has answered
            sender.send(data)
        error = sender.error()
        assert error["code"] == "store_full"
        told = [line["offset"] for line in sender.lines if line["type"] == "durable"]
        assert told == sorted(set(told))
        assert error["durable"] >= max(told, default=0)
        assert waiting.expect("hello")
        assert waiting.error()["code"] == "store_full"
    with Ingest(daemon.address) as another:
        assert another.refused()["code"] == "store_full"
    with Ingest(daemon.address) as again:
        assert again.refused(flow=FLOW, resume=True)["code"] == "store_full"
    assert stored(daemon, FLOW)[1] == data[: error["durable"]]
    assert daemon.stop() == 0
    assert_clean(store)


@pytest.mark.parametrize("stated", [False, True])
def test_a_receipt_waits_for_no_age(
    start_daemon: StartDaemon, tmp_path: Path, seed: int, stated: bool
) -> None:
    """The end of a flow asks for a write and a flush, whatever the intervals are."""
    store, data = format_store(tmp_path / "store.img", size="256MiB"), data_of(seed, MIB)
    interval_s = 2 * RECEIPT_S_MAX
    config = write_config(
        tmp_path / "ingestd.toml",
        store={"default": {"flush_interval_s": interval_s, "commit_interval_s": interval_s}},
        listener={"default": {"protocol": "ingest", "ack_interval_s": interval_s}},
    )
    daemon = start_daemon(store, config=config)
    with Ingest(daemon.address) as waiting, Ingest(daemon.address) as sender:
        waiting.begin()
        waiting.send(data[:1000])
        sender.begin(**({"bytes": len(data)} if stated else {}))
        begun_s = time.monotonic()
        sender.send(data)
        assert sender.sealed()["bytes"] == len(data)
        assert time.monotonic() - begun_s < RECEIPT_S_MAX
    assert stored(daemon, sender.flow)[1] == data


@pytest.mark.parametrize("trailer", [False, True])
def test_a_small_area_is_enough_for_many(
    start_daemon: StartDaemon, tmp_path: Path, seed: int, trailer: bool
) -> None:
    """Flows are starved and blocked all the time; what is held back is not mixed up."""
    store = format_store(tmp_path / "store.img", size="256MiB")
    config = write_config(
        tmp_path / "ingestd.toml",
        store={"default": {"area": MIB, "write_bytes_max": "64KiB", "writes_in_flight_max": 2}},
        listener={"default": {"protocol": "ingest", "ack_interval_s": 0.01}},
    )
    daemon = start_daemon(store, config=config)
    senders = [Ingest(daemon.address) for _ in range(40)]
    payloads = [data_of(seed + number, 400_000 + 37 * number) for number in range(len(senders))]
    for sender in senders:
        sender.begin(trailer=trailer)
    step = 10_007
    for at in range(0, max(map(len, payloads)), step):
        for sender, data in zip(senders, payloads, strict=True):
            sender.send(data[at : at + step])
    for sender, data in zip(senders, payloads, strict=True):
        with sender:
            sender.send(trailer_block(data) if trailer else b"")
            assert sender.sealed()["checksum"] == checksum(data)
    for sender, data in zip(senders, payloads, strict=True):
        assert stored(daemon, sender.flow)[1] == data
    assert daemon.stop() == 0
    assert_clean(store)


def test_flows_in_every_phase_end_with_the_daemon(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    store, data = format_store(tmp_path / "store.img"), data_of(seed, 100_000)
    config = write_config(
        tmp_path / "ingestd.toml",
        listener={"default": {"protocol": "ingest"}},
        # A fifth of it is left for the flows' CLOSE records, on a busy machine too.
        daemon={"drain_timeout_s": 10},
    )
    daemon = start_daemon(store, config=config)
    silent, greeted, begun, at_end = (Ingest(daemon.address) for _ in range(4))
    with silent, greeted, begun, at_end:
        greeted.send(b"ingest/1\n")
        begun.begin()
        begun.send(data)
        at_end.begin(bytes=len(data), trailer=True)
        at_end.send(data + trailer_block(data)[:100])
        for sender in (begun, at_end):
            sender.durable(len(data))
        assert daemon.stop() == 0
        for sender in (silent, greeted):
            sender.expect("hello")
        for sender in (silent, greeted, begun, at_end):
            assert sender.error()["code"] == "shutdown"
    for sender in (begun, at_end):
        shown, found = stored(daemon, sender.flow)
        assert (shown["state"], found) == ("interrupted", data)
    assert_clean(store)


def test_a_failed_device_is_told_and_resumed_from_after_a_restart(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    store = format_store(tmp_path / "store.img", "--segment-size", "1MiB")
    data = data_of(seed, 16 * MIB)
    config = write_config(
        tmp_path / "ingestd.toml",
        store={"default": {"area": 8 * MIB, "write_bytes_max": "64KiB"}},
        listener={"default": {"protocol": "ingest", "ack_interval_s": 0.02}},
    )
    daemon = start_daemon(store, config=config)
    # From here on every write behind these bytes of the store's file fails.
    limits = (9 * MIB + 4096, 9 * MIB + 4096)
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, limits)
    with Ingest(daemon.address) as sender:
        sender.begin(flow=FLOW)
        with suppress(OSError):  # it closes once it has answered
            sender.send(data)
        error = sender.error()
        told = max(
            (line["offset"] for line in sender.lines if line["type"] == "durable"), default=0
        )
        assert error["code"] == "store_failed"
        assert error["durable"] >= told
    for hello in ({}, {"flow": FLOW, "resume": True}):
        with Ingest(daemon.address) as later:
            assert later.refused(**hello)["code"] in ("store_failed", "busy")
    daemon.stop()
    daemon.start()
    with Ingest(daemon.address) as again:
        offset = again.begin(flow=FLOW, resume=True, bytes=len(data))
        assert offset >= error["durable"]
        again.send(data[offset:])
        assert again.sealed()["checksum"] == checksum(data)
    assert stored(daemon, FLOW)[1] == data
    assert daemon.stop() == 0
    assert_clean(store)
