# SPDX-License-Identifier: Apache-2.0
"""A store that goes by two names is held once: file and loop device, loop devices, device nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ingestd.client import send_stream
from ingestd.errors import StoreBusyError, UnsafeDeviceError
from support import tally
from support.aliases import loop_over, second_node
from support.daemon import Daemon, format_store, run_ingestd
from support.loop import loop_device, make_ext4, mounted, run
from support.observe import wait_until
from support.refusal import refusal, serve_refusal
from support.stores import MIB

NAMES = ["file_loop", "loop_file", "loop_loop", "node", "loop_on_loop"]


class _Names:
    """One store by two names."""

    def __init__(self, kind: str, directory: Path, undo: ExitStack) -> None:
        if kind == "node":
            first = undo.enter_context(loop_device(directory / "disk.img", 64 * MIB))
            run_ingestd("format", first)
            self.first, self.second = (
                first,
                undo.enter_context(second_node(first, directory / "node")),
            )
            return
        file = format_store(directory / "store.img")
        loop = undo.enter_context(loop_over(file))
        self.first, self.second = file, loop
        if kind == "loop_file":
            self.first, self.second = loop, file
        elif kind == "loop_loop":
            self.first, self.second = loop, undo.enter_context(loop_over(file))
        elif kind == "loop_on_loop":
            self.second = undo.enter_context(loop_over(loop))


@pytest.fixture(params=NAMES)
def names(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Names]:
    with ExitStack() as undo:
        yield _Names(request.param, tmp_path, undo)


def _is_served(store: Path) -> bool:
    return bool(json.loads(run_ingestd("info", store, "--json").stdout)["served"])


@pytest.mark.fault("two_names")
def test_a_served_store_is_served_by_no_other_name(
    names: _Names, tmp_path: Path, start_daemon: Callable[..., Daemon]
) -> None:
    """All commands see by the other name that it is served, and a kill ends that."""
    daemon = start_daemon(names.first, log=tmp_path / "log")
    with (tmp_path / "data").open("wb+") as data:
        data.write(b"A" * 500_000)
        data.seek(0)
        kept = send_stream(data, *daemon.address)
    assert kept.durable
    assert _is_served(names.second)
    serve_refusal(StoreBusyError, names.second)
    for flags in ((), ("--force",)):
        error = UnsafeDeviceError if _is_file_under_loop(names) else StoreBusyError
        refusal(error, "format", names.second, *flags)
    daemon.kill()
    wait_until(lambda: not _is_served(names.second), "the dead daemon's store is given up")
    again = start_daemon(names.second, log=tmp_path / "log2")
    again.stop()
    tally.tried(3)
    with tally.acknowledged(500_000):
        assert run_ingestd("cat", names.first, kept.flow).stdout == b"A" * 500_000


def _is_file_under_loop(names: _Names) -> bool:
    """Then formatting the file is refused for the loop device, whoever uses it."""
    return names.second.is_file()


@pytest.mark.fault("two_names")
@pytest.mark.parametrize("names", [n for n in NAMES if n != "loop_on_loop"], indirect=True)
def test_a_flow_is_removed_by_the_daemon_whatever_the_name(
    names: _Names, tmp_path: Path, start_daemon: Callable[..., Daemon]
) -> None:
    daemon = start_daemon(names.first, log=tmp_path / "log")
    flows = []
    for size in (1000, 2000):
        (tmp_path / "data").write_bytes(b"x" * size)
        with (tmp_path / "data").open("rb") as data:
            flows.append(send_stream(data, *daemon.address).flow)
    removed = run_ingestd("rm", names.second, flows[0])
    assert b"the daemon gives segments back" in removed.stderr
    daemon.stop()
    left = [
        json.loads(line) for line in run_ingestd("ls", names.second, "--json").stdout.splitlines()
    ]
    with tally.acknowledged(2000):
        assert [flow["flow"] for flow in left] == [flows[1]]
        assert run_ingestd("cat", names.second, flows[1]).stdout == b"x" * 2000


def test_parts_of_one_image_are_stores_of_their_own(
    tmp_path: Path, start_daemon: Callable[..., Daemon]
) -> None:
    """What lies beside a store in the same file, or behind it on the same disk, is another's."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(128 * MIB)
    size = str(64 * MIB)
    with (
        loop_over(image, "--sizelimit", size) as one,
        loop_over(image, "--offset", size, "--sizelimit", size) as two,
    ):
        for number, device in enumerate((one, two)):
            run_ingestd("format", device)
            start_daemon(device, log=tmp_path / f"log{number}")
        assert _is_served(one)
        assert _is_served(two)
        # The image itself is both, and so nobody else's.
        serve_refusal(StoreBusyError, image)


def test_a_copy_of_a_served_store_is_served_by_nobody(
    tmp_path: Path, daemon: Daemon, start_daemon: Callable[..., Daemon]
) -> None:
    copy = tmp_path / "copy"
    run("cp", daemon.store, copy)
    assert not _is_served(copy)
    start_daemon(copy, log=tmp_path / "log2").stop()


@pytest.mark.needs_root
def test_a_file_whose_loop_device_is_mounted_is_not_served(tmp_path: Path) -> None:
    file = format_store(tmp_path / "store.img")
    begin = file.read_bytes()[:MIB]
    with loop_over(file) as loop:
        make_ext4(loop)
        with mounted(loop, tmp_path / "mnt"):
            with file.open("r+b") as raw:
                raw.write(begin)
            assert loop.name in serve_refusal(StoreBusyError, file)


@pytest.mark.needs_root
def test_removing_from_a_mounted_device_is_refused_at_once(tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk.img", 64 * MIB) as device:
        run_ingestd("format", device)
        begin = device.read_bytes()[:MIB]
        make_ext4(device)
        with mounted(device, tmp_path / "mnt") as directory:
            with device.open("r+b") as raw:
                raw.write(begin)
            sentence = refusal(StoreBusyError, "rm", device, "0" * 32)
            assert f"mounted on {directory}" in sentence
