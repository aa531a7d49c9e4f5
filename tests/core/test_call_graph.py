# SPDX-License-Identifier: Apache-2.0
"""Who calls whom in the core, by the symbols of its object files: downwards only, in no circle.

Calls through a table (an engine's, a protocol's) leave no symbol: that is what tables are for.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

from support.native import COMPILE_TIMEOUT_S, CORE, FLAGS, INCLUDES, compiler

# Upper rooms come later; what lies in none is above all.
HEIGHTS: Final = {"base": 0, "format": 1, "memory": 1, "storage": 2, "receive": 3, "connection": 4}


def _height(name: str) -> int:
    return HEIGHTS[name.split("/")[0]] if "/" in name else len(HEIGHTS)


def _symbols(name: str, directory: Path) -> list[list[str]]:
    """Compile one file without inlining, and return what nm says of it, in words."""
    target = directory / (name.replace("/", "%") + ".o")
    # Inlined or not, a call is a call.
    flags = [flag for flag in FLAGS if not flag.startswith("-O")]
    subprocess.run(
        [compiler(), *flags, "-O0", *INCLUDES, "-c", str(CORE / name), "-o", str(target)],
        check=True,
        timeout=COMPILE_TIMEOUT_S,
    )
    done = subprocess.run(["nm", str(target)], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Of each file: the symbol of another one that it uses -> that file."""
    directory = tmp_path_factory.mktemp("objects")
    names = sorted(str(path.relative_to(CORE)) for path in CORE.rglob("*.c"))
    names = [name for name in names if not name.startswith("_core")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        symbols = dict(zip(names, pool.map(lambda n: _symbols(n, directory), names), strict=True))
    owner = {
        words[2]: name
        for name, lines in symbols.items()
        for words in lines
        if len(words) == 3 and words[1] in "TDRB"
    }
    return {
        name: {
            words[1]: owner[words[1]]
            for words in lines
            if len(words) == 2 and words[0] == "U" and words[1] in owner
        }
        for name, lines in symbols.items()
    }


def _upward(calls: dict[str, dict[str, str]]) -> Iterator[str]:
    for name, used in calls.items():
        for symbol, owner in used.items():
            if _height(owner) > _height(name):
                yield f"{name} calls {symbol} of {owner}, which lies above it"


def test_calls_are_seen(calls: dict[str, dict[str, str]]) -> None:
    """The graph has what is known to be there; else the rest proves nothing."""
    assert calls["receive/recv.c"]["storage_append"] == "storage/storage.c"
    assert calls["loop.c"]["storage_next_news"] == "storage/storage.c"
    assert calls["storage/storage.c"]["batch_add"] == "storage/batch.c"
    wrong = {**calls, "storage/batch.c": {"worker_run": "loop.c"}}
    assert list(_upward(wrong))


def test_nobody_calls_upwards(calls: dict[str, dict[str, str]]) -> None:
    if offences := list(_upward(calls)):
        pytest.fail("\n".join(offences), pytrace=False)


def test_no_circle_of_files(calls: dict[str, dict[str, str]]) -> None:
    graph = {name: set(used.values()) - {name} for name, used in calls.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"files that call in a circle: {' -> '.join(error.args[1])}", pytrace=False)
