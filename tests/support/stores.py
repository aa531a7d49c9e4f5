# SPDX-License-Identifier: Apache-2.0
"""Stores to serve, in a file or on a block device, and configurations that name them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomli_w

from ingestd.daemon.machine.limits import locked_memory_limit
from ingestd.sizes import parse_size
from support.daemon import format_store, run_ingestd
from support.loop import loop_device

MIB: Final = 1024 * 1024
BLOCK_BYTES: Final = {"loop512": 512, "loop4096": 4096}


@dataclass
class StoreMaker:
    """Makes stores of one kind below a directory; devices go when the stack is unwound."""

    kind: str  # file, loop512 or loop4096
    directory: Path
    stack: ExitStack

    @classmethod
    def in_file(cls, directory: Path) -> StoreMaker:
        """For stores in files, which need no cleaning up."""
        return cls("file", directory, ExitStack())

    @property
    def is_device(self) -> bool:
        """Return whether the stores lie on block devices."""
        return self.kind in BLOCK_BYTES

    def __call__(self, size_bytes: int, *flags: str, name: str = "store") -> Path:
        """Return the path of a fresh store that has size_bytes."""
        path = self.directory / f"{name}.img"
        if not self.is_device:
            return format_store(path, *flags, size=str(size_bytes))
        device = self.stack.enter_context(loop_device(path, size_bytes, BLOCK_BYTES[self.kind]))
        run_ingestd("format", device, *flags)
        return device


def _bearable(settings: dict[str, Any], limit_bytes: int | None) -> dict[str, Any]:
    """Settings of a store without an area that this user may not lock: the daemon takes less.

    Half of the limit is for what is locked beside it, and for a daemon that is just ending.
    """
    if limit_bytes is None or "area" not in settings:
        return settings
    area_bytes = parse_size(str(settings["area"])) * int(settings.get("workers", 1))
    if area_bytes <= limit_bytes // 2:
        return settings
    return {name: value for name, value in settings.items() if name != "area"}


def write_config(path: Path, **sections: Any) -> Path:
    """Write tables as TOML; `store` and `listener` hold tables by name.

    An area is what the test would like: an ordinary user gets one that it may lock.
    """
    limit_bytes = locked_memory_limit()
    if "store" in sections:
        stores = sections["store"].items()
        sections["store"] = {name: _bearable(store, limit_bytes) for name, store in stores}
    path.write_text(tomli_w.dumps(sections), encoding="utf-8")
    return path


def both_protocols_config(path: Path, *, workers: int = 1, **sections: Any) -> Path:
    """Write settings of a small store with a listener of each protocol: "default" and "ingest"."""
    store = {"area": "8MiB", "write_bytes_max": "64KiB", "workers": workers}
    listeners = {
        "default": {"address": "127.0.0.1:0"},
        "ingest": {"address": "127.0.0.1:0", "protocol": "ingest"},
    }
    return write_config(path, store={"default": store}, listener=listeners, **sections)


def store_config(path: Path, **settings: Any) -> Path:
    """Write settings of the store "default", whose path comes from the command line."""
    return write_config(path, store={"default": settings})
