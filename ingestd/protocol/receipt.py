# SPDX-License-Identifier: Apache-2.0
"""The receipt of a flow; on a raw listener it is the only line that comes back.

Invariants: a line is one JSON object in ASCII, ends with one newline and has at
most LINE_BYTES_MAX bytes; parse_receipt(format_receipt(r)) == r. Keys that are
not known are ignored, so that a later daemon may say more. Pure; any thread.

docs/protocol.md says the same for people who write senders.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ingestd.protocol.fields import (
    LINE_BYTES_MAX,
    count_of,
    flow_of,
    line_object,
    text_of,
    truth_of,
)


class ReceiptState(StrEnum):
    """The state of the flow."""

    SEALED = "sealed"  # complete, and durable to its last byte
    INTERRUPTED = "interrupted"  # ended early; `bytes` of it are durable
    REFUSED = "refused"  # nothing of it was stored


class ErrorCode(StrEnum):
    """The reason why a flow was not sealed; connection/ingest/lines.c of the core writes these."""

    STORE_FULL = "store_full"  # no segment is free
    STORE_FAILED = "store_failed"  # the device failed
    IDLE_TIMEOUT = "idle_timeout"  # the sender was silent for too long
    SHUTDOWN = "shutdown"  # the daemon stops
    LIMIT = "limit"  # a limit of the listener was reached
    EMPTY = "empty"  # no byte was sent, and the listener keeps no empty flows
    INTERRUPTED = "interrupted"  # any other end before the end


@dataclass(frozen=True)
class Receipt:
    """The statement that the daemon answers for; `error` and `text` only where it is not sealed."""

    flow: str | None  # UUID; None where nothing of it was stored
    bytes: int  # those that are durable
    durable: bool  # whether they are all that the daemon received
    state: ReceiptState
    checksum: str | None = None  # "crc32c:xxxxxxxx"
    error: str | None = None  # an ErrorCode, or one of a later daemon
    text: str | None = None
    sender_checksum: str | None = None  # what the sender stated; protocol ingest only

    @property
    def is_sealed(self) -> bool:
        """Return whether everything that was sent is durable."""
        return self.state is ReceiptState.SEALED and self.durable

    def as_dict(self) -> dict[str, Any]:
        """The object of the line: checksums where sealed, error and text where not."""
        head: dict[str, Any] = {
            "flow": self.flow,
            "bytes": self.bytes,
            "durable": self.durable,
            "state": self.state.value,
        }
        if self.state is ReceiptState.SEALED:
            stated = (
                {} if self.sender_checksum is None else {"sender_checksum": self.sender_checksum}
            )
            return {**head, "checksum": self.checksum, **stated}
        return {**head, "error": self.error, "text": self.text}


def format_receipt(receipt: Receipt) -> bytes:
    """Return the line, newline included."""
    line = json.dumps(receipt.as_dict()).encode("ascii") + b"\n"
    assert len(line) <= LINE_BYTES_MAX, f"a receipt of {len(line)} bytes"
    return line


def parse_receipt(line: bytes) -> Receipt:
    """Return what a line says, with or without its newline.

    Raises ValueError with half a sentence.
    """
    fields = line_object(line)
    return Receipt(
        flow=flow_of(fields),
        bytes=count_of(fields, "bytes"),
        durable=truth_of(fields, "durable"),
        state=_state(fields.get("state")),
        checksum=text_of(fields, "checksum"),
        error=text_of(fields, "error"),
        text=text_of(fields, "text"),
        sender_checksum=text_of(fields, "sender_checksum"),
    )


def _state(value: object) -> ReceiptState:
    try:
        return ReceiptState(str(value))
    except ValueError:
        raise ValueError(f"its state is not known: {value!r:.60}") from None
