# SPDX-License-Identifier: Apache-2.0
"""The Python mirror of core/format/format.h against what the system's compiler makes of it.

The names of structs, fields and constants are read from the header itself, so
that nothing added there can be forgotten here.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from crc32c import crc32c

from ingestd.store.format import footer_part, layout
from support.native import CORE, build_executable

HEADER = (CORE / "format" / "format.h").read_text(encoding="utf-8")
WITHOUT_COMMENTS = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)

MIRRORS = (*vars(layout).values(), *vars(footer_part).values())
LAYOUTS = {item.name: item for item in MIRRORS if isinstance(item, layout.Layout)}
NOT_MIRRORED = {"INGESTD_FORMAT_FORMAT_H"}


def _c_structs() -> dict[str, list[str]]:
    """Each struct's fields, a record's head spelt out."""
    found: dict[str, list[str]] = {}
    for name, body in re.findall(r"struct (\w+) \{(.*?)\n\};", WITHOUT_COMMENTS, re.DOTALL):
        fields: list[str] = []
        for kind, field in re.findall(r"(\w+) (\w+)(?:\[\d+\])?;", body):
            fields += [f"head.{n}" for n in found[kind]] if kind == "record_head" else [field]
        found[name] = fields
    return found


def _c_constants() -> list[str]:
    defines = re.findall(r"^#define (\w+)", WITHOUT_COMMENTS, re.MULTILINE)
    lined = r"^\s*((?:RECORD|FLOW_STATE|CLOSE_REASON)_\w+) ="
    enums = re.findall(lined, WITHOUT_COMMENTS, re.MULTILINE)
    enums += re.findall(r"[{,] ((?:FLOW_STATE)_\w+) =", WITHOUT_COMMENTS)
    return sorted({*defines, *enums} - NOT_MIRRORED)


def _program() -> str:
    lines = []
    for name, fields in _c_structs().items():
        lines.append(f'printf("sizeof {name} %zu\\n", sizeof(struct {name}));')
        lines += [
            f'printf("{name} {f} %zu %zu\\n", offsetof(struct {name}, {f}),'
            f" sizeof(((struct {name} *)0)->{f}));"
            for f in fields
        ]
    for name in _c_constants():
        if name.endswith("_MAGIC"):
            lines.append(f'printf("text {name} %s\\n", {name});')
        else:
            lines.append(f'printf("number {name} %lld\\n", (long long)({name}));')
    body = "\n    ".join(lines)
    return (
        '#include "format/format.h"\n#include <stddef.h>\n#include <stdio.h>\n'
        f"int main(void) {{\n    {body}\n    return 0;\n}}\n"
    )


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What the compiled program says, line by line, in words."""
    source: Path = tmp_path_factory.mktemp("layout") / "layout.c"
    source.write_text(_program(), encoding="utf-8")
    program = build_executable("layout", [source])
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_header_is_understood() -> None:
    """The reading of format.h sees what is known to be there; else the rest proves nothing."""
    structs = _c_structs()
    assert len(structs) == 11
    assert structs["record_span"][:4] == [
        "head.kind",
        "head.record_bytes",
        "head.flags",
        "head.flow",
    ]
    constants = _c_constants()
    assert {
        "FLOW_STATE_OPEN",
        "FLOW_STATE_INTERRUPTED",
        "CLOSE_REASON_CHECKSUM",
        "CLOSE_REASON_LENGTH",
        "RECORD_SPAN",
        "SPAN_HAS_CLOSE",
        "BATCH_MAGIC",
    } <= set(constants)


def test_structs_are_the_same(printed: list[list[str]]) -> None:
    sizes = {words[1]: int(words[2]) for words in printed if words[0] == "sizeof"}
    assert sizes == {name: item.size_bytes for name, item in LAYOUTS.items()}
    in_c: dict[str, dict[str, int]] = {}
    for words in printed:
        if words[0] in LAYOUTS:
            in_c.setdefault(words[0], {})[words[1]] = int(words[2])
    assert in_c == {name: item.offsets() for name, item in LAYOUTS.items()}


def test_fields_leave_no_hole(printed: list[list[str]]) -> None:
    ends: dict[str, int] = {}
    for words in printed:
        if words[0] in LAYOUTS:
            offset, size = int(words[2]), int(words[3])
            assert offset == ends.get(words[0], 0), words
            ends[words[0]] = offset + size
    assert ends == {name: item.size_bytes for name, item in LAYOUTS.items()}


def test_constants_are_the_same(printed: list[list[str]]) -> None:
    in_c: dict[str, object] = {}
    for words in printed:
        if words[0] == "text":
            in_c[words[1]] = words[2].encode()
        elif words[0] == "number":
            in_c[words[1]] = int(words[2])
    assert in_c == {name: getattr(layout, name) for name in in_c}
    assert len(in_c) == len(_c_constants())


def test_crc_counts_its_own_field_as_zero() -> None:
    data = layout.sealed(bytes(range(64)))
    assert layout.is_intact(data)
    assert layout.is_intact(bytearray(data))
    for byte in (0, 7, 8, 11, 12, 63):
        broken = bytearray(data)
        broken[byte] ^= 1
        assert not layout.is_intact(broken), byte
    zeroed = data[:8] + bytes(4) + data[12:]
    assert crc32c(zeroed) == int.from_bytes(data[8:12], "little")


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_pack_and_unpack_are_inverse(name: str) -> None:
    item = LAYOUTS[name]
    data = bytes(index % 251 + 1 for index in range(item.size_bytes))
    row = item.unpack(b"xyz" + data, 3)
    packed = item.pack(row)
    assert len(packed) == item.size_bytes
    assert item.unpack(packed) == row


def test_sequence_has_generation_and_counter() -> None:
    assert layout.sequence_of(3, 7) == 3 << 32 | 7
    assert layout.generation_of(layout.sequence_of(3, layout.SEQUENCE_COUNTER_MAX)) == 3
    with pytest.raises(AssertionError):
        layout.sequence_of(1, 0)
    with pytest.raises(AssertionError):
        layout.sequence_of(1, 2**32)
