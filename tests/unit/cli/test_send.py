# SPDX-License-Identifier: Apache-2.0
"""`ingestd send` by protocol `ingest`: files, directories, pipes, keys, resuming, progress."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import termios
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingestd.cli.main import EXIT_INTERRUPTED, main
from support.daemon import PROGRAM
from support.patience import WAIT_S
from support.payload import Payload
from support.protocol_server import ProtocolServer, running

FLOW = str(uuid.UUID(int=99))
SECRET = "00112233445566778899aabbccddeeff"
MIB = 1 << 20
Capture = pytest.CaptureFixture[str]


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(0.005)


def _file(path: Path, payload: Payload) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload.data())
    return str(path)


def _send(server: ProtocolServer, *arguments: str) -> int:
    return main(["send", *arguments, "--to", server.address, "--protocol", "ingest"])


def _start(server: ProtocolServer, *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    command = [PROGRAM, "send", *arguments, "--to", server.address, "--protocol", "ingest"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **streams)


def test_file(tmp_path: Path, capsys: Capture) -> None:
    payload = Payload(1, MIB + 1)
    with running(drops_after=[300_000]) as server:
        assert _send(server, _file(tmp_path / "run 7", payload), "--json") == 0
        stored = server.only_flow()
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "flow": next(iter(server.flows)),
        "bytes": payload.size,
        "durable": True,
        "state": "sealed",
        "checksum": payload.checksum(),
        "sender_checksum": payload.checksum(),
    }
    assert bytes(stored.data) == payload.data()
    assert stored.hello["name"] == "run 7"
    assert stored.hello["bytes"] == payload.size
    assert "trying again" in captured.err
    assert "resumes at byte" in captured.err


def test_text_of_a_receipt_and_options_that_need_the_protocol(
    tmp_path: Path, capsys: Capture
) -> None:
    file = _file(tmp_path / "f", Payload(2, 100_000))
    with running() as server:
        arguments = ["--name", "dark", "--label", "beam=off", "--label", "note=a=b"]
        assert main(["send", file, "--to", server.address, *arguments]) == 0
        assert server.only_flow().hello["name"] == "dark"
        assert server.only_flow().hello["labels"] == {"beam": "off", "note": "a=b"}
    captured = capsys.readouterr()
    assert f": sealed and durable at {server.address}, 97.6 KiB (100000 bytes)" in captured.out
    assert captured.err == ""


def test_directory_in_parallel(tmp_path: Path, capsys: Capture) -> None:
    payloads = {f"d/sub{n % 3}/{n}": Payload(n, 10_000 * n + 1) for n in range(12)}
    for name, payload in payloads.items():
        _file(tmp_path / name, payload)
    os.mkfifo(tmp_path / "d" / "pipe")
    with running(drop_chance=0.05) as server:
        assert _send(server, str(tmp_path / "d"), "--parallel", "4", "--json") == 0
        stored = {flow.hello["name"]: bytes(flow.data) for flow in server.flows.values()}
    assert stored == {name: payload.data() for name, payload in payloads.items()}
    captured = capsys.readouterr()
    receipts = [json.loads(line) for line in captured.out.splitlines()]
    files = [receipt["file"] for receipt in receipts]
    assert sorted(files) == sorted(str(tmp_path / name) for name in payloads)
    assert all(receipt["state"] == "sealed" for receipt in receipts)
    assert f"{tmp_path}/d/pipe: is not a file: left out" in captured.err


def test_flows_are_sent_at_the_same_time(tmp_path: Path) -> None:
    files = [_file(tmp_path / f"{n}", Payload(n, 1000)) for n in range(6)]
    with running(meeting=threading.Barrier(3)) as server:
        assert _send(server, *files, "--parallel", "3") == 0
        assert len(server.flows) == 6


def test_flow_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: Capture) -> None:
    files = [_file(tmp_path / name, Payload(1, 1000)) for name in ("a", "b", "c")]
    with running(refusals=[{"code": "store_full"}]) as server:
        assert _send(server, *files) == 14
        assert [flow.hello["name"] for flow in server.flows.values()] == ["b", "c"]
    captured = capsys.readouterr()
    assert [line.partition(":")[0] for line in captured.out.splitlines()] == files[1:]
    assert re.fullmatch(
        rf"ingestd: error: {files[0]}: {server.address}: store_full: made up; 0 bytes .*\n",
        captured.err,
    )


def test_pipe_is_kept_in_a_bounded_buffer(tmp_path: Path) -> None:
    payload = Payload(3, 3 * MIB)
    with (
        running(drop_chance=0.03, receipts_lost=1) as server,
        _start(server, "-", "--buffer", "256KiB", "--json", stdin=subprocess.PIPE) as process,
    ):
        out, err = process.communicate(payload.data(), timeout=WAIT_S)
        assert process.returncode == 0, err
        assert bytes(server.only_flow().data) == payload.data()
    assert json.loads(out)["checksum"] == payload.checksum()


def test_pipe_whose_reader_is_refused_while_it_is_silent() -> None:
    with (
        running() as server,
        _start(server, "-", "--retry", "0", stdin=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        process.stdin.write(b"abc")
        process.stdin.flush()
        _wait_until(lambda: bool(server.flows) and server.only_flow().durable == 3)
        flow = next(iter(server.flows))
        server.flows[str(uuid.UUID(int=1))] = server.flows.pop(flow)
        server.behaviour.refusals = [{"code": "store_failed"}] * 10
        server.drop_all()
        process.stdin.write(b"d")
        process.stdin.flush()
        assert process.wait(WAIT_S) == 14
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    assert f"resume with --resume {flow}" in errors


@pytest.mark.parametrize("from_pipe", [True, False])
def test_started_again(tmp_path: Path, from_pipe: bool, capsys: Capture) -> None:
    """Killed, then resumed by the flow's id; a pipe is read again from its start."""
    payload = Payload(4, 2 * MIB)
    file = _file(tmp_path / "f", payload)
    source = "-" if from_pipe else file
    with running(pause_s=0.005, piece_bytes_max=16384) as server:
        with (
            Path(file).open("rb") as reader,
            subprocess.Popen(["cat"], stdin=reader, stdout=subprocess.PIPE) as cat,
            _start(server, source, stdin=cat.stdout) as process,
        ):
            _wait_until(lambda: bool(server.flows) and server.only_flow().durable > 100_000)
            process.kill()
            cat.kill()
        _wait_until(lambda: server.only_flow().connection is None)
        assert not server.only_flow().is_sealed, "a killed sender must not end the flow"
        server.behaviour.pause_s = 0
        (flow,) = server.flows
        with (
            Path(file).open("rb") as reader,
            subprocess.Popen(["cat"], stdin=reader, stdout=subprocess.PIPE) as cat,
            _start(server, source, "--resume", flow, "--name", "f", stdin=cat.stdout) as process,
        ):
            server.complaints.clear()
            out, err = process.communicate(timeout=WAIT_S)
            assert process.returncode == 0, err
        assert bytes(server.only_flow().data) == payload.data()
        server.complaints.clear()  # a pipe has no name the first time, and one the second
    assert payload.checksum().encode() in out


def test_interrupt_leaves_the_flow_interrupted_and_tells_how_to_go_on(tmp_path: Path) -> None:
    file = _file(tmp_path / "f", Payload(5, 8 * MIB))
    with (
        running(pause_s=0.01, piece_bytes_max=4096) as server,
        _start(server, file) as process,
    ):
        _wait_until(lambda: bool(server.flows) and server.only_flow().durable > 200_000)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WAIT_S)
        assert process.returncode == EXIT_INTERRUPTED
        assert f"resume with --resume {next(iter(server.flows))}".encode() in err
        _wait_until(lambda: server.counts["drops"] == 1)
        assert not server.only_flow().is_sealed


def test_key_from_a_file(tmp_path: Path, capsys: Capture) -> None:
    file, keys = _file(tmp_path / "f", Payload(6, 1000)), tmp_path / "keys.toml"
    keys.write_text(f'[key]\nlab = "{SECRET}"\n')
    keys.chmod(0o600)
    with running({"lab": bytes.fromhex(SECRET)}) as server:
        assert _send(server, file, "--key", "lab", "--key-file", str(keys)) == 0
        assert server.only_flow().is_sealed
        assert _send(server, file) == 14
        keys.chmod(0o644)
        assert _send(server, file, "--key", "lab", "--key-file", str(keys)) == 3
    captured = capsys.readouterr()
    assert "asks for a key: give one" in captured.err
    assert "chmod 600" in captured.err


def test_made_up_file_and_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with running() as server:
        assert _send(server, "/proc/version", str(tmp_path / "empty")) == 0
        made_up, empty = server.flows.values()
    assert bytes(made_up.data) == Path("/proc/version").read_bytes()
    assert bytes(empty.data) == b""
    assert empty.is_sealed


def test_progress_shows_what_is_durable(tmp_path: Path) -> None:
    file = _file(tmp_path / "f", Payload(7, 2 * MIB))
    with running(pause_s=0.01, drops_after=[MIB]) as server:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 300))
        command = [PROGRAM, "send", file, "--to", server.address, "--protocol", "ingest"]
        with subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL) as process:
            os.close(theirs)
            shown = b""
            while True:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # how a terminal reports its end
                    break
                shown += piece
            assert process.wait(WAIT_S) == 0
        os.close(ours)
    assert b"2.00M/2.00M" in shown
    assert re.search(rb"durable; [\d.]+ [KM]iB sent", shown)
    assert re.search(rb"\ringestd: note: flow .*: trying again for 300 s\r\n", shown)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--resume", FLOW, "--protocol", "raw"], "--resume: needs --protocol ingest"),
        (["--label", "a=b", "--protocol", "raw"], "--label: needs --protocol ingest"),
        (["--key-file", "x", "--protocol", "raw"], "--key-file: needs --protocol ingest"),
        (["other", "--name", "n"], "--name: is for one flow, but these are 2"),
        (["other", "--resume", FLOW], "--resume: is for one flow, but these are 2"),
        (["-", "-", "--parallel", "2"], "-: standard input can be sent once"),
        (["--key", "lab"], "--key and --key-file: give both, or none"),
        (["--label", "a=b", "--label", "a=c"], "--label a=...: is given twice"),
        (["--buffer", "0"], "--buffer 0: without memory"),
        (["--parallel", "257"], "--parallel 257: is more than 256"),
        (["--resume", "x"], "flow: 'x' is not a UUID"),
        (["--name", "a\tb"], "f: its flow cannot be described so: its name is not text"),
        (["--label", "a=" + "x" * 1024], "its labels have more than 1024 bytes"),
        (["none", "--parallel", "2"], "none: cannot be opened: No such file"),
    ],
)
def test_command_lines_that_cannot_be_meant(
    arguments: list[str], problem: str, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("f", "other"):
        Path(name).write_bytes(b"x")
    assert main(["send", "f", *arguments, "--to", "127.0.0.1:1"]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--label", "a"], "'a' is not a label: write KEY=VALUE"),
        (["--retry", "soon"], "'soon' is not a number of seconds"),
        (["--protocol", "auto"], "invalid choice: 'auto'"),
    ],
)
def test_options_that_are_none(arguments: list[str], problem: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["send", "f", "--to", "127.0.0.1:1", *arguments])
    assert caught.value.code == 2
    assert problem in capsys.readouterr().err


def test_directory_without_files(tmp_path: Path, capsys: Capture) -> None:
    assert main(["send", str(tmp_path), "--to", "127.0.0.1:1", "--protocol", "ingest"]) == 2
    assert "has no file to send" in capsys.readouterr().err
