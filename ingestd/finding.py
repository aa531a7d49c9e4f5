# SPDX-License-Identifier: Apache-2.0
"""A finding: one thing that was looked at, the verdict on it, and the remedy.

Invariants: a finding that is not "ok" names a remedy, if possible a command
that can be run as it stands. What the kernel or a driver does not report is
"unknown", never "ok". Plain data; any thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Verdict = Literal["ok", "unknown", "warn", "fail"]


class Finding(NamedTuple):
    """subject: what was looked at; text: what is the case, and why it matters."""

    subject: str
    verdict: Verdict
    text: str
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """The fact and the remedy, as the text of an error."""
        return f"{self.text}: {self.remedy}" if self.remedy else self.text


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Return those that stand in the way."""
    return [finding for finding in findings if finding.verdict == "fail"]
