# SPDX-License-Identifier: Apache-2.0
"""The two superblocks: which store this is, its geometry and its generation.

Invariants: copy A is written and flushed before copy B, so that at least one
is whole at any moment; both describe the same store and differ at most in the
generation; the valid copy with the higher generation counts.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Final

from ingestd.errors import NotAStoreError, StoreDamagedError, StoreError
from ingestd.store.device.device import Device
from ingestd.store.format.layout import (
    BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN,
    FORMAT_VERSION,
    FORMAT_VERSIONS,
    GENERATION_MAX,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SEGMENT_COUNT_MAX,
    SEGMENTS_OFFSET,
    SUPERBLOCK,
    SUPERBLOCK_B_OFFSET,
    SUPERBLOCK_MAGIC,
    Bytes,
    SuperblockRow,
    is_intact,
    sealed,
)

LABEL_BYTES_MAX: Final = 64
COPIES: Final = (("A", 0), ("B", SUPERBLOCK_B_OFFSET))


@dataclass(frozen=True, slots=True)
class Superblock:
    """The fields of both copies; sizes in bytes, `created_ns` in Unix time."""

    store_uuid: bytes
    generation: int
    store_bytes: int
    segments_offset: int
    segment_bytes: int
    segment_count: int
    block_bytes: int
    label: str
    created_ns: int

    @property
    def uuid(self) -> str:
        """The store's UUID as people write it."""
        return str(uuid.UUID(bytes=self.store_uuid))

    def segment_offset(self, index: int) -> int:
        """The byte of the store where a segment begins."""
        assert 0 <= index < self.segment_count, index
        return self.segments_offset + index * self.segment_bytes

    def encode(self) -> bytes:
        """Return the 4096 bytes of a copy."""
        label = self.label.encode()
        assert len(label) <= LABEL_BYTES_MAX, label
        return sealed(
            SUPERBLOCK.pack(
                SuperblockRow(
                    magic=SUPERBLOCK_MAGIC,
                    crc32c=0,
                    version=FORMAT_VERSION,
                    store_uuid=self.store_uuid,
                    generation=self.generation,
                    store_bytes=self.store_bytes,
                    segments_offset=self.segments_offset,
                    segment_bytes=self.segment_bytes,
                    segment_count=self.segment_count,
                    block_bytes=self.block_bytes,
                    created_ns=self.created_ns,
                    label=label,
                )
            )
        )


@dataclass(frozen=True, slots=True)
class SuperblockReading:
    """The superblock that counts, and what was wrong with a copy of it, in sentences."""

    superblock: Superblock
    warnings: tuple[str, ...]


def read_superblock(device: Device) -> SuperblockReading:
    """Choose the valid copy with the highest generation.

    Raises NotAStoreError if there is no superblock or one of another version,
    StoreDamagedError if there is one but no copy of it is whole.
    """
    copies: dict[str, Superblock] = {}
    warnings: list[str] = []
    magic_seen = False
    for name, offset in COPIES:
        try:
            data = device.read(offset, SUPERBLOCK.size_bytes)
        except StoreDamagedError as error:
            warnings.append(f"superblock {name} is not readable: {error}")
            magic_seen = True
            continue
        magic_seen |= data.startswith(SUPERBLOCK_MAGIC)
        found = _decode(device.path, data)
        if found is None:
            warnings.append(f"superblock {name} at byte {offset} of {device.path} is damaged")
        else:
            copies[name] = found
    if not copies and magic_seen:
        raise StoreDamagedError(
            f"{device.path} carries a store, but both of its superblocks are damaged:"
            " restore byte 0 or byte 524288 from a copy of the device"
        )
    if not copies:
        raise NotAStoreError(f"{device.path} is not a store: make one with: ingestd format")
    if len({(c.store_uuid, c.segment_bytes, c.segment_count) for c in copies.values()}) > 1:
        raise StoreDamagedError(
            f"{device.path} has superblocks of two stores: one of them was overwritten from outside"
        )
    best = max(copies.values(), key=lambda copy: copy.generation)
    return SuperblockReading(best, tuple(warnings))


def write_superblocks(device: Device, superblock: Superblock) -> None:
    """Write A, flush, write B, flush; raises StoreError if the device refuses."""
    block = superblock.encode().ljust(device.align_bytes, b"\0")
    for _, offset in COPIES:
        device.write(offset, block)
        device.sync()


def check_store(device: Device, superblock: Superblock, expected_uuid: str | None = None) -> None:
    """Raise if the store is not the one meant, or cannot be written as its format asks."""
    path = device.path
    wanted = (expected_uuid or superblock.uuid).replace("-", "").lower()
    if wanted != superblock.store_uuid.hex():
        raise StoreError(
            f"{path} is the store {superblock.uuid}, and the configuration expects"
            f" {expected_uuid}: correct the path or the uuid"
        )
    if device.size_bytes < superblock.store_bytes:
        raise StoreDamagedError(
            f"{path} has {device.size_bytes} bytes and was formatted with"
            f" {superblock.store_bytes}: restore its size before serving it"
        )
    if device.align_bytes > superblock.block_bytes:
        raise StoreError(
            f"{path} has blocks of {device.align_bytes} bytes and was formatted with"
            f" {superblock.block_bytes}: read it here, and serve it from a device with such blocks"
        )


def raised(superblock: Superblock, generation: int) -> Superblock:
    """Return the superblock of a later generation."""
    assert generation > superblock.generation
    return replace(superblock, generation=generation)


def _decode(path: str, data: Bytes) -> Superblock | None:
    """The copy's contents; None if it is not whole. Raises NotAStoreError: another version."""
    if len(data) < SUPERBLOCK.size_bytes or not is_intact(data):
        return None
    row = SUPERBLOCK.unpack(data)
    if row.magic != SUPERBLOCK_MAGIC:
        return None
    if row.version not in FORMAT_VERSIONS:
        raise NotAStoreError(
            f"{path} is a store of format version {row.version}, and this ingestd knows"
            f" versions up to {FORMAT_VERSION}: use the ingestd that made it"
        )
    found = Superblock(
        store_uuid=row.store_uuid,
        generation=row.generation,
        store_bytes=row.store_bytes,
        segments_offset=row.segments_offset,
        segment_bytes=row.segment_bytes,
        segment_count=row.segment_count,
        block_bytes=row.block_bytes,
        label=row.label.decode(errors="ignore").rstrip("\0"),
        created_ns=row.created_ns,
    )
    return found if _is_geometry(found) else None


def _is_geometry(found: Superblock) -> bool:
    """Return whether the sizes fit each other, so that no later code need ask again."""
    block_bytes = found.block_bytes
    return (
        BLOCK_BYTES_MIN <= block_bytes <= BLOCK_BYTES_MAX
        and block_bytes & (block_bytes - 1) == 0
        and SEGMENT_BYTES_MIN <= found.segment_bytes <= SEGMENT_BYTES_MAX
        and found.segment_bytes % block_bytes == 0
        and found.segments_offset >= SEGMENTS_OFFSET
        and found.segments_offset % block_bytes == 0
        and 0 < found.generation <= GENERATION_MAX
        and 0 < found.segment_count <= SEGMENT_COUNT_MAX
        and found.segments_offset + found.segment_count * found.segment_bytes <= found.store_bytes
    )
