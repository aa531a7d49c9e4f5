# SPDX-License-Identifier: Apache-2.0
"""Discarding: what is demanded of a device, what is discarded, and when."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest

from ingestd.errors import StoreError
from ingestd.store.device.device import Device
from ingestd.store.reclaim import discard
from ingestd.store.serve.served_store import open_for_serving
from support.store_builder import MIB, Close, Extent, Open, StoreBuilder

FLOWS = [bytes([number]) * 16 for number in range(1, 4)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with a flow in each of three segments."""
    builder = StoreBuilder(segment_count=4)
    for index, flow in enumerate(FLOWS):
        segment = builder.segment(index)
        segment.batch(Open(flow), Extent(flow, b"x" * 5000), Close(flow))
        segment.close()
    return builder.save(tmp_path / "store.img")


class Calls:
    """What the device is asked for, in order; discards are refused from a number on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[object] = []
        self.refused_from = 100
        sync, write = Device.sync, Device.write

        def noted_sync(device: Device) -> None:
            self.done.append("flush")
            sync(device)

        def noted_write(device: Device, offset: int, data: bytes) -> None:
            self.done.append(("write", offset))
            write(device, offset, data)

        monkeypatch.setattr(Device, "sync", noted_sync)
        monkeypatch.setattr(Device, "write", noted_write)
        monkeypatch.setattr(discard.fcntl, "ioctl", self.ioctl)

    def ioctl(self, _fd: int, request: int, argument: bytes) -> None:
        assert request == 0x1277
        self.done.append(("discard", *struct.unpack("QQ", argument)))
        if len(self.discards()) >= self.refused_from:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    def discards(self) -> list[tuple[object, ...]]:
        return [call for call in self.done if isinstance(call, tuple) and call[0] == "discard"]


def test_a_file_keeps_what_was_promised_to_it(path: Path) -> None:
    with (
        open_for_serving(str(path)) as store,
        pytest.raises(StoreError, match="is a file, whose space was promised to it"),
    ):
        store.sweeper.discard_freed()


def test_a_device_that_cannot_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_for_serving(str(path)) as store:
        calls = Calls(monkeypatch)
        calls.refused_from = 1
        monkeypatch.setattr(store._device, "is_block", True)
        with pytest.raises(StoreError, match="cannot discard: Operation not supported"):
            store.sweeper.discard_freed()
        assert calls.done == [("discard", 65536, 384 * 1024)], "only the scratch room is tried"


def test_what_is_free_on_stable_media_is_discarded_but_its_header(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_for_serving(str(path)) as store:
        monkeypatch.setattr(store._device, "is_block", True)
        calls = Calls(monkeypatch)
        store.sweeper.discard_freed()
        store.sweeper.remove(FLOWS[:2], "removed")
        calls.done.clear()
        calls.refused_from = 2
        swept = store.sweeper.sweep(store.sweeper.scan())
        _, *steps = calls.done  # behind the freed record
        assert steps == [
            "flush",
            ("write", MIB),
            ("write", 2 * MIB),
            "flush",
            ("discard", MIB + 4096, MIB - 4096),
            ("discard", 2 * MIB + 4096, MIB - 4096),
        ]
        assert "segment 1 cannot be discarded" in str(swept.discard_error)
        assert store.sweeper.counts.discarded_bytes == MIB - 4096
        assert store.segments_free_count == 3, "it is as good without"
        assert store.sweeper.sweep(store.sweeper.scan()).discard_error is None


def test_unasked_nothing_is_discarded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_for_serving(str(path)) as store:
        calls = Calls(monkeypatch)
        store.sweeper.remove(FLOWS, "removed")
        assert len(store.sweeper.sweep(store.sweeper.scan()).freed) == 3
        assert not calls.discards()
