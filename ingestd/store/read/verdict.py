# SPDX-License-Identifier: Apache-2.0
"""One struct as it lies on the device: its fields, and whether it counts, and why not.

Invariants: whatever the bytes are, the answer is a Struct, never an exception but for
a device that cannot read; fields are shown also where the struct does not count,
since who looks at damage wants to see it. No state; any thread may call.
"""

from __future__ import annotations

import enum
import struct
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from ingestd.errors import StoreDamagedError
from ingestd.store.device.device import Device
from ingestd.store.format.footer_part import FOOTER_PART
from ingestd.store.format.layout import (
    COMMIT_MARK,
    CRC_OFFSET,
    FORMAT_MAGIC_BYTES,
    FORMAT_VERSIONS,
    SEGMENT_FOOTER,
    SEGMENT_HEADER,
    Bytes,
    Layout,
    block_crc32c,
)
from ingestd.store.format.records import UNIT_BYTES, is_remains, is_torn

_UUIDS: Final = frozenset({"store_uuid", "flow", "token", "boot_id"})
# All their fields lie in the first unit that a device writes as a whole.
_SHORT: Final = (SEGMENT_HEADER, SEGMENT_FOOTER, COMMIT_MARK, FOOTER_PART)
_TEXTS: Final = frozenset({"magic", "label"})


class Verdict(enum.StrEnum):
    """The verdict on a struct; only damaged and unreadable mean that something was lost."""

    WHOLE = "whole"
    ABSENT = "absent"  # zeros, or whatever payload or an earlier use of the device left
    STALE = "stale"  # whole, and of another life of the segment
    FOREIGN = "foreign"  # whole, and of another store or format version
    TORN = "torn"  # a part of it was never written: what a power failure leaves
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Struct:
    """A struct of docs/format.md at byte `offset` of the device; `text` says why it is no more."""

    name: str
    offset: int
    verdict: Verdict
    text: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def is_damaged(self) -> bool:
        """Return whether bytes that were there once are lost."""
        return self.verdict in (Verdict.DAMAGED, Verdict.UNREADABLE)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON; UUIDs as people write them, checksums and unknown bytes in hex."""
        return {
            "name": self.name,
            "offset": self.offset,
            "verdict": str(self.verdict),
            "text": self.text,
            "fields": {name: shown(name, value) for name, value in self.fields.items()},
        }


def shown(name: str, value: Any) -> Any:
    """Return a field's value for JSON."""
    if "crc" in name.rpartition(".")[2]:
        return f"{value:08x}"
    if not isinstance(value, bytes):
        return value
    if name in _UUIDS:
        return str(uuid.UUID(bytes=value))
    if name in _TEXTS:
        return value.rstrip(b"\0").decode(errors="backslashreplace")
    return value.hex()


def fields_of(layout: Layout[Any], data: Bytes) -> dict[str, Any]:
    """Return the fields of a struct by their names in C; those of a record's head without it."""
    names = [name for name, code in layout.fields if "x" not in code]
    return {
        name.removeprefix("head."): value
        for name, value in zip(names, layout.unpack(data), strict=True)
    }


def read_struct(
    device: Device,
    layout: Layout[Any],
    magic: bytes,
    offset: int,
    store_uuid: bytes | None,
    segment_sequence: int | None = None,
) -> Struct:
    """Read the struct at byte `offset`; with a sequence, it counts in that life only."""
    name = layout.name
    try:
        data = device.read(offset, layout.size_bytes)
    except StoreDamagedError as error:
        return Struct(name, offset, Verdict.UNREADABLE, str(error))
    if len(data) < layout.size_bytes:
        return Struct(name, offset, Verdict.UNREADABLE, "it lies behind the device's end")
    verdict, text = judge(data, layout, magic, store_uuid, segment_sequence)
    fields = {} if verdict is Verdict.ABSENT else fields_of(layout, data)
    return Struct(name, offset, verdict, text, fields)


def judge(
    data: Bytes,
    layout: Layout[Any],
    magic: bytes,
    store_uuid: bytes | None,
    segment_sequence: int | None = None,
) -> tuple[Verdict, str]:
    """Return what the bytes of a struct count as, and why, as a sentence's half.

    `data` is as long as its CRC32C covers. A store_uuid of None stands for any.
    """
    if not any(data[:UNIT_BYTES]):
        return Verdict.ABSENT, "zeros"
    is_whole = struct.unpack_from("<I", data, CRC_OFFSET)[0] == block_crc32c(data)
    if not is_whole:
        return _judge_broken(data, layout, magic, store_uuid, segment_sequence)
    if data[:FORMAT_MAGIC_BYTES] != magic:
        return Verdict.ABSENT, f"something that does not begin with {magic.decode()}"
    fields = fields_of(layout, data)
    if fields.get("version", FORMAT_VERSIONS[-1]) not in FORMAT_VERSIONS:
        return Verdict.FOREIGN, f"whole, and of format version {fields['version']}"
    if store_uuid is not None and fields["store_uuid"] != store_uuid:
        return Verdict.FOREIGN, f"whole, and of store {shown('store_uuid', fields['store_uuid'])}"
    if segment_sequence is not None and fields["segment_sequence"] != segment_sequence:
        return Verdict.STALE, f"whole, and of the life {sequence_text(fields['segment_sequence'])}"
    return Verdict.WHOLE, ""


def _judge_broken(
    data: Bytes,
    layout: Layout[Any],
    magic: bytes,
    store_uuid: bytes | None,
    segment_sequence: int | None,
) -> tuple[Verdict, str]:
    """The same for bytes whose CRC32C is wrong."""
    stated = struct.unpack_from("<I", data, CRC_OFFSET)[0]
    text = f"its CRC32C is {block_crc32c(data):08x}, and it states {stated:08x}"
    has_magic = data[:FORMAT_MAGIC_BYTES] == magic
    if store_uuid is None:
        return (Verdict.DAMAGED, text) if has_magic else (Verdict.ABSENT, "nothing of a store")
    if is_remains(data, magic, store_uuid, segment_sequence):
        if layout in _SHORT and is_torn(data):
            return Verdict.TORN, f"{text}; a part of it was never written"
        return Verdict.DAMAGED, text
    if has_magic:
        return Verdict.STALE, f"not whole, and not of this life: {text}"
    return Verdict.ABSENT, f"something that does not begin with {magic.decode()}"


def sequence_text(segment_sequence: int) -> str:
    """Return "3.17" for the 17th segment that generation 3 opened."""
    return f"{segment_sequence >> 32}.{segment_sequence & 0xFFFFFFFF}"
