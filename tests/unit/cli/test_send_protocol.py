# SPDX-License-Identifier: Apache-2.0
"""`ingestd send` finds out which protocol the listener speaks, and awaits the listener."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path

import pytest

from support import raw_server
from support.payload import Payload
from support.protocol_server import ProtocolServer, running
from support.sending import WAIT_S, directory, send, start_send

MIB = 1 << 20
Capture = pytest.CaptureFixture[str]


def _stored(server: ProtocolServer) -> list[bytes]:
    return [bytes(flow.data) for flow in server.flows.values()]


# --- which protocol the listener speaks ------------------------------------------


def test_listener_that_greets_is_sent_to_by_ingest(tmp_path: Path, capsys: Capture) -> None:
    source = directory(tmp_path / "d", 5)
    with running() as server:
        assert send(server.address, source) == 0
        assert all(flow.is_sealed for flow in server.flows.values())
        assert len(server.flows) == 5
        assert server.counts["connections"] == 6  # it is found out once
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("parallel", ["1", "4"])
def test_listener_that_says_nothing_is_sent_to_by_raw(
    parallel: str, tmp_path: Path, capsys: Capture
) -> None:
    source = directory(tmp_path / "d", 20)
    with raw_server.running() as server:
        assert send(server.address, source, "--parallel", parallel, "--json") == 0
        sent = sorted(path.read_bytes() for path in source.iterdir())
        assert sorted(server.flows) == sent
        assert server.resets_count == 0
    receipts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(r["file"] for r in receipts) == sorted(map(str, source.iterdir()))
    assert {r["state"] for r in receipts} == {"sealed"}


@pytest.mark.parametrize("size", [0, 100, 5000, 3 * MIB])
def test_listener_that_greets_late_gets_the_flow_by_ingest(size: int, tmp_path: Path) -> None:
    data = Payload(1, size).data()
    (tmp_path / "f").write_bytes(data)
    with running(greets_after_s=1.5) as server:
        assert send(server.address, tmp_path / "f") == 0
        assert _stored(server) == [data]
        server.complaints.clear()  # what came by raw was no hello


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_listener_that_greets_late_gets_all_of_a_pipe(size: int) -> None:
    data = Payload(2, size).data()
    with (
        running(greets_after_s=1.5) as server,
        start_send(server.address, "-", "--json", stdin=subprocess.PIPE) as process,
    ):
        out, err = process.communicate(data, timeout=WAIT_S)
        assert process.returncode == 0, err
        assert json.loads(out)["bytes"] == size
        assert _stored(server) == [data]
        server.complaints.clear()


def test_pipe_of_which_too_much_was_sent_is_an_error_that_tells_the_remedy() -> None:
    with (
        running(greets_after_s=1.5) as server,
        start_send(server.address, "-", "--buffer", "1KiB", stdin=subprocess.PIPE) as process,
    ):
        _, err = process.communicate(bytes(5000), timeout=WAIT_S)
        assert process.returncode == 14
        assert b"send it again with --protocol ingest" in err
        assert not server.flows
        server.complaints.clear()


def test_demand_that_the_listener_does_not_meet_tells_the_remedy(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestd.client.flow.QUIET_S", 0.05)
    monkeypatch.setattr("ingestd.client.flow.HANDSHAKE_TIMEOUT_S", 0.2)
    (tmp_path / "f").write_bytes(b"x")
    with running() as ingest, raw_server.running() as raw:
        assert send(ingest.address, tmp_path / "f", "--protocol", "raw") == 14
        assert "send with --protocol ingest" in capsys.readouterr().err
        ingest.complaints.clear()
        demand = ["--protocol", "ingest", "--retry", "0"]
        assert send(raw.address, tmp_path / "f", *demand) == 14
        note, error = capsys.readouterr().err.splitlines()
        assert "has not greeted so far" in note
        assert "send with --protocol raw" in note
        assert "send with --protocol raw" in error
        assert raw.flows == []


# --- the first connection -----------------------------------------------------------


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize("protocol", ["raw", "ingest", None])
def test_first_connection_is_tried_again(
    protocol: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, port = directory(tmp_path / "d", 3), _free_port()
    make, address = socket.create_server, f"127.0.0.1:{port}"
    flags = ["--protocol", protocol] if protocol else []
    with start_send(address, source, "--retry", "60", *flags) as process:
        assert process.stderr is not None
        assert b"cannot connect: Connection refused: trying again for 60 s" in (
            process.stderr.readline()
        )
        monkeypatch.setattr(socket, "create_server", lambda _: make(("127.0.0.1", port)))
        with running() if protocol == "ingest" else raw_server.running() as server:
            out, err = process.communicate(timeout=WAIT_S)
            assert process.returncode == 0, err
            assert len(server.flows) == 3
    assert len(out.splitlines()) == 3


def test_listener_that_is_not_there_is_awaited_once(tmp_path: Path, capsys: Capture) -> None:
    source = directory(tmp_path / "d", 30)
    address, begun_s = f"127.0.0.1:{_free_port()}", time.monotonic()
    for flags in ([], ["--protocol", "ingest"], ["--protocol", "raw"]):
        assert send(address, source, "--retry", "1", *flags) == 14
        captured = capsys.readouterr()
        assert captured.err.count(": error: ") == 30
        assert captured.err.count("trying again for 1 s") == 1
    assert time.monotonic() - begun_s < 30
