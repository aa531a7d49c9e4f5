# SPDX-License-Identifier: Apache-2.0
"""A daemon with a catalogue: restarts, look-ups, and a catalogue that is lost."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import Daemon, format_store
from support.ingest import Ingest, data_of, stored, wait_for_event
from support.observe import assert_clean, assert_stored
from support.payload import Payload
from support.senders import assert_sealed, send
from support.stores import both_protocols_config

FLOW = str(uuid.UUID(int=7 << 76 | 8 << 62 | 1))
DATA_BYTES = 300_000


def catalogue_of(directory: Path) -> Path:
    (file,) = directory.glob("catalogue/*.sqlite")
    return file


def reasons(daemon: Daemon) -> list[str]:
    return [line["reason"] for line in daemon.events("catalogue_chosen")]


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_flow_resumes_after_a_crash(
    start_daemon: Callable[..., Daemon], tmp_path: Path, seed: int, is_lost: bool
) -> None:
    """Its store is never read as a whole: the catalogue, or a new one, says where it ends."""
    state = tmp_path / "state"
    config = both_protocols_config(tmp_path / "c.toml", daemon={"state_dir": str(state)})
    path = format_store(tmp_path / "store.img", "--segment-size", "1MiB")
    daemon = start_daemon(path, config=config)
    raw = [send(daemon.address, Payload(seed + n, 5_000 + n)) for n in range(30)]
    data = data_of(seed, DATA_BYTES)
    half = DATA_BYTES // 2
    with Ingest(daemon.listener("ingest")) as sender:
        assert sender.begin(flow=FLOW, name="resumed") == 0
        sender.send(data[:half])
        sender.durable(half)
        daemon.kill()
    if is_lost:
        catalogue_of(state).unlink()
    daemon.start()
    assert reasons(daemon)[0].endswith("there was none")
    assert reasons(daemon)[1].endswith("there was none" if is_lost else "it was found")
    wait_for_event(daemon, "catalogue_fed", 2)
    with Ingest(daemon.listener("ingest")) as sender:
        offset = sender.begin(flow=FLOW, resume=True)
        assert offset == half
        sender.send(data[offset:])
        assert sender.sealed()["bytes"] == DATA_BYTES
    with Ingest(daemon.listener("ingest")) as sender:
        assert sender.refused(flow=str(uuid.uuid4()), resume=True)["code"] == "unknown_flow"
    with Ingest(daemon.listener("ingest")) as sender:
        assert sender.begin(flow=str(uuid.uuid4())) == 0
        sender.sealed()
    assert daemon.stop() == 0
    daemon.start()
    (*_, recovered) = daemon.events("recovered")
    assert recovered["flows"] == len(raw) + 2
    assert recovered["flows_interrupted"] == 0
    with Ingest(daemon.listener("ingest")) as sender:
        assert sender.refused(flow=FLOW, resume=True)["code"] == "sealed"
    assert daemon.stop() == 0
    for one in raw:
        assert_sealed(one)
    assert_stored(daemon.store, raw)
    assert stored(daemon, FLOW)[1] == data
    assert_clean(daemon.store)


def test_a_state_directory_that_cannot_be_used_stops_nothing(
    start_daemon: Callable[..., Daemon], tmp_path: Path, seed: int
) -> None:
    (tmp_path / "state").write_text("not a directory")
    config = both_protocols_config(
        tmp_path / "c.toml", daemon={"state_dir": str(tmp_path / "state")}
    )
    daemon = start_daemon(format_store(tmp_path / "store.img"), config=config)
    wait_for_event(daemon, "catalogue_failed")
    one = send(daemon.address, Payload(seed, 5_000))
    daemon.kill()
    daemon.start()
    with Ingest(daemon.listener("ingest")) as sender:
        assert sender.refused(flow=one.flow, resume=True)["code"] == "unknown_flow"
    assert daemon.stop() == 0
    assert_stored(daemon.store, [one])
