# SPDX-License-Identifier: Apache-2.0
"""Flows of every awkward size, addresses of every family, and parts of a flow."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.store.read.image import read_image
from support.daemon import PROGRAM, Daemon, format_store, free_port, run_ingestd
from support.observe import (
    assert_adds_up,
    assert_clean,
    assert_stored,
    cat,
    flow_of,
    list_flows,
    wait_until,
)
from support.patience import WAIT_S
from support.payload import Payload
from support.senders import SocketSender, assert_sealed, send, send_all
from support.stores import MIB, StoreMaker, store_config, write_config

SEGMENT_BYTES = MIB
WRITE_BYTES_MAX = 64 * 1024
BLOCK_BYTES = 4096
# Around all that has an edge: a byte, a sector, a block, a write, a segment.
EDGES = (1, 512, BLOCK_BYTES, WRITE_BYTES_MAX, SEGMENT_BYTES)
SIZES = sorted({0, *(edge + step for edge in EDGES for step in (-1, 0, 1))})

StartDaemon = Callable[..., Daemon]


def _small_segments(
    start_daemon: StartDaemon, store: Path, directory: Path, checksum: str = "crc32c"
) -> Daemon:
    config = store_config(
        directory / "ingestd.toml",
        checksum=checksum,
        area=8 * MIB,
        write_bytes_max=WRITE_BYTES_MAX,
    )
    return start_daemon(store, config=config, log=directory / "daemon.log")


@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_flows_around_every_edge(
    make_store: StoreMaker, start_daemon: StartDaemon, tmp_path: Path, seed: int, checksum: str
) -> None:
    """Empty, one byte, one block, one segment, and one byte to either side; alone, then at once."""
    store = make_store(48 * MIB, "--segment-size", str(SEGMENT_BYTES))
    daemon = _small_segments(start_daemon, store, tmp_path, checksum)
    payloads = [Payload(seed + size, size) for size in SIZES]
    sent = [send(daemon.address, payload) for payload in payloads]
    sent += send_all(
        daemon.address, payloads, ["nc", "socat", *["socket"] * len(SIZES)][: len(SIZES)]
    )
    for flow in sent:
        assert_sealed(flow, has_checksum=checksum == "crc32c")
    assert_stored(store, sent)
    assert_adds_up(daemon, 2 * sum(SIZES))
    assert daemon.stop() == 0
    assert_clean(store)


def test_a_segment_filled_to_its_last_block(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """A flow as long as what one segment took of a longer one; a byte more, a byte less."""

    def fresh(name: str) -> tuple[Path, Daemon]:
        directory = tmp_path / name
        directory.mkdir()
        store = format_store(
            directory / "store.img", "--segment-size", str(SEGMENT_BYTES), size=str(16 * MIB)
        )
        return store, _small_segments(start_daemon, store, directory)

    store, daemon = fresh("measure")
    assert_sealed(send(daemon.address, Payload(seed, 4 * MIB)))
    assert daemon.stop() == 0
    with read_image(str(store)) as image:
        used = sorted((s.sequence, s.payload_bytes) for s in image.segments if s.sequence)
    filled_bytes = used[0][1]
    assert SEGMENT_BYTES // 2 < filled_bytes < SEGMENT_BYTES, used
    for step in (-1, 0, 1):
        store, daemon = fresh(f"step{step}")
        sent = [send(daemon.address, Payload(seed + step + 2, filled_bytes + step))]
        sent.append(send(daemon.address, Payload(seed, 4097)))
        for flow in sent:
            assert_sealed(flow)
        assert_stored(store, sent)
        assert daemon.stop() == 0
        assert_clean(store)


def test_empty_flow_by_nc_and_socat(daemon: Daemon) -> None:
    for kind in ("nc", "socat"):
        sent = send(daemon.address, Payload(0, 0), kind)
        assert_sealed(sent)
        assert cat(daemon.store, sent.flow) == b""
        assert flow_of(daemon.store, sent.flow)["state"] == "sealed"


@pytest.mark.parametrize("kind", ["socket", "nc", "socat"])
def test_ipv6(store_path: Path, start_daemon: StartDaemon, seed: int, kind: str) -> None:
    daemon = start_daemon(store_path, host="::1")
    sent = send(daemon.address, Payload(seed, 100_001), kind)
    assert_sealed(sent)
    assert_stored(store_path, [sent])
    assert flow_of(store_path, sent.flow)["peer"].startswith("[::1]:")


def test_dual_stack(store_path: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    """One listener on "*" takes flows of both families and shows IPv4 peers as IPv4."""
    port = free_port("::1")
    config = write_config(tmp_path / "c.toml", listener={"both": {"address": f"*:{port}"}})
    start_daemon(store_path, config=config)
    peers = []
    for host in ("127.0.0.1", "::1"):
        sent = send((host, port), Payload(seed, 5000))
        assert_sealed(sent)
        entry = flow_of(store_path, sent.flow)
        assert entry["listener"] == "both"
        peers.append(entry["peer"])
    assert peers[0].startswith("127.0.0.1:")
    assert peers[1].startswith("[::1]:")


def test_the_list_tells_where_a_flow_came_from(daemon: Daemon, seed: int) -> None:
    sender = SocketSender(daemon.address)
    peer = sender.peer
    sender.write(Payload(seed, 77).data())
    receipt = sender.finish()
    (entry,) = list_flows(daemon.store)
    assert entry["flow"] == receipt["flow"]
    assert entry["peer"] == peer
    assert entry["listener"] == "default"
    assert entry["started"] <= entry["ended"]
    assert run_ingestd("ls", daemon.store).stdout.decode().count(receipt["flow"]) == 1


def test_cat_writes_any_part(daemon: Daemon, seed: int, tmp_path: Path) -> None:
    payload = Payload(seed, 3 * MIB + 17)
    data = payload.data()
    sent = send(daemon.address, payload)
    for offset, length in ((0, 1), (1, 4096), (4095, 4098), (MIB - 1, MIB + 2), (3 * MIB + 16, 9)):
        part = cat(daemon.store, sent.flow, "--offset", str(offset), "--length", str(length))
        assert part == data[offset : offset + length], (offset, length)
    output = tmp_path / "flow.bin"
    run_ingestd("cat", daemon.store, sent.flow[:18], "-o", output)
    assert output.read_bytes() == data
    result = run_ingestd("cat", daemon.store, "ffffffff", code=10)
    assert b"has no flow" in result.stderr


def test_ingestd_send(daemon: Daemon, seed: int, tmp_path: Path) -> None:
    """Our own sender, from a file and from standard input, prints the receipt."""
    payload = Payload(seed, 5 * MIB + 3)
    path = tmp_path / "input.bin"
    path.write_bytes(payload.data())
    target = f"{daemon.host}:{daemon.port}"
    receipt = json.loads(run_ingestd("send", path, "--to", target, "--json").stdout)
    assert receipt["bytes"] == payload.size
    assert receipt["checksum"] == payload.checksum()
    with path.open("rb") as source:
        piped = subprocess.run(
            [PROGRAM, "send", "-", "--to", target, "--json"],
            stdin=source,
            capture_output=True,
            timeout=WAIT_S,
            check=True,
        )
    again = json.loads(piped.stdout)
    assert again["flow"] != receipt["flow"]
    assert cat(daemon.store, receipt["flow"]) == cat(daemon.store, again["flow"]) == payload.data()


def test_bytes_trickling_in_are_durable_before_the_end(daemon: Daemon, seed: int) -> None:
    """A slow flow is not kept waiting for a full buffer."""
    data = Payload(seed, 3000).data()
    sender = SocketSender(daemon.address)
    for at in range(0, len(data), 1000):
        sender.write(data[at : at + 1000])

        def is_durable(upto: int = at + 1000) -> bool:
            flows = list_flows(daemon.store)
            return bool(flows) and flows[0]["durable_bytes"] == upto

        wait_until(is_durable, f"{at + 1000} bytes durable while the flow is open")
    (entry,) = list_flows(daemon.store)
    assert entry["state"] == "open"
    assert cat(daemon.store, entry["flow"]) == data
    assert sender.finish()["bytes"] == len(data)


def test_half_close_is_what_ends_a_flow(daemon: Daemon) -> None:
    """The answer comes after the sender's FIN, and then the daemon closes too."""
    sender = SocketSender(daemon.address)
    sender.write(b"x")
    sender.sock.settimeout(0.5)
    with pytest.raises(TimeoutError):
        sender.sock.recv(1)
    sender.sock.settimeout(WAIT_S)
    sender.sock.shutdown(socket.SHUT_WR)
    assert sender.answer()["bytes"] == 1
