# SPDX-License-Identifier: Apache-2.0
"""`ingestd verify`: read all of a store, check it, and list what is wrong.

Invariant: findings are results and go to standard output; that one of them is
damage is an error and decides the exit code. Owned by the main thread.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from ingestd.cli.output import counted, print_json, print_pairs, safe, total_progress_bar
from ingestd.errors import StoreDamagedError
from ingestd.sizes import full_size

if TYPE_CHECKING:
    from ingestd.store.read.verify import VerifyReport


def run_verify(arguments: Namespace) -> int:
    """Print findings and what was looked at; raise StoreDamagedError if there is damage."""
    from ingestd.store.read.verify import DAMAGE, verify_store

    with total_progress_bar(arguments.store) as progress:
        report = verify_store(arguments.store, progress)
    if arguments.json:
        print_json(report.as_dict())
    else:
        _print_report(report)
    if report.is_damaged:
        count = sum(finding.severity == DAMAGE for finding in report.findings)
        raise StoreDamagedError(
            f"{report.path}: {count} of {len(report.findings)} findings shown are damage:"
            " save what ingestd cat still reads, then format a new store"
        )
    return 0


def _findings_text(report: VerifyReport) -> str:
    omitted = report.findings_omitted
    return f"{len(report.findings) + omitted}{f', {omitted} of them not shown' if omitted else ''}"


def _print_report(report: VerifyReport) -> None:
    for finding in report.findings:
        print(safe(str(finding)))
    verdict = "damaged" if report.is_damaged else "intact"
    print(f"{safe(report.path)}: {verdict}")
    without = report.bytes_without_checksum
    print_pairs(
        [
            ("UUID", report.store_uuid),
            ("findings", _findings_text(report)),
            ("segments", counted(report.segments)),
            ("flows", report.flows),
            ("batches", report.batches),
            ("checked", full_size(report.bytes_checked)),
            ("not checked", f"{full_size(without)} without a checksum" if without else None),
            (
                "served",
                "yes: what came after the start was not looked at" if report.served else None,
            ),
        ]
    )
