# SPDX-License-Identifier: Apache-2.0
"""The blocks of protocol `ingest`: hello and trailer, parsed and checked.

Invariants: whatever the bytes are, the answer is a value or a Refusal, never an
exception; what is returned has passed every check that needs nothing but the
block itself. Pure; any thread may call. docs/protocol.md has the whole story.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import unicodedata
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

BLOCK_BYTES: Final = 4096
HELLO_HEAD: Final = b"ingest/1\n"
TRAILER_HEAD: Final = b"ingest-trailer/1\n"
MAC_HEX_ZEROS: Final = b"0" * 64
STREAM_BYTES_MAX: Final = 2**63 - 1
NAME_BYTES_MAX: Final = 255
LABELS_COUNT_MAX: Final = 16
LABELS_BYTES_MAX: Final = 1024
TEXT_CHARS_MAX: Final = 200

# Control characters, and what ends a line elsewhere: neither belongs into a name.
_FORBIDDEN_CATEGORIES: Final = frozenset({"Cc", "Zl", "Zp", "Cs"})


class Refusal(NamedTuple):
    """Why a connection is not let in: a code for programs and a sentence for people."""

    code: str
    text: str


def _flow_id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ValueError("is not a UUID") from None


def _plain(text: str) -> str:
    if any(unicodedata.category(char) in _FORBIDDEN_CATEGORIES for char in text):
        raise ValueError("has control characters or line breaks")
    return text


def _name(text: str) -> str:
    if len(_plain(text).encode()) > NAME_BYTES_MAX:
        raise ValueError(f"has more than {NAME_BYTES_MAX} bytes")
    return text


def _labels(labels: dict[str, str]) -> dict[str, str]:
    if len(labels) > LABELS_COUNT_MAX:
        raise ValueError(f"has more than {LABELS_COUNT_MAX} labels")
    for key, value in labels.items():
        if not key or "=" in key:
            raise ValueError('has a key that is empty or has a "="')
        _plain(key), _plain(value)
    text = json.dumps(labels, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > LABELS_BYTES_MAX:
        raise ValueError(f"has more than {LABELS_BYTES_MAX} bytes")
    return labels


class _Block(BaseModel):
    # Fields that a later version of the protocol adds are passed over.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class Hello(_Block):
    """What a sender says of its flow; every field is optional."""

    flow: Annotated[str, AfterValidator(_flow_id)] | None = None
    resume: bool | Literal["auto"] = False
    name: Annotated[str, AfterValidator(_name)] = ""
    labels: Annotated[dict[str, str], AfterValidator(_labels)] = {}
    bytes_stated: Annotated[int, Field(ge=0, le=STREAM_BYTES_MAX)] | None = Field(
        default=None, alias="bytes"
    )
    trailer: bool = False
    key: str | None = None
    mac: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")] | None = None

    @property
    def flow_id(self) -> bytes | None:
        """The 16 bytes of the flow's id, if the sender names one."""
        return None if self.flow is None else uuid.UUID(self.flow).bytes

    def labels_text(self) -> str:
        """Labels as a store holds them: key=value, one a line."""
        return "\n".join(f"{key}={value}" for key, value in self.labels.items())


class Trailer(_Block):
    """What a sender says of its flow when all of it is sent."""

    bytes_sent: Annotated[int, Field(ge=0, le=STREAM_BYTES_MAX)] | None = Field(
        default=None, alias="bytes"
    )
    crc32c: Annotated[str, Field(pattern=r"\A[0-9a-f]{8}\z")] | None = None

    @property
    def crc(self) -> int | None:
        """The checksum of all bytes of the flow, as a number."""
        return None if self.crc32c is None else int(self.crc32c, 16)


_BlockType = TypeVar("_BlockType", bound=_Block)


def parse_hello(block: bytes) -> Hello | Refusal:
    """Return what a hello block says, or a refusal: bad_hello or version."""
    if not block.startswith(HELLO_HEAD):
        if re.match(rb"ingest/[0-9]+\n", block):
            return Refusal("version", "this server speaks version 1 of the protocol")
        return Refusal("bad_hello", "a hello block begins with the line ingest/1")
    return _parse(Hello, block, HELLO_HEAD, "bad_hello")


def parse_trailer(block: bytes) -> Trailer | Refusal:
    """Return what a trailer block says, or a refusal: trailer."""
    if not block.startswith(TRAILER_HEAD):
        return Refusal("trailer", "a trailer block begins with the line ingest-trailer/1")
    return _parse(Trailer, block, TRAILER_HEAD, "trailer")


def json_text(block: bytes, head: bytes) -> bytes | None:
    """Return the JSON text behind a block's head; None if the block is not made so."""
    text, newline, rest = block[len(head) :].partition(b"\n")
    if len(block) != BLOCK_BYTES or not newline or rest.strip(b"\0"):
        return None
    return text


def _parse(model: type[_BlockType], block: bytes, head: bytes, code: str) -> _BlockType | Refusal:
    text = json_text(block, head)
    if text is None:
        return Refusal(
            code, f"a block has a line, one line of JSON, and zero bytes up to {BLOCK_BYTES}"
        )
    try:
        values = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        return model.model_validate(values)
    except ValidationError as error:
        return Refusal(code, _sentence(error))
    except (ValueError, RecursionError):
        return Refusal(code, "its second line is not JSON that can be read, or names a key twice")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is there twice")
    return values


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _sentence(error: ValidationError) -> str:
    """The first fault, with the field that has it and without its value."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "the object"
    return f"{field[:40]!a}: {first['msg']}"[:TEXT_CHARS_MAX]


def authenticate(
    hello: Hello, block: bytes, challenge: bytes, keys: Mapping[str, bytes]
) -> Refusal | None:
    """Return None if the hello's MAC is right, else the refusal, which does not say why.

    The MAC is HMAC-SHA256 with the key, of the challenge and the SHA-256 of the
    hello's JSON text in which 64 zeros stand for the MAC's digits.
    """
    refusal = Refusal("unauthorised", "the hello has no valid mac by a key known here")
    text = json_text(block, HELLO_HEAD)
    if text is None or hello.key is None or hello.mac is None:
        return refusal
    digits = hello.mac.encode()
    if text.count(digits) != 1:
        return refusal
    digest = hashlib.sha256(text.replace(digits, MAC_HEX_ZEROS)).digest()
    # An unknown name takes as long as a wrong key.
    key = keys.get(hello.key, b"")
    right = hmac.new(key, challenge + digest, hashlib.sha256).hexdigest()
    is_right = hmac.compare_digest(right, hello.mac)
    return None if is_right and hello.key in keys else refusal
