# SPDX-License-Identifier: Apache-2.0
"""`rm` with a name that says too little, or nothing, removes nothing."""

from __future__ import annotations

import pytest

from ingestd.errors import FlowNotFoundError, UsageError
from support import tally
from support.daemon import Daemon, run_ingestd
from support.observe import assert_clean, assert_stored
from support.payload import Payload
from support.senders import send

NAMES = ("", " ", "-", "--", "\t")


@pytest.mark.fault("odd_names")
@pytest.mark.parametrize("is_served", [False, True])
def test_the_only_flow_stays(daemon: Daemon, seed: int, is_served: bool) -> None:
    """Any beginning of its id would be unambiguous."""
    sent = send(daemon.address, Payload(seed, 100_000))
    if not is_served:
        daemon.stop()
    beginnings = [sent.flow[:length] for length in (1, 2, 3)]
    for name in (*NAMES, *beginnings):
        done = run_ingestd("rm", daemon.store, "--", name, code=UsageError.exit_code)
        assert done.stdout == b"", (name, done)
    run_ingestd("rm", daemon.store, "0" * 32, code=FlowNotFoundError.exit_code)
    tally.tried(len(NAMES) + len(beginnings) + 1)
    if is_served:
        daemon.stop()
    assert_stored(daemon.store, [sent])
    assert_clean(daemon.store)
