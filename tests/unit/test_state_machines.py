# SPDX-License-Identifier: Apache-2.0
"""The pictures of docs/state-machines.md are the core's tables, and one place obeys each table."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from itertools import product

import pytest

from support.native import CORE, PURE_SOURCES, ROOT, build_library

DOCUMENT = ROOT / "docs" / "state-machines.md"
ENGINES = ("POLLING", "RECEIVING", "STARVED", "BLOCKED")
GROUPS = {"PAYLOAD": ENGINES}  # of the first picture
Arrows = set[tuple[str, str]]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build_library("state_machines", PURE_SOURCES)))
    for function in (library.connection_phase_name, library.session_step_name):
        function.restype = ctypes.c_char_p
    for function in (library.connection_phase_may_follow, library.session_may_step):
        function.restype = ctypes.c_bool
    return library


def _constants(header: str, enum: str) -> int:
    """How many constants an enum has; its last one counts them."""
    text = (CORE / header).read_text(encoding="utf-8")
    body = re.search(rf"enum {enum} \{{(.*?)\}};", text, re.DOTALL)
    assert body is not None, enum
    names = re.findall(
        r"^    (\w+)", re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL), re.MULTILINE
    )
    assert names[-1].endswith("S_COUNT"), names
    return len(names) - 1


def _pictures() -> list[Arrows]:
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    return [set(re.findall(r"^    (\w+) --> (\w+)", block, re.MULTILINE)) for block in blocks]


def _expanded(arrows: Arrows) -> Iterator[tuple[str, str]]:
    for one, other in arrows:
        yield from product(GROUPS.get(one, (one,)), GROUPS.get(other, (other,)))


def test_a_connections_phases_are_as_drawn(library: ctypes.CDLL) -> None:
    numbers = range(_constants("receive/connection_table.h", "connection_phase"))
    names = [library.connection_phase_name(number).decode() for number in numbers]
    table = {
        (names[one], names[other])
        for one, other in product(numbers, numbers)
        if library.connection_phase_may_follow(one, other)
    }
    assert set(_expanded(_pictures()[0])) == table


def test_a_sessions_steps_are_as_drawn(library: ctypes.CDLL) -> None:
    numbers = range(_constants("connection/ingest/session.h", "session_step"))
    names = [library.session_step_name(number).decode() for number in numbers]
    table = {
        (names[one], names[other])
        for one, other in product(numbers, numbers)
        if library.session_may_step(one, other)
    }
    assert _pictures()[1] == table


@pytest.mark.parametrize(
    ("what", "assignment"),
    [
        ("a phase", r"(?:->|\.)phase = "),
        ("a session's step", r"\bs->step = "),
        ("a seal", r"->state = [^;]*\bFLOW_STATE_SEALED\b"),
    ],
)
def test_one_place_changes(what: str, assignment: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted(CORE.rglob("*.[ch]"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(assignment, line)
    ]
    assert len(found) == 1, f"{what} is written in {found}"
