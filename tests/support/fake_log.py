# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the logger under ingestd.log.Log, which keeps what is logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Recorder:
    """Every level's method appends (level, event, fields) to lines."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.lines.append((level, event, fields))

    def names(self) -> list[str]:
        """Return the events in order."""
        return [name for _, name, _ in self.lines]

    def fields(self, event: str) -> list[dict[str, Any]]:
        """Return the fields of each line of an event."""
        return [fields for _, name, fields in self.lines if name == event]
