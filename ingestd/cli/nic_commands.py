# SPDX-License-Identifier: Apache-2.0
"""The commands nic check, nic apply, nic undo.

Invariant: apply does what check says it would, and undo takes back what apply
did, also after a crash of either. Owned by the main thread.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from ingestd.cli.findings_output import findings_json, print_findings
from ingestd.cli.output import note, print_json
from ingestd.errors import EngineError
from ingestd.finding import failures

if TYPE_CHECKING:
    from ingestd.finding import Finding
    from ingestd.nic.plan import Steered
    from ingestd.nic.state import Family, NicState

UNDO_RETRY_S = 5.0


def run_nic_check(arguments: Namespace) -> int:
    """Return whether an interface is ready, and what apply would do."""
    from ingestd.nic.findings import nic_findings
    from ingestd.nic.journal import journal_path
    from ingestd.nic.placement import placement_findings
    from ingestd.nic.plan import last_queues, plan_changes
    from ingestd.nic.reading import read_nic
    from ingestd.nic.rule_trial import rule_trial_findings
    from ingestd.nic.work import RealDevice

    state = read_nic(arguments.interface, with_irqs=True)
    trouble = None
    try:
        queues = last_queues(state, arguments.queues)
        wanted = _wanted(arguments, queues)
        commands = [
            change.command(state.interface)
            for change in plan_changes(state, wanted, arguments.rx_ring)
        ]
    except EngineError as error:
        queues, commands, trouble = _last_there(state, arguments.queues), [], str(error)
        wanted = _wanted(arguments, queues)
    findings = [
        *nic_findings(state, wanted),
        *rule_trial_findings(state, wanted, RealDevice(arguments.interface).ethtool),
        _ring(state, arguments.rx_ring),
        *placement_findings(state, queues, ()),
    ]
    journal = journal_path(arguments.interface, arguments.state_dir)
    is_ready = not failures(findings)
    if arguments.json:
        print_json(
            {
                "interface": state.interface,
                "queues": list(queues),
                "ready": is_ready,
                "findings": findings_json(findings),
                "apply_would": commands,
                "apply_could_not": trouble,
                "state_file": str(journal) if journal.exists() else None,
            }
        )
    else:
        print_findings({f"{state.interface}, rx queue {_listed(queues)}": findings})
        for command in commands:
            print(f"apply would: {command}")
        if trouble is not None:
            print(f"apply could not prepare it: {trouble}")
        if journal.exists():
            print(f"changes to undo are in {journal}")
        print("ready" if is_ready else "not ready")
    return 0 if is_ready else EngineError.exit_code


def run_nic_apply(arguments: Namespace) -> int:
    """Prepare an interface, and write down first how to undo it."""
    from ingestd.nic.journal import open_journal
    from ingestd.nic.netlink import read_link
    from ingestd.nic.plan import last_queues, plan_changes
    from ingestd.nic.work import RealDevice, apply

    device = RealDevice(arguments.interface)
    index = read_link(arguments.interface).index
    with open_journal(arguments.interface, index, arguments.state_dir) as journal:
        state = device.read()
        queues = last_queues(state, arguments.queues)
        changes = plan_changes(state, _wanted(arguments, queues), arguments.rx_ring)
        apply(device, journal, changes)
        commands = [change.command(arguments.interface) for change in changes]
        if arguments.json:
            print_json(
                {
                    "interface": arguments.interface,
                    "queues": list(queues),
                    "changes": commands,
                    "state_file": str(journal.path) if journal.changes else None,
                }
            )
            return 0
        for command in commands:
            print(command)
    print(f"{arguments.interface} is ready: engine.queues = {list(queues)}")
    ring = _ring(device.read(), 0)
    if ring.verdict != "ok":
        note(ring.sentence)
    if commands:
        note(f"`ingestd nic undo {arguments.interface}` takes it back, from {journal.path}")
    return 0


def run_nic_undo(arguments: Namespace) -> int:
    """Take back what apply, or a daemon that crashed, did to an interface."""
    from ingestd.nic.journal import journal_path, open_journal
    from ingestd.nic.netlink import read_link
    from ingestd.nic.work import RealDevice, undo

    path = journal_path(arguments.interface, arguments.state_dir)
    try:
        index = read_link(arguments.interface).index
    except EngineError:
        if not path.exists():
            raise
        index = 0  # the interface is gone, and with it what was changed
    with open_journal(arguments.interface, index, arguments.state_dir) as journal:
        undone = undo(RealDevice(arguments.interface), journal, UNDO_RETRY_S)
    if arguments.json:
        rows = [
            {"change": change.command(arguments.interface), "fate": fate} for change, fate in undone
        ]
        print_json({"interface": arguments.interface, "undone": rows})
        return 0
    for change, fate in undone:
        print(f"{fate}: {change.command(arguments.interface)}")
    if not undone:
        print(f"nothing to undo for {arguments.interface}")
    return 0


def _wanted(arguments: Namespace, queues: tuple[int, ...]) -> list[Steered]:
    from ingestd.nic.plan import Steered

    families: tuple[Family, ...] = ("tcp4", "tcp6")
    return [Steered(tuple((f, port) for port in arguments.port for f in families), queues)]


def _ring(state: NicState, rx_ring: int) -> Finding:
    """Return whether an area of automatic size holds the rx ring, as it is or as it is to be."""
    from dataclasses import replace

    from ingestd.daemon.workers.area import AREA_AUTO_BYTES_MAX, auto_write_bytes
    from ingestd.nic.ring import ring_finding
    from ingestd.nic.shape import PAGE_BYTES

    if rx_ring and state.rings is not None:
        state = replace(state, rings=replace(state.rings, rx=rx_ring))
    write_bytes = auto_write_bytes(AREA_AUTO_BYTES_MAX)
    found = ring_finding(state, PAGE_BYTES, AREA_AUTO_BYTES_MAX, write_bytes)
    # A configuration may state a larger area, by which doctor and serve judge.
    return found._replace(verdict="warn") if found.verdict == "fail" else found


def _last_there(state: NicState, count: int) -> tuple[int, ...]:
    """The last queues, as many as there are."""
    return tuple(range(max(0, state.queue_count - count), state.queue_count))


def _listed(queues: tuple[int, ...]) -> str:
    return ", ".join(map(str, queues)) or "none"
