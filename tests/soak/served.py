# SPDX-License-Identifier: Apache-2.0
"""The daemon of the soak: two small stores, each with a raw listener and one for ingest."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from support.daemon import PROGRAM, READY_EVENT, Daemon, format_store
from support.stores import write_config

WORKERS_COUNT: Final = 2
OLDEST: Final = "oldest"  # evicts its oldest bytes
REJECTING: Final = "rejecting"
ON_FULL: Final = {OLDEST: "overwrite-oldest", REJECTING: "reject"}
SEGMENT_SIZE: Final = "1MiB"
STORE_SIZES: Final = {OLDEST: "48MiB", REJECTING: "64MiB"}
PROTOCOLS: Final = ("ingest", "raw")
# Below the range of which the kernel takes ports for connections: while the daemon is
# dead, no sender's own port can be one of its listeners'.
PORTS: Final = range(10_000, 32_000)
PORT_TRIES_MAX: Final = 100


@dataclass
class SoakDaemon(Daemon):
    """A Daemon whose configuration names everything; `store` is the one its log lies beside."""

    addresses: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)

    def start(self) -> None:
        """Start, and wait until every listener accepts."""
        self.log_path = self.log or self.store.with_name("daemon.log")
        self.log_path.touch()
        starts_before = len(self.events(READY_EVENT))
        self.control = self.store.with_name("control")
        self._launch([PROGRAM, "serve", "-c", str(self.config), "--control", str(self.control)])
        self._wait_until_ready(starts_before)


def make_stores(directory: Path) -> dict[str, Path]:
    """Format every store."""
    return {name: format_anew(directory / f"{name}.store", name) for name in STORE_SIZES}


def format_anew(path: Path, name: str) -> Path:
    """Format a store, whatever was there."""
    path.unlink(missing_ok=True)
    return format_store(path, "--segment-size", SEGMENT_SIZE, size=STORE_SIZES[name])


def make_daemon(directory: Path, stores: dict[str, Path], choose: random.Random) -> SoakDaemon:
    """Configure a daemon; it is not started."""
    addresses = {
        (store, protocol): ("127.0.0.1", free_port(choose))
        for store in stores
        for protocol in PROTOCOLS
    }
    config = write_config(
        directory / "soak.toml",
        store={name: _store(path, name) for name, path in stores.items()},
        listener={
            f"{store}-{protocol}": _listener(store, protocol, port)
            for (store, protocol), (_, port) in addresses.items()
        },
        log={"format": "json", "level": "info"},
        daemon={"drain_timeout_s": 1},
    )
    return SoakDaemon(stores[OLDEST], config=config, addresses=addresses)


def _store(path: Path, name: str) -> dict[str, Any]:
    return {
        "path": str(path),
        "on_full": ON_FULL[name],
        "workers": WORKERS_COUNT,
        "area": "8MiB",
        "write_bytes_max": "256KiB",
    }


def _listener(store: str, protocol: str, port: int) -> dict[str, Any]:
    settings = {"address": f"127.0.0.1:{port}", "store": store, "protocol": protocol}
    more = {"ack_interval_s": 0.05, "hello_timeout_s": 3.0} if protocol == "ingest" else {}
    return settings | {"idle_timeout_s": 5.0} | more


def free_port(choose: random.Random) -> int:
    """A port on which nobody listened a moment ago."""
    for _ in range(PORT_TRIES_MAX):
        port = choose.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
