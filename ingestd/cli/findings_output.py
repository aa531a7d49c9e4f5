# SPDX-License-Identifier: Apache-2.0
"""Findings as commands show them. Invariant: what is wrong stands out without colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ingestd.cli.output import safe
from ingestd.finding import Finding

_SHOWN: Final = {"ok": "ok", "unknown": "?", "warn": "warn", "fail": "FAIL"}


def print_findings(sections: Mapping[str, Sequence[Finding]]) -> None:
    """Print findings below the heads of their sections, with the ways out."""
    width = max((len(f.subject) for findings in sections.values() for f in findings), default=0)
    for head, findings in sections.items():
        print(f"{safe(head)}:")
        for finding in findings:
            verdict = _SHOWN[finding.verdict]
            print(f"  {verdict:4}  {safe(finding.subject):{width}}  {safe(finding.text)}")
            if finding.remedy:
                print(f"  {'':4}  {'':{width}}  -> {safe(finding.remedy)}")


def findings_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Return findings as JSON has them."""
    return [finding._asdict() for finding in findings]
