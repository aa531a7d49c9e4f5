# SPDX-License-Identifier: Apache-2.0
"""Hello and trailer blocks: all that is right is taken, all else refused by name."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.daemon.admission.hello import (
    Refusal,
    authenticate,
    flow_id,
    labels_text,
    read_hello,
    read_trailer,
)
from ingestd.protocol.blocks import BLOCK_BYTES, Hello, Trailer
from support.ingest import ZEROS, block, hello_block, trailer_block

FLOW = "0192f0c1-2345-7890-abcd-ef0123456789"
SECRET = bytes(range(16))
CHALLENGE = bytes(range(32))


def refused(found: Hello | Trailer | Refusal) -> str:
    assert isinstance(found, Refusal), found
    assert found.text.isascii()
    assert len(found.text) <= 200
    return found.code


def test_an_empty_hello_is_enough() -> None:
    assert read_hello(hello_block()) == Hello()
    assert flow_id(Hello()) is None
    assert labels_text(Hello()) == ""


def test_everything_that_can_be_said() -> None:
    found = read_hello(
        hello_block(
            flow=FLOW.upper(),
            resume="auto",
            name="Messung 7 µ",
            labels={"run": "7", "beam": "a=b"},
            bytes=2**63 - 1,
            trailer=True,
            key="ours",
            mac="ab" * 32,
            later_field={"of": "another version"},
        )
    )
    assert isinstance(found, Hello)
    assert flow_id(found) == uuid.UUID(FLOW).bytes
    assert (found.resume, found.bytes, found.trailer) == ("auto", 2**63 - 1, True)
    assert labels_text(found) == "run=7\nbeam=a=b"
    assert (found.name, found.key, found.mac) == ("Messung 7 µ", "ours", "ab" * 32)


@pytest.mark.parametrize(
    "fields",
    [
        {"flow": "x"},
        {"flow": 7},
        {"resume": "yes"},
        {"resume": 1},
        {"resume": None},
        {"name": "a\nb"},
        {"name": "a\u2028b"},
        {"name": "a\x7f"},
        {"name": "\ud800"},
        {"name": "µ" * 128},
        {"labels": {"": "x"}},
        {"labels": {"a=b": "x"}},
        {"labels": {"a": 1}},
        {"labels": {"a": "b\nc=d"}},
        {"labels": {str(number): "" for number in range(17)}},
        {"labels": {"a": "x" * 1017}},
        {"bytes": -1},
        {"bytes": 2**63},
        {"bytes": 1.0},
        {"bytes": True},
        {"bytes": "1"},
        {"trailer": "true"},
        {"key": 1},
        {"mac": "AB" * 32},
        {"mac": "ab" * 31},
    ],
)
def test_what_cannot_be_meant_is_a_bad_hello(fields: dict[str, Any]) -> None:
    found = read_hello(hello_block(**fields))
    assert refused(found) == "bad_hello"
    (field,) = fields
    assert isinstance(found, Refusal)
    assert field.removesuffix("s") in found.text


def test_limits_are_reached() -> None:
    labels = {"a": "x" * 1016}  # its JSON has 1024 bytes
    assert isinstance(read_hello(hello_block(name="x" * 255, labels=labels)), Hello)
    many = {str(number): "" for number in range(16)}
    assert isinstance(read_hello(hello_block(labels=many)), Hello)


@pytest.mark.parametrize(
    "made",
    [
        b"",
        bytes(BLOCK_BYTES),
        b"ingest/1\n" + b"{}" * 2000,
        hello_block()[:-1],
        hello_block()[:-1] + b"x",
        hello_block() + b"\0",
        block("ingest/1", "[]"),
        block("ingest/1", "null"),
        block("ingest/1", ""),
        block("ingest/1", "{}x"),
        block("ingest/1", '{"name": NaN}'),
        block("ingest/1", '{"bytes": Infinity}'),
        block("ingest/1", "[" * 4000),
        block("ingest/1", "1" * 4000),
        b"ingest/1\n\xff{}\n".ljust(BLOCK_BYTES, b"\0"),
        b"GET / HTTP/1.1\r\n".ljust(BLOCK_BYTES, b"\0"),
        block("ingest/x", "{}"),
        block("ingest/1 ", "{}"),
    ],
)
def test_what_is_no_hello(made: bytes) -> None:
    assert refused(read_hello(made)) == "bad_hello"


def test_another_version_is_told_so() -> None:
    assert refused(read_hello(block("ingest/2", "{}"))) == "version"
    assert refused(read_hello(block("ingest/10", "anything"))) == "version"


@given(st.binary(max_size=BLOCK_BYTES))
def test_no_bytes_are_an_exception(data: bytes) -> None:
    for head in (b"", b"ingest/1\n", b"ingest-trailer/1\n"):
        made = (head + data)[:BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")
        for found in (read_hello(made), read_trailer(made)):
            assert isinstance(found, Hello | Trailer | Refusal)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.sampled_from(["flow", "resume", "name", "labels", "bytes", "trailer", "key", "mac"]),
        _JSON,
    )
)
def test_whatever_is_taken_keeps_its_limits(fields: dict[str, Any]) -> None:
    text = json.dumps(fields)
    if len(text.encode()) > BLOCK_BYTES - 10:
        return
    found = read_hello(block("ingest/1", text))
    if isinstance(found, Refusal):
        refused(found)
        return
    assert len((found.name or "").encode()) <= 255
    assert len(labels_text(found).encode()) <= 1024
    assert len(labels_text(found).splitlines()) == len(found.labels) <= 16
    assert found.bytes is None or 0 <= found.bytes < 2**63


# --- Authentication -------------------------------------------------------------------


def _authenticated(made: bytes, challenge: bytes = CHALLENGE) -> bool:
    hello = read_hello(made)
    assert isinstance(hello, Hello)
    refusal = authenticate(hello, made, challenge, {"ours": SECRET, "other": bytes(16)})
    assert refusal is None or refusal.code == "unauthorised"
    return refusal is None


def test_the_right_key_is_let_in() -> None:
    made = hello_block(CHALLENGE.hex(), secret=SECRET, key="ours", name="µ", bytes=5)
    assert _authenticated(made)
    assert not _authenticated(made, bytes(32))


@given(st.data())
def test_every_changed_bit_is_noticed(data: st.DataObject) -> None:
    """Whatever of the hello's text is changed: it is refused, or it says the same."""
    made = hello_block(CHALLENGE.hex(), secret=SECRET, key="ours", name="n", flow=FLOW)
    end = made.index(b"\0")
    at = data.draw(st.integers(9, end - 2))
    changed = bytearray(made)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    hello = read_hello(bytes(changed))
    if isinstance(hello, Hello):
        assert not _authenticated(bytes(changed)), changed


@pytest.mark.parametrize(
    "made",
    [
        hello_block(),
        hello_block(key="ours"),
        hello_block(mac=ZEROS),
        hello_block(key="ours", mac=ZEROS),
        hello_block(CHALLENGE.hex(), secret=bytes(16), key="ours"),
        hello_block(CHALLENGE.hex(), secret=SECRET, key="other"),
        hello_block(CHALLENGE.hex(), secret=b"", key="nobody"),
    ],
)
def test_all_else_is_not(made: bytes) -> None:
    assert not _authenticated(made)


def test_a_mac_stands_there_once() -> None:
    made = hello_block(CHALLENGE.hex(), secret=SECRET, key="ours")
    hello = read_hello(made)
    assert isinstance(hello, Hello)
    text = json.dumps({"key": "ours", "mac": hello.mac, "name": hello.mac})
    assert not _authenticated(block("ingest/1", text))


# --- Trailer --------------------------------------------------------------------------


def test_trailers() -> None:
    found = read_trailer(trailer_block(b"123456789"))
    assert isinstance(found, Trailer)
    assert (found.bytes, found.crc32c) == (9, 0xE3069283)
    nothing = read_trailer(trailer_block(crc32c=None))
    assert isinstance(nothing, Trailer)
    assert (nothing.bytes, nothing.crc32c) == (None, None)


@pytest.mark.parametrize(
    "made",
    [
        bytes(BLOCK_BYTES),
        hello_block(),
        trailer_block(bytes=-1),
        trailer_block(crc32c="E3069283"),
        trailer_block(crc32c="e306928"),
        trailer_block(crc32c=0xE3069283),
        trailer_block()[:-1],
        trailer_block()[:-1] + b"\1",
    ],
)
def test_what_is_no_trailer(made: bytes) -> None:
    assert refused(read_trailer(made)) == "trailer"
