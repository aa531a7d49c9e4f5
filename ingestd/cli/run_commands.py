# SPDX-License-Identifier: Apache-2.0
"""The commands that serve and send: serve, send, check-config.

Invariant: each imports what it needs when it runs. Owned by the main thread.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ingestd.address import ANY_HOST, Address
from ingestd.cli.output import print_json, progress_bar
from ingestd.errors import UsageError
from ingestd.sizes import full_size, short_size

if TYPE_CHECKING:
    from ingestd.protocol import Receipt


def run_serve(arguments: Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from ingestd.config.settings import Overrides, load

    overrides = Overrides(
        store=arguments.store,
        listen=arguments.listen,
        metrics=arguments.metrics,
        engine=arguments.engine,
    )
    settings = load(arguments.config, overrides)
    from ingestd.daemon.run import serve

    return serve(settings)


def run_check_config(arguments: Namespace) -> int:
    """Print the effective configuration, which is itself one that can be used."""
    from ingestd.config.settings import effective_toml, load

    text = effective_toml(load(arguments.config))
    print(f"# {arguments.config} is valid; with all defaults it reads:\n")
    print(text, end="")
    return 0


def run_send(arguments: Namespace) -> int:
    """Send a file or standard input, and print the receipt."""
    from ingestd.client import send_stream

    address = _receiver(arguments.to)
    with _open_input(arguments.file) as reader:
        begun_s = time.monotonic()
        with progress_bar(arguments.file, _bytes_ahead(reader)) as advance:
            receipt = send_stream(reader, address.host, address.port, advance)
        seconds = time.monotonic() - begun_s
    if arguments.json:
        print_json(receipt.as_dict())
    else:
        print(_receipt_text(receipt, address, seconds))
    return 0


def _receiver(address: Address) -> Address:
    if address.host == ANY_HOST or address.port == 0:
        raise UsageError(f"--to {address}: name one host and a port from 1 up")
    return address


def _open_input(path: str) -> AbstractContextManager[BinaryIO]:
    if path == "-":
        if sys.stdin is None:
            raise UsageError("-: standard input is closed: name a file")
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(path).open("rb", buffering=0)
    except OSError as error:
        raise UsageError(f"{path}: cannot be opened: {error.strerror}") from None


def _bytes_ahead(reader: BinaryIO) -> int | None:
    """How much there is to send; None where only the end will tell."""
    try:
        here = reader.tell()
        size = reader.seek(0, 2)
        reader.seek(here)
    except OSError:
        return None
    return size - here if size > here else None


def _receipt_text(receipt: Receipt, address: Address, seconds: float) -> str:
    rate = short_size(int(receipt.bytes / seconds)) if seconds > 0 else "?"
    checksum = f", {receipt.checksum}" if receipt.checksum else ""
    return (
        f"{receipt.flow}: sealed and durable at {address}, {full_size(receipt.bytes)}"
        f" in {seconds:.1f} s, {rate}/s{checksum}"
    )
