# SPDX-License-Identifier: Apache-2.0
"""Runs the fuzz targets for a bounded number of runs, with a seed that is printed.

INGESTD_FUZZ_SEED and INGESTD_FUZZ_RUNS repeat or lengthen a run. The input that
broke an invariant is kept, and named in the failure; a target that is started
with its path as the only argument uses that input alone.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.native import TESTS

RUN_TIMEOUT_S = 240
INPUT_TIMEOUT_S = 20
INPUT_BYTES_MAX = 256
# How many runs of each Python target take some seconds.
PYTHON_RUNS_COUNT = {"hello": 30_000, "receipt": 40_000, "records": 60_000, "store": 250}


@pytest.mark.timeout(600)
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris has no wheel for this machine or this Python",
)
@pytest.mark.parametrize("target", PYTHON_RUNS_COUNT)
def test_fuzz_python(target: str, tmp_path: Path) -> None:
    program = [sys.executable, "-P", str(TESTS / "fuzz" / f"fuzz_{target}.py")]
    # The installed ingestd, never the source tree's, and `support`.
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    _fuzz(program, tmp_path, PYTHON_RUNS_COUNT[target], environment)


def _fuzz(
    program: list[str],
    tmp_path: Path,
    runs_count: int,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a target of libFuzzer's; what it finds is kept, and named in the failure."""
    seed = int(os.environ.get("INGESTD_FUZZ_SEED", str(secrets.randbelow(2**31 - 1) + 1)))
    runs_count = int(os.environ.get("INGESTD_FUZZ_RUNS", str(runs_count)))
    kept = tmp_path / "kept"
    kept.mkdir()
    command = [
        *program,
        f"-runs={runs_count}",
        f"-seed={seed}",
        f"-max_len={INPUT_BYTES_MAX}",
        "-len_control=0",
        f"-timeout={INPUT_TIMEOUT_S}",
        f"-max_total_time={RUN_TIMEOUT_S // 2}",
        f"-artifact_prefix={kept}/",
    ]
    print("INGESTD_FUZZ_SEED =", seed)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=RUN_TIMEOUT_S,
        check=False,
        env=environment,
    )
    found = [str(path) for path in kept.iterdir()]
    said = f"{done.stderr[-2000:]}{done.stdout[-4000:]}"
    assert done.returncode == 0, f"seed {seed}, input kept in {found}:\n{said}"
    assert "Done " in done.stderr, said
