# SPDX-License-Identifier: Apache-2.0
"""The lock of each flow of a store: a connection that feeds the flow holds it, or its removal.

Invariants: never both. A flow that is fed is not removed, and one whose removal
has begun is not fed again before it is forgotten, so that nothing is ever
acknowledged that is hidden then. What an image of the store says of a flow is no reason
to remove it, if the flow was fed at any time since the image was begun. Any
thread may call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class FlowLock:
    """The flows of one store that are fed by protocol `ingest`, and those that are removed."""

    def __init__(self, removed: Iterable[bytes] = ()) -> None:
        self._mutex = threading.Lock()
        self._fed: set[bytes] = set()
        self._fed_since: set[bytes] | None = None  # the image was begun; None: there is none
        self._removed = set(removed)

    @contextmanager
    def image(self) -> Iterator[None]:
        """Hold an image of the store, from before it is read to the last claim that rests on it.

        One at a time: flows that are fed meanwhile are remembered as long as it is held.
        """
        with self._mutex:
            assert self._fed_since is None
            self._fed_since = set(self._fed)
        try:
            yield
        finally:
            with self._mutex:
                self._fed_since = None

    def begin(self, flow: bytes) -> bool:
        """Let a connection feed a flow; False if it is removed."""
        with self._mutex:
            if flow in self._removed:
                return False
            self._fed.add(flow)
            if self._fed_since is not None:
                self._fed_since.add(flow)
            return True

    def end(self, flow: bytes) -> None:
        """Know that no connection feeds a flow any more."""
        with self._mutex:
            self._fed.discard(flow)

    def claim(self, flow: bytes) -> bool:
        """Keep connections from a flow that is to be removed.

        False if one feeds it now, or did since the image that is held was begun.
        """
        with self._mutex:
            if flow in self._fed or (self._fed_since is not None and flow in self._fed_since):
                return False
            self._removed.add(flow)
            return True

    def release(self, flow: bytes) -> None:
        """Forget a removal: it was not done, or nothing is left of the flow."""
        with self._mutex:
            self._removed.discard(flow)

    def is_removed(self, flow: bytes) -> bool:
        """Return whether a flow's removal has begun."""
        with self._mutex:
            return flow in self._removed
