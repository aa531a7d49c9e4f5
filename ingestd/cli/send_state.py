# SPDX-License-Identifier: Apache-2.0
"""The bytes acknowledged to a sender, in a file: they are not sent again, by any protocol.

Invariants:
 - A line is written and on stable media before the receipt is shown.
 - Lines are only added. One that a crash cut off, the last, counts for nothing.
 - Memory: some 100 bytes for each line, as all are known by their key.

Owned by the main thread; find() may be called by any while nothing is added.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import uuid
from pathlib import Path
from typing import Final

from ingestd.address import Address
from ingestd.client.repeat import file_flow_id
from ingestd.errors import SystemCallError, UsageError
from ingestd.protocol.receipt import Receipt, parse_receipt

LINE_BYTES_MAX: Final = 64 * 1024


class SendState:
    """An open state file; another command that wants it is refused meanwhile."""

    def __init__(self, path: str, address: Address) -> None:
        self._path = path
        self._address = address
        self._lock = threading.Lock()
        self._offsets: dict[bytes, int] = {}  # of lines, by the key that they have
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--state {path}: another command uses it at this moment") from None
        except OSError as error:
            raise UsageError(f"--state {path}: cannot be opened: {error.strerror}") from None
        self._is_cut = self._load()

    def close(self) -> None:
        """Let other commands have the file."""
        os.close(self._fd)

    def is_itself(self, status: os.stat_result) -> bool:
        """Return whether a file is this one, which changes with each receipt."""
        here = os.fstat(self._fd)
        return (here.st_dev, here.st_ino) == (status.st_dev, status.st_ino)

    def key(self, path: str, status: os.stat_result) -> bytes:
        """Return what a file is known by: where it lies, its size and time of change."""
        name = json.dumps([str(self._address), str(Path(path).absolute())])
        return uuid.UUID(file_flow_id(name, status.st_size, status.st_mtime_ns)).bytes

    def find(self, key: bytes) -> Receipt | None:
        """Return the receipt that was given for the file, if one was."""
        with self._lock:
            offset = self._offsets.get(key)
        if offset is None:
            return None
        line = os.pread(self._fd, LINE_BYTES_MAX, offset).partition(b"\n")[0]
        return parse_receipt(json.dumps(json.loads(line)["receipt"]).encode())

    def add(self, key: bytes, path: str, receipt: Receipt) -> None:
        """Write down a receipt. Raises SystemCallError: then it may not be there."""
        row = {"key": key.hex(), "file": path, "to": str(self._address)}
        line = json.dumps({**row, "receipt": receipt.as_dict()}).encode() + b"\n"
        with self._lock:
            try:
                offset = os.lseek(self._fd, 0, os.SEEK_END) + self._is_cut
                data = memoryview(b"\n" * self._is_cut + line)
                while data:
                    data = data[os.write(self._fd, data) :]
                os.fdatasync(self._fd)
            except OSError as error:
                self._is_cut = True
                raise SystemCallError(
                    f"--state {self._path}: cannot be written: {error.strerror}:"
                    f" flow {receipt.flow} is sealed all the same"
                ) from None
            self._is_cut = False
            self._offsets[key] = offset

    def _load(self) -> bool:
        """Read all lines; return whether the last one was cut off."""
        offset, line = 0, b""
        with open(self._fd, "rb", closefd=False) as reader:
            for number, line in enumerate(reader, 1):
                if line.endswith(b"\n") and len(line) > 1:
                    self._note(line, offset, number)
                offset += len(line)
        return bool(line) and not line.endswith(b"\n")

    def _note(self, line: bytes, offset: int, number: int) -> None:
        try:
            row = json.loads(line)
            self._offsets[bytes.fromhex(row["key"])] = offset
        except (ValueError, KeyError, TypeError):
            if not line.startswith(b"{"):  # else it was cut off, and more was written later
                raise UsageError(
                    f"--state {self._path}: line {number} is none that send has written"
                ) from None
