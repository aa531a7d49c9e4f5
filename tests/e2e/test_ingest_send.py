# SPDX-License-Identifier: Apache-2.0
"""`ingestd send` and ingestd.client against the daemon, by protocol ingest, as users have them.

Both sides were made from docs/protocol.md; here they meet.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingestd.client import connect, load_key
from support.daemon import PROGRAM, Daemon, format_store, run_ingestd
from support.ingest import checksum, data_of, stored
from support.observe import assert_clean, scrape, wait_until
from support.patience import WAIT_S
from support.stores import MIB, write_config

Serve = Callable[..., Daemon]
SECRET = bytes(range(32))
PROTOCOL = ("--protocol", "ingest", "--json")


def _to(daemon: Daemon) -> str:
    return f"{daemon.host}:{daemon.port}"


def _durable_bytes(daemon: Daemon) -> float:
    """In this life of the daemon."""
    return scrape(daemon).total("ingestd_durable_bytes_total")


def _receipts(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_files_with_a_key(serve: Serve, tmp_path: Path, seed: int) -> None:
    """Several files, a name and a label, and a key that both sides read from a file."""
    key_file = tmp_path / "keys.toml"
    key_file.touch(0o600)
    key_file.write_text(f'[key]\nlab = "{SECRET.hex()}"\n')
    daemon = serve(key_file=str(key_file))
    paths, data = [], []
    for number in range(5):
        data.append(data_of(seed + number, number * 100_003))
        paths.append(tmp_path / f"scan-{number}")
        paths[-1].write_bytes(data[-1])
    keys = ("--key", "lab", "--key-file", str(key_file))
    flags = (*PROTOCOL, *keys, "--label", "beam=ID19", "--parallel", "3")
    result = run_ingestd("send", *paths, "--to", _to(daemon), *flags)
    receipts = _receipts(result.stdout)
    assert sorted(r["bytes"] for r in receipts) == sorted(map(len, data))
    for receipt in receipts:
        number = receipt["bytes"] // 100_003
        shown, found = stored(daemon, receipt["flow"])
        assert (shown["name"], found) == (f"scan-{number}", data[number])
        assert (shown["labels"], shown["protocol"]) == ({"beam": "ID19"}, "ingest")
        assert receipt["checksum"] == checksum(found)
        assert receipt.get("sender_checksum") in (None, checksum(found))
    run_ingestd("send", paths[1], "--to", _to(daemon), *PROTOCOL, code=14)  # without the key
    key = load_key(str(key_file), "lab")
    with connect(_to(daemon), key=key, name="by hand") as writer:
        writer.write(data[4])
    assert stored(daemon, writer.flow)[1] == data[4]
    assert daemon.stop() == 0
    assert_clean(daemon.store)


@pytest.mark.timeout(300)
def test_a_file_goes_on_after_a_kill(
    start_daemon: Callable[..., Daemon], tmp_path: Path, seed: int
) -> None:
    store = format_store(tmp_path / "store.img", size="512MiB")
    config = write_config(
        tmp_path / "ingestd.toml",
        store={"default": {"area": 16 * MIB, "write_bytes_max": "256KiB"}},
        listener={"default": {"protocol": "ingest", "ack_interval_s": 0.02}},
    )
    daemon = start_daemon(store, config=config)
    path, data = tmp_path / "large", data_of(seed, 150 * MIB)
    path.write_bytes(data)
    sender = subprocess.Popen(
        [PROGRAM, "send", str(path), "--to", _to(daemon), *PROTOCOL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        for _ in range(2):
            wait_until(lambda: _durable_bytes(daemon) > MIB, "some of it is durable")
            if sender.poll() is not None:
                break
            daemon.kill()
            assert_clean(store)
            time.sleep(0.2)
            daemon.start()
        output, errors = sender.communicate(timeout=WAIT_S)
    finally:
        sender.kill()
        sender.wait()
    assert sender.returncode == 0, errors
    (receipt,) = _receipts(output)
    assert (receipt["bytes"], receipt["checksum"]) == (len(data), checksum(data))
    assert daemon.events("flow_resumed"), "the kill came after the end: nothing was tested"
    assert stored(daemon, receipt["flow"])[1] == data
    assert daemon.stop() == 0
    assert_clean(store)


def test_a_writer_goes_on_after_a_kill(serve: Serve, seed: int) -> None:
    """What came from no file is kept by the client as long as it is not durable."""
    daemon, data = serve(), data_of(seed, 3 * MIB)
    with connect(_to(daemon), bytes_total=len(data)) as writer:
        writer.write(data[:MIB])
        wait_until(lambda: _durable_bytes(daemon) >= MIB, "the first part is durable")
        writer.write(data[MIB : 2 * MIB])
        daemon.kill()
        daemon.start()
        writer.write(data[2 * MIB :])
    assert stored(daemon, writer.flow)[1] == data
    assert daemon.events("flow_resumed")
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_a_directory_that_is_sent_again_is_there_once(serve: Serve, tmp_path: Path) -> None:
    """Nobody says which protocol: the listener's greeting does."""
    daemon, source = serve(), tmp_path / "run-1"
    source.mkdir()
    for number in range(10):
        (source / str(number)).write_bytes(data_of(number, number * 1000))
    first, again = (
        _receipts(run_ingestd("send", source, "--to", _to(daemon), "--json", *flags).stdout)
        for flags in ((), ("--parallel", "4"))
    )
    assert {r["file"]: r["flow"] for r in first} == {r["file"]: r["flow"] for r in again}
    assert all(receipt["already_there"] for receipt in again)
    listed = _receipts(run_ingestd("ls", daemon.store, "--json").stdout)
    assert sorted(flow["name"] for flow in listed) == [f"run-1/{number}" for number in range(10)]
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_a_directory_goes_to_a_raw_listener(
    start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon, source = start_daemon(format_store(tmp_path / "store.img")), tmp_path / "run-1"
    source.mkdir()
    for number in range(10):
        (source / str(number)).write_bytes(data_of(number, number * 1000))
    flags = ("--json", "--state", tmp_path / "state", "--parallel", "3")
    for _ in range(2):
        receipts = _receipts(run_ingestd("send", source, "--to", _to(daemon), *flags).stdout)
        assert sorted(receipt["bytes"] for receipt in receipts) == [n * 1000 for n in range(10)]
    listed = _receipts(run_ingestd("ls", daemon.store, "--json").stdout)
    assert {flow["flow"] for flow in listed} == {receipt["flow"] for receipt in receipts}
    assert daemon.stop() == 0
    assert_clean(daemon.store)
