# SPDX-License-Identifier: Apache-2.0
"""The faults that are tried, how often each was, and how many acknowledged bytes were lost by it.

A plugin of pytest. A test with the mark `fault("key")` tries the fault of that key; it says what
was acknowledged by acknowledged(), within which it compares that with what can be read. With
INGESTD_FAULTS naming a file, each such test adds a line of JSON to it.

Invariant: bytes are lost unless the comparison came to its end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Final

import pytest

FILE_VARIABLE: Final = "INGESTD_FAULTS"
MARK: Final = "fault"

# By key, in the order of the table in docs/reliability.md.
FAULTS: Final = {
    "two_names": "a second daemon, `format --force` or `rm` by another name of a served store",
    "odd_names": "`rm` with a name that is empty, blank, too short, or of no flow",
    "output": "the output of a command goes to the store that it reads",
    "clock": "the clock is decades behind or ahead, and then set right, with retention",
    "gone": "the store is deleted, replaced, cut off or taken by another, under the daemon",
    "retention_race": "a flow is resumed and sealed while retention or `rm` reads the store",
    "id_race": "the id of a raw flow is claimed at its receipt, while the log works or is stuck",
    "many_doubts": "damage lies behind more than 1000 findings of what a crash leaves",
    "headers": "the header of a segment of a sealed flow is overwritten",
    "maintenance": "one read or write of retention or overwriting fails, or its thread has a bug",
    "fragments": "fragments of zero-copy receive find no entry in the table (played kernel)",
    "log": "nobody reads the log, a pipe or the journal",
    "scrapers": "scrapers drip, or say nothing",
    "descriptors": "descriptors run out, and scrapers wait",
    "device": "a device hangs",
    "device_of_two": "the device of one of two stores hangs",
    "look_ups": "94 hellos with ids of raw flows at once, and a stop meanwhile",
    "silence": "the daemon stands still, or its device does, for longer than the idle time",
    "profile": "part-full slots on devices with a virtual boundary, as NVMe before Linux 6.19",
}


@dataclass
class Tally:
    """What one test tried, and what came of it."""

    tries: int = 0
    acknowledged_bytes: int = 0
    lost_bytes: int = 0


@dataclass
class Line(Tally):
    """A line of the file."""

    fault: str = ""
    test: str = ""
    outcome: str = ""


_KEY: Final = pytest.StashKey[Tally]()
_now = Tally()  # of the test that runs; tests run one at a time


def tried(count: int) -> None:
    """The test tries its fault so often; one that says nothing tries it once."""
    _now.tries += count


@contextmanager
def acknowledged(bytes_count: int) -> Iterator[None]:
    """So many bytes were acknowledged; what is done within compares them with what can be read."""
    _now.acknowledged_bytes += bytes_count
    _now.lost_bytes += bytes_count
    yield
    _now.lost_bytes -= bytes_count


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin to count for one more test, whose fault must be listed."""
    global _now
    _now = item.stash[_KEY] = Tally()
    mark = item.get_closest_marker(MARK)
    assert mark is None or mark.args[0] in FAULTS, mark


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write the line of a test once it has run, or if it could not."""
    report = yield
    mark, path = item.get_closest_marker(MARK), os.environ.get(FILE_VARIABLE)
    if mark is not None and path and (call.when == "call" or not report.passed):
        line = Line(fault=mark.args[0], test=item.nodeid, outcome=report.outcome)
        if call.when == "call" and not report.skipped:
            line = replace(line, **asdict(item.stash[_KEY]))
            line.tries = line.tries or 1
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
    return report
