# SPDX-License-Identifier: Apache-2.0
"""Which engine brings bytes in, and why.

Invariants: an explicit kind is a demand, met or refused; "auto" always finds
one and always says why. No state; any thread may call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ingestd.errors import EngineError


class EngineChoice(NamedTuple):
    """The engine of all workers, and the reason as the log and the metrics tell it."""

    kind: str
    reason: str


def choose_engine(kind: str, features: Mapping[str, bool]) -> EngineChoice:
    """Return the engine for a kind of the configuration on a kernel with these features.

    features: those of core.kernel_features(). Raises EngineError for a demand
    that cannot be met.
    """
    if kind == "zcrx":
        raise EngineError(
            'engine.kind = "zcrx" cannot be had, as this build has no zcrx engine:'
            ' set engine.kind to "auto" or "recv"'
        )
    if kind == "recv":
        return EngineChoice("recv", "the configuration asks for it")
    assert kind == "auto", kind
    kernel = "has" if features.get("zcrx", False) else "lacks"
    return EngineChoice("recv", f"this build has no zcrx engine; the kernel {kernel} zcrx")
