# SPDX-License-Identifier: Apache-2.0
"""The choice of the engine, and its reason.

Invariants: an explicit kind is a demand, met or refused; "auto" always finds
one and always says why. No state; any thread may call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ingestd.errors import EngineError
from ingestd.finding import Finding

if TYPE_CHECKING:
    from ingestd.config.settings import EngineSettings


class EngineChoice(NamedTuple):
    """The engine of all workers, and the reason as log and metrics give it."""

    kind: str
    reason: str


class ZcrxQueue(NamedTuple):
    """The rx queue that one worker is to take over."""

    interface: str  # "none": the kernel's device-less mode
    interface_index: int  # 0: the same
    rx_queue: int
    rx_buf_bytes: int
    refill_entries: int
    queue_retry_s: float


def choose_engine(engine: EngineSettings, obstacles: Sequence[Finding]) -> EngineChoice:
    """Return the engine that a configuration gets.

    obstacles: what stands in zero-copy receive's way on this machine, worst
    first. Raises EngineError for a demand that cannot be met.
    """
    if engine.kind == "recv":
        return EngineChoice("recv", "the configuration asks for it")
    if engine.kind == "zcrx" and obstacles:
        raise EngineError(f'engine.kind = "zcrx" cannot be had: {obstacles[0].sentence}')
    if engine.kind == "zcrx":
        return EngineChoice("zcrx", "the configuration asks for it")
    assert engine.kind == "auto", engine.kind
    if engine.interface is None:
        return EngineChoice("recv", "engine.interface names none for zero-copy receive")
    if engine.is_deviceless:
        return EngineChoice("recv", "device-less zero-copy receive copies, and is for tests only")
    if obstacles:
        return EngineChoice("recv", f"no zero-copy receive: {obstacles[0].sentence}")
    queues = ", ".join(map(str, engine.queues))
    return EngineChoice("zcrx", f"interface {engine.interface}, rx queue {queues}: all is there")


def fall_back(error: Exception) -> EngineChoice:
    """Return what "auto" takes after zero-copy receive was refused when it was tried."""
    return EngineChoice("recv", f"no zero-copy receive: {error}")
