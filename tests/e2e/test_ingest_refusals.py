# SPDX-License-Identifier: Apache-2.0
"""Protocol ingest where something is wrong: each fault has its code, and leaves no harm."""

from __future__ import annotations

import json
import signal
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingestd.errors import ConfigError
from ingestd.store.read.image import read_image
from support.daemon import Daemon
from support.ingest import (
    Ingest,
    checksum,
    data_of,
    hello_block,
    stored,
    trailer_block,
    wait_for_event,
)
from support.observe import scrape, wait_until
from support.patience import WAIT_S
from support.refusal import serve_refusal
from support.stores import write_config

Serve = Callable[..., Daemon]
SECRET = bytes(range(32))
STRANGERS_COUNT = 600  # of whom the log shows some only


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "keys.toml"
    path.write_text(f'[key]\nours = "{SECRET.hex()}"\nother = "{"ab" * 16}"\n')
    path.chmod(0o600)
    return str(path)


def test_refusals(serve: Serve) -> None:
    daemon = serve(flow_bytes_max=1000)
    nowhere = str(uuid.uuid4())
    hellos: list[tuple[str, dict[str, Any]]] = [
        ("unknown_flow", {"flow": nowhere, "resume": True}),
        ("bad_hello", {"resume": True}),
        ("bad_hello", {"flow": "not-a-uuid"}),
        ("bad_hello", {"bytes": -1}),
        ("bad_hello", {"name": "x" * 256}),
        ("bad_hello", {"labels": {"a=b": "c"}}),
        ("limit", {"bytes": 1001}),
    ]
    for code, fields in hellos:
        with Ingest(daemon.address) as sender:
            assert sender.refused(**fields)["code"] == code, fields
    with Ingest(daemon.address) as sender:
        sender.expect("hello")
        sender.send(b"ingest/2\n".ljust(4096, b"\0"))
        assert sender.error()["code"] == "version"
    with Ingest(daemon.address) as sender:
        sender.expect("hello")
        sender.send(b"GET / HTTP/1.1\r\n\r\n".ljust(4096, b"x"))
        assert sender.error()["code"] == "bad_hello"
    wait_for_event(daemon, "flow_refused", len(hellos) + 2)
    refused = scrape(daemon)
    assert refused.total("ingestd_refused_total") == len(hellos) + 2
    with read_image(str(daemon.store)) as image:
        assert image.flows == []


def test_keys(serve: Serve, key_file: str, seed: int) -> None:
    daemon, data = serve(key_file=key_file), data_of(seed, 5000)
    with Ingest(daemon.address) as sender:
        assert sender.greet(key="ours", secret=SECRET)["auth"] == "hmac-sha256"
        sender.flow = sender.expect("accepted")["flow"]
        sender.send(data)
        with Ingest(daemon.address) as thief:
            error = thief.refused(flow=sender.flow, resume=True, key="other", secret=b"\xab" * 16)
            assert error["code"] == "unauthorised"  # a key known here, but not the flow's
        assert sender.sealed()["bytes"] == len(data)
    wrong: list[dict[str, Any]] = [
        {},
        {"key": "ours"},
        {"key": "ours", "secret": bytes(32)},
        {"key": "nobody", "secret": SECRET},
        {"key": "ours", "mac": "0" * 64},
    ]
    for fields in wrong:
        with Ingest(daemon.address) as sender:
            assert sender.refused(**fields)["code"] == "unauthorised", fields
    with Ingest(daemon.address) as one, Ingest(daemon.address) as other:
        challenge = one.expect("hello")["challenge"]
        other.expect("hello")
        # A hello that was heard elsewhere is of no use: each connection has its challenge.
        other.send(hello_block(challenge, key="ours", secret=SECRET))
        assert other.error()["code"] == "unauthorised"


def test_keys_change_while_a_flow_goes_on(serve: Serve, key_file: str, seed: int) -> None:
    daemon, data, secret = serve(key_file=key_file), data_of(seed, 5000), b"\xcd" * 16
    with Ingest(daemon.address) as sender:
        sender.begin(key="ours", secret=SECRET)
        sender.send(data[:100])
        Path(key_file).write_text(f'[key]\nnew = "{secret.hex()}"\n')
        daemon.process.send_signal(signal.SIGHUP)
        wait_for_event(daemon, "keys_reloaded")
        with Ingest(daemon.address) as late:
            assert late.refused(key="ours", secret=SECRET)["code"] == "unauthorised"
        with Ingest(daemon.address) as newer:
            newer.begin(key="new", secret=secret)
            assert newer.sealed()["bytes"] == 0
        Path(key_file).write_text("[key]\n")
        daemon.process.send_signal(signal.SIGHUP)
        (refused,) = wait_for_event(daemon, "keys_refused")
        assert "must have one table" in refused["error"]
        with Ingest(daemon.address) as still:
            still.begin(key="new", secret=secret)
        sender.send(data[100:])
        assert sender.sealed()["checksum"] == checksum(data)


def test_silent_hellos_are_ended(serve: Serve) -> None:
    daemon = serve(hello_timeout_s=0.3)
    with Ingest(daemon.address) as silent, Ingest(daemon.address) as slow:
        slow.send(b"ingest/1\n")
        for sender in (silent, slow):
            sender.expect("hello")
            started_s = time.monotonic()
            assert sender.error()["code"] == "hello_timeout"
            assert time.monotonic() - started_s < WAIT_S
    assert {e["reason"] for e in wait_for_event(daemon, "flow_refused", 2)} == {"hello_timeout"}


def test_strangers_cost_nothing_but_a_line(serve: Serve, key_file: str) -> None:
    """Each gets a line and is counted; the log has some, and the number of the others."""
    hello_timeout_s = 60
    daemon = serve(key_file=key_file, hello_timeout_s=hello_timeout_s)
    silent = [Ingest(daemon.address) for _ in range(STRANGERS_COUNT // 10)]
    for sender in silent:
        sender.expect("hello")
    for _ in range(STRANGERS_COUNT):
        begun_s = time.monotonic()
        with Ingest(daemon.address) as stranger:
            assert stranger.refused(key="ours", secret=bytes(32))["code"] == "unauthorised"
        assert time.monotonic() - begun_s < hello_timeout_s
    shot = scrape(daemon)
    assert shot.total("ingestd_refused_total", reason="unauthorised") == STRANGERS_COUNT
    assert shot.total("ingestd_connections", state="greeting") == len(silent)
    for state in ("receiving", "writing"):
        assert shot.total("ingestd_area_bytes", state=state) == 0
    assert shot.total("ingestd_written_bytes_total") == 0
    for sender in silent:
        sender.reset()
    assert daemon.stop() == 0
    told = [e for e in daemon.events("flow_refused") if e["reason"] == "unauthorised"]
    more = [e["count"] for e in daemon.events("events_suppressed") if e["of"] == "flow_refused"]
    assert told[0]["peer"].startswith("127.0.0.1:")
    assert len(told) < STRANGERS_COUNT <= len(told) + sum(more) <= STRANGERS_COUNT + len(silent)
    with read_image(str(daemon.store)) as image:
        assert image.flows == []


@pytest.mark.parametrize("trailer", [False, True])
def test_a_flow_may_have_just_so_many_bytes(serve: Serve, seed: int, trailer: bool) -> None:
    daemon, data = serve(flow_bytes_max=100_000), data_of(seed, 200_000)
    for size, is_right in ((100_000, True), (100_001, False), (200_000, False)):
        with Ingest(daemon.address) as sender:
            sender.begin(trailer=trailer)
            sender.send(data[:size] + (trailer_block(data[:size]) if trailer else b""))
            if is_right:
                assert sender.sealed()["bytes"] == size
            else:
                error = sender.error()
                assert error["code"] == "limit"
                assert stored(daemon, sender.flow)[1] == data[: error["durable"]]


def test_bytes_other_than_stated(serve: Serve, seed: int) -> None:
    daemon, data = serve(), data_of(seed, 50_000)
    with Ingest(daemon.address) as short:
        short.begin(bytes=len(data))
        short.send(data[:-1])
        short.half_close()
        error = short.error()
        assert (error["code"], error["durable"]) == ("too_short", len(data) - 1)
    with Ingest(daemon.address) as again:  # which was only the connection's fault
        assert again.begin(flow=short.flow, resume=True, bytes=len(data)) == len(data) - 1
        again.send(data[-1:])
        assert again.sealed()["checksum"] == checksum(data)
    for trailer in (False, True):
        with Ingest(daemon.address) as long:
            long.begin(bytes=len(data) - 1, trailer=trailer)
            long.send(data + (trailer_block(data) if trailer else b""))
            error = long.error()
            assert (error["code"], error["durable"]) == ("too_long", len(data) - 1)
        with Ingest(daemon.address) as wrong:
            assert wrong.refused(flow=long.flow, resume=True, bytes=9)["code"] == "too_long"


@pytest.mark.parametrize("stated", [True, False])
def test_trailers_that_are_wrong(serve: Serve, seed: int, stated: bool) -> None:
    daemon, data = serve(), data_of(seed, 50_000)
    ends: list[tuple[str, bytes]] = [
        ("checksum", trailer_block(bytes=len(data), crc32c="00000000")),
        ("trailer", trailer_block(bytes=1, crc32c=None)),
        ("trailer", trailer_block(crc32c="xyz")),
        ("trailer", data[:4096]),
    ]
    if stated:
        ends += [("trailer", b""), ("trailer", trailer_block(data)[:-1])]
    for code, end in ends:
        with Ingest(daemon.address) as sender:
            sender.begin(trailer=True, **({"bytes": len(data)} if stated else {}))
            sender.send(data + end)
            sender.half_close()
            error = sender.error()
            assert (error["code"], error["durable"]) == (code, len(data)), error
        shown, found = stored(daemon, sender.flow)
        assert (shown["state"], found) == ("interrupted", data)
    with Ingest(daemon.address) as sender:
        sender.begin(trailer=True)
        sender.send(data[:4095])
        sender.half_close()
        assert sender.error()["code"] == "trailer"  # less than a trailer came at all
    with Ingest(daemon.address) as sender:
        sender.begin(trailer=True)
        sender.send(data + trailer_block(bytes=None, crc32c=None))
        assert sender.sealed()["sender_checksum"] is None


def test_a_sender_that_vanishes_in_its_hello(serve: Serve) -> None:
    daemon = serve()
    for _ in range(50):
        with Ingest(daemon.address) as sender:
            sender.send(b"ingest/1\n")
            sender.reset()
    with Ingest(daemon.address) as sender:
        sender.begin()
        assert sender.sealed()["bytes"] == 0
    assert daemon.stop() == 0


def test_an_idle_flow_is_interrupted_and_goes_on(serve: Serve, seed: int) -> None:
    daemon, data = serve(idle_timeout_s=3.0), data_of(seed, 5000)
    for stated in ({}, {"bytes": len(data), "trailer": True}):
        with Ingest(daemon.address) as sender:
            sender.begin(**stated)
            sender.send(data)
            error = sender.error()
            assert (error["code"], error["durable"]) == ("idle_timeout", len(data))
        with Ingest(daemon.address) as again:
            assert again.begin(flow=sender.flow, resume=True) == len(data)
            assert again.sealed()["bytes"] == len(data)


@pytest.mark.parametrize("protocol", ["raw", "ingest"])
def test_only_some_networks_are_let_in(
    start_daemon: Callable[..., Daemon], store_path: Path, tmp_path: Path, protocol: str
) -> None:
    """Loopback has more than one address to come from."""
    config = write_config(
        tmp_path / "ingestd.toml",
        listener={"default": {"protocol": protocol, "allow": ["127.0.1.0/24", "2001:db8::/32"]}},
    )
    daemon = start_daemon(store_path, config=config)
    for _ in range(5):
        with socket.create_connection(daemon.address, WAIT_S) as stranger:
            assert stranger.recv(1) == b""
    with socket.create_connection(
        daemon.address, WAIT_S, source_address=("127.0.1.9", 0)
    ) as friend:
        friend.shutdown(socket.SHUT_WR)
        assert friend.recv(1) == b"{"
    assert scrape(daemon).total("ingestd_connections_denied_total") == 5
    denied = wait_for_event(daemon, "connection_denied")
    assert denied[0]["listener"] == "default"
    assert denied[0]["peer"].startswith("127.0.0.1:")
    assert 1 <= sum(line["count"] for line in denied) <= 5  # one line a second counts all


@pytest.mark.parametrize(("protocol", "told"), [("raw", "limit"), ("ingest", "busy")])
def test_one_peer_has_no_more_connections_than_it_may(
    start_daemon: Callable[..., Daemon],
    store_path: Path,
    tmp_path: Path,
    protocol: str,
    told: str,
) -> None:
    config = write_config(
        tmp_path / "ingestd.toml",
        listener={"default": {"protocol": protocol, "connections_per_peer_max": 3}},
    )
    daemon = start_daemon(store_path, config=config)

    def connect(host: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(daemon.address, WAIT_S, source_address=(host, 0))

    def is_let_in(sender: socket.socket) -> bool:
        """Return whether an end without a byte is answered as by a listener that admits."""
        sender.shutdown(socket.SHUT_WR)
        with sender, sender.makefile("rb") as lines:
            last = json.loads(lines.readlines()[-1])
        return told not in (last.get("error"), last.get("code"))

    first = [connect() for _ in range(3)]
    assert [is_let_in(connect()) for _ in range(4)] == [False] * 4
    assert is_let_in(connect("127.0.1.9"))
    assert scrape(daemon).total("ingestd_connections_denied_total", reason="peer_limit") == 4
    lines = wait_for_event(daemon, "connection_denied")
    assert {(line["listener"], line["reason"]) for line in lines} == {("default", "peer_limit")}
    assert all(is_let_in(sender) for sender in first)
    # They have ended, which the daemon knows a moment after their senders do.
    wait_until(lambda: is_let_in(connect()), "who has ended counts no more")


def test_a_key_file_that_others_can_read_is_no_secret(store_path: Path, key_file: str) -> None:
    Path(key_file).chmod(0o644)
    config = write_config(
        store_path.with_name("ingestd.toml"),
        listener={"default": {"protocol": "ingest", "key_file": key_file}},
    )
    said = serve_refusal(ConfigError, store_path, "-c", str(config))
    assert key_file in said
    assert "0644" in said
    assert SECRET.hex() not in said
