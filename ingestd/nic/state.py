# SPDX-License-Identifier: Apache-2.0
"""The state of a network interface at one moment.

Invariants: plain data, never changed; None stands for what the kernel or the
driver does not say, and is not the same as "no". No state; any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Family = Literal["tcp4", "tcp6"]
Holder = Literal["io_uring", "devmem", "AF_XDP"]
RingName = Literal["rx", "tcp_data_split", "hds_thresh"]

# ETHTOOL_TCP_DATA_SPLIT_* of include/uapi/linux/ethtool.h
SPLIT_UNKNOWN: Final = 0
SPLIT_OFF: Final = 1
SPLIT_ON: Final = 2


@dataclass(frozen=True)
class Rings:
    """Ring parameters: numbers of descriptors, and header split."""

    rx: int | None = None
    rx_max: int | None = None
    tcp_data_split: int | None = None  # SPLIT_*; None: the driver does not know the word
    hds_thresh: int | None = None  # bytes; packets with less payload are not split
    hds_thresh_max: int | None = None


@dataclass(frozen=True)
class Feature:
    """An offload feature; a fixed one cannot be changed."""

    is_on: bool
    is_fixed: bool


@dataclass(frozen=True)
class Queue:
    """One rx queue."""

    index: int
    napi_id: int | None = None
    irq: int | None = None
    held_by: Holder | None = None
    rx_buf_len: int | None = None  # of a zcrx that holds it, bytes


@dataclass(frozen=True)
class Rule:
    """One flow-steering rule. Rules that say more than a port are not plain."""

    id: int
    family: Family | None  # None: neither TCP over IPv4 nor over IPv6
    port: int | None  # destination port
    queue: int | None
    context: int | None  # RSS context
    is_plain: bool  # nothing but the destination port decides

    @property
    def target(self) -> str:
        """The destination, for people."""
        if self.context is not None:
            return f"RSS context {self.context}"
        return "elsewhere" if self.queue is None else f"queue {self.queue}"


@dataclass(frozen=True)
class NicState:
    """One interface."""

    interface: str
    index: int
    mtu: int
    is_up: bool
    driver: str | None = None
    has_xdp: bool = False
    numa_node: int | None = None
    local_cpus: str | None = None  # such as "0-15"
    rings: Rings | None = None
    queues: tuple[Queue, ...] = ()
    features: Mapping[str, Feature] = field(default_factory=dict)
    spread: tuple[int, ...] | None = None  # RSS: queue of each slot of the table
    contexts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)  # the same per context
    rules: tuple[Rule, ...] | None = None
    private_flags: Mapping[str, bool] | None = None  # ethtool --show-priv-flags
    rx_filter: int | None = None  # HWTSTAMP_FILTER_*: what gets hardware time stamps
    has_htb_offload: bool | None = None

    @property
    def queue_count(self) -> int:
        """The number of rx queues; they are numbered from 0."""
        return len(self.queues)

    def context_over(self, queues: Iterable[int]) -> int | None:
        """Return an RSS context that spreads over exactly these queues."""
        wanted = set(queues)
        for number, table in self.contexts.items():
            if set(table) == wanted:
                return number
        return None

    def plain_rules(self, family: Family, port: int) -> list[Rule]:
        """Return the rules by which a port of a family is steered and nothing else is asked."""
        return [
            rule
            for rule in self.rules or ()
            if rule.is_plain and rule.family == family and rule.port == port
        ]

    def leads_to(self, rule: Rule, queues: Iterable[int]) -> bool:
        """Return whether a rule's flows reach exactly these queues."""
        if rule.context is None:
            return {rule.queue} == set(queues)
        return set(self.contexts.get(rule.context, ())) == set(queues)
