# SPDX-License-Identifier: Apache-2.0
"""A store that overwrites its oldest bytes, many times over, with flows, kills and starts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.errors import StoreError
from support.daemon import Daemon, format_store, run_ingestd
from support.observe import (
    assert_clean,
    assert_stored,
    cat,
    flow_of,
    list_flows,
    scrape,
    verify,
    wait_until,
)
from support.payload import Payload
from support.senders import Sent, SocketSender, assert_sealed, send
from support.stores import MIB, write_config

StartDaemon = Callable[..., Daemon]
STORE_BYTES = 17 * MIB
FLOW_BYTES = 3 * MIB


def _serve(start_daemon: StartDaemon, tmp_path: Path, checksum: str, **store: object) -> Daemon:
    path = tmp_path / "store.img"
    if not path.exists():
        format_store(path, "--segment-size", "1MiB", size=str(STORE_BYTES))
    settings = {
        "on_full": "overwrite-oldest",
        "checksum": checksum,
        "area": "8MiB",
        "write_bytes_max": "64KiB",
        **store,
    }
    config = write_config(tmp_path / "c.toml", store={"default": settings})
    return start_daemon(path, config=config)


def _assert_tail(store: Path, sent: Sent, size: int) -> bool:
    """Whatever is left of a flow is its end, byte for byte; return whether anything is."""
    entries = {entry["flow"]: entry for entry in list_flows(store)}
    entry = entries.get(sent.flow)
    if entry is None:
        return False
    first = entry["first_offset"]
    assert (entry["state"], entry["bytes"]) == ("sealed", size)
    assert entry["head_overwritten"] == (first > 0)
    assert cat(store, sent.flow) == sent.payload.data()[first:]
    return True


@pytest.mark.parametrize("checksum", ["crc32c", "none"])
def test_many_times_over(
    start_daemon: StartDaemon, tmp_path: Path, seed: int, checksum: str
) -> None:
    daemon = _serve(start_daemon, tmp_path, checksum)
    sent = []
    for number in range(20):
        sent.append(send(daemon.address, Payload(seed + number, FLOW_BYTES)))
        assert_sealed(sent[-1], has_checksum=checksum == "crc32c")
        if number == 9:
            # What came last is whole, while the daemon runs.
            assert_stored(daemon.store, sent[-1:])
            daemon.kill()
            daemon.start()
            # What was acknowledged last is there after the kill.
            assert_stored(daemon.store, sent[-1:])
    shot = scrape(daemon)
    assert shot.total("ingestd_segments_overwritten_total") >= 15
    assert shot.total("ingestd_overwritten_bytes_total") >= 10 * MIB
    assert shot.total("ingestd_store_full") == 0
    assert wait_until(lambda: daemon.events("segment_overwritten"), "the log tells")
    line = daemon.events("segment_overwritten")[0]
    assert line["flows_count"] >= 1
    assert line["flows"][0] in {item.flow for item in sent}
    assert not daemon.events("store_full")
    assert daemon.stop() == 0
    left = [_assert_tail(daemon.store, item, FLOW_BYTES) for item in sent]
    assert left == sorted(left), "the oldest go first"
    assert left[-1]
    assert not left[0]
    assert_clean(daemon.store)
    # One start more, on a store without a free segment.
    daemon.start()
    assert_sealed(send(daemon.address, Payload(seed, 10)), has_checksum=checksum == "crc32c")
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_one_flow_longer_than_the_store(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    daemon = _serve(start_daemon, tmp_path, "crc32c")
    payload = Payload(seed, 50 * MIB)
    slow = SocketSender(daemon.address)
    slow.write(b"slow one")
    # Else it might be taken behind some of the others, and its beginning not be the oldest.
    wait_until(
        lambda: [e for e in list_flows(daemon.store) if e["durable_bytes"] == len(b"slow one")],
        "its beginning is in the store",
    )
    sent = send(daemon.address, payload)
    assert_sealed(sent)
    slow.write(b", its end")
    answer = slow.finish()
    assert (answer["state"], answer["bytes"]) == ("sealed", 17)
    assert cat(daemon.store, answer["flow"]) == b", its end", "its beginning was the oldest"
    entry = flow_of(daemon.store, sent.flow)
    first = entry["first_offset"]
    assert first > 30 * MIB
    assert entry["checksum"] == payload.checksum(), "of all of it, though its head is gone"
    assert cat(daemon.store, sent.flow) == payload.data()[first:]
    result = run_ingestd("cat", daemon.store, sent.flow, "--offset", str(first - 1), code=2)
    assert f"begins at byte {first}".encode() in result.stderr
    result = run_ingestd("cat", daemon.store, sent.flow, "--offset", str(first), "--length", "1")
    assert f"begins at byte {first}".encode() in result.stderr
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_killed_while_it_overwrites(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    """A flow runs all the time; whatever the kill hits, nothing is damaged, and it continues."""
    daemon = _serve(start_daemon, tmp_path, "crc32c")
    for number in range(2):
        stop = threading.Event()

        def feed(number: int = number, stop: threading.Event = stop) -> None:
            sender = SocketSender(daemon.address)
            while not stop.is_set():
                try:
                    sender.write(Payload(seed + number, MIB).data())
                except OSError:
                    return

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            wait_until(
                lambda: scrape(daemon).total("ingestd_segments_overwritten_total") > 5,
                "segments are overwritten",
            )
            daemon.kill()
        finally:
            stop.set()
            feeder.join()
        found = verify(daemon.store)["findings"]
        assert not [f for f in found if f["severity"] == "damage"], found
        daemon.start()
        assert_stored(daemon.store, [send(daemon.address, Payload(seed, 1000))])
    assert daemon.stop() == 0
    assert_clean(daemon.store)


def test_too_few_segments_for_the_workers(tmp_path: Path) -> None:
    path = format_store(tmp_path / "s.img", "--segment-size", "1MiB", size=str(STORE_BYTES))
    config = write_config(
        tmp_path / "c.toml", store={"default": {"on_full": "overwrite-oldest", "workers": 2}}
    )
    serve = ("serve", "--store", path, "--listen", "127.0.0.1:0", "-c", config)
    result = run_ingestd(*serve, code=StoreError.exit_code)
    assert b"overwriting the oldest needs 18 with this number of workers" in result.stderr
