# SPDX-License-Identifier: Apache-2.0
"""A small store in memory, as a file for the code under test and as bytes for the test.

Invariant: nothing of it is on a real disk, so that thousands of crashes cost
little; where /dev/shm is missing, the working directory for temporary files serves.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingestd.store.format import layout
from ingestd.store.metadata.tombstones import TABLE_BYTES, TABLE_OFFSET
from support.store_builder import MIB, StoreBuilder

SEGMENT_COUNT: Final = 3
STORE_BYTES: Final = layout.SEGMENTS_OFFSET + SEGMENT_COUNT * MIB
MEMORY: Final = Path("/dev/shm")


class Serial:
    """Stands in for the thread pool of a scan: in so small a store threads only cost."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: object) -> None: ...

    map = staticmethod(map)


@dataclass
class Store:
    """A store's file, and the same bytes in memory."""

    path: Path
    bytes: memoryview
    checksum: str
    block_bytes: int
    segment_count: int = SEGMENT_COUNT
    store_uuid: bytes = b""

    def set_up(self, store_uuid: bytes, generation: int, fill: bytes | None) -> None:
        """Format it, whatever was there before; formatting does not erase segments."""
        self.store_uuid = store_uuid
        builder = StoreBuilder(
            segment_count=self.segment_count,
            block_bytes=self.block_bytes,
            store_uuid=store_uuid,
            generation=generation,
            fill=fill,
        )
        self.bytes[:] = builder.image

    def free_all(self) -> None:
        """Free every segment as the daemon does, and forget what was removed: zeros over both."""
        self.bytes[TABLE_OFFSET : TABLE_OFFSET + TABLE_BYTES] = bytes(TABLE_BYTES)
        for index in range(self.segment_count):
            at = layout.SEGMENTS_OFFSET + index * MIB
            self.bytes[at : at + layout.SEGMENT_HEADER.size_bytes] = bytes(
                layout.SEGMENT_HEADER.size_bytes
            )


@contextmanager
def store_in_memory(
    checksum: str, block_bytes: int, segment_count: int = SEGMENT_COUNT
) -> Iterator[Store]:
    """An empty file of the store's size, in memory where there is such a file system."""
    store_bytes = layout.SEGMENTS_OFFSET + segment_count * MIB
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        path = Path(directory) / "store.img"
        with path.open("w+b") as file:
            os.truncate(file.fileno(), store_bytes)
            with mmap.mmap(file.fileno(), store_bytes) as mapped, memoryview(mapped) as view:
                yield Store(path, view, checksum, block_bytes, segment_count)
