# SPDX-License-Identifier: Apache-2.0
"""The table of removed flows: whose bytes count no more, though they lie there still.

It is made of sectors that each stand alone, so that a write that is torn into
units of SECTOR_BYTES leaves every one old or new. Invariants: an id never moves
from one sector to another; what add() was given is on stable media when it
returns; a sector that is damaged is neither believed nor written. Whoever holds
the store's lock owns the table; reading is for anyone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from ingestd.errors import StoreError
from ingestd.store.device.device import Device
from ingestd.store.format.layout import FORMAT_UUID_BYTES, FORMAT_VERSION, Layout, sealed
from ingestd.store.format.records import decode_block, is_remains
from ingestd.store.metadata.superblock import Superblock

REMOVAL_MAGIC: Final = b"INGESTRM"
TABLE_OFFSET: Final = 768 * 1024
TABLE_BYTES: Final = 256 * 1024
SECTOR_BYTES: Final = 512
SECTORS_COUNT: Final = TABLE_BYTES // SECTOR_BYTES
SECTOR_FLOWS_MAX: Final = 29
FLOWS_MAX: Final = SECTORS_COUNT * SECTOR_FLOWS_MAX
_NEVER_WRITTEN: Final = bytes(SECTOR_BYTES)
_EMPTY_TABLE: Final = bytes(TABLE_BYTES)


class RemovalRow(NamedTuple):
    """The struct `removal_sector` of docs/format.md."""

    magic: bytes
    crc32c: int
    version: int
    store_uuid: bytes
    flow_count: int
    flows: bytes


REMOVAL_SECTOR: Final = Layout(
    "removal_sector",
    RemovalRow,
    (
        ("magic", "8s"),
        ("crc32c", "I"),
        ("version", "I"),
        ("store_uuid", "16s"),
        ("flow_count", "I"),
        ("reserved", "4x"),
        ("flows", f"{SECTOR_FLOWS_MAX * FORMAT_UUID_BYTES}s"),
        ("zero", "8x"),
    ),
)


class Tombstones:
    """The ids of removed flows. `damaged`: the numbers of sectors that are not whole."""

    def __init__(self, device: Device, superblock: Superblock, data: bytes) -> None:
        self._device = device
        self._store_uuid = superblock.store_uuid
        self._data = bytearray(data.ljust(TABLE_BYTES, b"\0"))
        self.damaged: tuple[int, ...] = ()
        self._sectors: list[list[bytes]] = [[] for _ in range(SECTORS_COUNT)]
        self._sector_of: dict[bytes, int] = {}
        if self._data != _EMPTY_TABLE:  # of most stores nothing was ever removed
            for number in range(SECTORS_COUNT):
                self._decode(number)

    def _decode(self, number: int) -> None:
        sector = bytes(self._data[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES])
        if sector == _NEVER_WRITTEN:
            return
        row = decode_block(REMOVAL_SECTOR, REMOVAL_MAGIC, sector, self._store_uuid)
        if row is not None and row.flow_count <= SECTOR_FLOWS_MAX:
            for at in range(0, row.flow_count * FORMAT_UUID_BYTES, FORMAT_UUID_BYTES):
                flow = row.flows[at : at + FORMAT_UUID_BYTES]
                self._sectors[number].append(flow)
                self._sector_of[flow] = number
        elif is_remains(sector, REMOVAL_MAGIC, self._store_uuid, None):
            self.damaged += (number,)

    @property
    def flows(self) -> frozenset[bytes]:
        """The ids of all removed flows of which a segment may hold something."""
        return frozenset(self._sector_of)

    @property
    def room_count(self) -> int:
        """The number of ids that still fit in."""
        usable = (flows for n, flows in enumerate(self._sectors) if n not in self.damaged)
        return sum(SECTOR_FLOWS_MAX - len(flows) for flows in usable)

    def warnings(self) -> list[str]:
        """Return a sentence for each damaged sector."""
        return [
            f"sector {number} of the table of removed flows at byte"
            f" {TABLE_OFFSET + number * SECTOR_BYTES} of {self._device.path} is damaged: flows"
            " that were removed may be shown again"
            for number in self.damaged
        ]

    def add(self, flows: Iterable[bytes]) -> None:
        """Have flows removed, durably.

        Raises StoreError if they do not fit, and nothing is changed; or if the
        device refuses: then any of them may be removed.
        """
        fresh = [flow for flow in dict.fromkeys(flows) if flow not in self._sector_of]
        if len(fresh) > self.room_count:
            raise StoreError(
                f"{self._device.path} has room for {self.room_count} more removed flows, and"
                f" {len(fresh)} were asked for: {FLOWS_MAX} at most may wait for their segments to"
                " be reclaimed, which happens once nothing in these is kept; remove what lies"
                " beside them, or read away what is kept and format the store again"
            )
        changed: set[int] = set()
        number = 0
        for flow in fresh:
            while number in self.damaged or len(self._sectors[number]) == SECTOR_FLOWS_MAX:
                number += 1
            self._sectors[number].append(flow)
            self._sector_of[flow] = number
            changed.add(number)
        self._write(changed)

    def drop(self, flows: Iterable[bytes]) -> None:
        """Forget flows of which no segment holds anything, durably. Raises StoreError."""
        changed: set[int] = set()
        for flow in flows:
            number = self._sector_of.pop(flow)
            self._sectors[number].remove(flow)
            changed.add(number)
        self._write(changed)

    def _write(self, changed: set[int]) -> None:
        """Write the blocks that sectors lie in, and flush."""
        if not changed:
            return
        block_bytes = self._device.align_bytes
        for number in changed:
            self._data[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES] = self._encode(number)
        for block in sorted({number * SECTOR_BYTES // block_bytes for number in changed}):
            at = block * block_bytes
            self._device.write(TABLE_OFFSET + at, bytes(self._data[at : at + block_bytes]))
        self._device.sync()

    def _encode(self, number: int) -> bytes:
        flows = self._sectors[number]
        return sealed(
            REMOVAL_SECTOR.pack(
                RemovalRow(
                    magic=REMOVAL_MAGIC,
                    crc32c=0,
                    version=FORMAT_VERSION,
                    store_uuid=self._store_uuid,
                    flow_count=len(flows),
                    flows=b"".join(flows),
                )
            )
        )


def read_removals(device: Device, superblock: Superblock) -> Tombstones:
    """Return the table as it is on the device. Raises StoreDamagedError if it cannot be read."""
    return Tombstones(device, superblock, device.read(TABLE_OFFSET, TABLE_BYTES))
