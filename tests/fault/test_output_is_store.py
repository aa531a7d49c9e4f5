# SPDX-License-Identifier: Apache-2.0
"""No command writes into the store that it reads, by whatever name its output goes there."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from ingestd.errors import SystemCallError, UsageError
from support import tally
from support.aliases import loop_over
from support.daemon import PROGRAM, Daemon, format_store, run_ingestd
from support.loop import run, tmpfs
from support.patience import WAIT_S
from support.payload import Payload
from support.refusal import refusal
from support.senders import send

FLOW_BYTES = 3_000_000


@pytest.fixture
def store(tmp_path: Path, seed: int) -> Path:
    """A store with one flow, which nobody serves."""
    path = format_store(tmp_path / "store")
    with Daemon(path) as daemon:
        send(daemon.address, Payload(seed, FLOW_BYTES))
        daemon.stop()
    return path


def _flow(store: Path) -> str:
    (line,) = run_ingestd("ls", store, "--json").stdout.splitlines()
    return str(json.loads(line)["flow"])


def _shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


@pytest.mark.fault("output")
@pytest.mark.parametrize("redirection", ["1<>", ">>", "2>>", "2<>"])
def test_standard_streams_into_the_store(store: Path, redirection: str) -> None:
    """Of every command that reads a store, whether or not it would have something to write."""
    flow, before = _flow(store), store.read_bytes()
    for words in (
        f"cat {store} {flow}",
        f"ls {store}",
        f"info {store} --json",
        f"verify {store} --json",
        f"rm {store} {flow}",
        f"format {store} --force",
        f"serve --store {store} --listen 127.0.0.1:0",
    ):
        done = _shell(f"{PROGRAM} {words} {redirection}{store}")
        assert done.returncode == UsageError.exit_code, (words, done)
        assert ("goes to the store" in done.stderr) == (redirection[0] != "2"), done
        tally.tried(1)
        with tally.acknowledged(FLOW_BYTES):
            assert store.read_bytes() == before, words


@pytest.mark.fault("output")
def test_output_to_what_the_store_lies_on_and_back(store: Path) -> None:
    flow, before = _flow(store), store.read_bytes()
    with loop_over(store) as loop, loop_over(store) as other:
        for source, target in ((loop, store), (store, loop), (loop, other), (loop, loop)):
            sentence = refusal(UsageError, "cat", source, flow, "-o", target)
            assert "the store itself" in sentence
            done = _shell(f"{PROGRAM} cat {source} {flow} 1<>{target}")
            assert done.returncode == UsageError.exit_code, done
            run("blockdev", "--flushbufs", loop)
            tally.tried(2)
            with tally.acknowledged(FLOW_BYTES):
                assert store.read_bytes() == before


@pytest.mark.fault("output")
def test_output_by_links_to_the_store(store: Path, tmp_path: Path) -> None:
    flow, before = _flow(store), store.read_bytes()
    os.link(store, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(store)
    for name in ("hard", "soft", f"../{tmp_path.name}/store"):
        refusal(UsageError, "cat", store, flow, "-o", tmp_path / name)
        tally.tried(1)
        with tally.acknowledged(FLOW_BYTES):
            assert store.read_bytes() == before


@pytest.mark.fault("output")
def test_output_to_another_store(store: Path, tmp_path: Path) -> None:
    other = format_store(tmp_path / "other")
    before = other.read_bytes()
    assert "is a store" in refusal(UsageError, "cat", store, _flow(store), "-o", other)
    assert other.read_bytes() == before


@pytest.mark.needs_root
def test_an_output_file_is_there_whole_or_as_it_was(store: Path, tmp_path: Path) -> None:
    flow, target = _flow(store), tmp_path / "out"
    run_ingestd("cat", store, flow, "-o", target)
    assert target.stat().st_size == FLOW_BYTES
    target.write_bytes(b"earlier")
    target.chmod(0o640)
    (tmp_path / "link").symlink_to(target)
    run_ingestd("cat", store, flow, "-o", tmp_path / "link", "--length", "10")
    assert (target.stat().st_size, stat.S_IMODE(target.stat().st_mode)) == (10, 0o640)
    assert (tmp_path / "link").is_symlink()
    with tmpfs(tmp_path / "small", "1M") as small:
        (small / "out").write_bytes(b"earlier")
        refusal(SystemCallError, "cat", store, flow, "-o", small / "out")
        assert (small / "out").read_bytes() == b"earlier"
        assert [path.name for path in small.iterdir()] == ["out"]


def test_a_file_is_not_sent_while_it_takes_the_receipts(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"payload")
    with Daemon(store) as daemon:
        done = _shell(f"{PROGRAM} send {path} --to 127.0.0.1:{daemon.port} >>{path}")
        assert done.returncode == UsageError.exit_code, done
        assert path.read_bytes() == b"payload"
