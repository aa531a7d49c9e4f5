# SPDX-License-Identifier: Apache-2.0
"""The ways from a socket to a file that `make compare` measures: bench/ways, one run each.

Invariants: what lies in the file is compared with what was sent, whatever the way; a way
that the kernel refuses is no failure, but has no figure either: WayRefusedError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bench.receivers import BenchError, Job, OneShot, Outcome, write_zeros

DISCARD: Final = "discard"
TCP_ZEROCOPY: Final = "tcp-zerocopy"
WAYS: Final = (
    DISCARD,
    "epoll",
    "uring-multishot",
    "uring-incremental",
    "splice",
    "splice-direct",
    TCP_ZEROCOPY,
)
SOURCE_BYTES: Final = 1 << 20  # SOURCE_BYTES of sender.c: it sends the same bytes again and again
EXIT_REFUSED: Final = 3


class WayRefusedError(BenchError):
    """The kernel refuses a way here; the text is its reason."""


class Way(OneShot):
    """One of WAYS; its file is written once before."""

    closes_when_durable = True

    def __init__(self, name: str, job: Job, program: Path) -> None:
        super().__init__(name, job)
        self.path = job.directory / "way.out"
        self.program = program
        if name == TCP_ZEROCOPY:
            self.sender_flags = ("--copy",)  # pages of files are not mapped a second time

    def prepare(self) -> None:
        """The file as ingestd's store is: as large, and written before."""
        write_zeros(self.path, self.job.file_bytes)

    def command(self) -> list[str | Path]:
        """One connection, one file."""
        return [self.program, f"--way={self.name}", f"--port={self.port}", f"--file={self.path}"]

    def finish(self) -> Outcome:
        """It is timed by itself: said(). Raises BenchError, WayRefusedError."""
        said = self.said()
        if self.name != DISCARD:
            self.check_file()
        counters = {key: float(said[key]) for key in ("user_copied", "kernel_copied")}
        return Outcome(cpu_s=said["user_s"] + said["sys_s"], counters=counters)

    def failure(self, exit_code: int, text: str) -> BenchError:
        """The error of a way that failed, or that the kernel refuses."""
        return (
            WayRefusedError(text) if exit_code == EXIT_REFUSED else super().failure(exit_code, text)
        )

    def check_file(self) -> None:
        """Raise BenchError where the file does not have the sender's bytes in their order."""
        left = self.job.payload_bytes
        with self.path.open("rb") as file:
            first = file.read(min(SOURCE_BYTES, left))
            if not any(first):
                raise BenchError(f"{self.name} wrote nothing")
            left -= len(first)
            while left > 0:
                part = file.read(min(SOURCE_BYTES, left))
                if part != first[: len(part)]:
                    raise BenchError(f"{self.name} wrote other bytes than were sent")
                left -= len(part)
