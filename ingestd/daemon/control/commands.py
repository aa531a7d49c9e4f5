# SPDX-License-Identifier: Apache-2.0
"""The commands of the control socket: what each is called, needs and may.

A command is a function and an entry of COMMANDS: there is no other place to note it but
docs/control.md and the command line. Invariants: a command that changes something is marked so,
and asked for by those alone who may; it runs on its connection's thread, where it may wait, and
does what only the main thread may by parts.call_main().
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from ingestd.control.messages import Message
from ingestd.daemon.base.waker import Waker
from ingestd.daemon.control.channel import Channel, ChannelClosedError
from ingestd.daemon.control.flow_commands import list_flows, remove_flows, show_flow
from ingestd.daemon.control.parts import ControlParts
from ingestd.daemon.control.request import RefusedError, Request

if TYPE_CHECKING:
    from ingestd.log_events import LevelName

LEVELS: Final[tuple[LevelName, ...]] = ("debug", "info", "warning", "error")

# Gets the request, the channel for lines before the last, and the daemon; returns the last line.
Run = Callable[[Request, Channel, ControlParts], Message]


@dataclass(frozen=True, slots=True)
class Command:
    """A command; `is_change`: for root and the daemon's own user."""

    run: Run
    is_change: bool = False


def show_status(request: Request, _channel: Channel, parts: ControlParts) -> Message:
    """Answer with stores, workers, listeners and the process."""
    request.end()
    return {"status": parts.status()}


def reload(request: Request, _channel: Channel, parts: ControlParts) -> Message:
    """Read the configuration again, as SIGHUP does, and answer with what became of it."""
    request.end()
    outcome: Message = parts.call_main(parts.reload)
    return outcome


def set_log_level(request: Request, _channel: Channel, parts: ControlParts) -> Message:
    """Log from another level on, until the next reload."""
    wanted = request.text("level")
    request.end()
    level = next((level for level in LEVELS if level == wanted), None)
    if level is None:
        raise RefusedError("bad_request", f'"level" is one of {", ".join(LEVELS)}')
    parts.call_main(partial(parts.set_log_level, level))
    return {"level": level}


def drain_store(
    request: Request, _channel: Channel, parts: ControlParts, *, wanted: bool
) -> Message:
    """Let a store take no new flows, or take them again, until a reload that changes its key."""
    name = request.text("store")
    request.end()
    if name not in parts.stores:
        known = ", ".join(parts.stores)
        raise RefusedError("unknown_store", f"there is no such store; there are {known}")
    parts.call_main(partial(parts.drain_store, name, wanted=wanted))
    return {"store": name, "drained": wanted}


def stream_events(request: Request, channel: Channel, parts: ControlParts) -> Message:
    """Send what becomes of flows from now on, until the client hangs up or the daemon ends."""
    request.end()
    waker = Waker()
    subscription = parts.events.subscribe(waker.wake, may_change=channel.may_change)
    if subscription is None:
        waker.close()
        raise RefusedError("busy", "there are as many subscribers as there may be")
    try:
        while True:
            channel.wait_for(waker)
            is_last = parts.stopping.is_set()
            channel.send_to_subscriber(subscription.take())
            if is_last:
                raise ChannelClosedError
    finally:
        parts.events.unsubscribe(subscription)
        waker.close()


COMMANDS: Final[Mapping[str, Command]] = {
    "status": Command(show_status),
    "flows": Command(list_flows),
    "flow": Command(show_flow),
    "events": Command(stream_events),
    "rm": Command(remove_flows, is_change=True),
    "reload": Command(reload, is_change=True),
    "log-level": Command(set_log_level, is_change=True),
    "drain-store": Command(partial(drain_store, wanted=True), is_change=True),
    "undrain-store": Command(partial(drain_store, wanted=False), is_change=True),
}


def command_of(request: Request, *, may_change: bool) -> Command:
    """Return what a request asks for. Raises RefusedError."""
    command = COMMANDS.get(request.command)
    if command is None:
        known = ", ".join(COMMANDS)
        raise RefusedError("unknown_command", f"there is no such command; there are {known}")
    if command.is_change and not may_change:
        raise RefusedError("forbidden", "only root and the daemon's own user may change anything")
    return command
