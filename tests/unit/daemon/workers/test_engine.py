# SPDX-License-Identifier: Apache-2.0
"""Which engine, and why; what kernel, privileges and memory must offer for zcrx."""

from __future__ import annotations

import pytest

from ingestd.config.settings import EngineSettings
from ingestd.daemon.machine.limits import LockedNeed
from ingestd.daemon.machine.zcrx_support import (
    hugepage_finding,
    kernel_findings,
    locked_finding,
    privilege_findings,
    release_finding,
)
from ingestd.daemon.workers.engine import choose_engine, fall_back
from ingestd.errors import EngineError
from ingestd.finding import Finding, failures
from support.facts import ALL_FEATURES, CAP_ALL, CAP_NONE

OBSTACLE = Finding("header split", "fail", "it is off", "turn it on")
MIB = 1024 * 1024


def _engine(**values: object) -> EngineSettings:
    return EngineSettings.model_validate({"interface": "eth0", "queues": [4, 5]} | values)


def test_recv_when_asked_for() -> None:
    assert choose_engine(_engine(kind="recv"), [OBSTACLE]) == (
        "recv",
        "the configuration asks for it",
    )


@pytest.mark.parametrize(
    ("engine", "obstacles", "kind", "reason"),
    [
        (_engine(interface=None, queues=()), [], "recv", "engine.interface names none"),
        (_engine(interface="none", queues=()), [], "recv", "for tests only"),
        (_engine(), [OBSTACLE], "recv", "it is off: turn it on"),
        (_engine(), [], "zcrx", "interface eth0, rx queue 4, 5"),
    ],
)
def test_auto_says_why(
    engine: EngineSettings, obstacles: list[Finding], kind: str, reason: str
) -> None:
    choice = choose_engine(engine, obstacles)
    assert choice.kind == kind
    assert reason in choice.reason


def test_a_demand_is_a_demand() -> None:
    assert choose_engine(_engine(kind="zcrx"), []).kind == "zcrx"
    with pytest.raises(EngineError, match=r'"zcrx" cannot be had: it is off: turn it on'):
        choose_engine(_engine(kind="zcrx"), [OBSTACLE])


def test_a_device_less_demand() -> None:
    assert choose_engine(_engine(kind="zcrx", interface="none", queues=()), []).kind == "zcrx"


def test_falling_back_keeps_the_reason() -> None:
    assert fall_back(EngineError("no such thing")) == (
        "recv",
        "no zero-copy receive: no such thing",
    )


# --- What the machine must offer ------------------------------------------------------


def _kernel(**values: object) -> list[Finding]:
    features = ALL_FEATURES | {key: bool(v) for key, v in values.items() if key in ALL_FEATURES}
    return list(
        kernel_findings(
            features,
            is_deviceless=bool(values.get("is_deviceless", False)),
            rx_buf_bytes=int(str(values.get("rx_buf_bytes", 4096))),
        )
    )


def test_a_kernel_with_everything() -> None:
    assert [f.verdict for f in _kernel(is_deviceless=True, rx_buf_bytes=65536)] == ["ok"]


@pytest.mark.parametrize("feature", ["recv_zc", "defer_taskrun"])
def test_a_kernel_without_zero_copy_receive(feature: str) -> None:
    (found,) = _kernel(**{feature: False})
    assert found.verdict == "fail"
    assert "6.15" in found.remedy


@pytest.mark.parametrize(
    ("feature", "circumstances", "verdict"),
    [
        ("zcrx_nodev", {"is_deviceless": True}, "fail"),
        ("zcrx_nodev", {}, None),
        ("zcrx_rx_buf_len", {"rx_buf_bytes": 65536}, "warn"),
        ("zcrx_rx_buf_len", {}, None),
        ("zcrx_events", {}, "warn"),
        ("writev_fixed", {}, "warn"),
    ],
)
def test_a_kernel_that_lacks_one_thing(
    feature: str, circumstances: dict[str, object], verdict: str | None
) -> None:
    found = [f for f in _kernel(**{feature: False}, **circumstances) if f.verdict != "ok"]
    assert [f.verdict for f in found] == ([verdict] if verdict else [])
    assert all(f.remedy for f in found)


@pytest.mark.parametrize(
    ("release", "verdict"),
    [
        ("7.3.0", "warn"),
        ("7.3.1-1~exp1", "warn"),
        ("7.3.2", "ok"),
        ("7.3.4+deb13-amd64", "ok"),
        ("7.4", "ok"),
        ("7.3", "warn"),
        ("7.2.6", "unknown"),
        ("6.18.44", "unknown"),
        ("made-up", "unknown"),
    ],
)
def test_kernels_that_lose_wake_ups(release: str, verdict: str) -> None:
    found = release_finding(release)
    assert found.verdict == verdict
    assert release in found.text
    assert ("7.3.2" in found.remedy) == (verdict != "ok")


def test_privileges() -> None:
    assert failures(privilege_findings(CAP_ALL)) == []
    assert failures(privilege_findings("CapEff:\t0000000000001000\n")) == []
    (missing,) = failures(privilege_findings("CapEff:\t000001ffffffefff\n"))
    assert missing.subject == "CAP_NET_ADMIN"
    assert "AmbientCapabilities" in missing.remedy


@pytest.mark.parametrize(
    ("limit", "status", "verdict"),
    [
        (None, CAP_NONE, "ok"),
        (2 * MIB, CAP_ALL, "ok"),
        (4 * MIB, CAP_NONE, "ok"),
        (4 * MIB - 1, CAP_NONE, "fail"),
    ],
)
def test_locked_memory(limit: int | None, status: str, verdict: str) -> None:
    found = locked_finding([LockedNeed("data", 2, 2 * MIB)], limit, status)
    assert found.verdict == verdict
    assert ("LimitMEMLOCK" in found.remedy) == (verdict == "fail")


def test_hugepages() -> None:
    meminfo = "MemTotal: 100 kB\nHugePages_Total:      10\nHugePages_Free:        3\n"
    assert hugepage_finding(6 * MIB, 4096, meminfo).verdict == "ok"
    short = hugepage_finding(6 * MIB + 1, 65536, meminfo)
    assert short.verdict == "warn"
    assert "larger receive buffers need them" in short.text
    assert short.remedy == "sysctl vm.nr_hugepages=11"
    assert hugepage_finding(1, 4096, "MemTotal: 1 kB\n").remedy == "sysctl vm.nr_hugepages=1"
