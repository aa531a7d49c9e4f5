# SPDX-License-Identifier: Apache-2.0
"""Output of commands: tables, key-value lists, JSON, times, progress.

Invariants: results go to standard output, notes and progress to standard error;
a progress bar is drawn only on a terminal; text out of a store cannot steer one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

from ingestd.cli.streams import wait_for_room
from ingestd.errors import SystemCallError
from ingestd.sizes import short_size

if TYPE_CHECKING:
    from tqdm import tqdm

COLUMN_GAP: Final = "  "
ROWS_MEASURED: Final = 10_000


def print_json(value: object) -> None:
    """Print one line of JSON, in ASCII, so that no locale can break it."""
    print(json.dumps(value))


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Print keys and values in two columns; a value of None is left out."""
    shown = [(key, safe(str(value))) for key, value in pairs if value is not None]
    width = max((len(key) for key, _ in shown), default=0)
    for key, value in shown:
        print(f"  {key:{width}}{COLUMN_GAP}{value}".rstrip())


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[str]) -> None:
    """Print rows in columns as wide as needed; columns in right are flush right.

    Of very many rows, the first ROWS_MEASURED decide the widths, and the others are printed as
    they come.
    """
    every = (tuple(safe(cell) for cell in row) for row in rows)
    cells = [tuple(head), *islice(every, ROWS_MEASURED)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in chain(cells, every):
        aligned = [
            f"{cell:>{width}}" if name in right else f"{cell:{width}}"
            for name, cell, width in zip(head, row, widths, strict=True)
        ]
        print(COLUMN_GAP.join(aligned).rstrip())


def safe(text: str) -> str:
    """Escape what could end a line or steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def show_line(text: str) -> None:
    """Print a result and flush it; a progress bar makes room for it."""
    _write_line(text, sys.stdout)
    sys.stdout.flush()


def show_json(value: object) -> None:
    """The same for a line of JSON."""
    show_line(json.dumps(value))


def note(text: str) -> None:
    """Print something beside the result; a progress bar makes room for it."""
    _write_line(f"ingestd: note: {safe(text)}", sys.stderr)


def report_error(text: str) -> None:
    """Report an error that does not end the command, as main() reports those that do."""
    _write_line(f"ingestd: error: {safe(text)}", sys.stderr)


def _write_line(line: str, stream: TextIO) -> None:
    """By one call, as several threads print things; tqdm's, where it may draw."""
    if "tqdm" not in sys.modules:
        stream.write(f"{line}\n")
        return
    from tqdm import tqdm

    tqdm.write(line, file=stream)


def short_time(text: str | None) -> str:
    """Return a time of the store, to the second, for a table."""
    return "-" if text is None else f"{text[:19]}Z"


def counted(counts: Mapping[str, int]) -> str:
    """Return "3 closed, 1 open" for counts by state."""
    return ", ".join(f"{count} {state}" for state, count in counts.items())


@contextmanager
def progress_bar(
    what: str, total_bytes: int | None, *, wanted: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show bytes done, rate and time left on standard error, if that is a terminal.

    The function that comes out takes the bytes of each step.
    """
    if not wanted or not is_terminal(sys.stderr):
        yield lambda _: None
        return
    with _bar(what, total_bytes) as bar:

        def advance(count: int) -> None:
            bar.update(count)

        yield advance


@contextmanager
def total_progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """The same for work of which only the worker knows how much there is.

    The function that comes out takes the bytes done and those to do, done included.
    """
    if not is_terminal(sys.stderr):
        yield lambda _, __: None
        return
    with _bar(what, None) as bar:

        def show(done_bytes: int, total_bytes: int) -> None:
            bar.total = total_bytes
            bar.update(done_bytes - bar.n)

        yield show


@contextmanager
def sending_progress_bar(
    what: str, total_bytes: int | None
) -> Iterator[Callable[[int, int], None]]:
    """The same for bytes that are sent first and durable later; the bar shows the durable ones.

    The function that comes out takes the bytes sent and the bytes durable, in all.
    """
    if not is_terminal(sys.stderr):
        yield lambda _, __: None
        return
    with _bar(what, total_bytes) as bar:

        def show(sent_bytes: int, durable_bytes: int) -> None:
            bar.set_postfix_str(f"durable; {short_size(sent_bytes)} sent", refresh=False)
            bar.update(durable_bytes - bar.n)

        yield show


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether somebody looks on."""
    return stream is not None and stream.isatty()


def _bar(what: str, total_bytes: int | None) -> tqdm[NoReturn]:
    from tqdm import tqdm

    return tqdm(
        desc=safe(what),
        total=total_bytes,
        unit="iB",
        unit_scale=True,
        unit_divisor=1024,
        file=sys.stderr,
        dynamic_ncols=True,
    )


def write_all(fd: int, piece: Any, name: str) -> None:
    """Write a bytes-like object whole. Raises SystemCallError; BrokenPipeError passes."""
    left = memoryview(piece)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BrokenPipeError:
            raise
        except BlockingIOError:  # somebody who has the same pipe made it so
            wait_for_room(fd)
        except OSError as error:
            raise SystemCallError(f"{name}: cannot be written: {error.strerror}") from None
