# SPDX-License-Identifier: Apache-2.0
"""Flags that select flows: what they mean, and what they refuse."""

from __future__ import annotations

import argparse
import time

import pytest

from ingestd.cli.selection import (
    add_filters,
    add_order,
    filter_arguments,
    filter_of,
    order_of,
    require_some,
)
from ingestd.errors import UsageError
from ingestd.store.read.flow_source import FlowFilter, FlowOrder, FlowSort

DAY_NS = 86_400 * 10**9


def _parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("flows", nargs="*")
    add_filters(parser)
    add_order(parser)
    return parser.parse_args(arguments)


def test_no_flag_is_every_flow() -> None:
    arguments = _parse()
    assert filter_of(arguments) == FlowFilter()
    assert order_of(arguments) == FlowOrder()
    assert set(filter_arguments(arguments).values()) == {None}
    with pytest.raises(UsageError, match="no flow is named"):
        require_some(arguments)
    require_some(_parse("6f1c22aa"))


def test_every_flag() -> None:
    arguments = _parse(
        *("--state", "sealed", "--state", "open", "--name", "*.log", "--label", "a=b=c"),
        *("--label", "d=", "--listener", "in", "--since", "1970-01-02", "--sort=-bytes"),
        *("--until", "1970-01-03T02:00+02:00", "--limit", "7"),
    )
    assert filter_of(arguments) == FlowFilter(
        states=frozenset({"sealed", "open"}),
        name_glob="*.log",
        labels={"a": "b=c", "d": ""},
        listener="in",
        since_ns=DAY_NS,
        until_ns=2 * DAY_NS,
    )
    assert order_of(arguments) == FlowOrder(FlowSort.BYTES, is_descending=True)
    assert arguments.limit == 7
    assert filter_arguments(arguments) == {
        "states": ["sealed", "open"],
        "name": "*.log",
        "labels": {"a": "b=c", "d": ""},
        "listener": "in",
        "since_ns": DAY_NS,
        "until_ns": 2 * DAY_NS,
    }
    require_some(arguments)


def test_how_long_ago() -> None:
    before_ns = time.time_ns()
    found_ns = _parse("--since", "3d").since
    assert before_ns - 3 * DAY_NS - 10**6 <= found_ns <= time.time_ns() - 3 * DAY_NS


@pytest.mark.parametrize(
    "arguments",
    [
        ("--state", "lost"),
        ("--label", "a"),
        ("--label", "=a"),
        ("--since", "yesterday"),
        ("--since", "3y"),
        ("--until", "1969-12-31"),
        ("--sort", "size"),
        ("--limit", "-1"),
        ("--limit", "many"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        _parse(*arguments)
