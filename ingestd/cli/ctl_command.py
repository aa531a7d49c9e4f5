# SPDX-License-Identifier: Apache-2.0
"""`ingestd ctl`: ask a running daemon over its control socket.

Invariants: a command here is one of the socket's, by the same name; with --json, what the daemon
answers is printed as it came. Owned by the main thread.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ingestd.cli.output import (
    note,
    print_json,
    print_pairs,
    print_table,
    safe,
    show_json,
    show_line,
)
from ingestd.cli.selection import add_filters, add_order, filter_arguments
from ingestd.errors import ControlError, FlowInUseError, FlowNotFoundError, StoreError
from ingestd.sizes import short_size

if TYPE_CHECKING:
    from ingestd.control.client import ControlClient
    from ingestd.control.messages import Message

DEFAULT_SOCKET: Final = "/run/ingestd/control"
_STORE_COLUMNS: Final = ("STORE", "STATE", "FREE", "USED", "GENERATION", "CONNECTIONS", "PATH")
_WORKER_COLUMNS: Final = ("WORKER", "ENGINE", "AREA", "IN USE", "CONNECTIONS", "STARVED")
_LISTENER_COLUMNS: Final = ("LISTENER", "PROTOCOL", "STORE", "CONNECTIONS", "ADDRESSES")
_RIGHT: Final = frozenset(
    {"FREE", "USED", "GENERATION", "CONNECTIONS", "AREA", "IN USE", "STARVED"}
)
_ERRORS: Final = {"in_use": FlowInUseError, "unknown": FlowNotFoundError, "no_room": StoreError}

_Verb = Callable[["ControlClient", Namespace], int]


def add_ctl(commands: Any) -> None:
    """Add the command and its verbs to the command line."""
    text = "ask a running daemon over its control socket"
    parser = commands.add_parser(
        "ctl", help=text, description=f"{text.capitalize()}.", allow_abbrev=False
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--socket", metavar="PATH", help=f"the daemon's control socket (default: {DEFAULT_SOCKET})"
    )
    where.add_argument("-c", "--config", metavar="FILE", help="the daemon's configuration")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    _add(verbs, "status", "show stores, workers and listeners", _status)
    flows = _add(verbs, "flows", "list the flows of a store", _flows)
    _add_store(flows)
    add_filters(flows)
    add_order(flows)
    removal = _add(verbs, "rm", "remove flows by their whole ids (see also: ingestd rm)", _rm)
    _add_store(removal)
    removal.add_argument("flows", metavar="FLOW", nargs="+", help="flow id")
    _add(verbs, "reload", "read the configuration again, as SIGHUP does", _reload)
    level = _add(verbs, "log-level", "log from another level on, until the next reload", _level)
    level.add_argument("level", choices=("debug", "info", "warning", "error"))
    drain = _add(verbs, "drain-store", "let a store take no new flows", _drain_store)
    drain.add_argument("store", metavar="STORE", help="name of the store")
    undrain = _add(verbs, "undrain-store", "let a store take new flows again", _undrain_store)
    undrain.add_argument("store", metavar="STORE", help="name of the store")
    _add(verbs, "events", "print what becomes of flows from now on, a line each", _events)


def _add(verbs: Any, name: str, text: str, run: _Verb) -> ArgumentParser:
    verb: ArgumentParser = verbs.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    verb.add_argument("--json", action="store_true", help="print JSON, for programs")
    verb.set_defaults(command=run_ctl, verb=run)
    return verb


def _add_store(verb: ArgumentParser) -> None:
    verb.add_argument(
        "--store", metavar="NAME", help="name or UUID (default: the daemon's only store)"
    )


def run_ctl(arguments: Namespace) -> int:
    """Ask the daemon; raise what it refuses."""
    from ingestd.control.client import ControlClient

    with ControlClient(_socket_path(arguments)) as client:
        verb: _Verb = arguments.verb
        return verb(client, arguments)


def _socket_path(arguments: Namespace) -> str:
    if arguments.config is None:
        return str(Path(arguments.socket).absolute()) if arguments.socket else DEFAULT_SOCKET
    from ingestd.config.loading import control_path, load
    from ingestd.config.settings import AUTO

    control = load(arguments.config).control
    path = DEFAULT_SOCKET if control.socket == AUTO else control_path(control)
    if path is None:
        raise ControlError(f"{arguments.config}: control.socket is off: set it to a path")
    return path


def _status(client: ControlClient, arguments: Namespace) -> int:
    status = client.status()
    if arguments.json:
        print_json(status)
        return 0
    print_pairs([(key, status[key]) for key in ("version", "pid", "state", "started", "uptime_s")])
    stores = [
        (
            store["name"],
            store["state"],
            str(store["segments_free"]),
            str(store["segments_used"]),
            str(store["generation"]),
            str(store["connections"]),
            store["path"],
        )
        for store in status["stores"]
    ]
    print_table(_STORE_COLUMNS, stores, _RIGHT)
    workers = [
        (
            worker["name"],
            worker["engine"],
            short_size(worker["area_bytes"]),
            short_size(worker["area_bytes"] - worker["area_free_bytes"]),
            str(worker["connections"]),
            str(worker["starved"]),
        )
        for worker in status["workers"]
    ]
    print_table(_WORKER_COLUMNS, workers, _RIGHT)
    listeners = [
        (
            listener["name"],
            listener["protocol"],
            ", ".join(listener["stores"]),
            str(listener["connections"]),
            ", ".join(listener["addresses"]),
        )
        for listener in status["listeners"]
    ]
    print_table(_LISTENER_COLUMNS, listeners, _RIGHT)
    for store in status["stores"]:
        if store["out"]:
            reasons = (
                f"{reason} for {lasted_s:.0f} s" for reason, lasted_s in store["out"].items()
            )
            note(f"store {store['name']} takes no new flows: {', '.join(reasons)}")
        for key in ("failure", "maintenance_failure"):
            if store[key]:
                note(f"store {store['name']}: {store[key]}")
    return 0


def _flows(client: ControlClient, arguments: Namespace) -> int:
    from ingestd.cli.store_commands import print_flows

    flows = client.flows(
        arguments.store,
        **filter_arguments(arguments),
        sort=arguments.sort,
        limit=arguments.limit,
    )
    print_flows(flows, as_json=arguments.json)
    return 0


def _rm(client: ControlClient, arguments: Namespace) -> int:
    errors = []
    for line in client.remove(arguments.store, arguments.flows):
        if arguments.json:
            print_json(line)
        elif line["result"] == "removed":
            print(f"flow {line['flow']}: removed")
        if line["result"] != "removed":
            error = _ERRORS.get(line["result"], StoreError)
            errors.append(error(f"flow {line['flow']} was not removed: {line['result']}"))
    if errors:
        raise type(errors[0])("\n".join(str(error) for error in errors))
    return 0


def _reload(client: ControlClient, arguments: Namespace) -> int:
    outcome = client.ask("reload")
    if arguments.json:
        print_json(outcome)
        return 0
    print(f"changed: {', '.join(outcome['changed']) or 'nothing'}")
    if outcome["needs_restart"]:
        note(f"these wait for a restart: {', '.join(outcome['needs_restart'])}")
    for listener, reason in outcome["keys_refused"].items():
        note(f"listener {listener} keeps its keys: {reason}")
    return 0


def _level(client: ControlClient, arguments: Namespace) -> int:
    return _answered(client.ask("log-level", level=arguments.level), arguments)


def _drain_store(client: ControlClient, arguments: Namespace) -> int:
    return _answered(client.ask("drain-store", store=arguments.store), arguments)


def _undrain_store(client: ControlClient, arguments: Namespace) -> int:
    return _answered(client.ask("undrain-store", store=arguments.store), arguments)


def _answered(outcome: Message, arguments: Namespace) -> int:
    if arguments.json:
        print_json(outcome)
    return 0


def _events(client: ControlClient, arguments: Namespace) -> int:
    for event in client.events():
        if arguments.json:
            show_json(event)
        else:
            shown = {key: value for key, value in event.items() if value not in (None, {}, "")}
            kind, number = shown.pop("event"), shown.pop("number", "-")
            show_line(safe(f"{number} {kind} " + " ".join(f"{k}={v}" for k, v in shown.items())))
    return 0
