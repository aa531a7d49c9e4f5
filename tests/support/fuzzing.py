# SPDX-License-Identifier: Apache-2.0
"""Edits of the store's structs for the fuzz targets: the input chooses field and value.

Most of what a parser looks at are small numbers, limits, and neighbours of the
right one; these are as likely as any other value.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import atheris

from ingestd.store.format import layout
from ingestd.store.format.layout import Layout, sealed

Field: TypeAlias = tuple[int, int]  # where it begins, and its bytes

RECORD_LAYOUTS: Final = {
    layout.RECORD_EXTENT: layout.EXTENT,
    layout.RECORD_OPEN: layout.OPEN,
    layout.RECORD_CLOSE: layout.CLOSE,
    layout.RECORD_SPAN: layout.SPAN,
}
LIMITS: Final = (0, 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
STEPS: Final = (1, 8, 512, 4096, 65536, 2**20)


def fields_of(what: Layout[Any], base: int = 0) -> list[Field]:
    """The fields of a struct at `base`, the zeros left out."""
    return [
        (base + what.offsets()[name], struct.calcsize("<" + code))
        for name, code in what.fields
        if not code.endswith("x")
    ]


def fields_of_records(data: bytes, first: int, end: int) -> list[Field]:
    """The fields of all records in data[first:end], which are valid ones."""
    found: list[Field] = []
    while first < end:
        head = layout.RECORD_HEAD.unpack(data, first)
        found += fields_of(RECORD_LAYOUTS[head.kind], first)
        first += head.record_bytes
    return found


def edit(source: atheris.FuzzedDataProvider, data: bytearray, fields: Sequence[Field]) -> None:
    """Change one field, sometimes a part of it only."""
    at, width = fields[source.ConsumeIntInRange(0, len(fields) - 1)]
    how = source.ConsumeIntInRange(0, 4)
    present = int.from_bytes(data[at : at + width], "little")
    if how == 0:
        step = STEPS[source.ConsumeIntInRange(0, len(STEPS) - 1)]
        value = present + source.ConsumeIntInRange(-3, 3) * step
    elif how == 1:
        value = LIMITS[source.ConsumeIntInRange(0, len(LIMITS) - 1)]
    elif how == 2:
        # What stands elsewhere in the struct, as a copy to the wrong place would have it.
        other, _ = fields[source.ConsumeIntInRange(0, len(fields) - 1)]
        value = int.from_bytes(data[other : other + width], "little")
    elif how == 3:
        value = present ^ 1 << source.ConsumeIntInRange(0, 8 * width - 1)
    else:
        value = int.from_bytes(source.ConsumeBytes(width), "little")
    data[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


def edits(
    source: atheris.FuzzedDataProvider, base: bytes, fields: Sequence[Field], most: int
) -> bytes:
    """Return `base` with up to `most` edits."""
    data = bytearray(base)
    for _ in range(source.ConsumeIntInRange(0, most)):
        edit(source, data, fields)
    return bytes(data)


def maybe_sealed(source: atheris.FuzzedDataProvider, data: bytes) -> bytes:
    """Return `data`, mostly with its CRC32C put right: behind it is what is to be reached."""
    return sealed(data) if source.ConsumeIntInRange(0, 3) else data


def run(target: Callable[[bytes], None]) -> None:
    """Hand the command line and the target to libFuzzer; does not return."""
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
