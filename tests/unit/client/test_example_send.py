# SPDX-License-Identifier: Apache-2.0
"""examples/send.py: what docs/protocol.md says suffices to write a sender."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from support.patience import WAIT_S
from support.payload import Payload
from support.protocol_server import running

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "send.py"
FLOW = str(uuid.UUID(int=5))


def _run(*arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", str(EXAMPLE), *arguments],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env={**os.environ, "INGEST_KEY": key},
    )


@pytest.mark.parametrize("drops_after", [[], [100_000, 1, 2_000_000]])
def test_file_arrives_over_as_many_connections_as_it_takes(
    tmp_path: Path, drops_after: list[int | None]
) -> None:
    payload = Payload(1, 3_000_000)
    (tmp_path / "f").write_bytes(payload.data())
    with running(drops_after=drops_after, receipts_lost=len(drops_after)) as server:
        result = _run("127.0.0.1", str(server.port), str(tmp_path / "f"))
        assert result.returncode == 0, result.stderr
        flow = result.stdout.splitlines()[0].removeprefix("flow ")
        assert bytes(server.flows[flow].data) == payload.data()
        assert server.flows[flow].is_sealed
    receipt = json.loads(result.stdout.splitlines()[1])
    assert receipt["checksum"] == payload.checksum()


def test_second_run_goes_on(tmp_path: Path) -> None:
    payload = Payload(2, 3_000_000)
    (tmp_path / "f").write_bytes(payload.data())
    with running(drops_after=[1_000_000]) as server:
        first = _run("127.0.0.1", str(server.port), str(tmp_path / "f"), FLOW)
        second = _run("127.0.0.1", str(server.port), str(tmp_path / "f"), FLOW)
        assert (first.returncode, second.returncode) == (0, 0), (first.stderr, second.stderr)
        assert bytes(server.only_flow().data) == payload.data()
        assert server.counts["sealed"] == 1  # which is all that the second run learns


def test_refusal_is_told(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    refusals = [{"code": "busy"}, {"code": "store_full", "text": "no segment is free"}]
    with running(refusals=refusals) as server:
        result = _run("127.0.0.1", str(server.port), str(tmp_path / "f"))
        assert server.counts["busy"] == 1
    assert result.returncode == 1
    assert "store_full: no segment is free; 0 bytes are durable" in result.stderr


@pytest.mark.parametrize("name", ["f", "0" * 64])
def test_it_shows_that_it_has_a_key(tmp_path: Path, name: str) -> None:
    payload, secret = Payload(3, 100_000), bytes(range(100, 132))
    (tmp_path / name).write_bytes(payload.data())
    with running({"lab": secret}, drops_after=[50_000]) as server:
        target = ("127.0.0.1", str(server.port), str(tmp_path / name), FLOW)
        for wrong in ("", f"lab:{bytes(32).hex()}", f"barn:{secret.hex()}"):
            result = _run(*target, key=wrong)
            assert (result.returncode, server.flows) == (1, {})
            assert "unauthorised" in result.stderr
        result = _run(*target, key=f"lab:{secret.hex()}")
        assert result.returncode == 0, result.stderr
        assert bytes(server.flows[FLOW].data) == payload.data()


def test_it_needs_nothing_but_python() -> None:
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    assert imported <= sys.stdlib_module_names


def test_it_tries_again_after_the_errors_that_the_document_says() -> None:
    assigned = [
        node.value
        for node in ast.parse(EXAMPLE.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PASSING"
    ]
    (passing,) = map(ast.literal_eval, assigned)
    text = (EXAMPLE.parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    again = {row[1].strip(" `") for row in rows if len(row) == 5 and row[3].strip() == "yes"}
    assert set(passing) == again
