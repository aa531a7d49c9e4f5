# SPDX-License-Identifier: Apache-2.0
"""Changes made and undone: all or nothing, after a crash at any point, and twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ingestd.errors import EngineError, SystemCallError
from ingestd.nic import journal as journal_module
from ingestd.nic.journal import journal_path, open_journal
from ingestd.nic.plan import Steered, plan_changes
from ingestd.nic.state import SPLIT_ON
from ingestd.nic.work import apply, undo
from support.fake_nic import CrashError, FakeNic

WANTED = [
    Steered((("tcp4", 7070), ("tcp6", 7070)), (2, 3)),
    Steered((("tcp4", 7071),), (1,)),
]
CHANGES_COUNT = 7  # rings, ntuple, spread, context, three rules


def _apply(nic: FakeNic, directory: Path) -> None:
    with open_journal("zc0", nic.index, str(directory)) as journal:
        apply(nic, journal, plan_changes(nic.read(), WANTED))


def _undo(nic: FakeNic, directory: Path) -> list[str]:
    with open_journal("zc0", nic.index, str(directory)) as journal:
        return [fate for _, fate in undo(nic, journal)]


def test_there_and_back(tmp_path: Path) -> None:
    nic = FakeNic()
    before = nic.snapshot()
    _apply(nic, tmp_path)
    assert nic.now.rings == {"rx": 64, "tcp_data_split": SPLIT_ON, "hds_thresh": 0}
    assert nic.feature("ntuple-filters").is_on
    assert set(nic.now.spread) == {0}
    assert nic.rules() == [
        ("tcp4", 7070, "RSS context 1"),
        ("tcp6", 7070, "RSS context 1"),
        ("tcp4", 7071, "queue 1"),
    ]
    assert len(json.loads(journal_path("zc0", str(tmp_path)).read_text())["changes"]) == (
        CHANGES_COUNT
    )
    assert _undo(nic, tmp_path) == ["undone"] * CHANGES_COUNT
    assert nic.snapshot() == before
    assert not journal_path("zc0", str(tmp_path)).exists()
    assert _undo(nic, tmp_path) == []


@pytest.mark.parametrize("is_made", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(CHANGES_COUNT))
def test_a_crash_at_any_change_can_be_undone(tmp_path: Path, at: int, is_made: bool) -> None:
    nic = FakeNic()
    before = nic.snapshot()
    nic.crash_at, nic.crash_after = at, is_made
    with pytest.raises(CrashError):
        _apply(nic, tmp_path)
    fates = _undo(nic, tmp_path)
    assert fates == [*([] if is_made else ["gone"]), *["undone"] * (at + is_made)]
    assert nic.snapshot() == before


@pytest.mark.parametrize("at", range(CHANGES_COUNT))
def test_a_crash_while_undoing_can_be_undone(tmp_path: Path, at: int) -> None:
    nic = FakeNic()
    before = nic.snapshot()
    _apply(nic, tmp_path)
    nic.crash_at, nic.crash_after = CHANGES_COUNT + at, True
    with pytest.raises(CrashError):
        _undo(nic, tmp_path)
    _undo(nic, tmp_path)
    assert nic.snapshot() == before


def test_a_crash_between_apply_and_apply_adds_only_what_is_missing(tmp_path: Path) -> None:
    nic = FakeNic()
    before = nic.snapshot()
    nic.crash_at = 4
    with pytest.raises(CrashError):
        _apply(nic, tmp_path)
    nic.crash_at = None
    _apply(nic, tmp_path)
    assert len(nic.rules()) == 3
    _undo(nic, tmp_path)
    assert nic.snapshot() == before


@pytest.mark.parametrize(
    "refused", ["-G", "-K", "-X zc0 equal", "-X zc0 context new", "-N zc0 flow-type tcp6"]
)
def test_a_refusal_undoes_what_was_made(tmp_path: Path, refused: str) -> None:
    nic = FakeNic()
    before = nic.snapshot()
    nic.refuse[refused] = "Invalid argument"
    with pytest.raises(EngineError, match="Invalid argument"):
        _apply(nic, tmp_path)
    assert nic.snapshot() == before
    assert not journal_path("zc0", str(tmp_path)).exists()


def test_a_refusal_of_the_undo_as_well_says_what_to_do(tmp_path: Path) -> None:
    nic = FakeNic()
    nic.refuse = {"-N": "Invalid argument", "-X zc0 context 1 delete": "Device or resource busy"}
    with pytest.raises(EngineError, match=r"Invalid argument.*busy.*ingestd nic undo zc0"):
        _apply(nic, tmp_path)
    nic.refuse.clear()
    assert _undo(nic, tmp_path) == ["undone"] * 4


def test_a_queue_that_is_still_held_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nic = FakeNic()
    before = nic.snapshot()
    _apply(nic, tmp_path)
    nic.refuse["-G"] = "Device or resource busy"
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            nic.refuse.clear()

    monkeypatch.setattr("ingestd.nic.work.time.sleep", sleep)
    with open_journal("zc0", nic.index, str(tmp_path)) as journal:
        assert len(undo(nic, journal, retry_s=60)) == CHANGES_COUNT
    assert len(waited) == 3
    assert nic.snapshot() == before


def test_what_somebody_changed_since_stays(tmp_path: Path) -> None:
    nic = FakeNic()
    _apply(nic, tmp_path)
    nic.now.rings["hds_thresh"] = 100
    nic.now.spread = tuple(i % 2 for i in range(16))
    del nic.now.rules[0]
    nic.now.rules[2]["port"] = 9999
    fates = _undo(nic, tmp_path)
    # rules newest first, the context that a rule left, spread, ntuple, rings
    assert fates == [
        "changed since",
        "undone",
        "gone",
        "undone",
        "changed since",
        "undone",
        "undone",
    ]
    assert nic.now.rings["hds_thresh"] == 100
    assert nic.now.rings["tcp_data_split"] != SPLIT_ON
    assert set(nic.now.spread) == {0, 1}


def test_rules_of_others_stay(tmp_path: Path) -> None:
    nic = FakeNic()
    nic.now.features["ntuple-filters"] = True
    nic.run(["-N", "zc0", "flow-type", "tcp4", "dst-port", "22", "action", "0"])
    before = nic.snapshot()
    _apply(nic, tmp_path)
    _undo(nic, tmp_path)
    assert nic.snapshot() == before


def test_one_at_a_time(tmp_path: Path) -> None:
    with (
        open_journal("zc0", 7, str(tmp_path)),
        pytest.raises(EngineError, match="in the hands of a running ingestd"),
        open_journal("zc0", 7, str(tmp_path)),
    ):
        pass
    with open_journal("zc0", 7, str(tmp_path)), open_journal("zc1", 8, str(tmp_path)):
        pass


@pytest.mark.parametrize("what", ["reboot", "made anew"])
def test_after_a_reboot_there_is_nothing_to_undo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    nic = FakeNic()
    _apply(nic, tmp_path)
    changed = nic.snapshot()
    if what == "reboot":
        monkeypatch.setattr(journal_module, "boot_id", lambda: "another")
    else:
        nic.index += 1
    assert _undo(nic, tmp_path) == []
    assert nic.snapshot() == changed
    assert not journal_path("zc0", str(tmp_path)).exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version": 1}', "\0\0\0"])
def test_a_file_that_is_not_ours(tmp_path: Path, content: str) -> None:
    journal_path("zc0", str(tmp_path)).write_text(content)
    with (
        pytest.raises(EngineError, match="does not say what was changed of zc0"),
        open_journal("zc0", 7, str(tmp_path)),
    ):
        pass


def test_without_its_file_nothing_is_changed(tmp_path: Path) -> None:
    nic = FakeNic()
    before = nic.snapshot()
    journal_path("zc0", str(tmp_path)).with_suffix(".new").mkdir()
    with pytest.raises(SystemCallError, match="cannot be written"):
        _apply(nic, tmp_path)
    assert nic.snapshot() == before
    assert nic.done == []


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SystemCallError, match=r"engine\.nic_state_dir"),
        open_journal("zc0", 7, str(tmp_path / "file")),
    ):
        pass


@pytest.mark.parametrize("suffix", [".new", ".lock"])
def test_no_link_is_followed(tmp_path: Path, suffix: str) -> None:
    """Whoever owns the directory must not make root write elsewhere."""
    nic = FakeNic()
    (tmp_path / "victim").write_text("precious")
    path = journal_path("zc0", str(tmp_path)).with_suffix(suffix)
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(SystemCallError):
        _apply(nic, tmp_path)
    assert (tmp_path / "victim").read_text() == "precious"
    assert nic.done == []
