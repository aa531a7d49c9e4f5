# SPDX-License-Identifier: Apache-2.0
"""What connections of protocol ingest cost that say nothing, or not enough."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from support.daemon import Daemon
from support.ingest import Ingest
from support.observe import rss_bytes, scrape, wait_until
from support.stores import MIB, write_config

CONNECTIONS_COUNT: Final = 800  # within the usual limit of descriptors
HELLO_BYTES: Final = 4096
SILENT_BYTES_MAX: Final = 2048  # of one connection
UNEVEN_BYTES: Final = MIB  # what else the daemon's memory may move by


@pytest.mark.timeout(300)
def test_silent_connections_cost_little_and_give_back_what_they_took(
    store_path: Path, start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    config = write_config(
        tmp_path / "c.toml",
        store={"default": {"area": "8MiB"}},
        listener={"default": {"protocol": "ingest", "hello_timeout_s": 200}},
    )
    daemon = start_daemon(store_path, config=config)
    scrape(daemon)
    before = rss_bytes(daemon)
    most = before + CONNECTIONS_COUNT * SILENT_BYTES_MAX + UNEVEN_BYTES
    with ExitStack() as stack:
        silent = [stack.enter_context(Ingest(daemon.address)) for _ in range(CONNECTIONS_COUNT)]
        for connection in silent:
            assert connection.line() is not None  # the greeting
        assert rss_bytes(daemon) <= most
        # All of a hello but its end: the block's memory is taken.
        for connection in silent:
            connection.sock.sendall(b" " * (HELLO_BYTES - 1))
        wait_until(
            lambda: rss_bytes(daemon) >= before + CONNECTIONS_COUNT * HELLO_BYTES // 2,
            "the parts of hellos are received",
        )
    wait_until(lambda: rss_bytes(daemon) <= most, "their memory is given back")
