# SPDX-License-Identifier: Apache-2.0
"""Runs the C tests of the core, on made-up completions, under AddressSanitizer and UBSan."""

from __future__ import annotations

import re
import subprocess

import pytest

from support.native import CORE, PURE_SOURCES, SANITIZERS, TESTS, build_executable
from support.patience import WAIT_S

MODEL = TESTS / "core" / "plan_model.c"
PROGRAMS = {
    "test_admission": (TESTS / "core" / "test_admission.c",),
    "test_lines": (TESTS / "core" / "test_lines.c",),
    "test_buddy": (TESTS / "core" / "test_buddy.c",),
    "test_commit": (TESTS / "core" / "test_commit.c",),
    "test_engine": (
        TESTS / "core" / "test_engine.c",
        CORE / "connection/progress.c",
        CORE / "receive/engine.c",
    ),
    "test_connection_table": (TESTS / "core" / "test_connection_table.c",),
    "test_flow_id": (TESTS / "core" / "test_flow_id.c",),
    "test_frame": (TESTS / "core" / "test_frame.c",),
    # The worker around it is played by the test.
    "test_connection": (
        TESTS / "core" / "test_connection.c",
        CORE / "base/socket.c",
        CORE / "connection/connection.c",
        CORE / "connection/handover.c",
        CORE / "connection/listener.c",
        CORE / "connection/raw.c",
    ),
    "test_listener": (
        TESTS / "core" / "test_listener.c",
        CORE / "base/socket.c",
        CORE / "connection/connection.c",
        CORE / "connection/handover.c",
        CORE / "connection/listener.c",
        CORE / "connection/raw.c",
    ),
    # The kernel, the clock and the worker's parts are played by the test.
    "test_loop": (
        TESTS / "core" / "test_loop.c",
        CORE / "base/mailbox.c",
        CORE / "base/reactor.c",
        CORE / "loop.c",
    ),
    "test_network": (TESTS / "core" / "test_network.c",),
    "test_peers": (TESTS / "core" / "test_peers.c",),
    "test_plan": (TESTS / "core" / "test_plan.c", MODEL),
    "test_plan_small": (TESTS / "core" / "test_plan_small.c", MODEL),
    "test_plan_random": (TESTS / "core" / "test_plan_random.c", MODEL),
    "test_refill": (TESTS / "core" / "test_refill.c",),
    "test_outbox": (TESTS / "core" / "test_outbox.c",),
    "test_segment": (TESTS / "core" / "test_segment.c",),
    "test_session": (TESTS / "core" / "test_session.c",),
    # What the engine calls beside its own files is a stub.
    "test_zcrx_engine": (
        TESTS / "core" / "test_zcrx_engine.c",
        CORE / "receive/engine.c",
        CORE / "receive/zcrx/control.c",
        CORE / "receive/zcrx/zcrx.c",
        CORE / "receive/zcrx/pending.c",
    ),
}


STAND_INS = {
    "test_loop": ("-Dclock_gettime=stage_gettime", "-Dnanosleep=stage_nanosleep"),
}


def test_every_c_test_is_run() -> None:
    found = {path.stem for path in (TESTS / "core").glob("test_*.c")}
    assert found == set(PROGRAMS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PROGRAMS)
def test_c_program(name: str) -> None:
    flags = (*SANITIZERS, *STAND_INS.get(name, ()))
    program = build_executable(name, [*PROGRAMS[name], *PURE_SOURCES], flags=flags)
    done = subprocess.run([program], capture_output=True, text=True, timeout=WAIT_S, check=False)
    said = done.stdout + done.stderr
    counts = re.search(r"^(\d+) passed, (\d+) failed$", done.stdout, re.MULTILINE)
    assert counts is not None, said
    assert done.returncode == 0, said
    assert int(counts[1]) > 0, said
    assert int(counts[2]) == 0, said
