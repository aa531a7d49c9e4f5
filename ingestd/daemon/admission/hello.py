# SPDX-License-Identifier: Apache-2.0
"""Hello and trailer blocks of protocol `ingest`: parsed, refused, authenticated.

Invariants: whatever the bytes are, the answer is a value or a Refusal, never an
exception; what is returned has passed every check that needs nothing but the
block itself. The blocks are those of ingestd.protocol. Pure; any thread may call.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeVar

from ingestd.protocol.blocks import (
    HELLO_HEAD,
    Hello,
    Trailer,
    is_authentic,
    parse_hello,
    parse_trailer,
)

TEXT_CHARS_MAX: Final = 200
_VERSION: Final = re.compile(rb"ingest/[0-9]+\n")
_Read = TypeVar("_Read", Hello, Trailer)


class Refusal(NamedTuple):
    """The reason why a connection is not admitted: a code for programs, a sentence for people."""

    code: str
    text: str


def read_hello(block: bytes) -> Hello | Refusal:
    """Return what a hello block says, or a refusal: bad_hello or version."""
    if not block.startswith(HELLO_HEAD) and _VERSION.match(block):
        return Refusal("version", "this server speaks version 1 of the protocol")
    return _read(parse_hello, block, "bad_hello")


def read_trailer(block: bytes) -> Trailer | Refusal:
    """Return what a trailer block says, or a refusal: trailer."""
    return _read(parse_trailer, block, "trailer")


def _read(parse: Callable[[bytes], _Read], block: bytes, code: str) -> _Read | Refusal:
    try:
        return parse(block)
    except ValueError as error:
        # It may quote what the sender wrote.
        text = ascii(str(error))[1:-1]
        return Refusal(code, text[:TEXT_CHARS_MAX])


def authenticate(
    hello: Hello, block: bytes, challenge: bytes, keys: Mapping[str, bytes]
) -> Refusal | None:
    """Return None if the hello's MAC is right, else the refusal, which does not say why."""
    # An unknown name takes as long as a wrong key.
    is_known = hello.key is not None and hello.key in keys
    secret = keys[hello.key] if hello.key is not None and is_known else bytes(32)
    if is_authentic(block, secret, challenge) and is_known:
        return None
    return Refusal("unauthorised", "the hello has no valid mac by a key known here")


def flow_id(hello: Hello) -> bytes | None:
    """Return the 16 bytes of the flow's id, if the sender names one."""
    return None if hello.flow is None else uuid.UUID(hello.flow).bytes


def labels_text(hello: Hello) -> str:
    """Return the labels as a store holds them: key=value, one a line."""
    return "\n".join(f"{key}={value}" for key, value in hello.labels.items())
