# SPDX-License-Identifier: Apache-2.0
"""The commands nic check, apply, undo, on a made-up interface."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingestd.cli import main
from ingestd.cli.main import build_parser
from ingestd.config.settings import EngineSettings
from ingestd.errors import EngineError
from ingestd.nic.journal import STATE_DIRECTORY
from ingestd.nic.netlink import LinkState
from support.fake_nic import FakeNic

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def nic(monkeypatch: pytest.MonkeyPatch) -> FakeNic:
    nic = FakeNic(driver="bnxt_en")
    nic.mtu = 4148

    def link(_: str) -> LinkState:
        return LinkState(nic.index, nic.mtu, nic.is_up, nic.has_xdp)

    monkeypatch.setattr("ingestd.nic.reading.read_nic", lambda _, **__: nic.read())
    monkeypatch.setattr("ingestd.nic.netlink.read_link", link)
    monkeypatch.setattr("ingestd.nic.work.RealDevice", lambda _: nic)
    return nic


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["nic", *arguments, "--state-dir", str(tmp_path)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


FLAGS = ("--queues", "2", "--port", "7070", "--port", "7071")


def test_check_apply_check_undo_check(nic: FakeNic, run: Run) -> None:
    before = nic.snapshot()
    code, out, _ = run("check", "zc0", *FLAGS)
    assert code == EngineError.exit_code
    assert out.endswith("not ready\n")
    would = "apply would: "
    promised = [line.removeprefix(would) for line in out.splitlines() if line.startswith(would)]
    assert nic.snapshot() == before

    code, out, err = run("apply", "zc0", *FLAGS)
    assert code == 0
    assert out.splitlines()[:-1] == promised
    assert out.splitlines()[-1] == "zc0 is ready: engine.queues = [2, 3]"
    assert "ingestd nic undo zc0" in err

    code, out, _ = run("check", "zc0", *FLAGS)
    assert code == 0
    assert "apply would" not in out
    assert "changes to undo are in" in out
    assert out.endswith("\nready\n")

    code, out, _ = run("undo", "zc0")
    assert code == 0
    assert len(out.splitlines()) == len(promised)
    assert all(line.startswith("undone: ethtool ") for line in out.splitlines())
    assert nic.snapshot() == before
    assert run("undo", "zc0") == (0, "nothing to undo for zc0\n", "")


def test_json(nic: FakeNic, run: Run, tmp_path: Path) -> None:
    def told(*arguments: str) -> dict[str, Any]:
        value = json.loads(run(*arguments, "--json")[1])
        assert isinstance(value, dict)
        return value

    found = told("check", "zc0", "--port", "7070")
    assert found["ready"] is False
    assert found["queues"] == [3]
    assert found["state_file"] is None
    applied = told("apply", "zc0", "--port", "7070")
    assert applied["changes"] == found["apply_would"]
    assert applied["state_file"] == str(tmp_path / "nic-zc0.json")
    assert told("check", "zc0", "--port", "7070")["ready"] is True
    undone = told("undo", "zc0")["undone"]
    assert [one["change"] for one in undone] == applied["changes"][::-1]
    assert {one["fate"] for one in undone} == {"undone"}
    assert told("apply", "zc0", "--rx-ring", "512")["changes"][0].endswith(" rx 512")


def test_apply_twice_changes_nothing_more(nic: FakeNic, run: Run) -> None:
    before = nic.snapshot()
    run("apply", "zc0", "--port", "7070")
    once = nic.snapshot()
    assert run("apply", "zc0", "--port", "7070")[0] == 0
    assert nic.snapshot() == once
    run("apply", "zc0", "--port", "7071")
    assert len(nic.rules()) == 4
    run("undo", "zc0")
    assert nic.snapshot() == before


def test_an_interface_with_too_few_queues(nic: FakeNic, run: Run) -> None:
    nic.queue_count = 1
    nic.now.spread = (0,) * 16
    code, _, err = run("apply", "zc0")
    assert code == EngineError.exit_code
    assert "other traffic needs one" in err
    code, out, _ = run("check", "zc0")
    assert code == EngineError.exit_code
    assert "apply could not prepare it: interface zc0 has 1 rx queues" in out


def test_a_refusal_leaves_nothing_behind(nic: FakeNic, run: Run, tmp_path: Path) -> None:
    before = nic.snapshot()
    nic.refuse["-N"] = "Invalid argument"
    code, _, err = run("apply", "zc0", "--port", "7070")
    assert code == EngineError.exit_code
    assert "`ethtool -N zc0 flow-type tcp4 dst-port 7070 action 3` failed" in err
    assert nic.snapshot() == before
    assert not (tmp_path / "nic-zc0.json").exists()


def test_an_interface_that_is_gone_takes_its_changes_with_it(
    nic: FakeNic, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("apply", "zc0")
    assert (tmp_path / "nic-zc0.json").exists()

    def gone(_: str) -> LinkState:
        raise EngineError("there is no interface zc0")

    monkeypatch.setattr("ingestd.nic.netlink.read_link", gone)
    assert run("undo", "zc0")[0] == 0
    assert not (tmp_path / "nic-zc0.json").exists()
    code, _, err = run("undo", "zc0")
    assert code == EngineError.exit_code
    assert "there is no interface" in err


@pytest.mark.parametrize(
    "flags",
    [
        ["check"],
        ["mend", "zc0"],
        ["check", "zc0", "--port", "0"],
        ["check", "zc0", "--port", "65536"],
        ["apply", "zc0", "--queues", "0"],
        ["apply", "zc0", "--queues", "x"],
        ["undo", "zc0", "--queues", "1"],
    ],
)
def test_usage(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nic", *flags])
    assert ended.value.code == 2
    assert "ingestd: error: " in capsys.readouterr().err


def test_the_daemon_and_the_commands_look_at_one_place() -> None:
    arguments = build_parser().parse_args(["nic", "undo", "zc0"])
    assert arguments.state_dir == EngineSettings().nic_state_dir == STATE_DIRECTORY
