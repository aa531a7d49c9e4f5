# SPDX-License-Identifier: Apache-2.0
"""The device fails under a running daemon: nothing is acknowledged that is not there.

Ways without any special kernel: a limit on the size of files (EFBIG), a loop
device whose backing file takes no more writes (EIO), one that ends early, and
another store beside the failing one, which has to continue.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ingestd.errors import StoreDamagedError, StoreFailedError
from support.daemon import Daemon, format_store, run_ingestd
from support.ingest import Ingest, checksum, data_of
from support.loop import limit_size, loop_device, refuse_writes, sealable_loop_device
from support.notify import NotifySocket
from support.observe import (
    assert_claims,
    assert_clean,
    assert_stored,
    list_flows,
    scrape,
    wait_until,
)
from support.payload import Payload
from support.refusal import serve_refusal
from support.senders import Receipt, Sent, SocketSender, assert_sealed, send, send_all
from support.stores import MIB, store_config, write_config

StartDaemon = Callable[..., Daemon]
FLOW_BYTES = 300_007
SMALL = ("--segment-size", "1MiB")


def _limit_file_size(daemon: Daemon, size_bytes: int) -> None:
    """From now on every write behind size_bytes fails with EFBIG."""
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (size_bytes, size_bytes))


def _send_until_failure(daemon: Daemon, seed: int, flows_max: int) -> tuple[list[Sent], Receipt]:
    """Send flows one by one; return those acknowledged and the first other answer."""
    sealed: list[Sent] = []
    for number in range(flows_max):
        payload = Payload(seed + number, FLOW_BYTES)
        sender = SocketSender(daemon.address)
        with suppress(OSError):  # it may have answered and gone: its line is still to be read
            sender.write(payload.data())
        receipt = _end(sender)
        if receipt["state"] != "sealed":
            return sealed, receipt
        sealed.append(Sent(payload, receipt))
    raise AssertionError(f"{flows_max} flows were acknowledged by a store that cannot take them")


def _check_failed(daemon: Daemon, sealed: list[Sent], receipt: Receipt) -> None:
    """What the failed daemon says, to senders, in its log and in its metrics."""
    assert receipt["error"] == "store_failed", receipt
    assert receipt["state"] in ("interrupted", "refused")
    assert receipt["bytes"] < FLOW_BYTES
    assert receipt["durable"] is False
    (event,) = wait_until(lambda: daemon.events("store_failed"), "the log tells")
    assert event["store"] == "default"
    assert event["level"] == "error"
    assert "error" in event
    shot = scrape(daemon)
    assert shot.total("ingestd_store_failed", store="default") == 1
    assert shot.total("ingestd_flows_total", outcome="sealed") == len(sealed)
    # A second sender gets the reason at once.
    later = SocketSender(daemon.address)
    assert later.answer()["error"] == "store_failed"
    assert_stored(daemon.store, sealed)
    assert len({entry["flow"] for entry in list_flows(daemon.store)}) >= len(sealed)


@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_file_size_limit(
    start_daemon: StartDaemon, tmp_path: Path, seed: int, checksum: str
) -> None:
    store = format_store(tmp_path / "s.img", *SMALL, size="32MiB")
    config = store_config(
        tmp_path / "c.toml", checksum=checksum, area="8MiB", write_bytes_max="64KiB"
    )
    daemon = start_daemon(store, config=config)
    before = send(daemon.address, Payload(seed, 2_000_000))
    assert_sealed(before, has_checksum=checksum == "crc32c")
    _limit_file_size(daemon, 6 * MIB + 12 * 4096)
    sealed, receipt = _send_until_failure(daemon, seed + 1, 64)
    sealed.insert(0, before)
    _check_failed(daemon, sealed, receipt)
    assert daemon.stop() == StoreFailedError.exit_code
    assert_stored(store, sealed)
    # The device is well again: the next daemon continues behind what is there.
    daemon.start()
    assert_stored(store, sealed)
    sealed.append(send(daemon.address, Payload(seed + 100, 3_000_000)))
    assert daemon.stop() == 0
    assert_stored(store, sealed)
    run_ingestd("verify", store)


def test_failure_in_the_middle_of_many_flows(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """Each of 32 senders gets an answer, and each answer is true."""
    store = format_store(tmp_path / "s.img", *SMALL, size="64MiB")
    daemon = start_daemon(store)
    _limit_file_size(daemon, 12 * MIB)
    payloads = [Payload(seed + n, 50_000 * (n + 1)) for n in range(32)]
    senders = [SocketSender(daemon.address) for _ in payloads]
    for payload, sender in zip(payloads, senders, strict=True):
        with suppress(OSError):
            sender.write(payload.data())
    answers = [(payload, _end(sender)) for payload, sender in zip(payloads, senders, strict=True)]
    sealed = [Sent(payload, r) for payload, r in answers if r["state"] == "sealed"]
    assert len(sealed) < len(answers)
    assert all(r["state"] == "sealed" or r["error"] == "store_failed" for _, r in answers)
    assert_stored(store, sealed)
    assert_claims(store, answers)
    assert daemon.stop() == StoreFailedError.exit_code
    assert_stored(store, sealed)
    assert_claims(store, answers)


def _end(sender: SocketSender) -> Receipt:
    """Half-close, unless the daemon was faster, and return its answer."""
    with suppress(OSError):
        sender.sock.shutdown(socket.SHUT_WR)
    return sender.answer()


@pytest.mark.needs_root
@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_block_device_that_cannot_write(
    start_daemon: StartDaemon, tmp_path: Path, seed: int, checksum: str
) -> None:
    """From one moment on each write is an I/O error, as on a device that wore out.

    A file system without room below the device would not do: of a write that finds room for a
    part, a loop device says that all of it was written (lo_complete_rq() of drivers/block/loop.c,
    Linux 6.18, takes nothing but a negative result for an error of a write). What it then lost
    was acknowledged by the device, and no writer could know.
    """
    with sealable_loop_device(64 * MIB) as (device, backing):
        run_ingestd("format", device, *SMALL)
        config = store_config(
            tmp_path / "c.toml", checksum=checksum, area="8MiB", write_bytes_max="64KiB"
        )
        daemon = start_daemon(device, config=config, log=tmp_path / "daemon.log")
        sealed = [send(daemon.address, Payload(seed + n, FLOW_BYTES)) for n in range(8)]
        for sent in sealed:
            assert_sealed(sent, has_checksum=checksum == "crc32c")
        open_flow = SocketSender(daemon.address)
        open_payload = Payload(seed + 8, FLOW_BYTES)
        with suppress(OSError):
            open_flow.write(open_payload.data()[: FLOW_BYTES // 2])
        refuse_writes(backing)
        more, receipt = _send_until_failure(daemon, seed + 9, 1)
        assert not more
        _check_failed(daemon, sealed, receipt)
        claims = [(open_payload, open_flow.answer())]
        assert claims[0][1]["error"] == "store_failed"
        assert_claims(device, claims)
        assert daemon.stop() == StoreFailedError.exit_code
        assert_stored(device, sealed)
        assert_claims(device, claims)
        copy = tmp_path / "copy.img"
        copy.write_bytes(device.read_bytes())
    daemon = start_daemon(copy, config=config, log=tmp_path / "copy.log")
    assert_stored(copy, sealed)
    assert_claims(copy, claims)
    sealed.append(send(daemon.address, Payload(seed + 1000, 5_000_000)))
    assert daemon.stop() == 0
    assert_stored(copy, sealed)
    assert_claims(copy, claims)
    run_ingestd("verify", copy)


@pytest.mark.needs_root
def test_a_device_that_is_gone_and_comes_back(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """Nothing of it can be read or written any more: senders, log, metrics and manager hear."""
    with (
        loop_device(tmp_path / "disk.img", 64 * MIB) as device,
        NotifySocket(tmp_path / "notify") as manager,
    ):
        run_ingestd("format", device, *SMALL)
        environment = {"NOTIFY_SOCKET": str(manager.path)}
        daemon = start_daemon(device, log=tmp_path / "daemon.log", environment=environment)
        before = send(daemon.address, Payload(seed, 2_000_000))
        assert_sealed(before)
        open_flow = SocketSender(daemon.address)
        open_flow.write(Payload(seed + 1, 100_000).data())
        limit_size(device, 4096)
        _, receipt = _send_until_failure(daemon, seed + 2, 1)
        for told in (receipt, open_flow.answer(), SocketSender(daemon.address).answer()):
            assert told["error"] == "store_failed"
        (event,) = wait_until(lambda: daemon.events("store_failed"), "the log tells")
        assert event["error"].startswith(("ENOSPC", "EIO", "ENODATA"))
        assert scrape(daemon).total("ingestd_store_failed", store="default") == 1
        wait_until(lambda: manager.told("store default failed"), "STATUS= tells")
        assert daemon.stop() == StoreFailedError.exit_code
        assert "restore its size" in serve_refusal(StoreDamagedError, device)
        limit_size(device, 0)
        daemon.start()
        after = send(daemon.address, Payload(seed + 3, 3_000_000))
        assert daemon.stop() == 0
        assert_stored(device, [before, after])
        run_ingestd("verify", device)


@pytest.mark.needs_root
def test_sessions_on_a_device_that_is_gone_go_on_when_it_is_back(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    data = data_of(seed, 3 * MIB)
    config = write_config(
        tmp_path / "c.toml",
        listener={"default": {"protocol": "ingest", "ack_interval_s": 0.05}},
    )
    with loop_device(tmp_path / "disk.img", 64 * MIB) as device:
        run_ingestd("format", device, *SMALL)
        daemon = start_daemon(device, config=config, log=tmp_path / "daemon.log")
        with Ingest(daemon.address) as sender, Ingest(daemon.address) as late:
            sender.begin(bytes=len(data))
            sender.send(data[:MIB])
            sender.durable(MIB)
            limit_size(device, 4096)
            with suppress(OSError):
                sender.send(data[MIB : 2 * MIB])
            error = sender.error()
            assert (error["code"], error["durable"]) == ("store_failed", MIB)
            assert late.refused()["code"] == "store_failed"
        with Ingest(daemon.address) as later:
            assert later.refused(flow=sender.flow, resume=True)["code"] == "store_failed"
        assert daemon.stop() == StoreFailedError.exit_code
        limit_size(device, 0)
        daemon.start()
        with Ingest(daemon.address) as again:
            offset = again.begin(flow=sender.flow, resume=True, bytes=len(data))
            assert MIB <= offset <= 2 * MIB
            again.send(data[offset:])
            assert again.sealed()["checksum"] == checksum(data)
        assert daemon.stop() == 0
        run_ingestd("verify", device)


def test_other_stores_go_on(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    """The failed store's listener answers, the other one's takes flows; the exit code says it."""
    failing = format_store(tmp_path / "failing.img", *SMALL, size="64MiB")
    sound = format_store(tmp_path / "sound.img", *SMALL, size="8MiB")
    config = write_config(
        tmp_path / "c.toml",
        store={"sound": {"path": str(sound)}},
        listener={
            "default": {"store": "default"},
            "second": {"address": "127.0.0.1:0", "store": "sound"},
        },
    )
    daemon = start_daemon(failing, config=config)
    second = daemon.listener("second")
    filling = send(daemon.address, Payload(seed, 10 * MIB))
    assert_sealed(filling)
    _limit_file_size(daemon, 8 * MIB)
    _, receipt = _send_until_failure(daemon, seed + 1, 64)
    assert receipt["error"] == "store_failed"
    payloads = [Payload(seed + 100 + n, 100_000) for n in range(4)]
    sent = send_all(second, payloads, ["socket", "nc", "socat", "socket"])
    for flow in sent:
        assert_sealed(flow)
    assert_stored(sound, sent)
    shot = scrape(daemon)
    assert shot.total("ingestd_store_failed", store="default") == 1
    assert shot.total("ingestd_store_failed", store="sound") == 0
    assert daemon.stop() == StoreFailedError.exit_code
    assert_clean(sound)
    assert_stored(failing, [filling])
