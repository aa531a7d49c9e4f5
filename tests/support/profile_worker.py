# SPDX-License-Identifier: Apache-2.0
"""A worker of the compiled core with a direct-I/O profile that is given, as a process of its own.

    profile_worker.py STORE MEM_ALIGN WRITE_ALIGN VIRT_MASK

Prints the port that it listens on, receives flows, and drains when its standard input ends.
A profile that is stricter than the disk's is legal on it; so the worker runs as it would on a
device that is not there. A process of its own, as a broken invariant aborts it.
"""

from __future__ import annotations

import socket
import sys

from ingestd.config.settings import ListenerSettings, StoreSettings
from ingestd.daemon.machine.direct_io import IOVECS_MAX, DirectProfile
from ingestd.daemon.segments.pump import Pump
from ingestd.daemon.workers.area import AreaPlan
from ingestd.daemon.workers.worker import WorkerThread, load_core
from ingestd.store.serve.served_store import ServedStore, open_for_serving

MIB = 1024 * 1024
DRAIN_S = 30.0


def make_worker(store: ServedStore, profile: DirectProfile) -> WorkerThread:
    """A worker of engine recv, small enough that its area is short now and then."""
    settings = StoreSettings(path=store.path, flush_interval_s=0.02)
    return WorkerThread(
        load_core(),
        store,
        settings,
        store_name="profile",
        index=0,
        profile=profile,
        area=AreaPlan(2 * MIB, 128 * 1024, 4, 0, ""),
        on_end=lambda: None,
    )


def main(path: str, *alignments: str) -> None:
    """Serve until standard input ends."""
    profile = DirectProfile(*map(int, alignments), IOVECS_MAX)
    with open_for_serving(path) as store, socket.create_server(("127.0.0.1", 0)) as server:
        worker = make_worker(store, profile)
        worker.start()
        worker.wait_ready()
        listener = ListenerSettings(address="127.0.0.1:0")
        worker.add_listener(server.fileno(), 0, "profile", listener)
        pump = Pump([worker], lambda: None)
        pump.start()
        worker.run()
        print(server.getsockname()[1], flush=True)
        sys.stdin.read()
        worker.drain(DRAIN_S)
        ended = worker.join(2 * DRAIN_S)
        pump.close()
        if worker.error is not None:
            raise worker.error
        assert ended, "the worker did not drain"


if __name__ == "__main__":
    main(*sys.argv[1:])
