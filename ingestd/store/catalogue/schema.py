# SPDX-License-Identifier: Apache-2.0
"""The catalogue's file: its tables, and whether a file that is found is one of this store.

Invariants: a file that is of another store or version, that was copied (a copy may have been made
in the middle of a write), or that SQLite cannot read is taken away, and an empty one is made; so
nothing in a state directory ever keeps a store from being opened, but a directory that cannot be
written. Integers of 64 bits lie in the tables less 2^63, as SQLite's have a sign: their order
stays. A connection is used by one thread at a time.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

APPLICATION_ID: Final = 0x49474354  # "IGCT", in the header of the file
VERSION: Final = 1  # of the tables: another one is thrown away
BUSY_TIMEOUT_S: Final = 10.0
WAL_BYTES_MAX: Final = 16 * 1024 * 1024  # of the log that is kept after a checkpoint
CACHE_KIB: Final = 8 * 1024  # of pages, for a connection

_BIAS: Final = 1 << 63

# What SQLite raises about the machine, and not about what the file holds.
_PASSING: Final = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}

# segments: those that are in; parts: what each has of each flow, records as they lie in its
# footer; flows: what a listing shows, put together from the parts. A flow is `plain` if it is
# the same under every Context.
_TABLES: Final = (
    "CREATE TABLE about(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE segments(sequence INTEGER PRIMARY KEY, place INTEGER NOT NULL,"
    " is_closed INTEGER NOT NULL, facts BLOB NOT NULL)",
    "CREATE TABLE parts(number INTEGER PRIMARY KEY, flow BLOB NOT NULL, sequence INTEGER NOT NULL,"
    " event_rank INTEGER NOT NULL, record_count INTEGER NOT NULL, records BLOB NOT NULL,"
    " crc32c INTEGER NOT NULL)",
    "CREATE UNIQUE INDEX parts_of_flow ON parts(flow, sequence)",
    "CREATE INDEX parts_of_segment ON parts(sequence)",
    "CREATE TABLE flows(number INTEGER PRIMARY KEY, flow BLOB NOT NULL, name TEXT, peer TEXT,"
    " listener TEXT, state TEXT NOT NULL, bytes INTEGER NOT NULL, durable_bytes INTEGER NOT NULL,"
    " started INTEGER NOT NULL, ended INTEGER NOT NULL, checksum TEXT, reason TEXT, protocol TEXT,"
    " labels TEXT, first_offset INTEGER NOT NULL, missing TEXT, is_plain INTEGER NOT NULL)",
    "CREATE UNIQUE INDEX flows_by_id ON flows(flow)",
    "CREATE INDEX flows_by_start ON flows(started, flow)",
    "CREATE INDEX flows_not_sealed ON flows(state, started, flow) WHERE state != 'sealed'",
    "CREATE INDEX flows_not_plain ON flows(flow) WHERE NOT is_plain",
)


class Context(NamedTuple):
    """The facts that the flows of a store depend on beside their records.

    `generation`: the superblock's; `has_evicted`: segments went that shown flows began in;
    `has_damage`: a segment cannot be read, or lies behind the device's end.
    """

    generation: int
    has_evicted: bool
    has_damage: bool


class CatalogueError(Exception):
    """Raised where the catalogue cannot be used now; the store itself has every answer.

    `is_damage`: it will not be any better later, and has to be made anew.
    """

    def __init__(self, text: str, *, is_damage: bool = True) -> None:
        super().__init__(text)
        self.is_damage = is_damage


class ForeignCatalogueError(CatalogueError):
    """Raised where a file is there that is no catalogue of this store."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite and the decoding of rows raise into CatalogueError, naming the file."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        is_damage = code is None or code & 0xFF not in _PASSING
        raise CatalogueError(f"{path}: {error}", is_damage=is_damage) from error
    except OSError as error:
        raise CatalogueError(f"{path}: {error.strerror}", is_damage=False) from error
    except ValueError as error:  # of a row that is no longer what was put in
        raise CatalogueError(f"{path}: {error}") from error


def biased(value: int) -> int:
    """Return an integer of 64 bits without a sign as the tables have it."""
    return value - _BIAS


def unbiased(value: int) -> int:
    """Return what biased() was given."""
    return value + _BIAS


def connect(path: Path, *, is_new: bool = False) -> sqlite3.Connection:
    """Return a connection. Raises sqlite3.Error, also where there is no file."""
    mode = "rwc" if is_new else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,  # transactions begin and end where the code says so
        check_same_thread=False,
        uri=True,
    )
    try:
        # A crash of the machine may undo the last transactions: these are made again.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def create(path: Path, store_uuid: bytes) -> sqlite3.Connection:
    """Make an empty catalogue, whatever lies there. Raises sqlite3.Error, OSError."""
    remove(path)
    # Names of flows and peers are for the daemon's user alone.
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    connection = connect(path, is_new=True)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        connection.execute("BEGIN IMMEDIATE")
        for statement in _TABLES:
            connection.execute(statement)
        about = {"store_uuid": store_uuid, "inode": _inode(path)}
        connection.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        put_context(connection, Context(0, False, False))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def open_found(path: Path, store_uuid: bytes) -> sqlite3.Connection:
    """Return a connection to the catalogue that is there.

    Raises ForeignCatalogueError, saying what is wrong; sqlite3.Error, OSError.
    """
    if not path.exists():
        raise ForeignCatalogueError("there was none")
    connection = connect(path)
    try:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application_id != APPLICATION_ID or version != VERSION:
            raise ForeignCatalogueError(f"it was of version {version}, and {VERSION} is known")
        about = dict(connection.execute("SELECT key, value FROM about").fetchall())
        if about.get("store_uuid") != store_uuid:
            raise ForeignCatalogueError("it was of another store")
        if about.get("inode") != _inode(path):
            raise ForeignCatalogueError("it was a copy")
        context_of(connection)
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
    except BaseException:
        connection.close()
        raise
    return connection


def remove(path: Path) -> None:
    """Take a catalogue away, with what SQLite keeps beside it. Raises OSError."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()


def path_of(directory: Path, store_uuid: bytes) -> Path:
    """Return where the catalogue of a store is kept."""
    return directory / f"{uuid.UUID(bytes=store_uuid)}.sqlite"


def context_of(connection: sqlite3.Connection) -> Context:
    """Return the context that the flows were put together under. Raises ForeignCatalogueError."""
    row = connection.execute("SELECT value FROM about WHERE key = 'context'").fetchone()
    try:
        generation, has_evicted, has_damage = map(int, str(row[0]).split())
    except (TypeError, ValueError):
        raise ForeignCatalogueError("it was not whole") from None
    return Context(generation, bool(has_evicted), bool(has_damage))


def put_context(connection: sqlite3.Connection, context: Context) -> None:
    """Say under which context the flows were put together."""
    text = " ".join(str(int(value)) for value in context)
    connection.execute("INSERT OR REPLACE INTO about VALUES ('context', ?)", (text,))


def _inode(path: Path) -> int:
    """The file's number: a copy has another one."""
    return biased(path.stat().st_ino)
