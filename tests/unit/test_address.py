# SPDX-License-Identifier: Apache-2.0
"""Addresses of listeners and receivers."""

from __future__ import annotations

import pytest

from ingestd.address import Address, parse_address, same_listening_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("*:1", Address("*", 1)),
        ("localhost:0", Address("localhost", 0)),
        ("192.0.2.1:65535", Address("192.0.2.1", 65535)),
        ("[2001:DB8:0::1]:7", Address("2001:db8::1", 7)),
        ("store-1.example.org:7", Address("store-1.example.org", 7)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "7", ":7", "a:", "a:b", "a:-1", "a:65536", "a:000080", "::1:7", "[::1]", "[a]:7", "a b:7",
     "[192.0.2.1]:7", "a:٣", "http://a:7", "x" * 400 + ":1"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|port|host"):
        parse_address(text)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "127.0.0.1:2", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("*:1", "127.0.0.2:1", True),
        ("*:1", "[::1]:1", True),
        ("0.0.0.0:1", "127.0.0.2:1", True),
        ("0.0.0.0:1", "[::1]:1", False),
        ("[::]:1", "[::1]:1", True),
        ("*:0", "*:0", False),
        ("localhost:1", "127.0.0.1:1", False),
    ],
)
def test_same_listening_address(one: str, other: str, is_same: bool) -> None:
    pair = parse_address(one), parse_address(other)
    assert same_listening_address(*pair) is is_same
    assert same_listening_address(*reversed(pair)) is is_same
