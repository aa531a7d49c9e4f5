# SPDX-License-Identifier: Apache-2.0
"""Paths that hold no store, stores of another version, damaged superblocks, held stores."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.errors import (
    NotAStoreError,
    StoreBusyError,
    StoreDamagedError,
    StoreError,
)
from ingestd.store.format.layout import SUPERBLOCK, sealed
from support.daemon import Daemon, format_store, run_ingestd
from support.observe import assert_clean, assert_stored, list_flows
from support.patience import WAIT_S
from support.payload import Payload
from support.refusal import refusal, serve_refusal
from support.senders import assert_sealed, send
from support.stores import MIB, write_config

SUPERBLOCK_A, SUPERBLOCK_B = 0, 512 * 1024
VERSION_OFFSET = 12  # of struct superblock
READERS = ("ls", "verify", "info")

StartDaemon = Callable[..., Daemon]


def _refused_everywhere(error: type[Exception], path: Path) -> list[str]:
    """The sentences of every command that opens a store."""
    sentences = [refusal(error, reader, path) for reader in READERS]
    sentences.append(refusal(error, "cat", path, "0"))
    sentences.append(serve_refusal(error, path))
    for sentence in sentences:
        assert str(path) in sentence
    return sentences


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _damage(path: Path, offset: int) -> None:
    """Turn one bit of the generation of the superblock at offset."""
    at = offset + SUPERBLOCK.offsets()["generation"]
    with path.open("r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
    _overwrite(path, at, bytes([value ^ 1]))


def test_there_is_nothing(tmp_path: Path) -> None:
    for sentence in _refused_everywhere(NotAStoreError, tmp_path / "none"):
        assert "does not exist" in sentence


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 524288, 8 * MIB])
def test_not_a_store(tmp_path: Path, seed: int, size: int) -> None:
    """Empty files, short ones, and a file of something else."""
    path = tmp_path / "file"
    path.write_bytes(Payload(seed, size).data())
    for sentence in _refused_everywhere(NotAStoreError, path):
        assert "ingestd format" in sentence


@pytest.mark.parametrize("path", ["/dev/null", "/dev", "/proc/self/status"])
def test_neither_file_nor_device(path: str) -> None:
    for reader in READERS:
        sentence = refusal(StoreError if path.startswith("/proc") else NotAStoreError, reader, path)
        assert path in sentence


def test_another_version(store_path: Path) -> None:
    """A whole superblock of a version that is not ours is distinguished from damage."""
    block = bytearray(store_path.read_bytes()[: SUPERBLOCK.size_bytes])
    struct.pack_into("<I", block, VERSION_OFFSET, 99)
    for offset in (SUPERBLOCK_A, SUPERBLOCK_B):
        _overwrite(store_path, offset, sealed(bytes(block)))
    for sentence in _refused_everywhere(NotAStoreError, store_path):
        assert "version 99" in sentence


@pytest.mark.parametrize("damaged", [SUPERBLOCK_A, SUPERBLOCK_B])
def test_one_superblock_damaged(
    store_path: Path, start_daemon: StartDaemon, seed: int, damaged: int
) -> None:
    """The other one is used, with a warning; nothing is lost; serving mends it."""
    daemon = start_daemon(store_path)
    sent = send(daemon.address, Payload(seed, 1_000_000))
    assert_sealed(sent)
    assert daemon.stop() == 0
    _damage(store_path, damaged)
    for reader in ("ls", "info"):
        told = run_ingestd(reader, store_path).stderr.decode()
        assert "superblock" in told
        assert "damaged" in told
    assert "superblock" in refusal_of_verify(store_path)
    assert_stored(store_path, [sent])
    daemon.start()
    (warning,) = daemon.events("superblock_damaged")
    assert warning["level"] == "warning"
    again = send(daemon.address, Payload(seed + 1, 1_000_000))
    assert_stored(store_path, [sent, again])
    assert daemon.stop() == 0
    assert_clean(store_path)


def refusal_of_verify(path: Path) -> str:
    """What a failing verify finds, as text."""
    result = run_ingestd("verify", path, "--json", code=StoreDamagedError.exit_code)
    return str(json.loads(result.stdout)["findings"])


def test_both_superblocks_damaged(store_path: Path) -> None:
    for offset in (SUPERBLOCK_A, SUPERBLOCK_B):
        _damage(store_path, offset)
    before = store_path.read_bytes()
    for sentence in _refused_everywhere(StoreDamagedError, store_path):
        assert "superblocks are damaged" in sentence
    assert store_path.read_bytes() == before


def test_store_that_was_cut_off(daemon: Daemon, seed: int) -> None:
    """What is left can be read; serving it is refused."""
    sent = send(daemon.address, Payload(seed, 100_000))
    assert daemon.stop() == 0
    with daemon.store.open("r+b") as file:
        file.truncate(32 * MIB)
    sentence = serve_refusal(StoreDamagedError, daemon.store)
    assert "restore its size" in sentence
    assert "end is missing" in run_ingestd("ls", daemon.store).stderr.decode()
    assert_stored(daemon.store, [sent])


def test_second_daemon_on_the_same_store(daemon: Daemon, seed: int) -> None:
    """It is refused, and the first one does not notice; format does not get through either."""
    sentence = serve_refusal(StoreBusyError, daemon.store)
    assert "in use by another process" in sentence
    refusal(StoreBusyError, "format", daemon.store, "--force")
    sent = send(daemon.address, Payload(seed, 50_000))
    assert_sealed(sent)
    assert_stored(daemon.store, [sent])


def test_store_held_by_a_process_that_goes_away(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """As the kernel does for a moment after a kill: the daemon says that it waits, and starts."""
    holder = os.open(store_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    log = tmp_path / "log"

    def let_go_once_told() -> None:
        limit = time.monotonic() + WAIT_S
        while not (log.exists() and "store_held" in log.read_text()) and time.monotonic() < limit:
            time.sleep(0.01)
        os.close(holder)

    thread = threading.Thread(target=let_go_once_told)
    thread.start()
    try:
        daemon = start_daemon(store_path, log=log)
    finally:
        thread.join()
    (held,) = daemon.events("store_held")
    assert (held["store"], held["path"]) == ("default", str(store_path))
    assert_sealed(send(daemon.address, Payload(seed, 50_000)))


def test_uuid_that_is_not_the_configured_one(store_path: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "c.toml",
        store={"default": {"uuid": "00000000-0000-4000-8000-000000000001"}},
    )
    sentence = serve_refusal(StoreError, store_path, "-c", str(config))
    assert "00000000-0000-4000-8000-000000000001" in sentence


def test_damaged_payload_is_found_and_not_given_out(daemon: Daemon, seed: int) -> None:
    """A bit that turned on the medium: verify names flow and place, cat refuses the flow."""
    payload = Payload(seed, 300_000)
    bad, good = (send(daemon.address, p) for p in (payload, Payload(seed + 1, 5000)))
    assert daemon.stop() == 0
    content = daemon.store.read_bytes()
    at = content.index(payload.data()[8192:8256])
    _overwrite(daemon.store, at, bytes([content[at] ^ 0x40]))
    finding = refusal_of_verify(daemon.store)
    assert bad.flow in finding
    sentence = refusal(StoreDamagedError, "cat", daemon.store, bad.flow, "-o", "/dev/null")
    assert bad.flow in sentence
    assert_stored(daemon.store, [good])
    assert len(list_flows(daemon.store)) == 2


def test_old_life_never_shows(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    """A store formatted over a full one shows no flow of before, also after new ones came."""
    store = format_store(tmp_path / "s.img", "--segment-size", "1MiB", size="16MiB")
    daemon = start_daemon(store)
    assert_sealed(send(daemon.address, Payload(seed, 6 * MIB)))
    assert daemon.stop() == 0
    format_store(store, "--force", "--segment-size", "1MiB", size="16MiB")
    assert list_flows(store) == []
    daemon.start()
    sent = send(daemon.address, Payload(seed + 1, 10_000))
    assert [entry["flow"] for entry in list_flows(store)] == [sent.flow]
    assert daemon.stop() == 0
    assert_stored(store, [sent])
    assert_clean(store)
