# SPDX-License-Identifier: Apache-2.0
"""A daemon under test: `ingestd serve` as a process of its own, as a user runs it.

Invariants: whatever a test does, stop() or kill() leaves no process behind, and
a daemon that does not get ready fails the test with everything that it logged.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from support.patience import WAIT_S

POLL_INTERVAL_S: Final = 0.02
READY_EVENT: Final = "ready"

# The command that the installation under test has put beside its interpreter.
PROGRAM: Final = str(Path(sys.executable).with_name("ingestd"))


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port on which nobody listened a moment ago."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def run_ingestd(
    *arguments: str | os.PathLike[str], code: int = 0, timeout_s: float = WAIT_S
) -> subprocess.CompletedProcess[bytes]:
    """Run one command of ingestd to its end and assert its exit code."""
    result = subprocess.run(
        [PROGRAM, *arguments], capture_output=True, timeout=timeout_s, check=False
    )
    assert result.returncode == code, (
        f"ingestd {arguments[0]}: exit code {result.returncode}, not {code}:"
        f" {result.stderr.decode(errors='replace')}"
    )
    return result


def format_store(path: Path, *flags: str, size: str = "64MiB") -> Path:
    """Make a store in a preallocated file and return its path."""
    run_ingestd("format", path, "--size", size, *flags)
    return path


@dataclass
class Daemon:
    """One run of `ingestd serve` on a store that exists; use it as a context manager."""

    store: Path
    flags: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    config: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    metrics_port: int = 0
    wrapper: tuple[str, ...] = ()  # a command that runs the rest of its command line
    log: Path | None = None  # default: beside the store, which must not be a device then
    log_path: Path = field(init=False)
    control: Path = field(init=False)  # the control socket
    process: subprocess.Popen[bytes] = field(init=False)
    # Those of one test may have one store.
    _number: int = field(default_factory=itertools.count().__next__, init=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def address(self) -> tuple[str, int]:
        """Where the raw listener accepts flows."""
        return self.host, self.port

    @property
    def metrics_url(self) -> str:
        """Where the metrics are."""
        return f"http://{self.host}:{self.metrics_port}/metrics"

    def start(self) -> None:
        """Start the daemon and wait until it says that it is ready.

        The kernel chooses the ports, once: one that was free a moment ago may be
        somebody else's when the daemon binds it.
        """
        self.log_path = self.log or self.store.with_name(self.store.name + ".log")
        shown_host = f"[{self.host}]" if ":" in self.host else self.host
        command = [PROGRAM, "serve", "--store", str(self.store)]
        command += ["--listen", f"{shown_host}:{self.port}"]
        command += ["--metrics", f"{shown_host}:{self.metrics_port}"]
        self.control = self.log_path.with_suffix(f".control-{self._number}")
        command += ["--control", str(self.control)]
        if self.config is not None:
            command += ["-c", str(self.config)]
        self.log_path.touch()
        starts_before = len(self.events(READY_EVENT))
        self._launch([*self.wrapper, *command, *self.flags])
        self._wait_until_ready(starts_before)
        _, self.port = self.listener("default")
        _, self.metrics_port = self.listener("metrics")

    def _launch(self, command: list[str]) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )

    def listener(self, name: str) -> tuple[str, int]:
        """Return where a listener of the configuration, or "metrics", was bound."""
        *_, line = (line for line in self.events("listening") if line["listener"] == name)
        host, _, port = line["address"].rpartition(":")
        return host.strip("[]"), int(port)

    def _wait_until_ready(self, starts_before: int) -> None:
        limit = time.monotonic() + WAIT_S
        while len(self.events(READY_EVENT)) == starts_before:
            if self.process.poll() is not None or time.monotonic() > limit:
                self.kill()
                raise AssertionError(
                    f"the daemon did not get ready (exit code {self.process.returncode}):\n"
                    + self.log_path.read_text(errors="replace")
                )
            time.sleep(POLL_INTERVAL_S)

    def log_lines(self) -> list[dict[str, Any]]:
        """Return every JSON line of the log so far, of this run and of earlier ones."""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log's lines of one event."""
        return [line for line in self.log_lines() if line.get("event") == name]

    def stop(self, timeout_s: float = WAIT_S) -> int:
        """Ask the daemon to end by SIGTERM and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon did not stop within {timeout_s} s") from None

    def kill(self) -> None:
        """End the daemon at once by SIGKILL, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
