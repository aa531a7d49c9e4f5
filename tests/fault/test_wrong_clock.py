# SPDX-License-Identifier: Apache-2.0
"""A machine whose clock is wrong, and is set right, lets nothing go that is to be kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from support.daemon import Daemon, format_store
from support.loop import cannot
from support.observe import assert_stored, list_flows, scrape, wait_until
from support.payload import Payload
from support.senders import Sent, assert_sealed, send
from support.stores import MIB, write_config

StartDaemon = Callable[..., Daemon]
CLOCKS: Final = {"behind": "@1970-01-01 00:01:00", "ahead": "+3650d"}
FLOWS_COUNT: Final = 4


def wrong(clock: str) -> dict[str, str]:
    """An environment in which the date is wrong, and time passes as it does."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        cannot("faketime is missing: apt-get install faketime")
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME": CLOCKS[clock],
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def serve(start_daemon: StartDaemon, directory: Path, clock: str, **retention: Any) -> Daemon:
    """A daemon that believes the clock."""
    path = format_store(directory / "store.img", "--segment-size", "1MiB", size="32MiB")
    config = write_config(
        directory / "c.toml",
        store={"default": {"area": "8MiB", "write_bytes_max": "64KiB"}},
        listener={"default": {"address": "127.0.0.1:0", **retention}},
    )
    return start_daemon(path, config=config, environment=wrong(clock))


def send_some(daemon: Daemon, seed: int, size: int) -> list[Sent]:
    sent = [send(daemon.address, Payload(seed + number, size)) for number in range(FLOWS_COUNT)]
    for one in sent:
        assert_sealed(one)
    return sent


@pytest.mark.fault("clock")
@pytest.mark.parametrize("clock", CLOCKS)
def test_a_clock_that_is_set_right_is_nobodys_age(
    start_daemon: StartDaemon, tmp_path: Path, seed: int, clock: str
) -> None:
    """What came minutes ago stays for its hour; later flows let maintenance look several times."""
    daemon = serve(start_daemon, tmp_path, clock, retain_for_s=3600.0)
    sent = send_some(daemon, seed, 100_000)
    daemon.stop()
    daemon.environment = {}
    daemon.start()
    for number in range(3):
        sent += send_some(daemon, seed + 100 * (number + 1), MIB)
        free = scrape(daemon).total("ingestd_segments", state="free")
        wait_until(
            lambda free=free: scrape(daemon).total("ingestd_segments", state="free") <= free,
            "nothing comes back",
        )
    assert not daemon.events("segment_freed")
    assert_stored(daemon.store, sent)
    daemon.stop()
    assert {one.flow for one in sent} == {entry["flow"] for entry in list_flows(daemon.store)}


@pytest.mark.fault("clock")
@pytest.mark.parametrize("clock", CLOCKS)
def test_the_newest_are_those_that_came_last(
    start_daemon: StartDaemon, tmp_path: Path, seed: int, clock: str
) -> None:
    """However they are dated: flows of a wrong clock push out none that came after them."""
    daemon = serve(start_daemon, tmp_path, clock, retain_bytes="6MiB")
    early = send_some(daemon, seed, 2 * MIB)
    daemon.stop()
    daemon.environment = {}
    daemon.start()
    late = send_some(daemon, seed + 100, 2 * MIB)
    gone = {one.flow for one in early}
    wait_until(
        lambda: not gone & {entry["flow"] for entry in list_flows(daemon.store)},
        "those that came first go",
    )
    assert_stored(daemon.store, late[-3:])
    daemon.stop()
