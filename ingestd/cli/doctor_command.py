# SPDX-License-Identifier: Apache-2.0
"""The command doctor: which engine would run here, and what stands in another one's way.

Invariant: the exit code is 0 if and only if serve would run an engine that the configuration
allows: zcrx where that is demanded, recv as well where the kind is "recv" or "auto".
Owned by the main thread.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from ingestd.cli.findings_output import findings_json, print_findings
from ingestd.cli.output import print_json
from ingestd.errors import EngineError, UsageError
from ingestd.finding import failures

if TYPE_CHECKING:
    from ingestd.config.settings import Settings
    from ingestd.doctor.examine import Report


def run_doctor(arguments: Namespace) -> int:
    """Examine everything and report."""
    from ingestd.daemon.workers.worker import load_core
    from ingestd.doctor.examine import examine

    report = examine(_settings(arguments), load_core())
    if arguments.json:
        print_json(_json(report))
    else:
        _print(report)
    is_right = report.engine == "recv" or (report.engine == "zcrx" and report.is_ready)
    return 0 if is_right else EngineError.exit_code


def _settings(arguments: Namespace) -> Settings:
    from ingestd.config.loading import load
    from ingestd.config.settings import Settings

    by_flags = arguments.store or arguments.interface
    if arguments.config and by_flags:
        raise UsageError("-c FILE says it all: leave --store and --interface out")
    if arguments.config:
        return load(arguments.config)
    if not by_flags:
        raise UsageError("name a configuration (-c FILE), or --store PATH and --interface IF")
    stores = {"default": {"path": arguments.store}} if arguments.store else {}
    engine: dict[str, Any] = {}  # as serve with the same flags has it: "auto"
    if arguments.interface:
        queues = _last_queue(arguments.interface)
        engine = {"kind": "zcrx", "interface": arguments.interface, "queues": queues}
    return Settings.model_validate({"store": stores, "engine": engine})


def _last_queue(interface: str) -> tuple[int, ...]:
    """The queue that `nic apply` would take; none where there is not even that."""
    from ingestd.config.settings import DEVICELESS

    if interface == DEVICELESS:
        return ()
    from ingestd.nic.reading import read_nic

    try:
        count = read_nic(interface).queue_count
    except EngineError:
        return ()  # the report will say why
    return (count - 1,) if count else ()


def _json(report: Report) -> dict[str, Any]:
    return {
        "ready": report.is_ready,
        "engine": report.engine,
        "reason": report.reason,
        "zero_copy_ratio": report.ratios if report.engine == "zcrx" else {},
        "sections": {name: findings_json(found) for name, found in report.sections.items()},
    }


def _print(report: Report) -> None:
    print_findings(report.sections)
    print()
    if report.engine == "none":
        print(f"serve would not start: {report.reason}")
    else:
        print(f"serve would run engine {report.engine}: {report.reason}")
    when = "" if report.engine == "zcrx" else "once zcrx runs: "
    for what, ratio in report.ratios.items():
        print(f"{when}zero-copy ratio of bulk flows, predicted ({what}): {ratio:.1%}")
    if report.is_deviceless or (report.engine == "recv" and report.wants_zcrx):
        print("as it is: zero-copy ratio 0.0%, since the kernel copies every byte")
    if report.engine == "recv":
        print("recv: ready")
    if not report.wants_zcrx:
        return
    in_the_way = len(failures(report.findings))
    if in_the_way:
        things = "1 thing stands" if in_the_way == 1 else f"{in_the_way} things stand"
        print(f"zcrx: not ready, {things} in the way")
    else:
        print("zcrx: ready")
