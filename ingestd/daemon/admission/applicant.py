# SPDX-License-Identifier: Apache-2.0
"""A connection of protocol `ingest` whose hello is right, and about which is to be decided.

Invariant: what the sender said stays as it is, whichever worker has the connection. Owned by the
main thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from ingestd.daemon.telemetry.flow_events import FlowTexts

if TYPE_CHECKING:
    from ingestd.core.border import AdmissionRequest
    from ingestd.daemon.workers.worker import WorkerThread
    from ingestd.protocol.blocks import Hello

Connection: TypeAlias = tuple[str, tuple[int, int]]  # name of the worker, its name there


@dataclass(frozen=True)
class Applicant:
    """A connection whose hello is right."""

    worker: WorkerThread
    request: AdmissionRequest
    hello: Hello
    flow: bytes
    key: str | None  # that authenticated it
    moves_count: int = 0  # how often it has been moved
    # Stores that have been looked through for the flow, and do not have it.
    absent: set[str] = field(default_factory=set, compare=False)

    @property
    def connection(self) -> Connection:
        """The key of a connection, unique over all workers."""
        return self.worker.name, self.request.connection

    @property
    def texts(self) -> FlowTexts:
        """The name and labels that the hello gives the flow."""
        return FlowTexts(self.hello.name, self.hello.labels)

    @property
    def address(self) -> str:
        """The peer's address, without the port."""
        return self.request.peer.rpartition(":")[0]
