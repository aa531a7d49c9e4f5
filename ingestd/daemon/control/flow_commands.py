# SPDX-License-Identifier: Apache-2.0
"""The commands about flows: flows, flow, rm.

Invariants: what a listing holds in memory is what its source holds, and a few lines; what is
removed was named by its id, or by enough of it that only one flow has. Each runs on its
connection's thread.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ingestd.control.messages import Message
from ingestd.daemon.control.parts import ControlParts, ServedFlows
from ingestd.daemon.control.request import RefusedError, Request
from ingestd.daemon.maintenance.removals import RemovalState
from ingestd.store.read.flow_source import FlowFilter, FlowOrder
from ingestd.store.read.flows import STATES

if TYPE_CHECKING:
    from ingestd.daemon.control.channel import Channel

LIMIT_MAX: Final = 2**53  # what JSON's numbers hold exactly
TIME_NS_MAX: Final = 2**63 - 1
LISTING_WAIT_MAX_S: Final = 10.0


def list_flows(request: Request, channel: Channel, parts: ControlParts) -> Message:
    """Send each flow that matches as a line; answer with how many there were."""
    served = _store_of(request, parts)
    wanted, order = filter_of(request), _order_of(request)
    limit = request.number("limit", 0, LIMIT_MAX)
    request.end()
    count = 0

    def lines() -> Iterator[Message]:
        nonlocal count
        for flow in served.source.flows(wanted, order, limit):
            count += 1
            yield {"flow": {**flow.as_dict(), "misdated": served.misdated(flow)}}

    listings = served.listings[channel.may_change]
    if not listings.acquire(timeout=LISTING_WAIT_MAX_S):
        raise RefusedError("busy", "others list the flows of this store: try again")
    try:
        channel.send(lines())
    finally:
        listings.release()
    return {"count": count}


def show_flow(request: Request, _channel: Channel, parts: ControlParts) -> Message:
    """Answer with one flow, by its whole id."""
    served = _store_of(request, parts)
    flow_id = _id_of(request.text("flow"))
    request.end()
    flow = served.source.flow(flow_id)
    if flow is None:
        raise RefusedError("unknown_flow", "there is no such flow")
    return {"flow": {**flow.as_dict(), "misdated": served.misdated(flow)}}


def remove_flows(request: Request, channel: Channel, parts: ControlParts) -> Message:
    """Remove flows by their ids; a line for each says the result, once that is durable."""
    served = _store_of(request, parts)
    names = request.texts("flows")
    request.end()
    if not names:
        raise RefusedError("bad_request", '"flows" names no flow')
    ids = list(dict.fromkeys(_id_of(name) for name in names))
    results = served.remove(ids, parts.stopping.is_set)
    channel.send(
        {
            "flow": str(uuid.UUID(bytes=flow_id)),
            "result": result.state.value,
            "bytes": result.bytes_count,
        }
        for flow_id, result in zip(ids, results, strict=True)
    )
    removed_count = sum(result.state is RemovalState.REMOVED for result in results)
    return {"removed": removed_count, "not_removed": len(ids) - removed_count}


def filter_of(request: Request) -> FlowFilter:
    """Return the filter that the arguments of a request make."""
    states = request.texts("states") or []
    if unknown := sorted(set(states) - set(STATES)):
        raise RefusedError(
            "bad_request", f'"states" are of {", ".join(STATES)}, not {unknown[0]!a:.40}'
        )
    return FlowFilter(
        states=frozenset(states),
        name_glob=request.optional_text("name"),
        labels=request.labels("labels"),
        listener=request.optional_text("listener"),
        since_ns=request.number("since_ns", 0, TIME_NS_MAX),
        until_ns=request.number("until_ns", 0, TIME_NS_MAX),
    )


def _order_of(request: Request) -> FlowOrder:
    text = request.optional_text("sort")
    if text is None:
        return FlowOrder()
    with suppress(ValueError):
        return FlowOrder.parse(text)
    raise RefusedError("bad_request", '"sort" is started, ended, name or bytes, or one behind a -')


def _store_of(request: Request, parts: ControlParts) -> ServedFlows:
    """The store that a request names by name or UUID; the only one, where it names none."""
    name = request.optional_text("store")
    stores = parts.stores
    if name is None and len(stores) == 1:
        return next(iter(stores.values()))
    if name is None:
        raise RefusedError("bad_request", f'"store" is missing: name one of {", ".join(stores)}')
    if name in stores:
        return stores[name]
    for store in stores.values():
        if store.uuid == name:
            return store
    raise RefusedError("unknown_store", f"there is no such store; there are {', '.join(stores)}")


def _id_of(text: str) -> bytes:
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise RefusedError("bad_request", f"{text!a:.60} is no id of a flow") from None
