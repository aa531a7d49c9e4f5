# SPDX-License-Identifier: Apache-2.0
"""make sim-mutants: faults put into a copy of the core, each of which the simulator must find.

A mutant is a few substitutions, each of which applies exactly once in the whole core, in whatever
file that is: so it survives moves, and does not silently become none. The table goes to README.md.
Environment: MUTANT, a part of a name, for some only; SECONDS, how long each may take (60);
REPEAT, how often each is hunted (1): then all seconds are printed, and no table is written.
Seconds are those of one CPU: what else the machine does is left out.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sim.build import HERE, build, core_sources
from sim.driver import SimulationError, fresh_seed, simulate

from ingestd.store.read import image
from support.crash_store import Serial
from support.native import CORE

SECONDS: Final = 60.0
STEPS: Final = 2000
IMAGES_OF: Final = (4, 16, 16, 16)  # so few of the moments of one seed of four, and of the others
BEGIN: Final = "<!-- written by make sim-mutants -->\n"
END: Final = "<!-- until here -->\n"


@dataclass(frozen=True)
class Mutant:
    """A fault: what it is, and (pattern, replacement) for each place, as of re.sub."""

    name: str
    changes: tuple[tuple[str, str], ...]


MUTANTS: Final = (
    Mutant(
        "recv's bounce memory too small where the device has a virtual boundary",
        ((r"return s->virt_mask >= align \? s->virt_mask \+ 1 : align;", "return align;"),
         (r"if \(taken == 0\)(\s+return false;\s+recv_slot_taken_in_part)",
          r"assert(taken == 0); if (taken == 0)\1")),
    ),
    Mutant(
        "the seal of a flow that lost bytes",
        ((r"(bool is_whole) = [^;]+;", r"\1 = true;"),),
    ),
    Mutant(
        "an acknowledgement before the flush",
        ((r"(a->item) >= (\S*commit)\.committed_upto\)", r"\1 >= \2.written_upto)"),),
    ),
    Mutant(
        "a mark not waited for",
        ((r"&& (\S*marks_in_flight) == 0;", r"&& \1 < UINT32_MAX;"),),
    ),
    Mutant(
        "a hold released before its write is complete",
        ((r"(bool storage_next_news\(.*\) \{\n)",
          r"\1    for (uint32_t i = 0; i < s->batches.count; i++) {"
          r" struct batch *early = &s->batches.batches[i];"
          r" if (early->placed && early->hold_count > 0) {"
          r" *out = (struct storage_news){.kind = NEWS_RELEASED, .holds = early->holds,"
          r" .hold_count = early->hold_count}; early->hold_count = 0; return true; } }\n"),),
    ),
    Mutant(
        "a hold released twice",
        ((r"(\S*release\([^,]*, n\.holds\[i\]\);)", r"{ \1 if (i % 8 == 0) \1 }"),),
    ),
    Mutant(
        "a refill entry lost where the ring is full",
        ((r"(\n    else\n        )refill_push_later\(r, chunk\);",
          r"\1(void)refill_push_later;"),),
    ),
    Mutant(
        "a bound mistaken for the end of the stream",
        ((r"(result == 0) && \w+->[\w.]+ < \w+->[\w.]*bound_bytes\)", r"\1)"),),
    ),
    Mutant(
        "a full store's CLOSE lost",
        ((r"\n +\w*close_dropped\([^;]*\);", ""),),
    ),
    Mutant(
        "a retry that drops its tail",
        ((r"(\w+)->bytes -= written;",
          r"\1->bytes -= written; if (\1->iov_count > 2) \1->bytes -="
          r" \1->iov[--\1->iov_count].iov_len;"),),
    ),
    Mutant(
        "an allow list that is not looked at",
        ((r"(bool in) = networks_hold\([^;]*\);", r"\1 = true;"),),
    ),
    Mutant(
        "a peer's connections are not counted down",
        ((r"(\s)peers_remove\(&\w+->peers, [^;]*\);", r"\1(void)peers_remove;"),),
    ),
    Mutant(
        "a store's file that is gone goes unseen",
        ((r"(int code) = device_lost\(s\);", r"\1 = 0;"),),
    ),
    Mutant(
        "a footer for what was not flushed",
        ((r"bool committed = l->segment\.committed_batches == l->segment\.batch_count &&\s+"
          r"(\S*commit)\.committed_upto > l->header_item;",
          r"bool committed = \1.written_upto == \1.next_item && l->state == LIVE_CLOSING;"
          r" if (committed) l->segment.committed_batches = l->segment.batch_count;"),),
    ),
    Mutant(
        "a part of a footer that names none before it",
        ((r"(\w+->previous_offset) = [^;]+;", r"\1 = 0;"),),
    ),
    Mutant(
        "a footer that does not name its last part",
        ((r"(\w+->last_part_offset) = s->end_bytes \+ s->block_bytes;",
          r"if (s->part_count == 1) \1 = s->end_bytes + s->block_bytes;"),),
    ),
    Mutant(
        "a footer's memory used again while a part is written from it",
        ((r"(device_submit_single\(s, full->part_write[^;]*;)", r"\1 full->is_used = false;"),
         (r"assert\(m->is_used\);\s", ""),),
    ),
    Mutant(
        "a flow's span continued behind a part",
        ((r" \|\| ref->part != s->part_count\)", ")"),
         (r"assert\(n->end_offset == t->first_offset && [^;]*;", ""),),
    ),
    Mutant(
        "a fragment that finds no place is not given back",
        ((r"refill_return\(&r->zcrx\.refill, offset \+ taken\);", ""),),
    ),
    Mutant(
        "a connection that lost a fragment goes on",
        ((r"\w+->error = ENOBUFS;\s+\w+->drop = true;", ""),),
    ),
    Mutant(
        "the table of fragments is never low",
        ((r"(return )(r->zcrx\.fragment_count - r->zcrx\.fragments_pending) < coming;",
          r"\1\2 > UINT32_MAX - coming;"),),
    ),
    Mutant(
        "the table of fragments has room for one turn only",
        ((r"(coming = )2ull \* (r->reactor->ring)", r"\1 1ull * \2"),),
    ),
    Mutant(
        "the refill ring is not read for what comes by copy",
        ((r"(\n +)zcrx_flush_refill\(r\);", r"\1(void)zcrx_flush_refill;"),),
    ),
    Mutant(
        "starved connections try again in every turn",
        ((r"(define STARVED_RETRY_NS) \w+", r"\1 0ull"),),
    ),
    Mutant(
        "a block's fragments are kept",
        ((r"(refill_delivered\(&r->zcrx\.refill, offset\);\s+)refill_return\([^;]*;", r"\1"),),
    ),
    Mutant(
        "many fragments are held back for a trailer",
        ((r"(define HELD_FRAGMENTS_MAX) \w+", r"\1 800u"),),
    ),
    Mutant(
        "what is held back for a trailer is never old",
        ((r"if \(due_ns > r->reactor->now_ns &&", "if ("),),
    ),
    Mutant(
        "a connection's window stays bound",
        ((r"(zcrx_receive_buffer_bytes\(r\)\);)\s+socket_unbind_window\([^;]*;", r"\1"),),
    ),
    Mutant(
        "receives begin while the table of fragments is low",
        ((r"(static void zcrx_start\(.*\) \{\s+if \()!zcrx_table_is_low\(r\)\)", r"\1true)"),),
    ),
    Mutant(
        "a cancel that found nothing is not asked for again",
        ((r"(static void zcrx_pause_again\(.*\) \{)", r"\1 if (conn != NULL) return;"),),
    ),
    Mutant(
        "what came beyond a bound is lost",
        ((r"receive_block_take_overrun\(conn->block, r->area[^;]*;", ""),),
    ),
    Mutant(
        "what came beyond a bound is taken for payload",
        ((r"uint32_t payload = \(uint32_t\)time_min\(bytes, [^;]*;\s+(refill_delivered)",
          r"uint32_t payload = bytes; \1"),
         (r"assert\(conn->received_bytes <= conn->limit_bytes\);", "")),
    ),
    Mutant(
        "a stopped hello waits for a chunk",
        ((r"if \(block && !conn->zcrx\.armed\)\s+zcrx_stop_starved_block\(r, conn\);",
          "(void)zcrx_stop_starved_block; if (block) return;"),),
    ),
    Mutant(
        "a stopped hello finds no chunk, and waits for one",
        ((r"&& result == -ENOMEM && !conn->stop\)", "&& result == -ENOMEM)"),),
    ),
    Mutant(
        "a fragment that is split before a trailer has one holder",
        ((r"if \(taken == bytes && bytes < n->bytes\)[^;]*;", ""),),
    ),
    Mutant(
        "a block that finds no chunk is tried again at once",
        ((r"if \(chunk_bytes == 0 && result == -ENOMEM[^;]*;", ""),),
    ),
    Mutant(
        "a relief slot is not given back",
        ((r"if \(zcrx_is_copied\(hold\)\) \{\s+buddy_release\([^;]*;",
          r"if (zcrx_is_copied(hold)) { (void)buddy_release;"),),
    ),
)  # fmt: skip


def apply(mutant: Mutant, core: Path) -> None:
    """Change the core that lies in `core`. Raises LookupError where it does not apply once."""
    for pattern, replacement in mutant.changes:
        found = 0
        for path in core_sources(core):
            text, count = re.subn(pattern, replacement, path.read_text())
            found += count
            if count:
                path.write_text(text)
        if found != 1:
            raise LookupError(f"{mutant.name}: {pattern} is there {found} times")


def copy_core(directory: Path) -> Path:
    """Return a copy of the core's C files."""
    core = directory / "core"
    shutil.copytree(CORE, core, ignore=shutil.ignore_patterns("*.pyx", "*.pyi", "*.so"))
    return core


def cpu_s() -> float:
    """Return the CPU time of this process and of all children that have ended."""
    return sum(os.times()[:4])


@contextmanager
def mutated(mutant: Mutant) -> Iterator[Path]:
    """The program with the fault in its core, while the context lasts."""
    with tempfile.TemporaryDirectory() as name:
        core = copy_core(Path(name))
        apply(mutant, core)
        yield build(core, flags=("-O1", "-Wno-error"))


def hunt(program: Path, seconds: float) -> tuple[float, str]:
    """Return after how many seconds it was found, and by which words; inf if it was not."""
    begun_s = cpu_s()
    while cpu_s() < begun_s + seconds:
        seed = fresh_seed()
        images_of = IMAGES_OF[seed % len(IMAGES_OF)]
        try:
            simulate(program, seed, STEPS, images_of=images_of)
        except SimulationError as error:
            # A failure that the fault does not explain is one of the core: its seed says which.
            print(f"seed {seed}, a moment of {images_of}: {error}\n")
            return cpu_s() - begun_s, what_is_wrong(str(error))
    return float("inf"), ""


def what_is_wrong(text: str) -> str:
    """Return the line of a failure that says what is wrong."""
    asserted = re.search(r"Assertion `(.*)' failed", text)
    if asserted is not None:
        return f"assertion {asserted[1]}"[:120]
    for line in reversed(text.splitlines()):
        if line and not line.startswith("make sim"):
            return re.sub(r"^(simulator|\S*/core/): ?", "", line)[:120]
    return ""


def main() -> int:
    """Return 0 if each mutant was found."""
    image.ThreadPoolExecutor = Serial  # type: ignore[misc, assignment]
    seconds = float(os.environ.get("SECONDS") or SECONDS)
    repeat = int(os.environ.get("REPEAT") or 1)
    only = os.environ.get("MUTANT", "")
    rows = ["| fault put into the core | found after (s of one CPU) | by |\n", "|---|---|---|\n"]
    missed = 0
    for mutant in MUTANTS:
        if only not in mutant.name:
            continue
        with mutated(mutant) as program:
            hunts = [hunt(program, seconds) for _ in range(repeat)]
        missed += sum(not words for _, words in hunts)
        took = ", ".join(f"{found_s:.1f}" for found_s, _ in sorted(hunts))
        rows.append(f"| {mutant.name} | {took} | {hunts[-1][1].replace('|', '/')} |\n")
        print(rows[-1], end="", flush=True)
    if not only and not missed and repeat == 1:
        readme = HERE / "README.md"
        head, _, rest = readme.read_text().partition(BEGIN)
        readme.write_text(head + BEGIN + "".join(rows) + END + rest.partition(END)[2])
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
