# SPDX-License-Identifier: Apache-2.0
"""Runs the fuzz targets for a bounded number of runs, with a seed that is printed.

INGESTD_FUZZ_SEED and INGESTD_FUZZ_RUNS repeat or lengthen a run. The input that
broke an invariant is kept, and named in the failure.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

import pytest

from tests.support.native import PURE_SOURCES, TESTS, build_executable, find_program

CLANG = find_program("clang-14", "clang")
FLAGS = (
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
RUNS_COUNT = 20_000
RUN_TIMEOUT_S = 240
INPUT_BYTES_MAX = 256


@pytest.mark.timeout(600)
@pytest.mark.skipif(CLANG is None, reason="libFuzzer needs clang, which is not installed")
def test_fuzz_plan(tmp_path: Path) -> None:
    sources = [TESTS / "fuzz" / "fuzz_plan.c", TESTS / "core" / "plan_model.c", *PURE_SOURCES]
    program = build_executable("fuzz_plan", sources, flags=FLAGS, cc=CLANG)
    seed = int(os.environ.get("INGESTD_FUZZ_SEED", str(secrets.randbelow(2**31 - 1) + 1)))
    runs_count = int(os.environ.get("INGESTD_FUZZ_RUNS", str(RUNS_COUNT)))
    command = [
        str(program),
        f"-runs={runs_count}",
        f"-seed={seed}",
        f"-max_len={INPUT_BYTES_MAX}",
        "-len_control=0",
        f"-max_total_time={RUN_TIMEOUT_S // 2}",
        f"-artifact_prefix={tmp_path}/",
    ]
    print("INGESTD_FUZZ_SEED =", seed)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )
    kept = [str(path) for path in tmp_path.iterdir()]
    assert done.returncode == 0, f"seed {seed}, input kept in {kept}:\n{done.stderr[-4000:]}"
    assert "Done " in done.stderr, done.stderr[-2000:]
