# SPDX-License-Identifier: Apache-2.0
"""The doctor: what it looks at, what it predicts, and its exit code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ingestd.cli import main
from ingestd.config.settings import MIB, Settings, StoreSettings
from ingestd.daemon.machine.direct_io import DirectProfile
from ingestd.daemon.workers import zcrx
from ingestd.daemon.workers.zcrx import wanted_flows
from ingestd.doctor import examine as examine_module
from ingestd.doctor.capacity import Capacity, capacity_finding, capacity_of
from ingestd.doctor.examine import Report, examine
from ingestd.doctor.storage import storage_findings
from ingestd.errors import EngineError, NotAStoreError
from ingestd.nic.plan import plan_changes
from ingestd.nic.work import make
from ingestd.store.create.formatting import format_store
from support.facts import ALL_FEATURES, CAP_ALL, CAP_NONE
from support.fake_core import CoreFault, FakeCore
from support.fake_nic import FakeNic

NVME = DirectProfile(4, 512, 0, 1024)
VIRTIO = DirectProfile(512, 512, 0, 1024)
TABLES: dict[str, Any] = {
    "store": {"data": {"path": os.devnull}},
    "listener": {"in": {"address": "0.0.0.0:7070", "store": "data"}},
    "engine": {"kind": "zcrx", "interface": "zc0", "queues": [3]},
}


class Bench:
    """A machine on which everything is as zero-copy receive wants it."""

    def __init__(self) -> None:
        self.core = FakeCore()
        self.core.features = dict(ALL_FEATURES)
        self.nic = FakeNic(driver="bnxt_en")
        self.nic.mtu = 4148
        self.profile = NVME
        self.engine: dict[str, Any] = {}
        for change in plan_changes(self.nic.read(), wanted_flows(self.settings)):
            make(self.nic, change)

    @property
    def settings(self) -> Settings:
        return Settings.model_validate(TABLES | {"engine": TABLES["engine"] | self.engine})

    def examine(self) -> Report:
        return examine(
            self.settings,
            self.core,
            read=lambda _: self.nic.read(),
            profile_of=lambda _: self.profile,
            room=lambda _: Capacity(8, 8),
            ethtool_of=lambda _: self.nic.ethtool,
        )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    monkeypatch.setattr(zcrx, "own_status", lambda: CAP_ALL)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("HugePages_Total: 1000\nHugePages_Free: 1000\n")
    monkeypatch.setattr(examine_module, "MEMINFO_PATH", meminfo)
    uname = os.uname_result(("Linux", "made-up", "7.3.4", "", "x86_64"))
    monkeypatch.setattr(examine_module.os, "uname", lambda: uname)
    return Bench()


def test_ready(bench: Bench) -> None:
    report = bench.examine()
    assert report.is_ready
    assert report.engine == "zcrx"
    assert report.ratios == {"data, IPv4": 1.0}
    assert list(report.sections) == ["machine", "interface zc0", "store data"]
    found = {finding.subject: finding.verdict for finding in report.findings}
    assert found.pop("device queue") == "unknown", "/dev/null is no disk"
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize(("mtu", "ratio"), [(1500, 1024 / 1448), (4148, 1.0), (9000, 8704 / 8948)])
def test_ratio_by_mtu(bench: Bench, mtu: int, ratio: float) -> None:
    bench.nic.mtu, bench.profile = mtu, VIRTIO
    assert bench.examine().ratios == {"data, IPv4": ratio}


def test_a_store_that_cannot_be_written_to_stops_every_engine(bench: Bench) -> None:
    def refuse(path: str) -> DirectProfile:
        raise NotAStoreError(f"{path} cannot be opened for direct I/O")

    bench.engine = {"kind": "recv"}
    report = examine(
        bench.settings, bench.core, lambda _: bench.nic.read(), refuse, lambda _: Capacity(8, 8)
    )
    assert report.engine == "none"
    assert "cannot be opened for direct I/O" in report.reason


def test_without_an_interface_it_is_what_serve_does(
    tmp_path: Path, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """`serve --store` runs engine recv; so the doctor must not say that it would not start."""
    store = tmp_path / "store"
    format_store(
        str(store), size_bytes=16 * MIB, segment_bytes=None, zero=False, label="", force=False
    )
    assert main(["doctor", "--store", str(store)]) == 0
    shown = capsys.readouterr().out
    assert "serve would run engine recv" in shown
    assert "FAIL" not in shown


def test_not_ready(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zcrx, "own_status", lambda: CAP_NONE)
    report = bench.examine()
    assert not report.is_ready
    assert report.engine == "none"
    assert "CAP_NET_ADMIN" in report.reason
    bench.engine = {"kind": "auto"}
    assert bench.examine().engine == "recv"


def test_the_prediction_is_what_serve_does(bench: Bench) -> None:
    """Both ask the same function; an obstacle of the interface counts in both."""
    bench.nic.has_xdp = True
    report = bench.examine()
    assert "XDP" in report.reason
    bench.nic.has_xdp = False
    bench.engine = {"kind": "auto"}
    assert bench.examine().engine == "zcrx"
    bench.engine = {"kind": "recv"}
    assert bench.examine().engine == "recv"


def test_what_the_daemon_will_prepare_counts(bench: Bench) -> None:
    bench.nic.now = FakeNic().now
    assert bench.examine().engine == "none"
    bench_done = list(bench.nic.done)
    bench.engine = {"manage_nic": True}
    report = bench.examine()
    assert report.is_ready
    assert report.engine == "zcrx"
    found = {finding.subject: finding for finding in report.findings}
    assert "ethtool -X zc0 equal 3" in found["manage_nic"].text
    assert found.pop("device queue").verdict == "unknown"
    unknown = found.pop("trial of a rule")
    assert (unknown.verdict, bench.nic.done) == ("unknown", bench_done), "rules are off as yet"
    assert {finding.verdict for finding in found.values()} == {"ok"}
    bench.nic.has_rules = False
    assert "has no steering rules" in bench.examine().reason


def test_a_card_that_takes_no_rules(bench: Bench) -> None:
    bench.nic.now.rules.clear()
    bench.nic.refuse["-N zc0 flow-type"] = "Invalid argument"
    found = {finding.subject: finding for finding in bench.examine().findings}
    assert found["trial of a rule"].verdict == "warn", "flows arrive by copy"
    bench.engine = {"manage_nic": True}
    assert "Invalid argument" in bench.examine().reason
    bench.nic.refuse.clear()
    assert bench.examine().is_ready
    assert bench.nic.now.rules == {}


def test_an_interface_that_is_not_there(bench: Bench) -> None:
    def missing(_: str) -> Any:
        raise EngineError("there is no interface zc0: look")

    report = examine(bench.settings, bench.core, missing, lambda _: NVME)
    assert report.sections["interface zc0"][0].text == "there is no interface zc0: look"
    assert not report.is_ready


def test_no_interface_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.engine = {"kind": "auto", "interface": None, "queues": []}
    monkeypatch.setattr(zcrx, "own_status", lambda: CAP_NONE)
    report = bench.examine()
    assert report.engine == "recv"
    assert report.is_ready, "a machine without such a card lacks nothing"
    assert not report.wants_zcrx
    bench.engine |= {"kind": "zcrx"}
    report = bench.examine()
    assert report.engine == "none"
    assert not report.is_ready


def test_a_file_that_is_no_store_stops_every_engine(
    tmp_path: Path, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "empty"
    path.write_bytes(bytes(MIB))
    assert main(["doctor", "--store", str(path)]) == EngineError.exit_code
    shown = capsys.readouterr().out
    assert "serve would not start" in shown
    assert "ready" not in shown


def test_areas_that_recv_may_not_lock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.engine = {"kind": "recv"}
    monkeypatch.setattr(examine_module, "locked_memory_limit", lambda: 4096)
    monkeypatch.setattr(examine_module, "own_status", lambda: CAP_NONE)
    report = bench.examine()
    assert report.engine == "none"
    assert "RLIMIT_MEMLOCK" in report.reason


def test_auto_with_a_card_that_cannot_runs_recv(
    command: Path, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.engine = {"kind": "auto"}
    bench.nic.has_xdp = True
    assert main(["doctor", "-c", str(command)]) == 0
    shown = capsys.readouterr().out
    assert "recv: ready\nzcrx: not ready, 1 thing stands in the way\n" in shown
    assert "FAIL  XDP" in shown


def test_without_a_store_the_queues_are_looked_at_all_the_same(bench: Bench) -> None:
    settings = bench.settings.model_copy(update={"store": {}, "listener": {}})
    bench.nic.now.spread = (0, 1, 2, 3)
    report = examine(settings, bench.core, read=lambda _: bench.nic.read())
    found = {finding.subject: finding.verdict for finding in report.findings}
    assert found["queue 3"] == "ok"
    assert found["RSS"] == "fail"


def test_device_less(bench: Bench) -> None:
    bench.engine = {"interface": "none", "queues": []}
    report = bench.examine()
    assert report.engine == "zcrx"
    assert report.ratios == {}


def test_a_kernel_that_does_not_let_us_ask(bench: Bench) -> None:
    bench.core.faults["kernel_features"] = CoreFault(1, "io_uring_setup", "ring")
    (finding,) = [f for f in bench.examine().findings if f.subject == "kernel"]
    assert finding.verdict == "fail"
    assert "io_uring" in finding.text


def test_a_ring_that_eats_the_area(bench: Bench) -> None:
    bench.nic.now.rings["rx"] = 16384
    bench.engine = {"rx_buf": "64KiB"}
    (finding,) = [f for f in bench.examine().findings if f.subject.startswith("rx ring")]
    assert finding.verdict == "warn"
    assert "make the area" in finding.remedy or "smaller" in finding.remedy


def test_a_ring_that_leaves_nothing_is_refused(bench: Bench) -> None:
    """mlx5 holds 16 KiB for each packet at an MTU of 9000: 16384 of them are an area of 256 MiB."""
    bench.nic.driver_name, bench.nic.mtu = "mlx5_core", 9000
    bench.nic.now.rings["rx"] = 16384
    report = bench.examine()
    assert report.engine == "none"
    assert "268435456 bytes" in report.reason
    assert "ethtool -G zc0 rx 4096" in report.reason


# --- Stores ---------------------------------------------------------------------------


def _queue(tmp_path: Path, **values: str) -> Path:
    status = os.stat(tmp_path)
    number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    queue = tmp_path / "sys" / number / "queue"
    queue.mkdir(parents=True)
    for name, value in values.items():
        (queue / name).write_text(value + "\n")
    return tmp_path / "sys"


@pytest.mark.parametrize(
    ("cache", "fua", "text"),
    [
        ("write through", "0", "a flush costs nothing"),
        ("write back", "1", "with FUA"),
        ("write back", "0", "no FUA"),
    ],
)
def test_write_cache(tmp_path: Path, cache: str, fua: str, text: str) -> None:
    sysfs = _queue(tmp_path, write_cache=cache, fua=fua, max_segments="127")
    profile, findings = storage_findings(str(tmp_path), lambda _: NVME, sysfs)
    assert profile == NVME
    found = {finding.subject: finding for finding in findings}
    assert text in found["write cache"].text
    assert "max_segments 127" in found["device queue"].text
    assert {finding.verdict for finding in findings} == {"ok"}


@pytest.mark.parametrize(
    ("limits", "verdict", "text", "remedy"),
    [
        ({"max_segments": "256"}, "ok", "is up to 4 commands", "write_bytes_max = 1048576"),
        ({"max_segments": "127"}, "ok", "is up to 9 commands", "engine.rx_buf"),
        ({"max_segments": "1024"}, "ok", "takes all 1024", ""),
        ({}, "unknown", "not reported", "iostat -x"),
    ],
)
def test_pieces_of_a_command(
    tmp_path: Path, limits: dict[str, str], verdict: str, text: str, remedy: str
) -> None:
    sysfs = _queue(tmp_path, write_cache="write back", **limits)
    _, findings = storage_findings(str(tmp_path), lambda _: NVME, sysfs)
    found = {finding.subject: finding for finding in findings}["pieces"]
    assert found.verdict == verdict
    assert text in found.text
    assert remedy in found.remedy


def test_a_device_that_takes_less(tmp_path: Path) -> None:
    _, findings = storage_findings(
        str(tmp_path), lambda _: DirectProfile(512, 4096, 4095, 1024), tmp_path
    )
    found = {finding.subject: finding for finding in findings}
    assert found["alignment"].verdict == found["virtual boundary"].verdict == "warn"
    assert "4096 bytes" in found["alignment"].remedy
    assert "does not show a single device" in found["device queue"].text


def test_a_store_that_cannot_be_opened() -> None:
    def refuse(_: str) -> DirectProfile:
        raise NotAStoreError("it cannot: name another")

    profile, (finding,) = storage_findings("/nowhere", refuse)
    assert profile is None
    assert (finding.verdict, finding.text) == ("fail", "it cannot: name another")


@pytest.mark.parametrize(
    ("free", "more", "verdict", "part"),
    [
        (10, {}, "ok", "10 of 100 segments are free (10.0%)"),
        (9, {}, "warn", "less than warn_free_percent = 10"),
        (9, {"warn_free_percent": 9}, "ok", "9 of 100"),
        (1, {"warn_free_percent": 0}, "ok", "1 of 100"),
        (0, {"warn_free_percent": 0}, "warn", "new flows are refused"),
        (0, {"on_full": "overwrite-oldest"}, "ok", "the oldest is overwritten"),
    ],
)
def test_room(free: int, more: dict[str, Any], verdict: str, part: str) -> None:
    store = StoreSettings.model_validate({"path": "/s", **more})
    finding = capacity_finding(store, lambda _: Capacity(free, 100))
    assert finding.verdict == verdict
    assert part in finding.text
    assert ("ingestd ls /s" in finding.remedy) == (verdict == "warn")


def test_room_of_a_store_and_of_none(tmp_path: Path) -> None:
    path = tmp_path / "one.store"
    superblock = format_store(
        str(path), size_bytes=64 * MIB, segment_bytes=None, zero=False, label="", force=False
    )
    assert capacity_of(str(path)) == (superblock.segment_count, superblock.segment_count)
    nowhere = StoreSettings(path=str(tmp_path / "nowhere"))
    finding = capacity_finding(nowhere)
    assert (finding.verdict, finding.text) == ("fail", f"{nowhere.path} does not exist")
    assert "ingestd format" in finding.remedy


def test_a_full_store_is_not_in_the_way_of_zcrx(bench: Bench) -> None:
    report = examine(
        bench.settings,
        bench.core,
        lambda _: bench.nic.read(),
        lambda _: NVME,
        lambda _: Capacity(0, 8),
    )
    assert report.sections["store data"][-1].verdict == "warn"
    assert report.is_ready


# --- The command ------------------------------------------------------------------------


@pytest.fixture
def command(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path of a configuration; the command meets the made-up machine."""
    monkeypatch.setattr(examine_module, "examine", lambda *_: bench.examine())
    monkeypatch.setattr("ingestd.daemon.workers.worker.load_core", lambda: bench.core)
    path = tmp_path / "ingestd.toml"
    path.write_text(
        f'[store.data]\npath = "{os.devnull}"\n[listener.in]\naddress = "0.0.0.0:7070"\n'
    )
    return path


def test_exit_codes(command: Path, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "-c", str(command)]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("zcrx: ready\n")
    assert "predicted (data, IPv4): 100.0%" in shown
    bench.nic.now.rings["tcp_data_split"] = 1
    assert main(["doctor", "-c", str(command)]) == EngineError.exit_code
    shown = capsys.readouterr().out
    assert shown.endswith("zcrx: not ready, 1 thing stands in the way\n")
    assert "FAIL  header split" in shown
    assert "-> ingestd nic apply zc0" in shown
    bench.nic.now.rings["tcp_data_split"] = 2
    bench.engine = {"kind": "recv"}
    assert main(["doctor", "-c", str(command)]) == 0
    shown = capsys.readouterr().out
    assert "serve would run engine recv" in shown
    assert shown.endswith("recv: ready\n")
    assert "zcrx" not in shown


def test_json(command: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "-c", str(command), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] is True
    assert told["engine"] == "zcrx"
    assert told["zero_copy_ratio"] == {"data, IPv4": 1.0}
    assert told["sections"]["machine"][0].keys() == {"subject", "verdict", "text", "remedy"}


@pytest.mark.parametrize(
    "flags", [[], ["-c", "x.toml", "--store", "y"], ["-c", "x.toml", "--interface", "zc0"]]
)
def test_usage(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *flags]) == 2
    assert "--store" in capsys.readouterr().err


def test_flags_instead_of_a_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Settings] = []

    def note(settings: Settings, *_: object) -> Report:
        seen.append(settings)
        return bench.examine()

    monkeypatch.setattr(examine_module, "examine", note)
    monkeypatch.setattr("ingestd.daemon.workers.worker.load_core", lambda: bench.core)
    monkeypatch.setattr("ingestd.nic.reading.read_nic", lambda _: bench.nic.read())
    assert main(["doctor", "--store", "/dev/made-up", "--interface", "zc0"]) == 0
    assert main(["doctor", "--interface", "none"]) == 0
    capsys.readouterr()
    named, device_less = seen
    assert named.store["default"].path == "/dev/made-up"
    assert (named.engine.kind, named.engine.queues) == ("zcrx", (3,))
    assert device_less.engine.is_deviceless
    assert device_less.store == {}
