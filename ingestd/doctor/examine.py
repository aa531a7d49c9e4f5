# SPDX-License-Identifier: Apache-2.0
"""Everything that decides which engine runs, and what zero-copy receive would bring.

Invariants: the daemon decides by the same findings, so the prediction is what
serve would do; nothing is changed, but for a steering rule that is tried and
taken away again. Any thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from ingestd.config.settings import Settings
from ingestd.core_limits import PLAN_GATHER_BYTES_MIN
from ingestd.daemon.machine.direct_io import DirectProfile
from ingestd.daemon.machine.limits import LockedNeed, locked_memory_limit
from ingestd.daemon.machine.zcrx_support import (
    MEMINFO_PATH,
    hugepage_finding,
    locked_finding,
    own_status,
    release_finding,
)
from ingestd.daemon.workers import zcrx
from ingestd.daemon.workers.area import area_bytes_at_most, locked_bytes_min
from ingestd.daemon.workers.engine import choose_engine
from ingestd.daemon.workers.worker import Core, device_profile, kernel_features
from ingestd.doctor.capacity import Capacity, capacity_finding, capacity_of
from ingestd.doctor.storage import storage_findings
from ingestd.errors import EngineError, IngestdError
from ingestd.finding import Finding, Verdict, failures
from ingestd.nic.ethtool import Ethtool
from ingestd.nic.findings import nic_findings
from ingestd.nic.placement import placement_findings
from ingestd.nic.plan import Steered, plan_changes, state_after
from ingestd.nic.reading import read_nic
from ingestd.nic.ring import rx_buf_findings
from ingestd.nic.rule_trial import rule_trial_findings
from ingestd.nic.shape import FAMILY_NAMES, predict
from ingestd.nic.state import Family, NicState

READ_WITH_IRQS: Final = partial(read_nic, with_irqs=True)


@dataclass
class Report:
    """The findings, section by section, and the verdict that they lead to."""

    sections: dict[str, list[Finding]] = field(default_factory=dict)
    engine: str = "none"  # that serve would run: "recv", "zcrx", or "none": it would not start
    reason: str = ""
    wants_zcrx: bool = True  # the configuration asks for it, or names a card to try it on
    is_deviceless: bool = False
    ratios: dict[str, float] = field(default_factory=dict)  # "store, IPv4" -> zero-copy ratio

    @property
    def findings(self) -> list[Finding]:
        """All of them."""
        return [finding for section in self.sections.values() for finding in section]

    @property
    def is_ready(self) -> bool:
        """Return whether nothing stands in the way of the engine that the configuration wants."""
        return not failures(self.findings)


def examine(
    settings: Settings,
    core: Core,
    read: Callable[[str], NicState] = READ_WITH_IRQS,
    profile_of: Callable[[str], DirectProfile] = device_profile,
    room: Callable[[str], Capacity] = capacity_of,
    ethtool_of: Callable[[str], Ethtool] = Ethtool,
) -> Report:
    """Return the report for a configuration on this machine."""
    engine = settings.engine
    report = Report(wants_zcrx=_wants_zcrx(settings), is_deviceless=engine.is_deviceless)
    report.sections["machine"] = _machine(settings, core)
    state = _interface(settings, read, ethtool_of, report)
    for name, store in settings.store.items():
        profile, findings = storage_findings(store.path, profile_of)
        findings = [*findings, capacity_finding(store, room)]
        report.sections[f"store {name}"] = findings
        if state is not None and profile is not None:
            report.ratios |= _ratios(settings, name, state, profile)
        if failures(findings):  # no engine starts without a store, or writes without direct I/O
            report.reason = report.reason or failures(findings)[0].text
    if report.reason:
        return report
    if not report.wants_zcrx and not report.is_ready:
        report.reason = failures(report.findings)[0].sentence
        return report
    try:
        report.engine, report.reason = choose_engine(settings.engine, failures(report.findings))
    except EngineError as error:
        report.engine, report.reason = "none", str(error)
    return report


def _wants_zcrx(settings: Settings) -> bool:
    """Return whether zero-copy receive is to be judged: "auto" without a card may do without."""
    engine = settings.engine
    is_card_named = engine.interface is not None and not engine.is_deviceless
    return engine.kind == "zcrx" or (engine.kind == "auto" and is_card_named)


def _machine(settings: Settings, core: Core) -> list[Finding]:
    needed_bytes = sum(
        store.workers * area_bytes_at_most(store) for store in settings.store.values()
    )
    meminfo = MEMINFO_PATH.read_text(encoding="ascii")
    try:
        features = kernel_features(core)
        if _wants_zcrx(settings):
            findings = zcrx.machine_findings(settings, features)
        else:
            findings = [_recv_memory(settings)]
    except IngestdError as error:
        findings = [Finding("kernel", "fail", str(error))]
    return [
        *findings,
        release_finding(os.uname().release),
        hugepage_finding(needed_bytes, settings.engine.rx_buf, meminfo),
    ]


def _recv_memory(settings: Settings) -> Finding:
    """Return whether engine recv may lock its areas, each of which it registers once."""
    needs = [
        LockedNeed(name, store.workers, locked_bytes_min(store))
        for name, store in settings.store.items()
    ]
    return locked_finding(needs, locked_memory_limit(), own_status())


def _interface(
    settings: Settings,
    read: Callable[[str], NicState],
    ethtool_of: Callable[[str], Ethtool],
    report: Report,
) -> NicState | None:
    """Put the interface's section into the report; return its state if there is one."""
    engine = settings.engine
    if not report.wants_zcrx:
        text = "engine recv works on any; zero-copy receive is not asked for"
        remedy = (
            "" if engine.kind == "recv" else "to try it: set engine.interface and engine.queues"
        )
        report.sections["interface"] = [Finding("interface", "ok", text, remedy)]
        return None
    if engine.is_deviceless:
        text = "device-less mode: the kernel copies every byte, an aid for tests"
        report.sections["interface"] = [Finding("interface", "ok", text)]
        return None
    if engine.interface is None:
        report.sections["interface"] = [
            Finding(
                "interface",
                "fail",
                "engine.interface names none",
                "set engine.interface and engine.queues in the configuration, or give --interface",
            )
        ]
        return None
    section = f"interface {engine.interface}"
    try:
        state = read(engine.interface)
    except IngestdError as error:
        report.sections[section] = [Finding("interface", "fail", str(error))]
        return None
    wanted = zcrx.wanted_flows(settings)
    cpus = [cpu for store in settings.store.values() for cpu in store.cpus]
    # Where the daemon makes rules, it does not start without; else flows arrive by copy.
    refusal: Verdict = "fail" if engine.manage_nic else "warn"
    trial = rule_trial_findings(state, wanted, ethtool_of(engine.interface), refusal)
    state, managed = _as_managed(settings, state, wanted)
    report.sections[section] = [
        *managed,
        *nic_findings(state, wanted),
        *trial,
        *placement_findings(state, engine.queues, cpus),
        *zcrx.ring_findings(settings, state),
        *rx_buf_findings(state, engine.queues, engine.rx_buf),
    ]
    return state


def _as_managed(
    settings: Settings, state: NicState, wanted: Sequence[Steered]
) -> tuple[NicState, list[Finding]]:
    """Return the interface as serve will have made it by the time that it matters."""
    if not settings.engine.manage_nic:
        return state, []
    try:
        changes = plan_changes(state, wanted)
    except EngineError as error:
        return state, [Finding("manage_nic", "fail", str(error))]
    commands = "; ".join(change.command(state.interface) for change in changes)
    text = f"serve will first run: {commands}" if changes else "serve has nothing to change first"
    return state_after(state, changes), [Finding("manage_nic", "ok", text)]


def _ratios(
    settings: Settings, store_name: str, state: NicState, profile: DirectProfile
) -> dict[str, float]:
    found = {}
    for family in _families(zcrx.wanted_flows(settings)):
        prediction = predict(
            state.mtu,
            family,
            mem_align=profile.mem_align,
            virt_mask=profile.virt_mask,
            rx_buf_bytes=settings.engine.rx_buf,
            copy_below=PLAN_GATHER_BYTES_MIN,
        )
        found[f"{store_name}, {FAMILY_NAMES[family]}"] = prediction.ratio
    return found


def _families(wanted: Sequence[Steered]) -> list[Family]:
    found = {family for steered in wanted for family, _ in steered.flows}
    return sorted(found) or ["tcp4", "tcp6"]
