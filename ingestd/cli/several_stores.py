# SPDX-License-Identifier: Apache-2.0
"""Commands over several stores: those named, or all that a configuration has.

Invariant: what goes wrong with one store keeps the command from no other; it is reported behind all
of them, and decides the exit code. Owned by the main thread.
"""

from __future__ import annotations

import heapq
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

from ingestd.errors import IngestdError, UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Command = Callable[[Namespace], int]


def add_stores(parser: ArgumentParser) -> None:
    """Add the flags that say which stores are meant."""
    parser.add_argument("stores", metavar="STORE", nargs="*", help="block device or file")
    parser.add_argument(
        "-c", "--config", metavar="FILE", help="all stores that this configuration has"
    )


def stores_of(arguments: Namespace) -> list[str]:
    """Return the paths of the stores that are meant. Raises UsageError or ConfigError."""
    if arguments.config is None and not arguments.stores:
        raise UsageError("no store is named: name one or several, or a configuration with -c")
    if arguments.config is not None and arguments.stores:
        raise UsageError("-c names all stores of a configuration: name no other beside it")
    if arguments.config is None:
        return list(arguments.stores)
    from ingestd.config.loading import load

    return [store.path for store in load(arguments.config).store.values()]


def each_store(command: Command) -> Command:
    """Return a command that runs one of a single store, `arguments.store`, for each in turn."""

    def run(arguments: Namespace) -> int:
        paths = stores_of(arguments)
        if len(paths) == 1:
            return command(Namespace(**vars(arguments), store=paths[0]))
        errors = []
        for path in paths:
            try:
                command(Namespace(**vars(arguments), store=path))
            except IngestdError as error:
                errors.append(error)
        raise_all(errors)
        return 0

    return run


def raise_all(errors: Sequence[IngestdError]) -> None:
    """Raise what went wrong with some stores, as one error of the kind of the first."""
    if errors:
        raise type(errors[0])("\n".join(str(error) for error in errors))


def listed_in_all(
    paths: Sequence[str],
    arguments: Namespace,
    flows_of: Callable[[str, Namespace], AbstractContextManager[Iterator[dict[str, Any]]]],
    undo: ExitStack,
    errors: list[IngestdError],
) -> Iterator[dict[str, Any]]:
    """List the flows of all stores in one order; each says in `store` which has it.

    Stores that cannot be listed are left out, and why is added to `errors`.
    """
    listings = []
    for path in paths:
        try:
            flows = undo.enter_context(flows_of(path, arguments))
        except IngestdError as error:
            errors.append(error)
        else:
            listings.append(_marked(flows, path))
    key, is_descending = _order_of(arguments.sort)
    merged = heapq.merge(*listings, key=key, reverse=is_descending)
    return islice(merged, arguments.limit)


def _marked(flows: Iterable[dict[str, Any]], path: str) -> Iterator[dict[str, Any]]:
    return ({"store": path, **flow} for flow in flows)


def _order_of(sort: str) -> tuple[Callable[[dict[str, Any]], Any], bool]:
    """The key of flows as JSON has them that sorts as that of FlowSort does."""
    name = sort.removeprefix("-")
    nothing: Any = 0 if name == "bytes" else ""
    return lambda flow: (flow[name] or nothing, flow["flow"]), sort.startswith("-")
