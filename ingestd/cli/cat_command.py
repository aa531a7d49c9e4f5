# SPDX-License-Identifier: Apache-2.0
"""`ingestd cat`: the bytes of one flow, to standard output or a file.

Invariants: nothing but the flow's bytes goes to the output, and the store is
never the output. Owned by the main thread.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from ingestd.cli.output import note, progress_bar, write_all
from ingestd.cli.several_stores import raise_all, stores_of
from ingestd.cli.streams import is_stdout_closed
from ingestd.errors import FlowNotFoundError, StoreError, SystemCallError, UsageError
from ingestd.sizes import full_size

if TYPE_CHECKING:
    from ingestd.store.device.stacking import Layer
    from ingestd.store.read.flows import Flow
    from ingestd.store.read.image import StoreImage

PROGRESS_BYTES_MIN: Final = 64 * 1024 * 1024
_NAMED_MAX: Final = 5


class _Output(NamedTuple):
    fd: int
    name: str


def run_cat(arguments: Namespace) -> int:
    """Write the bytes [offset, offset + length) of a flow, as far as they are there."""
    from ingestd.store.read.reader import read_flow

    with _image_with(stores_of(arguments), arguments.flow) as (image, flow):
        offset = flow.first_offset if arguments.offset is None else arguments.offset
        pieces = read_flow(image, flow, offset, arguments.length)
        length = _length(flow, offset, arguments.length)
        with (
            _open_output(arguments, image.device.layers) as output,
            progress_bar(flow.flow, length, wanted=_is_bar_wanted(output, length)) as advance,
        ):
            for piece in pieces:
                write_all(output.fd, piece, output.name)
                advance(len(piece))
    if flow.first_offset:
        note(f"flow {flow.flow} begins at byte {flow.first_offset}: what was before is overwritten")
    if flow.state != "sealed":
        note(f"flow {flow.flow} is {flow.state}: {full_size(flow.bytes)} of it are there")
    return 0


@contextmanager
def _image_with(paths: Sequence[str], wanted: str) -> Iterator[tuple[StoreImage, Flow]]:
    """The one of these stores that has a flow, and the flow.

    Raises FlowNotFoundError if none has it, or several flows begin so; a store that cannot be
    read matters only then.
    """
    from ingestd.store.read.image import read_image

    path = paths[0] if len(paths) == 1 else _store_with(paths, wanted)
    with read_image(path) as image:
        yield image, image.find(wanted)


def _store_with(paths: Sequence[str], wanted: str) -> str:
    from ingestd.store.read.image import id_prefix, read_image

    prefix, errors = id_prefix(wanted), []
    found: list[tuple[str, str]] = []
    for path in paths:
        try:
            with read_image(path) as image:
                own = (flow for flow in image.flows if flow.flow_id.hex().startswith(prefix))
                found += [(path, flow.flow) for flow in own]
        except StoreError as error:
            errors.append(error)
    if len(found) == 1:
        return found[0][0]
    if len(found) > 1:
        names = ", ".join(f"{flow} in {path}" for path, flow in found[:_NAMED_MAX])
        raise FlowNotFoundError(
            f"{len(found)} flows begin with {wanted!r}, write more of the id: {names}"
        )
    raise_all(errors)
    raise FlowNotFoundError(f"none of {len(paths)} stores has flow {wanted!r}")


def _length(flow: Flow, offset: int, length_max: int | None) -> int:
    """The number of bytes there will be."""
    ahead = flow.bytes - offset
    return ahead if length_max is None else min(ahead, length_max)


@contextmanager
def _open_output(arguments: Namespace, layers: Sequence[Layer]) -> Iterator[_Output]:
    """Standard output, or the file of -o, which is whole and durable behind this.

    The file gets its name last, so that no failure leaves half of a flow, nor less than
    there was. Raises UsageError if it is the store, or part of what the store lies on.
    """
    path: str | None = arguments.output
    if path is None:
        if is_stdout_closed():
            raise UsageError("standard output is closed: name a file with -o")
        yield _Output(sys.stdout.fileno(), "standard output")
        return
    try:
        status = os.stat(path)  # noqa: PTH116 - beside os.open below
    except FileNotFoundError:
        status = None
    except (OSError, ValueError) as error:
        raise UsageError(f"-o {path}: cannot be opened: {_reason(error)}") from None
    if status is not None:
        _refuse_store(path, layers)
    if status is None or stat.S_ISREG(status.st_mode):
        with _new_file(path, status) as output:
            yield output
        return
    # A device, a pipe or a terminal is written to as it is; a device that is in use is not.
    flags = os.O_WRONLY | os.O_CLOEXEC | (os.O_EXCL if stat.S_ISBLK(status.st_mode) else 0)
    fd = _open(path, flags)
    try:
        yield _Output(fd, path)
        if stat.S_ISBLK(status.st_mode):
            os.fsync(fd)
    finally:
        os.close(fd)


def _refuse_store(path: str, layers: Sequence[Layer]) -> None:
    """Look at what is there without opening it for more than that."""
    from ingestd.store.device.output_guard import is_output_of
    from ingestd.store.format.layout import SUPERBLOCK_MAGIC

    fd = _open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if is_output_of(fd, layers):
            raise UsageError(
                f"-o {path}: is the store itself, or what it lies on: name another file"
            )
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode):
            with suppress(OSError), open(f"/proc/self/fd/{fd}", "rb") as file:  # noqa: PTH123
                if file.read(len(SUPERBLOCK_MAGIC)) == SUPERBLOCK_MAGIC:
                    raise UsageError(f"-o {path}: is a store, too: name another file")
    finally:
        os.close(fd)


@contextmanager
def _new_file(path: str, old: os.stat_result | None) -> Iterator[_Output]:
    """A file beside `path` that takes its place once all is written, with the old one's mode."""
    target = os.path.realpath(path)
    beside = f"{target}.{secrets.token_hex(4)}.part"
    fd = _open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, path)
    try:
        try:
            if old is not None:
                os.fchmod(fd, stat.S_IMODE(old.st_mode))
            yield _Output(fd, path)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(beside, target)  # noqa: PTH104 - as os.open above
    except OSError as error:
        raise SystemCallError(f"-o {path}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(beside)  # noqa: PTH108 - as os.open above
    directory = _open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _open(path: str, flags: int, name: str | None = None) -> int:
    try:
        return os.open(path, flags, 0o666)
    except (OSError, ValueError) as error:
        raise UsageError(f"-o {name or path}: cannot be opened: {_reason(error)}") from None


def _reason(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _is_bar_wanted(output: _Output, length: int) -> bool:
    """Into a file only: on a terminal, and through a pipe to one, bar and bytes would mix."""
    return length >= PROGRESS_BYTES_MIN and stat.S_ISREG(os.fstat(output.fd).st_mode)
