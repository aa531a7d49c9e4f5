# SPDX-License-Identifier: Apache-2.0
"""A few fresh seeds of the simulator, and that a seed repeats to the byte.

A failure names its seed: `make sim SEED=...` plays it again. Fresh
seeds are tried until POINTS images were looked at, and for SIM_SECONDS at least.
"""

from __future__ import annotations

import os
import time

import pytest
from sim.build import program_of
from sim.driver import fresh_seed, simulate

from ingestd.store.read import image
from support.crash_store import Serial

POINTS = 3000
SECONDS = float(os.environ.get("SIM_SECONDS", "0"))
STEPS = 1500


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "ThreadPoolExecutor", Serial)


@pytest.mark.fault("fragments")
@pytest.mark.timeout(1800)
def test_fresh_seeds() -> None:
    ends_s = time.monotonic() + SECONDS
    points = 0
    while points < POINTS or time.monotonic() < ends_s:
        seed = fresh_seed()
        print(f"simulator: make sim SEED={seed} STEPS={STEPS}", flush=True)
        points += simulate(program_of(seed), seed, STEPS).points


@pytest.mark.timeout(1800)
def test_a_seed_repeats_to_the_byte_and_is_clean_under_sanitizers() -> None:
    seed = fresh_seed()
    print(f"simulator: make sim SEED={seed} STEPS={STEPS} SANITIZE=1")
    plain = simulate(program_of(seed), seed, STEPS)
    again = simulate(program_of(seed, is_sanitized=True), seed, STEPS)
    assert plain.hashes == again.hashes
    assert len(plain.hashes) == plain.lives
