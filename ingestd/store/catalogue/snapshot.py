# SPDX-License-Identifier: Apache-2.0
"""A snapshot of the catalogue: what it says at one moment, whatever is fed meanwhile.

Invariant: all that one snapshot returns is of one transaction. Owned by one thread at a time;
CatalogueError, or sqlite3.Error, says that it cannot be read.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from itertools import islice
from typing import Any, Final

from ingestd.store.catalogue.rows import (
    FLOW_COLUMNS,
    PART_COLUMNS,
    SegmentFacts,
    flow_of_row,
    segments_of_parts,
)
from ingestd.store.catalogue.schema import Context, biased, context_of, unbiased
from ingestd.store.format.segment import SegmentImage
from ingestd.store.read.flow_source import FlowFilter, FlowOrder, FlowSort
from ingestd.store.read.flows import STATE_SEALED, Flow

# SQLITE_MAX_VARIABLE_NUMBER was 999 before 3.32.
VARIABLES_MAX: Final = 900
_ORDERS: Final = {
    FlowSort.STARTED: "started",
    FlowSort.ENDED: "ended",
    FlowSort.NAME: "coalesce(name, '')",
    FlowSort.BYTES: "bytes",
}


class Snapshot:
    """Reads in the transaction that a connection is in."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.context: Context = context_of(connection)

    def sequences(self) -> set[int]:
        """Return the sequences of the segments that are in."""
        rows = self._connection.execute("SELECT sequence FROM segments")
        return {unbiased(sequence) for (sequence,) in rows}

    def segments(self) -> list[SegmentFacts]:
        """Return the segments that are in, in the order of their sequences."""
        rows = self._connection.execute(
            "SELECT sequence, place, is_closed, facts FROM segments ORDER BY sequence"
        )
        return [SegmentFacts.of_row(*row) for row in rows]

    def flow_ids_in(self, sequences: Iterable[int]) -> set[bytes]:
        """Return the ids of all flows that have anything in these segments."""
        found: set[bytes] = set()
        for sequence in sequences:
            rows = self._connection.execute(
                "SELECT flow FROM parts WHERE sequence = ?", (biased(sequence),)
            )
            found.update(flow for (flow,) in rows)
        return found

    def flow_ids_not_plain(self) -> set[bytes]:
        """Return the ids of the flows that are not the same under every context."""
        rows = self._connection.execute("SELECT flow FROM flows WHERE NOT is_plain")
        return {flow for (flow,) in rows}

    def parts_of(self, flows: Set[bytes], gone: Set[int] = frozenset()) -> list[SegmentImage]:
        """Return segments with what they have of these flows, `gone` sequences left out."""
        return segments_of_parts(self._part_rows(flows, {biased(sequence) for sequence in gone}))

    def _part_rows(self, flows: Set[bytes], gone: Set[int]) -> Iterator[tuple[Any, ...]]:
        ids = iter(sorted(flows))  # in the order of the index
        while chosen := list(islice(ids, VARIABLES_MAX)):
            marks = ",".join("?" * len(chosen))
            # Events of a segment keep their order, as a flow has one part of each segment.
            rows = self._connection.execute(
                f"SELECT place, {PART_COLUMNS} FROM parts JOIN segments USING (sequence)"  # noqa: S608
                f" WHERE flow IN ({marks})",
                chosen,
            )
            yield from (row for row in rows if row[2] not in gone)

    def flows(self, wanted: FlowFilter, order: FlowOrder) -> Iterator[Flow]:
        """Give the flows that match, in order, as they were put together when they were fed."""
        conditions, values = _conditions(wanted)
        direction = " DESC" if order.is_descending else ""
        key = _ORDERS[order.sort]
        rows = self._connection.execute(
            f"SELECT {FLOW_COLUMNS} FROM flows{conditions}"  # noqa: S608
            f" ORDER BY {key}{direction}, flow{direction}",
            values,
        )
        # Names and labels are compared as everywhere else, by the filter itself.
        return filter(wanted.matcher(), map(flow_of_row, rows))

    def flow_ids(self) -> Iterator[bytes]:
        """Give the ids of all flows that are in, removed ones included."""
        rows = self._connection.execute("SELECT flow FROM flows INDEXED BY flows_by_id")
        return (flow for (flow,) in rows)

    def flow_counts(self, flows: Set[bytes] | None = None) -> Counter[str]:
        """Return how many flows are in, by state; or how many of these."""
        if flows is None:
            # In these words the partial index answers: most flows are sealed.
            rows = self._connection.execute(
                "SELECT state, count(*) FROM flows WHERE state != 'sealed' GROUP BY state"
            )
            counts = Counter(dict(rows.fetchall()))
            (total,) = self._connection.execute("SELECT count(*) FROM flows").fetchone()
            counts[STATE_SEALED] = total - counts.total()
            return counts
        states = (
            self._connection.execute("SELECT state FROM flows WHERE flow = ?", (flow,)).fetchone()
            for flow in flows
        )
        return Counter(row[0] for row in states if row is not None)


def _conditions(wanted: FlowFilter) -> tuple[str, list[Any]]:
    """The part of a filter that SQLite can do itself."""
    found: list[tuple[str, list[Any]]] = []
    if wanted.states:
        marks = ",".join("?" * len(wanted.states))
        found.append((f"state IN ({marks})", sorted(wanted.states)))
    if wanted.listener is not None:
        found.append(("listener = ?", [wanted.listener]))
    if wanted.since_ns is not None:
        found.append(("started >= ?", [_bound(wanted.since_ns)]))
    if wanted.until_ns is not None:
        found.append(("started < ?", [_bound(wanted.until_ns)]))
    text = " AND ".join(condition for condition, _ in found)
    return f" WHERE {text}" if text else "", [value for _, values in found for value in values]


def _bound(time_ns: int) -> int:
    """A time that a user may have chosen outside of what the tables hold."""
    return biased(max(0, min(time_ns, 2**64 - 1)))
