# SPDX-License-Identifier: Apache-2.0
"""The catalogue of one store: fed a segment at a time, read in snapshots.

Invariants: a segment goes in once, as a whole, with all of its flows, in one transaction, and goes
out so; the table of flows is what assembly.py makes of the parts that are in, under the context
that is kept beside them. Nothing that is in is ever changed but by that. One thread feeds; any
may take snapshots, which wait for nobody.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from ingestd.store.catalogue import schema
from ingestd.store.catalogue.rows import (
    FLOW_COLUMNS,
    PART_COLUMNS,
    SegmentFacts,
    flow_row,
    part_rows,
    segments_of_parts,
)
from ingestd.store.catalogue.schema import (
    CatalogueError,
    Context,
    ForeignCatalogueError,
    biased,
    context_of,
    put_context,
)
from ingestd.store.catalogue.snapshot import Snapshot
from ingestd.store.format.segment import SegmentImage
from ingestd.store.read.assembly import assemble
from ingestd.store.read.flows import Anomaly, Flow

# So many flows at a time, about, are written or put together anew: some 2 KiB of memory for each.
FLOWS_AT_ONCE: Final = 20_000

_PUT_PART: Final = f"INSERT INTO parts({PART_COLUMNS}) VALUES ({', '.join('?' * 6)})"  # noqa: S608
_PUT_FLOW: Final = f"INSERT OR REPLACE INTO flows({FLOW_COLUMNS}) VALUES ({', '.join('?' * 16)})"  # noqa: S608


class Catalogue:
    """A catalogue that is there; close it. All but open() and take_away() raise CatalogueError."""

    def __init__(self, path: Path, connection: sqlite3.Connection, reason: str | None) -> None:
        self.path = path
        self.made_because = reason  # why it was made anew; None: it was found
        self._writer = connection

    @classmethod
    def open(cls, directory: Path, store_uuid: bytes) -> Catalogue:
        """Open the catalogue of a store, or make an empty one in its place.

        Raises CatalogueError where neither can be done.
        """
        path = schema.path_of(directory, store_uuid)
        with schema.translated(path):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with schema.translated(path):
                return cls(path, schema.open_found(path, store_uuid), None)
        except ForeignCatalogueError as error:
            reason = str(error)
        except CatalogueError as error:
            if not error.is_damage:
                raise
            reason = f"it was damaged: {error}"
        with schema.translated(path):
            return cls(path, schema.create(path, store_uuid), reason)

    def close(self) -> None:
        """Close it; what was fed stays. A second call does nothing."""
        with suppress(sqlite3.Error):
            self._writer.close()

    def take_away(self) -> None:
        """Close it and take its file away, so that the next opening makes it anew."""
        self.close()
        with suppress(OSError):
            schema.remove(self.path)

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Read what is in now; by one thread, while it is held."""
        with schema.translated(self.path):
            connection = schema.connect(self.path)
            try:
                connection.execute("BEGIN")
                yield Snapshot(connection)
            finally:
                connection.close()

    def put(self, segments: Iterable[SegmentImage]) -> None:
        """Feed segments that do not change any more, with all of their flows.

        Some of them go in together, in one transaction: ids are random, so that each transaction
        writes to all of an index. What the iterable raises is raised; what is in by then stays.
        """
        pending = _Pending()
        for segment in segments:
            assert segment.sequence, segment.index
            rows = list(part_rows(segment))
            flows = {row[0] for row in rows}
            if pending.is_full or not pending.flows.keys().isdisjoint(flows):
                self._write(pending)
                pending = _Pending()
            # What a footer says is here already; what a reading of batches says is cut to that.
            parts = ((segment.index, *row) for row in rows)
            own = [segment] if segment.footer else segments_of_parts(parts)
            with self.snapshot() as snapshot:
                pending.flows.update(_derived(snapshot, flows, snapshot.context, own))
            pending.segments.append(SegmentFacts.of_image(segment).row())
            pending.parts += rows
        self._write(pending)

    def _write(self, pending: _Pending) -> None:
        if not pending.segments:
            return
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO segments(sequence, place, is_closed, facts) VALUES (?, ?, ?, ?)",
                pending.segments,
            )
            # In the order of the indexes, so that each page of them is written once.
            connection.executemany(_PUT_PART, sorted(pending.parts, key=itemgetter(0)))
            connection.executemany(_PUT_FLOW, (row for _, row in sorted(pending.flows.items())))

    def drop(self, sequences: Iterable[int]) -> None:
        """Take segments out that are gone from the store."""
        for sequence in sequences:
            with self._transaction() as connection:
                flows = Snapshot(connection).flow_ids_in([sequence])
                key = (biased(sequence),)
                connection.execute("DELETE FROM parts WHERE sequence = ?", key)
                connection.execute("DELETE FROM segments WHERE sequence = ?", key)
                _derive(connection, flows, context_of(connection))

    def set_context(self, context: Context) -> None:
        """Have the flows put together under a context; nothing is done if they are."""
        with self._transaction() as connection:
            if context_of(connection) == context:
                return
            put_context(connection, context)
            changed = sorted(Snapshot(connection).flow_ids_not_plain())
            for at in range(0, len(changed), FLOWS_AT_ONCE):
                _derive(connection, set(changed[at : at + FLOWS_AT_ONCE]), context)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with schema.translated(self.path):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
            except BaseException:
                with suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
                raise
            self._writer.execute("COMMIT")


def assembled(
    segments: Sequence[SegmentImage], context: Context
) -> tuple[list[Flow], list[Anomaly]]:
    """Return the flows of segments as a reading of the whole store shows them under a daemon."""
    return assemble(
        segments,
        generation=context.generation,
        live=True,
        freed_sequence=int(context.has_evicted),
        is_cut=context.has_damage,
    )


@dataclass
class _Pending:
    """Rows that are to be written in one transaction; no flow is in two of its segments."""

    segments: list[tuple[Any, ...]] = field(default_factory=list)
    parts: list[tuple[Any, ...]] = field(default_factory=list)
    flows: dict[bytes, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        return len(self.flows) >= FLOWS_AT_ONCE


def _derived(
    snapshot: Snapshot,
    flows: Set[bytes],
    context: Context,
    own: Sequence[SegmentImage] = (),
) -> dict[bytes, tuple[Any, ...]]:
    """Return rows of flows, put together from the parts that are in and those of `own` segments."""
    made, anomalies = assembled([*own, *snapshot.parts_of(flows)], context)
    odd = {anomaly.flow for anomaly in anomalies}
    return {flow.flow_id: flow_row(flow, is_odd=flow.flow in odd) for flow in made}


def _derive(connection: sqlite3.Connection, flows: Set[bytes], context: Context) -> None:
    """Put flows together from their parts; those of which nothing is in any more go."""
    rows = _derived(Snapshot(connection), flows, context)
    connection.executemany(_PUT_FLOW, rows.values())
    gone = flows - rows.keys()
    connection.executemany("DELETE FROM flows WHERE flow = ?", ((flow,) for flow in gone))
