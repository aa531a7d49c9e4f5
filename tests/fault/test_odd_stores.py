# SPDX-License-Identifier: Apache-2.0
"""Stores where the kernel says little of direct I/O, and paths that are no text."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.daemon import PROGRAM, Daemon, format_store, run_ingestd
from support.loop import cannot, run, tmpfs
from support.observe import assert_clean, assert_stored
from support.patience import WAIT_S
from support.payload import Payload
from support.senders import send
from support.stores import MIB


@contextmanager
def _file_system(kind: str, directory: Path) -> Iterator[Path]:
    if kind == "tmpfs":
        with tmpfs(directory / "mnt", "200M") as inside:
            yield inside
        return
    lower, upper, work, merged = (directory / name for name in ("lower", "upper", "work", "mnt"))
    for path in (lower, upper, work, merged):
        path.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    command = ["mount", "-t", "overlay", "-o", options, "overlay", merged]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if made.returncode != 0:
        cannot(f"no overlay can be mounted here: {made.stderr.strip()}")
    try:
        yield merged
    finally:
        run("umount", "--lazy", merged)


@pytest.mark.needs_root
@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_what_format_takes_serve_takes(kind: str, tmp_path: Path, seed: int) -> None:
    """With batches that do not come in whole pages, a kill and a recovery."""
    with _file_system(kind, tmp_path) as directory:
        store = format_store(directory / "store")
        profile = json.loads(run_ingestd("info", store, "--json").stdout)["direct_io"]
        assert profile["write_align"] <= 4096
        sizes = (1, 4095, 100_001, 3 * MIB + 7)
        with Daemon(store, log=tmp_path / "log") as daemon:
            sent = [send(daemon.address, Payload(seed + n, n)) for n in sizes]
            daemon.kill()
        with Daemon(store, log=tmp_path / "log2") as daemon:
            daemon.stop()
        assert_stored(store, sent)
        assert_clean(store)


def test_a_path_that_is_not_utf_8(tmp_path: Path, seed: int) -> None:
    store = tmp_path / os.fsdecode(b"st\xffre \xc3\xa9")
    format_store(store)
    with Daemon(store, log=tmp_path / "log") as daemon:
        sent = send(daemon.address, Payload(seed, 100_000))
        (opened,) = daemon.events("store_opened")
        assert opened["path"].endswith("st\\udcffre \u00e9")
        store.rename(tmp_path / "moved")
        (tmp_path / "moved").rename(store)
        daemon.stop()
    info = json.loads(run_ingestd("info", store, "--json").stdout)
    assert info["path"] == str(store)
    assert_stored(store, [sent])
    for words in (["ls"], ["verify"], ["info"], ["verify", "--json"]):
        run_ingestd(words[0], store, *words[1:])
    out = tmp_path / os.fsdecode(b"\xfe")
    run_ingestd("cat", store, sent.flow, "-o", out)
    assert out.stat().st_size == 100_000
    run_ingestd("rm", store, sent.flow)
    refused = subprocess.run(
        [PROGRAM, "cat", store, sent.flow],
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert b"\\udcff" in refused.stderr
    assert b"Traceback" not in refused.stderr
