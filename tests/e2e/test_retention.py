# SPDX-License-Identifier: Apache-2.0
"""Flows that go by themselves when they are past their term, or when newer ones are enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.daemon import Daemon, format_store
from support.observe import assert_clean, assert_stored, list_flows, scrape, wait_until
from support.payload import Payload
from support.senders import Sent, assert_sealed, send
from support.stores import MIB, write_config

StartDaemon = Callable[..., Daemon]


def serve(
    start_daemon: StartDaemon, tmp_path: Path, listener: dict[str, Any], **store: Any
) -> Daemon:
    """A store of 31 segments, with one listener whose flows expire and one whose do not."""
    path = format_store(tmp_path / "store.img", "--segment-size", "1MiB", size="32MiB")
    config = write_config(
        tmp_path / "c.toml",
        store={"default": {"area": "8MiB", "write_bytes_max": "64KiB", **store}},
        listener={
            "default": {"address": "127.0.0.1:0", **listener},
            "kept": {"address": "127.0.0.1:0"},
        },
    )
    return start_daemon(path, config=config)


def listed(daemon: Daemon) -> set[str]:
    return {entry["flow"] for entry in list_flows(daemon.store)}


def test_flows_go_when_their_term_is_past(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """More is received than the store holds, and what is to be kept stays."""
    daemon = serve(start_daemon, tmp_path, {"retain_for_s": 1.0})
    kept: list[Sent] = []
    sent: list[Sent] = []
    for number in range(4):
        kept.append(send(daemon.listener("kept"), Payload(seed + number, 10_000)))
        begun_s = time.monotonic()
        sent.append(send(daemon.address, Payload(seed + 100 + number, 7 * MIB)))
        assert_sealed(sent[-1])
        now_listed = listed(daemon)
        if time.monotonic() < begun_s + 1.0:
            assert sent[-1].flow in now_listed, "it is not past its term"
        wait_until(
            lambda: scrape(daemon).total("ingestd_segments", state="free") >= 12,
            "there is room for the next",
        )
    shot = scrape(daemon)
    assert shot.total("ingestd_segments_freed_total", reason="retention") >= 6
    assert shot.total("ingestd_flows_removed_total", reason="retention") >= 2
    assert not daemon.events("store_full")
    assert not listed(daemon) & {item.flow for item in sent[:2]}
    assert_stored(daemon.store, kept)
    assert daemon.stop() == 0
    assert {item.flow for item in kept} <= listed(daemon)
    assert_clean(daemon.store)


def test_the_newest_bytes_are_kept(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    """In a store that would overwrite, and has no need to."""
    daemon = serve(start_daemon, tmp_path, {"retain_bytes": "6MiB"}, on_full="overwrite-oldest")
    sent = [send(daemon.address, Payload(seed + number, 3 * MIB)) for number in range(6)]
    old = {item.flow for item in sent[:3]}
    wait_until(lambda: not listed(daemon) & old, "the oldest three are gone")
    assert_stored(daemon.store, sent[4:])
    assert {item.flow for item in sent[4:]} <= listed(daemon)
    assert not daemon.events("segment_overwritten")
    assert {line["reason"] for line in daemon.events("segment_freed")} <= {"retention", "removed"}
    assert daemon.stop() == 0
    assert_clean(daemon.store)
