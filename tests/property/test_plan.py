# SPDX-License-Identifier: Apache-2.0
"""Any fragments, any profile: the planner's batches hold every byte, once, in order.

A failure prints the smallest example and a `@reproduce_failure` line.
"""

from __future__ import annotations

import ctypes
import itertools
import random
from dataclasses import dataclass
from typing import Final

import crc32c
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.plan import (
    BOUNCE_REASONS,
    PAGE_BYTES,
    Batch,
    Fragment,
    FrameBatch,
    Iovec,
    Memory,
    Profile,
    load_planner,
)
from tests.property.plan_model import (
    FLAG_CRC32C,
    RECORD_EXTENT,
    Expected,
    expect,
    read_batch,
    round_up,
)

FLOWS_COUNT: Final = 4
ARENA_BYTES: Final = 4 * 1024 * 1024
HEADER_BYTES: Final = 64 * 1024
BATCH_BYTES_MAX: Final = (128 * 1024, 200_000, 1024 * 1024)
FILL_BOUNCE: Final = 0xEE
FILL_SLACK: Final = 0xDD

# No byte of a flow is zero, so that padding cannot pass for payload; the period
# is a prime, so that no block or page falls on a repetition.
PERIOD: Final = 65521
PATTERN: Final = bytes(random.Random(1).choices(range(1, 256), k=PERIOD)) * 3


def flow_bytes(flow: int, offset: int, count: int) -> bytes:
    """The flow's bytes [offset, offset + count); count is at most 2 * PERIOD."""
    start = (offset + flow * 16381) % PERIOD
    return PATTERN[start : start + count]


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` fragments before they have addresses: see Stage.place."""

    count: int
    flow: int  # of the first; the others take turns if `in_turn`
    in_turn: bool
    size: int
    place: str  # "behind" the last one, on a "page", or `shift` bytes into one
    shift: int
    slack: int


COPY_BELOW: Final = (0, 64, 512)
SMALL_SIZES = st.integers(1, 600) | st.integers(1, 150).map(lambda n: n * 4)
LARGE_SIZES = (
    st.integers(1, 70000)
    | st.sampled_from([1448, 4096, 8948, 65536, 4095, 4097, 512])
    | st.integers(1, 17).map(lambda pages: pages * PAGE_BYTES)
)
SHIFTS = st.integers(0, PAGE_BYTES - 1) | st.integers(0, 1023).map(lambda n: n * 4)


def _pieces(sizes: st.SearchStrategy[int], count_max: int) -> st.SearchStrategy[Piece]:
    return st.builds(
        Piece,
        count=st.integers(1, 3) | st.integers(1, count_max),
        flow=st.integers(0, FLOWS_COUNT - 1),
        in_turn=st.booleans(),
        size=sizes,
        place=st.sampled_from(["behind", "page", "shifted"]),
        shift=SHIFTS,
        slack=st.just(0) | st.just(4096) | st.integers(0, 600),
    )


# Many small ones fill the records, the iovecs and the bounce memory of a batch.
PIECES = st.lists(_pieces(SMALL_SIZES, 200) | _pieces(LARGE_SIZES, 8), min_size=1, max_size=25)


def _profiles(
    copy_below: tuple[int, ...] = COPY_BELOW, virt_mask: tuple[int, ...] = (0, 4095)
) -> st.SearchStrategy[Profile]:
    return st.builds(
        Profile,
        mem_align=st.sampled_from([2, 4, 512, 4096]),
        block_bytes=st.sampled_from([512, 4096]),
        virt_mask=st.sampled_from(virt_mask),
        iovecs_max=st.sampled_from([1024, 4, 5, 16]),
        batch_bytes_max=st.sampled_from(BATCH_BYTES_MAX),
        copy_below=st.sampled_from(copy_below),
    )


@pytest.fixture(scope="module", autouse=True)
def planner_is_compiled() -> None:
    """A core that does not compile is one error here, not one for each example."""
    load_planner()


class Stage:
    """One planner, its memory, and what is known of everything given to it."""

    # Mapped once: a Hypothesis run begins hundreds of stages.
    arena: Final = Memory(ARENA_BYTES)
    header: Final = Memory(HEADER_BYTES)
    bounce: Final = Memory(256 * 1024)
    iov: Final = (Iovec * 1024)()

    def __init__(self, profile: Profile, checksum: bool, bounce_extra: int) -> None:
        self.planner = load_planner()
        self.profile = profile
        self.checksum = checksum
        least = self.planner.bounce_bytes_min(ctypes.byref(profile))
        self.bounce_bytes = least + bounce_extra
        assert self.bounce_bytes < self.bounce.size
        self.bounce.fill(0)
        assert self.planner.profile_is_usable(ctypes.byref(profile), HEADER_BYTES, len(self.iov))
        self.ids = [ctypes.create_string_buffer(bytes([17 + n]) * 16, 16) for n in range(4)]
        self.given = [0] * FLOWS_COUNT
        self.read = [0] * FLOWS_COUNT
        self.crcs = [0] * FLOWS_COUNT
        self.batch = Batch()
        self.begin()

    def begin(self) -> None:
        self.header.fill(FILL_BOUNCE)
        self.bounce[: self.bounce_bytes] = bytes([FILL_BOUNCE]) * self.bounce_bytes
        self.arena_used = 0
        self.direct_end: int | None = None
        self.last_expected = Expected()
        self.direct_bytes = 0
        self.bounced_bytes = [0] * len(BOUNCE_REASONS)
        self.planner.begin(
            ctypes.byref(self.batch), self.iov, len(self.iov), self.header.address, HEADER_BYTES,
            self.bounce.address, self.bounce_bytes, self.checksum,
        )  # fmt: skip

    def place(self, piece: Piece) -> int:
        """An offset of the arena at which nothing lies yet; maybe in a page already shared."""
        if piece.place == "behind":
            return self.arena_used
        page = round_up(self.arena_used, PAGE_BYTES)
        return page + (piece.shift if piece.place == "shifted" else 0)

    def feed(self, piece: Piece) -> None:
        for index in range(piece.count):
            flow = (piece.flow + (index if piece.in_turn else 0)) % FLOWS_COUNT
            self.feed_one(piece, flow)

    def feed_one(self, piece: Piece, flow: int) -> None:
        """Adds a fragment, in as many batches as it takes."""
        offset, size = self.place(piece), piece.size
        if offset + size + piece.slack > ARENA_BYTES:
            self.finish()
            offset = self.place(piece)
        while size > 0:
            taken = self.add(flow, offset, size, piece.slack)
            size -= taken
            offset += taken
            self.arena_used = offset + (piece.slack if size == 0 else 0)
            if size > 0:
                self.finish()
                offset %= PAGE_BYTES  # all memory is free again

    def add(self, flow: int, offset: int, size: int, slack: int) -> int:
        """One plan_add, and everything that can be said of it at once."""
        data = flow_bytes(flow, self.given[flow], size)
        self.arena[offset : offset + size + slack] = data + bytes([FILL_SLACK]) * slack
        address = self.arena.address + offset
        fragment = Fragment(
            flow=ctypes.addressof(self.ids[flow]), stream_offset=self.given[flow], data=address,
            bytes=size, slack=slack, crc=self.crcs[flow],
        )  # fmt: skip
        was_empty = bool(self.planner.is_empty(ctypes.byref(self.batch)))
        could_fit = self.surely_fits(size)
        taken = self.planner.add(
            ctypes.byref(self.batch), ctypes.byref(self.profile), ctypes.byref(fragment)
        )
        assert 0 <= taken <= size
        assert taken > 0 or not was_empty, "an empty batch takes some of anything"
        assert taken == size or not could_fit, "there was room for all of it"
        if 0 < taken < size:
            unit = max(PAGE_BYTES, self.profile.mem_align, self.profile.virt_mask + 1)
            assert (address + taken) % unit == 0
        rest = (fragment.stream_offset, fragment.data, fragment.bytes)
        assert rest == (self.given[flow] + taken, address + taken, size - taken)
        if taken > 0:
            self.account(address, taken, slack if taken == size else 0)
        padded = self.last_expected.padded_in_place if taken > 0 else 0
        assert fragment.slack == slack - padded
        behind = self.arena[offset + size : offset + size + slack]
        assert behind == bytes(padded) + bytes([FILL_SLACK]) * (slack - padded)
        if self.checksum:
            assert fragment.crc == crc32c.crc32c(data[:taken], self.crcs[flow])
        else:
            assert fragment.crc == self.crcs[flow]
        self.crcs[flow] = fragment.crc
        self.given[flow] += taken
        return int(taken)

    def surely_fits(self, size: int) -> bool:
        """True if by the most careful of estimates nothing stands in the fragment's way."""
        edge = max(self.profile.mem_align, self.profile.virt_mask + 1)
        unit = max(edge, self.profile.block_bytes)
        frame = self.batch.frame
        copied_max = 2 * edge + self.profile.copy_below
        return bool(
            frame.used + 3 * RECORD_EXTENT.size <= frame.capacity
            and round_up(frame.used + 3 * RECORD_EXTENT.size, unit)
            + round_up(self.batch.payload_end + size + 3 * edge, unit)
            <= self.profile.batch_bytes_max
            and self.batch.iov_count + 4 <= self.profile.iovecs_max
            and self.batch.bounce_used + copied_max + 2 * edge + unit <= self.bounce_bytes
        )

    def account(self, address: int, taken: int, slack: int) -> None:
        p = self.profile
        expected = expect(
            address, address + taken, slack=slack, mem_align=p.mem_align, virt_mask=p.virt_mask,
            copy_below=p.copy_below, direct_end=self.direct_end,
        )  # fmt: skip
        assert expected.head < p.mem_align
        assert expected.tail < p.mem_align
        self.direct_end = expected.direct_end
        self.last_expected = expected
        self.direct_bytes += expected.direct
        assert self.batch.direct_bytes == self.direct_bytes
        for index, reason in enumerate(BOUNCE_REASONS):
            self.bounced_bytes[index] += getattr(expected, reason, 0)
            assert self.batch.bounced_bytes[index] == self.bounced_bytes[index], reason

    def finish(self) -> None:
        if self.planner.is_empty(ctypes.byref(self.batch)):
            return
        info = FrameBatch(store_uuid=b"\x42" * 16, segment_sequence=1)
        profile, batch = ctypes.byref(self.profile), ctypes.byref(self.batch)
        announced = self.planner.bytes(batch, profile)
        written = self.planner.finish(batch, profile, ctypes.byref(info))
        assert announced == written == info.batch_bytes
        assert self.batch.bounce_used <= self.bounce_bytes
        assert not any(self.bounce[self.bounce_bytes :]), "beyond the memory lent"
        image = self.write(written)
        self.check_payload(image)
        assert self.read == self.given, "every byte taken is in the batch"
        self.begin()

    def write(self, written: int) -> bytes:
        """What the device would hold; checks that it would take the iovecs."""
        p = self.profile
        iovecs = [(v.base, v.bytes) for v in self.iov[: self.batch.iov_count]]
        assert len(iovecs) <= p.iovecs_max
        assert iovecs[0][0] == self.header.address
        for base, count in iovecs:
            assert count > 0
            assert base % p.mem_align == count % p.mem_align == 0
        for (base, count), (following, _) in itertools.pairwise(iovecs):
            assert (base + count) & p.virt_mask == 0
            assert following & p.virt_mask == 0
        assert sum(count for _, count in iovecs) == written
        assert written % p.block_bytes == 0
        assert written <= p.batch_bytes_max
        return b"".join(ctypes.string_at(base, count) for base, count in iovecs)

    def check_payload(self, image: bytes) -> None:
        read = read_batch(image)
        assert read.flags == (FLAG_CRC32C if self.checksum else 0)
        assert read.header_bytes % max(self.profile.block_bytes, self.profile.virt_mask + 1) == 0
        position = 0
        for extent in read.extents:
            flow = extent.flow[0] - 17
            assert extent.flow == bytes([17 + flow]) * 16
            assert extent.stream_offset == self.read[flow]
            assert extent.payload_offset >= position
            assert not any(read.payload[position : extent.payload_offset]), "padding is zero"
            position = extent.payload_offset + extent.bytes
            data = read.payload[extent.payload_offset : position]
            self.check_extent_bytes(flow, data)
            if self.checksum:
                assert crc32c.crc32c(data, extent.crc_before) == extent.crc_after
            else:
                assert extent.crc_before == extent.crc_after == 0
            self.read[flow] += extent.bytes
        assert not any(read.payload[position:])
        padding = len(read.payload) - read.payload_bytes
        assert self.batch.padding_bytes == padding
        assert self.batch.direct_bytes + sum(self.batch.bounced_bytes) == read.payload_bytes

    def check_extent_bytes(self, flow: int, data: bytes) -> None:
        for at in range(0, len(data), PERIOD):
            part = data[at : at + PERIOD]
            assert part == flow_bytes(flow, self.read[flow] + at, len(part))


@pytest.mark.timeout(300)
@settings(max_examples=200, deadline=None, print_blob=True,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])  # fmt: skip
@given(
    profile=_profiles(),
    checksum=st.booleans(),
    bounce_extra=st.sampled_from([128 * 1024, 0, 16384]),
    pieces=PIECES,
)
def test_any_fragments_are_read_back(
    profile: Profile, checksum: bool, bounce_extra: int, pieces: list[Piece]
) -> None:
    stage = Stage(profile, checksum, bounce_extra)
    for piece in pieces:
        stage.feed(piece)
    stage.finish()


@settings(max_examples=60, deadline=None, print_blob=True)
@given(
    profile=_profiles(copy_below=(0,), virt_mask=(0,)),
    units=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 17)), min_size=1, max_size=60),
)
def test_clean_fragments_are_never_copied(profile: Profile, units: list[tuple[int, int]]) -> None:
    """A fragment whose address and length are multiples of M costs no copy, whatever the rest."""
    stage = Stage(profile, False, 0)
    copied: list[int] = []
    for flow, count in units:
        stage.feed(Piece(1, flow, False, count * profile.mem_align, "page", 0, 0))
        copied.append(sum(stage.batch.bounced_bytes))
    stage.finish()
    assert not any(copied)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(data=st.binary(max_size=5000), crc=st.integers(0, 2**32 - 1), cut=st.integers(0, 5000))
def test_crc32c_agrees_and_chains(data: bytes, crc: int, cut: int) -> None:
    ours = load_planner().crc32c
    assert ours(crc, data, len(data)) == crc32c.crc32c(data, crc)
    first, second = data[:cut], data[cut:]
    assert ours(ours(crc, first, len(first)), second, len(second)) == ours(crc, data, len(data))
