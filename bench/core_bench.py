# SPDX-License-Identifier: Apache-2.0
"""Counts the core's instructions per receive, by room, in a plain life of the simulator.

The whole worker runs against the played kernel of tests/sim, so that callgrind can count what
cannot be counted beside io_uring: valgrind does not go on in io_uring_enter. 64 raw flows of
1,000,003 bytes come at once, in pieces of any length, onto one device, and nothing fails
(choose_plain in tests/sim/sim_main.c). A seed repeats to the instruction.

    python bench/core_bench.py [--seed 7] [--functions 20] [--json FILE]

Invariants: counted is what runs inside worker_run, of functions whose source lies in the core
or in liburing's header; what the C library and ISA-L do for them is a row of its own; the
simulator's own functions are nobody's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # for `sim`, as a program

from sim.build import build

from support.native import CORE

RUN_TIMEOUT_S: Final = 900
SEED: Final = 7
# As the package is built: meson.build. The simulator's own flags come before.
FLAGS: Final = ("-O2", "-fomit-frame-pointer", "-fstrict-aliasing")
ENGINES: Final = ("recv", "zcrx")  # by the numbers of enum engine_kind
STORE_BYTES: Final = 85 << 20
PAYLOAD_BYTES: Final = 64 * 1_000_003
SEGMENTS_COUNT: Final = 80  # SEGMENTS_COUNT_MAX of tests/sim/sim.h
LIFE: Final = "1 00112233445566778899aabbccddeeff 4096"  # generation, UUID, block size
LIBRARIES: Final = "C library, ISA-L"


@dataclass(frozen=True, slots=True)
class Figure:
    """What one case cost: instructions by room and by function, over the whole life."""

    engine: str
    checksum: str
    turns_count: int
    receives_count: int
    received_bytes: int
    rooms: dict[str, int]
    functions: dict[str, int]

    def core_instructions(self) -> int:
        """Return the sum over the rooms, without the libraries."""
        return sum(count for room, count in self.rooms.items() if room != LIBRARIES)


def room_of(source: str) -> str | None:
    """Return the core's room that a source file lies in; None: it is not of the core."""
    if source.endswith("/liburing.h"):
        return "liburing's header"
    path = Path(source)
    if not path.is_relative_to(CORE):
        return None
    room = str(path.relative_to(CORE).parent)
    return "worker" if room == "." else room


def read_callgrind(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Return instructions by room and by function, out of an uncompressed output file."""
    rooms: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    room: str | None = None
    file = function = callee_object = ""
    is_call = False
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key == "fl":
            file = value
        elif key == "fn":
            room, function = room_of(file), f"{Path(file).name}:{value}"
        elif key == "cob":
            callee_object = value
        elif key == "calls":
            is_call = True
        elif line[:1].isdigit():
            count = int(line.split()[-1])
            if room is not None and not is_call:
                rooms[room] += count
                functions[function] += count
            elif room is not None and callee_object:
                rooms[LIBRARIES] += count
            if is_call:
                is_call, callee_object = False, ""
    return rooms, functions


def compiled() -> Path:
    """Return the simulator's program, with the core compiled as the package is."""
    return build(flags=FLAGS)


def play(
    program: Path, engine: str, checksum: str, seed: int, below: Sequence[str] = ()
) -> tuple[int, int, int]:
    """Play one life and return its turns, its receives, and the bytes of those.

    Raises subprocess.CalledProcessError with what the simulator said.
    """
    segments = " ".join(map(str, range(SEGMENTS_COUNT)))
    life = f"{LIFE} {int(checksum == 'crc32c')} 0\n{segments}\n.\ngo\n"  # 0: of sequences used
    with tempfile.TemporaryDirectory() as name:
        image = Path(name) / "image"
        with image.open("wb") as store:
            store.truncate(STORE_BYTES)
        done = subprocess.run(
            [*below, str(program), str(seed), "1", str(image)],
            input=life, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=True,
            env={"SIM_PLAIN": "1", "SIM_ENGINE": str(ENGINES.index(engine))},
        )  # fmt: skip
    (plain,) = (line for line in done.stdout.splitlines() if line.startswith("plain "))
    turns, receives, received_bytes = map(int, plain.split()[1:])
    return turns, receives, received_bytes


def count(program: Path, engine: str, checksum: str, seed: int) -> Figure:
    """Play one life below callgrind. Raises subprocess.CalledProcessError with what it said."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        callgrind = (
            "valgrind", "--tool=callgrind", "--toggle-collect=worker_run",
            "--compress-strings=no", "--compress-pos=no", f"--callgrind-out-file={out}",
        )  # fmt: skip
        life = play(program, engine, checksum, seed, callgrind)
        rooms, functions = read_callgrind(out)
    return Figure(engine, checksum, *life, dict(rooms), dict(functions))


def table(figures: list[Figure]) -> str:
    """Return a table of documentation: a row for each room, a column for each case."""
    rooms = sorted({room for figure in figures for room in figure.rooms if room != LIBRARIES})
    heads = ["per receive", *(f"{f.engine}, {f.checksum}" for f in figures)]
    lines = [heads, ["---", *("--:" for _ in figures)]]
    for room in [*rooms, LIBRARIES]:
        lines.append([room, *(f"{f.rooms.get(room, 0) / f.receives_count:,.1f}" for f in figures)])
    totals = [f.core_instructions() for f in figures]
    per_receive = [f"{n / f.receives_count:,.1f}" for n, f in zip(totals, figures, strict=True)]
    per_kib = [f"{n * 1024 / f.received_bytes:,.1f}" for n, f in zip(totals, figures, strict=True)]
    lines += [
        ["core in all", *per_receive],
        ["core in all, per KiB", *per_kib],
        ["bytes", *(f"{f.received_bytes / f.receives_count:,.0f}" for f in figures)],
        ["turns of the worker", *(f"{f.turns_count / f.receives_count:.2f}" for f in figures)],
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def dearest(figure: Figure, functions_count: int) -> str:
    """Return the functions that cost most in one case, a line each."""
    lines = [f"{figure.engine}, {figure.checksum}: instructions per receive of"]
    for name, total in Counter(figure.functions).most_common(functions_count):
        lines.append(f"{total / figure.receives_count:10.1f}  {name}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="What the core costs per receive.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--functions", type=int, default=0, help="also show so many of each case")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        parser.error("valgrind is not installed, and counts the instructions")
    program = compiled()
    figures = [
        count(program, engine, checksum, arguments.seed)
        for engine in ENGINES
        for checksum in ("none", "crc32c")
    ]
    print(table(figures))
    for figure in figures if arguments.functions else ():
        print(f"\n{dearest(figure, arguments.functions)}")
    if arguments.json is not None:
        text = json.dumps([asdict(figure) for figure in figures], indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
