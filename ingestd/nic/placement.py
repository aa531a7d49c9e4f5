# SPDX-License-Identifier: Apache-2.0
"""CPUs of the interrupts of rx queues, and of the workers that read from them.

Invariants: hints only; nothing here stands in zero-copy receive's way. Only
reads; any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ingestd.finding import Finding
from ingestd.nic.state import NicState

PROC_IRQ: Final = Path("/proc/irq")


def irq_cpus(irq: int) -> str | None:
    """Return the CPUs that an interrupt may run on, such as "0-7"."""
    try:
        text = (PROC_IRQ / str(irq) / "smp_affinity_list").read_text(encoding="ascii")
    except OSError:
        return None
    return text.strip() or None


def placement_findings(
    state: NicState,
    queues: Sequence[int],
    cpus: Sequence[int],
    cpus_of_irq: Callable[[int], str | None] = irq_cpus,
) -> Iterator[Finding]:
    """Findings about queues and the CPUs that their workers are pinned to (none: not pinned)."""
    for place, index in enumerate(queues):
        if index >= state.queue_count:
            continue
        cpu = cpus[place] if place < len(cpus) else None
        yield _interrupt(state, index, cpu, cpus_of_irq)
        if cpu is not None and state.local_cpus is not None:
            yield _node(state, index, cpu)


def _interrupt(
    state: NicState, index: int, cpu: int | None, cpus_of_irq: Callable[[int], str | None]
) -> Finding:
    queue = state.queues[index]
    subject = f"interrupt of queue {index}"
    napi = f"NAPI {queue.napi_id}" if queue.napi_id is not None else "NAPI unknown"
    if queue.irq is None:
        return Finding(subject, "ok", f"{napi}; the driver does not report its IRQ")
    runs_on = cpus_of_irq(queue.irq) or "unknown CPUs"
    text = f"{napi}, IRQ {queue.irq} on CPU {runs_on}"
    if runs_on.isdigit():
        return Finding(subject, "ok", text)
    where = "C" if cpu is None else str(cpu)
    return Finding(
        subject,
        "ok",
        f"{text}; one CPU next to the worker's, or the same, is steadier",
        f"echo {where} > {PROC_IRQ}/{queue.irq}/smp_affinity_list (and keep irqbalance off it)",
    )


def _node(state: NicState, index: int, cpu: int) -> Finding:
    subject = f"CPU of queue {index}"
    local = state.local_cpus or ""
    if cpu in _cpu_numbers(local):
        return Finding(subject, "ok", f"the worker's CPU {cpu} is close to {state.interface}")
    return Finding(
        subject,
        "warn",
        f"the worker's CPU {cpu} is on another NUMA node than {state.interface}",
        f"name CPUs out of {local} in the store's cpus",
    )


def _cpu_numbers(text: str) -> set[int]:
    """The numbers that a list such as "0-3,8" means."""
    bounds = [part.partition("-") for part in text.split(",") if part]
    return {cpu for a, _, b in bounds for cpu in range(int(a), int(b or a) + 1)}
