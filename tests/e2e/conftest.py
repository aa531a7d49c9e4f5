# SPDX-License-Identifier: Apache-2.0
"""What the tests of protocol ingest have in common: a daemon that speaks it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.daemon import Daemon, format_store
from support.stores import MIB, write_config


@pytest.fixture
def serve(start_daemon: Callable[..., Daemon], tmp_path: Path) -> Callable[..., Daemon]:
    """A function that serves a store on a listener of protocol ingest with these settings."""

    def start(*, host: str = "127.0.0.1", **listener: Any) -> Daemon:
        path = format_store(tmp_path / "store.img")
        config = write_config(
            tmp_path / "ingestd.toml",
            store={"default": {"area": 64 * MIB}},
            listener={"default": {"protocol": "ingest", "ack_interval_s": 0.05, **listener}},
            log={"level": "debug"},
        )
        return start_daemon(path, config=config, host=host)

    return start
