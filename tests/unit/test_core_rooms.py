# SPDX-License-Identifier: Apache-2.0
"""The core's rooms, as tests: who may include whom, and by which header.

Each test lists every offence at once. tests/core/test_call_graph.py looks at the calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.unit.test_tidy import PACKAGE

CORE: Final = PACKAGE / "core"
TOP: Final = "worker"  # what lies in no room: the worker, its loop, what is read of it
# What each room may include of, beside itself.
ARROWS: Final = {
    "base": set(),
    "format": {"base"},
    "memory": {"base"},
    "storage": {"base", "format", "memory"},
    "receive": {"base", "format", "memory", "storage"},
    "connection": {"base", "format", "receive", "storage"},
    TOP: {"base", "format", "memory", "storage", "receive", "connection"},
}
# The one header of a room for others; a room without one is a shelf of small ones.
PUBLIC: Final = {
    "storage": "storage/storage.h",
    "receive": "receive/engine.h",
    "connection": "connection/connections.h",
}
# Header, and which file may include it beside those of its room: why.
EXCEPTIONS: Final = {
    # Any thread may ask what the running kernel's zcrx has, before there is a worker.
    ("receive/zcrx/register.h", "inspect.c"),
}
# What each engine has of a connection, and of the receiver, is a struct of its own in there; whose
# files alone look into it.
ENGINES: Final = {"recv": "receive/recv.", "zcrx": "receive/zcrx/"}


def _room(name: str) -> str:
    return name.split("/")[0] if "/" in name else TOP


def _includes() -> Iterator[tuple[str, int, str]]:
    """Yield (file, line, header) of each include of the core's own headers."""
    for path in sorted([*CORE.rglob("*.c"), *CORE.rglob("*.h")]):
        if path.name.startswith("_core"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := re.match(r'#include "([^"]+)"', line):
                yield str(path.relative_to(CORE)), number, match[1]


def _offence(name: str, header: str) -> str | None:
    room, other = _room(name), _room(header)
    if not (CORE / header).exists():
        return f"{header} is not written from the core's own directory"
    if room == other:
        return None
    if other not in ARROWS[room]:
        return f"{room} must not include {header}: it lies below, or beside"
    public = PUBLIC.get(other)
    if public not in (None, header) and (header, name) not in EXCEPTIONS:
        return f"{header} is no header for others: include {public}"
    return None


def test_rooms_are_known() -> None:
    rooms = {p.name for p in CORE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert rooms | {TOP} == set(ARROWS)
    assert all((CORE / header).exists() for header in PUBLIC.values())


def test_offences_are_seen() -> None:
    """The rule sees what it is meant to see; else the next test proves nothing."""
    assert _offence("storage/batch.c", "receive/connection_table.h")
    assert _offence("receive/recv.c", "worker.h")
    assert _offence("connection/raw.c", "storage/batch.h")
    assert _offence("connection/raw.c", "worker.h")
    assert _offence("loop.c", "connection/listener.h")
    assert _offence("base/stats.c", "fault.h")
    assert _offence("receive/recv.c", "storage/storage.h") is None


def test_includes_look_down_only() -> None:
    offences = [
        f"core/{name}:{line}: {offence}"
        for name, line, header in _includes()
        if (offence := _offence(name, header))
    ]
    if offences:
        pytest.fail("\n".join(offences), pytrace=False)


def _foreign_fields(name: str, text: str) -> list[str]:
    """Return the fields in the text of a file of the core that belong to an engine elsewhere."""
    return [
        field
        for engine, files in ENGINES.items()
        if not name.startswith(files)
        for field in re.findall(rf"(?:->|\.){engine}(?:->|\.)\w+", text)
    ]


def test_engines_own_their_fields() -> None:
    offences = [
        f"core/{path.relative_to(CORE)}: {field[1:].lstrip('>')} is the engine's"
        for path in sorted([*CORE.rglob("*.c"), *CORE.rglob("*.h")])
        for field in _foreign_fields(str(path.relative_to(CORE)), _without_comments(path))
    ]
    if offences:
        pytest.fail("\n".join(offences), pytrace=False)


def test_foreign_fields_are_seen() -> None:
    """Both engines have fields, and the rule sees them wherever they are not at home."""
    assert _foreign_fields("connection/connection.c", "x = conn->recv.slot_filled;")
    assert _foreign_fields("receive/recv.c", "if (r->zcrx.probes > 0)")
    assert _foreign_fields("receive/recv.c", "conn->recv.bulk = true;") == []
    for engine, file in (("recv", "receive/recv.c"), ("zcrx", "receive/zcrx/zcrx.c")):
        assert f"conn->{engine}." in _without_comments(CORE / file)


def test_exceptions_are_used() -> None:
    used = {(header, name) for name, _, header in _includes()}
    assert used >= EXCEPTIONS


def test_no_room_knows_the_worker() -> None:
    """Comments apart, worker, loop and inspect alone name `struct worker`."""
    for path in sorted([*CORE.rglob("*.c"), *CORE.rglob("*.h")]):
        name = str(path.relative_to(CORE))
        if _room(name) != TOP:
            assert "struct worker " not in _without_comments(path), name


def _without_comments(path: Path) -> str:
    return re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
