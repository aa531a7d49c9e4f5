# SPDX-License-Identifier: Apache-2.0
"""Sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.sizes import SIZE_BYTES_MAX, exact_size, full_size, parse_size, short_size


@given(st.integers(0, SIZE_BYTES_MAX))
def test_exact_size_is_exact(size_bytes: int) -> None:
    assert parse_size(exact_size(size_bytes)) == size_bytes
    assert str(size_bytes) in full_size(size_bytes)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        (4096, 4096),
        ("4096", 4096),
        ("12 B", 12),
        ("256MiB", 256 << 20),
        ("256 mib", 256 << 20),
        ("1MB", 10**6),
        ("1.5KiB", 1536),
        ("4GiB", 4 << 30),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_mean_what_they_say(text: object, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MiB",
        "-1",
        -1,
        "1.5",
        "0.3KiB",
        "1M",
        "1g",
        "1Xi",
        "1e3",
        "9EiB",
        True,
        1.0,
        None,
        "٣KiB",
    ],
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match=r"size|ambiguous|unknown unit|whole number|between"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (2047, "1.9 KiB"),
        (256 << 20, "256 MiB"),
        ((256 << 20) + 1, "256 MiB"),
        ((1 << 30) + 1, "1.0 GiB"),
        (1023 << 20, "1023 MiB"),
    ],
)
def test_short_sizes(size_bytes: int, text: str) -> None:
    assert short_size(size_bytes) == text
