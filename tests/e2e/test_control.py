# SPDX-License-Identifier: Apache-2.0
"""The control socket of a real daemon: asked, listed, removed, reloaded, watched, and hung on."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingestd.control import ControlClient
from ingestd.control.finding import find_serving
from ingestd.errors import ControlError, FlowInUseError, FlowNotFoundError, StoreBusyError
from support.daemon import PROGRAM, Daemon, format_store, run_ingestd
from support.ingest import Ingest
from support.observe import list_flows, wait_until
from support.patience import WAIT_S
from support.senders import SocketSender
from support.stores import write_config

StartDaemon = Callable[..., Daemon]
LISTENERS: dict[str, dict[str, object]] = {
    "default": {"address": "127.0.0.1:0"},
    "ingest": {"address": "127.0.0.1:0", "protocol": "ingest", "ack_interval_s": 0.05},
}


@pytest.fixture
def daemon(start_daemon: StartDaemon, tmp_path: Path) -> Daemon:
    path = format_store(tmp_path / "store.img", "--segment-size", "1MiB", size="32MiB")
    config = write_config(
        tmp_path / "c.toml",
        store={"default": {"area": "8MiB", "write_bytes_max": "64KiB"}},
        listener=LISTENERS,
    )
    return start_daemon(path, config=config)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[ControlClient]:
    with ControlClient(str(daemon.control)) as made:
        yield made


def _send(daemon: Daemon, data: bytes) -> str:
    return str(_receipt(daemon, data)["flow"])


def _receipt(daemon: Daemon, data: bytes) -> dict[str, Any]:
    sender = SocketSender(daemon.address)
    sender.write(data)
    return sender.finish()


def _ctl(daemon: Daemon, *arguments: str, code: int = 0) -> str:
    result = run_ingestd("ctl", "--socket", str(daemon.control), *arguments, code=code)
    return (result.stdout or result.stderr).decode()


def test_status(daemon: Daemon, client: ControlClient) -> None:
    with socket.create_connection(daemon.address) as sock:
        sock.sendall(b"x" * 100)
        wait_until(lambda: client.status()["listeners"][0]["connections"] == 1, "it to be seen")
        status = client.status()
    assert (status["pid"], status["state"]) == (daemon.process.pid, "serving")
    (store,) = status["stores"]
    assert (store["name"], store["path"], store["state"]) == (
        "default",
        str(daemon.store),
        "serving",
    )
    assert store["segments"] == store["segments_free"] + store["segments_used"] == 31
    assert (store["failure"], store["maintenance_failure"]) == (None, None)
    (worker,) = status["workers"]
    assert (worker["engine"], worker["area_bytes"]) == ("recv", 8 << 20)
    assert [listener["protocol"] for listener in status["listeners"]] == ["raw", "ingest"]
    assert status["listeners"][0]["addresses"] == [f"127.0.0.1:{daemon.port}"]
    info = json.loads(run_ingestd("info", daemon.store, "--json").stdout)
    assert info["daemon"]["pid"] == daemon.process.pid
    assert info["daemon"]["store"]["token"] == store["token"]
    assert str(daemon.control).encode() in run_ingestd("info", daemon.store).stdout
    shown = _ctl(daemon, "status")
    assert "default-0" in shown
    assert str(daemon.store) in shown


def test_flows_are_the_same_whoever_reads_them(daemon: Daemon) -> None:
    for number in range(5):
        _send(daemon, b"x" * (number + 1))
    with Ingest(daemon.listener("ingest")) as sender:
        sender.begin(name="a.log", labels={"site": "north"}, bytes=3)
        sender.send(b"abc")
        sender.sealed()
    arguments = [
        [],
        ["--sort=-bytes", "--limit", "2"],
        ["--name", "*.log"],
        ["--label", "site=north", "--state", "sealed"],
        ["--listener", "default", "--since", "1h"],
        ["--until", "2026-01-01"],
        ["--state", "open"],
    ]
    served = [_ls(daemon.store, *these) for these in arguments]
    assert daemon.stop() == 0
    assert served == [_ls(daemon.store, *these) for these in arguments]
    assert [len(found) for found in served] == [6, 2, 1, 1, 5, 0, 0]
    assert [flow["bytes"] for flow in served[1]] == [5, 4]


def _ls(store: Path, *arguments: str) -> list[dict[str, Any]]:
    lines = run_ingestd("ls", store, "--json", *arguments).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_events_of_both_protocols(daemon: Daemon, client: ControlClient) -> None:
    events = client.events()
    assert next(events)["event"] == "subscribed"
    raw = _receipt(daemon, b"some bytes")
    opened, sealed = next(events), next(events)
    assert [event["event"] for event in (opened, sealed)] == ["flow_opened", "flow_sealed"]
    assert opened["number"] + 1 == sealed["number"]
    assert (sealed["flow"], sealed["bytes"]) == (raw["flow"], 10)
    assert sealed["checksum"] == raw["checksum"]
    assert (sealed["store"], sealed["listener"], sealed["protocol"]) == (
        "default",
        "default",
        "raw",
    )
    assert sealed["peer"].startswith("127.0.0.1:")
    flow = str(uuid.uuid4())
    with Ingest(daemon.listener("ingest")) as sender:
        sender.begin(flow=flow, name="a.log", labels={"site": "north"}, bytes=6)
        sender.send(b"abc")
        opened = next(events)
        assert (opened["event"], opened["flow"], opened["offset"]) == ("flow_opened", flow, 0)
        sender.durable(3)
        sender.reset()
    interrupted = next(events)
    assert (interrupted["event"], interrupted["bytes"]) == ("flow_interrupted", 3)
    assert (interrupted["stored"], interrupted["reason"]) == (True, "connection_lost")
    with Ingest(daemon.listener("ingest")) as sender:
        sender.begin(flow=flow, resume=True, name="a.log", labels={"site": "north"}, bytes=6)
        sender.send(b"def")
        receipt = sender.sealed()
    opened, sealed = next(events), next(events)
    assert (opened["event"], opened["offset"]) == ("flow_opened", 3)
    assert (sealed["event"], sealed["bytes"]) == ("flow_sealed", 6)
    assert (sealed["name"], sealed["labels"]) == ("a.log", {"site": "north"})
    assert sealed["checksum"] == receipt["checksum"]
    assert flow in {entry["flow"] for entry in list_flows(daemon.store)}, "it is durable"


def test_removal_answers_for_each_flow(daemon: Daemon, client: ControlClient) -> None:
    flows = [_send(daemon, b"x" * 100) for _ in range(3)]
    unknown = str(uuid.uuid4())
    with socket.create_connection(daemon.address) as sock:
        sock.sendall(b"y" * 100)
        wait_until(lambda: len(list(client.flows(None, states=["open"]))) == 1, "it to be seen")
        (live,) = client.flows(None, states=["open"])
        lines = list(client.remove("default", [*flows[:2], live["flow"], unknown]))
    assert [(line["result"], line["bytes"]) for line in lines] == [
        ("removed", 100),
        ("removed", 100),
        ("in_use", 100),
        ("unknown", 0),
    ]
    run_ingestd("rm", daemon.store, flows[2], unknown, code=FlowNotFoundError.exit_code)
    daemon.kill()
    shown = {entry["flow"] for entry in list_flows(daemon.store)}
    assert shown == {live["flow"]}, "a removal is durable when it is answered"


def test_removal_by_a_filter(daemon: Daemon) -> None:
    for size in (1, 2, 3):
        _send(daemon, b"x" * size)
    command = ["rm", daemon.store, "--listener", "default"]
    shown = run_ingestd(*command, "--dry-run")
    assert b"3 flows, 6 bytes" in shown.stderr
    refused = subprocess.run(
        [PROGRAM, *map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (refused.returncode, b"--yes" in refused.stderr) == (2, True)
    assert len(list_flows(daemon.store)) == 3
    assert len(run_ingestd(*command, "--yes").stdout.splitlines()) == 3
    assert list_flows(daemon.store) == []


def test_a_flow_that_is_received_is_not_removed(daemon: Daemon, client: ControlClient) -> None:
    with socket.create_connection(daemon.address) as sock:
        sock.sendall(b"y" * 100)
        wait_until(lambda: len(list(client.flows(None, states=["open"]))) == 1, "it to be seen")
        (live,) = client.flows(None)
        run_ingestd("rm", daemon.store, live["flow"][:18], code=FlowInUseError.exit_code)


def test_reload_and_log_level(daemon: Daemon, client: ControlClient) -> None:
    assert daemon.config is not None
    assert client.ask("reload")["changed"] == []
    text = daemon.config.read_text()
    daemon.config.write_text(text + "\n[log]\nlevel = 'error'\n[daemon]\ndrain_timeout_s = 7\n")
    outcome = client.ask("reload")
    assert outcome["changed"] == ["daemon.drain_timeout_s", "log.level"]
    _ctl(daemon, "log-level", "debug")
    _send(daemon, b"x")
    wait_until(lambda: daemon.events("flow_opened"), "it to be seen")
    daemon.config.write_text(text + "\n[log]\nlevel = 'loud'\n")
    with pytest.raises(ControlError, match=r"log\.level"):
        client.ask("reload")
    assert "log.level" in _ctl(daemon, "reload", code=ControlError.exit_code)


def test_a_store_leads_to_its_daemon_by_every_name_and_a_copy_does_not(
    daemon: Daemon, tmp_path: Path
) -> None:
    link = tmp_path / "link.img"
    link.symlink_to(daemon.store)
    hard = tmp_path / "hard.img"
    hard.hardlink_to(daemon.store)
    for path in (daemon.store, link, hard):
        found = find_serving(str(path))
        assert found is not None
        assert (found.store, found.client.pid) == ("default", daemon.process.pid)
        found.client.close()
    copy = tmp_path / "copy.img"
    shutil.copyfile(daemon.store, copy)
    assert find_serving(str(copy)) is None
    daemon.kill()
    assert find_serving(str(daemon.store)) is None
    flow = _ls(daemon.store)
    assert flow == []


def test_a_killed_daemon_leaves_a_socket_that_its_successor_replaces(daemon: Daemon) -> None:
    daemon.kill()
    assert daemon.control.is_socket()
    daemon.start()
    with ControlClient(str(daemon.control)) as client:
        assert client.status()["pid"] == daemon.process.pid
    assert daemon.stop() == 0
    assert not daemon.control.exists()


def test_without_a_socket_a_served_store_is_read_and_not_changed(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    path = format_store(tmp_path / "store.img", "--segment-size", "1MiB", size="32MiB")
    daemon = start_daemon(path, flags=("--control", "off", "--area", "8MiB"))
    assert daemon.events("control_off")
    flow = _send(daemon, b"x" * 100)
    assert [entry["flow"] for entry in list_flows(path)] == [flow]
    result = run_ingestd("rm", path, flow, code=StoreBusyError.exit_code)
    assert b"control" in result.stderr


def test_a_daemon_that_cannot_be_asked_is_said(daemon: Daemon) -> None:
    flow = _send(daemon, b"x" * 100)
    daemon.control.unlink()
    assert [entry["flow"] for entry in list_flows(daemon.store)] == [flow], "it is read instead"
    result = run_ingestd("rm", daemon.store, flow, code=StoreBusyError.exit_code)
    assert str(daemon.control).encode() in result.stderr


def test_the_end_does_not_wait_for_those_who_hang(daemon: Daemon) -> None:
    _send(daemon, b"x")
    hanging = []
    for data in (b"", b'{"version":1,', b'{"version":1,"command":"events"}\n'):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(daemon.control))
        sock.sendall(data)
        hanging.append(sock)
    with ControlClient(str(daemon.control)) as client:
        events = client.events()
        next(events)
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(ControlError, match="hung up"):
            list(events)
    assert daemon.process.wait(WAIT_S) == 0
    assert daemon.events("left_behind") == []
    for sock in hanging:
        sock.close()
