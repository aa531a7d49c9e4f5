# SPDX-License-Identifier: Apache-2.0
"""The space of a store file: what it has lost, asking for it, and what stands without it."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from ingestd.store.create import formatting
from ingestd.store.serve import backing_space
from ingestd.store.serve.backing_space import BackingSpace, allocated_bytes
from ingestd.store.serve.served_store import ServedStore, open_for_serving

MIB = 1024 * 1024


def make(path: Path) -> None:
    """Format a store of twelve segments, and some more bytes."""
    formatting.format_store(
        str(path), size_bytes=13 * MIB + 65536, segment_bytes=MIB, zero=False, label="", force=False
    )


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A store, copied without its zeros."""
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    make(whole)
    subprocess.run(["cp", "--sparse=always", whole, copy], check=True)
    return copy


def _has_room_for(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(BackingSpace, "_free_bytes", lambda _self: count)


def _take_all(store: ServedStore) -> list[int]:
    taken = []
    while (grant := store.take_segment()) is not None:
        taken.append(grant[0])
    return taken


def test_what_is_allocated_is_counted_and_never_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        if not allocated_bytes_are_told(file.fileno()):
            pytest.skip("this file system does not tell")
        for number in range(0, 64 * 3, 3):  # more extents than fit into one answer
            os.posix_fallocate(file.fileno(), number * 65536, 65536)
        assert allocated_bytes(file.fileno(), 0, 64 * MIB) == 64 * 65536
        assert allocated_bytes(file.fileno(), 65536, 65536) == 0
        assert allocated_bytes(file.fileno(), 32768, 3 * 65536) == 65536


def allocated_bytes_are_told(fd: int) -> bool:
    """Return whether the file system has FIEMAP."""
    os.posix_fallocate(fd, 63 * MIB, 4096)
    told = allocated_bytes(fd, 63 * MIB, MIB) > 0
    os.ftruncate(fd, 63 * MIB)
    os.ftruncate(fd, 64 * MIB)
    return told


def test_a_sparse_store_gets_its_space_again(sparse: Path) -> None:
    with open_for_serving(str(sparse)) as store:
        assert store.missing_bytes > 0
        assert store.reserve_room() == 0
        assert store.missing_bytes == 0
        assert len(_take_all(store)) == store.superblock.segment_count


def test_a_whole_store_is_not_asked_about(tmp_path: Path) -> None:
    make(tmp_path / "whole")
    with open_for_serving(str(tmp_path / "whole")) as store:
        assert store.reserve_room() == 0
        assert not store.is_sparse


def test_segments_without_room_wait_for_it(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _has_room_for(monkeypatch, 0)
    with open_for_serving(str(sparse)) as store:
        count = store.superblock.segment_count
        assert store.reserve_room() == count
        assert store.take_segment() is None
        assert store.segments_free_count == 0
        assert store.missing_bytes > 0  # not even tried
        _has_room_for(monkeypatch, 2 * MIB)
        assert store.reserve_room() == 0
        assert _take_all(store) == list(range(count))


def test_room_that_others_took_meanwhile_is_no_failure(
    sparse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_for_serving(str(sparse)) as store:
        real = os.posix_fallocate
        given: list[int] = []

        def fail_late(fd: int, offset: int, size: int) -> None:
            if offset and len(given) == 5:  # what it is, what lies around, two
                raise OSError(errno.ENOSPC, "no room")
            given.append(offset)
            real(fd, offset, size)

        monkeypatch.setattr(backing_space.os, "posix_fallocate", fail_late)
        assert store.reserve_room() == store.superblock.segment_count - 2
        assert _take_all(store) == [0, 1]


def test_a_file_system_that_can_promise_nothing_holds_nothing_back(
    sparse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, _offset: int, _size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(backing_space.os, "posix_fallocate", refuse)
    with open_for_serving(str(sparse)) as store:
        assert store.reserve_room() == 0
        assert len(_take_all(store)) == store.superblock.segment_count


def test_what_has_no_space_is_not_made_up_for_by_giving_up_flows(
    sparse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _has_room_for(monkeypatch, 0)
    with open_for_serving(str(sparse)) as store:
        store.overwrite_oldest(1)
        assert store.reserve_room() > 2
        monkeypatch.setattr(
            store._recycler, "recycle", lambda: pytest.fail("an old flow was given up")
        )
        assert store.recycle_ahead(2) == 0
