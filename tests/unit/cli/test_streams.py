# SPDX-License-Identifier: Apache-2.0
"""Standard streams that are closed, full or odd: they end commands, they never change data."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from support.daemon import PROGRAM, format_store

WAIT_S = 60.0
FULL = "/dev/full"

# What a command does behind main()'s first step, with a store of its own to spoil.
SCRIPT = """
import os, sys
from ingestd.cli.output import note, report_error
from ingestd.cli.streams import is_stdout_closed, secure_standard_streams
secure_standard_streams()
with open(sys.argv[1], "wb") as store, open(sys.argv[2], "w") as verdict:
    note("a note")
    report_error("an error")
    print("more", file=sys.stderr)
    os.system("echo of a child; echo of a child >&2")
    try:
        print("a result", flush=True)
        shown = "shown"
    except OSError as error:
        shown = str(error.filename)
    print(store.fileno() > 2, shown, is_stdout_closed(), file=verdict)
os._exit(0)  # main() has its own way of leaving
"""


@pytest.mark.parametrize(
    "closed", [fds for n in range(4) for fds in itertools.combinations((0, 1, 2), n)]
)
def test_nothing_is_written_into_what_takes_a_closed_stream_s_number(
    closed: tuple[int, ...], tmp_path: Path
) -> None:
    store, verdict = tmp_path / "store", tmp_path / "verdict"
    redirections = "".join(f" {fd}>&-" for fd in closed)
    command = f'exec "$@" {redirections}'
    arguments = ["bash", "-c", command, "-", sys.executable, "-c", SCRIPT]
    result = subprocess.run(
        [*arguments, str(store), str(verdict)], capture_output=True, timeout=WAIT_S, check=False
    )
    is_closed = 1 in closed
    shown = "standard output" if is_closed else "shown"
    assert verdict.read_text() == f"True {shown} {is_closed}\n", result.stderr
    assert store.read_bytes() == b""
    assert result.stdout == (b"" if is_closed else b"of a child\na result\n")
    assert (b"a note" in result.stderr) == (2 not in closed)
    assert b"Traceback" not in result.stderr


def _run(tail: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command with its streams as the end of a shell's command line says."""
    return subprocess.run(
        ["bash", "-c", f'exec "$@" {tail}', "-", PROGRAM, *map(str, arguments)],
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["ls", "STORE"], ["ls", "STORE", "--json"],
                  ["info", "STORE"], ["info", "STORE", "--json"], ["verify", "STORE"]],
)  # fmt: skip
@pytest.mark.parametrize(("tail", "why"), [(f">{FULL}", b"No space left"), (">&-", b"Bad file")])
def test_results_that_cannot_be_written_are_no_success(
    arguments: list[str], tail: str, why: bytes, tmp_path: Path
) -> None:
    store = format_store(tmp_path / "store", size="64MiB")
    named = [str(store) if argument == "STORE" else argument for argument in arguments]
    result = _run(tail, *named)
    if arguments == ["ls", "STORE", "--json"]:  # it has nothing to say
        assert (result.returncode, result.stderr) == (0, b"")
        return
    assert result.returncode == 15, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(b"ingestd: error: standard output: " + why)


@pytest.mark.parametrize("tail", ["2>&-", f"2>{FULL}", f">{FULL} 2>{FULL}", "<&- >&- 2>&-"])
def test_errors_that_cannot_be_shown_keep_their_exit_code(tail: str, tmp_path: Path) -> None:
    assert _run(tail, "ls", tmp_path / "none").returncode == 5
    assert _run(tail, "lss").returncode == 2
    assert _run(tail, "send", "x", "--to", "127.0.0.1:1").returncode == 2


def test_results_wait_for_a_reader_of_a_pipe_that_does_not_block() -> None:
    """Whoever has the other end of a pipe, or a child with the same, may make it so."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    got: list[bytes] = []

    def read() -> None:
        time.sleep(0.3)  # until the pipe is full
        while piece := os.read(read_fd, 65536):
            got.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    script = (
        "import sys; from ingestd.cli.output import write_all\n"
        "from ingestd.cli.streams import secure_standard_streams\n"
        "secure_standard_streams(); print('r' * 300_000, flush=True)\n"
        "write_all(1, b'w' * 300_000, 'standard output')"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], stdout=write_fd, timeout=WAIT_S, check=False
    )
    os.close(write_fd)
    reader.join(WAIT_S)
    os.close(read_fd)
    assert result.returncode == 0
    assert b"".join(got) == b"r" * 300_000 + b"\n" + b"w" * 300_000
