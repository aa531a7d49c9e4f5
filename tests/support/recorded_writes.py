# SPDX-License-Identifier: Apache-2.0
"""What the store's Python side writes, kept in order, to be cut off by a power failure later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from ingestd.store.device.device import Device
from support.crash_disk import Disk


@dataclass
class RecordedWrites:
    """Writes, by byte of the store, in their order; None is a flush."""

    done: list[tuple[int, bytes] | None] = field(default_factory=list)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what every device is asked for meanwhile, and do it."""
        write = Device.write_aligned

        def noted(device: Device, offset: int, buffer: memoryview) -> None:
            self.done.append((offset, bytes(buffer)))
            write(device, offset, buffer)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Device, "write_aligned", noted)
            patch.setattr(Device, "sync", lambda _device: self.done.append(None))
            yield

    def replay(self, disk: Disk, end: int, first_number: int = 0) -> None:
        """Do the first `end` of them to a disk; their numbers begin with `first_number`."""
        for number, write in enumerate(self.done[:end], first_number):
            if write is None:
                disk.flush(number)
                disk.flushed(number)
            else:
                disk.submit(number, *write)
                disk.complete(number, len(write[1]))
