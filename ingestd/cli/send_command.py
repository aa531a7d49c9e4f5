# SPDX-License-Identifier: Apache-2.0
"""The command that sends: files, directories or standard input, each file a flow.

Invariants: what cannot be meant is reported before a byte is sent; each flow's receipt,
or why there is none, is reported as soon as it is known; the command succeeds only if
there is a receipt for each flow. Owned by the main thread.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ingestd.address import ANY_HOST, Address
from ingestd.cli.inputs import STANDARD_INPUT, standard_input
from ingestd.cli.output import note, report_error, safe, sending_progress_bar, show_json, show_line
from ingestd.errors import SystemCallError, UsageError
from ingestd.sizes import full_size, short_size

if TYPE_CHECKING:
    from ingestd.cli.sending import Job, Options
    from ingestd.protocol.receipt import Receipt

PARALLEL_COUNT_MAX: Final = 256  # each has two threads

# Options that protocol raw has no words for.
_INGEST_OPTIONS: Final = ("resume", "name", "labels", "key", "key_file")


def run_send(arguments: Namespace) -> int:
    """Send, and print the receipts."""
    address = _receiver(arguments.to)
    _check(arguments)
    from ingestd.cli.send_flow import FlowSender
    from ingestd.cli.send_input import check_inputs, inputs
    from ingestd.cli.sending import Sending

    check_inputs(arguments.files)
    is_one = len(arguments.files) == 1 and not Path(arguments.files[0]).is_dir()
    options = _options(arguments, address)
    results = _Results(arguments, options, is_one=is_one)
    sending = Sending(inputs(arguments.files), FlowSender(options), arguments.parallel or 1)
    what = arguments.files[0] if len(arguments.files) == 1 else f"{len(arguments.files)} files"
    try:
        with sending_progress_bar(what, _total_bytes(arguments.files)) as show:
            sending.run(results.report, show)
    finally:
        if options.state is not None:
            options.state.close()
    return results.exit_code()


def _receiver(address: Address) -> Address:
    if address.host == ANY_HOST or address.port == 0:
        raise UsageError(f"--to {address}: name one host and a port from 1 up")
    return address


def _check(arguments: Namespace) -> None:
    """Raise UsageError for options that contradict each other."""
    for name in _INGEST_OPTIONS:
        if arguments.protocol == "raw" and getattr(arguments, name) not in (None, []):
            flag = {"labels": "label"}.get(name, name).replace("_", "-")
            raise UsageError(f"--{flag}: needs --protocol ingest, which has a word for it")
    if (arguments.key is None) != (arguments.key_file is None):
        raise UsageError("--key and --key-file: give both, or none")
    keys = [key for key, _ in arguments.labels]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"--label {key}=...: is given twice, and a flow can have it once")
    if arguments.buffer == 0:
        raise UsageError("--buffer 0: without memory nothing can be sent")
    if (arguments.parallel or 1) > PARALLEL_COUNT_MAX:
        raise UsageError(f"--parallel {arguments.parallel}: is more than {PARALLEL_COUNT_MAX}")
    files = arguments.files
    if files.count(STANDARD_INPUT) > 1:
        raise UsageError("-: standard input can be sent once")
    if STANDARD_INPUT in files:
        standard_input()
    for option in ("name", "resume"):
        if getattr(arguments, option) is not None and (len(files) > 1 or Path(files[0]).is_dir()):
            many = len(files) if len(files) > 1 else "a directory's"
            raise UsageError(f"--{option}: is for one flow, but these are {many}")
    _check_texts(files[0], arguments.name, dict(arguments.labels))


def _check_texts(file: str, name: str | None, labels: Mapping[str, str]) -> None:
    from ingestd.protocol.blocks import Hello, format_hello

    try:
        format_hello(Hello(name=name, labels=labels))
    except ValueError as error:
        raise UsageError(f"{safe(file)}: its flow cannot be described so: {error}") from None


def _options(arguments: Namespace, address: Address) -> Options:
    from ingestd.cli.send_state import SendState
    from ingestd.cli.sending import Options
    from ingestd.client import BUFFER_BYTES_MAX, load_key

    needs_ingest = any(getattr(arguments, name) not in (None, []) for name in _INGEST_OPTIONS)
    return Options(
        address=address,
        protocol=arguments.protocol or ("ingest" if needs_ingest else None),
        labels=dict(arguments.labels),
        key=None if arguments.key is None else load_key(arguments.key_file, arguments.key),
        name=arguments.name,
        resume=_flow_id(arguments.resume),
        is_new=arguments.new,
        buffer_bytes_max=arguments.buffer or BUFFER_BYTES_MAX,
        retry_s=arguments.retry,
        state=None if arguments.state is None else SendState(arguments.state, address),
    )


def _flow_id(text: str | None) -> str | None:
    import uuid

    try:
        return None if text is None else str(uuid.UUID(text))
    except ValueError:
        raise UsageError(f"--resume: flow: {text!r} is not a UUID") from None


def _total_bytes(files: list[str]) -> int | None:
    """Return how much there is to send, where that is known at once."""
    total_bytes = 0
    for file in files:
        try:
            status = None if file == STANDARD_INPUT else Path(file).stat()
        except OSError:
            return None
        if status is None or not Path(file).is_file() or status.st_size == 0:
            return None
        total_bytes += status.st_size
    return total_bytes


class _Results:
    """The results of finished flows, as printed, and the exit code that they lead to."""

    def __init__(self, arguments: Namespace, options: Options, *, is_one: bool) -> None:
        self._arguments = arguments
        self._options = options
        self._is_one = is_one
        self._finished_count = 0
        self._exit_code = 0
        self._output_error: OSError | None = None

    def exit_code(self) -> int:
        """Return that of the first error. Raises what kept receipts from being shown."""
        if self._output_error is not None:
            raise SystemCallError(
                f"standard output: cannot be written: {self._output_error.strerror}:"
                " receipts are missing there; sending again shows them"
            )
        if self._finished_count == 0:
            raise UsageError(f"{self._arguments.files[0]}: has no file to send")
        return self._exit_code

    def report(self, job: Job, was_stopped: bool) -> None:
        """Report the result of a flow. BrokenPipeError passes, as nobody listens."""
        self._finished_count += 1
        if job.receipt is not None:
            state = self._options.state
            if state is not None and job.state_key is not None and not job.was_there:
                state.add(job.state_key, job.path, job.receipt)
            self._show(job, job.receipt)
            return
        _report_durable(job, was_stopped and not self._is_one)
        if job.error is not None and not was_stopped:
            self._exit_code = self._exit_code or job.error.exit_code
            path = "" if self._is_one or str(job.error).startswith(job.path) else f"{job.path}: "
            report_error(f"{path}{job.error}")

    def _show(self, job: Job, receipt: Receipt) -> None:
        if self._output_error is not None:
            return
        try:
            if self._arguments.json:
                prefix = {} if self._is_one else {"file": job.path}
                there = {"already_there": True} if job.was_there else {}
                show_json({**prefix, **receipt.as_dict(), **there})
            else:
                file = "" if self._is_one else f"{safe(job.path)}: "
                show_line(file + _receipt_text(receipt, self._options.address, job))
        except BrokenPipeError:
            raise
        except OSError as error:  # the others are sent all the same
            self._output_error = error


def _report_durable(job: Job, is_one_of_many: bool) -> None:
    """Report how much of a flow is durable, and how to resume it, where not all of it is.

    is_one_of_many: that were stopped, so that nothing else says that it was under way.
    """
    _, durable_bytes = job.progress()
    if durable_bytes > 0:
        note(f"{job.path}: {full_size(durable_bytes)} are durable: resume with --resume {job.flow}")
    elif is_one_of_many and job.raw_sent_bytes is not None:
        note(
            f"{job.path}: {full_size(job.raw_sent_bytes)} were sent by protocol raw, without a"
            " receipt; ingestd ls on the receiving side shows how much of it is durable"
        )
    elif is_one_of_many:
        note(f"{job.path}: nothing of it is durable")


def _receipt_text(receipt: Receipt, address: Address, job: Job) -> str:
    checksum = f", {receipt.checksum}" if receipt.checksum else ""
    if job.was_there:
        return (
            f"{receipt.flow}: already there, durable at {address},"
            f" {full_size(receipt.bytes)}{checksum}"
        )
    rate = short_size(int(receipt.bytes / job.seconds)) if job.seconds > 0 else "?"
    return (
        f"{receipt.flow}: sealed and durable at {address}, {full_size(receipt.bytes)}"
        f" in {job.seconds:.1f} s, {rate}/s{checksum}"
    )
