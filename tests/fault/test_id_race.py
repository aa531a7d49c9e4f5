# SPDX-License-Identifier: Apache-2.0
"""The id of a raw flow is nobody else's from the moment its receipt is there, log or no log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support import tally
from support.daemon import Daemon, format_store
from support.ingest import Ingest
from support.observe import assert_clean, assert_stored
from support.payload import Payload
from support.senders import assert_sealed, send
from support.stores import both_protocols_config
from support.stuck_log import stuck_log

TRIES = 400


@pytest.mark.fault("id_race")
def test_the_id_is_refused_while_the_log_is_stuck(
    start_daemon: Callable[..., Daemon], tmp_path: Path, seed: int
) -> None:
    """The daemon reports nothing of the flow meanwhile."""
    config = both_protocols_config(tmp_path / "c.toml")
    with stuck_log(tmp_path) as log:
        store = format_store(tmp_path / "store.img")
        daemon = start_daemon(store, config=config, wrapper=log.wrapper, log=log.log)
        ingest = daemon.listener("ingest")
        log.stick()
        sent = []
        tally.tried(TRIES)
        for number in range(TRIES):
            with Ingest(ingest) as thief:
                greeting = thief.expect("hello")
                sent.append(send(daemon.address, Payload(seed + number, 100 + number)))
                assert_sealed(sent[-1])
                thief.answer(greeting, flow=sent[-1].flow, resume=(False, "auto")[number % 2])
                assert thief.error()["code"] in ("exists", "unknown_flow")
        assert daemon.stop() == 0
    assert_stored(store, sent)
    assert_clean(store)
