# SPDX-License-Identifier: Apache-2.0
"""`ingestd rm`: remove flows from a store, whether or not a daemon serves it.

Invariant: a line on standard output says of a flow that it is removed, durably;
all others are errors. A daemon may come and go meanwhile. Owned by the main thread.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from ingestd.cli.output import is_terminal, note, print_table, safe
from ingestd.cli.selection import filter_arguments, filter_of, require_some
from ingestd.errors import (
    ControlError,
    FlowInUseError,
    FlowNotFoundError,
    IngestdError,
    StoreBusyError,
    UsageError,
)
from ingestd.sizes import full_size

if TYPE_CHECKING:
    from ingestd.control.finding import Serving

# Of ids in one request: a line of them is half as long as a daemon reads.
REQUEST_FLOWS_MAX: Final = 100_000
# For a daemon that starts or ends meanwhile.
RETRY_TIME_S: Final = 10.0
RETRY_INTERVAL_S: Final = 0.2
ID_DIGITS: Final = 32


def run_rm(arguments: Namespace) -> int:
    """Remove each flow; raise what kept the first of them, in sentences about all."""
    from ingestd.store.read.image import id_prefix
    from ingestd.store.reclaim.deletion import REMOVAL_DIGITS_MIN

    require_some(arguments)
    for name in arguments.flows:
        id_prefix(name, REMOVAL_DIGITS_MIN)
    shown = None
    is_selection = not filter_of(arguments).is_empty
    if arguments.dry_run or (is_selection and not arguments.yes):
        shown = _show(arguments)
        if arguments.dry_run or not shown:
            return 0
        _confirm(len(shown))
    removal = _Removal(arguments, shown)
    removal.run()
    if removal.errors:
        first = removal.errors[0]
        raise type(first)("\n".join(str(error) for error in removal.errors))
    return 0


def _show(arguments: Namespace) -> list[str]:
    """Print the flows that are meant; return their ids."""
    from ingestd.cli.store_commands import listed

    with listed(arguments.store, arguments) as listing:
        every = list(listing.flows) if not arguments.flows else _named(arguments, listing.flows)
    rows = [
        (flow["flow"], flow["state"], str(flow["bytes"]), flow["name"] or "-") for flow in every
    ]
    print_table(("FLOW", "STATE", "BYTES", "NAME"), rows, frozenset({"BYTES"}))
    total = full_size(sum(flow["bytes"] for flow in every))
    note(f"{len(every)} flows, {total}, would be removed")
    return [flow["flow"] for flow in every]


def _named(arguments: Namespace, flows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    heads = tuple(name.replace("-", "").lower() for name in arguments.flows)
    return [flow for flow in flows if flow["flow"].replace("-", "").startswith(heads)]


def _confirm(count: int) -> None:
    if not is_terminal(sys.stdin):
        raise UsageError(f"{count} flows match: add --yes to remove them, or --dry-run to see them")
    print(f"Remove these {count} flows? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was removed")


class _Removal:
    """One command, which continues with what is left when a daemon starts or ends."""

    def __init__(self, arguments: Namespace, shown: list[str] | None) -> None:
        """`shown`: the ids that somebody confirmed; None: as the arguments say."""
        self.errors: list[IngestdError] = []
        self._arguments = arguments
        self._store = arguments.store
        # Ids of flows; None: not resolved yet.
        self._left = dict.fromkeys(shown) if shown is not None else None
        self._asked: set[str] = set()  # of a daemon that did not answer

    def run(self) -> None:
        """Do it all."""
        from ingestd.control.finding import find_serving

        deadline_s = time.monotonic() + RETRY_TIME_S
        while True:
            problems: list[str] = []
            serving = find_serving(self._store, problems=problems)
            try:
                if serving is not None:
                    with serving.client:
                        self._by_daemon(serving)
                else:
                    self._alone()
                return
            except (ControlError, StoreBusyError) as error:
                is_final = isinstance(error, ControlError) and error.code not in (None, "stopping")
                is_lasting = isinstance(error, StoreBusyError) and error.is_lasting
                if is_final or is_lasting:
                    raise
                if time.monotonic() >= deadline_s:
                    raise _unanswered(error, problems) from None
            time.sleep(RETRY_INTERVAL_S)

    def _alone(self) -> None:
        from ingestd.store.reclaim.deletion import remove_flows

        if self._left is None:
            wanted, selected = self._arguments.flows, filter_of(self._arguments)
        else:
            wanted, selected = list(self._left), None
        is_selection = selected is not None and not selected.is_empty
        report = remove_flows(self._store, wanted, selected if is_selection else None)
        for outcome in report.outcomes:
            is_gone = isinstance(outcome.error, FlowNotFoundError) and outcome.flow in self._asked
            if outcome.error is None or is_gone:
                print(f"flow {outcome.flow}: removed, {full_size(outcome.bytes_count)}")
            else:
                self.errors.append(outcome.error)
        note(f"{report.segments_freed_count} segments of {safe(self._store)} are free by it")

    def _by_daemon(self, serving: Serving) -> None:
        if self._left is None:
            self._left = dict.fromkeys(self._resolve(serving))
        while self._left:
            batch = list(self._left)[:REQUEST_FLOWS_MAX]
            lost, self._asked = self._asked, self._asked | set(batch)
            for line in serving.client.remove(serving.store, batch):
                self._report(line, is_gone=line["flow"] in lost)
                del self._left[line["flow"]]
        note("the daemon gives segments back once nothing in them is kept")

    def _resolve(self, serving: Serving) -> list[str]:
        """The ids of the flows that are named or selected; all of the store is listed at most once.

        An id that is whole is not looked for: the daemon says whether there is such a flow.
        """
        from uuid import UUID

        heads = {name: name.replace("-", "").lower() for name in self._arguments.flows}
        is_selection = not filter_of(self._arguments).is_empty
        short = {name: head for name, head in heads.items() if len(head) < ID_DIGITS}
        whole = [str(UUID(head)) for head in heads.values() if len(head) == ID_DIGITS]
        found: dict[str, list[str]] = {name: [] for name in short}
        selected = []
        if short:
            for flow in serving.client.flows(serving.store):
                digits = flow["flow"].replace("-", "")
                for name, head in short.items():
                    if digits.startswith(head):
                        found[name].append(flow["flow"])
        if is_selection:
            filters = filter_arguments(self._arguments)
            selected = [f["flow"] for f in serving.client.flows(serving.store, **filters)]
        for name, flows in found.items():
            if len(flows) == 1:
                whole += flows
            else:
                self.errors.append(_not_one(self._store, name, len(flows)))
        return whole + selected

    def _report(self, line: dict[str, Any], *, is_gone: bool) -> None:
        from ingestd.store.reclaim.deletion import no_room_error

        flow, result = line["flow"], line["result"]
        if result == "removed" or (result == "unknown" and is_gone):
            print(f"flow {flow}: removed, {full_size(line['bytes'])}")
        elif result == "in_use":
            self.errors.append(
                FlowInUseError(
                    f"flow {flow} of {self._store} is being received: end its connection, and ask"
                    " again"
                )
            )
        elif result == "no_room":
            self.errors.append(no_room_error(self._store, flow))
        else:
            self.errors.append(_not_one(self._store, flow, 0))


def _unanswered(error: IngestdError, problems: list[str]) -> IngestdError:
    if not isinstance(error, StoreBusyError):
        return error
    if problems:
        return StoreBusyError(f"{error}, or see that it can be asked: {problems[0]}")
    return StoreBusyError(f"{error}, or give it a control socket ([control] socket) to be asked by")


def _not_one(store: str, name: str, count: int) -> FlowNotFoundError:
    if count:
        return FlowNotFoundError(
            f"{count} flows of {store} begin with {name!r}, write more of the id: ingestd ls lists"
            " them"
        )
    return FlowNotFoundError(
        f"{store} has no flow {name!r}: list its flows with: ingestd ls {store}"
    )
