# SPDX-License-Identifier: Apache-2.0
"""A network interface that is made up: what ethtool and netlink would show and set of it.

ethtool's texts have the form that ethtool 6.14 was recorded to print for a
driver with header split, steering rules and RSS contexts on Linux 7.3.
Invariant: a refused change changes nothing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingestd.errors import EngineError
from ingestd.nic.ethtool import Ethtool, EthtoolResult, parse_rules
from ingestd.nic.state import SPLIT_OFF, Feature, NicState, Queue, Rings

TABLE_SLOTS = 16


class CrashError(BaseException):
    """The process ends here: nothing that is only an Exception may catch it."""


@dataclass
class Settings:
    """What of the interface can be changed; compared as a whole."""

    rings: dict[str, int | None] = field(
        default_factory=lambda: {"rx": 64, "tcp_data_split": SPLIT_OFF, "hds_thresh": 256}
    )
    features: dict[str, bool] = field(
        default_factory=lambda: {"ntuple-filters": False, "rx-gro-hw": False}
    )
    spread: tuple[int, ...] = ()
    contexts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    rules: dict[int, dict[str, Any]] = field(default_factory=dict)


class FakeNic:
    """One interface, "zc0". Public attributes steer it."""

    def __init__(self, queue_count: int = 4, driver: str = "zcsim") -> None:
        self.interface = "zc0"
        self.index = 7
        self.queue_count = queue_count
        self.driver_name = driver
        self.mtu = 1500
        self.is_up = True
        self.has_xdp = False
        self.held: dict[int, Any] = {}
        self.private_flags: dict[str, bool] | None = {
            "rx_cqe_compress": False,
            "rx_striding_rq": True,
            "tx_port_ts": False,
        }
        self.rx_filter: int | None = 0
        self.has_htb_offload: bool | None = False
        self.now = Settings(spread=tuple(i % queue_count for i in range(TABLE_SLOTS)))
        self.has_rings = True
        self.has_rules = True
        self.fixed: set[str] = set()
        self.done: list[list[str]] = []  # changes that ethtool was asked for, in order
        self.crash_at: int | None = None  # the change, from 0, at which the process ends
        self.crash_after = False  # ... when the change is made already
        self.refuse: dict[str, str] = {}  # first words of a change -> reason
        self.ethtool = Ethtool(self.interface, self.run)
        self._changes_count = 0

    # --- As ingestd.nic.work.NicDevice ------------------------------------------------

    def read(self) -> NicState:
        assert self.ethtool.driver() == self.driver_name
        rings = Rings(rx_max=1024, hds_thresh_max=1023, **self.now.rings)
        return NicState(
            interface=self.interface,
            index=self.index,
            mtu=self.mtu,
            is_up=self.is_up,
            driver=self.driver_name,
            has_xdp=self.has_xdp,
            rings=rings if self.has_rings else None,
            queues=tuple(
                Queue(i, napi_id=8193 + i, held_by=self.held.get(i))
                for i in range(self.queue_count)
            ),
            features=self.ethtool.features(),
            spread=self.now.spread,
            contexts=dict(self.now.contexts),
            rules=self.ethtool.rules(),
            private_flags=self.ethtool.private_flags(),
            rx_filter=self.rx_filter,
            has_htb_offload=self.has_htb_offload,
        )

    def set_rings(self, values: Mapping[str, int]) -> None:
        def change() -> None:
            self.now.rings.update(values)

        self._change(["-G", self.interface, *values], change)

    # --- As the program ethtool -----------------------------------------------------

    def run(self, arguments: Sequence[str]) -> EthtoolResult:
        match list(arguments):
            case ["-i", _]:
                return EthtoolResult(
                    0, f"driver: {self.driver_name}\nversion: 7.3.4\nbus-info: \n", ""
                )
            case ["--json", "-k", _]:
                return EthtoolResult(0, self._features_text(), "")
            case ["--show-priv-flags", _] if self.private_flags is not None:
                return EthtoolResult(0, self._private_flags_text(self.private_flags), "")
            case ["--show-priv-flags", _]:
                return EthtoolResult(1, "", "netlink error: Operation not supported\n")
            case ["-n", _] if self.has_rules:
                return EthtoolResult(0, self._rules_text(), "")
            case ["-n", _]:
                return EthtoolResult(
                    1, "", "rxclass: Cannot get RX class rule count: Not supported\n"
                )
        try:
            return EthtoolResult(0, self._set(list(arguments)), "")
        except EngineError as refusal:
            return EthtoolResult(1, "", f"rmgr: Cannot insert RX class rule: {refusal}\n")

    def _features_text(self) -> str:
        shown = {
            name: {"active": on, "fixed": name in self.fixed, "requested": on}
            for name, on in self.now.features.items()
        }
        return json.dumps([{"ifname": self.interface, **shown}])

    def _private_flags_text(self, flags: dict[str, bool]) -> str:
        lines = [f"{name:18}: {'on' if is_on else 'off'}\n" for name, is_on in flags.items()]
        return f"Private flags for {self.interface}:\n{''.join(lines)}"

    def _rules_text(self) -> str:
        head = f"{self.queue_count} RX rings available\nTotal {len(self.now.rules)} rules\n\n"
        return head + "\n".join(rule_text(i, **rule) for i, rule in self.now.rules.items()) + "\n"

    def _set(self, arguments: list[str]) -> str:
        said: list[str] = []

        def change() -> None:
            said.append(self._obey(arguments))

        self._change(arguments, change)
        return said[0]

    def _change(self, arguments: list[str], change: Any) -> None:
        """Make a change, or refuse it, or let the process end before or after."""
        number, self._changes_count = self._changes_count, self._changes_count + 1
        self.done.append(arguments)
        text = " ".join(arguments)
        for beginning, reason in self.refuse.items():
            if text.startswith(beginning):
                raise EngineError(reason)
        if number == self.crash_at and not self.crash_after:
            raise CrashError
        change()
        if number == self.crash_at:
            raise CrashError

    def _obey(self, arguments: list[str]) -> str:
        now = self.now
        match arguments:
            case ["-K", _, name, value]:
                now.features[name] = value == "on"
                if name == "ntuple-filters" and value == "off":
                    now.rules.clear()
            case ["-X", _, "context", "new", *words]:
                number = max(now.contexts, default=0) + 1
                now.contexts[number] = self._table(words)
                return f"New RSS context is {number}\n"
            case ["-X", _, "context", number, "delete"]:
                if any(rule["context"] == int(number) for rule in now.rules.values()):
                    raise EngineError("Device or resource busy")
                del now.contexts[int(number)]
            case ["-X", _, *words]:
                now.spread = self._table(words)
            case ["-N", _, "delete", number]:
                del now.rules[int(number)]
            case ["-N", _, "flow-type", family, "dst-port", port, "action", queue]:
                return self._add_rule(family=family, port=int(port), queue=int(queue))
            case ["-N", _, "flow-type", family, "dst-port", port, "context", context]:
                return self._add_rule(family=family, port=int(port), context=int(context))
            case _:
                raise AssertionError(arguments)
        return ""

    def _add_rule(
        self, family: str, port: int, queue: int | None = None, context: int | None = None
    ) -> str:
        if not self.now.features["ntuple-filters"]:
            raise EngineError("Operation not supported")
        if queue is not None and queue >= self.queue_count:
            raise EngineError("Invalid argument")
        if context is not None and context not in self.now.contexts:
            raise EngineError("Invalid argument")
        number = max(self.now.rules, default=-1) + 1
        self.now.rules[number] = {
            "family": family,
            "port": port,
            "queue": queue,
            "context": context,
        }
        return f"Added rule with ID {number}\n"

    def _table(self, words: list[str]) -> tuple[int, ...]:
        match words:
            case ["default"]:
                queues = list(range(self.queue_count))
            case ["equal", count]:
                queues = list(range(int(count)))
            case ["start", first, "equal", count]:
                queues = list(range(int(first), int(first) + int(count)))
            case ["weight", *weights]:
                return self._weighted([int(weight) for weight in weights])
            case _:
                raise AssertionError(words)
        assert max(queues) < self.queue_count
        return tuple(queues[i % len(queues)] for i in range(TABLE_SLOTS))

    def _weighted(self, weights: list[int]) -> tuple[int, ...]:
        """As ethtool's fill_indir_table() does: neighbouring slots, by share."""
        assert len(weights) == self.queue_count
        table, queue, reached = [], -1, 0
        for slot in range(TABLE_SLOTS):
            while slot >= reached * TABLE_SLOTS // sum(weights):
                queue += 1
                reached += weights[queue]
            table.append(queue)
        return tuple(table)

    # --- For tests --------------------------------------------------------------------

    def snapshot(self) -> Settings:
        return copy.deepcopy(self.now)

    def rules(self) -> list[Any]:
        """What is steered, as (family, port, target)."""
        found = parse_rules(self._rules_text())
        return [(rule.family, rule.port, rule.target) for rule in found]

    def feature(self, name: str) -> Feature:
        return self.ethtool.features()[name]


def rule_text(
    number: int, family: str, port: int, queue: int | None = None, context: int | None = None
) -> str:
    """What ethtool 6.14 shows of a rule that asks for a destination port only."""
    if family == "tcp4":
        kind, ip, tos = "TCP over IPv4", "0.0.0.0 mask: 255.255.255.255", "TOS"
    else:
        ones = ":".join(["ffff"] * 8)
        kind, ip, tos = "TCP over IPv6", f":: mask: {ones}", "Traffic Class"
    action = f"Direct to queue {queue}" if context is None else f"Direct to RSS Context {context}"
    return (
        f"Filter: {number}\n\tRule Type: {kind}\n\tSrc IP addr: {ip}\n\tDest IP addr: {ip}\n"
        f"\t{tos}: 0x0 mask: 0xff\n\tSrc port: 0 mask: 0xffff\n\tDest port: {port} mask: 0x0\n"
        f"\tAction: {action}\n"
    )
