# SPDX-License-Identifier: Apache-2.0
"""Changing an interface, and undoing what was changed.

Invariants:
 - apply() writes each change down before it makes it, and undoes what it did
   if a later one fails: all or nothing.
 - undo() goes backwards, takes back only what still is as it was made, leaves
   alone what somebody has changed since, and may be run again at any time.

Owned by whoever holds the journal's lock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from ingestd.errors import EngineError, IngestdError
from ingestd.nic.changes import (
    Change,
    ContextChange,
    FeatureChange,
    RingsChange,
    RuleChange,
    SpreadChange,
)
from ingestd.nic.ethtool import Ethtool
from ingestd.nic.journal import Journal
from ingestd.nic.state import NicState, RingName

RETRY_PAUSE_S: Final = 0.2

Fate = Literal["undone", "gone", "changed since"]


class NicDevice(Protocol):
    """The attributes of an interface that are read and set; see RealDevice."""

    interface: str
    ethtool: Ethtool

    def read(self) -> NicState: ...
    def set_rings(self, values: Mapping[RingName, int]) -> None: ...


class RealDevice:
    """An interface of this machine."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.ethtool = Ethtool(interface)

    def read(self) -> NicState:
        """Return what it is like now."""
        from ingestd.nic.reading import read_nic

        return read_nic(self.interface)

    def set_rings(self, values: Mapping[RingName, int]) -> None:
        """Set ring parameters, by netlink."""
        from ingestd.nic.netlink import set_rings

        set_rings(self.interface, values)


class Undone(NamedTuple):
    """The result of one change."""

    change: Change
    fate: Fate


def apply(device: NicDevice, journal: Journal, changes: Sequence[Change]) -> None:
    """Make changes. Raises EngineError, with everything of this call undone again."""
    count_before = len(journal.changes)
    try:
        for change in changes:
            journal.add(change)
            journal.replace_last(make(device, change))
    except IngestdError as error:
        try:
            _undo_changes(device, journal, journal.changes[count_before:], [])
        except IngestdError as second:
            raise EngineError(
                f"{error}; and it could not all be undone ({second}): run"
                f" `ingestd nic undo {device.interface}`"
            ) from None
        raise


def undo(device: NicDevice, journal: Journal, retry_s: float = 0.0) -> list[Undone]:
    """Take back everything in the journal, newest first.

    retry_s: for how long what the kernel refuses is tried again, since a queue
    stays held for a moment after the process that had it. Raises EngineError
    with the rest still in the journal.
    """
    deadline_s = time.monotonic() + retry_s
    done: list[Undone] = []
    while True:
        try:
            _undo_changes(device, journal, journal.changes, done)
            return done
        except EngineError:
            if time.monotonic() >= deadline_s:
                raise
            time.sleep(RETRY_PAUSE_S)


def _undo_changes(
    device: NicDevice, journal: Journal, changes: Sequence[Change], done: list[Undone]
) -> None:
    for change in reversed(changes):
        done.append(Undone(change, _take_back(device, change)))
        journal.drop(change)


def make(device: NicDevice, change: Change) -> Change:
    """Make one change; return it with what is known now."""
    ethtool = device.ethtool
    match change:
        case RingsChange():
            device.set_rings(change.after)
        case FeatureChange():
            ethtool.set_feature(change.name, change.after)
        case SpreadChange():
            ethtool.set_spread(change.arguments())
        case ContextChange():
            made_id = ethtool.add_context(change.arguments())
            return change.model_copy(update={"made_id": made_id})
        case RuleChange():
            context = device.read().context_over(change.queues) if len(change.queues) > 1 else None
            made_id = ethtool.add_rule(change.arguments(context))
            return change.model_copy(update={"made_id": made_id})
    return change


def _take_back(device: NicDevice, change: Change) -> Fate:
    state = device.read()
    match change:
        case RingsChange():
            return _take_back_rings(device, state, change)
        case FeatureChange():
            feature = state.features.get(change.name)
            if feature is None or feature.is_on == change.before:
                return "gone"
            device.ethtool.set_feature(change.name, change.before)
            return "undone"
        case SpreadChange():
            if state.spread == change.before:
                return "gone"
            if state.spread is None or set(state.spread) != set(change.after):
                return "changed since"
            device.ethtool.set_spread(change.undo_arguments())
            return "undone"
        case ContextChange():
            return _take_back_context(device, state, change)
        case RuleChange():
            return _take_back_rule(device, state, change)


def _take_back_rings(device: NicDevice, state: NicState, change: RingsChange) -> Fate:
    """Set back those values that are still as they were set."""
    ours = {
        name: change.before[name]
        for name, value in change.after.items()
        if state.rings is not None and getattr(state.rings, name) == value
    }
    if ours:
        device.set_rings(ours)
        return "undone"
    is_back = state.rings is None or all(
        (getattr(state.rings, name) or 0) == value for name, value in change.before.items()
    )
    return "gone" if is_back else "changed since"


def _take_back_context(device: NicDevice, state: NicState, change: ContextChange) -> Fate:
    """A crash may have come before its number was written down: then its queues show it."""
    ours = [
        number
        for number, table in state.contexts.items()
        if set(table) == set(change.queues) and _is_ours(number, change)
    ]
    if not ours:
        return "changed since" if change.made_id in state.contexts else "gone"
    for number in ours:
        device.ethtool.delete_context(number)
    return "undone"


def _take_back_rule(device: NicDevice, state: NicState, change: RuleChange) -> Fate:
    """The same: a rule of unknown number is known by what it says."""
    ours = [
        rule
        for rule in state.plain_rules(change.family, change.port)
        if state.leads_to(rule, change.queues) and _is_ours(rule.id, change)
    ]
    if not ours:
        is_there = any(rule.id == change.made_id for rule in state.rules or ())
        return "changed since" if is_there else "gone"
    for rule in ours:
        device.ethtool.delete_rule(rule.id)
    return "undone"


def _is_ours(number: int, change: ContextChange | RuleChange) -> bool:
    if change.made_id is not None:
        return number == change.made_id
    return number not in change.ids_before
