# SPDX-License-Identifier: Apache-2.0
"""Whole workers on devices of every direct-I/O profile: what is stored is what was sent.

Invariant: a profile changes how bytes are laid out, never which ones are stored; no mixture of
lengths and pauses ends the worker.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Final

import pytest

from ingestd.errors import ConfigError
from ingestd.store.format.layout import BLOCK_BYTES_MIN, SEGMENT_DATA_BLOCK
from ingestd.store.format.records import Batch
from ingestd.store.read.image import read_image
from ingestd.store.read.read_ahead import read_batch
from ingestd.store.read.scan import Scanner
from support import profile_worker, tally
from support.daemon import Daemon, format_store, run_ingestd
from support.observe import assert_clean, image_bytes
from support.payload import Payload
from support.senders import Address, Sent, SocketSender, assert_sealed
from support.stores import write_config

PROFILES: Final = sorted(product((2, 4, 512, 4096), (512, 4096), (0, 4095)))
NVME: Final = (4, 512, 4095)  # what PCIe NVMe says to Linux before 6.19
ENDED_TIMEOUT_S: Final = 90.0
SILENCE_S: Final = 0.1  # several times the worker's flush_interval_s
# Around the edges of a block and of a page, and tails that end before one.
LENGTHS: Final = (1, 3, 511, 513, 4095, 4097, 5000, 7681, 8191, 12289, 20000, 65537, 524289)


@contextmanager
def served(store: Path, profile: tuple[int, int, int]) -> Iterator[Address]:
    """Serve a store by a worker with that profile; afterwards it must end well."""
    command = [sys.executable, profile_worker.__file__, str(store), *map(str, profile)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline()
            assert port, f"the worker did not start: {process.wait(ENDED_TIMEOUT_S)}"
            yield "127.0.0.1", int(port)
            process.stdin.close()
            assert process.wait(ENDED_TIMEOUT_S) == 0
        finally:
            process.kill()


def send_with_silences(address: Address, payloads: list[Payload]) -> list[Sent]:
    """Send all at once, each in two parts with a silence between, so that slots leave part full."""
    senders = [SocketSender(address) for _ in payloads]
    for half in (0, 1):
        for sender, payload in zip(senders, payloads, strict=True):
            data = payload.data()
            cut = (payload.size + 1) // 2
            sender.write(data[cut:] if half else data[:cut])
        time.sleep(SILENCE_S)
    return [
        Sent(payload, sender.finish()) for sender, payload in zip(senders, payloads, strict=True)
    ]


def assert_same(store: Path, sent: list[Sent]) -> None:
    """Every flow is sealed, and is in the store byte by byte."""
    for one in sent:
        assert_sealed(one)
    with tally.acknowledged(sum(one.payload.size for one in sent)):
        stored = image_bytes(store, [one.flow for one in sent])
        for one in sent:
            assert stored[one.flow] == one.payload.data(), one.payload
    assert_clean(store)


@pytest.mark.fault("profile")
@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: "M{}-L{}-V{}".format(*p))
def test_every_profile_stores_what_was_sent(
    tmp_path: Path, profile: tuple[int, int, int], seed: int
) -> None:
    store = format_store(tmp_path / "store.img")
    draw = random.Random(seed)
    lengths = [*LENGTHS, *(draw.randrange(1, 40_000) for _ in range(40))]
    with served(store, profile) as address:
        sent = send_with_silences(address, [Payload(seed + n, n) for n in lengths])
    assert_same(store, sent)


@pytest.mark.fault("profile")
def test_part_full_slots_on_a_disk_with_a_virtual_boundary(tmp_path: Path) -> None:
    """Four connections send 5000 bytes each and fall silent, on NVMe as older kernels show it."""
    store = format_store(tmp_path / "store.img")
    payloads = [Payload(number, 5000) for number in range(4)]
    with served(store, NVME) as address:
        senders = [SocketSender(address) for _ in payloads]
        for sender, payload in zip(senders, payloads, strict=True):
            sender.write(payload.data())
        time.sleep(SILENCE_S)
        sent = [
            Sent(payload, sender.finish())
            for sender, payload in zip(senders, payloads, strict=True)
        ]
    assert_same(store, sent)


@pytest.mark.fault("profile")
@pytest.mark.parametrize("profile", [(4, 512, 0), (512, 4096, 0), (4096, 4096, 0), NVME], ids=str)
def test_pieces_of_slow_flows_share_blocks(
    tmp_path: Path, profile: tuple[int, int, int], seed: int
) -> None:
    """A batch has no more padding than its last block, however many flows it has pieces of."""
    store = format_store(tmp_path / "store.img")
    payloads = [Payload(seed + n, 60) for n in range(64)]
    with served(store, profile) as address:
        sent = send_with_silences(address, payloads)
    assert_same(store, sent)
    payload_bytes = 0
    for batch in batches_of(store):
        header = batch.header
        padding_bytes = header.batch_bytes - header.header_bytes - header.payload_bytes
        assert 0 <= padding_bytes < BLOCK_BYTES_MIN, batch
        payload_bytes += header.payload_bytes
    assert payload_bytes == sum(payload.size for payload in payloads)


def batches_of(store: Path) -> Iterator[Batch]:
    """Walk the batches of every segment that is in use."""
    with read_image(str(store)) as image:
        scanner = Scanner(image.device, image.superblock)
        for segment in image.segments:
            place, window = scanner.place(segment.sequence), scanner.window(segment.index)
            at = SEGMENT_DATA_BLOCK * image.superblock.block_bytes
            for number in range(segment.batch_count):
                batch = read_batch(window, place, at, number)
                assert batch is not None
                yield batch
                at = batch.end


def test_a_stricter_profile_is_stated_in_the_configuration(
    tmp_path: Path, start_daemon: Callable[..., Daemon], seed: int
) -> None:
    """What holds is logged; a laxer one is refused with both values."""
    store = format_store(tmp_path / "store.img")
    stated = {"mem_align": 1024, "write_align": 4096, "virt_boundary": 4096}
    config = write_config(tmp_path / "c.toml", store={"default": {"direct_io": stated}})
    daemon = start_daemon(store, config=config)
    (event,) = daemon.events("worker_started")
    assert (event["mem_align"], event["write_align"], event["virt_mask"]) == (1024, 4096, 4095)
    sent = send_with_silences(daemon.address, [Payload(seed + n, n) for n in LENGTHS])
    assert daemon.stop() == 0
    assert_same(store, sent)


def test_a_laxer_profile_is_refused(tmp_path: Path) -> None:
    store = format_store(tmp_path / "store.img")
    listener = {"default": {"address": "127.0.0.1:0"}}
    tables = {"path": str(store), "direct_io": {"mem_align": 1}}
    config = write_config(tmp_path / "c.toml", store={"default": tables}, listener=listener)
    done = run_ingestd("serve", "-c", config, code=ConfigError.exit_code)
    assert b"store.default.direct_io.mem_align: 1 is laxer than what was found, " in done.stderr
