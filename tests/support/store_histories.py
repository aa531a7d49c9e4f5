# SPDX-License-Identifier: Apache-2.0
"""Random lives of a store for Hypothesis, each with what a reader must show of it.

A history follows the writer's rules: a batch is called committed only if it and
all before it reached the device, and a footer comes only when all did. What a
crash may lose is lost at random behind that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import strategies as st

from ingestd.store.format import layout
from support.store_builder import (
    MIB,
    Close,
    Extent,
    Item,
    Lost,
    Open,
    SegmentWriter,
    StoreBuilder,
)

FLOWS_MAX: Final = 6
SEGMENTS_MAX: Final = 4
BATCHES_MAX: Final = 6
PART_OF: Final = 4  # of so many batches one more is a part of the footer
ITEMS_MAX: Final = 4
LOST: Final[tuple[Lost, ...]] = ("no", "no", "no", "all", "header", "payload", "payload_tail")
SIZES: Final = (1, 3, 511, 512, 1448, 4095, 4096, 4097, 20_000, 36_000)
# The most that can be drawn fits into a segment, footer included; the rest is block padding.
assert BATCHES_MAX * ITEMS_MAX * (max(SIZES) + 512) + (BATCHES_MAX + 8) * 8192 < MIB


@dataclass
class Expected:
    """What of a flow counts: extents by segment, in the order of the sequences."""

    # First, end; whether the headers up to the first lost one, or any, prove it durable.
    runs: list[tuple[int, int, bool, bool]] = field(default_factory=list)
    last_event: str = "none"
    closed_at: int = 0

    def prefix(self) -> tuple[int, int, int]:
        """Bytes from byte 0 on; of them durable at least, and at most."""
        end, durable_ends = 0, [0, 0]
        for first, behind, *durable in self.runs:
            if first != end:
                break
            for number in range(2):
                if durable[number] and durable_ends[number] == first:
                    durable_ends[number] = behind
            end = behind
        return end, durable_ends[0], durable_ends[1]

    def state(self) -> str:
        """The state under no daemon."""
        sealed = self.last_event == "sealed" and self.closed_at == self.prefix()[0]
        return "sealed" if sealed else "interrupted"


@dataclass
class History:
    """A store in memory and what is in it."""

    builder: StoreBuilder
    expected: dict[bytes, Expected]
    batches_dropped: int = 0
    sealed_flows: set[bytes] = field(default_factory=set)


@dataclass
class _Planned:
    """A batch as it was appended: its items' extents, and whether it reached the device."""

    notes: list[tuple[bytes, str, int, int]]
    has_header: bool
    is_intact: bool
    checksum: bool
    committed: int


def flow_id(number: int) -> bytes:
    """The id of the n-th flow; several share a prefix."""
    return bytes([0xF0, 0x0D, number // 2]) + bytes([number]) * 13


def _contents(number: int, offset: int, size: int) -> bytes:
    """Bytes that say which flow and which offset they are of."""
    unit = b"%d@%d;" % (number, offset)
    return (unit * (size // len(unit) + 1))[:size]


@st.composite
def histories(
    draw: st.DrawFn,
    *,
    checksum: bool | None = None,
    intact: bool = False,
    stale: bool = True,
    block_bytes: int = 4096,
) -> History:
    """A store of up to SEGMENTS_MAX segments.

    `checksum` None: by chance, per segment. `intact`: nothing was lost.
    `stale`: its bytes may be those of a previous use, of this store or another.
    """
    builder = StoreBuilder(segment_count=SEGMENTS_MAX, block_bytes=block_bytes)
    if stale and draw(st.booleans()):
        builder = _earlier_life(draw, builder)
    builder.used.clear()
    builder.write_superblocks()
    history = History(builder, {})
    flows = [flow_id(number) for number in range(draw(st.integers(1, FLOWS_MAX)))]
    order = draw(st.permutations(range(SEGMENTS_MAX)))
    for index in order[: draw(st.integers(1, SEGMENTS_MAX))]:
        with_crc = draw(st.booleans()) if checksum is None else checksum
        fill_segment(draw, history, builder.segment(index), flows, with_crc, intact)
    return history


def _earlier_life(draw: st.DrawFn, fresh: StoreBuilder) -> StoreBuilder:
    """The same store, or another, had other flows; its segments were freed since."""
    same = draw(st.booleans())
    old = StoreBuilder(
        segment_count=fresh.segment_count,
        block_bytes=fresh.block_bytes,
        store_uuid=fresh.store_uuid if same else b"\x99" * 16,
    )
    for index in range(draw(st.integers(1, fresh.segment_count))):
        segment = old.segment(index)
        for number in range(draw(st.integers(1, 4))):
            size = draw(st.sampled_from(SIZES))
            stale = b"\x57" * 15 + bytes([number])
            segment.batch(Open(stale), Extent(stale, b"stale" * size), Close(stale))
        segment.mark(segment.batch_count)
        if draw(st.booleans()):
            segment.close()
    for index in range(old.segment_count):
        old.put(layout.SEGMENTS_OFFSET + index * MIB, bytes(4096), used=False)
    return StoreBuilder(
        segment_count=fresh.segment_count,
        block_bytes=fresh.block_bytes,
        # Another store had the same generations, and so the same sequences.
        generation=old.generation + same,
        fill=old.image,
    )


def fill_segment(
    draw: st.DrawFn,
    history: History,
    segment: SegmentWriter,
    flows: list[bytes],
    checksum: bool,
    intact: bool,
) -> None:
    """Fill one segment, then say how much of it counts."""
    count = draw(st.integers(0, BATCHES_MAX))
    committed = count if intact else draw(st.integers(0, count))
    planned: list[_Planned] = []
    for index in range(count):
        lost = "no" if index < committed else draw(st.sampled_from(LOST))
        known = draw(st.integers(0, min(index, committed)))
        if (
            segment.store.block_bytes == layout.BLOCK_BYTES_MIN
            and draw(st.integers(0, PART_OF)) == 0
        ):
            segment.part(checksum=checksum, committed=known, lost=lost)
            is_there = lost not in ("all", "header")
            planned.append(_Planned([], is_there, lost == "no", checksum, known))
            continue
        items, notes = _items(draw, history.builder, flows, history.sealed_flows)
        has_payload = any(isinstance(item, Extent) for item in items)
        segment.batch(*items, checksum=checksum, committed=known, lost=lost)
        # A lost payload of none at all is no loss; stale bytes may even be the right ones.
        harmless = lost == "no" or (not has_payload and lost.startswith("payload"))
        planned.append(_Planned(notes, lost not in ("all", "header"), harmless, checksum, known))
    marked = draw(st.integers(0, committed))
    if marked or draw(st.booleans()):
        segment.mark(draw(st.integers(0, marked)))
        segment.mark(marked)
        # Both count as used: a reader falls back to the older one.
    all_there = all(batch.is_intact for batch in planned)
    closed = all_there and count > 0 and draw(st.booleans())
    if closed:
        segment.close()
    _expect(history, planned, count if closed else marked)


def _items(
    draw: st.DrawFn, builder: StoreBuilder, flows: list[bytes], sealed_flows: set[bytes]
) -> tuple[list[Item], list[tuple[bytes, str, int, int]]]:
    items: list[Item] = []
    notes: list[tuple[bytes, str, int, int]] = []
    ends: dict[bytes, int] = {}
    for _ in range(draw(st.integers(1, ITEMS_MAX))):
        flow = draw(st.sampled_from(flows))
        if flow in sealed_flows:
            continue  # nothing ever follows a seal
        at = ends.get(flow, len(builder.model(flow).data))
        kind = draw(st.sampled_from(("extent", "extent", "extent", "open", "close")))
        if kind == "extent":
            size = draw(st.sampled_from(SIZES))
            items.append(Extent(flow, _contents(flows.index(flow), at, size)))
            notes.append((flow, kind, at, at + size))
            ends[flow] = at + size
        elif kind == "open":
            items.append(Open(flow, name=f"name {flow[3]}"))
            notes.append((flow, kind, at, at))
        else:
            state = draw(st.sampled_from((layout.FLOW_STATE_SEALED, layout.FLOW_STATE_INTERRUPTED)))
            items.append(Close(flow, state, layout.CLOSE_REASON_PEER))
            sealed = state == layout.FLOW_STATE_SEALED
            notes.append((flow, "sealed" if sealed else "interrupted", at, at))
            if sealed:
                sealed_flows.add(flow)
    return items, notes


def _expect(history: History, planned: list[_Planned], proven: int) -> None:
    """Apply the rule of recovery to what was planned, independently of the code under test."""
    chain = 0
    while chain < len(planned) and planned[chain].has_header:
        chain += 1
    in_chain = max([proven, *(batch.committed for batch in planned[:chain])])
    covered = max([proven, *(batch.committed for batch in planned if batch.has_header)])
    accepted = 0
    while accepted < chain:
        batch = planned[accepted]
        if accepted >= covered and not (batch.checksum and batch.is_intact):
            break
        accepted += 1
    history.batches_dropped += chain - accepted
    for index, batch in enumerate(planned[:accepted]):
        for flow, kind, first, end in batch.notes:
            expected = history.expected.setdefault(flow, Expected())
            if kind == "extent":
                expected.runs.append((first, end, index < in_chain, index < covered))
            else:
                expected.last_event, expected.closed_at = kind, first


def is_prefix(shown: bytes, sent: Any) -> bool:
    """Return whether the bytes shown are the first of those sent."""
    return bytes(sent[: len(shown)]) == shown
