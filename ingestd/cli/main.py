# SPDX-License-Identifier: Apache-2.0
"""The commands' arguments, and what becomes of their errors.

Invariants: main() returns an exit code and lets no error of a user or a machine
out as a traceback; the list of exit codes in the help is made from errors.py.
Owned by the main thread.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn

from ingestd import __version__
from ingestd.address import PORT_MAX, Address, parse_address
from ingestd.cli.cat_command import run_cat
from ingestd.cli.ctl_command import add_ctl
from ingestd.cli.doctor_command import run_doctor
from ingestd.cli.inspect_command import run_inspect
from ingestd.cli.nic_commands import run_nic_apply, run_nic_check, run_nic_undo
from ingestd.cli.rm_command import run_rm
from ingestd.cli.run_commands import run_check_config, run_serve
from ingestd.cli.selection import add_filters, add_order
from ingestd.cli.send_command import run_send
from ingestd.cli.several_stores import add_stores, each_store
from ingestd.cli.store_commands import run_format, run_info, run_ls
from ingestd.cli.streams import secure_standard_streams
from ingestd.cli.verify_command import run_verify
from ingestd.errors import EngineError, IngestdError, ResourceError, SystemCallError, UsageError
from ingestd.sizes import parse_size

EXIT_INTERRUPTED: Final = 130  # as a shell shows SIGINT
EXIT_BROKEN_PIPE: Final = 141  # as a shell shows SIGPIPE

_LABEL_BYTES_MAX: Final = 64
_COUNT_MAX: Final = 65536
_INVALID_CHOICE: Final = re.compile(r"invalid choice: '[\w-]+' \(choose from .*\)")


class _Parser(argparse.ArgumentParser):
    """Reports errors like everything else does."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"ingestd: error: {message}{_hint(message)}\n")


def _hint(message: str) -> str:
    """The remedy to add to a message of argparse, which knows none."""
    if message.endswith("required: COMMAND"):
        return "; ingestd --help lists the commands"
    if (found := _INVALID_CHOICE.search(message)) is None:
        return ""
    given, *choices = re.findall(r"[\w-]+", found[0].removeprefix("invalid choice: "))
    near = difflib.get_close_matches(given, [c for c in choices if c not in ("choose", "from")], 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code of the process."""
    secure_standard_streams()
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except IngestdError as error:
        return _report(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except MemoryError:
        return _report(ResourceError("memory ran out: free some, or configure smaller areas"))
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else "a system call"
        return _report(SystemCallError(f"{where}: {error.strerror or error}"))
    finally:
        _close_stdout()


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit:
        sys.stdout.flush()  # help that could not be written is an error
        raise
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _report(error: IngestdError) -> int:
    for sentence in str(error).split("\n"):
        print(f"ingestd: error: {sentence}", file=sys.stderr)
    return error.exit_code


def _close_stdout() -> None:
    """Flush, and where nobody takes it, see that the interpreter does not try again."""
    try:
        sys.stdout.flush()
    except OSError:
        null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null_fd, sys.stdout.fileno())
        os.close(null_fd)


def exit_codes() -> dict[int, str]:
    """Every exit code and what it means; those of errors come from errors.py."""
    return {
        0: "success",
        **dict(sorted(_error_codes(IngestdError))),
        IngestdError.exit_code: "any other error",
        EXIT_INTERRUPTED: "interrupted from the keyboard",
        EXIT_BROKEN_PIPE: "the reader of the output closed it",
    }


def _error_codes(kind: type[IngestdError]) -> Iterator[tuple[int, str]]:
    yield kind.exit_code, (kind.__doc__ or "").splitlines()[0].rstrip(".")
    for narrower in kind.__subclasses__():
        yield from _error_codes(narrower)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    codes = "\n".join(f"  {code:3}  {meaning}" for code, meaning in exit_codes().items())
    parser = _Parser(
        prog="ingestd",
        description="Receive TCP flows into raw block devices, with durable receipts.",
        epilog=f"exit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ingestd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_format(commands)
    _add_serve(commands)
    _add_readers(commands)
    _add_inspect(commands)
    _add_cat(commands)
    _add_rm(commands)
    _add_send(commands)
    _add_check_config(commands)
    _add_doctor(commands)
    add_ctl(commands)
    _add_nic(commands)
    return parser


_Commands = argparse._SubParsersAction  # argparse has no public name for it


def _add(
    commands: _Commands[_Parser], name: str, text: str, run: Callable[[argparse.Namespace], int]
) -> _Parser:
    parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(command=run)
    return parser


def _add_format(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands,
        "format",
        "create a store on a block device or in a file",
        run_format,
    )
    parser.add_argument("path", metavar="PATH", help="block device, or file to create")
    parser.add_argument(
        "--size", type=_size, help="size of a file, such as 4GiB; a device is used as a whole"
    )
    parser.add_argument(
        "--segment-size",
        type=_size,
        help="size of a segment (default: depends on the store's size)",
    )
    parser.add_argument(
        "--zero",
        action="store_true",
        help="write zeros now, so that first writes to a file are fast",
    )
    parser.add_argument("--label", type=_label, default="", help="a name for the store, for people")
    parser.add_argument(
        "--force",
        action="store_true",
        help="overwrite an existing file system, store or other data",
    )


def _add_serve(commands: _Commands[_Parser]) -> None:
    parser = _add(commands, "serve", "receive flows until SIGTERM", run_serve)
    parser.add_argument("-c", "--config", metavar="FILE", help="configuration in TOML")
    parser.add_argument("--store", metavar="PATH", help='path of the store "default"')
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help='address of the listener "default", raw protocol'
    )
    parser.add_argument("--metrics", metavar="HOST:PORT", help="address of the metrics endpoint")
    parser.add_argument(
        "--control", metavar="auto|off|PATH", help="path of the control socket, for ingestd ctl"
    )
    parser.add_argument("--engine", metavar="auto|recv|zcrx", help="engine that receives payload")
    parser.add_argument(
        "--area", metavar="auto|SIZE", help="receive memory of each worker, such as 64MiB"
    )


def _add_readers(commands: _Commands[_Parser]) -> None:
    for name, text, run in (
        ("ls", "list the flows of stores", run_ls),
        ("verify", "read whole stores and verify their checksums", each_store(run_verify)),
        ("info", "show identity, geometry and free space of stores", each_store(run_info)),
    ):
        parser = _add(commands, name, text, run)
        add_stores(parser)
        parser.add_argument("--json", action="store_true", help="print JSON, for programs")
        if name == "ls":
            add_filters(parser)
            add_order(parser)


def _add_inspect(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands,
        "inspect",
        "print the structures at one place of a store, damaged or not",
        run_inspect,
    )
    parser.add_argument("store", metavar="STORE", help="block device or file")
    parser.add_argument(
        "place",
        metavar="PLACE",
        nargs="*",
        help="superblock, segment N, or batch N.M: batch M of segment N (default: all places,"
        " one line each)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_cat(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands, "cat", "write the bytes of a flow to standard output or a file", run_cat
    )
    add_stores(parser)
    parser.add_argument("flow", metavar="FLOW", help="flow id, or its first characters")
    parser.add_argument(
        "--offset", metavar="N", type=_size, help="begin at this byte, such as 1GiB"
    )
    parser.add_argument("--length", metavar="N", type=_size, help="write at most N bytes")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write to FILE instead of standard output"
    )


def _add_rm(commands: _Commands[_Parser]) -> None:
    parser = _add(commands, "rm", "remove flows permanently, and reclaim their segments", run_rm)
    parser.add_argument("store", metavar="STORE", help="block device or file")
    parser.add_argument(
        "flows", metavar="FLOW", nargs="*", help="flow id, or 8 or more of its first characters"
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be removed")
    parser.add_argument(
        "--yes", action="store_true", help="do not ask before removing what filters select"
    )
    add_filters(parser)


def _add_send(commands: _Commands[_Parser]) -> None:
    parser = _add(commands, "send", "send files or standard input as flows", run_send)
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="file or directory to send, each file a flow; -: standard input",
    )
    parser.add_argument(
        "--to", metavar="HOST:PORT", type=_address, required=True, help="a listener"
    )
    parser.add_argument(
        "--protocol",
        choices=("raw", "ingest"),
        help="protocol of the listener (default: detected)",
    )
    parser.add_argument("--json", action="store_true", help="print receipts as JSON, one per line")
    parser.add_argument(
        "--parallel", metavar="N", type=_count, help="send N flows at the same time (default: 1)"
    )
    parser.add_argument(
        "--retry",
        metavar="SECONDS",
        type=_seconds,
        help="how long to retry a first or a lost connection (default: 300 for a lost one, 10 for"
        " a first one that nothing accepts)",
    )
    parser.add_argument(
        "--state",
        metavar="FILE",
        help="record acknowledged files in FILE, and do not send them again while path, size and"
        " modification time are unchanged",
    )
    parser.add_argument(
        "--buffer",
        metavar="SIZE",
        type=_size,
        help="memory for bytes from standard input that are not durable yet (default: 64MiB)",
    )
    group = parser.add_argument_group("only with protocol ingest")
    group.add_argument(
        "--resume",
        metavar="FLOW",
        help="resume a flow; standard input must start at its first byte",
    )
    group.add_argument(
        "--new",
        action="store_true",
        help="always make new flows, even of files that were already sent (same name, labels,"
        " size, modification time and checksum)",
    )
    group.add_argument("--name", metavar="TEXT", help="name of the flow (default: the file's)")
    group.add_argument(
        "--label",
        metavar="KEY=VALUE",
        dest="labels",
        type=_key_and_value,
        action="append",
        default=[],
        help="label of the flows; may be given several times",
    )
    group.add_argument("--key", metavar="NAME", help="pre-shared key that the listener knows")
    group.add_argument("--key-file", metavar="FILE", help="TOML file with the key under [key]")


def _add_check_config(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands,
        "check-config",
        "check a configuration and print the effective settings",
        run_check_config,
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", required=True, help="configuration in TOML"
    )


def _add_doctor(commands: _Commands[_Parser]) -> None:
    parser = _add(
        commands,
        "doctor",
        "show which engine would run, and report obstacles to zero-copy receive",
        run_doctor,
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="configuration in TOML")
    parser.add_argument(
        "--store", metavar="PATH", help="block device or file, instead of the one in FILE"
    )
    parser.add_argument(
        "--interface",
        metavar="IF",
        help="network interface, instead of the one in FILE; none: device-less",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.epilog = f"exit code: 0 if engine zcrx would run, {EngineError.exit_code} if not"


def _add_nic(commands: _Commands[_Parser]) -> None:
    text = "prepare a network interface for zero-copy receive"
    parser = commands.add_parser(
        "nic", help=text, description=f"{text.capitalize()}.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, what, run in (
        (
            "check",
            "check an interface, and list what apply would change",
            run_nic_check,
        ),
        ("apply", "prepare an interface; each change is recorded first", run_nic_apply),
        ("undo", "undo the changes of apply, or of a daemon that crashed", run_nic_undo),
    ):
        verb = _add(verbs, name, what, run)
        verb.add_argument("interface", metavar="IFACE", help="network interface")
        verb.add_argument("--json", action="store_true", help="print JSON, for programs")
        verb.add_argument(
            "--state-dir",
            metavar="DIR",
            default="/run/ingestd",
            help="directory in which changes are recorded (default: %(default)s)",
        )
        if name == "undo":
            continue
        verb.add_argument(
            "--queues", metavar="N", type=_count, default=1, help="rx queues to take: the last N"
        )
        verb.add_argument(
            "--port",
            metavar="P",
            type=_port,
            action="append",
            default=[],
            help="steer a listener's port to them; may be given several times",
        )
        verb.add_argument(
            "--rx-ring", metavar="N", type=_count, default=0, help="descriptors of each rx ring"
        )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _COUNT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_COUNT_MAX}")
    return int(text)


def _seconds(text: str) -> float:
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text, re.ASCII) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return float(text)


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not a label: write KEY=VALUE")
    return key, value


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= PORT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to {PORT_MAX}")
    return int(text)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _label(text: str) -> str:
    if len(text.encode(errors="replace")) > _LABEL_BYTES_MAX or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"a label is text of at most {_LABEL_BYTES_MAX} bytes on one line"
        )
    return text
