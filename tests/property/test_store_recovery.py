# SPDX-License-Identifier: Apache-2.0
"""Recovery over random lives of a store: all that counts is shown, and nothing else.

Hypothesis prints the history that failed and how to run it again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingestd.errors import StoreDamagedError, StoreError
from ingestd.store.device.device import Device
from ingestd.store.format import layout
from ingestd.store.read.image import StoreImage, read_image
from ingestd.store.read.reader import read_flow
from ingestd.store.read.verify import DAMAGE, verify_store
from ingestd.store.serve.served_store import open_for_serving
from support.store_builder import StoreBuilder
from support.store_histories import History, histories, is_prefix

CAREFUL = settings(
    max_examples=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(autouse=True, scope="module")
def _no_flush() -> Iterator[None]:
    """No machine fails here in mid-test: what a flush is for is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "sync", lambda _device: None)
        yield


@contextmanager
def saved(builder: StoreBuilder) -> Iterator[Path]:
    """The store in a file of the working directory's file system, for a while."""
    with tempfile.TemporaryDirectory() as directory:
        yield builder.save(Path(directory) / "store.img")


def contents(image: StoreImage) -> dict[bytes, bytes]:
    return {flow.flow_id: b"".join(read_flow(image, flow)) for flow in image.flows}


def check_shown(history: History, image: StoreImage, *, durable: bool) -> None:
    """Compare an image, flow by flow and byte by byte, with what the model expects."""
    assert {flow.flow_id for flow in image.flows} == set(history.expected)
    for flow in image.flows:
        expected = history.expected[flow.flow_id]
        shown = b"".join(read_flow(image, flow))
        end, durable_least, durable_most = expected.prefix()
        assert (flow.bytes, len(shown)) == (end, end)
        if durable:
            assert flow.durable_bytes == end
        else:
            assert durable_least <= flow.durable_bytes <= durable_most
        assert is_prefix(shown, history.builder.flows[flow.flow_id].data)
        assert flow.state == expected.state()
        if flow.checksum is not None:
            assert flow.checksum == f"crc32c:{crc32c(shown):08x}"


@CAREFUL
@given(history=histories())
def test_an_image_shows_exactly_what_counts(history: History) -> None:
    with saved(history.builder) as path, read_image(str(path)) as image:
        assert image.warnings == []
        check_shown(history, image, durable=False)
        assert sum(s.batches_dropped for s in image.segments) == history.batches_dropped


@pytest.mark.parametrize("catalogues", [None, "catalogues"])
@CAREFUL
@given(history=histories())
def test_recovery_keeps_it_and_is_idempotent(catalogues: str | None, history: History) -> None:
    with saved(history.builder) as path:
        place = path.parent / catalogues if catalogues else None
        with open_for_serving(str(path), catalogues=place) as store:
            assert store.recovery.segments_damaged == 0
            assert store.recovery.segments_open == 0
            assert store.recovery.warnings == ()
        with read_image(str(path)) as image:
            check_shown(history, image, durable=True)
            assert image.segment_counts()["open"] == 0
        before = path.read_bytes()
        with open_for_serving(str(path), catalogues=place) as store:
            assert store.recovery.flows == len(history.expected)
            assert (store.recovery.segments_recovered, store.recovery.segments_freed) == (0, 0)
        after = path.read_bytes()
        assert before[layout.SEGMENTS_OFFSET :] == after[layout.SEGMENTS_OFFSET :]
        assert [f for f in verify_store(str(path)).findings if f.severity == DAMAGE] == []


@CAREFUL
@given(history=histories(), data=st.data())
def test_any_part_of_a_flow_can_be_read(history: History, data: st.DataObject) -> None:
    with saved(history.builder) as path, read_image(str(path)) as image:
        for flow in image.flows:
            sent = history.builder.flows[flow.flow_id].data
            offset = data.draw(st.integers(0, flow.bytes))
            length = data.draw(st.none() | st.integers(0, flow.bytes + 1))
            end = flow.bytes if length is None else min(flow.bytes, offset + length)
            shown = b"".join(read_flow(image, flow, offset, length))
            assert shown == bytes(sent[offset:end])


@CAREFUL
@given(history=histories(checksum=True, intact=True), data=st.data())
def test_a_flipped_bit_is_found_and_never_shown(history: History, data: st.DataObject) -> None:
    builder = history.builder
    first, end = data.draw(st.sampled_from(_ranges_in_use(builder)))
    at = data.draw(st.integers(first, end - 1))
    sent = {flow: bytes(model.data) for flow, model in builder.flows.items()}
    with saved(builder) as path:
        assert verify_store(str(path)).findings == []
        _flip(path, at, data.draw(st.integers(0, 7)))
        assert verify_store(str(path)).findings, f"a flip at {at} was not found"
        with read_image(str(path)) as image:
            _check_prefixes(image, sent)
        with open_for_serving(str(path)):
            pass
        with read_image(str(path)) as image:
            _check_prefixes(image, sent)


def _ranges_in_use(builder: StoreBuilder) -> list[tuple[int, int]]:
    """All but the headers of segments that hold nothing else: they say nothing to be missed."""
    segments = [
        (first - layout.SEGMENTS_OFFSET) // builder.segment_bytes for first, _ in builder.used
    ]
    return [
        used
        for used, segment in zip(builder.used, segments, strict=True)
        if used[0] < used[1] and (segment < 0 or segments.count(segment) > 1)
    ]


def _flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def _check_prefixes(image: StoreImage, sent: dict[bytes, bytes]) -> None:
    for flow in image.flows:
        shown = bytearray()
        try:
            for piece in read_flow(image, flow):
                shown += piece
        except StoreDamagedError:
            pass
        assert is_prefix(bytes(shown), sent.get(flow.flow_id, b""))


@pytest.mark.parametrize("catalogues", [None, "catalogues"])
@CAREFUL
@given(history=histories(), data=st.data())
def test_overwritten_regions_never_crash_nor_leak(
    catalogues: str | None, history: History, data: st.DataObject
) -> None:
    builder = history.builder
    sent = {flow: bytes(model.data) for flow, model in builder.flows.items()}
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(layout.SEGMENTS_OFFSET, builder.store_bytes - 1))
        size = data.draw(st.sampled_from((1, 100, 512, 4096, 100_000)))
        garbage = data.draw(st.sampled_from((b"\0", b"\xff", b"INGESTBT", b"garbage")))
        size = min(size, builder.store_bytes - at)
        builder.image[at : at + size] = (garbage * size)[:size]
    checked = all(_has_checksum(builder, flow) for flow in sent)
    with saved(builder) as path:
        verify_store(str(path))
        place = path.parent / catalogues if catalogues else None
        with open_for_serving(str(path), catalogues=place), read_image(str(path)) as image:
            if checked:
                _check_prefixes(image, sent)


def _has_checksum(builder: StoreBuilder, flow: bytes) -> bool:
    return builder.flows[flow].crc == crc32c(bytes(builder.flows[flow].data))


@CAREFUL
@given(history=histories(checksum=True), data=st.data())
def test_a_truncated_store_never_crashes(history: History, data: st.DataObject) -> None:
    builder = history.builder
    size = data.draw(st.integers(0, builder.store_bytes - 1))
    sent = {flow: bytes(model.data) for flow, model in builder.flows.items()}
    with saved(builder) as path:
        os.truncate(path, size)
        try:
            report = verify_store(str(path))
        except StoreError:
            assert size < layout.SUPERBLOCK.size_bytes
            return
        assert any("its end is missing" in finding.what for finding in report.findings)
        with read_image(str(path)) as image:
            _check_prefixes(image, sent)


@pytest.mark.parametrize("catalogues", [None, "catalogues"])
@CAREFUL
@given(history=histories(intact=True), data=st.data())
def test_contradictions_under_a_right_checksum_never_crash(
    catalogues: str | None, history: History, data: st.DataObject
) -> None:
    """A writer with a bug, or malice: fields that make no sense, with a CRC32C that is right."""
    builder = history.builder
    blocks = [(a, b) for a, b in builder.used if b - a >= 128 and a >= layout.SEGMENTS_OFFSET]
    headers = [(a, b) for a, b in blocks if builder.image[a : a + 6] == b"INGEST"]
    for _ in range(data.draw(st.integers(1, 3)) if headers else 0):
        first, end = data.draw(st.sampled_from(headers))
        at = first + data.draw(st.integers(12, min(end - first, 400) - 1))
        builder.image[at] = data.draw(st.integers(0, 255))
        builder.image[first:end] = layout.sealed(bytes(builder.image[first:end]))
    with saved(builder) as path:
        verify_store(str(path))
        place = path.parent / catalogues if catalogues else None
        with open_for_serving(str(path), catalogues=place) as store, read_image(str(path)) as image:
            shown = {flow.flow_id: flow.bytes for flow in store.flow_source().flows()}
            # Of what is damaged, a reader beside the daemon may know less than the opening saw.
            if store.recovery.segments_damaged == 0:
                assert shown == {flow.flow_id: flow.bytes for flow in image.flows}
            for flow in image.flows:
                with suppress(StoreDamagedError):
                    assert sum(map(len, read_flow(image, flow))) == flow.bytes
