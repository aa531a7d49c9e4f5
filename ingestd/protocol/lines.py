# SPDX-License-Identifier: Apache-2.0
"""The lines that a listener of protocol `ingest` sends, as dataclasses.

Invariants: a line is one JSON object with a `type`, ends with one newline and
has at most LINE_BYTES_MAX bytes; parse_line(format_line(m)) == m. Unknown keys
are ignored and an unknown type is None, so that a later daemon may say more.
Pure; any thread.

docs/protocol.md says the same for people who write senders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from ingestd.protocol.fields import (
    LINE_BYTES_MAX,
    checksum_of,
    count_of,
    flow_of,
    line_object,
    optional_count_of,
    text_of,
    truth_of,
)

PROTOCOL: Final = "ingest"
VERSION: Final = 1
CHALLENGE_BYTES: Final = 32
ACK_INTERVAL_S_MAX: Final = 3600

_CHALLENGE: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Auth(StrEnum):
    """The way in which a listener has senders authenticate."""

    NONE = "none"
    HMAC_SHA256 = "hmac-sha256"


class Code(StrEnum):
    """The reason why a connection ended without a receipt."""

    BAD_HELLO = "bad_hello"  # the hello block is not one
    VERSION = "version"  # a version that the listener does not speak
    UNAUTHORISED = "unauthorised"  # no such key, or the MAC is wrong
    EXISTS = "exists"  # the flow exists and was not to be resumed
    UNKNOWN_FLOW = "unknown_flow"  # the flow was to be resumed and does not exist
    SEALED = "sealed"  # the flow is complete already
    REMOVED = "removed"  # the flow was removed from the store on purpose
    BUSY = "busy"  # the flow's end is not settled yet, or there is too much to do
    LIMIT = "limit"  # the flow is longer than the listener lets any be
    STORE_FULL = "store_full"  # no segment is free
    STORE_FAILED = "store_failed"  # the device failed
    SHUTDOWN = "shutdown"  # the daemon stops
    IDLE_TIMEOUT = "idle_timeout"  # no byte came for too long
    HELLO_TIMEOUT = "hello_timeout"  # the hello did not come in time
    CHECKSUM = "checksum"  # the trailer states another checksum
    TRAILER = "trailer"  # the trailer is none, or cannot be had
    TOO_LONG = "too_long"  # more bytes than stated
    TOO_SHORT = "too_short"  # fewer bytes than stated
    REPLACED = "replaced"  # a newer connection resumed the flow
    INTERRUPTED = "interrupted"  # the receiver could not continue


# A sender may come back by itself after these; after all others somebody has to do something.
PASSING_CODES: Final = frozenset(
    {Code.BUSY, Code.SHUTDOWN, Code.IDLE_TIMEOUT, Code.HELLO_TIMEOUT, Code.INTERRUPTED}
)


@dataclass(frozen=True)
class Greeting:
    """`hello`: the first line, sent at once."""

    versions: tuple[int, ...]
    auth: str  # an Auth, or one of a later daemon
    challenge: bytes  # CHALLENGE_BYTES, new for each connection


@dataclass(frozen=True)
class Accepted:
    """`accepted`: the sender resumes at this offset of the flow."""

    flow: str
    offset: int
    ack_interval_s: float


@dataclass(frozen=True)
class Durable:
    """`durable`: all bytes of the flow before the offset are on stable media."""

    offset: int


@dataclass(frozen=True)
class Sealed:
    """`sealed`: the receipt."""

    flow: str
    bytes: int
    durable: bool
    checksum: str | None = None  # "crc32c:xxxxxxxx", of what was stored
    sender_checksum: str | None = None  # what the trailer stated


@dataclass(frozen=True)
class ErrorLine:
    """`error`: the connection ends without a receipt."""

    code: str  # a Code, or one of a later daemon
    text: str
    flow: str | None
    durable: int
    bytes: int | None = None  # with `sealed` only, and
    checksum: str | None = None  # so is this


Line = Greeting | Accepted | Durable | Sealed | ErrorLine


def format_line(line: Line) -> bytes:
    """Return the line, newline included."""
    text = json.dumps(_fields(line)).encode("ascii") + b"\n"
    assert len(text) <= LINE_BYTES_MAX, f"a line of {len(text)} bytes"
    return text


def parse_line(text: bytes) -> Line | None:
    """Return what a line says, with or without its newline; None: of a type not known.

    Raises ValueError with half a sentence.
    """
    fields = line_object(text)
    kind = fields.get("type")
    if not isinstance(kind, str):
        raise ValueError(f"its type is not a text: {kind!r:.60}")
    parse = _PARSERS.get(kind)
    return None if parse is None else parse(fields)


def _fields(line: Line) -> dict[str, Any]:
    match line:
        case Greeting():
            return {
                "type": "hello",
                "protocol": PROTOCOL,
                "versions": list(line.versions),
                "auth": line.auth,
                "challenge": line.challenge.hex(),
            }
        case ErrorLine():
            sealed = {"bytes": line.bytes, "checksum": line.checksum}
            return {
                "type": "error",
                "code": line.code,
                "text": line.text,
                "flow": line.flow,
                "durable": line.durable,
                **(sealed if line.code == Code.SEALED else {}),
            }
        case _:
            return {"type": type(line).__name__.lower(), **line.__dict__}


def _greeting(fields: Mapping[str, Any]) -> Greeting:
    if fields.get("protocol") != PROTOCOL:
        raise ValueError(f"its protocol is not {PROTOCOL!r}: {fields.get('protocol')!r:.60}")
    versions, challenge = fields.get("versions"), fields.get("challenge")
    if not isinstance(versions, list) or not all(type(version) is int for version in versions):
        raise ValueError(f"its versions are not a list of numbers: {versions!r:.60}")
    if not isinstance(challenge, str) or _CHALLENGE.fullmatch(challenge) is None:
        raise ValueError(f"its challenge is not 64 hexadecimal digits: {challenge!r:.80}")
    return Greeting(tuple(versions), _needed_text(fields, "auth"), bytes.fromhex(challenge))


def _accepted(fields: Mapping[str, Any]) -> Accepted:
    interval_s = fields.get("ack_interval_s")
    if isinstance(interval_s, bool) or not isinstance(interval_s, int | float):
        raise ValueError(f"its ack_interval_s is not a number: {interval_s!r:.60}")
    if not 0 <= interval_s <= ACK_INTERVAL_S_MAX:
        raise ValueError(f"its ack_interval_s is not one: {interval_s!r:.60}")
    return Accepted(_needed_flow(fields), count_of(fields, "offset"), float(interval_s))


def _durable(fields: Mapping[str, Any]) -> Durable:
    return Durable(count_of(fields, "offset"))


def _sealed(fields: Mapping[str, Any]) -> Sealed:
    return Sealed(
        _needed_flow(fields),
        count_of(fields, "bytes"),
        truth_of(fields, "durable"),
        checksum_of(fields, "checksum"),
        checksum_of(fields, "sender_checksum"),
    )


def _refusal(fields: Mapping[str, Any]) -> ErrorLine:
    code = _needed_text(fields, "code")
    is_sealed = code == Code.SEALED
    return ErrorLine(
        code,
        text_of(fields, "text") or "",
        flow_of(fields),
        optional_count_of(fields, "durable") or 0,
        count_of(fields, "bytes") if is_sealed else None,
        checksum_of(fields, "checksum") if is_sealed else None,
    )


_PARSERS: Final[dict[str, Callable[[Mapping[str, Any]], Line]]] = {
    "hello": _greeting,
    "accepted": _accepted,
    "durable": _durable,
    "sealed": _sealed,
    "error": _refusal,
}


def _needed_flow(fields: Mapping[str, Any]) -> str:
    flow = flow_of(fields)
    if flow is None:
        raise ValueError("its flow is missing")
    return flow


def _needed_text(fields: Mapping[str, Any], key: str) -> str:
    value = text_of(fields, key)
    if value is None:
        raise ValueError(f"its {key} is missing")
    return value
