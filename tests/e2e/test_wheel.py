# SPDX-License-Identifier: Apache-2.0
"""`make wheel`: what it makes installs and runs where there is no compiler and no library."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd import __version__

ROOT = Path(__file__).resolve().parents[2]
BUILD_TIMEOUT_S = 1500
COMMAND_TIMEOUT_S = 300
DATA_BYTES = 300_001
DATA = ("config/ingestd.toml", "config/prometheus-rules.yml", "config/grafana-dashboard.json")

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_S + 600)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, ROOT / "scripts" / "build_wheel.py", directory],
        timeout=BUILD_TIMEOUT_S,
        check=True,
    )
    (made,) = directory.iterdir()
    return made


@pytest.fixture(scope="module")
def prefix(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv that has the wheel, installed with nothing on PATH and from wheels alone."""
    directory = tmp_path_factory.mktemp("venv")
    venv.create(directory, with_pip=True)
    command = [directory / "bin" / "pip", "install", "-qq", "--only-binary", ":all:", wheel]
    environment = _without_programs()
    subprocess.run(command, env=environment, timeout=BUILD_TIMEOUT_S, check=True)
    return directory


def _without_programs() -> dict[str, str]:
    return {**os.environ, "PATH": "/nonexistent", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _run(prefix: Path, *arguments: str | Path) -> bytes:
    """What a command of the installed ingestd prints; it must succeed."""
    done = subprocess.run(
        [prefix / "bin" / "ingestd", *arguments],
        env=_without_programs(),
        capture_output=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def served(prefix: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A store and the address of a daemon that serves it."""
    store, address = tmp_path / "store", f"127.0.0.1:{_free_port()}"
    _run(prefix, "format", store, "--size", "64MiB")
    command = [prefix / "bin" / "ingestd", "serve", "--store", store, "--listen", address]
    with subprocess.Popen(command, env=_without_programs()) as process:
        try:
            _wait_for(process, address)
            yield store, address
        finally:
            process.terminate()
        assert process.wait(COMMAND_TIMEOUT_S) == 0


def _wait_for(process: subprocess.Popen[bytes], address: str) -> None:
    host, _, port = address.partition(":")
    end = time.monotonic() + COMMAND_TIMEOUT_S
    while time.monotonic() < end:
        assert process.poll() is None, "the daemon has ended"
        with socket.socket() as sock:
            if sock.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.05)
    pytest.fail("the daemon does not listen")


def test_the_wheel_runs_without_compiler_and_libraries(
    prefix: Path, served: tuple[Path, str], tmp_path: Path
) -> None:
    store, address = served
    assert _run(prefix, "--version").decode().split()[-1] == __version__
    file, data = tmp_path / "file", random.Random(7).randbytes(DATA_BYTES)
    file.write_bytes(data)
    receipt = _run(prefix, "send", file, "--to", address, "--json").decode()
    assert f'"bytes": {DATA_BYTES}' in receipt, receipt
    flow = receipt.partition('"flow": "')[2].partition('"')[0]
    assert _run(prefix, "cat", store, flow) == data


def test_its_libraries_are_its_own(prefix: Path) -> None:
    """The core is linked with those inside the wheel, whatever else is on the machine."""
    script = "import ingestd.core._core; print(open('/proc/self/maps').read())"
    maps = subprocess.run(
        [prefix / "bin" / "python", "-P", "-c", script],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=True,
    ).stdout
    loaded = {line.split()[-1] for line in maps.splitlines() if "uring" in line or "isal" in line}
    mapped = {path for path in loaded if path.startswith("/")}
    assert len(mapped) == 2
    assert all(path.startswith(str(prefix)) for path in mapped), mapped


def test_what_is_in_the_wheel(wheel: Path, prefix: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [n for n in names if n.endswith((".h", ".c", ".pyx", "meson.build"))] == []
    assert {n.rpartition("/")[2] for n in names if "/licenses/" in n} >= {"liburing", "libisal"}
    units = [f"systemd/{path.name}" for path in (ROOT / "systemd").iterdir()]
    for name in (*DATA, *units):
        installed = prefix / "share" / "ingestd" / name
        assert installed.read_bytes() == (ROOT / name).read_bytes(), name
