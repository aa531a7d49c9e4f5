# SPDX-License-Identifier: Apache-2.0
"""`ingestd rm`: remove flows from a store, whether or not a daemon serves it.

Invariant: a line on standard output says of a flow that it is removed, durably;
all others are errors. Owned by the main thread.
"""

from __future__ import annotations

from argparse import Namespace

from ingestd.cli.output import note, safe
from ingestd.errors import UsageError
from ingestd.sizes import full_size


def run_rm(arguments: Namespace) -> int:
    """Remove each flow; raise what kept the first of them, in sentences about all."""
    from ingestd.store.reclaim.deletion import remove_flows

    if not arguments.flows:  # of "-- --" argparse leaves nothing
        raise UsageError("no flow is named: ingestd ls shows their ids")
    report = remove_flows(arguments.store, arguments.flows)
    errors = []
    for outcome in report.outcomes:
        if outcome.error is None:
            print(f"flow {outcome.flow}: removed, {full_size(outcome.bytes_count)}")
        else:
            errors.append(outcome.error)
    if report.is_served:
        note("the daemon gives segments back once nothing in them is kept")
    else:
        note(f"{report.segments_freed_count} segments of {safe(arguments.store)} are free by it")
    if errors:
        raise type(errors[0])("\n".join(str(error) for error in errors))
    return 0
