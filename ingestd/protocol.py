# SPDX-License-Identifier: Apache-2.0
"""The line that the daemon sends back on a raw listener, as a dataclass.

Invariants: a line is one JSON object in ASCII, ends with one newline and has at
most LINE_BYTES_MAX bytes; parse_receipt(format_receipt(r)) == r. Keys that are
not known are ignored, so that a later daemon may say more. Pure; any thread.

docs/protocol.md tells the same for people who write senders.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

LINE_BYTES_MAX: Final = 4096
BYTES_COUNT_MAX: Final = 2**63 - 1


class ReceiptState(StrEnum):
    """What became of the flow."""

    SEALED = "sealed"  # complete, and durable to its last byte
    INTERRUPTED = "interrupted"  # ended early; `bytes` of it are durable
    REFUSED = "refused"  # nothing of it was stored


class ErrorCode(StrEnum):
    """Why a flow was not sealed; core/answer.c writes these, and a test compares."""

    STORE_FULL = "store_full"  # no segment is free
    STORE_FAILED = "store_failed"  # the device failed
    IDLE_TIMEOUT = "idle_timeout"  # the sender was silent for too long
    SHUTDOWN = "shutdown"  # the daemon stops
    LIMIT = "limit"  # a limit of the listener was reached
    INTERRUPTED = "interrupted"  # any other end before the end


@dataclass(frozen=True)
class Receipt:
    """What the daemon answers for; `error` and `text` only where it is not sealed."""

    flow: str | None  # UUID; None where nothing of it was stored
    bytes: int  # those that are durable
    durable: bool  # whether they are all that the daemon received
    state: ReceiptState
    checksum: str | None = None  # "crc32c:xxxxxxxx"
    error: str | None = None  # an ErrorCode, or one of a later daemon
    text: str | None = None

    @property
    def is_sealed(self) -> bool:
        """Whether everything that was sent is durable."""
        return self.state is ReceiptState.SEALED and self.durable

    def as_dict(self) -> dict[str, Any]:
        """The object of the line: checksum where sealed, error and text where not."""
        head: dict[str, Any] = {
            "flow": self.flow,
            "bytes": self.bytes,
            "durable": self.durable,
            "state": self.state.value,
        }
        if self.state is ReceiptState.SEALED:
            return {**head, "checksum": self.checksum}
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
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"the line is longer than {LINE_BYTES_MAX} bytes")
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"the line is not JSON: {line[:40]!r}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"the line is not a JSON object: {line[:40]!r}")
    return Receipt(
        flow=_flow(fields.get("flow")),
        bytes=_bytes_count(fields.get("bytes")),
        durable=_durable(fields.get("durable")),
        state=_state(fields.get("state")),
        checksum=_text(fields, "checksum"),
        error=_text(fields, "error"),
        text=_text(fields, "text"),
    )


def _flow(value: object) -> str | None:
    if value is None:
        return None
    try:
        return str(uuid.UUID(value))  # type: ignore[arg-type]
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"its flow is not a UUID: {value!r:.60}") from None


def _bytes_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= BYTES_COUNT_MAX:
        raise ValueError(f"its bytes are not a number of bytes: {value!r:.60}")
    return value


def _durable(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"its durable is neither true nor false: {value!r:.60}")
    return value


def _state(value: object) -> ReceiptState:
    try:
        return ReceiptState(str(value))
    except ValueError:
        raise ValueError(f"its state is not known: {value!r:.60}") from None


def _text(fields: dict[str, Any], key: str) -> str | None:
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"its {key} is not a text: {value!r:.60}")
    return value
