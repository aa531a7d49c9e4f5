# SPDX-License-Identifier: Apache-2.0
"""Lines of the control socket, in pieces of any size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.control.messages import LineBuffer, LineError, decode, encode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(st.text(), VALUES), max_size=5), st.integers(1, 40))
def test_what_is_sent_arrives(messages: list[dict[str, object]], piece_bytes: int) -> None:
    data = b"".join(map(encode, messages))
    lines = LineBuffer(1 << 20)
    found = []
    for at in range(0, len(data), piece_bytes):
        lines.feed(data[at : at + piece_bytes])
        while (line := lines.next_line()) is not None:
            found.append(decode(line))
    assert found == messages
    assert not lines


@pytest.mark.parametrize("data", [b"", b"1", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_object(data: bytes) -> None:
    with pytest.raises(LineError):
        decode(data)


def test_a_line_is_as_long_as_it_may_be_and_no_longer() -> None:
    lines = LineBuffer(10)
    lines.feed(b"x" * 10 + b"\n")
    assert lines.next_line() == b"x" * 10
    lines.feed(b"x" * 10)
    assert lines.next_line() is None
    lines.feed(b"x")
    with pytest.raises(LineError, match="longer than 10"):
        lines.next_line()
    assert not lines, "nothing of it is kept"
    lines.feed(b"x" * 11 + b"\nx\n")
    with pytest.raises(LineError):
        lines.next_line()
