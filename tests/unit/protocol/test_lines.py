# SPDX-License-Identifier: Apache-2.0
"""Receipt lines: there and back, and everything that is none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.protocol import (
    LINE_BYTES_MAX,
    ErrorCode,
    Receipt,
    ReceiptState,
    format_receipt,
    parse_receipt,
)
from ingestd.protocol.lines import Code

LINES_C = Path(__file__).parents[3] / "ingestd" / "core" / "connection" / "ingest" / "lines.c"

FLOW = "0192f0c1-2b3c-7def-8000-123456789abc"
SEALED = {
    "flow": FLOW,
    "bytes": 12,
    "durable": True,
    "state": "sealed",
    "checksum": "crc32c:0a0b0c0d",
}


def test_sealed_line_is_as_documented() -> None:
    line = format_receipt(Receipt(FLOW, 12, True, ReceiptState.SEALED, "crc32c:0a0b0c0d"))
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == SEALED


def test_refusal_has_code_and_text_and_no_checksum() -> None:
    line = format_receipt(
        Receipt(None, 0, False, ReceiptState.REFUSED, error="limit", text="too many")
    )
    assert json.loads(line) == {
        "flow": None,
        "bytes": 0,
        "durable": False,
        "state": "refused",
        "error": "limit",
        "text": "too many",
    }


texts = st.none() | st.text(max_size=200)
receipts = st.builds(
    Receipt,
    st.none() | st.uuids().map(str),
    st.integers(0, 2**63 - 1),
    st.booleans(),
    st.just(ReceiptState.SEALED),
    texts,
) | st.builds(
    Receipt,
    st.none() | st.uuids().map(str),
    st.integers(0, 2**63 - 1),
    st.booleans(),
    st.sampled_from([ReceiptState.INTERRUPTED, ReceiptState.REFUSED]),
    st.none(),
    texts,
    texts,
)


@given(receipts)
def test_there_and_back(receipt: Receipt) -> None:
    assert parse_receipt(format_receipt(receipt)) == receipt


@given(st.binary(max_size=200))
def test_noise_is_refused_in_one_way(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"the line|its "):
        parse_receipt(line)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flow", "not-a-uuid"),
        ("flow", 7),
        ("bytes", -1),
        ("bytes", 1.5),
        ("bytes", True),
        ("bytes", 2**63),
        ("durable", 1),
        ("durable", None),
        ("state", "done"),
        ("state", None),
        ("checksum", 5),
    ],
)
def test_a_wrong_field_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"its {'bytes are' if key == 'bytes' else key}"):
        parse_receipt(json.dumps({**SEALED, key: value}).encode())


def test_unknown_keys_are_ignored() -> None:
    assert parse_receipt(json.dumps({**SEALED, "later": [1]}).encode()).bytes == 12


def test_flow_is_put_in_canonical_form() -> None:
    shouted = {**SEALED, "flow": FLOW.upper()}
    assert parse_receipt(json.dumps(shouted).encode()).flow == FLOW


def test_line_has_a_limit() -> None:
    line = json.dumps({**SEALED, "text": "x" * LINE_BYTES_MAX}).encode()
    with pytest.raises(ValueError, match="longer than"):
        parse_receipt(line)


def test_not_durable_is_not_sealed() -> None:
    assert Receipt(FLOW, 12, True, ReceiptState.SEALED).is_sealed
    assert not Receipt(FLOW, 12, False, ReceiptState.SEALED).is_sealed
    assert not Receipt(FLOW, 12, True, ReceiptState.INTERRUPTED).is_sealed


def test_error_codes_are_those_that_the_core_writes() -> None:
    written = re.findall(r'\(struct refusal\)\{"(\w+)", ', LINES_C.read_text(encoding="utf-8"))
    assert set(ErrorCode) <= set(written) <= {*ErrorCode, *Code}  # some are for protocol ingest
