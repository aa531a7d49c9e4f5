# SPDX-License-Identifier: Apache-2.0
"""Names in C: nothing that we define is called what a C library calls something of its own.

A static `wait` compiles until some header that we include comes to include <sys/wait.h>. Which
header does so differs between versions of liburing and of the C library, so that the rule is
about names, not about what is declared today. So a static function carries its file's noun, by
which a profile, a backtrace and a search also say where it lives.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_tidy import FILES, KERNEL_MODULE, PACKAGE, ROOT, _c_functions

LIBRARIES = ("libc.so.6", "libm.so.6")
# What a program cannot ask the C library that it runs on for: macros, the linker's symbols, what
# <regexp.h> of old and the C libraries of others call theirs.
ALSO_TAKEN = {
    *("advance", "arc4random", "barrier", "bswap", "edata", "end", "errc", "etext", "getprogname"),
    *("howmany", "major", "makedev", "minor", "powerof2", "roundup", "step", "strlcat", "strlcpy"),
    "unreachable",
}
C_FILES = [p for p in FILES if p.suffix in {".c", ".h"} and KERNEL_MODULE not in p.parents]
CORE = PACKAGE / "core"
# Files whose functions carry another noun than the file's name without a plural's `s`.
NOUNS = {
    "connection/handover.h": ("handover", "connection"),
    "receive/connection_table.h": ("connection",),
    "receive/zcrx/pending.c": ("pending", "zcrx"),
    "receive/zcrx/pending.h": ("zcrx",),
    "base/reactor.h": ("reactor", "time"),  # it owns the clock
}
STATIC_VARIABLE = re.compile(r"^(?:static|extern|_Thread_local)\b[^(=;]*?(\w+)(?:\[[^=]*)?\s*[=;]")


def _taken(name: str, libraries: list[ctypes.CDLL]) -> bool:
    return name in ALSO_TAKEN or any(hasattr(library, name) for library in libraries)


def _names(path: Path) -> Iterator[tuple[str, int]]:
    """Functions and variables at file scope, with the line where they begin."""
    text = path.read_text(encoding="utf-8")
    for name, first, _ in _c_functions(text):
        yield name, first
    for number, line in enumerate(text.splitlines(), 1):
        if match := STATIC_VARIABLE.match(line):
            yield match[1], number


def _statics(path: Path) -> Iterator[tuple[str, int]]:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for name, first, _ in _c_functions(text):
        if lines[first - 1].startswith("static "):
            yield name, first


def _nouns(path: Path) -> tuple[str, ...]:
    return NOUNS.get(str(path.relative_to(CORE)), (path.stem.removesuffix("s"),))


@pytest.fixture(scope="module")
def libraries() -> list[ctypes.CDLL]:
    return [ctypes.CDLL(name) for name in LIBRARIES]


def test_names_are_found(libraries: list[ctypes.CDLL], tmp_path: Path) -> None:
    """The finder sees functions and variables, and a clash when it is one."""
    source = tmp_path / "a.c"
    source.write_text(
        "static int wait(int a) {\n    return a;\n}\nstatic const int environ[] = {\n    1,\n};\n"
        "static struct area *stdin;\nstatic int loop_wait(void) {\n    return 1;\n}\n"
    )
    names = dict(_names(source))
    assert names == {"wait": 1, "environ": 4, "stdin": 7, "loop_wait": 8}
    assert [n for n in names if _taken(n, libraries)] == ["wait", "environ", "stdin"]


def test_no_name_of_a_c_library_is_ours(libraries: list[ctypes.CDLL]) -> None:
    offences = [
        f"{path.relative_to(ROOT)}:{line}: {name} is a C library's; put the file's noun before it"
        for path in C_FILES
        for name, line in _names(path)
        if name != "main" and _taken(name, libraries)
    ]
    assert any(PACKAGE in path.parents for path in C_FILES)
    if offences:
        pytest.fail("\n".join(offences), pytrace=False)


def test_statics_carry_the_noun_of_their_file() -> None:
    found = [
        (path, line, name)
        for path in C_FILES
        if CORE in path.parents
        for name, line in _statics(path)
    ]
    assert len(found) > 200
    offences = [
        f"{path.relative_to(ROOT)}:{line}: {name} lacks {' or '.join(_nouns(path))}"
        for path, line, name in found
        if not any(f"_{noun}" in f"_{name}" for noun in _nouns(path))
    ]
    if offences:
        pytest.fail("\n".join(offences), pytrace=False)
