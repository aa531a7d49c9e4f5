# SPDX-License-Identifier: Apache-2.0
"""The holder record: which process writes to a store, for all who come by another way to it.

Locks keep to the inode or the node that they were taken on. The record lies in the store,
and so is seen by every name of it. Invariants: it proves nothing by being there, as a process
that was killed leaves it behind: it counts only while that very process (boot, number, start)
lives, and only on the file or device that it was written to, as it comes along when a store
is copied. Any thread may call.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestd.store.device.stacking import Layer
from ingestd.store.format.layout import (
    FORMAT_VERSION,
    FORMAT_VERSIONS,
    Layout,
    is_intact,
    sealed,
)

if TYPE_CHECKING:
    from ingestd.store.device.device import Device

HOLDER_MAGIC: Final = b"INGESTHR"
HOLDER_OFFSET: Final = 448 * 1024
PLACES_MAX: Final = 8
PROC: Final = Path("/proc")
_PLACE: Final = struct.Struct("<QQQ")
CONTROL_BYTES_MAX: Final = 1020
_KINDS: Final = {"file": 1 << 63, "device": 0}  # st_dev and st_rdev have no such bit
_ZOMBIES: Final = ("Z", "X")


class HolderRow(NamedTuple):
    """The struct `holder_record` of docs/format.md."""

    magic: bytes
    crc32c: int
    version: int
    store_uuid: bytes
    token: bytes
    boot_id: bytes
    pid: int
    place_count: int
    started_ticks: int
    pid_namespace: int
    places: bytes
    control: bytes


HOLDER_RECORD: Final = Layout(
    "holder_record",
    HolderRow,
    (
        ("magic", "8s"),
        ("crc32c", "I"),
        ("version", "I"),
        ("store_uuid", "16s"),
        ("token", "16s"),
        ("boot_id", "16s"),
        ("pid", "I"),
        ("place_count", "I"),
        ("started_ticks", "Q"),
        ("pid_namespace", "Q"),
        ("places", f"{PLACES_MAX * _PLACE.size}s"),
        ("control", f"{CONTROL_BYTES_MAX}s"),
        ("zero", "2796x"),
    ),
)

# Of records that this process wrote and whose stores it has not closed.
_own_tokens: set[bytes] = set()
_own_mutex = threading.Lock()


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds, or held, a store. `places`: where its record was written."""

    token: bytes
    boot_id: bytes
    pid: int
    started_ticks: int
    pid_namespace: int
    places: tuple[tuple[int, int, int], ...]
    control: str = ""  # path of its control socket; empty: it has none

    def is_at(self, layers: Sequence[Layer]) -> bool:
        """Return whether the record was written here, and did not come along with a copy."""
        return not set(self.places).isdisjoint(_places(layers))

    def is_unseen(self) -> bool:
        """Return whether the process may be there where this one cannot look."""
        return self.boot_id == _boot_id() and self.pid_namespace != _pid_namespace()

    def lives(self, proc: Path = PROC) -> bool:
        """Return whether the process is known to be there still, and to hold the store."""
        if self.boot_id != _boot_id() or self.boot_id == bytes(16):
            return False
        if self.pid_namespace == _pid_namespace():
            if self.pid == os.getpid():
                with _own_mutex:
                    return self.token in _own_tokens
            return _is_alive(self.pid, self.started_ticks, proc)
        return any(_is_alive(pid, self.started_ticks, proc) for pid in _outer_pids(self.pid, proc))


def write_holder(device: Device, store_uuid: bytes, control: str = "") -> None:
    """Write this process's record, valid until the device is closed. Raises StoreError.

    `control`: the path of the control socket by which the process is asked.

    take_claim() comes before. It is not flushed: with the machine, the process is gone as well.
    """
    token = device.token = secrets.token_bytes(16)
    with _own_mutex:
        _own_tokens.add(token)
    device.on_close.append(lambda: _forget(token))
    places = _places(device.layers)
    row = HolderRow(
        magic=HOLDER_MAGIC,
        crc32c=0,
        version=FORMAT_VERSION,
        store_uuid=store_uuid,
        token=token,
        boot_id=_boot_id(),
        pid=os.getpid(),
        place_count=len(places),
        started_ticks=_started_ticks(os.getpid(), PROC)[0],
        pid_namespace=_pid_namespace(),
        places=b"".join(_PLACE.pack(*place) for place in places),
        control=os.fsencode(control),
    )
    block = sealed(HOLDER_RECORD.pack(row))
    device.write(HOLDER_OFFSET, block.ljust(device.align_bytes, b"\0"))


def _forget(token: bytes) -> None:
    """Let this process's record count no more: the store is closed."""
    with _own_mutex:
        _own_tokens.discard(token)


def read_holder(device: Device) -> Holder | None:
    """Return what the record says; None if there is none. Raises StoreDamagedError."""
    data = device.read(HOLDER_OFFSET, HOLDER_RECORD.size_bytes)
    if len(data) < HOLDER_RECORD.size_bytes or not data.startswith(HOLDER_MAGIC):
        return None
    row = HOLDER_RECORD.unpack(data)
    if not is_intact(data) or row.version not in FORMAT_VERSIONS or row.place_count > PLACES_MAX:
        return None
    places = tuple(_PLACE.iter_unpack(row.places[: row.place_count * _PLACE.size]))
    control = os.fsdecode(row.control.rstrip(b"\0"))
    return Holder(
        row.token, row.boot_id, row.pid, row.started_ticks, row.pid_namespace, places, control
    )


def _places(layers: Sequence[Layer]) -> list[tuple[int, int, int]]:
    """The store's first byte on each layer, down to where it is not known any more."""
    return [
        (_KINDS[layer.kind] | layer.key[0], layer.key[1], layer.first)
        for layer in layers
        if not layer.is_shared
    ][:PLACES_MAX]


def _boot_id() -> bytes:
    """random(4): new with every boot of the kernel; zeros if it cannot be had."""
    try:
        text = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii")
        return uuid.UUID(text.strip()).bytes
    except (OSError, ValueError):
        return bytes(16)


def _pid_namespace() -> int:
    """pid_namespaces(7): by its inode; 0 if it cannot be had."""
    try:
        return (PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _is_alive(pid: int, started_ticks: int, proc: Path) -> bool:
    ticks, state = _started_ticks(pid, proc)
    if not state:
        return proc == PROC and _is_hidden(pid)
    if ticks != started_ticks:
        return False
    if state not in _ZOMBIES:
        return True
    # The first thread is over; the others may still wait for a device.
    with contextlib.suppress(OSError):
        return len(list((proc / str(pid) / "task").iterdir())) > 1
    return False


def _is_hidden(pid: int) -> bool:
    """Return whether the process is there, though /proc does not show it (hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False  # it could be seen, were it there when it was looked for


def _started_ticks(pid: int, proc: Path) -> tuple[int, str]:
    """proc_pid_stat(5): fields 22 and 3; (0, "") if there is no such process to be seen."""
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return int(fields[19]), fields[0]
    except (OSError, ValueError, IndexError):
        return 0, ""


def _outer_pids(pid: int, proc: Path) -> list[int]:
    """The processes of namespaces below ours that are `pid` to themselves."""
    found = []
    for directory in proc.iterdir() if proc.is_dir() else ():
        if not directory.name.isdecimal():
            continue
        try:
            text = (directory / "status").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        numbers = [line.split()[1:] for line in text.splitlines() if line.startswith("NSpid:")]
        if numbers and len(numbers[0]) > 1 and numbers[0][-1] == str(pid):
            found.append(int(directory.name))
    return found
