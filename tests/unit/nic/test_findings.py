# SPDX-License-Identifier: Apache-2.0
"""What is found of an interface: verdicts, and ways out that really lead out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ingestd.finding import Finding, failures
from ingestd.nic.findings import nic_findings, steering_command
from ingestd.nic.placement import placement_findings
from ingestd.nic.plan import Steered, plan_changes
from ingestd.nic.shape import mss_for_payload, mtu_for_payload, payload_bytes, predict
from ingestd.nic.state import NicState, Queue
from ingestd.nic.work import make
from support.fake_nic import FakeNic

WANTED = [Steered((("tcp4", 7070),), (3,))]


@pytest.fixture
def ready() -> FakeNic:
    nic = FakeNic(driver="bnxt_en")
    nic.mtu = 4148
    for change in plan_changes(nic.read(), WANTED):
        make(nic, change)
    return nic


def _found(nic: FakeNic, wanted: list[Steered] | None = None) -> dict[str, Finding]:
    findings = nic_findings(nic.read(), WANTED if wanted is None else wanted)
    return {finding.subject: finding for finding in findings}


def test_a_prepared_interface_is_all_right(ready: FakeNic) -> None:
    assert {finding.verdict for finding in _found(ready).values()} == {"ok"}


def test_one_as_it_comes_is_not() -> None:
    found = _found(FakeNic(driver="bnxt_en"))
    assert {name for name, finding in found.items() if finding.verdict == "fail"} == {
        "header split",
        "hds-thresh",
        "RSS",
    }
    assert found["steering tcp4 port 7070"].verdict == "warn"
    assert found["MTU over IPv4"].verdict == "warn"


def test_what_is_not_all_right_has_a_remedy() -> None:
    nic = FakeNic(driver="e1000e")
    nic.is_up, nic.has_xdp = False, True
    nic.held = {2: "AF_XDP", 3: "io_uring"}
    wanted = [Steered((("tcp4", 1), ("tcp6", 1)), (0, 1, 2, 3, 4))]
    bad = [finding for finding in _found(nic, wanted).values() if finding.verdict != "ok"]
    assert len(bad) >= 10
    assert all(finding.remedy for finding in bad)


@pytest.mark.parametrize(
    ("spoil", "subject", "verdict", "text", "remedy"),
    [
        (lambda n: setattr(n, "driver_name", "veth"), "driver", "fail", "veth has no", "mlx5_core"),
        (lambda n: setattr(n, "driver_name", "new"), "driver", "warn", "new is not", '"zcrx"'),
        (lambda n: setattr(n, "is_up", False), "link", "warn", "is down", "ip link set zc0 up"),
        (lambda n: setattr(n, "has_xdp", True), "XDP", "fail", "attached to zc0", "xdp off"),
        (lambda n: n.held.update({3: "AF_XDP"}), "queue 3", "fail", "AF_XDP", "another queue"),
        (lambda n: n.held.update({3: "devmem"}), "queue 3", "fail", "devmem", "another queue"),
        (lambda n: n.held.update({3: "io_uring"}), "queue 3", "warn", "in use", "another queue"),
        (lambda n: n.now.rings.update(tcp_data_split=1), "header split", "fail", "not on", "apply"),
        (lambda n: n.now.rings.update(tcp_data_split=None), "header split", "fail", "not", "apply"),
        (lambda n: setattr(n, "has_rings", False), "header split", "fail", "not on", "split on"),
        (lambda n: n.now.rings.update(hds_thresh=9), "hds-thresh", "fail", "is 9", "thresh 0"),
        (
            lambda n: setattr(n.now, "spread", (0, 3)),
            "RSS",
            "fail",
            "rx queue 3 too",
            "ethtool -X zc0 equal 3",
        ),
        (lambda n: setattr(n.now, "spread", None), "RSS", "warn", "EFAULT", "ethtool -x zc0"),
        (
            lambda n: n.now.rules.clear(),
            "steering tcp4 port 7070",
            "warn",
            "kernel's copy",
            "ethtool -N zc0 flow-type tcp4 dst-port 7070 action 3",
        ),
        (lambda n: setattr(n, "mtu", 9000), "MTU over IPv4", "warn", "8948 bytes", "advmss 4108"),
        (lambda n: setattr(n, "mtu", 1500), "MTU over IPv4", "warn", "1448 bytes", "mtu 4148"),
    ],
)
def test_each_trouble(
    ready: FakeNic,
    spoil: Callable[[FakeNic], Any],
    subject: str,
    verdict: str,
    text: str,
    remedy: str,
) -> None:
    spoil(ready)
    found = _found(ready)
    assert found[subject].verdict == verdict
    assert text in found[subject].text
    assert remedy in found[subject].remedy
    others = {name for name, finding in found.items() if finding.verdict != "ok"} - {subject}
    assert others <= {"RSS"}, "one trouble, one finding"


def test_queues_that_are_not_there(ready: FakeNic) -> None:
    found = _found(ready, [Steered((), (9,))])
    assert found["queue 9"].verdict == "fail"
    assert "ethtool -L zc0 combined 10" in found["queue 9"].remedy
    every = _found(ready, [Steered((), (0, 1, 2, 3))])
    assert every["queues"].verdict == "fail"


def test_mellanox_needs_its_hardware_gro() -> None:
    found = _found(FakeNic(driver="mlx5_core"))
    assert "ethtool -K zc0 rx-gro-hw on && ethtool -G zc0" in found["header split"].remedy


def test_the_rule_for_several_queues() -> None:
    command = steering_command("zc0", "tcp6", 7, (2, 3))
    assert command.startswith("ingestd nic apply zc0 --queues 2 --port 7")


def test_failures() -> None:
    bad = Finding("a", "fail", "it is so", "do that")
    assert failures([Finding("b", "ok", "fine"), bad, Finding("c", "warn", "well", "x")]) == [bad]
    assert bad.sentence == "it is so: do that"
    assert Finding("a", "fail", "it is so").sentence == "it is so"


# --- Shapes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mtu", "payload4", "payload6"), [(1500, 1448, 1428), (9000, 8948, 8928), (40, 0, 0)]
)
def test_payload(mtu: int, payload4: int, payload6: int) -> None:
    assert (payload_bytes(mtu, "tcp4"), payload_bytes(mtu, "tcp6")) == (payload4, payload6)


def test_the_mtu_that_carries_a_page() -> None:
    assert (mtu_for_payload(4096, "tcp4"), mtu_for_payload(4096, "tcp6")) == (4148, 4168)
    assert mss_for_payload(4096) == 4108


@pytest.mark.parametrize(
    ("mtu", "mem_align", "virt_mask", "rx_buf", "direct"),
    [
        (1500, 4, 0, 4096, 1448),
        (1500, 512, 0, 4096, 1024),
        (1500, 4, 4095, 4096, 0),
        (4148, 512, 0, 4096, 4096),
        (4148, 512, 4095, 4096, 4096),
        (9000, 4, 0, 4096, 8948),
        (9000, 512, 0, 4096, 4096 + 4096 + 512),
        (9000, 512, 0, 65536, 8704),
        (150, 4, 0, 4096, 0),  # too short to be worth a piece of its own
    ],
)
def test_prediction(mtu: int, mem_align: int, virt_mask: int, rx_buf: int, direct: int) -> None:
    found = predict(
        mtu, "tcp4", mem_align=mem_align, virt_mask=virt_mask, rx_buf_bytes=rx_buf, copy_below=256
    )
    assert found == (mtu - 52, direct)
    assert found.ratio == direct / (mtu - 52)


def test_no_payload_no_ratio() -> None:
    found = predict(40, "tcp4", mem_align=4, virt_mask=0, rx_buf_bytes=4096, copy_below=0)
    assert found.ratio == 0


# --- Placement -----------------------------------------------------------------------


def _placed(irq: int | None, cpus: tuple[int, ...], runs_on: str | None) -> list[Finding]:
    state = NicState(
        "zc0", 7, 1500, True, queues=(Queue(0), Queue(1, 8194, irq)), local_cpus="8-11,15"
    )
    return list(placement_findings(state, [1], cpus, lambda _: runs_on))


def test_interrupts() -> None:
    (found,) = _placed(None, (), None)
    assert found.text == "NAPI 8194; the driver does not report its IRQ"
    (found,) = _placed(123, (), "0-7")
    assert found.text.startswith("NAPI 8194, IRQ 123 on CPU 0-7")
    assert found.remedy.startswith("echo C > /proc/irq/123/smp_affinity_list")
    (found,) = _placed(123, (), "4")
    assert found.remedy == ""


@pytest.mark.parametrize(("cpu", "verdict"), [(8, "ok"), (15, "ok"), (12, "warn"), (0, "warn")])
def test_cpus(cpu: int, verdict: str) -> None:
    interrupt, node = _placed(123, (cpu,), "0-7")
    assert f"echo {cpu} >" in interrupt.remedy
    assert node.verdict == verdict
    assert ("8-11,15" in node.remedy) == (verdict == "warn")


def test_placement_skips_queues_that_are_not_there() -> None:
    state = NicState("zc0", 7, 1500, True)
    assert list(placement_findings(state, [3], ())) == []
