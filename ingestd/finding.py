# SPDX-License-Identifier: Apache-2.0
"""A finding: one thing that was looked at, what is to be thought of it, and the way out.

Invariants: a finding that is not "ok" names a way out, if possible a command
that can be run as it stands. Plain data; any thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Verdict = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """subject: what was looked at; text: what is the case, and why it matters."""

    subject: str
    verdict: Verdict
    text: str
    way_out: str = ""

    @property
    def sentence(self) -> str:
        """What is the case and the way out, as an error tells it."""
        return f"{self.text}: {self.way_out}" if self.way_out else self.text


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Return those that stand in the way."""
    return [finding for finding in findings if finding.verdict == "fail"]
