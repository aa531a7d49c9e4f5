# SPDX-License-Identifier: Apache-2.0
"""Removing flows from a store that a daemon serves."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ingestd.errors import FlowInUseError, FlowNotFoundError, StoreError
from support.daemon import PROGRAM, Daemon, format_store, run_ingestd
from support.ingest import Ingest, data_of, wait_for_event
from support.observe import assert_clean, assert_stored, flow_of, list_flows, scrape, wait_until
from support.patience import WAIT_S
from support.payload import Payload
from support.senders import SocketSender, assert_sealed, send
from support.stores import MIB, StoreMaker, write_config

StartDaemon = Callable[..., Daemon]
SMALL = {"area": "8MiB", "write_bytes_max": "64KiB"}


@pytest.fixture(params=["", "catalogue"])
def serve(
    start_daemon: StartDaemon, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., Daemon]:
    """A function that serves a store of segments of 1 MiB by both protocols; with a catalogue too.

    A removal rests on all of the store, or on what the catalogue shows of it.
    """
    state_dir = str(tmp_path / request.param) if request.param else ""

    def start(size: str = "32MiB", **store: object) -> Daemon:
        path = format_store(tmp_path / "store.img", "--segment-size", "1MiB", size=size)
        config = write_config(
            tmp_path / "c.toml",
            store={"default": {**SMALL, **store}},
            daemon={"state_dir": state_dir},
            listener={
                "default": {"address": "127.0.0.1:0"},
                "ingest": {
                    "address": "127.0.0.1:0",
                    "protocol": "ingest",
                    "ack_interval_s": 0.05,
                },
            },
        )
        return start_daemon(path, config=config)

    return start


def flows_of(daemon: Daemon) -> set[str]:
    return {entry["flow"] for entry in list_flows(daemon.store)}


def removed_text(store: Path, *flows: str) -> str:
    return run_ingestd("rm", store, *flows).stdout.decode()


def test_an_ended_flow_goes_and_its_segments_come_back(
    serve: Callable[..., Daemon], seed: int
) -> None:
    daemon = serve()
    kept = send(daemon.address, Payload(seed, 1000))
    big = send(daemon.address, Payload(seed + 1, 10 * MIB))
    after = send(daemon.address, Payload(seed + 2, 1000))
    free_before = scrape(daemon).total("ingestd_segments", state="free")
    assert removed_text(daemon.store, big.flow) == (
        f"flow {big.flow}: removed, 10 MiB (10485760 bytes)\n"
    )
    assert flows_of(daemon) == {kept.flow, after.flow}
    run_ingestd("cat", daemon.store, big.flow, code=FlowNotFoundError.exit_code)
    run_ingestd("rm", daemon.store, big.flow, code=FlowNotFoundError.exit_code)
    wait_until(
        lambda: scrape(daemon).total("ingestd_segments_freed_total", reason="removed") >= 9,
        "segments come back",
    )
    shot = scrape(daemon)
    assert shot.total("ingestd_segments", state="free") >= free_before + 9
    assert shot.total("ingestd_flows_removed_total", reason="removed") == 1
    assert shot.total("ingestd_freed_bytes_total", reason="removed") >= 8 * MIB
    (line,) = wait_for_event(daemon, "flow_removed")
    assert (line["flow"], line["bytes"], line["reason"]) == (big.flow, 10 * MIB, "removed")
    assert wait_for_event(daemon, "segment_freed")[0]["flows"] == [big.flow]
    # Its first and last segment hold kept flows: it waits for them, also over a restart.
    assert shot.total("ingestd_removed_flows") == 1
    assert_stored(daemon.store, [kept, after])
    daemon.kill()
    daemon.start()
    assert flows_of(daemon) == {kept.flow, after.flow}
    assert scrape(daemon).total("ingestd_removed_flows") == 1
    removed_text(daemon.store, kept.flow, after.flow)
    wait_until(
        lambda: scrape(daemon).total("ingestd_segments", state="free") == 31 - 4,
        "all is free but what the worker holds ready",
    )
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_a_flow_that_is_received_stays(serve: Callable[..., Daemon], seed: int) -> None:
    daemon = serve()
    raw = SocketSender(daemon.address)
    raw.write(b"raw, and open")
    flow = str(uuid.uuid4())
    with Ingest(daemon.listener("ingest")) as sender:
        sender.begin(flow=flow)
        sender.send(b"half")
        sender.durable(4)
        wait_until(lambda: len(flows_of(daemon)) == 2, "both are in the store")
        names = flows_of(daemon)
        result = run_ingestd("rm", daemon.store, *names, code=FlowInUseError.exit_code)
        assert result.stderr.count(b"is being received") == 2
        assert flows_of(daemon) == names
        assert len(wait_for_event(daemon, "removal_refused", 2)) == 2
        sender.reset()
    assert raw.finish()["state"] == "sealed"
    wait_for_event(daemon, "flow_interrupted")
    removed_text(daemon.store, *names)
    assert flows_of(daemon) == set()
    for resume in (True, False, "auto"):
        with Ingest(daemon.listener("ingest")) as again:
            assert again.refused(flow=flow, resume=resume)["code"] == "removed"
    assert daemon.stop() == 0
    # What the segments hold still is not taken for a new flow's, nor a new flow's for it.
    daemon.start()
    with Ingest(daemon.listener("ingest")) as again:
        assert again.refused(flow=flow, resume="auto")["code"] == "removed"
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_a_full_store_gets_room_and_a_sender_goes_on(
    serve: Callable[..., Daemon], seed: int
) -> None:
    daemon = serve(size="12MiB")
    sent = [send(daemon.address, Payload(seed + n, 3 * MIB)) for n in range(2)]
    data, flow = data_of(seed, 8 * MIB), str(uuid.uuid4())
    with Ingest(daemon.listener("ingest")) as sender:
        sender.begin(flow=flow, bytes=len(data))
        with suppress(OSError):  # it closes once it has answered
            sender.send(data)
        assert sender.error()["code"] == "store_full"
    with Ingest(daemon.listener("ingest")) as again:
        assert again.refused(flow=flow, resume=True)["code"] == "store_full"
    assert scrape(daemon).total("ingestd_store_full") == 1
    removed_text(daemon.store, *(item.flow for item in sent))
    wait_until(lambda: scrape(daemon).total("ingestd_store_full") == 0, "there is room")
    with Ingest(daemon.listener("ingest")) as again:
        offset = again.begin(flow=flow, resume=True, bytes=len(data))
        assert 0 < offset < len(data)
        again.send(data[offset:])
        assert again.sealed()["bytes"] == len(data)
    assert_sealed(send(daemon.address, Payload(seed, 100)))
    assert daemon.stop() == 0
    assert flow_of(daemon.store, flow)["state"] == "sealed"
    assert_clean(daemon.store)


class Resumer:
    """Feeds one flow over and over, a connection for each piece, until it is stopped."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.flow = str(uuid.uuid4())
        self.durable_bytes = 0
        self.error = ""
        self.stop = threading.Event()
        self._address = daemon.listener("ingest")
        self._data = data_of(seed, MIB)
        self._choose = random.Random(seed)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while not self.stop.is_set() and not self.error:
            try:
                self._connection()
            except OSError:
                time.sleep(0.01)

    def _connection(self) -> None:
        with Ingest(self._address) as sender:
            sender.greet(flow=self.flow, resume="auto")
            answer = sender.line()
            if answer is None or answer.get("code") in ("busy", "shutdown"):
                return
            if answer["type"] == "error":
                self.error = answer["code"]
                return
            offset = answer["offset"]
            # Were it removed and begun anew, it would begin at 0.
            assert offset >= self.durable_bytes
            sender.send(self._data[offset : offset + 2000])
            sender.durable(offset + 2000)
            self.durable_bytes = offset + 2000
            sender.reset()
        time.sleep(self._choose.random() * 0.8)


@pytest.mark.fault("retention_race")
def test_removals_race_with_senders_that_come_back(serve: Callable[..., Daemon], seed: int) -> None:
    """Either the removal is refused and all bytes stay, or the sender hears of it."""
    daemon = serve()
    choose = random.Random(seed)
    resumers = [Resumer(daemon, seed + n) for n in range(6)]
    try:
        for resumer in resumers:
            wait_until(lambda r=resumer: r.durable_bytes or r.error, "it is fed")
        begun_s = time.monotonic()
        gone: set[str] = set()
        while len(gone) < len(resumers) and time.monotonic() < begun_s + (3 if gone else WAIT_S):
            left = [resumer.flow for resumer in resumers if resumer.flow not in gone]
            wanted = choose.sample(left, choose.randint(1, min(3, len(left))))
            done = subprocess.run(
                [PROGRAM, "rm", str(daemon.store), *wanted], capture_output=True, check=False
            )
            assert done.returncode in (0, FlowInUseError.exit_code), done.stderr
            gone |= {line.split()[1].rstrip(":") for line in done.stdout.decode().splitlines()}
            listed = flows_of(daemon)
            assert not listed & gone
            assert listed | gone == {resumer.flow for resumer in resumers}
    finally:
        for resumer in resumers:
            resumer.stop.set()
        for resumer in resumers:
            resumer.thread.join()
    listed = {entry["flow"]: entry for entry in list_flows(daemon.store)}
    for resumer in resumers:
        if resumer.flow in gone:
            assert resumer.error in ("removed", ""), resumer.error
        else:
            assert resumer.error == ""
            assert listed[resumer.flow]["durable_bytes"] >= resumer.durable_bytes
    assert gone, "none came between two connections"
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_a_daemon_that_comes_and_goes_meanwhile(serve: Callable[..., Daemon], seed: int) -> None:
    """The command continues with whoever holds the store; what it reports holds."""
    daemon = serve()
    sent = [send(daemon.address, Payload(seed + n, 100_000)) for n in range(4)]
    choose = random.Random(seed)
    for item in sent[:2]:
        command = [PROGRAM, "rm", str(daemon.store), item.flow]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as rm:
            time.sleep(choose.random() * 0.9)
            daemon.process.send_signal(signal.SIGKILL)
            daemon.process.wait()
            if choose.randrange(2):
                time.sleep(choose.random() * 0.3)
            daemon.start()
            out, errors = rm.communicate(timeout=WAIT_S)
        assert rm.returncode == 0, errors
        assert out.startswith(f"flow {item.flow}: removed".encode())
        assert item.flow not in flows_of(daemon)
    assert_stored(daemon.store, sent[2:])
    assert daemon.stop() == 0
    assert_clean(daemon.store)


@pytest.mark.parametrize("make_store", ["loop4096"], indirect=True)
def test_a_device_gets_back_what_is_discarded(
    make_store: StoreMaker, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    device = make_store(16 * MIB, "--segment-size", "1MiB", "--zero")
    config = write_config(tmp_path / "c.toml", store={"default": {**SMALL, "discard": True}})
    daemon = start_daemon(device, config=config, log=tmp_path / "daemon.log")
    sent = [send(daemon.address, Payload(seed + n, size)) for n, size in enumerate((6 * MIB, 100))]
    (backing,) = tmp_path.glob("store.img*")
    before = backing.stat().st_blocks * 512
    removed_text(device, sent[0].flow)
    wait_until(
        lambda: scrape(daemon).total("ingestd_discarded_bytes_total") >= 5 * (MIB - 65536),
        "segments are discarded",
    )
    assert backing.stat().st_blocks * 512 <= before - 4 * MIB
    assert_stored(device, sent[1:])
    assert_sealed(send(daemon.address, Payload(seed, 8 * MIB)))
    assert daemon.stop() == 0
    assert_clean(device)


def test_on_a_file_discard_is_refused(tmp_path: Path) -> None:
    path = format_store(tmp_path / "s.img")
    config = write_config(tmp_path / "c.toml", store={"default": {"discard": True}})
    serve = ("serve", "--store", path, "--listen", "127.0.0.1:0", "-c", config)
    assert b"set discard = false" in run_ingestd(*serve, code=StoreError.exit_code).stderr
