# SPDX-License-Identifier: Apache-2.0
"""The journal of changes of an interface, on file before each is made.

Invariants:
 - A change is in the file, and the file on disk, before it is made; so after
   any crash the file names everything that may have to be undone.
 - One process at a time works on an interface: it holds the lock file, and
   the daemon does as long as it serves.
 - After a reboot, or when the interface was made anew, there is nothing left
   to undo, and the file is void.

Owned by whoever holds the lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from ingestd.errors import EngineError, SystemCallError
from ingestd.nic.changes import AnyChange, Change

STATE_DIRECTORY: Final = "/run/ingestd"
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
VERSION: Final = 1
FILE_BYTES_MAX: Final = 1 << 20


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    interface: str
    index: int
    boot_id: str
    changes: list[AnyChange] = []


class Journal:
    """The file of one interface; made by open_journal()."""

    def __init__(self, path: Path, content: _Content) -> None:
        self.path = path
        self._content = content

    @property
    def changes(self) -> list[Change]:
        """The changes made, or about to be, oldest first."""
        return list(self._content.changes)

    def add(self, change: Change) -> None:
        """Write down a change that is about to be made."""
        self._content.changes.append(change)
        self._write()

    def replace_last(self, change: Change) -> None:
        """Write down what the last change turned out to be."""
        self._content.changes[-1] = change
        self._write()

    def drop(self, change: Change) -> None:
        """Forget a change that is undone; without any, the file goes."""
        self._content.changes.remove(change)
        if self._content.changes:
            self._write()
        else:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        text = self._content.model_dump_json(indent=1) + "\n"
        new = self.path.with_suffix(".new")
        try:
            # Root may write into a directory that the daemon's user owns: no link is followed.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(new, flags, 0o644), "w", encoding="ascii") as file:  # noqa: PTH123
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
            _sync_directory(self.path.parent)
        except OSError as error:
            raise SystemCallError(
                f"{self.path} cannot be written ({error.strerror}), and without it nothing of the"
                " interface is changed: name another directory (engine.nic_state_dir, --state-dir)"
            ) from None


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def journal_path(interface: str, directory: str = STATE_DIRECTORY) -> Path:
    """Return where an interface's changes are written down."""
    return Path(directory) / f"nic-{interface}.json"


@contextmanager
def open_journal(interface: str, index: int, directory: str = STATE_DIRECTORY) -> Iterator[Journal]:
    """Lock an interface against others, and yield its journal.

    Raises EngineError if a running ingestd holds it, or if the file is not one of ours.
    """
    path = journal_path(interface, directory)
    with _locked(path.with_suffix(".lock"), interface):
        yield Journal(path, _read(path, interface, index))


@contextmanager
def _locked(path: Path, interface: str) -> Iterator[None]:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SystemCallError(
            f"{path} cannot be opened ({error.strerror}): run as root, or name a directory that can"
            " be written (engine.nic_state_dir, --state-dir)"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise EngineError(
            f"interface {interface} is in the hands of a running ingestd, which undoes what it"
            " changed when it ends: stop it first"
        ) from None
    finally:
        os.close(fd)


def _read(path: Path, interface: str, index: int) -> _Content:
    fresh = _Content(interface=interface, index=index, boot_id=boot_id())
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        return fresh
    except OSError as error:
        raise SystemCallError(f"{path} cannot be read: {error.strerror}") from None
    try:
        content = _Content.model_validate_json(text)
    except ValidationError:
        content = None
    if content is None or content.version != VERSION or content.interface != interface:
        raise EngineError(
            f"{path} does not say what was changed of {interface}: look at"
            f" `ingestd nic check {interface}`, undo by hand what is left, and remove the file"
        )
    if (content.boot_id, content.index) != (fresh.boot_id, fresh.index):
        path.unlink(missing_ok=True)
        return fresh
    return content


def boot_id(path: Path = BOOT_ID) -> str:
    """Return the identity of this run of the kernel."""
    return path.read_text(encoding="ascii").strip()
