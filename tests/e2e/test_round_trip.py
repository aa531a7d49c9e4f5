# SPDX-License-Identifier: Apache-2.0
"""What is sent comes back: one flow, 64 at once, 1,000 at once, on files and block devices.

Senders are nc, socat and sockets; every byte is compared by SHA-256, every
receipt, the list, the check of the store and the metrics must agree.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import Daemon
from support.observe import (
    RSS_BEYOND_AREA_MAX,
    assert_adds_up,
    assert_clean,
    assert_stored,
    rss_bytes_max,
)
from support.payload import Payload
from support.senders import SENDERS, Sender, Sent, assert_sealed, send, send_all
from support.stores import MIB, StoreMaker, store_config

GIB = 1024 * MIB
PIECE_BYTES = 16 * 1024
AREA_BYTES = 64 * MIB

StartDaemon = Callable[..., Daemon]
CHECKSUMS = pytest.mark.parametrize("checksum", ["crc32c", "none"])


def _serve(start_daemon: StartDaemon, store: Path, directory: Path, checksum: str) -> Daemon:
    """A daemon with a small area, so that it is used many times over."""
    config = store_config(directory / "ingestd.toml", checksum=checksum, area=AREA_BYTES)
    return start_daemon(store, config=config, log=directory / "daemon.log")


def _finish(daemon: Daemon, sent: list[Sent], checksum: str) -> None:
    """Look at everything, first on the live store, then on the one left behind."""
    for flow in sent:
        assert_sealed(flow, has_checksum=checksum == "crc32c")
    assert len({flow.flow for flow in sent}) == len(sent)
    assert_stored(daemon.store, sent)
    assert_adds_up(daemon, sum(flow.payload.size for flow in sent))
    assert rss_bytes_max(daemon) <= AREA_BYTES + RSS_BEYOND_AREA_MAX
    assert daemon.stop() == 0
    assert_clean(daemon.store)


@pytest.mark.timeout(300)
def test_one_flow_of_2_gib_by_nc(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    """Larger than the area, than 2^31, and than any single segment."""
    store = StoreMaker.in_file(tmp_path)(3 * GIB)
    daemon = _serve(start_daemon, store, tmp_path, "crc32c")
    sent = send(daemon.address, Payload(seed, 2 * GIB), "nc")
    _finish(daemon, [sent], "crc32c")
    store.unlink()


@CHECKSUMS
@pytest.mark.parametrize("kind", ["nc", "socat"])
def test_one_flow(
    make_store: StoreMaker,
    start_daemon: StartDaemon,
    tmp_path: Path,
    seed: int,
    checksum: str,
    kind: str,
) -> None:
    """Somewhat more than the area, on every kind of store."""
    daemon = _serve(start_daemon, make_store(192 * MIB), tmp_path, checksum)
    sent = send(daemon.address, Payload(seed, 96 * MIB + 12345), kind)
    _finish(daemon, [sent], checksum)


@pytest.mark.timeout(300)
def test_64_flows_of_64_mib_at_once(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    store = StoreMaker.in_file(tmp_path)(6 * GIB)
    daemon = _serve(start_daemon, store, tmp_path, "crc32c")
    payloads = [Payload(seed + number, 64 * MIB) for number in range(64)]
    sent = send_all(daemon.address, payloads, ["nc", "socat", *["socket"] * 6] * 8)
    _finish(daemon, sent, "crc32c")
    store.unlink()


@CHECKSUMS
def test_64_flows_at_once(
    make_store: StoreMaker, start_daemon: StartDaemon, tmp_path: Path, seed: int, checksum: str
) -> None:
    """Together more than the area, on every kind of store."""
    daemon = _serve(start_daemon, make_store(192 * MIB), tmp_path, checksum)
    payloads = [Payload(seed + number, MIB + 4099 * number) for number in range(64)]
    sent = send_all(daemon.address, payloads, ["nc", "socat", *["socket"] * 6] * 8)
    _finish(daemon, sent, checksum)


def _send_interleaved(daemon: Daemon, payloads: list[Payload], choose: random.Random) -> list[Sent]:
    """Open all flows, send pieces of them in random order, half-close them as they end."""
    kinds = [*["nc"] * 8, *["socat"] * 8, *["socket"] * (len(payloads) - 16)]
    senders: list[Sender] = [SENDERS[kind](daemon.address) for kind in kinds]
    left = {number: memoryview(payload.data()) for number, payload in enumerate(payloads)}
    order = list(left)
    while order:
        position = choose.randrange(len(order))
        number = order[position]
        size = choose.randint(1, PIECE_BYTES)
        senders[number].write(bytes(left[number][:size]))
        left[number] = left[number][size:]
        if not left[number]:
            order[position] = order[-1]
            order.pop()
    return [
        Sent(payload, sender.finish()) for payload, sender in zip(payloads, senders, strict=True)
    ]


@CHECKSUMS
def test_1000_flows_at_once_of_random_sizes(
    make_store: StoreMaker, start_daemon: StartDaemon, tmp_path: Path, seed: int, checksum: str
) -> None:
    """From 1 to 100,000 bytes each, all open at the same time, in random pieces."""
    choose = random.Random(seed)
    sizes = [1, 100_000, *(choose.randint(1, 100_000) for _ in range(998))]
    payloads = [Payload(seed + number, size) for number, size in enumerate(sizes)]
    daemon = _serve(start_daemon, make_store(192 * MIB), tmp_path, checksum)
    sent = _send_interleaved(daemon, payloads, choose)
    _finish(daemon, sent, checksum)
