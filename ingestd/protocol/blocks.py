# SPDX-License-Identifier: Apache-2.0
"""The two blocks that a sender of protocol `ingest` wraps its payload in: hello, trailer.

Invariants: a block has exactly BLOCK_BYTES bytes, so that payload stays aligned
in the stream: a head, one JSON object on one line, zeros. parse_hello(
format_hello(h)) == h, and the same for trailers. A MAC covers every byte of the
hello's JSON text except the digits of the MAC itself. Pure; any thread.

docs/protocol.md says the same for people who write senders.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ingestd.protocol.fields import (
    flow_of,
    json_object,
    optional_count_of,
    text_of,
    truth_of,
)
from ingestd.protocol.lines import CHALLENGE_BYTES

BLOCK_BYTES: Final = 4096
HELLO_HEAD: Final = b"ingest/1\n"
TRAILER_HEAD: Final = b"ingest-trailer/1\n"
HELLO_TEXT_BYTES_MAX: Final = BLOCK_BYTES - len(HELLO_HEAD) - 1  # the newline behind it
NAME_BYTES_MAX: Final = 255
KEY_NAME_BYTES_MAX: Final = 64
LABELS_COUNT_MAX: Final = 16
LABELS_BYTES_MAX: Final = 1024
MAC_ZEROS: Final = "0" * 64

_MAC: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CRC: Final = re.compile(r"[0-9a-f]{8}", re.ASCII)

_NOT_PLAIN: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control, surrogate, separators of lines

Resume = Literal[True, False, "auto"]


@dataclass(frozen=True)
class Hello:
    """The hello: a sender's statements about its flow and itself."""

    flow: str | None = None  # UUID; None: the listener makes one
    resume: Resume = False
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    bytes: int | None = None  # of the flow's whole payload, where that is known
    trailer: bool = False
    key: str | None = None  # the name of the pre-shared key
    mac: str | None = None  # 64 hexadecimal digits


@dataclass(frozen=True)
class Trailer:
    """The trailer: a sender's statement about the whole flow, after its last byte."""

    bytes: int | None
    crc32c: int | None = None


def format_hello(hello: Hello, secret: bytes | None = None, challenge: bytes = b"") -> bytes:
    """Return the block; with a secret, its MAC is made and put in.

    Raises ValueError with half a sentence where a field breaks a limit.
    """
    _check_texts(hello.name, hello.labels, hello.key)
    fields: dict[str, Any] = {
        "flow": hello.flow,
        "resume": hello.resume,
        "name": hello.name,
        "labels": dict(hello.labels) or None,
        "bytes": hello.bytes,
        "trailer": hello.trailer,
        "key": hello.key,
        "mac": hello.mac if secret is None else MAC_ZEROS,
    }
    said = {key: value for key, value in fields.items() if value is not None and value is not False}
    text = _compact(said)
    if secret is not None:  # the digits are the last but two characters
        text = text[:-66] + hello_mac(secret, challenge, text).encode() + text[-2:]
    if len(text) > HELLO_TEXT_BYTES_MAX:
        raise ValueError(f"the hello has more than {HELLO_TEXT_BYTES_MAX} bytes")
    return _block(HELLO_HEAD, text)


def parse_hello(block: bytes) -> Hello:
    """Return what a hello block says. Raises ValueError with half a sentence."""
    fields = json_object(_text(block, HELLO_HEAD, "the hello"), "the hello")
    labels, mac = fields.get("labels") or {}, text_of(fields, "mac")
    if not isinstance(labels, dict):
        raise ValueError(f"its labels are not an object: {labels!r:.60}")
    if mac is not None and _MAC.fullmatch(mac) is None:
        raise ValueError("its mac is not 64 hexadecimal digits")
    name, key = text_of(fields, "name"), text_of(fields, "key")
    _check_texts(name, labels, key)
    return Hello(
        flow_of(fields),
        _resume(fields.get("resume", False)),
        name,
        labels,
        optional_count_of(fields, "bytes"),
        truth_of(fields, "trailer", default=False),
        key,
        mac,
    )


def hello_mac(secret: bytes, challenge: bytes, text: bytes) -> str:
    """Return the MAC of a hello's JSON text in which 64 zeros stand for it."""
    assert len(challenge) == CHALLENGE_BYTES, len(challenge)
    return hmac.new(secret, challenge + hashlib.sha256(text).digest(), hashlib.sha256).hexdigest()


def is_authentic(block: bytes, secret: bytes, challenge: bytes) -> bool:
    """Return whether a hello block that parse_hello() takes has the right MAC."""
    mac = parse_hello(block).mac
    text = _text(block, HELLO_HEAD, "the hello")
    if mac is None or text.count(mac.encode()) != 1:
        return False
    unsigned = text.replace(mac.encode(), MAC_ZEROS.encode())
    return hmac.compare_digest(hello_mac(secret, challenge, unsigned), mac)


def format_trailer(trailer: Trailer) -> bytes:
    """Return the block."""
    crc = None if trailer.crc32c is None else f"{trailer.crc32c:08x}"
    return _block(TRAILER_HEAD, _compact({"bytes": trailer.bytes, "crc32c": crc}))


def parse_trailer(block: bytes) -> Trailer:
    """Return what a trailer block says. Raises ValueError with half a sentence."""
    fields = json_object(_text(block, TRAILER_HEAD, "the trailer"), "the trailer")
    crc = text_of(fields, "crc32c")
    if crc is not None and _CRC.fullmatch(crc) is None:
        raise ValueError(f"its crc32c is not 8 hexadecimal digits: {crc!r:.60}")
    return Trailer(optional_count_of(fields, "bytes"), None if crc is None else int(crc, 16))


def _compact(fields: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise ValueError("its name or labels are not UTF-8") from None


def _block(head: bytes, text: bytes) -> bytes:
    return (head + text + b"\n").ljust(BLOCK_BYTES, b"\0")


def _text(block: bytes, head: bytes, what: str) -> bytes:
    """Return the JSON text of a block."""
    if len(block) != BLOCK_BYTES:
        raise ValueError(f"{what} has {len(block)} bytes, not {BLOCK_BYTES}")
    if not block.startswith(head):
        raise ValueError(f"{what} does not begin with {head!r}: {block[:20]!r}")
    text, newline, rest = block[len(head) :].partition(b"\n")
    if not newline or rest.strip(b"\0"):
        raise ValueError(f"{what} is not one line and then zeros")
    return text


def _resume(value: object) -> Resume:
    if value is True or value is False or value == "auto":
        return value
    raise ValueError(f"its resume is not true, false or 'auto': {value!r:.60}")


def _check_texts(name: str | None, labels: Mapping[str, Any], key: str | None) -> None:
    if name is not None and not _is_plain(name):
        raise ValueError(f"its name is not text without control characters: {name!r:.60}")
    if name is not None and len(name.encode()) > NAME_BYTES_MAX:
        raise ValueError(f"its name has more than {NAME_BYTES_MAX} bytes")
    if key is not None and not (_is_plain(key) and 0 < len(key.encode()) <= KEY_NAME_BYTES_MAX):
        raise ValueError(f"its key is not the name of a key: {key!r:.60}")
    if len(labels) > LABELS_COUNT_MAX:
        raise ValueError(f"it has {len(labels)} labels, more than {LABELS_COUNT_MAX}")
    for label, value in labels.items():
        if not (label and "=" not in label and _is_plain(label)):
            raise ValueError(f"its label {label!r:.60} is empty, or has '=' or control characters")
        if not isinstance(value, str) or not _is_plain(value):
            raise ValueError(f"its label {label!r:.60} is not text without control characters")
    if len(_compact(labels)) > LABELS_BYTES_MAX:
        raise ValueError(f"its labels have more than {LABELS_BYTES_MAX} bytes")


def _is_plain(text: str) -> bool:
    """Return whether it is one line of UTF-8 without control characters."""
    return not any(unicodedata.category(c) in _NOT_PLAIN for c in text)
