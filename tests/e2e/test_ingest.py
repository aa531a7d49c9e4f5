# SPDX-License-Identifier: Apache-2.0
"""Protocol ingest, whole: begin, receive durable offsets, lose the connection, resume.

The sender is a plain socket (support.ingest). Every byte that the daemon said
to be durable must be in the store, in its place, whatever happened meanwhile.
"""

from __future__ import annotations

import signal
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from ingestd.store.read.image import read_image
from support.daemon import Daemon, format_store, run_ingestd
from support.ingest import Ingest, checksum, data_of, stored, trailer_block, wait_for_event
from support.observe import assert_clean, scrape
from support.patience import WAIT_S
from support.stores import MIB, write_config

StartDaemon = Callable[..., Daemon]
Serve = Callable[..., Daemon]


def test_a_new_flow_with_everything_stated(serve: Serve, seed: int) -> None:
    daemon, data = serve(), data_of(seed, 3 * MIB + 1)
    chosen = str(uuid.uuid4())
    with Ingest(daemon.address) as sender:
        offset = sender.begin(
            flow=chosen,
            name="scan 7",
            labels={"beam": "ID19", "run": "7"},
            bytes=len(data),
            trailer=True,
        )
        assert (offset, sender.flow) == (0, chosen)
        sender.send(data + trailer_block(data))
        sealed = sender.sealed()
    assert sealed["bytes"] == len(data)
    assert sealed["durable"] is True
    assert sealed["checksum"] == sealed["sender_checksum"] == checksum(data)
    shown, found = stored(daemon, chosen)
    assert found == data
    assert (shown["state"], shown["name"]) == ("sealed", "scan 7")
    with read_image(str(daemon.store)) as image:
        assert image.find(chosen).labels == {"beam": "ID19", "run": "7"}
        assert image.find(chosen).protocol == "ingest"
    assert daemon.stop() == 0
    assert_clean(daemon.store)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 16384, 16385, 5 * MIB + 3])
@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("trailer", [True, False])
def test_every_way_to_end(serve: Serve, seed: int, size: int, stated: bool, trailer: bool) -> None:
    daemon, data = serve(), data_of(seed, size)
    fields = {"trailer": True} if trailer else {}
    if stated:
        fields["bytes"] = size
    end = trailer_block(data) if trailer else b""
    with Ingest(daemon.address) as sender:
        sender.begin(**fields)
        # In two pieces with a pause between, so that the cut lies anywhere.
        both, cut = data + end, seed % (size + len(end) + 1)
        sender.send(both[:cut])
        time.sleep(0.1)
        sender.send(both[cut:])
        sealed = sender.sealed()
    assert sealed["bytes"] == size
    assert sealed["checksum"] == checksum(data)
    assert sealed["sender_checksum"] == (checksum(data) if trailer else None)
    assert stored(daemon, sender.flow)[1] == data


def test_resume_after_a_reset(serve: Serve, seed: int) -> None:
    daemon, data = serve(), data_of(seed, 4 * MIB)
    with Ingest(daemon.address) as first:
        first.begin(name="cut")
        first.send(data[:MIB])
        first.durable(MIB)
        first.reset()
    (event,) = wait_for_event(daemon, "flow_interrupted")
    with Ingest(daemon.address) as second:
        offset = second.begin(flow=first.flow, resume=True, trailer=True)
        assert offset == event["durable_bytes"] == MIB
        second.send(data[offset:] + trailer_block(data))
        assert second.sealed()["checksum"] == checksum(data)
    shown, found = stored(daemon, first.flow)
    assert found == data
    assert (shown["state"], shown["name"]) == ("sealed", "cut")
    assert wait_for_event(daemon, "flow_resumed")[0]["offset"] == MIB
    assert scrape(daemon).total("ingestd_flows_resumed_total") == 1
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_resume_after_a_kill(serve: Serve, seed: int) -> None:
    """Again and again: what was said to be durable is there, and nothing is there twice."""
    daemon, data = serve(), data_of(seed, 6 * MIB)
    flow, told = str(uuid.uuid4()), 0
    for number in range(4):
        with Ingest(daemon.address) as sender:
            offset = sender.begin(flow=flow, resume="auto")
            assert told <= offset <= len(data)
            end = (number + 1) * MIB
            sender.send(data[offset:end])
            sender.durable(end)
            told = end
            sender.send(data[end : end + 300_000])  # of which nobody knows what is kept
            daemon.kill()
        assert_clean(daemon.store)
        daemon.start()
    with Ingest(daemon.address) as sender:
        offset = sender.begin(flow=flow, resume=True, bytes=len(data), trailer=True)
        assert told <= offset
        sender.send(data[offset:] + trailer_block(data))
        assert sender.sealed()["checksum"] == checksum(data)
    assert stored(daemon, flow)[1] == data
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_resume_after_a_restart_needs_no_acknowledgement(serve: Serve, seed: int) -> None:
    daemon, data = serve(), data_of(seed, 2 * MIB)
    with Ingest(daemon.address) as sender:
        sender.begin()
        sender.send(data[:MIB])
        sender.durable(MIB)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGTERM)
        assert sender.error()["code"] == "shutdown"
    assert daemon.process.wait(WAIT_S) == 0
    daemon.start()
    with Ingest(daemon.address) as again:
        assert again.begin(flow=sender.flow, resume=True) == MIB
        again.send(data[MIB:])
        assert again.sealed()["bytes"] == len(data)
    assert stored(daemon, sender.flow)[1] == data


def test_a_newer_connection_replaces_an_older_one(serve: Serve, seed: int) -> None:
    daemon, data = serve(), data_of(seed, 2 * MIB)
    with Ingest(daemon.address) as older, Ingest(daemon.address) as newer:
        older.begin()
        older.send(data[:MIB])
        older.durable(MIB)
        offset = newer.begin(flow=older.flow, resume=True)
        assert offset == MIB
        error = older.error()
        assert (error["code"], error["durable"]) == ("replaced", MIB)
        newer.send(data[offset:])
        assert newer.sealed()["bytes"] == len(data)
    assert stored(daemon, older.flow)[1] == data


def test_many_replace_each_other(serve: Serve, seed: int) -> None:
    """All at once for one flow: one resumes it, the others get the reason."""
    daemon, data = serve(), data_of(seed, MIB)
    flow = str(uuid.uuid4())

    def attempt(_: int) -> str:
        with Ingest(daemon.address) as sender:
            sender.greet(flow=flow, resume="auto", bytes=len(data))
            found = sender.line()
            if found is not None and found["type"] == "accepted":
                with suppress(OSError):  # it may be replaced meanwhile
                    sender.send(data[found["offset"] :])
                sender.half_close()
                while (found := sender.line()) and found["type"] == "durable":
                    pass
            assert found is not None
            return str(found.get("code", found["type"]))

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(attempt, range(48)))
    assert "sealed" in outcomes, outcomes
    assert set(outcomes) <= {"sealed", "replaced", "too_short"}, outcomes
    assert stored(daemon, flow)[1] == data
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_a_sealed_flow_stays_sealed(serve: Serve, seed: int) -> None:
    daemon, data = serve(), data_of(seed, 12345)
    with Ingest(daemon.address) as sender:
        sender.begin()
        sender.send(data)
        sender.sealed()
    for _ in range(2):
        with Ingest(daemon.address) as again:
            error = again.refused(flow=sender.flow, resume=True)
        assert error["code"] == "sealed"
        assert (error["bytes"], error["checksum"]) == (len(data), checksum(data))
        with Ingest(daemon.address) as another:
            assert another.refused(flow=sender.flow)["code"] == "exists"
        assert daemon.stop() == 0
        daemon.start()  # and what the daemon knew it finds in the store


def test_64_flows_are_told_what_is_durable(serve: Serve, seed: int) -> None:
    daemon = serve()
    payloads = [data_of(seed + number, 300_000 + number) for number in range(64)]

    def attempt(data: bytes) -> str:
        with Ingest(daemon.address) as sender:
            sender.begin()
            for end in (100_000, 200_000):
                sender.send(data[end - 100_000 : end])
                sender.durable(end)
            sender.send(data[200_000:])
            assert sender.sealed()["checksum"] == checksum(data)
            offsets = [line["offset"] for line in sender.lines if line["type"] == "durable"]
            assert offsets == sorted(set(offsets))
            return sender.flow

    with ThreadPoolExecutor(64) as pool:
        flows = list(pool.map(attempt, payloads))
    for flow, data in zip(flows, payloads, strict=True):
        assert stored(daemon, flow)[1] == data
    assert scrape(daemon).total("ingestd_durable_lines_total") >= 128
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_a_sender_that_does_not_read(serve: Serve, seed: int) -> None:
    """Its flow continues, and so do all others; what it reads in the end is whole."""
    daemon = serve(ack_interval_s=0.01)
    data = data_of(seed, 200_000)
    with Ingest(daemon.address, receive_buffer_bytes=1) as deaf:
        deaf.begin()
        for at in range(0, len(data), 500):
            deaf.send(data[at : at + 500])
            time.sleep(0.012)
            if at == 100_000:
                with Ingest(daemon.address) as other:
                    other.begin()
                    other.send(data)
                    assert other.sealed()["bytes"] == len(data)
        assert deaf.sealed()["checksum"] == checksum(data)
        offsets = [line["offset"] for line in deaf.lines if line["type"] == "durable"]
        assert offsets == sorted(set(offsets))
    assert stored(daemon, deaf.flow)[1] == data


def test_ipv6(serve: Serve, seed: int) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    daemon, data = serve(host="::1"), data_of(seed, 10_000)
    with Ingest(daemon.address) as sender:
        sender.begin()
        sender.send(data)
        assert sender.sealed()["checksum"] == checksum(data)
    shown, found = stored(daemon, sender.flow)
    assert found == data
    assert shown["peer"].startswith("[::1]:")


@pytest.mark.needs_root  # several workers lock more memory than an ordinary user may
def test_resume_with_several_workers(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    """Connections land on any worker; each resumes where the one before it ended."""
    store = format_store(tmp_path / "store.img", size="128MiB")
    config = write_config(
        tmp_path / "ingestd.toml",
        store={"default": {"area": 32 * MIB, "workers": 3}},
        listener={"default": {"protocol": "ingest"}},
    )
    daemon, data = start_daemon(store, config=config), data_of(seed, 3 * MIB)
    flow, step = str(uuid.uuid4()), 64 * 1024 + 7
    told = sent = number = 0
    while True:
        with Ingest(daemon.address) as sender:
            offset = sender.begin(flow=flow, resume="auto")
            assert told <= offset <= sent
            sent = min(offset + step, len(data))
            sender.send(data[offset:sent])
            if sent == len(data):
                assert sender.sealed()["checksum"] == checksum(data)
                break
            number += 1
            if number % 2:
                sender.durable(sent)
                told = sent
            sender.reset()
    shown, found = stored(daemon, flow)
    assert found == data
    assert shown["state"] == "sealed"
    assert daemon.stop() == 0
    assert_clean(daemon.store)
    assert run_ingestd("ls", store).stdout.count(b"sealed") == 1
