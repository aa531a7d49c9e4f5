# SPDX-License-Identifier: Apache-2.0
"""A steering rule on trial: inserted, looked for, and taken away again.

The flag ntuple-filters says that a driver knows the command, not that it takes a
rule for a destination port alone, nor that there is room for one more.

Invariants: nothing is tried where a rule that is wanted is there already, or
where rules are turned off; what was inserted is taken away, or named. Owned by
whoever examines the interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ingestd.errors import EngineError
from ingestd.finding import Finding, Verdict
from ingestd.nic.ethtool import Ethtool
from ingestd.nic.plan import NTUPLE, Steered
from ingestd.nic.state import NicState

SUBJECT: Final = "trial of a rule"
# RFC 863, discard: nothing of ours listens there, and hardly anything of others.
PORT: Final = 9


def rule_trial_findings(
    state: NicState, wanted: Sequence[Steered], ethtool: Ethtool, refusal: Verdict = "fail"
) -> list[Finding]:
    """Return whether the card takes a steering rule; nothing where no flow is to be steered.

    refusal: the verdict on a card that takes none: whether that is an obstacle, or flows then
    arrive by copy.
    """
    steered = [one for one in wanted if one.flows and one.queues]
    if not steered:
        return []
    if any(_is_there(state, one) for one in steered):
        return [Finding(SUBJECT, "ok", "a rule that is wanted is in place, so none was tried")]
    feature = state.features.get(NTUPLE)
    if feature is not None and not feature.is_on:
        return [
            Finding(
                SUBJECT,
                "unknown",
                f"{NTUPLE} is off, so none could be tried",
                f"ethtool -K {state.interface} ntuple on, and examine again",
            )
        ]
    return [_try(state, steered[0].queues[0], ethtool, refusal)]


def _is_there(state: NicState, steered: Steered) -> bool:
    return any(
        state.leads_to(rule, steered.queues)
        for family, port in steered.flows
        for rule in state.plain_rules(family, port)
    )


def _try(state: NicState, queue: int, ethtool: Ethtool, refusal: Verdict) -> Finding:
    before = {rule.id for rule in ethtool.rules() or ()}
    arguments = ["flow-type", "tcp4", "dst-port", str(PORT), "action", str(queue)]
    command = f"ethtool -N {state.interface} {' '.join(arguments)}"
    reason = ""
    made_ids: set[int] = set()
    try:
        made_ids = {ethtool.add_rule(arguments)}
    except EngineError as error:
        reason = str(error)
    after = ethtool.rules() or ()
    alike = {r.id for r in after if r.is_plain and (r.family, r.port) == ("tcp4", PORT)}
    new = {r.id for r in after if r.id in alike and r.queue == queue} - before
    # One that is alike may be another's. Only where no number was reported, a new one that also
    # has our queue is taken for ours.
    left = _take_away(ethtool, made_ids or new)
    if left:
        numbers = ", ".join(map(str, sorted(left)))
        return Finding(
            SUBJECT,
            "warn",
            f"rule {numbers} was tried, and the card did not take it away again",
            f"ethtool -N {state.interface} delete {numbers}",
        )
    if "not permitted" in reason:
        text = "without CAP_NET_ADMIN none could be tried"
        return Finding(SUBJECT, "unknown", text, "examine again as root")
    if reason:
        remedy = f"look for the driver's reason in dmesg, and try by hand: {command}"
        return Finding(SUBJECT, refusal, f"the card takes no steering rule: {reason}", remedy)
    if not alike & made_ids:
        text = "the card took a rule, but does not list it, so whether it works is not known"
        return Finding(SUBJECT, "unknown", text, f"{command}, and ethtool -n {state.interface}")
    return Finding(SUBJECT, "ok", f"the card took a rule for port {PORT}, and gave it back")


def _take_away(ethtool: Ethtool, rule_ids: set[int]) -> set[int]:
    """Delete rules; return those that could not be deleted."""
    left = set()
    for rule_id in rule_ids:
        try:
            ethtool.delete_rule(rule_id)
        except EngineError:
            left.add(rule_id)
    return left
