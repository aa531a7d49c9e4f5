# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write them: parsing, and printing without loss.

Invariants: a size is a whole number of bytes from 0 to SIZE_BYTES_MAX. Units
are spelled out, because a lone "M" means 10^6 to some tools and 2^20 to
others. parse_size(exact_size(n)) == n. No state; any thread may call.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

SIZE_BYTES_MAX: Final = 2**63 - 1
SIZE_TEXT_CHARS_MAX: Final = 64

_BINARY: Final = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_DECIMAL: Final = ("kB", "MB", "GB", "TB", "PB", "EB")
_FACTORS: Final = {
    "": 1,
    "b": 1,
    **{unit.lower(): 1024 ** (power + 1) for power, unit in enumerate(_BINARY)},
    **{unit.lower(): 1000 ** (power + 1) for power, unit in enumerate(_DECIMAL)},
}
_PATTERN: Final = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[A-Za-z]*)", re.ASCII)


def parse_size(value: object) -> int:
    """Return the bytes that an int or a text such as "256MiB", "1.5GB" or "4096" means.

    Raises ValueError with half a sentence that goes behind "NAME: ".
    """
    if isinstance(value, int) and not isinstance(value, bool):
        number, factor = Decimal(value), 1
    elif isinstance(value, str):
        number, factor = _parse_text(value)
    else:
        raise ValueError('must be a size such as 1048576 or "1MiB"')
    size_bytes = number * factor
    if size_bytes != size_bytes.to_integral_value():
        raise ValueError(f"{value!r} is not a whole number of bytes")
    if not 0 <= size_bytes <= SIZE_BYTES_MAX:
        raise ValueError(f"{value!r} is not between 0 and {SIZE_BYTES_MAX} bytes")
    return int(size_bytes)


def _parse_text(text: str) -> tuple[Decimal, int]:
    match = _PATTERN.fullmatch(text.strip()) if len(text) <= SIZE_TEXT_CHARS_MAX else None
    if match is None:
        raise ValueError(f'{text[:SIZE_TEXT_CHARS_MAX]!r} is not a size: write it like "256MiB"')
    unit = match["unit"]
    factor = _FACTORS.get(unit.lower())
    if factor is None and len(unit) == 1 and unit.upper() in "KMGTPE":
        power = "KMGTPE".index(unit.upper())
        raise ValueError(
            f"{text!r} is ambiguous: write {match['number']}{_BINARY[power]} (powers of 1024)"
            f" or {match['number']}{_DECIMAL[power]} (powers of 1000)"
        )
    if factor is None:
        raise ValueError(f"{text!r} has an unknown unit: use one of {', '.join(_BINARY[:4])}")
    return Decimal(match["number"]), factor


def exact_size(size_bytes: int) -> str:
    """Return the shortest text in a binary unit that stands for exactly these bytes."""
    assert size_bytes >= 0, size_bytes
    for power in range(len(_BINARY), 0, -1):
        if size_bytes and size_bytes % 1024**power == 0:
            return f"{size_bytes // 1024**power}{_BINARY[power - 1]}"
    return str(size_bytes)


def short_size(size_bytes: int) -> str:
    """Return about four characters and a unit, rounded down: "0 B", "1.4 GiB", "256 MiB"."""
    assert size_bytes >= 0, size_bytes
    power = min((size_bytes.bit_length() - 1) // 10, len(_BINARY)) if size_bytes else 0
    if power == 0:
        return f"{size_bytes} B"
    tenths = size_bytes * 10 // 1024**power
    is_round = size_bytes % 1024**power == 0
    number = str(tenths // 10) if is_round or tenths >= 1000 else f"{tenths // 10}.{tenths % 10}"
    return f"{number} {_BINARY[power - 1]}"


def full_size(size_bytes: int) -> str:
    """Return the size for people and for programs: "1.4 GiB (1503238553 bytes)"."""
    if size_bytes < 1024:
        return f"{size_bytes} byte" if size_bytes == 1 else f"{size_bytes} bytes"
    return f"{short_size(size_bytes)} ({size_bytes} bytes)"
