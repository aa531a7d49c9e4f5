# SPDX-License-Identifier: Apache-2.0
"""Blocks and lines of protocol `ingest`: there and back, limits, and the MAC."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.protocol.blocks import (
    BLOCK_BYTES,
    HELLO_HEAD,
    LABELS_BYTES_MAX,
    LABELS_COUNT_MAX,
    NAME_BYTES_MAX,
    TRAILER_HEAD,
    Hello,
    Trailer,
    format_hello,
    format_trailer,
    is_authentic,
    parse_hello,
    parse_trailer,
)
from ingestd.protocol.fields import BYTES_COUNT_MAX, LINE_BYTES_MAX
from ingestd.protocol.lines import (
    Accepted,
    Auth,
    Code,
    Durable,
    ErrorLine,
    Greeting,
    Sealed,
    format_line,
    parse_line,
)

FLOW = "0192f0c1-2b3c-7def-8000-123456789abc"
SECRET = bytes(range(16))
CHALLENGE = bytes(range(32))

counts = st.integers(0, BYTES_COUNT_MAX)
checksums = st.none() | st.integers(0, 2**32 - 1).map("crc32c:{:08x}".format)
flows = st.uuids().map(str)
plain = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)
label_names = plain.filter(lambda text: text and "=" not in text)
hellos = st.builds(
    Hello,
    flow=st.none() | flows,
    resume=st.sampled_from([True, False, "auto"]),
    name=st.none() | plain,
    labels=st.dictionaries(label_names, plain, max_size=3),
    bytes=st.none() | counts,
    trailer=st.booleans(),
    key=st.none() | st.text("ab \u00e9", min_size=1, max_size=32),
)
lines = (
    st.builds(
        Greeting,
        st.lists(st.integers(1, 9), max_size=4).map(tuple),
        st.sampled_from(Auth).map(str),
        st.binary(min_size=32, max_size=32),
    )
    | st.builds(Accepted, flows, counts, st.floats(0, 60))
    | st.builds(Durable, counts)
    | st.builds(Sealed, flows, counts, st.booleans(), checksums, checksums)
    | st.builds(
        ErrorLine,
        st.sampled_from([code for code in Code if code != Code.SEALED]).map(str),
        plain,
        st.none() | flows,
        counts,
    )
    | st.builds(ErrorLine, st.just("sealed"), plain, flows, counts, counts, checksums)
)


@given(hellos)
def test_hello_there_and_back(hello: Hello) -> None:
    block = format_hello(hello)
    assert len(block) == BLOCK_BYTES
    assert parse_hello(block) == hello


@given(hellos.filter(lambda hello: hello.key), st.binary(min_size=16, max_size=64))
def test_authenticated_hello(hello: Hello, secret: bytes) -> None:
    block = format_hello(hello, secret, CHALLENGE)
    assert is_authentic(block, secret, CHALLENGE)
    assert not is_authentic(block, secret, CHALLENGE[::-1])
    assert not is_authentic(block, secret + b"x", CHALLENGE)
    assert not is_authentic(format_hello(hello), secret, CHALLENGE)


@given(hellos.filter(lambda hello: hello.key), st.data())
def test_no_byte_of_an_authenticated_hello_can_be_changed(
    hello: Hello, data: st.DataObject
) -> None:
    block = format_hello(hello, SECRET, CHALLENGE)
    at = data.draw(st.integers(0, len(block.rstrip(b"\0")) - 1))
    changed = block[:at] + bytes([block[at] ^ data.draw(st.integers(1, 255))]) + block[at + 1 :]
    with contextlib.suppress(ValueError):  # it may not even be a hello any more
        assert not is_authentic(changed, SECRET, CHALLENGE)


def test_labels_cannot_take_the_place_of_the_mac() -> None:
    hello = Hello(labels={"mac": "0" * 64}, name='"mac":"' + "0" * 64, key="k")
    block = format_hello(hello, SECRET, CHALLENGE)
    assert is_authentic(block, SECRET, CHALLENGE)
    assert parse_hello(block).labels == {"mac": "0" * 64}


def test_mac_by_hand() -> None:
    """What docs/protocol.md says, without our functions."""
    block = format_hello(Hello(flow=FLOW, bytes=5, key="lab"), SECRET, CHALLENGE)
    text = block.removeprefix(b"ingest/1\n").partition(b"\n")[0]
    mac = json.loads(text)["mac"]
    unsigned = text.replace(mac.encode(), b"0" * 64)
    message = CHALLENGE + hashlib.sha256(unsigned).digest()
    assert hmac.new(SECRET, message, hashlib.sha256).hexdigest() == mac


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (Hello(name="x" * (NAME_BYTES_MAX + 1)), f"more than {NAME_BYTES_MAX} bytes"),
        (Hello(name="é" * 128), f"more than {NAME_BYTES_MAX} bytes"),
        (Hello(name="a\nb"), "its name is not text"),
        (Hello(name="\udc80"), "its name is not text"),
        (Hello(labels={"": "x"}), "its label '' is empty"),
        (Hello(labels={"a=b": "x"}), "its label 'a=b'"),
        (Hello(labels={"a": "x\ny"}), "its label 'a' is not text"),
        (Hello(labels={str(n): "" for n in range(LABELS_COUNT_MAX + 1)}), "it has 17 labels"),
        (Hello(labels={"a": "x" * (LABELS_BYTES_MAX - 7)}), "labels have more than"),
        (Hello(labels={"a": "x\u2028y"}), "its label 'a' is not text"),
        (Hello(key=""), "its key is not the name"),
        (Hello(key="k" * 65), "its key is not the name"),
    ],
)
def test_limits_of_a_hello(hello: Hello, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        format_hello(hello)


def test_largest_hello_fits() -> None:
    labels = {str(n): "" for n in range(LABELS_COUNT_MAX - 1)}
    room = LABELS_BYTES_MAX - len(json.dumps(labels, separators=(",", ":"))) - len(',"x":""')
    hello = Hello(
        FLOW,
        "auto",
        "\u00e9" * 127,
        {**labels, "x": "\\" * (room // 2)},
        BYTES_COUNT_MAX,
        True,
        "k" * 64,
    )
    assert parse_hello(format_hello(hello, SECRET, CHALLENGE)).labels == hello.labels


def _block(text: bytes, head: bytes = HELLO_HEAD) -> bytes:
    return (head + text).ljust(BLOCK_BYTES, b"\0")


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"", "has 0 bytes"),
        (_block(b"{}\n", b"ingest/2\n"), "does not begin with"),
        (_block(b"{}"), "is not one line"),
        (_block(b"{}\nx"), "is not one line"),
        (_block(b"[]\n"), "not a JSON object"),
        (_block(b"{\n"), "is not JSON"),
        (_block(b'{"bytes":NaN}\n'), "is not JSON"),
        (_block(b'{"resume":1}\n'), "its resume"),
        (_block(b'{"resume":"yes"}\n'), "its resume"),
        (_block(b'{"bytes":-1}\n'), "its bytes"),
        (_block(b'{"trailer":1}\n'), "its trailer"),
        (_block(b'{"flow":"x"}\n'), "its flow"),
        (_block(b'{"labels":[1]}\n'), "its labels"),
        (_block(b'{"labels":{"a":1}}\n'), "its label 'a'"),
        (_block(b'{"mac":"ABC"}\n'), "its mac"),
    ],
)
def test_what_is_no_hello(block: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_hello(block)


@given(st.binary(max_size=300))
def test_noise_is_no_hello(noise: bytes) -> None:
    with pytest.raises(ValueError, match=r"the hello|its |it has"):
        parse_hello(_block(noise, b""))


@given(st.none() | counts, st.none() | st.integers(0, 2**32 - 1))
def test_trailer_there_and_back(count: int | None, crc: int | None) -> None:
    block = format_trailer(Trailer(count, crc))
    assert len(block) == BLOCK_BYTES
    assert parse_trailer(block) == Trailer(count, crc)


@pytest.mark.parametrize(
    "text", [b'{"crc32c":7}\n', b'{"bytes":1,"crc32c":"ABCDEF01"}\n', b'{"bytes":true}\n']
)
def test_what_is_no_trailer(text: bytes) -> None:
    with pytest.raises(ValueError, match="its "):
        parse_trailer(_block(text, TRAILER_HEAD))


@given(lines)
def test_line_there_and_back(line: Any) -> None:
    text = format_line(line)
    assert text.count(b"\n") == 1
    assert text.endswith(b"\n")
    assert parse_line(text) == line


@given(lines, st.text(string.ascii_lowercase, min_size=3).map("x_".__add__), st.integers())
def test_unknown_fields_and_types_are_ignored(line: Any, key: str, value: int) -> None:
    fields = json.loads(format_line(line))
    assert parse_line(json.dumps({**fields, key: value}).encode()) == line
    assert parse_line(json.dumps({**fields, "type": key}).encode()) is None


@given(st.binary(max_size=200))
def test_noise_is_no_line(noise: bytes) -> None:
    with pytest.raises(ValueError, match="the line|its "):
        parse_line(noise)


GOOD_LINES: dict[str, dict[str, Any]] = {
    "hello": {"protocol": "ingest", "versions": [1], "auth": "none", "challenge": "0" * 64},
    "accepted": {"flow": FLOW, "offset": 0, "ack_interval_s": 0.2},
    "durable": {"offset": 1},
    "sealed": {"flow": FLOW, "bytes": 1, "durable": True},
    "error": {"code": "sealed", "text": "", "flow": None, "durable": 0, "bytes": 1},
}


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("hello", "protocol", "raw"),
        ("hello", "versions", 1),
        ("hello", "versions", ["1"]),
        ("hello", "auth", None),
        ("hello", "challenge", "00"),
        ("accepted", "flow", None),
        ("accepted", "offset", -1),
        ("accepted", "ack_interval_s", "1"),
        ("accepted", "ack_interval_s", 10**400),
        ("durable", "offset", True),
        ("sealed", "durable", 1),
        ("sealed", "checksum", "crc32c:1"),
        ("sealed", "sender_checksum", 7),
        ("error", "code", None),
        ("error", "bytes", None),
        ("error", "type", 7),
    ],
)
def test_a_wrong_field_is_named(kind: str, key: str, value: object) -> None:
    good = {"type": kind, **GOOD_LINES[kind]}
    assert parse_line(json.dumps(good).encode()) is not None
    with pytest.raises(ValueError, match=f"its {key}"):
        parse_line(json.dumps({**good, key: value}).encode())


def test_line_has_a_limit() -> None:
    fields = {"type": "durable", "offset": 1, "x": "y" * LINE_BYTES_MAX}
    with pytest.raises(ValueError, match="longer than"):
        parse_line(json.dumps(fields).encode())
