# SPDX-License-Identifier: Apache-2.0
"""The control server and clients that mean it well, are slow, or hostile."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingestd.control import ControlClient
from ingestd.daemon.control import channel, server
from ingestd.daemon.telemetry import event_stream
from ingestd.errors import ConfigError, ControlError
from support.control import Desk, RawClient, served
from support.patience import WAIT_S

ID = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with served(tmp_path / "control") as made:
        yield made


@pytest.fixture
def reader(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The same for clients that are neither root nor the daemon's user."""
    monkeypatch.setattr(channel, "peer_of", lambda _: (1, 12345, 12345))
    return desk


def _code(line: dict[str, object]) -> str:
    error = line["error"]
    assert isinstance(error, dict)
    return str(error["code"])


# --- Those who mean it well ---------------------------------------------------------------


def test_a_conversation(desk: Desk) -> None:
    with ControlClient(desk.path) as client:
        assert client.may_change
        assert client.status()["version"] == "made up"
        assert [flow["bytes"] for flow in client.flows("a", sort="-bytes", limit=2)] == [3, 2]
        assert client.ask("flow", flow=ID)["flow"]["bytes"] == 1
        (removed,) = client.remove("a", [ID])
        assert (removed["flow"], removed["result"], removed["bytes"]) == (ID, "removed", 5)
        assert client.ask("reload")["changed"] == ["log.level"]
        assert client.ask("log-level", level="debug")["level"] == "debug"
        assert client.ask("drain-store", store="a")["drained"] is True
        assert client.ask("undrain-store", store="a")["drained"] is False
    assert desk.drained == [("a", True), ("a", False)]
    assert desk.removed == [bytes(15) + b"\1"]
    assert desk.levels == ["debug"]
    commands = [fields["command"] for fields in desk.recorder.fields("control_command")]
    assert commands == ["rm", "reload", "log-level", "drain-store", "undrain-store"]


def test_what_the_main_thread_refuses_is_said(desk: Desk) -> None:
    def refuse() -> dict[str, object]:
        raise ConfigError("c.toml: is not valid")

    desk.reload = refuse
    with ControlClient(desk.path) as client:
        with pytest.raises(ControlError, match=r"c\.toml: is not valid") as raised:
            client.ask("reload")
        assert raised.value.code == "failed"
        assert client.status(), "the connection lives"


def test_a_bug_ends_no_connection(desk: Desk) -> None:
    def bug() -> dict[str, object]:
        raise AssertionError("made up")

    desk.reload = bug
    with ControlClient(desk.path) as client:
        with pytest.raises(ControlError, match="bug"):
            client.ask("reload")
        assert client.status()
    assert "made up" in desk.recorder.fields("control_failed")[0]["trace"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"command": "status", "version": 2}, "version"),
        ({"command": "status", "version": True}, "version"),
        ({"command": "drown"}, "unknown_command"),
        ({"command": 1}, "bad_request"),
        ({}, "bad_request"),
        ({"command": "status", "more": 1}, "bad_request"),
        ({"command": "flows", "store": "b"}, "unknown_store"),
        ({"command": "flows", "states": ["lost"]}, "bad_request"),
        ({"command": "flows", "states": "open"}, "bad_request"),
        ({"command": "flows", "labels": {"a": 1}}, "bad_request"),
        ({"command": "flows", "limit": -1}, "bad_request"),
        ({"command": "flows", "limit": 1.5}, "bad_request"),
        ({"command": "flows", "sort": "size"}, "bad_request"),
        ({"command": "flows", "stat": ["open"]}, "bad_request"),
        ({"command": "flow", "flow": "x"}, "bad_request"),
        ({"command": "flow", "flow": "9" * 32}, "unknown_flow"),
        ({"command": "rm"}, "bad_request"),
        ({"command": "rm", "flows": []}, "bad_request"),
        ({"command": "rm", "flows": [ID, 1]}, "bad_request"),
        ({"command": "rm", "flows": [ID, "0000"]}, "bad_request"),
        ({"command": "rm", "flows": [ID], "dry_run": True}, "bad_request"),
        ({"command": "log-level", "level": "loud"}, "bad_request"),
        ({"command": "drain-store"}, "bad_request"),
        ({"command": "drain-store", "store": "b"}, "unknown_store"),
    ],
)
def test_what_is_not_understood_changes_nothing(
    desk: Desk, fields: dict[str, object], code: str
) -> None:
    client = RawClient(desk.path)
    client.line()
    assert _code(client.ask(**fields)) == code
    assert desk.removed == []
    assert client.ask(command="status")["done"], "the connection lives"
    client.close()


def test_a_store_is_named_by_its_uuid_too(desk: Desk) -> None:
    uuid = desk.parts.stores["a"].uuid
    with ControlClient(desk.path) as client:
        assert len(list(client.flows(uuid))) == 3
        assert len(list(client.flows(None))) == 3


# --- Those who may only read --------------------------------------------------------------


def test_a_reader_changes_nothing(reader: Desk) -> None:
    with ControlClient(reader.path) as client:
        assert not client.may_change
        assert client.status()
        assert len(list(client.flows("a"))) == 3
        for command, fields in (
            ("rm", {"flows": [ID]}),
            ("reload", {}),
            ("log-level", {"level": "debug"}),
            ("drain-store", {"store": "a"}),
        ):
            with pytest.raises(ControlError) as raised:
                client.ask(command, **fields)
            assert raised.value.code == "forbidden"
    assert (reader.removed, reader.levels) == ([], [])
    assert reader.recorder.fields("control_command") == []


def test_readers_keep_nobody_out_who_may_change(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 2)
    hold = threading.Event()

    def wait() -> None:
        assert hold.wait(WAIT_S)

    desk.source.before = wait
    with monkeypatch.context() as patch:
        patch.setattr(channel, "peer_of", lambda _: (1, 12345, 12345))
        clients = [RawClient(desk.path) for _ in range(2)]
        for client in clients:
            client.line()
            client.send(b'{"version":1,"command":"flows"}\n')
        _wait_for(lambda: not any(c.is_idle for c in desk.server._connections))
        late = RawClient(desk.path)
        assert _code(late.line()) == "busy"
        late.close()
    with ControlClient(desk.path) as client:
        assert client.status()
    hold.set()
    for client in clients:
        client.close()


def test_readers_take_no_listing_or_subscription_of_others(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "SUBSCRIBERS_MAX", 1)
    for listings in desk.parts.stores["a"].listings.values():
        assert listings.acquire(blocking=False)  # one of two is left
    hold = threading.Event()

    def wait() -> None:
        assert hold.wait(WAIT_S)

    desk.source.before = wait
    with monkeypatch.context() as patch:
        patch.setattr(channel, "peer_of", lambda _: (1, 12345, 12345))
        lister, subscriber = RawClient(desk.path), RawClient(desk.path)
        lister.line()
        lister.send(b'{"version":1,"command":"flows"}\n')
        subscriber.line()
        assert subscriber.ask(command="events")["event"] == "subscribed"
        _wait_for(lambda: desk.parts.stores["a"].listings[False]._value == 0)
    with ControlClient(desk.path) as one, ControlClient(desk.path) as two:
        assert next(one.events())["event"] == "subscribed"
        flows = two.flows("a")
        hold.set()
        assert len(list(flows)) == 3
    for client in (lister, subscriber):
        client.close()


# --- Those who are slow, or hostile -------------------------------------------------------


@pytest.mark.parametrize("data", [b"\xff\xfe\n", b"[]\n", b"{\n", b'"' + b"[" * 10**5 + b"\n"])
def test_what_is_no_json_is_said(desk: Desk, data: bytes) -> None:
    client = RawClient(desk.path)
    client.line()
    client.send(data)
    assert _code(client.line()) == "bad_request"
    client.close()


def test_a_line_without_end(desk: Desk) -> None:
    """It is not kept: the connection ends behind 8 MiB, or 64 KiB of a reader."""
    client = RawClient(desk.path)
    client.line()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        client.send(bytes(1 << 30))
    client.close()
    with ControlClient(desk.path) as other:
        assert other.status()


def test_a_long_line_of_a_reader(reader: Desk) -> None:
    client = RawClient(reader.path)
    client.line()
    client.send(b"x" * (64 * 1024 + 1))
    line = client.line()
    assert "longer" in str(line["error"])
    assert client.line() == {}
    client.close()


def test_half_a_line_has_its_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "REQUEST_TIME_MAX_S", 0.05)
    client = RawClient(desk.path)
    client.line()
    client.send(b'{"version":1,')
    assert client.line() == {}, "it is hung up on"
    client.close()


def test_who_asks_nothing_has_its_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "IDLE_TIME_MAX_S", 0.05)
    client = RawClient(desk.path)
    client.line()
    assert client.line() == {}
    client.close()


def test_who_reads_nothing_has_its_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "SEND_TIME_MAX_S", 0.05)
    desk.source.count = 20_000
    client = RawClient(desk.path)
    client.send(b'{"version":1,"command":"flows"}\n')
    _wait_for(lambda: not desk.server._connections)
    client.close()


def test_who_drips_has_its_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte is read in time, and the answer as a whole is not."""
    monkeypatch.setattr(channel, "ANSWER_TIME_MAX_S", 0.2)
    desk.source.count = 20_000
    client = RawClient(desk.path)
    client.send(b'{"version":1,"command":"flows"}\n')
    while client.sock.recv(1024):
        time.sleep(0.01)
    client.close()
    _wait_for(lambda: not desk.server._connections)


def test_a_client_that_goes_in_the_middle_of_its_answer(desk: Desk) -> None:
    desk.source.count = 20_000
    client = RawClient(desk.path)
    client.send(b'{"version":1,"command":"flows"}\n')
    client.line()
    client.line()
    client.close()
    _wait_for(lambda: not desk.server._connections)
    with ControlClient(desk.path) as other:
        assert other.status()


def test_thousands_of_connections(desk: Desk) -> None:
    """Those that ask nothing give way, and all are refused or served."""
    clients = []
    for _ in range(1000):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(desk.path)  # it waits for room in the backlog
        clients.append(sock)
        if len(clients) > 200:
            clients.pop(0).close()
    with ControlClient(desk.path) as client:
        assert client.status()
    assert len(desk.server._connections) <= 2 * server.CONNECTIONS_MAX
    for sock in clients:
        sock.close()
    _wait_for(lambda: not desk.server._connections)


def test_the_end_does_not_wait_for_clients(tmp_path: Path) -> None:
    """Of those who say nothing, read nothing, subscribe, and wait for the main thread."""
    desk = Desk(tmp_path / "control")
    desk.source.count = 20_000
    desk.server.start()  # and nobody makes calls
    silent, deaf, subscriber, waiting = (RawClient(desk.path) for _ in range(4))
    deaf.send(b'{"version":1,"command":"flows"}\n')
    subscriber.line()
    assert subscriber.ask(command="events")["event"] == "subscribed"
    waiting.line()
    waiting.send(b'{"version":1,"command":"reload"}\n')
    _wait_for(lambda: len(desk.calls._waiting) == 1)
    desk.calls.close()
    assert desk.server.close(WAIT_S) == []
    assert _code(waiting.line()) == "stopping"
    assert subscriber.line() == {}
    desk.file.close()
    for client in (silent, deaf, subscriber, waiting):
        client.close()


# --- Events -------------------------------------------------------------------------------


def test_events_are_numbered(desk: Desk) -> None:
    desk.events.publish("flow_opened", flow="before")
    with ControlClient(desk.path) as client:
        events = client.events()
        first = next(events)
        assert (first["event"], first["number"]) == ("subscribed", 1)
        for name in ("flow_opened", "flow_sealed"):
            desk.events.publish(name, flow=ID)
        assert [(next(events)["number"], name) for name in "ab"] == [(2, "a"), (3, "b")]


def test_a_slow_subscriber_hears_of_what_it_missed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "QUEUE_COUNT_MAX", 10)
    count = 20_000
    client = RawClient(desk.path)
    client.line()
    assert client.ask(command="events")["event"] == "subscribed"
    for _ in range(count):
        desk.events.publish("flow_sealed", text="x" * 100)
    seen, lost, expected = 0, 0, 1
    while seen + lost < count:
        line = client.line()
        if line["event"] == "lost":
            lost += line["count"]
            expected += line["count"]
        else:
            assert line["number"] == expected, "what is missed is said in its place"
            seen, expected = seen + 1, expected + 1
    assert lost > 0
    client.close()
    _wait_for(lambda: not desk.events._subscriptions)


def test_events_lost_before_they_came_are_counted(desk: Desk) -> None:
    with ControlClient(desk.path) as client:
        events = client.events()
        next(events)
        desk.events.lose(7)
        assert next(events) == {"event": "lost", "count": 7}


def test_there_are_only_so_many_subscribers(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "SUBSCRIBERS_MAX", 1)
    with ControlClient(desk.path) as one, ControlClient(desk.path) as two:
        next(one.events())
        with pytest.raises(ControlError) as raised:
            next(two.events())
        assert raised.value.code == "busy"
    _wait_for(lambda: not desk.events._subscriptions)


def test_a_subscriber_that_stopped_is_hung_up_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "STALL_TIME_MAX_S", 0.05)
    client = RawClient(desk.path)
    client.send(json.dumps({"version": 1, "command": "events"}).encode() + b"\n")
    client.line()
    client.line()
    while desk.events._subscriptions:
        desk.events.publish("flow_sealed", text="x" * 10_000)
        time.sleep(0.001)
    client.close()


def _wait_for(condition: object) -> None:
    assert callable(condition)
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)
