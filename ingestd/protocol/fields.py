# SPDX-License-Identifier: Apache-2.0
"""Fields of the JSON objects that both protocols exchange, each checked for what it may be.

Invariant: whatever is wrong raises ValueError with half a sentence that names
the field. Pure; any thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

LINE_BYTES_MAX: Final = 4096  # newline included
BYTES_COUNT_MAX: Final = 2**63 - 1

# RFC 9562, section 4: 36 characters; uuid.UUID() would take braces, "urn:" and other digits.
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
_CHECKSUM: Final = re.compile(r"crc32c:[0-9a-f]{8}", re.ASCII)


def line_object(line: bytes) -> dict[str, Any]:
    """Return the object of a line, with or without its newline. Raises ValueError."""
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"the line is longer than {LINE_BYTES_MAX} bytes")
    return json_object(line, "the line")


def json_object(text: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that a text is. Raises ValueError that begins with what it is."""
    try:
        fields = json.loads(
            text.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
    except _TwiceError as error:
        raise ValueError(f"{what} has the field {error.key!r:.60} twice") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{what} is not JSON: {text[:40]!r}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{what} is not a JSON object: {text[:40]!r}")
    return fields


class _TwiceError(ValueError):
    """A field is there twice: which of the two is meant, nobody can know (RFC 8259, section 4)."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise _TwiceError(key)
        fields[key] = value
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def flow_of(fields: Mapping[str, Any]) -> str | None:
    """Return the flow's id in its canonical form, or None."""
    value = fields.get("flow")
    if value is None:
        return None
    if not isinstance(value, str) or _UUID.fullmatch(value) is None:
        raise ValueError(f"its flow is not a UUID of 36 characters: {value!r:.60}")
    return value.lower()


def count_of(fields: Mapping[str, Any], key: str) -> int:
    """Return a number of bytes."""
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= BYTES_COUNT_MAX:
        verb = "are" if key == "bytes" else "is"
        raise ValueError(f"its {key} {verb} not a number of bytes: {value!r:.60}")
    return value


def optional_count_of(fields: Mapping[str, Any], key: str) -> int | None:
    """Return a number of bytes, or None."""
    return None if fields.get(key) is None else count_of(fields, key)


def truth_of(fields: Mapping[str, Any], key: str, default: bool | None = None) -> bool:
    """Return true or false."""
    value = fields.get(key, default)
    if not isinstance(value, bool):
        raise ValueError(f"its {key} is neither true nor false: {value!r:.60}")
    return value


def text_of(fields: Mapping[str, Any], key: str) -> str | None:
    """Return a text, or None."""
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"its {key} is not a text: {value!r:.60}")
    return value


def checksum_of(fields: Mapping[str, Any], key: str) -> str | None:
    """Return a checksum as receipts have it, or None."""
    value = text_of(fields, key)
    if value is not None and _CHECKSUM.fullmatch(value) is None:
        raise ValueError(f"its {key} is not a CRC32C: {value!r:.60}")
    return value
