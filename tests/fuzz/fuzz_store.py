# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: a whole store, some of its structs edited, through image, reader, check, recovery.

The store in the file is built anew for each input from one image: a segment of
a previous use, one closed and one open with checksums, one open without, one
opened and never used. Every flow's bytes say which flow and which offset they
are of.

What must hold for every input: only errors of ingestd.errors come out; a flow
is read to its length or StoreDamagedError is raised; recovery loses no flow,
and a second one changes nothing in the segments. A flow shows a prefix of what
was sent on it, unless the input rewrote, CRC32C included, what says whose its
bytes are, or changed bytes that have no checksum.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, get_args

import atheris
from crc32c import crc32c

with atheris.instrument_imports(include=["ingestd.store"]):
    from ingestd.errors import StoreDamagedError, StoreError
    from ingestd.store.device.device import Device
    from ingestd.store.format import layout
    from ingestd.store.format.footer_part import FOOTER_PART
    from ingestd.store.read import image as image_module
    from ingestd.store.read.flows import Flow
    from ingestd.store.read.image import StoreImage, read_image
    from ingestd.store.read.reader import read_flow
    from ingestd.store.read.verify import verify_store
    from ingestd.store.serve.served_store import ServedStore, open_for_serving

from support.fuzzing import Field, edits, fields_of, fields_of_records, run
from support.store_builder import Close, Extent, Open, SegmentWriter, StoreBuilder

EDITS_MAX: Final = 4
STRUCTS_MAX: Final = 4
PAYLOAD_REACH_BYTES: Final = 64

SEGMENT_COUNT: Final = 5
STALE, CLOSED, OPENED, UNCHECKED, UNUSED = range(SEGMENT_COUNT)
ORPHAN: Final = b"\x0f" * 16
TORN: Final = b"\xee" * 16
FLOWS: Final = tuple(bytes([0xA0 + number]) * 16 for number in range(4))

Kind: TypeAlias = Literal[
    "superblock", "segment", "mark", "batch", "payload", "part", "records", "footer"
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
LAYOUTS: Final[dict[Kind, Any]] = {
    "superblock": layout.SUPERBLOCK,
    "segment": layout.SEGMENT_HEADER,
    "mark": layout.COMMIT_MARK,
    "part": FOOTER_PART,
    "footer": layout.SEGMENT_FOOTER,
}


@dataclass(frozen=True)
class Struct:
    """Something in the store that the input may edit."""

    kind: Kind
    segment: int
    offset: int
    size: int
    fields: tuple[Field, ...]


def _sent(flow: bytes, at: int, size: int) -> bytes:
    """Bytes that say which flow and which offset they are of."""
    unit = 16
    first, last = at // unit, (at + size) // unit + 1
    text = b"".join(b"%02x at %09d;" % (flow[0], number * unit) for number in range(first, last))
    return text[at - first * unit :][:size]


class _Base(StoreBuilder):
    """The store before any edit, and where its structs are."""

    def __init__(self) -> None:
        super().__init__(segment_count=SEGMENT_COUNT)
        self.structs: list[Struct] = []
        self._stale()
        self.raise_generation()
        for at in (0, layout.SUPERBLOCK_B_OFFSET):
            self.structs.append(self._struct("superblock", -1, at))
        self._closed()
        self._opened()
        self._unchecked()
        self._note(self.segment(UNUSED))

    def _extent(self, flow: bytes, size: int) -> Extent:
        return Extent(flow, _sent(flow, len(self.model(flow).data), size))

    def _stale(self) -> None:
        """A segment of a previous use, freed since."""
        segment = self.segment(STALE)
        segment.batch(Open(ORPHAN), self._extent(ORPHAN, 9000), Close(ORPHAN))
        segment.mark(1)
        segment.close()
        self.put(segment.base, bytes(self.block_bytes), used=False)
        self._note(segment)

    def _closed(self) -> None:
        a, b = FLOWS[:2]
        segment = self.segment(CLOSED)
        segment.batch(Open(a, name="a", labels="k=v"), self._extent(a, 5000), Open(b))
        segment.batch(self._extent(b, 700), self._extent(a, 4096), committed=1)
        segment.mark(2)
        segment.part(committed=1)
        segment.batch(self._extent(b, 3000), Close(b), committed=2)
        segment.part(committed=3)
        segment.batch(self._extent(a, 300), committed=4)
        segment.close()
        self._note(segment)

    def _opened(self) -> None:
        a, c = FLOWS[0], FLOWS[2]
        segment = self.segment(OPENED)
        segment.batch(self._extent(a, 2000), Open(c), self._extent(c, 6000))
        segment.mark(1)
        segment.batch(self._extent(c, 100), Close(a, layout.FLOW_STATE_INTERRUPTED), committed=1)
        segment.mark(2)
        segment.part(committed=1)
        segment.batch(self._extent(c, 8000), Close(c), committed=1)
        segment.batch(Open(TORN), Extent(TORN, b"\xff" * 9000), committed=2, lost="payload")
        self._note(segment)

    def _unchecked(self) -> None:
        d = FLOWS[3]
        segment = self.segment(UNCHECKED)
        segment.batch(Open(d), self._extent(d, 5000), checksum=False)
        segment.mark(1)
        segment.batch(self._extent(d, 1000), Close(d), checksum=False, committed=1)
        segment.mark(2)
        segment.batch(Extent(TORN, b"\xff" * 500), checksum=False, committed=1, lost="payload")
        self._note(segment)

    def _note(self, segment: SegmentWriter) -> None:
        """Note the structs of a segment, those too that are not there."""
        index, base, block_bytes = segment.index, segment.base, self.block_bytes
        self.structs.append(self._struct("segment", index, base))
        for number in range(layout.SEGMENT_MARKS_COUNT):
            at = base + (layout.SEGMENT_MARK_BLOCK + number) * block_bytes
            self.structs.append(self._struct("mark", index, at))
        for at in segment.batch_offsets:
            header = layout.BATCH_HEADER.unpack(self.image, base + at)
            self.structs.append(self._batch(index, base + at, header))
            behind = base + at + header.header_bytes
            if header.flags & layout.BATCH_IS_PART:
                self.structs.append(self._struct("part", index, behind))
            else:
                self.structs.append(self._payload(index, base + at, header))
        end = base + self.segment_bytes
        footer = layout.SEGMENT_FOOTER.unpack(self.image, end - block_bytes)
        if footer.record_bytes:
            at = base + footer.records_offset
            self.structs.append(self._records(index, at, footer.record_bytes))
        self.structs.append(self._struct("footer", index, end - block_bytes))

    def _struct(self, kind: Kind, index: int, at: int) -> Struct:
        what = LAYOUTS[kind]
        return Struct(kind, index, at, what.size_bytes, tuple(fields_of(what)))

    def _batch(self, index: int, at: int, header: layout.BatchHeaderRow) -> Struct:
        data = bytes(self.image[at : at + header.header_bytes])
        first = layout.BATCH_HEADER.size_bytes
        fields = fields_of(layout.BATCH_HEADER)
        fields += fields_of_records(data, first, first + header.record_bytes)
        return Struct("batch", index, at, header.header_bytes, tuple(fields))

    def _payload(self, index: int, at: int, header: layout.BatchHeaderRow) -> Struct:
        fields = tuple((byte, 1) for byte in range(PAYLOAD_REACH_BYTES))
        size = header.batch_bytes - header.header_bytes
        return Struct("payload", index, at + header.header_bytes, size, fields)

    def _records(self, index: int, at: int, size: int) -> Struct:
        fields = fields_of_records(bytes(self.image[at : at + size]), 0, size)
        return Struct("records", index, at, size, tuple(fields))


BASE: Final = _Base()
OF_KIND: Final = [[s for s in BASE.structs if s.kind == kind] for kind in KINDS]
IMAGE: Final = bytes(BASE.image)
SENT: Final = {flow: bytes(model.data) for flow, model in BASE.flows.items()}
UNIT_BYTES: Final = 4096
USED: Final = [
    at
    for at in range(0, len(IMAGE), UNIT_BYTES)
    if IMAGE[at : at + UNIT_BYTES] != bytes(UNIT_BYTES)
]


@dataclass
class Case:
    """A store to be: the patches on the image, and what of it the input may speak for."""

    patches: dict[int, bytes] = field(default_factory=dict)
    size: int = len(IMAGE)
    tainted: set[bytes] = field(default_factory=lambda: {TORN})
    is_rewritten: bool = False

    def taint(self, struct: Struct, data: bytes, *, sealed: bool) -> None:
        """Note which flows may show other bytes than were sent, now that `struct` is `data`."""
        before = IMAGE[struct.offset : struct.offset + struct.size]
        if struct.kind == "payload" and struct.segment == UNCHECKED:
            self.tainted.add(FLOWS[3])
        if struct.kind == "batch" and sealed:
            # Its records may now name any flow, also one that nobody sent.
            self.is_rewritten = True
            self.tainted |= {flow for flow in SENT if flow in before or flow in data}


def _reseal(case: Case, struct: Struct, data: bytes) -> bytes:
    """Put the CRC32C right that covers `data`; that of a footer's records is in the footer."""
    if struct.kind != "records":
        return layout.sealed(data)
    end = layout.SEGMENTS_OFFSET + (struct.segment + 1) * BASE.segment_bytes
    at = end - BASE.block_bytes
    footer = layout.SEGMENT_FOOTER.unpack(case.patches.get(at) or IMAGE[at:end])
    row = footer._replace(records_crc32c=crc32c(data))
    case.patches[at] = layout.sealed(layout.SEGMENT_FOOTER.pack(row))
    return data


def _case(source: atheris.FuzzedDataProvider) -> Case:
    """Read from the input which structs to edit, and how."""
    case = Case()
    for _ in range(source.ConsumeIntInRange(0, STRUCTS_MAX)):
        alike = OF_KIND[source.ConsumeIntInRange(0, len(OF_KIND) - 1)]
        struct = alike[source.ConsumeIntInRange(0, len(alike) - 1)]
        model = struct
        if source.ConsumeIntInRange(0, 7) == 0:
            alike = [other for other in alike if other.size == struct.size]
            model = alike[source.ConsumeIntInRange(0, len(alike) - 1)]
        base = IMAGE[model.offset : model.offset + model.size]
        if model is struct:
            base = case.patches.get(struct.offset, base)
        data = edits(source, base, struct.fields, EDITS_MAX)
        is_sealed = source.ConsumeIntInRange(0, 3) > 0 and struct.kind != "payload"
        if is_sealed:
            data = _reseal(case, struct, data)
        case.taint(struct, data, sealed=is_sealed)
        case.patches[struct.offset] = data
    if source.ConsumeIntInRange(0, 15) == 15:
        case.size = source.ConsumeIntInRange(0, len(IMAGE))
    return case


class _StoreFile:
    """The file that every store lies in, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, case: Case) -> None:
        """Write the image and the case's patches; what is zeros stays a hole."""
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, len(IMAGE))
        for at in USED:
            os.pwrite(self._fd, IMAGE[at : at + UNIT_BYTES], at)
        for at, data in case.patches.items():
            os.pwrite(self._fd, data, at)
        os.ftruncate(self._fd, case.size)

    def segments(self) -> bytes:
        """Return all that lies behind the superblocks."""
        return os.pread(self._fd, len(IMAGE), layout.SEGMENTS_OFFSET)


def _shown(image: StoreImage, flow: Flow) -> bytes:
    """What a reader gets of a flow: all of it, or the part before an error."""
    shown = bytearray()
    try:
        for piece in read_flow(image, flow):
            shown += piece
    except StoreDamagedError:
        assert len(shown) <= flow.bytes
    else:
        assert len(shown) == flow.bytes, f"{len(shown)} bytes of {flow.bytes}"
    return bytes(shown)


def _check_image(case: Case, image: StoreImage) -> dict[bytes, tuple[int, bytes]]:
    """Check what the image shows; returns each flow's length and the bytes that can be read."""
    found = {}
    for flow in image.flows:
        shown = _shown(image, flow)
        flow.as_dict()
        found[flow.flow_id] = (flow.bytes, shown)
        if flow.flow_id not in SENT and case.is_rewritten:
            continue
        if flow.flow_id not in case.tainted:
            sent = SENT.get(flow.flow_id, b"")
            assert sent.startswith(shown), f"flow {flow.flow} shows {_odd(shown, sent)!r}"
    return found


def _odd(shown: bytes, sent: bytes) -> bytes:
    """A piece of what was shown, from the first byte on that was not sent."""
    at = next((n for n, byte in enumerate(shown) if sent[n : n + 1] != bytes([byte])), 0)
    return shown[at : at + 40]


def _check_served(case: Case, store: _StoreFile, served: ServedStore) -> None:
    """A daemon that begins reads the truth, and so is who reads meanwhile."""
    with read_image(store.path) as image:
        assert image.served
        assert image.segment_counts()["free"] == served.recovery.segments_free
        _check_image(case, image)


def _check_recovered(case: Case, store: _StoreFile, before: dict[bytes, tuple[int, bytes]]) -> None:
    """`before` is what an image showed; now all of it is there, for good."""
    with read_image(store.path) as image:
        assert _check_image(case, image) == before
        if image.superblock.generation == layout.GENERATION_MAX:
            return  # it was the last opening that there can be
    segments = store.segments()
    with open_for_serving(store.path) as served:
        assert (served.recovery.segments_recovered, served.recovery.segments_freed) == (0, 0)
    assert store.segments() == segments


def use(store: _StoreFile, case: Case) -> None:
    """Do with a store all that can be done with it."""
    store.write(case)
    try:
        with read_image(store.path, thorough=True) as image:
            before = _check_image(case, image)
    except StoreError:
        return
    report = verify_store(store.path)
    if not case.patches and case.size == len(IMAGE):
        assert not report.is_damaged
        assert len(report.as_dict()["findings"]) == 2
    try:
        served = open_for_serving(store.path)
    except StoreError:
        return
    with served:
        _check_served(case, store, served)
    _check_recovered(case, store, before)


class _InTurn:
    """What an image asks of a pool of threads, without any."""

    map = staticmethod(map)

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _directory() -> str | None:
    """Memory, where it takes O_DIRECT; else where temporary files go."""
    memory = "/dev/shm"
    try:
        with tempfile.NamedTemporaryFile(dir=memory) as probe:
            os.close(os.open(probe.name, os.O_RDWR | os.O_DIRECT))
    except OSError:
        return None
    return memory


def main() -> None:
    """Fuzz, the store in a file of its own."""
    # No machine fails here, and each store is small: threads would only cost.
    Device.sync = lambda _device: None  # type: ignore[method-assign]
    image_module.ThreadPoolExecutor = _InTurn  # type: ignore[misc,assignment]
    with tempfile.TemporaryDirectory(dir=_directory(), prefix="ingestd-fuzz-") as directory:
        store = _StoreFile(Path(directory) / "store.img")
        run(lambda data: use(store, _case(atheris.FuzzedDataProvider(data))))


if __name__ == "__main__":
    main()
