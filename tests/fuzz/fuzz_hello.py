# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: whatever a sender's blocks are, the daemon reads them or refuses them.

The input is a block itself, or says which values of a real hello or trailer to
replace, and where to break it. What is taken keeps its limits, and no MAC but
the right one is ever valid.
"""

from __future__ import annotations

import json
from typing import Final

import atheris

with atheris.instrument_imports(include=["ingestd.protocol", "ingestd.daemon.admission.hello"]):
    from ingestd.daemon.admission.hello import (
        Refusal,
        authenticate,
        flow_id,
        labels_text,
        read_hello,
        read_trailer,
    )
    from ingestd.protocol.blocks import BLOCK_BYTES, Hello, Trailer

from support.fuzzing import run

HEADS: Final = (b"ingest/1\n", b"ingest-trailer/1\n", b"ingest/2\n", b"")
KEYS: Final = (
    "flow",
    "resume",
    "name",
    "labels",
    "bytes",
    "trailer",
    "key",
    "mac",
    "crc32c",
    "more",
)
REPLACED_MAX: Final = 4
SECRET: Final = bytes(range(16))
CHALLENGE: Final = bytes(32)


def _value(source: atheris.FuzzedDataProvider) -> object:
    makers = (
        lambda: source.ConsumeUnicode(48),
        lambda: source.ConsumeInt(9),
        lambda: 1 << source.ConsumeIntInRange(0, 80),
        lambda: source.ConsumeFloat(),
        lambda: source.ConsumeBool(),
        lambda: None,
        lambda: "auto",
        lambda: {source.ConsumeUnicode(4): source.ConsumeUnicode(8)},
        lambda: source.ConsumeBytes(32).hex(),
        lambda: source.ConsumeBytes(4).hex(),
    )
    return makers[source.ConsumeIntInRange(0, len(makers) - 1)]()


def _block(source: atheris.FuzzedDataProvider) -> bytes:
    head = HEADS[source.ConsumeIntInRange(0, len(HEADS) - 1)]
    how = source.ConsumeIntInRange(0, 15)
    if how == 0:
        return (head + source.ConsumeBytes(BLOCK_BYTES))[:BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")
    if how == 1:
        return (head + b"[" * BLOCK_BYTES)[: BLOCK_BYTES - 1] + b"\n"
    fields: dict[str, object] = {"flow": "00000000-0000-4000-8000-000000000001", "key": "ours"}
    for _ in range(source.ConsumeIntInRange(0, REPLACED_MAX)):
        fields[KEYS[source.ConsumeIntInRange(0, len(KEYS) - 1)]] = _value(source)
    text = json.dumps(fields, ensure_ascii=source.ConsumeBool()).encode("utf-8", "surrogatepass")
    block = (head + text + b"\n")[:BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")
    if how == 2:
        at = source.ConsumeIntInRange(0, len(head + text))
        block = (block[:at] + source.ConsumeBytes(8) + block[at:])[:BLOCK_BYTES]
    return block


def read_block(data: bytes) -> None:
    """One block off the wire."""
    block = _block(atheris.FuzzedDataProvider(data))
    for found in (read_hello(block), read_trailer(block)):
        if isinstance(found, Refusal):
            assert found.text.isascii()
            assert len(found.text) <= 200
        elif isinstance(found, Trailer):
            assert found.crc32c is None or 0 <= found.crc32c < 2**32
        else:
            _check_hello(found, block)


def _check_hello(hello: Hello, block: bytes) -> None:
    assert len((hello.name or "").encode()) <= 255
    assert len(labels_text(hello).encode()) <= 1024
    assert len(labels_text(hello).splitlines()) == len(hello.labels) <= 16
    assert hello.bytes is None or 0 <= hello.bytes < 2**63
    flow = flow_id(hello)
    assert flow is None or len(flow) == 16
    # Nobody guesses 256 bits.
    refusal = authenticate(hello, block, CHALLENGE, {"ours": SECRET})
    assert refusal is not None
    assert refusal.code == "unauthorised"


if __name__ == "__main__":
    run(read_block)
