# SPDX-License-Identifier: Apache-2.0
"""One change of an interface each, as data: what is, what is to be, and so its undo.

Invariants: a change knows the state before it, so that its undo can be written
down before it is made; it survives JSON. What a change made, and what cannot be
known before, is filled in afterwards (made_id). No state; any thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ingestd.nic.state import SPLIT_OFF, SPLIT_ON, Family, RingName


class _Change(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RingsChange(_Change):
    """Ring parameters: header split, its threshold, descriptors."""

    kind: Literal["rings"] = "rings"
    before: dict[RingName, int]
    after: dict[RingName, int]

    def command(self, interface: str) -> str:
        """The command that a person would type, if ethtool is new enough to know the words."""
        return f"ethtool -G {interface} {_ring_words(self.after)}"


class FeatureChange(_Change):
    """An offload feature turned on or off."""

    kind: Literal["feature"] = "feature"
    name: str
    before: bool
    after: bool

    def command(self, interface: str) -> str:
        """The command that a person would type."""
        return f"ethtool -K {interface} {self.name} {'on' if self.after else 'off'}"


class SpreadChange(_Change):
    """RSS: over which queues what no rule steers is spread."""

    kind: Literal["spread"] = "spread"
    before: tuple[int, ...]  # queue of each slot
    after: tuple[int, ...]  # queues
    queue_count: int

    def command(self, interface: str) -> str:
        """The command that a person would type."""
        return f"ethtool -X {interface} {' '.join(self.arguments())}"

    def arguments(self) -> list[str]:
        """For ethtool -X."""
        return spread_arguments(self.after, self.queue_count)

    def undo_arguments(self) -> list[str]:
        """For ethtool -X: the table as it was, or, of one made by hand, the same shares."""
        if is_default_spread(self.before, self.queue_count):
            return ["default"]
        queues = sorted(set(self.before))
        if self.before == tuple(queues[i % len(queues)] for i in range(len(self.before))):
            return spread_arguments(queues, self.queue_count)
        slots = Counter(self.before)
        return ["weight", *(str(slots[queue]) for queue in range(self.queue_count))]


class ContextChange(_Change):
    """A new RSS context, which spreads the flows of a rule over several queues."""

    kind: Literal["context"] = "context"
    queues: tuple[int, ...]
    queue_count: int
    ids_before: tuple[int, ...]
    made_id: int | None = None

    def command(self, interface: str) -> str:
        """The command that a person would type."""
        return f"ethtool -X {interface} context new {' '.join(self.arguments())}"

    def arguments(self) -> list[str]:
        """For ethtool -X IFACE context new."""
        return spread_arguments(self.queues, self.queue_count)


class RuleChange(_Change):
    """A new steering rule: a port's flows to one queue, or to the context over several."""

    kind: Literal["rule"] = "rule"
    family: Family
    port: int
    queues: tuple[int, ...]
    ids_before: tuple[int, ...]
    made_id: int | None = None

    def command(self, interface: str) -> str:
        """The command that a person would type."""
        return f"ethtool -N {interface} {' '.join(self.arguments(None))}"

    def arguments(self, context: int | None) -> list[str]:
        """For ethtool -N; context: the number of the one over the queues, if there is one yet."""
        where = ["action", str(self.queues[0])]
        if len(self.queues) > 1:
            where = ["context", "N" if context is None else str(context)]
        return ["flow-type", self.family, "dst-port", str(self.port), *where]


Change = RingsChange | FeatureChange | SpreadChange | ContextChange | RuleChange
AnyChange = Annotated[Change, Field(discriminator="kind")]


def spread_arguments(queues: Sequence[int], queue_count: int) -> list[str]:
    """Return how ethtool -X names an even spread over queues: by range, or by weights."""
    first, last = min(queues), max(queues)
    if last - first + 1 == len(queues):
        start = ["start", str(first)] if first else []
        return [*start, "equal", str(len(queues))]
    return ["weight", *(str(int(queue in queues)) for queue in range(queue_count))]


def is_default_spread(table: Sequence[int], queue_count: int) -> bool:
    """Return whether an RSS table is the one the kernel begins with: slot i to queue i mod n."""
    return all(queue == slot % queue_count for slot, queue in enumerate(table))


def _ring_words(values: dict[RingName, int]) -> str:
    splits = {SPLIT_ON: "on", SPLIT_OFF: "off"}
    words = []
    for name, value in values.items():
        shown = splits.get(value, "auto") if name == "tcp_data_split" else str(value)
        words.append(f"{name.replace('_', '-')} {shown}")
    return " ".join(words)
