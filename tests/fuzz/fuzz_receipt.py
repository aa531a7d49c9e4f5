# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: whatever a daemon answers, parse_receipt returns a Receipt or raises ValueError.

The input is the line itself, or says which values of a real one to replace, and
where to cut it. What was understood, written again and read again, says the same.
"""

from __future__ import annotations

import json
from typing import Final

import atheris

with atheris.instrument_imports(include=["ingestd.protocol"]):
    from ingestd.protocol import BYTES_COUNT_MAX, LINE_BYTES_MAX, Receipt, parse_receipt

from support.fuzzing import run

KEYS: Final = ("flow", "bytes", "durable", "state", "checksum", "error", "text", "more")
STATES: Final = ("sealed", "interrupted", "refused")
REPLACED_MAX: Final = 4
NESTED_MAX: Final = 3000


def _fields(source: atheris.FuzzedDataProvider) -> dict[str, object]:
    fields: dict[str, object] = {
        "flow": "00000000-0000-4000-8000-000000000001",
        "bytes": 1,
        "durable": True,
        "state": STATES[source.ConsumeIntInRange(0, len(STATES) - 1)],
        "checksum": "crc32c:00000000",
    }
    for _ in range(source.ConsumeIntInRange(0, REPLACED_MAX)):
        key = KEYS[source.ConsumeIntInRange(0, len(KEYS) - 1)]
        fields[key] = _value(source)
    return fields


def _value(source: atheris.FuzzedDataProvider) -> object:
    """A value of any type that JSON has, and of some that only Python reads."""
    makers = (
        lambda: source.ConsumeUnicode(48),
        lambda: source.ConsumeInt(9),
        lambda: 1 << source.ConsumeIntInRange(0, 80),
        lambda: source.ConsumeFloat(),
        lambda: source.ConsumeBool(),
        lambda: None,
        list,
        lambda: {source.ConsumeUnicode(4): source.ConsumeInt(2)},
        lambda: source.ConsumeBytes(16).hex(),
    )
    return makers[source.ConsumeIntInRange(0, len(makers) - 1)]()


def _line(source: atheris.FuzzedDataProvider) -> bytes:
    how = source.ConsumeIntInRange(0, 15)
    if how == 0:
        return source.ConsumeBytes(LINE_BYTES_MAX + 1)
    if how == 1:
        return b"[" * source.ConsumeIntInRange(0, NESTED_MAX)
    line = json.dumps(_fields(source), ensure_ascii=source.ConsumeBool())
    data = line.encode("utf-8", "surrogatepass") + b"\n"
    if how == 2:
        return data[: source.ConsumeIntInRange(0, len(data))] + source.ConsumeBytes(16)
    return data


def parse_line(data: bytes) -> None:
    """One line off the wire."""
    line = _line(atheris.FuzzedDataProvider(data))
    try:
        receipt = parse_receipt(line)
    except ValueError:
        return
    assert len(line) <= LINE_BYTES_MAX
    assert 0 <= receipt.bytes <= BYTES_COUNT_MAX
    again = json.dumps(receipt.as_dict()).encode("ascii")
    if len(again) <= LINE_BYTES_MAX:
        assert _said(parse_receipt(again)) == _said(receipt)


def _said(receipt: Receipt) -> dict[str, object]:
    return {**receipt.as_dict(), "is_sealed": receipt.is_sealed}


if __name__ == "__main__":
    run(parse_line)
