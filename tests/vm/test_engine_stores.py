# SPDX-License-Identifier: Apache-2.0
"""The judge of the stores that come out of the machine, without a machine: it must see a fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.store_builder import Close, Extent, Open, StoreBuilder

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from engine_stores import Sent, check_stores, content, make_ring, sha256  # noqa: E402

RING = make_ring()
FLOW = bytes(range(16))
ID = "00010203-0405-0607-0809-0a0b0c0d0e0f"
OTHER_ID = "ffffffff-0405-0607-0809-0a0b0c0d0e0f"
SEED, SIZE, PORT = 4711, 9001, 4000  # the port of the builder's peer
RIGHT = f"disk {ID} {SEED} {SIZE} sealed {PORT}"


def store_with_a_flow(path: Path, *, is_sealed: bool = True) -> Path:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(FLOW), Extent(FLOW, b"".join(content(RING, SEED, SIZE))))
    if is_sealed:
        segment.batch(Close(FLOW))
    segment.close()
    return builder.save(path)


def judge(tmp_path: Path, *lines: str, is_sealed: bool = True) -> tuple[int, int]:
    manifest = tmp_path / "manifest"
    manifest.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
    store = store_with_a_flow(tmp_path / "store.img", is_sealed=is_sealed)
    return check_stores({"disk": store}, manifest)


def test_a_store_that_holds_what_was_sent(tmp_path: Path) -> None:
    assert judge(tmp_path, RIGHT, "other - 1 1 sealed 1") == (1, 0)


@pytest.mark.parametrize(
    "line",
    [
        f"disk {ID} {SEED + 1} {SIZE} sealed {PORT}",
        f"disk {ID} {SEED} {SIZE + 1} sealed {PORT}",
        f"disk {ID} {SEED} {SIZE - 1} sealed {PORT}",
        f"disk {OTHER_ID} {SEED} {SIZE} sealed {PORT}",
        f"disk - {SEED} {SIZE} reset {PORT}",
        f"disk - {SEED} {SIZE - 1} lost {PORT}",
        f"disk - {SEED} {SIZE} lost {PORT + 1}",
        f"other {ID} {SEED} {SIZE} sealed {PORT}",
    ],
    ids=[
        "other bytes",
        "too short",
        "too long",
        "another flow",
        "reset, yet sealed",
        "more than was sent",
        "another sender",
        "another store",
    ],
)
def test_a_store_that_holds_something_else(tmp_path: Path, line: str) -> None:
    assert judge(tmp_path, line) == (0, 1)


def test_a_flow_that_is_missing(tmp_path: Path) -> None:
    assert judge(tmp_path, RIGHT, f"disk {OTHER_ID} 1 1 sealed 1") == (0, 1)


@pytest.mark.parametrize("state", ["reset", "lost"])
def test_an_interrupted_flow_may_be_shorter_than_what_was_sent(tmp_path: Path, state: str) -> None:
    line = f"disk - {SEED} {SIZE + 5000} {state} {PORT}"
    assert judge(tmp_path, line, is_sealed=False) == (1, 0)


def test_a_line_that_is_none() -> None:
    with pytest.raises(ValueError, match="unpack"):
        Sent.parse("disk - 1 2 sealed")


def test_the_sender_makes_the_same_content(tmp_path: Path) -> None:
    """guest/content.c and content() agree, also behind the ring's end; so does its CRC32C."""
    main = tmp_path / "main.c"
    main.write_text(
        '#include "content.h"\n#include <stdio.h>\n'
        "int main(void) {\n"
        "    for (uint64_t at = 0; at < 3000000; at += 100000)\n"
        "        fwrite(content_at(4092ull * 4096, at), 1, 100000, stdout);\n"
        '    fprintf(stderr, "%08x", content_crc32c(0, "123456789", 9));\n'
        "    return 0;\n}\n",
        encoding="ascii",
    )
    program, guest = tmp_path / "main", HERE / "guest"
    subprocess.run(
        ["cc", "-I", guest, "-o", program, main, guest / "content.c"], check=True, timeout=60
    )
    result = subprocess.run([program], check=True, capture_output=True, timeout=60)
    assert result.stderr == b"e3069283"  # RFC 3720's check value
    assert sha256(iter([result.stdout])) == sha256(content(RING, 4092 * 4096, 3_000_000))
