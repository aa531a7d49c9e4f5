# SPDX-License-Identifier: Apache-2.0
"""Selecting flows on the command line: filters, orders and limits, for ls, rm and ctl.

Invariant: what the flags say means the same, whether a daemon or this process selects. Owned by
the main thread.
"""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from ingestd.errors import UsageError

if TYPE_CHECKING:
    from ingestd.store.read.flow_source import FlowFilter, FlowOrder

SORTS: Final = ("started", "ended", "name", "bytes")
_STATES: Final = ("open", "sealed", "interrupted", "damaged")
_AGO: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LIMIT_MAX: Final = 2**53
_NS: Final = 1_000_000_000


def add_filters(parser: ArgumentParser) -> None:
    """Add the flags that say which flows are meant."""
    group = parser.add_argument_group("which flows (all that is given must hold)")
    group.add_argument(
        "--state",
        dest="states",
        choices=_STATES,
        action="append",
        default=[],
        help="in this state; given several times: in one of these",
    )
    group.add_argument(
        "--name",
        metavar="GLOB",
        dest="name_glob",
        help="with a name that matches, such as 'a*.log'",
    )
    group.add_argument(
        "--label",
        metavar="KEY=VALUE",
        dest="label_list",
        type=_label,
        action="append",
        default=[],
        help="with this label; may be given several times",
    )
    group.add_argument("--listener", metavar="NAME", help="that came by this listener")
    group.add_argument(
        "--since",
        metavar="TIME",
        type=_time_ns,
        help="that began at or after it: 2026-11-27, 2026-11-27T08:00Z, or 90m, 3d (ago)",
    )
    group.add_argument("--until", metavar="TIME", type=_time_ns, help="that began before it")


def add_order(parser: ArgumentParser) -> None:
    """Add the flags that say in which order, and how many."""
    parser.add_argument(
        "--sort",
        metavar="KEY",
        type=_sort,
        default="started",
        help="started (the default), ended, name or bytes; the largest first with a - before it:"
        " --sort=-started",
    )
    parser.add_argument("--limit", metavar="N", type=_limit, help="the first N of that order")


def filter_of(arguments: Namespace) -> FlowFilter:
    """Return the filter that the flags make."""
    from ingestd.store.read.flow_source import FlowFilter

    return FlowFilter(
        states=frozenset(arguments.states),
        name_glob=arguments.name_glob,
        labels=dict(arguments.label_list),
        listener=arguments.listener,
        since_ns=arguments.since,
        until_ns=arguments.until,
    )


def order_of(arguments: Namespace) -> FlowOrder:
    """Return the order that the flags name."""
    from ingestd.store.read.flow_source import FlowOrder

    return FlowOrder.parse(arguments.sort)


def filter_arguments(arguments: Namespace) -> dict[str, Any]:
    """Return the filter as the arguments of a request to a daemon."""
    return {
        "states": arguments.states or None,
        "name": arguments.name_glob,
        "labels": dict(arguments.label_list) or None,
        "listener": arguments.listener,
        "since_ns": arguments.since,
        "until_ns": arguments.until,
    }


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not a label: write KEY=VALUE")
    return key, value


def _sort(text: str) -> str:
    if text.removeprefix("-") not in SORTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(SORTS)}")
    return text


def _limit(text: str) -> int:
    if not text.isdecimal() or int(text) > _LIMIT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _time_ns(text: str) -> int:
    """A time of ISO 8601, in UTC where it has no zone; or how long ago."""
    if found := _AGO.fullmatch(text):
        when = datetime.now(UTC) - timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
    else:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no time: write 2026-11-27, 2026-11-27T08:00Z, or 90m, 3d"
            ) from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    ns = (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    if ns < 0:
        raise argparse.ArgumentTypeError(f"{text!r} lies before 1970")
    return ns


def require_some(arguments: Namespace) -> None:
    """Raise UsageError where neither a flow is named nor a filter given."""
    if not arguments.flows and filter_of(arguments).is_empty:
        raise UsageError("no flow is named, nor a filter given: ingestd ls shows their ids")
