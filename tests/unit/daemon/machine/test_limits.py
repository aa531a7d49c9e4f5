# SPDX-License-Identifier: Apache-2.0
"""What the machine allows and takes: engine, locked memory, descriptors, direct I/O."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from ingestd.config.settings import StoreSettings
from ingestd.daemon.machine import direct_io, limits
from ingestd.daemon.machine.direct_io import complete_profile, virt_boundary_mask
from ingestd.daemon.machine.limits import (
    LockedNeed,
    check_locked_memory,
    has_capability,
    locked_memory_limit,
    raise_descriptor_limit,
)
from ingestd.daemon.workers import worker
from ingestd.daemon.workers.area import locked_bytes_min
from ingestd.daemon.workers.worker import store_profile
from ingestd.errors import IngestdError, ResourceError, SystemCallError
from support.fake_core import CoreFault, FakeCore
from support.fake_store import MIB

# --- Limits -------------------------------------------------------------------------


def test_capabilities() -> None:
    status = "Name:\tpython\nCapEff:\t0000000000004000\nCapBnd:\t000001ffffffffff\n"
    assert has_capability(status, limits.CAP_IPC_LOCK)
    assert not has_capability(status, 13)
    assert not has_capability(status.replace("4000", "0000"), limits.CAP_IPC_LOCK)
    with pytest.raises(ValueError, match="CapEff"):
        has_capability("Name:\tpython\n", 0)


@pytest.mark.parametrize(
    ("soft", "status", "expected"),
    [
        (resource.RLIM_INFINITY, "CapEff:\t0\n", None),
        (8 * MIB, "CapEff:\t4000\n", None),
        (8 * MIB, "CapEff:\t0\n", 8 * MIB),
    ],
)
def test_locked_memory_limit(
    soft: int, status: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status"
    path.write_text(status)
    monkeypatch.setattr(limits, "STATUS_PATH", path)
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (soft, soft))
    assert locked_memory_limit() == expected


def test_locked_memory_is_told_in_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)  # who gets a remedy that only root has
    monkeypatch.setattr(limits, "locked_memory_limit", lambda: None)
    needs = [LockedNeed("a", 2, 4 * MIB), LockedNeed("b", 1, 2 * MIB)]
    check_locked_memory(needs, None)
    check_locked_memory(needs, 10 * MIB)
    with pytest.raises(ResourceError) as caught:
        check_locked_memory(needs, 10 * MIB - 1)
    text = str(caught.value)
    assert "need 10485760 bytes" in text
    assert 'store "a": 2 x 4194304, store "b": 1 x 2097152' in text
    assert "allows 10485759" in text
    assert "LimitMEMLOCK=infinity" in text
    assert "`ulimit -l 10240`" in text


def test_the_least_that_a_worker_locks() -> None:
    assert locked_bytes_min(StoreSettings(path="x", area=4 * MIB)) == 4 * MIB
    assert locked_bytes_min(StoreSettings(path="x", area=4 * MIB), is_zcrx=True) == 8 * MIB
    assert locked_bytes_min(StoreSettings(path="x")) == MIB, "auto can be as small as this"


@pytest.mark.parametrize("uid", [0, 1000])
def test_advice_never_names_a_limit_below_the_one_in_force(
    uid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where what is needed is less, other processes of the user have the rest."""
    monkeypatch.setattr(limits, "locked_memory_limit", lambda: 8 * MIB)
    monkeypatch.setattr(limits.os, "geteuid", lambda: uid)
    text = limits.memlock_advice(4 * MIB)
    assert "12288" in text
    assert "stop what else of this user has locked memory" in text
    assert ("only root can raise" in text) is (uid != 0)
    assert "20480" in limits.memlock_advice(20 * MIB)
    assert "stop what else" not in limits.memlock_advice(20 * MIB)


def test_the_soft_limit_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (1 * MIB, 8 * MIB))
    monkeypatch.setattr(limits.resource, "setrlimit", lambda _, pair: set_to.append(pair))
    limits.raise_locked_limit()
    assert set_to == [(8 * MIB, 8 * MIB)]


@pytest.mark.parametrize(
    ("limits_before", "needed", "limit_then", "set_to"),
    [
        ((1024, 4096), 512, 1024, None),
        ((1024, 4096), 2000, 2000, (2000, 4096)),
        ((1024, 4096), 9000, 4096, (4096, 4096)),
        ((1024, resource.RLIM_INFINITY), 9000, 9000, (9000, resource.RLIM_INFINITY)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 9000, 9000, None),
    ],
)
def test_descriptors(
    limits_before: tuple[int, int],
    needed: int,
    limit_then: int,
    set_to: tuple[int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[tuple[int, int]] = []
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: limits_before)
    monkeypatch.setattr(limits.resource, "setrlimit", lambda _, pair: done.append(pair))
    assert raise_descriptor_limit(needed) == limit_then
    assert done == ([] if set_to is None else [set_to])


# --- Direct I/O ---------------------------------------------------------------------


def _sysfs(root: Path, fd: int, *, partition: bool, mask: str) -> Path:
    """A tree like /sys/dev/block, in which the file's device is a disk or a partition."""
    number = os.fstat(fd).st_dev
    disk = root / "devices" / "disk"
    (disk / "queue").mkdir(parents=True)
    (disk / "queue" / "virt_boundary_mask").write_text(mask)
    device = disk / "disk1" if partition else disk
    device.mkdir(exist_ok=True)
    links = root / "links"
    links.mkdir()
    (links / f"{os.major(number)}:{os.minor(number)}").symlink_to(device)
    return links


@pytest.mark.parametrize("partition", [False, True])
def test_the_boundary_of_a_queue(tmp_path: Path, partition: bool) -> None:
    with (tmp_path / "store").open("wb") as file:
        links = _sysfs(tmp_path, file.fileno(), partition=partition, mask="4095\n")
        assert virt_boundary_mask(file.fileno(), links) == 4095
        assert complete_profile(4, 512, file.fileno(), links) == (4, 512, 4095, 1024)
        # Pieces of whole blocks are split by the block layer: no boundary for us.
        assert complete_profile(512, 512, file.fileno(), links) == (512, 512, 0, 1024)


def test_an_unknown_queue_gets_the_stricter_answer(tmp_path: Path) -> None:
    with (tmp_path / "store").open("wb") as file:
        assert virt_boundary_mask(file.fileno(), tmp_path) is None
        profile = complete_profile(4, 4096, file.fileno(), tmp_path)
        assert profile.virt_mask == resource.getpagesize() - 1


def test_the_profile_of_a_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    core = FakeCore()
    monkeypatch.setattr(direct_io, "SYSFS_DEVICES", tmp_path)
    with (tmp_path / "store").open("wb") as file:
        assert store_profile(core, file.fileno(), "store")[:2] == (512, 512)
        core.faults["device_profile"] = CoreFault(errno.EIO, "statx", "store")
        with pytest.raises(SystemCallError, match="store: statx for store failed"):
            store_profile(core, file.fileno(), "store")


def test_the_profile_of_a_store_of_which_the_kernel_says_nothing(tmp_path: Path) -> None:
    """Whole blocks, of the size that can be read."""
    core = FakeCore()
    core.faults["device_profile"] = CoreFault(errno.EOPNOTSUPP, "statx", "store")
    (tmp_path / "store").write_bytes(bytes(65536))
    with (tmp_path / "store").open("rb+") as file:
        mem_align, write_align, virt_mask, _ = store_profile(core, file.fileno(), "store")
    assert (mem_align, virt_mask) == (write_align, 0)
    assert mem_align >= resource.getpagesize()


def test_device_profile_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "load_core", FakeCore)
    with pytest.raises(IngestdError, match="cannot be opened for direct I/O"):
        worker.device_profile(str(tmp_path / "nothing"))
    opened: list[int] = []
    monkeypatch.setattr(
        worker, "store_profile", lambda _core, fd, _path: opened.append(fd) or SimpleNamespace()
    )
    (tmp_path / "store").write_bytes(b"")
    worker.device_profile(str(tmp_path / "store"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
