# SPDX-License-Identifier: Apache-2.0
"""No request with the id of a flow of protocol `raw` is admitted, however early."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.daemon.admission.marked_ids import is_raw_id
from ingestd.store.read.image import read_image
from support import tally
from support.daemon import Daemon, format_store
from support.ingest import Ingest
from support.observe import assert_clean
from support.payload import Payload
from support.senders import assert_sealed, send
from support.stores import both_protocols_config

StartDaemon = Callable[..., Daemon]
TRIES = 60


def code_of(address: tuple[str, int], flow: str, resume: object) -> str:
    """How a hello with a flow's id is refused."""
    with Ingest(address) as sender:
        return str(sender.refused(flow=flow, resume=resume)["code"])


# Two workers lock more memory than an ordinary user may.
@pytest.mark.fault("id_race")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.needs_root)])
def test_the_id_in_a_receipt_is_taken(
    start_daemon: StartDaemon, tmp_path: Path, seed: int, workers: int
) -> None:
    """At once, when the daemon may not have looked at what workers did; and after a restart."""
    config = both_protocols_config(tmp_path / "c.toml", workers=workers)
    daemon = start_daemon(format_store(tmp_path / "store.img"), config=config)
    flows = []
    tally.tried(TRIES)
    for number in range(TRIES):
        sent = send(daemon.address, Payload(seed + number, 100))
        assert_sealed(sent)
        code = code_of(daemon.listener("ingest"), sent.flow, number % 2 == 1)
        assert code == ("unknown_flow" if number % 2 else "exists")
        flows.append(sent.flow)
    with socket.create_connection(daemon.address) as raw:
        raw.sendall(b"interrupted")
        daemon.kill()
    daemon.start()
    for number, flow in enumerate(flows[:6]):
        assert code_of(daemon.listener("ingest"), flow, (True, False, "auto")[number % 3]) in (
            "exists",
            "unknown_flow",
        )
    assert daemon.stop() == 0
    with read_image(str(daemon.store)) as image:
        store_uuid = image.superblock.store_uuid
        assert {str(uuid.UUID(flow)) for flow in flows} <= {flow.flow for flow in image.flows}
        assert all(is_raw_id(flow.flow_id, store_uuid) for flow in image.flows)
    assert_clean(daemon.store)
