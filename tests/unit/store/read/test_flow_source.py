# SPDX-License-Identifier: Apache-2.0
"""Listing flows: filters, orders, limits, and what a served store's source shows of removals."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from ingestd.store.read.flow_source import (
    FlowFilter,
    FlowOrder,
    FlowSort,
    ImageFlowSource,
    selected,
)
from ingestd.store.read.flows import Flow
from ingestd.store.read.image import ScanStoppedError, read_image
from ingestd.store.serve.served_store import open_for_serving
from support.store_builder import Close, Extent, Open, StoreBuilder

SECOND_NS = 10**9


def _flow(number: int, *, name: str | None = None, state: str = "sealed", size: int = 0) -> Flow:
    flow_id = number.to_bytes(16, "big")
    return Flow(
        flow=str(uuid.UUID(bytes=flow_id)),
        name=name,
        peer=None,
        listener="data" if number % 2 else "other",
        state=state,
        bytes=size,
        durable_bytes=size,
        started=None,
        ended=None,
        checksum=None,
        labels={"site": "north"} if number < 3 else {"site": "south", "kind": "log"},
        flow_id=flow_id,
        started_ns=number * SECOND_NS,
        ended_ns=(10 - number) * SECOND_NS,
    )


FLOWS = [
    _flow(4, name="b.log", size=5),
    _flow(1, name="a.log", size=7),
    _flow(3, state="open", size=9),
    _flow(2, name="A.log", state="interrupted", size=5),
]


def _numbers(wanted: FlowFilter, order: str = "started", limit: int | None = None) -> list[int]:
    found = selected(FLOWS, wanted, FlowOrder.parse(order), limit)
    return [int.from_bytes(flow.flow_id, "big") for flow in found]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (FlowFilter(), [1, 2, 3, 4]),
        (FlowFilter(states=frozenset({"sealed", "open"})), [1, 3, 4]),
        (FlowFilter(name_glob="*.log"), [1, 2, 4]),
        (FlowFilter(name_glob="[a-z].*"), [1, 4]),
        (FlowFilter(name_glob=""), [3]),
        (FlowFilter(labels={"site": "south"}), [3, 4]),
        (FlowFilter(labels={"site": "south", "kind": "other"}), []),
        (FlowFilter(listener="data"), [1, 3]),
        (FlowFilter(since_ns=2 * SECOND_NS), [2, 3, 4]),
        (FlowFilter(until_ns=2 * SECOND_NS), [1]),
        (FlowFilter(since_ns=2 * SECOND_NS, until_ns=3 * SECOND_NS), [2]),
    ],
)
def test_each_condition_holds(wanted: FlowFilter, numbers: list[int]) -> None:
    assert _numbers(wanted) == numbers


@pytest.mark.parametrize(
    ("order", "numbers"),
    [
        ("started", [1, 2, 3, 4]),
        ("-started", [4, 3, 2, 1]),
        ("ended", [4, 3, 2, 1]),
        ("name", [3, 2, 1, 4]),
        ("bytes", [2, 4, 1, 3]),
        ("-bytes", [3, 1, 4, 2]),
    ],
)
def test_a_limit_takes_the_first_of_the_order(order: str, numbers: list[int]) -> None:
    assert _numbers(FlowFilter(), order) == numbers
    for limit in range(6):
        assert _numbers(FlowFilter(), order, limit) == numbers[:limit]


def test_only_orders_that_there_are_have_a_name() -> None:
    assert FlowOrder.parse("-name") == FlowOrder(FlowSort.NAME, is_descending=True)
    with pytest.raises(ValueError, match="size"):
        FlowOrder.parse("size")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    builder = StoreBuilder()
    segment = builder.segment(0)
    for number in range(1, 4):
        flow = bytes([number]) * 16
        segment.batch(Open(flow, name=f"flow-{number}"), Extent(flow, bytes(number)), Close(flow))
    segment.close()
    return builder.save(tmp_path / "store.img")


def test_an_image_is_a_source(path: Path) -> None:
    with read_image(str(path)) as image:
        source = ImageFlowSource(image)
        assert [flow.name for flow in source.flows(limit=2)] == ["flow-1", "flow-2"]
        found = source.flow(b"\2" * 16)
        assert found is not None
        assert found.name == "flow-2"
        assert source.flow(b"\7" * 16) is None


def test_a_served_store_shows_no_removed_flow(path: Path) -> None:
    with open_for_serving(str(path)) as store:
        source = store.flow_source()
        assert len(list(source.flows())) == 3
        assert source.flow(b"\1" * 16) is not None
        store.sweeper.remove([b"\1" * 16], "removed")
        assert [flow.name for flow in source.flows()] == ["flow-2", "flow-3"]
        assert source.flow(b"\1" * 16) is None
        assert source.flow(b"\2" * 16) is not None


def test_a_reading_ends_when_it_is_to(path: Path) -> None:
    with open_for_serving(str(path)) as store:
        source = store.flow_source(lambda: True)
        with pytest.raises(ScanStoppedError):
            source.flows()
        with pytest.raises(ScanStoppedError):
            source.flow(b"\1" * 16)
