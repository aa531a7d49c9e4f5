# SPDX-License-Identifier: Apache-2.0
"""The status of a daemon, as `ingestd ctl status` shows it: stores, workers, listeners, process.

Invariants: nothing here waits for a device; numbers are those of one moment each, not all of the
same. Sizes in bytes, times in seconds. Any thread may ask.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ingestd import __version__
from ingestd.control.messages import Message
from ingestd.daemon.telemetry.worker_events import errno_text, store_failed_advice

if TYPE_CHECKING:
    from ingestd.config.settings import Settings
    from ingestd.daemon.placement.store_states import Reason
    from ingestd.daemon.workers.worker import WorkerThread
    from ingestd.store.serve.served_store import ServedStore

Shots = Sequence[tuple["WorkerThread", Mapping[str, int]]]


class StatusReport:
    """Of one run. `failures`: why maintenance of a store fails now, by store.

    `reasons_out`: why a store takes no new flows, and for how long.
    `addresses`: those that each listener has, in the order of their indexes.
    """

    def __init__(
        self,
        settings: Settings,
        stores: Mapping[str, ServedStore],
        workers: Sequence[WorkerThread],
        addresses: Mapping[str, Sequence[str]],
        failures: Callable[[], Mapping[str, str]],
        reasons_out: Callable[[str], Mapping[Reason, float]],
        is_draining: Callable[[], bool],
    ) -> None:
        self._reasons_out = reasons_out
        self._settings = settings
        self._stores = stores
        self._workers = workers
        self._addresses = addresses
        self._failures = failures
        self._is_draining = is_draining
        self._began_s = time.monotonic()
        self._started = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

    def __call__(self) -> Message:
        """Return it."""
        shots = [(worker, worker.counters()) for worker in self._workers]
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": "draining" if self._is_draining() else "serving",
            "started": self._started,
            "uptime_s": round(time.monotonic() - self._began_s, 3),
            "stores": self._of_stores(shots),
            "workers": [_of_worker(worker, shot) for worker, shot in shots],
            "listeners": self._of_listeners(),
        }

    def _of_stores(self, shots: Shots) -> list[Message]:
        failures = self._failures()
        return [
            _of_store(
                name,
                store,
                [shot for worker, shot in shots if worker.store_name == name],
                failures.get(name),
                self._reasons_out(name),
            )
            for name, store in self._stores.items()
        ]

    def _of_listeners(self) -> list[Message]:
        counts: Counter[int] = Counter()
        for worker in self._workers:
            counts.update(worker.listener_connections())
        return [
            {
                "name": name,
                "addresses": list(addresses),
                "protocol": self._settings.listener[name].protocol,
                "stores": list(self._settings.listener[name].store_names),
                "placement": self._settings.listener[name].placement,
                "connections": counts[index],
            }
            for index, (name, addresses) in enumerate(self._addresses.items())
        ]


def _of_store(
    name: str,
    store: ServedStore,
    shots: Sequence[Mapping[str, int]],
    maintenance: str | None,
    reasons_out: Mapping[Reason, float],
) -> Message:
    superblock = store.superblock
    code = next((shot["store_errno"] for shot in shots if shot["store_errno"]), 0)
    is_full = any(shot["store_is_full"] for shot in shots)
    free_count = store.segments_free_count
    return {
        "name": name,
        "path": store.path,
        "uuid": superblock.uuid,
        "token": store.token.hex(),
        "catalogue": store.has_catalogue,
        "generation": superblock.generation,
        "state": "failed" if code else "full" if is_full else "serving",
        "out": {reason.value: round(lasted_s, 3) for reason, lasted_s in reasons_out.items()},
        "failure": f"{errno_text(code)}: {store_failed_advice(code)}" if code else None,
        "maintenance_failure": maintenance,
        "bytes": superblock.store_bytes,
        "segment_bytes": superblock.segment_bytes,
        "segments": superblock.segment_count,
        "segments_free": free_count,
        "segments_used": superblock.segment_count - free_count,
        "segments_without_room": store.segments_without_room,
        "received_bytes": sum(shot["received_bytes"] for shot in shots),
        "durable_bytes": sum(shot["durable_bytes"] for shot in shots),
        "connections": sum(shot["flows_open"] for shot in shots),
    }


def _of_worker(worker: WorkerThread, shot: Mapping[str, int]) -> Message:
    return {
        "name": worker.name,
        "store": worker.store_name,
        "index": worker.index,
        "engine": "zcrx" if worker.zcrx is not None else "recv",
        "alive": worker.alive(),
        "loop_age_s": round(worker.loop_age_s(), 3),
        "area_bytes": shot["area_bytes"],
        "area_free_bytes": shot["area_free_bytes"],
        "area_receiving_bytes": shot["area_receiving_bytes"],
        "area_writing_bytes": shot["area_writing_bytes"],
        "writes_in_flight": shot["writes_in_flight"],
        "connections": shot["flows_open"],
        "connections_greeting": shot["flows_greeting"],
        "connections_closing": shot["flows_closing"],
        # Flows that wait for memory of the area now, and how often the NIC found none.
        "starved": shot["flows_waiting"],
        "starved_chunks": shot["alloc_failures"],
    }
