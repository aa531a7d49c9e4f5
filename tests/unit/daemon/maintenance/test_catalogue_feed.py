# SPDX-License-Identifier: Apache-2.0
"""The thread that feeds a catalogue: what it logs, and that nothing ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingestd.daemon.maintenance.catalogue_feed import CatalogueFeed
from ingestd.log import Log
from ingestd.store.serve.served_store import ServedStore, open_for_serving
from support.fake_log import Recorder
from support.scene import wait_for
from support.store_builder import Close, Extent, Open, StoreBuilder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    builder = StoreBuilder()
    segment = builder.segment(0)
    segment.batch(Open(b"\1" * 16), Extent(b"\1" * 16, b"abc"), Close(b"\1" * 16))
    segment.close()
    return builder.save(tmp_path / "store.img")


def feed_of(store: ServedStore, recorder: Recorder) -> CatalogueFeed:
    assert store.feeder is not None
    return CatalogueFeed("data", store.feeder, Log(recorder, "info"))


def end(feed: CatalogueFeed) -> None:
    feed.stop()
    feed.periodic.thread.join()


def test_that_all_is_fed_is_logged_once(path: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    with open_for_serving(str(path), catalogues=tmp_path / "state" / "catalogue") as store:
        feed = feed_of(store, recorder)
        feed.start()
        wait_for(lambda: recorder.names(), "the log line")
        end(feed)
        feed._turn()
        assert recorder.names() == ["catalogue_fed"]
        assert recorder.fields("catalogue_fed")[0]["store"] == "data"
        assert recorder.fields("catalogue_fed")[0]["segments_open"] == 0


def test_a_catalogue_that_cannot_be_made_is_logged_and_tried_again(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file")
    recorder = Recorder()
    with open_for_serving(str(path), catalogues=tmp_path / "state" / "catalogue") as store:
        feed = feed_of(store, recorder)
        feed.start()
        wait_for(lambda: recorder.names(), "the log line")
        assert feed.periodic.thread.is_alive()
        assert recorder.names()[0] == "catalogue_failed"
        fields = recorder.fields("catalogue_failed")[0]
        assert "Not a directory" in fields["error"]
        assert "trace" not in fields
        assert [flow.bytes for flow in store.flow_source().flows()] == [3]
        (tmp_path / "state").unlink()
        wait_for(lambda: "catalogue_fed" in recorder.names(), "another try")
        end(feed)
