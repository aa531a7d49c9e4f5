# SPDX-License-Identifier: Apache-2.0
"""docs/protocol.md says what the code does: examples, codes, limits, the MAC's figures."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import tomllib
from pathlib import Path

from crc32c import crc32c

from ingestd.client.flow import HANDSHAKE_TIMEOUT_S, RETRY_DELAY_S, RETRY_DELAY_S_MAX
from ingestd.keyfile import KEY_BYTES_MIN
from ingestd.protocol.blocks import (
    BLOCK_BYTES,
    HELLO_HEAD,
    KEY_NAME_BYTES_MAX,
    LABELS_BYTES_MAX,
    LABELS_COUNT_MAX,
    NAME_BYTES_MAX,
    TRAILER_HEAD,
    is_authentic,
    parse_hello,
    parse_trailer,
)
from ingestd.protocol.fields import LINE_BYTES_MAX
from ingestd.protocol.lines import PASSING_CODES, Code, Greeting, parse_line
from ingestd.protocol.receipt import ErrorCode, parse_receipt

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
RAW, _, INGEST = TEXT.partition("# Protocol `ingest`")
EXAMPLES = re.findall(r"^    (\S.*)$", TEXT, re.MULTILINE)
OBJECTS = [json.loads(line) for line in EXAMPLES if line.startswith("{")]
PLAIN = " ".join(TEXT.split())


def test_mac_is_recomputed() -> None:
    greeting = next(example for example in OBJECTS if example.get("type") == "hello")
    challenge = bytes.fromhex(greeting["challenge"])
    zeros = next(line for line in EXAMPLES if '"mac":"' in line)
    at = EXAMPLES.index(zeros)
    secret = bytes.fromhex(EXAMPLES[at - 1])
    digest, mac = EXAMPLES[at + 1 : at + 3]
    assert f"({len(zeros)} bytes, shown without its newline)" in PLAIN
    assert hashlib.sha256(zeros.encode()).hexdigest() == digest
    message = challenge + bytes.fromhex(digest)
    assert hmac.new(secret, message, hashlib.sha256).hexdigest() == mac
    block = (HELLO_HEAD + zeros.replace("0" * 64, mac).encode() + b"\n").ljust(BLOCK_BYTES, b"\0")
    assert is_authentic(block, secret, challenge)
    assert parse_hello(block).key == "lab"


def test_key_file_of_the_example() -> None:
    table = tomllib.loads("\n".join(line for line in EXAMPLES if line.startswith(("[key]", "lab"))))
    assert table["key"]["lab"] in EXAMPLES


def test_lines_of_the_examples_are_such() -> None:
    lines = [example for example in OBJECTS if "type" in example]
    parsed = [parse_line(json.dumps(line).encode()) for line in lines]
    assert [type(line).__name__ for line in parsed] == [
        "Greeting", "Accepted", "Durable", "Sealed", "ErrorLine",
    ]  # fmt: skip
    assert isinstance(parsed[0], Greeting)
    (receipt,) = [example for example in OBJECTS if "state" in example]
    assert parse_receipt(json.dumps(receipt).encode()).is_sealed
    (trailer,) = [example for example in OBJECTS if "crc32c" in example]
    block = TRAILER_HEAD + json.dumps(trailer).encode() + b"\n"
    assert parse_trailer(block.ljust(BLOCK_BYTES, b"\0")).bytes == trailer["bytes"]


def test_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (yes|no) \|$", INGEST, re.MULTILINE)
    assert [code for code, _ in rows] == list(Code)
    assert {code for code, again in rows if again == "yes"} == PASSING_CODES
    raw = re.search(r"^\| `error` \| why \|\n\|---\|---\|\n((?:\|.*\n)+)", RAW, re.MULTILINE)
    assert raw is not None
    assert set(re.findall(r"^\| `(\w+)`", raw[1], re.MULTILINE)) == set(ErrorCode)


def test_limits_are_those_of_the_code() -> None:
    for figure in (
        f"at most {LINE_BYTES_MAX} bytes together",
        f"Exactly {BLOCK_BYTES} bytes",
        f"for people; at most {NAME_BYTES_MAX} bytes",
        f"at most {LABELS_COUNT_MAX}, at most {LABELS_BYTES_MAX} bytes as JSON",
        f"was made with; at most {KEY_NAME_BYTES_MAX} bytes",
        f"a secret of at least {KEY_BYTES_MIN} bytes",
        f"begins with a limit of {RETRY_DELAY_S:g} s and stops doubling at {RETRY_DELAY_S_MAX:g} s",
        f"{HANDSHAKE_TIMEOUT_S:g} s for the two lines of the beginning",
        f"the line `{HELLO_HEAD.decode().strip()}`",
        f"the line `{TRAILER_HEAD.decode().strip()}`",
        f"`crc32c:{crc32c(b'123456789'):08x}` for the nine bytes `123456789`",
    ):
        assert figure in PLAIN, figure
