# SPDX-License-Identifier: Apache-2.0
"""The parts of the daemon that commands of the control socket may use.

Invariant: everything here may be called by any thread, but for what says that it is called by
call_main(). A value.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ingestd.control.messages import Message

if TYPE_CHECKING:
    from ingestd.daemon.maintenance.removals import RemovalResult
    from ingestd.daemon.telemetry.event_stream import EventStream
    from ingestd.log_events import LevelName
    from ingestd.store.read.flow_source import FlowSource


@dataclass(frozen=True, slots=True)
class ServedFlows:
    """The flows of one store. `remove` gives the results in the order of the ids, once durable."""

    uuid: str
    # By whether the client may change something; each holds as many flows as the source does.
    listings: Mapping[bool, threading.Semaphore]
    source: FlowSource
    misdated: Callable[[Any], bool]  # of a flow: it began or ended when it cannot have
    remove: Callable[[Sequence[bytes], Callable[[], bool]], list[RemovalResult]]


@dataclass(frozen=True, slots=True)
class ControlParts:
    """The daemon, as commands know it."""

    status: Callable[[], Message]
    stores: Mapping[str, ServedFlows]
    events: EventStream
    call_main: Callable[[Callable[[], Any]], Any]
    stopping: threading.Event
    reload: Callable[[], Message]  # by call_main()
    set_log_level: Callable[[LevelName], None]  # by call_main()
    drain_store: Callable[..., None]  # name, wanted; by call_main()
