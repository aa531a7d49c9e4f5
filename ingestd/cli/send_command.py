# SPDX-License-Identifier: Apache-2.0
"""The command that sends: files or standard input, by protocol `raw` or `ingest`.

Invariants: what cannot be meant is told before a byte is sent; the command
succeeds only if there is a receipt for each flow. Owned by the main thread.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ingestd.address import ANY_HOST, Address
from ingestd.cli.inputs import STANDARD_INPUT, bytes_ahead, open_input, standard_input
from ingestd.cli.output import note, print_json, progress_bar, safe, sending_progress_bar
from ingestd.errors import UsageError
from ingestd.sizes import full_size, short_size

if TYPE_CHECKING:
    from ingestd.cli.sending import Job, Options
    from ingestd.protocol.receipt import Receipt

FILES_COUNT_MAX: Final = 100_000
PARALLEL_COUNT_MAX: Final = 256  # each has two threads

# Options that protocol raw has no words for.
_INGEST_OPTIONS: Final = (
    "resume",
    "name",
    "labels",
    "key",
    "key_file",
    "parallel",
    "buffer",
    "retry",
)


def run_send(arguments: Namespace) -> int:
    """Send, and print the receipts."""
    address = _receiver(arguments.to)
    given = [name for name in _INGEST_OPTIONS if getattr(arguments, name) not in (None, [])]
    if arguments.protocol == "raw" and given:
        raise UsageError(f"--{_flag(given[0])}: needs --protocol ingest, which has a word for it")
    if arguments.protocol == "ingest" or given:
        return _send_ingest(arguments, address)
    return _send_raw(arguments, address)


def _flag(name: str) -> str:
    return {"labels": "label"}.get(name, name).replace("_", "-")


def _receiver(address: Address) -> Address:
    if address.host == ANY_HOST or address.port == 0:
        raise UsageError(f"--to {address}: name one host and a port from 1 up")
    return address


def _send_raw(arguments: Namespace, address: Address) -> int:
    from ingestd.client import send_stream

    if len(arguments.files) > 1:
        raise UsageError(f"{arguments.files[1]}: --protocol ingest sends several files, raw one")
    (file,) = arguments.files
    with open_input(file) as reader:
        begun_s = time.monotonic()
        with progress_bar(file, bytes_ahead(reader)) as advance:
            receipt = send_stream(reader, address.host, address.port, advance)
        seconds = time.monotonic() - begun_s
    if arguments.json:
        print_json(receipt.as_dict())
    else:
        print(_receipt_text(receipt, address, seconds))
    return 0


def _send_ingest(arguments: Namespace, address: Address) -> int:
    from ingestd.cli.sending import progress, send_all

    jobs = _jobs(arguments)
    options = _options(arguments, address)
    what = arguments.files[0] if len(jobs) == 1 else f"{len(jobs)} flows"
    sizes = [job.size for job in jobs if job.size is not None]
    total_bytes = sum(sizes) if len(sizes) == len(jobs) else None
    try:
        with sending_progress_bar(what, total_bytes) as show:
            send_all(jobs, options, arguments.parallel or 1, show)
            show(*progress(jobs))
    finally:
        for job in jobs:
            _tell_way_out(job)
    for job in jobs:
        if job.receipt is not None:
            _print_receipt(job, job.receipt, address, arguments.json, is_one=len(jobs) == 1)
    _raise_errors(jobs)
    return 0


def _options(arguments: Namespace, address: Address) -> Options:
    from ingestd.cli.sending import Options
    from ingestd.client import BUFFER_BYTES_MAX, RETRY_S, load_key

    if (arguments.key is None) != (arguments.key_file is None):
        raise UsageError("--key and --key-file: give both, or none")
    keys = [key for key, _ in arguments.labels]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"--label {key}=...: is given twice, and a flow can have it once")
    if arguments.buffer == 0:
        raise UsageError("--buffer 0: without memory nothing can be sent")
    return Options(
        address=address,
        labels=dict(arguments.labels),
        key=None if arguments.key is None else load_key(arguments.key_file, arguments.key),
        resume=arguments.resume,
        buffer_bytes_max=arguments.buffer or BUFFER_BYTES_MAX,
        retry_s=RETRY_S if arguments.retry is None else arguments.retry,
    )


def _jobs(arguments: Namespace) -> list[Job]:
    """Every file to send, those of directories in the order of their names."""
    from ingestd.cli.sending import Job

    jobs: list[Job] = []
    for file in arguments.files:
        for path, name, size in _files(file):
            jobs.append(Job(path, name, size))
            if len(jobs) > FILES_COUNT_MAX:
                raise UsageError(f"{file}: more than {FILES_COUNT_MAX} files: send fewer at once")
    if not jobs:
        raise UsageError(f"{arguments.files[0]}: has no file to send")
    for option in ("name", "resume"):
        if len(jobs) > 1 and getattr(arguments, option) is not None:
            raise UsageError(f"--{option}: is for one flow, but these are {len(jobs)}")
    if arguments.files.count(STANDARD_INPUT) > 1:
        raise UsageError("-: standard input can be sent once")
    if (arguments.parallel or 1) > PARALLEL_COUNT_MAX:
        raise UsageError(f"--parallel {arguments.parallel}: is more than {PARALLEL_COUNT_MAX}")
    if arguments.name is not None:
        jobs[0].name = arguments.name
    _check_names(jobs, dict(arguments.labels))
    return jobs


def _check_names(jobs: Sequence[Job], labels: Mapping[str, str]) -> None:
    from ingestd.protocol.blocks import Hello, format_hello

    for job in jobs:
        try:
            format_hello(Hello(name=job.name, labels=labels))
        except ValueError as error:
            raise UsageError(
                f"{safe(job.path)}: its flow cannot be described so: {error}"
            ) from None


def _files(file: str) -> Iterator[tuple[str, str | None, int | None]]:
    """Yield path, name and size; a directory's files by their path from it on."""
    if file == STANDARD_INPUT:
        standard_input()
        yield file, None, None
        return
    path = Path(file)
    if not path.is_dir():
        with open_input(file) as reader:
            yield file, path.name, bytes_ahead(reader)
        return
    base = path.resolve().parent
    for directory, names, leaves in os.walk(path, onerror=_raise_unreadable):
        names.sort()
        for leaf in sorted(leaves):
            below = Path(directory, leaf)
            if below.is_file():
                yield str(below), _name_below(below, base), below.stat().st_size
            else:
                note(f"{below}: is not a file: left out")


def _name_below(path: Path, base: Path) -> str:
    return str(path.parent.resolve().relative_to(base) / path.name)


def _raise_unreadable(error: OSError) -> None:
    raise UsageError(f"{error.filename}: cannot be read: {error.strerror}")


def _tell_way_out(job: Job) -> None:
    """Tell how to go on with a flow of which something is durable, and not all."""
    if job.writer is not None and job.receipt is None and job.writer.durable_offset > 0:
        note(
            f"{job.path}: {full_size(job.writer.durable_offset)} are durable:"
            f" go on with --resume {job.writer.flow}"
        )


def _raise_errors(jobs: Sequence[Job]) -> None:
    """Raise the first error, with the sentences of all."""
    failed = [(job.path, job.error) for job in jobs if job.error is not None]
    if not failed:
        return
    texts = [f"{path}: {error}" if len(jobs) > 1 else str(error) for path, error in failed]
    raise type(failed[0][1])("\n".join(texts))


def _print_receipt(
    job: Job, receipt: Receipt, address: Address, as_json: bool, *, is_one: bool
) -> None:
    if as_json:
        print_json({**({} if is_one else {"file": job.path}), **receipt.as_dict()})
    else:
        file = "" if is_one else f"{safe(job.path)}: "
        print(file + _receipt_text(receipt, address, job.seconds))


def _receipt_text(receipt: Receipt, address: Address, seconds: float) -> str:
    rate = short_size(int(receipt.bytes / seconds)) if seconds > 0 else "?"
    checksum = f", {receipt.checksum}" if receipt.checksum else ""
    return (
        f"{receipt.flow}: sealed and durable at {address}, {full_size(receipt.bytes)}"
        f" in {seconds:.1f} s, {rate}/s{checksum}"
    )
