# SPDX-License-Identifier: Apache-2.0
"""Constants that Python and the C core share: one place in Python, compared with the headers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from ingestd import core_limits
from ingestd.protocol import blocks, lines
from support.native import CORE, build_executable
from tests.unit.test_tidy import PACKAGE, ROOT, _fail_if_any

LIMITS = {
    name: value
    for name, value in vars(core_limits).items()
    if name.isupper() and name != "MIB" and isinstance(value, int)
}
# What says that a constant is another file's: a copy of what core_limits has.
COPY = re.compile(r"^\w+: Final = [^#{\n]+# .*\bcore/[\w/]+\.h\b", re.MULTILINE)


def _headers() -> dict[str, str]:
    """The header that defines each name, relative to the core."""
    found = {}
    for header in sorted(CORE.rglob("*.h")):
        defined = re.findall(r"^#define (\w+) ", header.read_text(encoding="utf-8"), re.MULTILINE)
        found |= {name: str(header.relative_to(CORE)) for name in defined if name in LIMITS}
    return found


def test_limits_are_those_of_the_headers(tmp_path: Path) -> None:
    headers = _headers()
    assert headers.keys() == LIMITS.keys()
    includes = "".join(f'#include "{header}"\n' for header in sorted(set(headers.values())))
    prints = "".join(
        f'    printf("{name} %lld\\n", (long long)({name}));\n' for name in sorted(LIMITS)
    )
    source = tmp_path / "limits.c"
    main = f"int main(void) {{\n{prints}    return 0;\n}}\n"
    source.write_text(f"{includes}#include <stdio.h>\n{main}")
    program = build_executable("limits", [source])
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    printed = dict(line.split() for line in done.stdout.splitlines())
    assert {name: int(text) for name, text in printed.items()} == LIMITS


def test_the_protocol_has_the_same() -> None:
    """The sending side is for itself, so that it has its own."""
    assert blocks.BLOCK_BYTES == core_limits.SESSION_BLOCK_BYTES
    assert blocks.NAME_BYTES_MAX == core_limits.SESSION_NAME_BYTES_MAX
    assert blocks.LABELS_BYTES_MAX == core_limits.SESSION_LABELS_BYTES_MAX
    assert lines.CHALLENGE_BYTES == core_limits.SESSION_CHALLENGE_BYTES


def test_nobody_keeps_a_copy() -> None:
    assert COPY.search("A_MAX: Final = 16  # LISTENERS_MAX of core/connection/listener.h\n")
    _fail_if_any(
        [
            f"{path.relative_to(ROOT)}: '{match[0]}' belongs to ingestd/core_limits.py"
            for path in sorted(PACKAGE.rglob("*.py"))
            for match in COPY.finditer(path.read_text(encoding="utf-8"))
        ]
    )
