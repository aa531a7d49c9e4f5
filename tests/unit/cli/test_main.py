# SPDX-License-Identifier: Apache-2.0
"""The command line without a store: usage, exit codes, streams, serve, send, check-config."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import tomllib
import types
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ingestd
from ingestd import errors
from ingestd.cli import main
from ingestd.cli.main import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, exit_codes
from ingestd.cli.output import print_pairs, print_table, progress_bar, short_time
from ingestd.errors import IngestdError
from support.patience import WAIT_S

FLOW = str(uuid.UUID(int=9))
Capture = pytest.CaptureFixture[str]


def _environment(variables: dict[str, str] | None = None) -> dict[str, str]:
    """Our own, in which a program finds the ingestd that is under test here."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": paths, **(variables or {})}


def _program(
    *arguments: str, variables: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ingestd", *arguments]
    return subprocess.Popen(command, env=_environment(variables), **options)


def _one_error(text: str) -> str:
    """The sentence of the only error line."""
    (line,) = [line for line in text.splitlines() if not line.startswith(("usage:", "  "))]
    assert line.startswith("ingestd: error: ")
    return line.removeprefix("ingestd: error: ")


# --- usage and exit codes --------------------------------------------------------


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"ingestd {ingestd.__version__}\n"


def _error_classes() -> list[type[IngestdError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [kind for kind in found if issubclass(kind, IngestdError)]


def test_help_lists_the_exit_code_of_every_error(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out.partition("exit codes:\n")[2].splitlines()
    told = {int(line.split()[0]): line.split(maxsplit=1)[1] for line in listed}
    assert told == exit_codes()
    for kind in _error_classes():
        if kind is not IngestdError:
            assert kind.__doc__ is not None
            assert told[kind.exit_code] == kind.__doc__.splitlines()[0].rstrip(".")
    assert len({kind.exit_code for kind in _error_classes()}) == len(_error_classes())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "the following arguments are required: COMMAND; ingestd --help lists"),
        (["lss"], "invalid choice: 'lss'"),
        (["lss"], 'did you mean "ls"?'),
        (["nic", "aply", "eth0"], 'did you mean "apply"?'),
        (["inspect"], "required: STORE"),
        (["ls", "x", "--jso"], "unrecognized arguments: --jso"),
        (["send", "x"], "required: --to"),
        (["send", "x", "--to", "y"], "'y' is not an address"),
        (["format", "x", "--size", "4G"], "'4G' is ambiguous: write 4GiB"),
        (["format", "x", "--label", "a\nb"], "a label is text of at most 64 bytes"),
        (["format", "x", "--label", "ä" * 33], "a label is text of at most 64 bytes"),
        (["cat", "x", "y", "--offset", "-1"], "'-1' is not a size"),
        (["check-config"], "required: -c"),
    ],
)
def test_usage_errors(arguments: list[str], problem: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert problem in _one_error(captured.err)
    assert captured.out == ""


@pytest.fixture
def fake_serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], int]], None]:
    """A function that puts another serve() in the daemon's place."""

    def replace(serve: Callable[[Any], int]) -> None:
        module = types.ModuleType("ingestd.daemon.main")
        module.serve = serve  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "ingestd.daemon.main", module)

    return replace


SERVE = ["serve", "--store", "/var/none", "--listen", "127.0.0.1:0"]


@pytest.mark.parametrize("kind", _error_classes())
def test_errors_become_one_sentence_and_their_code(
    kind: type[IngestdError], fake_serve: Any, capsys: Capture
) -> None:
    def serve(_settings: Any) -> int:
        raise kind("the store is on fire: use another")

    fake_serve(serve)
    assert main(SERVE) == kind.exit_code
    captured = capsys.readouterr()
    assert captured.err == "ingestd: error: the store is on fire: use another\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), EXIT_INTERRUPTED, ""),
        (BrokenPipeError(), EXIT_BROKEN_PIPE, ""),
        (OSError(28, "No space left on device", "file"), 15, "file: No space left on device"),
        (OSError(28, "No space left on device"), 15, "a system call: No space left"),
        (MemoryError(), 13, "memory ran out"),
    ],
)
def test_what_a_machine_can_do_is_no_traceback(
    error: BaseException, code: int, told: str, fake_serve: Any, capsys: Capture
) -> None:
    def serve(_settings: Any) -> int:
        raise error

    fake_serve(serve)
    assert main(SERVE) == code
    assert told in capsys.readouterr().err


def test_bugs_are_loud(fake_serve: Any) -> None:
    def serve(_settings: Any) -> int:
        raise AssertionError("an invariant")

    fake_serve(serve)
    with pytest.raises(AssertionError, match="an invariant"):
        main(SERVE)


# --- serve and check-config ------------------------------------------------------


def test_serve_hands_settings_over_and_the_code_back(fake_serve: Any, tmp_path: Path) -> None:
    seen: list[Any] = []

    def serve(settings: Any) -> int:
        seen.append(settings)
        return 9

    path = tmp_path / "c.toml"
    path.write_text('[log]\nlevel = "debug"\n[store.default]\npath = "/var/other"\n')
    fake_serve(serve)
    flags = ["-c", str(path), "--metrics", "*:9", "--engine", "recv"]
    assert main([*SERVE, *flags]) == 9
    (settings,) = seen
    assert settings.store["default"].path == "/var/none"
    assert settings.listener["default"].address == "127.0.0.1:0"
    assert settings.metrics.address == "*:9"
    assert settings.engine.kind == "recv"
    assert settings.log.level == "debug"


def test_serve_with_nothing_says_what_is_missing(capsys: Capture) -> None:
    assert main(["serve"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "--store PATH" in lines[0]
    assert "--listen HOST:PORT" in lines[1]
    assert all(line.startswith("ingestd: error: ") for line in lines)


def test_check_config_prints_a_configuration(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[store.a]\npath = "/var/a"\n[listener.b]\naddress = "*:7"\n')
    assert main(["check-config", "-c", str(path)]) == 0
    tables = tomllib.loads(capsys.readouterr().out)
    assert tables["listener"]["b"] == {
        "address": "*:7",
        "protocol": "raw",
        "store": "a",
        "stores": [],
        "placement": "spread",
        "keep_empty": True,
        "idle_timeout_s": 300.0,
        "connections_max": 10000,
        "connections_per_peer_max": 0,
        "allow": [],
        "hello_timeout_s": 10.0,
        "ack_interval_s": 0.2,
        "flow_bytes_max": "0",
        "retain_for_s": 0.0,
        "retain_bytes": "0",
    }
    path.write_text("[store.a]\nworker = 1\n")
    assert main(["check-config", "-c", str(path)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert 'did you mean "workers"?' in captured.err


def test_check_config_opens_key_files(tmp_path: Path, capsys: Capture) -> None:
    path, keys = tmp_path / "c.toml", tmp_path / "keys.toml"
    listeners = "".join(
        f'[listener.{name}]\naddress = "*:{port}"\nprotocol = "ingest"\nkey_file = "{file}"\n'
        for name, port, file in (("b", 7, keys), ("c", 8, tmp_path / "none"))
    )
    path.write_text(f'[store.a]\npath = "/var/a"\n{listeners}')
    keys.touch(0o600)
    keys.write_text('[key]\nlab = "short"\n')
    assert main(["check-config", "-c", str(path)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert f"{path}: listener.b.key_file: {keys}: key.lab: must be" in first
    assert f"{path}: listener.c.key_file: {tmp_path / 'none'}: cannot be read" in second
    keys.write_text(f'[key]\nlab = "{"0" * 32}"\n')
    path.write_text(path.read_text().replace(str(tmp_path / "none"), str(keys)))
    assert main(["check-config", "-c", str(path)]) == 0
    assert "0" * 32 not in capsys.readouterr().out


# --- send ------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[int]:
    """The port of a made-up daemon that seals what comes, one connection after the other."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        _seal(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(WAIT_S)


def _seal(connection: socket.socket) -> None:
    count = 0
    while piece := connection.recv(1 << 16):
        count += len(piece)
    line = {"flow": FLOW, "bytes": count, "durable": True, "state": "sealed", "checksum": None}
    connection.sendall(json.dumps(line).encode() + b"\n")


def test_send_file(receiver: int, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    to = f"127.0.0.1:{receiver}"
    assert main(["send", str(tmp_path / "f"), "--to", to]) == 0
    captured = capfd.readouterr()
    assert captured.out.startswith(f"{FLOW}: sealed and durable at {to}, 97.6 KiB (100000 bytes)")
    assert captured.err == ""
    assert main(["send", str(tmp_path / "f"), "--to", to, "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {
        "flow": FLOW,
        "bytes": 100_000,
        "durable": True,
        "state": "sealed",
        "checksum": None,
    }


def test_send_standard_input(receiver: int) -> None:
    with _program(
        "send", "-", "--to", f"127.0.0.1:{receiver}", "--json",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        out, err = process.communicate(b"a" * 300_000, timeout=WAIT_S)
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out)["bytes"] == 300_000


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["send", "none", "--to", "127.0.0.1:1"], 2, "none: cannot be opened: No such file"),
        (["send", "-", "--to", "*:1"], 2, "--to *:1: name one host and a port from 1 up"),
        (["send", "-", "--to", "127.0.0.1:0"], 2, "--to 127.0.0.1:0: name one host"),
        (["send", "/dev/null", "--to", "127.0.0.1:1", "--retry", "0"], 14, "1: cannot connect"),
    ],
)
def test_send_errors(
    arguments: list[str], code: int, problem: str, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    assert problem in _one_error(capsys.readouterr().err)


def test_interrupt_from_the_keyboard_is_130_and_quiet(receiver: int) -> None:
    with _program(
        "send", "-", "--to", f"127.0.0.1:{receiver}",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        _wait_until_connected(process.pid, receiver)
        _wait_until_idle(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == EXIT_INTERRUPTED
        assert process.stderr is not None
        assert process.stderr.read() == b""


def _wait_until_connected(pid: int, port: int) -> None:
    """Until a socket of the process is connected: then its command runs."""
    deadline_s = time.monotonic() + WAIT_S
    remote = f":{port:04X}"
    while time.monotonic() < deadline_s:
        rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        inodes = {f"socket:[{row[9]}]" for row in rows if row[2].endswith(remote)}
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()) in inodes:
                    return
        time.sleep(0.01)
    raise AssertionError("the program did not connect")


def _wait_until_idle(pid: int) -> None:
    """Until the process waits for input: an interrupt in the middle of an import may get lost."""
    deadline_s = time.monotonic() + WAIT_S
    seen: list[list[str]] = []
    while time.monotonic() < deadline_s:
        # State, and the times used in user and in kernel mode: proc_pid_stat(5).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seen.append([fields[0], *fields[11:13]])
        if len(seen) > 3 and all(look == ["S", *seen[-1][1:]] for look in seen[-4:]):
            return
        time.sleep(0.05)
    raise AssertionError("the program is never idle")


# --- output ----------------------------------------------------------------------


def test_reader_that_goes_away_is_quiet() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with _program("--help", stdout=write_fd, stderr=subprocess.PIPE) as process:
        _, err = process.communicate(timeout=WAIT_S)
    os.close(write_fd)
    assert err == b""
    config = Path(__file__).parents[3] / "config" / "ingestd.toml"
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with _program(
        "check-config", "-c", str(config), stdout=write_fd, stderr=subprocess.PIPE
    ) as process:
        _, err = process.communicate(timeout=WAIT_S)
    os.close(write_fd)
    assert (process.returncode, err) == (EXIT_BROKEN_PIPE, b"")


def test_output_in_another_script_needs_no_locale(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[store.a]\npath = "/var/Ω"\n[listener.b]\naddress = "*:7"\n', "utf-8")
    with _program(
        "check-config", "-c", str(config), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        variables={"PYTHONIOENCODING": "ascii"},
    ) as process:  # fmt: skip
        out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, err) == (0, b"")
    assert b"/var/\\u03a9" in out


def test_full_disk_under_the_output_is_told() -> None:
    config = Path(__file__).parents[3] / "config" / "ingestd.toml"
    with (
        Path("/dev/full").open("wb") as full,
        _program("check-config", "-c", str(config), stdout=full, stderr=subprocess.PIPE) as process,
    ):
        _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == errors.SystemCallError.exit_code
    assert "No space left on device" in _one_error(err.decode())


@pytest.mark.parametrize("command", [["--version"], ["ls", "/dev/null/none"], SERVE])
def test_commands_import_what_they_need_and_no_more(command: list[str]) -> None:
    """Start-up time and the daemon's memory are kept by this list."""
    heavy = {"pydantic", "structlog", "tqdm", "tomli_w", "prometheus_client", "asyncio", "rich"}
    allowed = {"pydantic"} if command is SERVE else set[str]()
    program = (
        "import sys, types; fake = types.ModuleType('ingestd.daemon.main')\n"
        "fake.serve = lambda s: 0\n"
        "sys.modules['ingestd.daemon.main'] = fake\n"
        "from ingestd.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *command],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_S,
        env=_environment(),
    )
    assert heavy & set(result.stderr.splitlines()) <= allowed


def test_table_lines_up_and_cannot_be_steered(capsys: Capture) -> None:
    rows = [("a", "1", "x"), ("bbb", "1000", "\x1b[31m\nfaked")]
    print_table(("NAME", "BYTES", "PEER"), rows, right=frozenset({"BYTES"}))
    assert capsys.readouterr().out.splitlines() == [
        "NAME  BYTES  PEER",
        "a         1  x",
        "bbb    1000  \\x1b[31m\\nfaked",
    ]


def test_pairs(capsys: Capture) -> None:
    print_pairs([("size", 1), ("label", None), ("generation", "\t")])
    assert capsys.readouterr().out == "  size        1\n  generation  \\t\n"


def test_times() -> None:
    assert short_time("2023-11-14T22:13:20.123456Z") == "2023-11-14T22:13:20Z"
    assert short_time(None) == "-"


def test_progress_is_drawn_on_a_terminal_only(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress_bar("flow", 100) as advance:
        advance(100)
    assert capfd.readouterr() == ("", "")
    leader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_bar("unwanted", 1, wanted=False) as advance:
            advance(1)
        with progress_bar("flow\x1b[2J", 1 << 30) as advance:
            advance(1 << 30)
        stream.flush()
        drawn = ""
        # A terminal hands over what has reached it so far, in pieces of its own choice.
        while "100%" not in drawn and select.select([leader], [], [], 5)[0]:
            drawn += os.read(leader, 65536).decode()
    os.close(leader)
    assert "100%" in drawn
    assert "1.00G/1.00G" in drawn
    assert "\x1b[2J" not in drawn
    assert "unwanted" not in drawn
    assert capfd.readouterr().out == ""
