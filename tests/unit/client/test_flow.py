# SPDX-License-Identifier: Apache-2.0
"""The Python client of protocol `ingest` against a strict server that fails on demand."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingestd.client import FlowWriter, Key, connect
from ingestd.errors import SenderError, SystemCallError, UsageError
from support.patience import WAIT_S
from support.payload import Payload
from support.protocol_server import ProtocolServer, running

FLOW = str(uuid.UUID(int=77))
SECRET = b"0123456789abcdef"
MIB = 1 << 20


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about"
        time.sleep(0.002)


def _write_all(flow: FlowWriter, data: bytes, chance: random.Random) -> None:
    at = 0
    while at < len(data):
        count = chance.choice([1, 100, 4096, 300_000])
        flow.write(data[at : at + count])
        at += count


def _send(server: ProtocolServer, data: bytes, **arguments: Any) -> None:
    with connect(server.address, **arguments) as flow:
        flow.write(data)


def _file(tmp_path: Path, size: int) -> tuple[Path, bytes]:
    data = Payload(5, size).data()
    (tmp_path / "file").write_bytes(data)
    return tmp_path / "file", data


def test_what_is_written_is_stored_and_the_receipt_is_for_it() -> None:
    payload = Payload(1, 3 * MIB + 5)
    with running() as server:
        with connect(server.address, name="run 12", labels={"beam": "7 keV"}) as flow:
            _write_all(flow, payload.data(), random.Random(1))
            assert flow.start_offset == 0
        stored = server.flows[flow.flow]
    assert bytes(stored.data) == payload.data()
    assert stored.hello["name"] == "run 12"
    assert stored.hello["labels"] == {"beam": "7 keV"}
    assert flow.receipt is not None
    assert flow.receipt.is_sealed
    assert flow.receipt.as_dict()["bytes"] == payload.size
    assert flow.receipt.checksum == payload.checksum()
    assert flow.durable_offset == flow.sent_offset == payload.size


def test_empty_flow() -> None:
    with running() as server:
        with connect(server.address, bytes_total=0) as flow:
            pass
        assert server.only_flow().is_sealed
    assert flow.receipt is not None
    assert flow.receipt.sender_checksum == "crc32c:00000000"


def test_length_that_is_stated_comes_with_a_trailer() -> None:
    payload = Payload(2, MIB + 1)
    with running() as server, connect(server.address, bytes_total=payload.size) as flow:
        flow.write(payload.data())
        receipt = flow.close()
        assert server.only_flow().hello["trailer"] is True
    assert receipt.sender_checksum == receipt.checksum == payload.checksum()
    assert receipt.as_dict()["sender_checksum"] == payload.checksum()


def test_file_is_sent_without_being_kept(tmp_path: Path) -> None:
    path, data = _file(tmp_path, 5 * MIB + 3)
    with running() as server, path.open("rb") as reader:
        with connect(server.address, source=reader, buffer_bytes_max=1) as flow:
            pass
        assert bytes(server.only_flow().data) == data
    assert flow.receipt is not None
    assert flow.receipt.sender_checksum == Payload(5, 5 * MIB + 3).checksum()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["buffer", "file", "stated"])
def test_connections_that_break_at_random_lose_nothing(
    seed: int, kind: str, tmp_path: Path
) -> None:
    """Buffers smaller than the flow, acknowledgements that lag, bytes that a crash loses."""
    path, data = _file(tmp_path, 2 * MIB + seed)
    chance = random.Random(seed)
    behaviour: dict[str, Any] = {
        "drop_chance": 0.08,
        "drops_after": [chance.randint(1, 2 * MIB), None, chance.randint(1, 4096)],
        "receipts_lost": seed % 3,
        "ack_interval_s": chance.choice([0, 0.003]),
        "piece_bytes_max": chance.choice([10_000, 65536]),
    }
    with running(seed=seed, **behaviour) as server, path.open("rb") as reader:
        source: dict[str, Any] = {"source": reader} if kind == "file" else {}
        if kind == "stated":
            source = {"bytes_total": len(data)}
        with connect(server.address, buffer_bytes_max=300_000, **source) as flow:
            if kind != "file":
                _write_all(flow, data, chance)
        assert bytes(server.only_flow().data) == data
        assert server.only_flow().is_sealed
        assert server.counts["drops"] > 0
    assert flow.receipt is not None
    assert flow.receipt.bytes == len(data)


def test_receipt_that_was_lost_is_found_again() -> None:
    payload = Payload(3, 100_000)
    with running(receipts_lost=1) as server:
        with connect(server.address) as flow:
            flow.write(payload.data())
        assert server.counts["sealed"] == 1
    assert flow.receipt is not None
    assert flow.receipt.checksum == payload.checksum()


def test_full_buffer_makes_write_wait_until_bytes_are_durable() -> None:
    payload = Payload(4, 3 * MIB)
    with running(says_durable=False) as server:
        flow = connect(server.address, buffer_bytes_max=MIB)
        thread = threading.Thread(target=flow.write, args=(payload.data(),))
        thread.start()
        _wait_until(lambda: flow.sent_offset == MIB)
        thread.join(0.2)
        assert thread.is_alive()
        assert flow.durable_offset == 0
        server.behaviour.says_durable = True
        thread.join(WAIT_S)
        assert not thread.is_alive()
        assert flow.close().checksum == payload.checksum()


def test_durable_offset_advances_while_the_caller_does_other_things() -> None:
    with running() as server, connect(server.address) as flow:
        flow.write(b"x" * 1000)
        _wait_until(lambda: flow.durable_offset == 1000)
        assert not server.only_flow().is_sealed


def test_flow_goes_on_in_another_writer() -> None:
    payload = Payload(6, MIB)
    with running() as server:
        first = connect(server.address, flow=FLOW)
        first.write(payload.data()[:600_000])
        _wait_until(lambda: first.durable_offset > 0)
        first.abort()
        with connect(server.address, flow=FLOW, resume=True) as second:
            assert second.start_offset >= first.durable_offset
            second.write(payload.data()[second.start_offset :])
        assert bytes(server.only_flow().data) == payload.data()
        third = Payload(6, MIB)
        with pytest.raises(SenderError, match=f"sealed: complete; {MIB} bytes of flow {FLOW}"):
            connect(server.address, flow=FLOW, resume=True)
    assert second.receipt is not None
    assert second.receipt.checksum == third.checksum()


def test_flow_that_is_written_from_its_start_again() -> None:
    payload = Payload(7, 500_000)
    with running() as server:
        first = connect(server.address, flow=FLOW, bytes_total=payload.size)
        first.write(payload.data()[:300_000])
        _wait_until(lambda: first.durable_offset == 300_000)
        first.abort()
        with connect(
            server.address, flow=FLOW, bytes_total=payload.size, from_start=True
        ) as second:
            _write_all(second, payload.data(), random.Random(2))
        assert bytes(server.only_flow().data) == payload.data()
    assert second.start_offset == 300_000
    assert second.receipt is not None
    assert second.receipt.sender_checksum == payload.checksum()


def test_file_goes_on_in_another_writer_and_is_known_when_complete(tmp_path: Path) -> None:
    path, data = _file(tmp_path, 2 * MIB)
    with running(drops_after=[600_000]) as server, path.open("rb") as reader:
        with pytest.raises(SenderError, match="gave up after 0 s"):
            connect(server.address, flow=FLOW, source=reader, retry_s=0).close()
        for _ in range(2):  # the second time, it is sealed already
            with connect(server.address, flow=FLOW, source=reader) as flow:
                pass
            assert flow.receipt is not None
            assert flow.receipt.checksum == Payload(5, 2 * MIB).checksum()
        assert bytes(server.only_flow().data) == data
        assert server.counts["sealed"] == 1


def test_other_file_cannot_go_on_with_the_flow(tmp_path: Path) -> None:
    path, data = _file(tmp_path, 500_000)
    with running() as server:
        with path.open("rb") as reader:
            first = connect(server.address, flow=FLOW, source=reader)
            _wait_until(lambda: first.durable_offset == len(data))
            first.abort()
        path.write_bytes(b"other" * 100_000)
        with (
            path.open("rb") as reader,
            pytest.raises(SenderError, match="checksum: another checksum"),
        ):
            connect(server.address, flow=FLOW, source=reader).close()
        assert not server.only_flow().is_sealed
        path.write_bytes(b"short")
        server.complaints.clear()  # a length that changed is what is meant here
        with path.open("rb") as reader, pytest.raises(SenderError, match="500000 bytes of flow"):
            connect(server.address, flow=FLOW, source=reader)
        server.complaints.clear()


def test_key_is_proved_over_every_connection() -> None:
    payload = Payload(8, MIB)
    with running({"lab": SECRET}, drops_after=[200_000, 300_000]) as server:
        with connect(server.address, key=Key("lab", SECRET)) as flow:
            flow.write(payload.data())
        assert server.counts["resumes"] == 2
    assert flow.receipt is not None


@pytest.mark.parametrize(
    ("keys", "key", "why"),
    [
        ({"lab": SECRET}, None, "asks for a key: give one"),
        ({"lab": SECRET}, Key("lab", SECRET[::-1]), "unauthorised: the MAC is wrong"),
        ({"lab": SECRET}, Key("barn", SECRET), "unauthorised: no such key"),
        (None, Key("lab", SECRET), "does not ask for a key"),
    ],
)
def test_wrong_keys(keys: dict[str, bytes] | None, key: Key | None, why: str) -> None:
    with running(keys) as server, pytest.raises(SenderError, match=why) as caught:
        connect(server.address, key=key)
    assert SECRET.decode() not in repr(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        "bad_hello", "version", "unauthorised", "exists", "unknown_flow", "sealed", "store_full",
        "store_failed", "checksum", "trailer", "too_long", "too_short", "limit",
        "replaced", "of_a_later_daemon",
    ],
)  # fmt: skip
def test_refusals_that_stay_are_told_at_once(code: str) -> None:
    refusal = {"code": code, "text": "\x1b[2Jnow", "bytes": 7}
    with (
        running(refusals=[refusal]) as server,
        pytest.raises(SenderError, match=rf"{code}: \?\[2Jnow; 0 bytes"),
    ):
        connect(server.address)


@pytest.mark.parametrize("code", ["busy", "shutdown", "idle_timeout", "hello_timeout"])
def test_refusals_that_pass_are_tried_again(code: str) -> None:
    told: list[str] = []
    with running(refusals=[{"code": code}] * 3) as server:
        with connect(server.address, notify=told.append) as flow:
            flow.write(b"abc")
        assert server.counts["connections"] == 4
        assert bytes(server.only_flow().data) == b"abc"
    assert len(told) == 1
    assert f"{code}: made up: trying again for 300 s" in told[0]


def test_refusal_that_does_not_pass_in_time() -> None:
    with (
        running(refusals=[{"code": "busy"}] * 1000) as server,
        pytest.raises(SenderError, match=r"busy: made up: gave up after 0\.2 s"),
    ):
        connect(server.address, retry_s=0.2)


def test_loss_and_return_are_told() -> None:
    told: list[str] = []
    with running(drops_after=[1000]) as server:
        with connect(server.address, notify=told.append) as flow:
            flow.write(b"x" * 5000)
        assert server.counts["drops"] == 1
    assert "the connection was lost: trying again for 300 s" in told[0]
    assert f"flow {flow.flow}: resumes at byte" in told[1]
    assert len(told) == 2


def test_flow_with_nothing_to_send_stays_away_until_it_has() -> None:
    with running() as server:
        with connect(server.address, retry_s=3.0) as flow:
            flow.write(b"a")
            _wait_until(lambda: flow.durable_offset == 1)
            server.drop_all()
            _wait_until(lambda: server.counts["drops"] == 1)
            time.sleep(3.5)  # more than retry_s: nothing was lacking all that time
            assert server.counts["connections"] == 1
            flow.write(b"b")
        assert bytes(server.only_flow().data) == b"ab"


def test_newer_sender_of_the_flow_wins_and_the_older_does_not_fight() -> None:
    with running() as server:
        older = connect(server.address, flow=FLOW)
        older.write(b"a")
        _wait_until(lambda: older.durable_offset == 1)
        with connect(server.address, flow=FLOW) as newer:
            newer.write(b"b")
            older.write(b"x")
            with pytest.raises(SenderError, match="replaced"):
                older.close()
        assert bytes(server.only_flow().data) == b"ab"


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(SenderError, match=f"127.0.0.1:{port}: cannot connect: Connection refused"):
        connect(f"127.0.0.1:{port}", retry_s=0)


def test_listener_that_goes_away_for_good() -> None:
    with running() as server:
        flow = connect(server.address, retry_s=0.3)
        flow.write(b"abc")
        _wait_until(lambda: flow.durable_offset == 3)
    with pytest.raises(SenderError, match=r"gave up after 0\.3 s; 3 bytes of flow"):
        flow.close()
    with pytest.raises(SenderError):  # and it stays so
        flow.close()


def test_connection_over_which_nothing_moves_counts_as_lost() -> None:
    with running(says_durable=False) as server:
        flow = connect(server.address, stall_timeout_s=0.3)
        flow.write(b"abc")
        _wait_until(lambda: server.counts["connections"] > 2)
        server.behaviour.says_durable = True
        flow.close()
        assert bytes(server.only_flow().data) == b"abc"


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ({"greeting": {"versions": [2, 3]}}, "does not speak version 1"),
        ({"greeting": {"auth": "dance"}}, "asks for a proof that is not known"),
        ({"greeting": {"challenge": "x"}}, "does not speak protocol ingest"),
        ({"accepted": {"flow": str(uuid.UUID(int=1))}}, "answered the hello with something else"),
        ({"accepted": {"offset": -1}}, "does not speak protocol ingest"),
        ({"receipt": {"bytes": 4}}, "is for 4 bytes, but 5 were sent: do not trust it"),
        ({"receipt": {"durable": False}}, "is for something else: do not trust it"),
        ({"receipt": {"checksum": "crc32c:00000000"}}, "but what was sent has crc32c:"),
    ],
)
def test_what_cannot_be_trusted_is_refused(behaviour: dict[str, Any], why: str) -> None:
    with running(**behaviour) as server, pytest.raises(SenderError, match=why):
        _send(server, b"12345")


def test_daemon_that_forgets_what_it_acknowledged() -> None:
    with running() as server:
        flow = connect(server.address, flow=FLOW)
        flow.write(b"x" * 1000)
        _wait_until(lambda: flow.durable_offset == 1000)
        stored = server.only_flow()
        server.drop_all()
        _wait_until(lambda: server.counts["drops"] == 1)
        stored.durable = 10
        del stored.data[10:]
        with pytest.raises(SenderError, match="has 10 bytes of flow .* acknowledged 1000"):
            flow.close()


def test_raw_listener_is_told_from_an_ingest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingestd.client.flow.HANDSHAKE_TIMEOUT_S", 0.2)
    with running(is_mute=True) as server, pytest.raises(SenderError, match="no hello of protocol"):
        connect(server.address)


def test_exception_in_the_body_leaves_the_flow_interrupted() -> None:
    with running() as server:
        with contextlib.suppress(ZeroDivisionError), connect(server.address) as flow:
            flow.write(b"half")
            _wait_until(lambda: flow.durable_offset == 4)
            raise ZeroDivisionError
        assert flow.receipt is None
        _wait_until(lambda: server.counts["drops"] == 1)
        assert not server.only_flow().is_sealed


def test_abort_ends_a_write_that_waits() -> None:
    with running(says_durable=False) as server:
        flow = connect(server.address, buffer_bytes_max=1000)
        timer = threading.Timer(0.1, flow.abort)
        timer.start()
        with pytest.raises(SenderError, match="was aborted"):
            flow.write(bytes(MIB))
        timer.join()


def test_abort_ends_the_wait_for_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with running() as server:
        flow = connect(server.address, notify=told.append)
    monkeypatch.setattr("ingestd.client.flow.RETRY_DELAY_S", 1e6)
    monkeypatch.setattr("ingestd.client.flow.RETRY_DELAY_S_MAX", 1e6)
    flow.write(b"abc")
    _wait_until(lambda: bool(told))
    begun_s = time.monotonic()
    flow.abort()
    assert time.monotonic() - begun_s < WAIT_S


@pytest.mark.parametrize("count", [3, 7])
def test_length_that_was_stated_is_kept(count: int) -> None:
    with running() as server:
        with pytest.raises(SenderError, match="was to have 5 bytes"):
            _send(server, bytes(count), bytes_total=5)
        assert not server.only_flow().is_sealed


def test_file_that_becomes_shorter(tmp_path: Path) -> None:
    path, _ = _file(tmp_path, 5)
    with path.open("r+b") as writer:
        writer.truncate(256 * MIB)  # more than the kernel takes ahead; a hole takes no room
    with running(pause_s=0.01, piece_bytes_max=4096) as server, path.open("rb") as reader:
        flow = connect(server.address, source=reader)
        path.write_bytes(b"gone")
        with pytest.raises(SystemCallError, match="became shorter while it was sent"):
            flow.close()
        _wait_until(lambda: server.counts["drops"] == 1)
        assert not server.only_flow().is_sealed


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"address": "nowhere"}, "address: 'nowhere' is not an address"),
        ({"flow": "x"}, "flow: 'x' is not a UUID"),
        ({"name": "a\nb"}, "its name is not text"),
        ({"labels": {"": ""}}, "its label ''"),
        ({"bytes_total": -1}, "bytes_total: -1"),
        ({"buffer_bytes_max": 0}, "buffer_bytes_max: 0"),
        ({"source": __import__("io").BytesIO(b"x")}, "is not an open file"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        connect(**{"address": "127.0.0.1:1", **arguments})


def test_source_must_be_a_regular_file_of_the_stated_length(tmp_path: Path) -> None:
    with Path("/dev/null").open("rb") as reader, pytest.raises(UsageError, match="regular file"):
        connect("127.0.0.1:1", source=reader)
    path, _ = _file(tmp_path, 5)
    with path.open("rb") as reader, pytest.raises(UsageError, match="but the source has 5"):
        connect("127.0.0.1:1", source=reader, bytes_total=6)


def test_hundred_flows_at_once() -> None:
    def send(server: ProtocolServer, number: int) -> None:
        with connect(server.address, flow=str(uuid.UUID(int=number))) as flow:
            flow.write(Payload(number, 20_000).data())

    with running(drop_chance=0.05) as server:
        threads = [threading.Thread(target=send, args=(server, n)) for n in range(1, 101)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stored = {uuid.UUID(flow).int: bytes(kept.data) for flow, kept in server.flows.items()}
    assert stored == {number: Payload(number, 20_000).data() for number in range(1, 101)}
