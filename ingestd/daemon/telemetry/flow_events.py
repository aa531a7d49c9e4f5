# SPDX-License-Identifier: Apache-2.0
"""The beginnings and ends of flows, as events of the stream that pipelines start from.

Invariants: a flow's end is published once it is durable. Of protocol `ingest`, admission knows
every beginning and every end, and none is lost. Of protocol `raw`, a worker reports them by
events, which it drops where there are too many: those it counts, and the count is published as
lost. The main thread's own.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ingestd.core.border import FlowInterrupted, FlowOpened, FlowRefused, FlowSealed
from ingestd.store.format.layout import REASONS
from ingestd.store.read.flows import checksum_text

if TYPE_CHECKING:
    from ingestd.core.border import AdmissionRequest, Event
    from ingestd.daemon.telemetry.event_stream import EventStream
    from ingestd.daemon.workers.worker import WorkerThread


@dataclass(frozen=True, slots=True)
class FlowTexts:
    """The name and labels that the hello of a flow of protocol `ingest` gave."""

    name: str | None
    labels: Mapping[str, str]


class FlowEvents:
    """Publishes for all workers; `listeners`: name and protocol, by index."""

    def __init__(self, stream: EventStream, listeners: Sequence[tuple[str, str]]) -> None:
        self._stream = stream
        self._listeners = listeners
        self._dropped_count = 0

    def opened(
        self,
        worker: WorkerThread,
        request: AdmissionRequest,
        flow: bytes,
        texts: FlowTexts,
        offset: int,
    ) -> None:
        """Publish that a connection of protocol `ingest` feeds a flow, from an offset on."""
        where = self._fields(worker, request.listener_index, flow, request.peer, texts)
        self._stream.publish("flow_opened", **where, offset=offset)

    def ended(
        self, worker: WorkerThread, request: AdmissionRequest, flow: bytes, texts: FlowTexts
    ) -> None:
        """Publish that it does not any more; `request` is the worker's note of it."""
        where = self._fields(worker, request.listener_index, flow, request.peer, texts)
        is_known = request.is_crc_known
        end = {
            "bytes": request.bytes_count,
            "checksum": checksum_text(request.crc) if is_known else None,
        }
        if request.is_sealed:
            self._stream.publish("flow_sealed", **where, **end)
        else:
            self._stream.publish(
                "flow_interrupted",
                **where,
                bytes=request.bytes_count,
                stored=request.is_stored,
                reason=REASONS.get(request.reason, str(request.reason)),
            )

    def report(self, worker: WorkerThread, event: Event) -> None:
        """Publish an event of a worker, if it is about a flow of protocol `raw`."""
        if not any(event.flow) or self._listeners[event.listener_index][1] != "raw":
            return
        where = self._fields(worker, event.listener_index, event.flow, event.peer)
        match event.detail:
            case FlowOpened(base_bytes=offset):
                self._stream.publish("flow_opened", **where, offset=offset)
            case FlowSealed(durable_bytes=count, crc32c=crc):
                checksum = None if crc is None else checksum_text(crc)
                self._stream.publish("flow_sealed", **where, bytes=count, checksum=checksum)
            case FlowInterrupted(durable_bytes=count, reason=reason):
                self._interrupted(where, reason, count, is_stored=True)
            case FlowRefused(reason=reason):
                self._interrupted(where, reason, 0, is_stored=False)

    def _interrupted(
        self, where: dict[str, Any], reason: int, bytes_count: int, *, is_stored: bool
    ) -> None:
        self._stream.publish(
            "flow_interrupted",
            **where,
            bytes=bytes_count,
            stored=is_stored,
            reason=REASONS.get(reason, str(reason)),
        )

    def look_for_lost(self, counters: Sequence[Mapping[str, int]]) -> None:
        """Publish how many events workers dropped; of all kinds, as they do not say which."""
        dropped_count = sum(shot["events_dropped"] for shot in counters)
        if dropped_count > self._dropped_count:
            self._stream.lose(dropped_count - self._dropped_count)
            self._dropped_count = dropped_count

    def _fields(
        self,
        worker: WorkerThread,
        listener_index: int,
        flow: bytes,
        peer: str,
        texts: FlowTexts | None = None,
    ) -> dict[str, Any]:
        listener, protocol = self._listeners[listener_index]
        return {
            "flow": str(uuid.UUID(bytes=flow)),
            "name": texts.name if texts is not None else None,
            "labels": dict(texts.labels) if texts is not None else {},
            "store": worker.store_name,
            "store_uuid": worker.store.superblock.uuid,
            "listener": listener,
            "protocol": protocol,
            "peer": peer,
        }
