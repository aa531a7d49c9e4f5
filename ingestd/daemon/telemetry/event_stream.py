# SPDX-License-Identifier: Apache-2.0
"""The stream of what becomes of flows, for whoever subscribes to it.

Invariants: every event has a number, which grows by one from each to the next for as long as the
daemon runs; a subscriber gets each event, or in its place a line with how many it missed. Nobody
is waited for: each subscriber has a queue of its own, of bounded length. Any thread may publish
and subscribe; a subscription is one thread's.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

QUEUE_COUNT_MAX: Final = 8192
# Of those who may only read, and of those who may change something.
SUBSCRIBERS_MAX: Final = 8

StreamItem = dict[str, Any]


class Subscription:
    """The events that one subscriber has not fetched; `wake` is called when there are some."""

    def __init__(
        self,
        wake: Callable[[], None],
        mutex: threading.Lock,
        first: StreamItem,
        *,
        may_change: bool,
    ) -> None:
        self.may_change = may_change
        self.wake = wake
        self._mutex = mutex
        self._queue = deque([first])
        self._lost_count = 0  # behind what the queue has

    def put(self, item: StreamItem) -> None:
        """Take an event, or know that it is missed; under the stream's mutex."""
        is_first = not self._queue and not self._lost_count
        if len(self._queue) < QUEUE_COUNT_MAX:
            if self._lost_count:
                self._queue.append(_lost(self._lost_count))
                self._lost_count = 0
            self._queue.append(item)
        else:
            self._lost_count += int(item.get("count", 1))
        if is_first:
            self.wake()

    def take(self) -> list[StreamItem]:
        """Return, and forget, what came since the last call."""
        with self._mutex:
            items = list(self._queue)
            if self._lost_count:
                items.append(_lost(self._lost_count))
            self._queue.clear()
            self._lost_count = 0
        return items


def _lost(count: int) -> StreamItem:
    return {"event": "lost", "count": count}


class EventStream:
    """Publishes to all subscribers of this daemon."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._run = str(uuid.uuid4())
        self._number = 0
        self._subscriptions: list[Subscription] = []

    def subscribe(
        self, wake: Callable[[], None], *, may_change: bool = True
    ) -> Subscription | None:
        """Let a subscriber have all that comes from now on; None: there are too many."""
        with self._mutex:
            alike = [s for s in self._subscriptions if s.may_change == may_change]
            if len(alike) == SUBSCRIBERS_MAX:
                return None
            first = {"event": "subscribed", "number": self._number, "run": self._run}
            subscription = Subscription(wake, self._mutex, first, may_change=may_change)
            self._subscriptions.append(subscription)
            wake()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a subscriber."""
        with self._mutex:
            self._subscriptions.remove(subscription)

    def publish(self, event: str, **fields: Any) -> None:
        """Give an event to everybody."""
        with self._mutex:
            self._number += 1
            if not self._subscriptions:
                return
            time = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            item = {"event": event, "number": self._number, "time": time, **fields}
            for subscription in self._subscriptions:
                subscription.put(item)

    def wake_all(self) -> None:
        """Let every subscriber look, as the end has come."""
        with self._mutex:
            for subscription in self._subscriptions:
                subscription.wake()

    def lose(self, count: int) -> None:
        """Let everybody know of events that were lost before they came here."""
        with self._mutex:
            for subscription in self._subscriptions:
                subscription.put(_lost(count))
