# SPDX-License-Identifier: Apache-2.0
"""systemd: notifications, the watchdog's variables, journal fields, the unit files."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd import systemd
from ingestd.config.settings import DaemonSettings
from support.patience import WAIT_S

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "systemd" / "ingestd.service"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(WAIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def _received(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().splitlines()


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert systemd.notify("READY=1") is False
    assert systemd.notify_watchdog() is False


def test_a_manager_that_is_gone_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert systemd.notify("READY=1") is False


def test_what_the_manager_gets(manager: socket.socket) -> None:
    assert systemd.notify_ready("3 flows\nREADY=0")
    assert _received(manager) == ["READY=1", "STATUS=3 flows READY=0"]
    assert systemd.notify_status("x" * 10_000)
    (status,) = _received(manager)
    assert len(status) == len("STATUS=") + systemd.STATUS_CHARS_MAX
    assert systemd.notify_watchdog()
    assert _received(manager) == ["WATCHDOG=1"]
    assert systemd.notify_stopping("draining", 12.5)
    assert _received(manager) == [
        "STOPPING=1",
        "STATUS=draining",
        "EXTEND_TIMEOUT_USEC=12500000",
    ]
    assert systemd.notify_reloading()
    reloading, monotonic = _received(manager)
    assert reloading == "RELOADING=1"
    assert re.fullmatch(r"MONOTONIC_USEC=\d+", monotonic)


@pytest.mark.parametrize(
    ("usec", "pid", "expected_s"),
    [
        ("30000000", None, 30.0),
        ("30000000", "self", 30.0),
        ("30000000", "1", None),  # meant for the parent
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_watchdog(
    usec: str | None, pid: str | None, expected_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(os.getpid()) if value == "self" else value)
    assert systemd.watchdog_timeout_s() == expected_s


def test_a_manager_that_does_not_read_is_not_waited_for(manager: socket.socket) -> None:
    taken = 0
    while systemd.notify("WATCHDOG=1"):
        taken += 1
        assert taken < 100_000
    assert taken > 0
    assert _received(manager) == ["WATCHDOG=1"]
    assert systemd.notify("READY=1"), "there is room again"


def test_a_manager_in_the_abstract_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"ingestd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(WAIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert systemd.notify_starting("recovering", 1.5)
        assert _received(sock) == ["STATUS=recovering", "EXTEND_TIMEOUT_USEC=1500000"]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A journal's socket and its path."""
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(WAIT_S)
        yield sock, path


def test_journal_fields(journal: tuple[socket.socket, str]) -> None:
    sock, path = journal
    sink = systemd.journal_sink(path=path)
    sink(
        {
            "event": "flow_sealed",
            "level": "info",
            "message": "flow_sealed bytes=7",
            "bytes": 7,
            "peer": "[::1]:4000",
        }
    )
    assert sock.recv(4096).decode().splitlines() == [
        "MESSAGE=flow_sealed bytes=7",
        "PRIORITY=6",
        "SYSLOG_IDENTIFIER=ingestd",
        "INGESTD_EVENT=flow_sealed",
        "INGESTD_BYTES=7",
        "INGESTD_PEER=[::1]:4000",
    ]
    sink({"event": "odd", "level": "unheard-of", "message": "two\nlines", "name": "\udcff"})
    data = sock.recv(4096)
    assert data.startswith(b"MESSAGE\n" + (9).to_bytes(8, "little") + b"two\nlines\nPRIORITY=5\n")
    assert data.endswith(b"INGESTD_NAME=\\udcff\n")


def test_a_journal_entry_that_no_datagram_takes(journal: tuple[socket.socket, str]) -> None:
    sock, path = journal
    trace = "x" * 1_000_000
    systemd.journal_sink(path=path)({"event": "big", "message": "big", "trace": trace})
    data, fds, _, _ = socket.recv_fds(sock, 4096, 1)
    assert data == b""
    with os.fdopen(fds[0], "rb") as file:
        assert os.pread(file.fileno(), 2_000_000, 0).endswith(f"INGESTD_TRACE={trace}\n".encode())
        with pytest.raises(PermissionError):
            os.ftruncate(file.fileno(), 0)


def test_without_a_journal_nothing_happens(tmp_path: Path) -> None:
    systemd.journal_sink(path=str(tmp_path / "none"))({"event": "test", "message": "a"})


def test_journal_takes_it() -> None:
    """The real one: where there is none it does nothing, and it must not refuse."""
    systemd.journal_sink()({"event": "test", "level": "debug", "message": "a\nb", "bytes": 1})


def _unit() -> dict[str, list[str]]:
    """Key -> values of the unit, of all sections together."""
    keys: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            keys.setdefault(key, []).append(value)
    return keys


def test_the_unit_fits_the_daemon() -> None:
    unit = _unit()
    assert unit["Type"] == ["notify"]
    assert unit["NotifyAccess"] == ["main"]
    assert unit["LimitMEMLOCK"] == ["infinity"]
    assert unit["ExecReload"] == ["kill -HUP $MAINPID"] or "-HUP" in unit["ExecReload"][0]
    assert int(unit["TimeoutStopSec"][0]) > DaemonSettings().drain_timeout_s
    assert int(unit["WatchdogSec"][0]) >= 20
    assert any("io_uring" in value for value in unit["SystemCallFilter"])
    assert {"AF_INET", "AF_INET6", "AF_UNIX"} <= set(unit["RestrictAddressFamilies"][0].split())


def test_the_unit_names_what_the_other_files_make() -> None:
    unit = _unit()
    (user,) = unit["User"]
    sysusers = (ROOT / "systemd" / "ingestd.sysusers.conf").read_text(encoding="utf-8")
    assert re.search(rf"^u! {user} |^u {user} ", sysusers, re.MULTILINE)
    tmpfiles = (ROOT / "systemd" / "ingestd.tmpfiles.conf").read_text(encoding="utf-8")
    assert re.search(rf"^d /var/lib/ingestd 0\d+ {user} ", tmpfiles, re.MULTILINE)
    config = tomllib.loads((ROOT / "config" / "ingestd.toml").read_text(encoding="utf-8"))
    path = config["store"]["default"]["path"]
    assert path.startswith("/var/lib/ingestd/")
    assert unit["StateDirectory"] == ["ingestd"]


@pytest.mark.needs_root  # it wants a runtime directory, which a user without a session lacks
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Verified with a program that exists, as the unit names the installed one."""
    program = tmp_path / "ingestd"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    text = UNIT.read_text(encoding="utf-8").replace("/usr/bin/ingestd", str(program))
    copy = tmp_path / "ingestd.service"
    copy.write_text(text, encoding="utf-8")
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=one", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.needs_root  # it wants a runtime directory, which a user without a session lacks
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")
def test_the_unit_is_hardened() -> None:
    """The exposure level of systemd-analyze security: 0 is safe, 10 is not."""
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    match = re.search(r"Overall exposure level for ingestd.service: ([0-9.]+)", result.stdout)
    assert match, result.stdout + result.stderr
    assert float(match[1]) <= 3.0, result.stdout
