# SPDX-License-Identifier: Apache-2.0
"""Several stores behind one port: each flow lies in one, and is resumed where it lies."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from ingestd.errors import FlowNotFoundError, NotAStoreError, UsageError
from support.daemon import Daemon, format_store, run_ingestd
from support.ingest import Ingest, data_of
from support.observe import assert_clean, image_sha256, list_flows, scrape, wait_until
from support.payload import Payload
from support.senders import Sent, SocketSender, assert_sealed, send
from support.stores import write_config

FLOWS_COUNT: Final = 48
FLOW_BYTES: Final = 100_003
TRIES_MAX: Final = 200
SMALL: Final = ("--segment-size", "1MiB")
AREA: Final = {"area": "8MiB", "write_bytes_max": "128KiB", "stall_after_s": 3600}


@dataclass
class Node:
    """A daemon with three stores behind a listener of each protocol."""

    daemon: Daemon
    stores: dict[str, Path]
    config: Path
    tables: dict[str, Any]

    @property
    def ingest(self) -> tuple[str, int]:
        return self.daemon.listener("ingest")

    def store_of(self, flow: str) -> str:
        """The one store that has a flow."""
        flows = {name: list_flows(path) for name, path in self.stores.items()}
        lie = [name for name, own in flows.items() if flow in {one["flow"] for one in own}]
        assert len(lie) == 1, (flow, lie)
        return lie[0]

    def check(self, sent: list[Sent]) -> dict[str, list[Sent]]:
        """Compare what each store has with what was sent; return it by store."""
        lie: dict[str, list[Sent]] = {name: [] for name in self.stores}
        held = {name: {f["flow"] for f in list_flows(path)} for name, path in self.stores.items()}
        for one in sent:
            assert_sealed(one)
            names = [name for name in self.stores if one.flow in held[name]]
            assert len(names) == 1, names
            lie[names[0]].append(one)
        for name, own in lie.items():
            digests = image_sha256(self.stores[name], [one.flow for one in own])
            assert digests == {one.flow: one.payload.sha256() for one in own}
        return lie

    def change(self, store: str, **settings: Any) -> None:
        """Reload with other settings of a store."""
        reloads_count = len(self.daemon.events("config_reloaded"))
        self.tables["store"][store].update(settings)
        write_config(self.config, **self.tables)
        self.daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(self.daemon.events("config_reloaded")) > reloads_count, "a reload")


@pytest.fixture
def start_node(start_daemon: Callable[..., Daemon], tmp_path: Path) -> Callable[..., Node]:
    """A function that serves three stores of these sizes, with these terms of the listeners."""

    def start(sizes: tuple[str, str, str] = ("32MiB", "32MiB", "32MiB"), **terms: Any) -> Node:
        names = ("default", "b", "c")
        stores = {
            name: format_store(tmp_path / f"{name}.img", *SMALL, size=size)
            for name, size in zip(names, sizes, strict=True)
        }
        listener = {"address": "127.0.0.1:0", "stores": list(names), **terms}
        tables: dict[str, Any] = {
            "store": {name: {**AREA, "path": str(path)} for name, path in stores.items()},
            "listener": {
                "default": listener,
                "ingest": {**listener, "protocol": "ingest", "ack_interval_s": 0.05},
            },
            "log": {"level": "debug"},
        }
        config = write_config(tmp_path / "node.toml", **tables)
        return Node(start_daemon(stores["default"], config=config), stores, config, tables)

    return start


def _send_many(node: Node, seed: int, count: int = FLOWS_COUNT) -> list[Sent]:
    payloads = [Payload(seed + number, FLOW_BYTES) for number in range(count)]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda payload: send(node.daemon.address, payload), payloads))


def test_flows_are_spread_over_all_stores(start_node: Callable[..., Node], seed: int) -> None:
    node = start_node()
    lie = node.check(_send_many(node, seed))
    assert all(lie.values()), {name: len(own) for name, own in lie.items()}
    assert node.daemon.stop() == 0
    for path in node.stores.values():
        assert_clean(path)
    _check_commands(node, lie)


def _check_commands(node: Node, lie: dict[str, list[Sent]]) -> None:
    """The commands that read stores take several, or all of a configuration."""
    all_stores = ("-c", node.config)
    expected = {(str(node.stores[n]), one.flow) for n, own in lie.items() for one in own}
    for stores in (all_stores, tuple(node.stores.values())):
        lines = run_ingestd("ls", *stores, "--json").stdout.splitlines()
        flows = [json.loads(line) for line in lines]
        assert {(flow["store"], flow["flow"]) for flow in flows} == expected
        assert [flow["started"] for flow in flows] == sorted(flow["started"] for flow in flows)
    newest = run_ingestd("ls", *all_stores, "--sort=-started", "--limit", "1", "--json").stdout
    assert json.loads(newest)["flow"] == flows[-1]["flow"]
    assert str(node.stores["c"]).encode() in run_ingestd("ls", *all_stores).stdout
    one = lie["b"][0]
    assert run_ingestd("cat", *all_stores, one.flow).stdout == one.payload.data()
    run_ingestd("cat", *all_stores, "01", code=FlowNotFoundError.exit_code)
    infos = run_ingestd("info", *all_stores, "--json").stdout.splitlines()
    assert [json.loads(line)["path"] for line in infos] == [str(p) for p in node.stores.values()]
    node.stores["b"].write_bytes(bytes(1 << 20))  # one of them is none any more
    result = run_ingestd("verify", *all_stores, code=NotAStoreError.exit_code)
    assert result.stdout.count(b": intact") == 2
    assert str(node.stores["b"]).encode() in result.stderr
    run_ingestd("ls", code=UsageError.exit_code)
    run_ingestd("ls", *all_stores, "x", code=UsageError.exit_code)


def test_a_flow_is_resumed_where_it_lies(start_node: Callable[..., Node], seed: int) -> None:
    """Wherever the kernel leads a connection; until it has led to each store's worker."""
    node = start_node()
    data = data_of(seed, 60_000)
    with Ingest(node.ingest) as sender:
        sender.begin(name="resumed")
        sender.send(data[:10_000])
        sender.durable(10_000)
        flow = sender.flow
        sender.reset()
    for number in range(12):
        with Ingest(node.ingest) as sender:
            offset = sender.begin(flow=flow, resume=True)
            assert offset == 10_000 + 2000 * number
            end = offset + 2000
            sender.send(data[offset:end])
            sender.durable(end)
            sender.reset()
    assert len(node.daemon.events("flow_resumed")) == 12
    handed = scrape(node.daemon).total("ingestd_flows_handed_away_total")
    assert handed > 0  # 12 times the right one of three by chance: one of 500,000 runs
    with Ingest(node.ingest) as sender:
        offset = sender.begin(flow=flow, resume=True)
        sender.send(data[offset:])
        assert sender.sealed()["bytes"] == len(data)
    with Ingest(node.ingest) as sender:
        assert sender.refused(flow=flow, resume=True)["code"] == "sealed"
    name = node.store_of(flow)
    digests = image_sha256(node.stores[name], [flow])
    assert digests == {flow: Payload(seed, len(data)).sha256()}


def test_a_flow_that_is_fed_is_taken_over_from_any_store(
    start_node: Callable[..., Node], seed: int
) -> None:
    node = start_node()
    data = data_of(seed, 9000)
    senders = [Ingest(node.ingest)]
    senders[0].begin(name="taken over")
    flow = senders[0].flow
    for number in range(9):
        senders[-1].send(data[1000 * number : 1000 * (number + 1)])
        senders[-1].durable(1000 * (number + 1))
        senders.append(Ingest(node.ingest))
        assert senders[-1].begin(flow=flow, resume=True) == 1000 * (number + 1)
        assert senders[-2].error()["code"] == "replaced"
    assert senders[-1].sealed()["bytes"] == len(data)
    node.store_of(flow)
    for sender in senders:
        sender.sock.close()


def test_new_flows_go_where_the_most_is_free(start_node: Callable[..., Node], seed: int) -> None:
    node = start_node(("16MiB", "64MiB", "16MiB"), placement="most-free")
    lie = node.check(_send_many(node, seed, 20))
    assert len(lie["b"]) == 20, {name: len(own) for name, own in lie.items()}
    for number in range(6):
        with Ingest(node.ingest) as sender:
            sender.begin(name=f"new {number}")
            sender.send(b"x" * 1000)
            assert sender.sealed()["bytes"] == 1000
            assert node.store_of(sender.flow) == "b"


def test_a_drained_store_gets_no_new_flows(start_node: Callable[..., Node], seed: int) -> None:
    node = start_node()
    open_flows = {}
    for _ in range(TRIES_MAX):  # until one of them lies in the store that is to be drained
        sender = Ingest(node.ingest)
        sender.begin()
        open_flows[sender.flow] = sender
        sender.send(b"a" * 5000)
        sender.durable(5000)
        if node.store_of(sender.flow) == "b":
            break
    kept = sender.flow
    node.change("b", drain=True)
    wait_until(lambda: node.daemon.events("store_out"), "the log says so")
    assert node.daemon.events("store_out")[0]["reason"] == "drained"
    shot = scrape(node.daemon)
    assert shot.total("ingestd_store_out_seconds", store="b", reason="drained") > 0
    assert shot.total("ingestd_store_out_seconds", store="c") == 0
    lie = node.check(_send_many(node, seed))
    assert not lie["b"]
    assert lie["default"]
    assert lie["c"]
    open_flows[kept].reset()
    with Ingest(node.ingest) as sender:  # it continues where it lies
        assert sender.begin(flow=kept, resume=True) == 5000
        assert sender.sealed()["bytes"] == 5000
    node.change("b", drain=False)
    wait_until(lambda: node.daemon.events("store_back"), "it takes part again")
    run_ingestd("ctl", "--socket", node.daemon.control, "drain-store", "c")
    assert node.daemon.events("store_out")[-1]["store"] == "c"
    status = json.loads(
        run_ingestd("ctl", "--socket", node.daemon.control, "status", "--json").stdout
    )
    assert {store["name"]: list(store["out"]) for store in status["stores"]} == {
        "default": [],
        "b": [],
        "c": ["drained"],
    }
    assert status["listeners"][0]["stores"] == ["default", "b", "c"]
    run_ingestd("ctl", "--socket", node.daemon.control, "undrain-store", "c")
    deadline_s = time.monotonic() + 60
    while not node.check(_send_many(node, seed + 1000, 9))["b"]:
        assert time.monotonic() < deadline_s
    for sender in open_flows.values():
        sender.sock.close()


def test_where_all_are_drained_the_line_says_why(start_node: Callable[..., Node]) -> None:
    node = start_node()
    for name in node.stores:
        node.change(name, drain=True)
    wait_until(lambda: len(node.daemon.events("store_out")) == 3, "all are out")
    raw = SocketSender(node.daemon.address)
    answer = raw.answer()
    assert answer["state"] == "refused"
    assert "b is being drained" in answer["text"]
    with Ingest(node.ingest) as sender:
        refusal = sender.refused(name="new")
        assert refusal["code"] == "busy"
        assert "c is being drained" in refusal["text"]
