# SPDX-License-Identifier: Apache-2.0
"""The set of ids: none is ever missed, few are found by chance, and the memory is bounded."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestd.daemon.admission import bloom_filter
from ingestd.daemon.admission.bloom_filter import BITS_PER_ID, FILTER_BYTES_MIN, BloomFilter

FEW_BYTES = 128


@given(st.sets(st.binary(min_size=16, max_size=16), max_size=50))
def test_what_was_added_is_found(ids: set[bytes]) -> None:
    found = BloomFilter(ids)
    assert all(flow in found for flow in ids)


def test_an_empty_one_has_nothing() -> None:
    assert bytes(16) not in BloomFilter()
    assert BloomFilter().size_bytes == 0


def test_few_are_found_by_chance_and_none_is_missed_as_it_grows() -> None:
    draw = random.Random(1)
    count = 3 * FILTER_BYTES_MIN * 8 // BITS_PER_ID // 2
    ids = [draw.randbytes(16) for _ in range(count)]
    found = BloomFilter(ids)
    assert all(flow in found for flow in ids)
    assert found.size_bytes == 3 * FILTER_BYTES_MIN
    assert sum(draw.randbytes(16) in found for _ in range(10_000)) < 300


def test_the_same_ids_again_take_no_room() -> None:
    ids = [number.to_bytes(16, "big") for number in range(100)]
    found = BloomFilter(ids)
    room_count = found._room_count
    for flow in 1000 * ids:
        found.add(flow)
    assert found._room_count == room_count


def test_beyond_its_bound_it_only_errs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloom_filter, "FILTER_BYTES_MIN", FEW_BYTES)
    monkeypatch.setattr(bloom_filter, "FILTER_BYTES_MAX", 8 * FEW_BYTES)
    draw = random.Random(2)
    ids = [draw.randbytes(16) for _ in range(20_000)]
    found = BloomFilter(ids)
    assert found.size_bytes == 7 * FEW_BYTES
    assert all(flow in found for flow in ids)
