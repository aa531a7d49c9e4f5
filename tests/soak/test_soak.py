# SPDX-License-Identifier: Apache-2.0
"""The soak, as long as SOAK_S says: two minutes in `make test`, twenty in `make soak`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from soak.driver import Soak

SOAK_S = float(os.environ.get("SOAK_S") or 120)


@pytest.mark.timeout(SOAK_S + 240)
def test_soak(tmp_path: Path, seed: int) -> None:
    try:
        print(Soak(tmp_path, seed, SOAK_S).run())
    except AssertionError as error:
        error.add_note(f"seed {seed}: repeat it with INGESTD_TEST_SEED={seed} make soak")
        raise
