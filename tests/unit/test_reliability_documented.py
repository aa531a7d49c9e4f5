# SPDX-License-Identifier: Apache-2.0
"""docs/reliability.md: how often a fault is tried is what its test says, and the test is there."""

from __future__ import annotations

import re
from pathlib import Path

from support.tally import FAULTS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
SIMULATOR = "tests/sim/test_sim.py"
DRIVER = "tests/sim/driver.py"
KILL = "tests/fault/test_kill.py"
REMOVAL = "tests/property/test_removal.py"
DAMAGE = "tests/property/test_damage.py"
CHECKSUMS = 2


def _constant(path: str, name: str) -> int:
    found = re.search(
        rf"^{name}(?:: Final)? = (\d+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found is not None, f"{path} has no {name}"
    return int(found[1])


def _row(fault: str) -> list[str]:
    """The cells of the one row that begins with these words."""
    (row,) = re.findall(rf"^\| ({re.escape(fault)}.*) \|$", TEXT, re.MULTILINE)
    return [str(cell).strip() for cell in row.split("|")]


def _times(fault: str) -> int:
    found = re.search(r"\d+", _row(fault)[1])
    assert found is not None
    return int(found[0])


def test_how_often_is_what_the_tests_do() -> None:
    points = _constant(SIMULATOR, "POINTS")
    assert _times("power fails at any moment") == points
    assert _times("... and again") == points // _constant(DRIVER, "RECOVERY_CRASHED_OF")
    assert _times("the daemon dies") == points // _constant(DRIVER, "KILLED_FIRST_OF")
    assert _times("`kill -9`") == CHECKSUMS * _constant(KILL, "KILLS")
    removals = _constant(REMOVAL, "ROUNDS") * _constant(REMOVAL, "POINTS_OF_ROUND")
    assert _times("power fails while flows are removed") == 2 * CHECKSUMS * removals
    damages = _constant(DAMAGE, "STORES") * _constant(DAMAGE, "DAMAGES_OF_STORE")
    assert _times("bits flip") == damages
    assert _times("batches of a previous use") == 2 * CHECKSUMS * _constant(DAMAGE, "SUCCESSIONS")


def test_commands_name_tests_that_are_there() -> None:
    named = re.findall(r"`pytest (tests/\S+)`", TEXT)
    assert {SIMULATOR, KILL, DAMAGE, REMOVAL} == set(named)
    assert all((ROOT / path).is_file() for path in named)


def test_faults_around_the_core_were_tried() -> None:
    """The command has put a row for each between the markers; none failed, and none lost a byte."""
    part = TEXT.partition("<!-- faults -->")[2].partition("<!-- /faults -->")[0]
    assert re.search(
        r"^Rounds: \d+, from seed \d+ on; tests: \d+, of which 0 failed ", part.strip()
    )
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == list(FAULTS.values())
    for words, tries, _, lost, tests in rows[1:]:
        assert int(tries) > 0, words
        assert int(lost) == 0, words
        assert all((ROOT / "tests" / path).is_file() for path in re.findall(r"`(\S+)`", tests))


def test_the_soak_takes_as_long_as_is_said() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    minutes = re.search(r"for (\d+) minutes", _row("everything at random")[0])
    assert minutes is not None
    assert f"SOAK_S:-{60 * int(minutes[1])}}} " in makefile
    assert "SOAK_S=120 $(MAKE)" in makefile, "two minutes in make test"
    assert "two minutes of it are part of" in TEXT


def test_recovery_time_was_measured() -> None:
    """The command has put its lines between the markers."""
    part = TEXT.partition("<!-- bench:recovery -->")[2].partition("<!-- /bench:recovery -->")[0]
    assert re.search(
        r"^\| open to serve, a footer in every segment \| [\d.]+ \|", part, re.MULTILINE
    )
