# SPDX-License-Identifier: Apache-2.0
"""Damage in what a daemon stored is shown by `ls`, `cat` and `verify`, whatever else they find."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from ingestd.errors import StoreDamagedError
from ingestd.store.read.image import read_image
from ingestd.store.read.verify import FINDINGS_MAX
from support import tally
from support.daemon import Daemon, format_store, run_ingestd
from support.observe import assert_stored, cat, flow_of
from support.payload import Payload
from support.senders import assert_sealed, send
from support.store_builder import Close, Extent, Open, SegmentWriter, StoreBuilder
from support.stores import MIB, store_config

CUT_OFF_COUNT: Final = 600  # of each, two things are found
FLOWS_OF_BATCH: Final = 20
LYING: Final = b"\xff" * 16
HEADER_BYTES: Final = 4096


def overwrite(store: Path, at: int, size: int) -> None:
    """As a stray write does."""
    with store.open("r+b") as file:
        file.seek(at)
        file.write(b"\x5a" * size)


def _cut_off(builder: StoreBuilder, flows: list[bytes]) -> SegmentWriter:
    """Flows that miss their second part, as a crash leaves them; return where they end."""
    first, last = builder.segment(0), builder.segment(1)
    parts = [flows[at : at + FLOWS_OF_BATCH] for at in range(0, len(flows), FLOWS_OF_BATCH)]
    for part in parts:
        first.batch(*(item for flow in part for item in (Open(flow), Extent(flow, b"a"))))
    for part in parts:
        first.batch(*(Extent(flow, b"b") for flow in part), lost="all")
    for part in parts:
        last.batch(*(item for flow in part for item in (Extent(flow, b"c"), Close(flow))))
    return last


@pytest.mark.fault("many_doubts")
def test_damage_behind_many_flows_that_were_cut_off(tmp_path: Path) -> None:
    """There are more findings than are kept, and what comes last of them is damage."""
    builder = StoreBuilder(segment_bytes=2 * MIB)
    flows = [number.to_bytes(16, "big") for number in range(1, CUT_OFF_COUNT + 1)]
    segment = _cut_off(builder, flows)
    segment.batch(Open(LYING), Extent(LYING, b"not what was sealed"))
    builder.flows[LYING].crc ^= 1
    segment.batch(Close(LYING))
    store = builder.save(tmp_path / "store.img")
    done = run_ingestd("verify", store, "--json", code=StoreDamagedError.exit_code)
    report = json.loads(done.stdout)
    assert len(report["findings"]) == FINDINGS_MAX
    assert report["findings_omitted"] + FINDINGS_MAX > 2 * CUT_OFF_COUNT
    (shown,) = [item for item in report["findings"] if item["severity"] == "damage"]
    assert LYING.hex() in shown["where"].replace("-", "")


@pytest.mark.fault("headers")
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_segment_of_a_sealed_flow_loses_its_header(
    tmp_path: Path, start_daemon: Callable[..., Daemon], seed: int, number: int
) -> None:
    """It is damaged, not interrupted; what lies around the hole can be had."""
    store = format_store(tmp_path / "store.img", "--segment-size", "1MiB", size="32MiB")
    config = store_config(tmp_path / "c.toml", area="4MiB", write_bytes_max="64KiB")
    daemon = start_daemon(store, config=config)
    sent = send(daemon.address, Payload(seed, 3 * MIB))
    beside = send(daemon.address, Payload(seed + 1, 100_000))
    assert_sealed(sent)
    assert daemon.stop() == 0
    with read_image(str(store)) as image:
        used = [segment for segment in image.segments if segment.payload_bytes > 0]
        segment = sorted(used, key=lambda segment: segment.sequence)[number]
        at = image.superblock.segment_offset(segment.index)
    overwrite(store, at, HEADER_BYTES)
    entry = flow_of(store, sent.flow)
    assert (entry["state"], entry["bytes"]) == ("damaged", sent.payload.size)
    run_ingestd("cat", store, sent.flow, code=StoreDamagedError.exit_code)
    run_ingestd("verify", store, code=StoreDamagedError.exit_code)
    with read_image(str(store)) as image:
        ((begin, end),) = image.find(sent.flow).missing
    assert end - begin <= MIB
    data = sent.payload.data()
    with tally.acknowledged(len(data) - (end - begin)):
        assert cat(store, sent.flow, "--length", str(begin)) == data[:begin]
        assert cat(store, sent.flow, "--offset", str(end)) == data[end:]
    assert_stored(store, [beside])
