# SPDX-License-Identifier: Apache-2.0
"""From what an interface is, and what is wanted of it, to the changes between.

Pure. Invariants: a state that is as wanted needs no change; rules of others
are never replaced; queues that take no zero-copy flows keep all other traffic,
since a socket that reads from the wrong queue gets EFAULT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from ingestd.errors import EngineError
from ingestd.nic.changes import (
    Change,
    ContextChange,
    FeatureChange,
    RingsChange,
    RuleChange,
    SpreadChange,
)
from ingestd.nic.state import (
    SPLIT_ON,
    SPLIT_UNKNOWN,
    Family,
    Feature,
    NicState,
    RingName,
    Rings,
    Rule,
)

NTUPLE: Final = "ntuple-filters"
HARDWARE_GRO: Final = "rx-gro-hw"
# mlx5 splits headers only while its hardware GRO is on (en_ethtool.c, Linux 6.16).
SPLIT_WANTS_GRO: Final = frozenset({"mlx5_core"})


class Steered(NamedTuple):
    """Flows that are wanted on certain queues: those of one store's listeners."""

    flows: tuple[tuple[Family, int], ...]  # family and destination port
    queues: tuple[int, ...]


def last_queues(state: NicState, count: int) -> tuple[int, ...]:
    """Return the last rx queues. Raises EngineError if none would be left for other traffic."""
    if not 1 <= count < state.queue_count:
        raise EngineError(
            f"interface {state.interface} has {state.queue_count} rx queues, of which {count}"
            " cannot be taken, as other traffic needs one: take fewer, or see"
            f" `ethtool -l {state.interface}` for how many it can have"
        )
    return tuple(range(state.queue_count - count, state.queue_count))


def plan_changes(state: NicState, wanted: Sequence[Steered], rx_ring: int = 0) -> list[Change]:
    """Return what is to be changed, in order.

    rx_ring: descriptors of each rx ring; 0: as it is. Raises EngineError with
    the remedy where the interface cannot be made so.
    """
    taken = [queue for steered in wanted for queue in steered.queues]
    others = _other_queues(state, taken)
    rules = [rule for steered in wanted for rule in _rules(state, steered)]
    contexts = [context for steered in wanted for context in _contexts(state, steered)]
    return [
        *_gro(state),
        *_rings(state, rx_ring),
        *(_feature(state, NTUPLE) if rules else ()),
        *_spread(state, others),
        *contexts,
        *rules,
    ]


def _other_queues(state: NicState, taken: Sequence[int]) -> tuple[int, ...]:
    for queue in taken:
        if queue >= state.queue_count:
            raise EngineError(
                f"interface {state.interface} has no rx queue {queue}, but 0 to"
                f" {state.queue_count - 1}: name one of those"
            )
    others = tuple(queue for queue in range(state.queue_count) if queue not in taken)
    if not others:
        raise EngineError(
            f"interface {state.interface} has {state.queue_count} rx queues, and none would be left"
            " for other traffic: take fewer"
        )
    return others


def _gro(state: NicState) -> Iterator[Change]:
    is_split = state.rings is not None and state.rings.tcp_data_split == SPLIT_ON
    if state.driver in SPLIT_WANTS_GRO and not is_split:
        yield from _feature(state, HARDWARE_GRO)


def _feature(state: NicState, name: str) -> Iterator[Change]:
    """Turn a feature on, if it is there and off."""
    feature = state.features.get(name)
    if feature is None or feature.is_on:
        return
    if feature.is_fixed:
        raise EngineError(
            f"interface {state.interface}: {name} is off and the driver does not let it be turned"
            " on: use another network card"
        )
    yield FeatureChange(name=name, before=False, after=True)


def _rings(state: NicState, rx_ring: int) -> Iterator[Change]:
    rings = state.rings
    if rings is None:
        raise EngineError(
            f"interface {state.interface}: its driver {state.driver or '(unknown)'} has no ring"
            " parameters, so no header split: use a network card with it"
        )
    before: dict[RingName, int] = {}
    after: dict[RingName, int] = {}
    if rings.tcp_data_split != SPLIT_ON:
        # A driver may say nothing as long as nothing was asked for.
        before["tcp_data_split"] = rings.tcp_data_split or SPLIT_UNKNOWN
        after["tcp_data_split"] = SPLIT_ON
    if rings.hds_thresh:
        before["hds_thresh"], after["hds_thresh"] = rings.hds_thresh, 0
    if rx_ring and rings.rx is not None and rings.rx != rx_ring:
        before["rx"], after["rx"] = rings.rx, rx_ring
    if after:
        yield RingsChange(before=before, after=after)


def _spread(state: NicState, others: tuple[int, ...]) -> Iterator[Change]:
    if state.spread is None:
        raise EngineError(
            f"interface {state.interface}: RSS cannot be kept off single queues, as its driver has"
            " no table for it: use another network card"
        )
    if not set(state.spread) <= set(others):
        yield SpreadChange(before=state.spread, after=others, queue_count=state.queue_count)


def _contexts(state: NicState, steered: Steered) -> Iterator[Change]:
    queues = steered.queues
    if len(queues) < 2 or not steered.flows or state.context_over(queues) is not None:
        return
    yield ContextChange(
        queues=queues, queue_count=state.queue_count, ids_before=tuple(sorted(state.contexts))
    )


def _rules(state: NicState, steered: Steered) -> Iterator[Change]:
    if state.rules is None and steered.flows:
        raise EngineError(
            f"interface {state.interface}: its driver has no steering rules (`ethtool -n"
            f" {state.interface}` fails): use another network card"
        )
    ids = tuple(sorted(rule.id for rule in state.rules or ()))
    for family, port in steered.flows:
        there = state.plain_rules(family, port)
        if any(state.leads_to(rule, steered.queues) for rule in there):
            continue
        if there:
            raise EngineError(
                f"interface {state.interface}: rule {there[0].id} steers {family} port {port} to"
                f" {there[0].target} already: take it away with"
                f" `ethtool -N {state.interface} delete {there[0].id}`"
            )
        yield RuleChange(family=family, port=port, queues=steered.queues, ids_before=ids)


def state_after(state: NicState, changes: Sequence[Change]) -> NicState:
    """Return what an interface will be like once the changes are made."""
    for change in changes:
        match change:
            case RingsChange():
                state = replace(state, rings=replace(state.rings or Rings(), **change.after))
            case FeatureChange():
                features = {**state.features, change.name: Feature(change.after, is_fixed=False)}
                state = replace(state, features=features)
            case SpreadChange():
                state = replace(state, spread=change.after)
            case ContextChange():
                number = max(state.contexts, default=0) + 1
                state = replace(state, contexts={**state.contexts, number: change.queues})
            case RuleChange():
                state = replace(state, rules=(*(state.rules or ()), _new_rule(state, change)))
    return state


def _new_rule(state: NicState, change: RuleChange) -> Rule:
    is_single = len(change.queues) == 1
    return Rule(
        id=max((rule.id for rule in state.rules or ()), default=-1) + 1,
        family=change.family,
        port=change.port,
        queue=change.queues[0] if is_single else None,
        context=None if is_single else state.context_over(change.queues),
        is_plain=True,
    )
