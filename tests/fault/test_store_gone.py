# SPDX-License-Identifier: Apache-2.0
"""A store that is taken away under the daemon acknowledges nothing from that moment on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.errors import StoreFailedError
from ingestd.store.device.holder import HOLDER_OFFSET
from support import tally
from support.aliases import loop_over
from support.daemon import Daemon, format_store, run_ingestd
from support.loop import limit_size, loop_device, mounted, run
from support.observe import assert_clean, assert_stored, scrape, wait_until
from support.payload import Payload
from support.senders import assert_sealed, send
from support.stores import MIB


def _delete(store: Path) -> None:
    store.unlink()


def _cut(store: Path) -> None:
    os.truncate(store, 0)


def _cut_a_little(store: Path) -> None:
    os.truncate(store, store.stat().st_size - 4096)


def _replace(store: Path) -> None:
    shutil.copyfile(store, store.with_suffix(".new"))
    store.with_suffix(".new").rename(store)


def _store_failed(daemon: Daemon) -> list[dict[str, object]]:
    return daemon.events("store_failed")


@pytest.mark.fault("gone")
@pytest.mark.parametrize("take_away", [_delete, _cut, _cut_a_little, _replace])
@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_nothing_is_acknowledged_once_the_file_is_gone(
    tmp_path: Path,
    start_daemon: Callable[..., Daemon],
    seed: int,
    take_away: Callable[[Path], None],
    checksum: str,
) -> None:
    """The very next flow: no time passes in which receipts would be false."""
    store = format_store(tmp_path / "store")
    config = tmp_path / "config.toml"
    config.write_text(f'[store.default]\nchecksum = "{checksum}"\n')
    daemon = start_daemon(store, config=config)
    assert_sealed(send(daemon.address, Payload(seed, 100_000)), has_checksum=checksum == "crc32c")
    take_away(store)
    receipt = send(daemon.address, Payload(seed + 1, 100_000)).receipt
    assert receipt["state"] != "sealed"
    with tally.acknowledged(receipt["bytes"] if receipt["durable"] else 0):
        assert not (receipt["durable"] and receipt["bytes"])
    (event, *_) = wait_until(lambda: _store_failed(daemon), "the log says so")
    assert event["failed"] == "store"
    assert "store" in str(event["hint"])
    assert scrape(daemon).total("ingestd_store_failed", store="default") == 1
    assert daemon.stop() == StoreFailedError.exit_code


@pytest.mark.fault("gone")
def test_an_idle_daemon_sees_that_its_store_is_gone(daemon: Daemon) -> None:
    daemon.store.unlink()
    wait_until(lambda: _store_failed(daemon), "it is noticed without any flow")


@pytest.mark.fault("gone")
def test_a_store_that_another_took_is_failed(daemon: Daemon) -> None:
    """What a second machine on the same disk leaves: its own holder record."""
    with daemon.store.open("r+b") as file:
        file.seek(HOLDER_OFFSET)
        file.write(bytes(4096))
    (event, *_) = wait_until(lambda: _store_failed(daemon), "it is noticed")
    assert "ESTALE" in str(event["error"])


@pytest.mark.fault("gone")
@pytest.mark.needs_root
@pytest.mark.parametrize("is_cut_below", [False, True])
def test_a_device_that_shrinks(
    tmp_path: Path, start_daemon: Callable[..., Daemon], is_cut_below: bool
) -> None:
    if is_cut_below:
        backing = format_store(tmp_path / "store")
        with loop_over(backing) as device:
            daemon = start_daemon(device, log=tmp_path / "log")
            os.truncate(backing, 32 * MIB)
            wait_until(lambda: _store_failed(daemon), "it is noticed")
            daemon.kill()
        return
    with loop_device(tmp_path / "disk.img", 64 * MIB) as device:
        run_ingestd("format", device)
        daemon = start_daemon(device, log=tmp_path / "log")
        limit_size(device, 32 * MIB)
        wait_until(lambda: _store_failed(daemon), "it is noticed")
        daemon.kill()


@pytest.mark.fault("gone")
def test_a_store_that_is_renamed_goes_on(daemon: Daemon, seed: int) -> None:
    moved = daemon.store.with_suffix(".moved")
    daemon.store.rename(moved)
    wait_until(lambda: daemon.events("store_moved"), "the log says so")
    sent = send(daemon.address, Payload(seed, 100_000))
    assert_sealed(sent)
    assert daemon.stop() == 0
    assert_stored(moved, [sent])


@pytest.mark.fault("gone")
@pytest.mark.needs_root
def test_a_sparse_store_on_a_full_file_system_goes_on_once_there_is_room(
    tmp_path: Path, start_daemon: Callable[..., Daemon], seed: int
) -> None:
    """Such is a copy that left the zeros out."""
    with loop_device(tmp_path / "disk.img", 200 * MIB) as device:
        run("mkfs.ext4", "-q", "-F", device)
        with mounted(device, tmp_path / "mnt") as directory:
            whole = format_store(directory / "whole", size="64MiB")
            store = directory / "store"
            run("cp", "--sparse=always", whole, store)
            with (directory / "fill").open("wb") as file:
                _fill(file.fileno())
            daemon = start_daemon(store, log=tmp_path / "log")
            (sparse,) = daemon.events("store_sparse")
            assert sparse["segments_without_room"] > 0
            assert "room" in str(sparse["hint"])
            refused = send(daemon.address, Payload(seed, 30 * MIB)).receipt
            assert refused["error"] == "store_full"
            (directory / "fill").unlink()
            # Without a restart, and without anybody's doing more than the advice.
            wait_until(lambda: daemon.events("store_whole"), "its space is given back")
            sent = send(daemon.address, Payload(seed, 30 * MIB))
            assert_sealed(sent)
            assert not _store_failed(daemon)
            assert daemon.stop() == 0
            assert_clean(store)
            assert_stored(store, [sent])
            assert store.stat().st_blocks * 512 >= whole.stat().st_blocks * 512


def _fill(fd: int) -> None:
    piece = bytes(MIB)
    try:
        while True:
            os.write(fd, piece)
    except OSError:
        os.fsync(fd)
