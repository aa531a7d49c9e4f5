# SPDX-License-Identifier: Apache-2.0
"""make sim SEED=... [STEPS=...] [SECONDS=...]: simulates one seed, or fresh ones for a time.

Environment, as the Makefile hands it on: SEED, one seed; STEPS, the most turns of the worker in
a life; SECONDS, for how long fresh seeds are tried where no SEED is given; TRACE, a path for the
whole trace of each life; SANITIZE=1, under AddressSanitizer and UBSan.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from sim.build import program_of
from sim.driver import SimulationError, fresh_seed, simulate

from ingestd.store.read import image
from support.crash_store import Serial

STEPS = 3000
SECONDS = 60.0


def main() -> int:
    """Return 0, or 1 when a seed has found something."""
    image.ThreadPoolExecutor = Serial  # type: ignore[misc, assignment]
    given = os.environ.get
    steps = int(given("STEPS") or STEPS)
    trace = Path(given("TRACE", "")) if given("TRACE") else None
    ends_s = time.monotonic() + float(given("SECONDS") or SECONDS)
    is_one = bool(given("SEED"))
    while True:
        seed = int(given("SEED", ""), 0) if is_one else fresh_seed()
        try:
            program = program_of(seed, is_sanitized=bool(given("SANITIZE")))
            result = simulate(program, seed, steps, trace=trace)
        except SimulationError as error:
            print(error)
            return 1
        print(
            f"seed {seed}: {result.lives} lives, {result.points} images looked at,"
            f" hash {'-'.join(result.hashes)}",
            flush=True,
        )
        if is_one or time.monotonic() >= ends_s:
            return 0


if __name__ == "__main__":
    sys.exit(main())
