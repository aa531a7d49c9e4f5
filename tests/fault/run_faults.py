# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of faults in rounds, in random order, and reports what was acknowledged and lost.

    make faults [N=rounds] [FAULTS_ARGS="--seed S --no-docs"]

Writes a table between the markers of docs/reliability.md. Exit code 1: a test failed, or bytes
were lost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from support.tally import FAULTS, FILE_VARIABLE, MARK, Line  # noqa: E402

DOCUMENT: Final = ROOT / "docs" / "reliability.md"
BEGIN: Final = "<!-- faults -->\n"
END: Final = "<!-- /faults -->"
PYTEST: Final = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def collect() -> list[str]:
    """The ids of all tests that try a fault."""
    command = [*PYTEST, "--collect-only", "-m", MARK, "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("tests/")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert found, done.stdout
    return found


def run_round(tests: list[str], seed: int, file: Path) -> bool:
    """Run all once, in an order and with random numbers of the seed; whether none failed."""
    shuffled = random.Random(seed).sample(tests, len(tests))
    environment = {**os.environ, FILE_VARIABLE: str(file), "INGESTD_TEST_SEED": str(seed)}
    done = subprocess.run(
        [*PYTEST, "--tb=short", *shuffled], cwd=ROOT, env=environment, check=False
    )
    return done.returncode == 0


def table(lines: Sequence[Line], rounds_count: int, seed: int) -> str:
    """The table and the line above it."""
    failed = sum(line.outcome == "failed" for line in lines)
    skipped = sum(line.outcome == "skipped" for line in lines)
    text = (
        f"Rounds: {rounds_count}, from seed {seed} on; tests: {len(lines)}, of which {failed}"
        f" failed and {skipped} could not run here;"
        f" {os.cpu_count()} CPUs, Linux {platform.release()}, {time.strftime('%Y-%m-%d')}:\n\n"
        "| fault | times tried | acknowledged bytes compared | of these lost | tests |\n"
        "|---|--:|--:|--:|---|\n"
    )
    for key, words in FAULTS.items():
        mine = [line for line in lines if line.fault == key]
        files = sorted({line.test.partition("::")[0].removeprefix("tests/") for line in mine})
        text += (
            f"| {words} | {sum(line.tries for line in mine)}"
            f" | {sum(line.acknowledged_bytes for line in mine)}"
            f" | {sum(line.lost_bytes for line in mine)}"
            f" | {', '.join(f'`{file}`' for file in files)} |\n"
        )
    return text


def insert(text: str) -> None:
    """Put the text between the markers of the document."""
    before, begin, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{DOCUMENT} lacks {BEGIN}"
    assert end, f"{DOCUMENT} lacks {END}"
    DOCUMENT.write_text(before + begin + text + end + after, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rounds, report, and write the document."""
    parser = argparse.ArgumentParser(description="Try every fault, several times.")
    parser.add_argument("--rounds", type=int, metavar="N", default=1)
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    parser.add_argument("--no-docs", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    tests = collect()
    print(f"{len(tests)} tests, {arguments.rounds} rounds, --seed {arguments.seed}", flush=True)
    passed = []
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "lines"
        for number in range(arguments.rounds):
            passed.append(run_round(tests, arguments.seed + number, file))
            texts = file.read_text(encoding="utf-8").splitlines()
            lines = [Line(**json.loads(text)) for text in texts]
            told = table(lines, len(passed), arguments.seed)
            print(told, flush=True)
            if not arguments.no_docs:  # after each round: who interrupts a long run keeps those
                insert(told)
    return 0 if all(passed) and not any(line.lost_bytes for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
