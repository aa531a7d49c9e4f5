# SPDX-License-Identifier: Apache-2.0
"""`ingestd send` of directories: receipts in time, no duplicates, odd files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ingestd.cli.main import EXIT_INTERRUPTED
from support import raw_server
from support.daemon import PROGRAM
from support.payload import Payload
from support.protocol_server import ProtocolServer, running
from support.sending import WAIT_S, directory, send, start_send, wait_until

MIB = 1 << 20
TRIES_MAX = 10
Capture = pytest.CaptureFixture[str]


def _stored(server: ProtocolServer) -> list[bytes]:
    return [bytes(flow.data) for flow in server.flows.values()]


# --- receipts in time --------------------------------------------------------------


@pytest.mark.parametrize("as_json", [True, False])
def test_receipts_come_at_once_and_ctrl_c_tells_what_is_durable(
    as_json: bool, tmp_path: Path
) -> None:
    source = directory(tmp_path / "d", 3)
    (source / "large").write_bytes(bytes(8 * MIB))
    begin = f"ingestd: note: {source}/large: ".encode()
    for _ in range(TRIES_MAX):
        note = _note_of_ctrl_c(source, ["--json"] if as_json else [])
        assert note.startswith(begin)
        if b"are durable: resume with --resume" in note:
            break
        # Ctrl-C was faster than the line that says so.
        assert note.endswith(b"nothing of it is durable")
    else:
        pytest.fail("what is durable was never told")


def _note_of_ctrl_c(source: Path, flags: list[str]) -> bytes:
    """Send a directory, and interrupt it once the server has made some of `large` durable."""
    with (
        running() as server,
        start_send(server.address, source, *flags) as process,
    ):
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert all(str(source / f"{n:05}").encode() in line for n, line in enumerate(lines))
        server.behaviour.pause_s = 0.01
        wait_until(lambda: any(0 < f.durable < len(bytes(8 * MIB)) and not f.is_sealed
                                for f in list(server.flows.values())))  # fmt: skip
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
        assert process.returncode == EXIT_INTERRUPTED
        assert out == b""
        (note,) = err.splitlines()
        return note


def test_ctrl_c_by_raw_seals_nothing_and_tells_what_was_under_way(tmp_path: Path) -> None:
    source = directory(tmp_path / "d", 2, 8 * MIB)
    with raw_server.running() as server:
        server.may_read.clear()
        with start_send(server.address, source, "--parallel", "2") as process:
            wait_until(lambda: len(server._threads) == 2)
            time.sleep(0.3)  # so that some of it was sent; less is as good
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=WAIT_S)
        assert process.returncode == EXIT_INTERRUPTED
        assert err.count(b"were sent by protocol raw, without a receipt") == 2
        server.may_read.set()
        wait_until(lambda: server.resets_count == 2)
        assert server.flows == []


def test_receipts_that_cannot_be_written_do_not_stop_the_flows(tmp_path: Path) -> None:
    source = directory(tmp_path / "d", 10)
    with running() as server:
        with Path("/dev/full").open("wb") as full:
            result = subprocess.run(
                [PROGRAM, "send", source, "--to", server.address],
                stdout=full, stderr=subprocess.PIPE, timeout=WAIT_S, check=False,
            )  # fmt: skip
        assert sum(flow.is_sealed for flow in server.flows.values()) == 10
    assert result.returncode == 15
    (line,) = result.stderr.splitlines()
    assert line.startswith(b"ingestd: error: standard output: cannot be written: No space left")


# --- sending again -----------------------------------------------------------------


def test_directory_that_is_sent_again_is_there_once(tmp_path: Path, capsys: Capture) -> None:
    source = directory(tmp_path / "d", 12)
    (source / "empty").touch()
    (source / "copy").write_bytes((source / "00000").read_bytes())
    with running() as server:
        assert send(server.address, source, "--parallel", "3") == 0
        first = {line.split(": ")[0]: line.split(": ")[1] for line in _lines(capsys)}
        assert len(server.flows) == 14
        assert send(server.address, source, "--json") == 0
        again = [json.loads(line) for line in _lines(capsys)]
        assert {r["file"]: r["flow"] for r in again} == first
        assert all(r["already_there"] and r["state"] == "sealed" for r in again)
        (source / "00003").write_bytes(b"changed")
        assert send(server.address, source) == 0
        assert sum("already there" in line for line in _lines(capsys)) == 13
        assert len(server.flows) == 15
        assert b"changed" in _stored(server)
        assert send(server.address, source, "--label", "a=b") == 0
        assert len(server.flows) == 29
        assert send(server.address, source, "--new") == 0
        assert len(server.flows) == 43


def _lines(capsys: Capture) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_other_bytes_of_the_same_name_size_and_time_are_another_flow(
    tmp_path: Path, capsys: Capture
) -> None:
    with running() as server:
        for run in range(2):
            for content in (b"one", b"two", b"six"):
                (tmp_path / "f").write_bytes(content)
                os.utime(tmp_path / "f", ns=(1, 1))
                assert send(server.address, tmp_path / "f") == 0
                assert ("already there" in capsys.readouterr().out) == (run == 1)
        assert sorted(_stored(server)) == [b"one", b"six", b"two"]


def test_files_that_are_the_same_do_not_take_one_flow_from_each_other(tmp_path: Path) -> None:
    paths = []
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        paths.append(tmp_path / str(number) / "f")
        paths[-1].write_bytes(Payload(1, 300_000).data())
        os.utime(paths[-1], ns=(1, 1))
    with running(pause_s=0.001) as server:
        assert send(server.address, *paths, "--parallel", "8") == 0
        assert len(server.flows) == 1
        assert server.counts["replaced"] == 0


def test_directory_goes_on_where_a_killed_sender_was(tmp_path: Path) -> None:
    source = directory(tmp_path / "d", 4)
    (source / "large").write_bytes(Payload(9, 2 * MIB).data())
    with running(pause_s=0.003, piece_bytes_max=16384) as server:
        with start_send(server.address, source) as process:
            wait_until(lambda: any(f.durable > 100_000 for f in list(server.flows.values())))
            process.kill()
        wait_until(lambda: all(f.connection is None or f.is_sealed
                                for f in list(server.flows.values())))  # fmt: skip
        assert len(server.flows) == 5
        server.behaviour.pause_s = 0
        assert send(server.address, source) == 0
        assert len(server.flows) == 5
        assert server.counts["resumes"] == 1
        assert sorted(_stored(server)) == sorted(path.read_bytes() for path in source.iterdir())


def test_state_file_keeps_raw_flows_from_being_sent_again(tmp_path: Path, capsys: Capture) -> None:
    source, state = directory(tmp_path / "d", 6), tmp_path / "state"
    with raw_server.running() as server:
        assert send(server.address, source, "--state", state, "--json") == 0
        first = [json.loads(line) for line in _lines(capsys)]
        assert len(server.flows) == 6
        noted = [json.loads(line) for line in state.read_text().splitlines()]
        assert {line["file"]: line["receipt"]["flow"] for line in noted} == {
            receipt["file"]: receipt["flow"] for receipt in first
        }
        (source / "00002").write_bytes(b"changed")
        with state.open("ab") as writer:
            writer.write(b'{"key": "00')  # as a crash leaves it
        assert send(server.address, source, "--state", state, "--json") == 0
        again = [json.loads(line) for line in _lines(capsys)]
        assert sum(receipt.get("already_there", False) for receipt in again) == 5
        assert server.flows[6:] == [b"changed"]
        assert send(server.address, source, "--state", state) == 0
        assert len(server.flows) == 7


def test_state_file_among_the_files_is_not_sent(tmp_path: Path, capsys: Capture) -> None:
    source = directory(tmp_path / "d", 3)
    with raw_server.running() as server:
        assert send(server.address, source, "--state", source / "state") == 2
        assert len(server.flows) == 3
    assert "state: is the file of --state: keep it elsewhere" in capsys.readouterr().err


def test_state_files_that_cannot_be_used(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "f").write_bytes(b"x")
    (tmp_path / "diary").write_text("dear diary\n")
    assert send("127.0.0.1:1", tmp_path / "f", "--state", tmp_path / "diary") == 2
    assert "line 1 is none that send has written" in capsys.readouterr().err
    assert send("127.0.0.1:1", tmp_path / "f", "--state", tmp_path / "no" / "where") == 2
    assert "cannot be opened: No such file" in capsys.readouterr().err
    with raw_server.running() as server:
        arguments = ["-", "--state", tmp_path / "state"]
        with start_send(server.address, *arguments, stdin=subprocess.PIPE) as process:
            wait_until(lambda: len(server._threads) == 1)
            assert send(server.address, tmp_path / "f", "--state", tmp_path / "state") == 2
            process.communicate(timeout=WAIT_S)
    assert "another command uses it" in capsys.readouterr().err


# --- one odd file does not stop the others -----------------------------------------


def test_odd_files_are_a_line_each(tmp_path: Path, capsys: Capture) -> None:
    source = directory(tmp_path / "d", 5)
    (tmp_path / "d" / "z").mkdir()
    (source / "z" / "last").write_bytes(b"last")
    for name in (b"bad\xff", b"new\nline", b"n" * 255):
        Path(os.fsdecode(bytes(source) + b"/z/" + name)).write_bytes(b"y")
    deep = source / ("x" * 200) / ("y" * 200)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"y")
    (source / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as listener, running() as server:
        directory_fd = os.open(source, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{directory_fd}/socket")
        os.close(directory_fd)
        assert send(server.address, source, "--parallel", "2") == 2
        assert len(server.flows) == 6
    captured = capsys.readouterr()
    assert captured.out.count("sealed and durable") == 6
    lines = captured.err.splitlines()
    for word in ("bad\\udcff", "new\\nline", "n" * 255, "x" * 200, "gone"):
        (line,) = [line for line in lines if word in line]
        assert line.startswith(f"ingestd: error: {source}/")
    for word in ("fifo", "socket"):
        (line,) = [line for line in lines if f"{word}: is not a file: left out" in line]
    assert len(lines) == 7


def test_odd_names_are_sent_by_raw_which_has_none(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    Path(os.fsdecode(bytes(tmp_path) + b"/d/bad\xff")).write_bytes(b"y")
    with raw_server.running() as server:
        assert send(server.address, tmp_path / "d", "--state", tmp_path / "state") == 0
        assert server.flows == [b"y"]


def test_file_that_vanishes_meanwhile(tmp_path: Path) -> None:
    source = directory(tmp_path / "d", 3)
    (source / "00000").write_bytes(bytes(2 * MIB))
    with (
        running(pause_s=0.02) as server,
        start_send(server.address, source) as process,
    ):
        wait_until(lambda: bool(server.flows))
        (source / "00001").unlink()
        server.behaviour.pause_s = 0
        out, err = process.communicate(timeout=WAIT_S)
        assert process.returncode == 2
        assert len(server.flows) == 2
    assert len(out.splitlines()) == 2
    (line,) = err.splitlines()
    assert line.endswith(b"00001: cannot be read: No such file or directory")


def test_file_that_shrinks_while_sent_by_raw_is_not_sealed(tmp_path: Path) -> None:
    source = directory(tmp_path / "d", 3)
    (source / "00000").write_bytes(b"")
    os.truncate(source / "00000", 256 * MIB)
    with raw_server.running() as server:
        server.may_read.clear()
        with start_send(server.address, source) as process:
            wait_until(lambda: len(server._threads) == 1)
            time.sleep(0.4)  # the greeting is not waited for any more, and the sockets are full
            os.truncate(source / "00000", 1000)
            server.may_read.set()
            out, err = process.communicate(timeout=WAIT_S)
        assert process.returncode == 15
        assert len(server.flows) == 2
    assert len(out.splitlines()) == 2
    assert b"00000: ended at byte" in err
    assert b"it became shorter while it was sent" in err


@pytest.mark.parametrize("limit", [11, 16, 24])
def test_short_of_descriptors_fewer_are_sent_at_once(limit: int, tmp_path: Path) -> None:
    source = directory(tmp_path / "d", 40)
    with running() as server:
        command = [PROGRAM, "send", str(source), "--to", server.address, "--parallel", "32"]
        result = subprocess.run(
            ["bash", "-c", f'ulimit -n {limit}; exec "$@"', "-", *command],
            capture_output=True, timeout=WAIT_S, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert len(server.flows) == 40
    assert len(result.stdout.splitlines()) == 40
    (line,) = result.stderr.splitlines()
    assert line.endswith(b"fewer flows than --parallel says are sent at once")


@pytest.mark.parametrize("threads_max", [2, 3, 7])
def test_short_of_threads_fewer_are_sent_at_once(
    threads_max: int, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, ours = threading.Thread.start, []

    def start_or_fail(thread: threading.Thread) -> None:
        if "ingestd" in thread.name:
            ours[:] = [one for one in ours if one.is_alive()]
            if len(ours) >= threads_max:
                raise RuntimeError("can't start new thread")
            ours.append(thread)
        start(thread)

    source = directory(tmp_path / "d", 20)
    with running() as server:
        monkeypatch.setattr(threading.Thread, "start", start_or_fail)
        assert send(server.address, source, "--parallel", "8") == 0
        monkeypatch.undo()
        assert len(server.flows) == 20
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 20
    assert "can't start new thread: fewer flows than --parallel" in captured.err


def test_without_any_thread_it_is_an_error(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    (tmp_path / "f").write_bytes(b"x")
    monkeypatch.setattr(threading.Thread, "start", fail)
    assert send("127.0.0.1:1", tmp_path / "f") == 13
    assert capsys.readouterr().err == "ingestd: error: cannot begin: can't start new thread\n"


def test_buffer_that_cannot_be_had(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server, Path("/dev/null").open() as null:
        monkeypatch.setattr("sys.stdin", null)
        assert send(server.address, "-", "--buffer", "100TiB") == 13
    assert "no memory for a buffer of 100 TiB" in capsys.readouterr().err


# --- memory ----------------------------------------------------------------------

# Runs a command, and prints the most memory that it had, in KiB.
MEASURED = """
import sys
from pathlib import Path
from ingestd.cli import main
code = main(sys.argv[1:])
(peak,) = [line for line in Path("/proc/self/status").read_text().split("\\n") if "VmHWM" in line]
print(peak.split()[1], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("is_raw", [True, False])
def test_memory_does_not_grow_with_the_number_of_files(is_raw: bool, tmp_path: Path) -> None:
    peaks_kib = []
    for count in (20, 600):
        source = directory(tmp_path / str(count), count, 100)
        for number in range(count // 10):
            (source / f"empty{number}").touch()
        with raw_server.running() if is_raw else running() as server:
            result = subprocess.run(
                [sys.executable, "-c", MEASURED, "send", source, "--to", server.address,
                 "--parallel", "2"],
                capture_output=True, timeout=120, check=False,
            )  # fmt: skip
            assert result.returncode == 0, result.stderr
            assert len(server.flows) == count + count // 10
        peaks_kib.append(int(result.stderr))
    assert peaks_kib[1] - peaks_kib[0] < 32 * 1024, peaks_kib


def test_finding_files_holds_few_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is SORTED_COUNT entries a directory, however many there are."""
    monkeypatch.setattr("ingestd.cli.send_input.SORTED_COUNT", 10)
    from ingestd.cli import send_input

    source = directory(tmp_path / "d", 100, 0)
    found = send_input.inputs([str(source)])
    names = [next(found).name for _ in range(10)]
    assert names == sorted(names)  # type: ignore[type-var]
    names += [item.name for item in found]
    assert sorted(names) == [f"d/{n:05}" for n in range(100)]  # type: ignore[type-var]
