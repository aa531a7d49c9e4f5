# SPDX-License-Identifier: Apache-2.0
"""The catalogue's file: found again, made anew, and never in the way."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.store.catalogue import schema
from ingestd.store.catalogue.catalogue import Catalogue
from ingestd.store.catalogue.schema import CatalogueError, path_of
from ingestd.store.serve.served_store import ServedStore, open_for_serving
from support.store_builder import Close, Extent, Open, StoreBuilder

ONE, TWO = (bytes([number]) * 16 for number in (1, 2))


@pytest.fixture
def builder() -> StoreBuilder:
    """A store with a flow that is sealed, and one that two segments have parts of."""
    builder = StoreBuilder()
    first = builder.segment(0)
    first.batch(Open(ONE, name="one", labels="a=b\n"), Extent(ONE, b"abc"), Close(ONE))
    first.batch(Open(TWO), Extent(TWO, b"begun"))
    first.close()
    second = builder.segment(2)
    second.batch(Extent(TWO, b" and ended"), Close(TWO))
    second.close()
    return builder


@pytest.fixture
def path(builder: StoreBuilder, tmp_path: Path) -> Path:
    return builder.save(tmp_path / "store.img")


def served(path: Path) -> ServedStore:
    return open_for_serving(str(path), catalogues=path.parent / "catalogues")


def fed(path: Path) -> Path:
    """Have a catalogue fed with all that there is; return its file."""
    with served(path) as store:
        assert store.feeder is not None
        store.feeder.turn()
        assert store.feeder.unfed_count == 0
    return path_of(path.parent / "catalogues", store.superblock.store_uuid)


def shown(store: ServedStore) -> list[tuple[bytes, int, str | None]]:
    assert store.feeder is not None
    answers = store.feeder.answers()
    assert answers is not None
    return [(flow.flow_id, flow.bytes, flow.checksum) for flow in answers.flows()]


def test_a_catalogue_is_found_again(path: Path) -> None:
    file = fed(path)
    assert file.stat().st_mode & 0o777 == 0o600
    with served(path) as store:
        feeder = store.feeder
        assert feeder is not None
        assert feeder.made_because is None
        assert [flow[:2] for flow in shown(store)] == [(ONE, 3), (TWO, 15)]
        feeder.turn()
        assert feeder.unfed_count == 0
        answers = feeder.answers()
        assert answers is not None
        flow = answers.flow(TWO)
        assert flow is not None
        assert [span.segment_index for span in flow.spans] == [0, 2]
        assert answers.flow(bytes(16)) is None


def other_version(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")


def other_store(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE about SET value = x'00' WHERE key = 'store_uuid'")


def copied(file: Path) -> None:
    shutil.copy(file, file.with_suffix(".copy"))
    file.with_suffix(".copy").replace(file)


def without_tables(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TABLE about")


def no_catalogue(file: Path) -> None:
    file.write_bytes(b"something else" * 1000)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (other_version, "of version 2"),
        (other_store, "of another store"),
        (copied, "a copy"),
        (without_tables, "damaged: .*no such table"),
        (no_catalogue, "damaged: .*not a database"),
        (empty, "of version 0"),
        (Path.unlink, "there was none"),
    ],
)
def test_what_is_no_catalogue_of_the_store_is_made_anew(
    path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(fed(path))
    with served(path) as store:
        feeder = store.feeder
        assert feeder is not None
        assert feeder.made_because is not None
        assert re.search(reason, feeder.made_because)
        expected = shown(store)  # from the segments
        feeder.turn()
        assert feeder.unfed_count == 0
        assert shown(store) == expected
        assert len(expected) == 2


def test_a_catalogue_damaged_while_it_is_used_is_made_anew(path: Path) -> None:
    file = fed(path)
    with served(path) as store:
        feeder = store.feeder
        assert feeder is not None
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE parts SET records = x'00'")
        source = store.flow_source()
        flow = source.flow(TWO)  # the store itself is read
        assert flow is not None
        assert flow.bytes == 15
        with sqlite3.connect(file) as connection:
            connection.execute("DELETE FROM segments")
        with pytest.raises(CatalogueError):  # it would be fed what it has
            feeder.turn()
        assert not feeder.is_ready
        assert [flow.flow_id for flow in store.flow_source().flows()] == [ONE, TWO]
        feeder.turn()
        assert feeder.unfed_count == 0
        assert [flow[:2] for flow in shown(store)] == [(ONE, 3), (TWO, 15)]


def test_a_directory_that_cannot_be_made_is_no_reason_not_to_open(path: Path) -> None:
    (path.parent / "catalogues").write_text("a file")
    with served(path) as store:
        assert store.feeder is not None
        assert not store.feeder.is_ready
        assert [flow.flow_id for flow in store.flow_source().flows()] == [ONE, TWO]
        assert store.find_flows({ONE}, lambda: False).flows[ONE].bytes == 3
        with pytest.raises(CatalogueError, match="catalogues"):
            store.feeder.turn()


def test_the_same_sequence_of_another_life_is_fed_anew(builder: StoreBuilder, path: Path) -> None:
    """A store that was put back from a copy uses sequences again, with other flows."""
    fed(path)
    other = StoreBuilder()
    other.now_ns()
    segment = other.segment(0)
    segment.batch(Open(TWO), Extent(TWO, b"another"), Close(TWO))
    segment.close()
    other.save(path)
    with served(path) as store:
        assert shown(store)[0][:2] == (TWO, 7)
        assert store.feeder is not None
        store.feeder.turn()
        assert [flow[:2] for flow in shown(store)] == [(TWO, 7)]


def test_what_is_uncertain_is_no_damage(tmp_path: Path) -> None:
    directory = tmp_path / "gone" / "catalogues"
    catalogue = Catalogue.open(directory, ONE)
    catalogue.close()
    path_of(directory, ONE).unlink()
    with pytest.raises(CatalogueError) as caught, catalogue.snapshot():
        pass
    assert not caught.value.is_damage


def test_an_opening_with_a_catalogue_puts_small_segments_together(tmp_path: Path) -> None:
    builder = StoreBuilder(segment_count=8)
    flows = [bytes([number]) * 16 for number in range(1, 6)]
    for index, flow in enumerate(flows):
        segment = builder.segment(index)
        segment.batch(Open(flow), Extent(flow, flow), Close(flow))
        segment.close()
    path = builder.save(tmp_path / "store.img")
    with served(path) as store:
        assert store.recovery.flows == len(flows)
        assert store.recovery.segments_compacted == len(flows)
        assert store.feeder is not None
        expected = [(flow, 16) for flow in flows]
        assert sorted(flow[:2] for flow in shown(store)) == expected
        store.feeder.turn()
        assert store.feeder.unfed_count == 0
        assert sorted(flow[:2] for flow in shown(store)) == expected
    with served(path) as store:
        assert store.recovery.segments_compacted == 0
        assert store.recovery.flows == len(flows)
