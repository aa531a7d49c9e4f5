# SPDX-License-Identifier: Apache-2.0
"""Who watches the daemon cannot stop it: a log that nobody reads, scrapers that take their time."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from support import tally
from support.daemon import Daemon, format_store, run_ingestd
from support.ingest import Ingest, data_of, stored
from support.observe import assert_clean, assert_stored, scrape
from support.patience import WAIT_S
from support.payload import Payload
from support.senders import Sent, SocketSender, assert_sealed, send
from support.stores import both_protocols_config
from support.stuck_log import stuck_log

StartDaemon = Callable[..., Daemon]
FLOWS_COUNT: Final = 60
SILENT_COUNT: Final = 40  # more than the server serves at once
DRIP_INTERVAL_S: Final = 0.2
DESCRIPTORS_MAX: Final = 64
WATCHED_S: Final = 2.0


@pytest.mark.fault("log")
def test_nobody_reads_the_log(start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    """Flows of both protocols are sealed, and the daemon ends when it is asked to."""
    config = both_protocols_config(tmp_path / "c.toml", log={"level": "debug"})
    with stuck_log(tmp_path) as log:
        store = format_store(tmp_path / "store.img")
        daemon = start_daemon(store, config=config, wrapper=log.wrapper, log=log.log)
        ingest = daemon.listener("ingest")
        log.stick()
        sent = [send(daemon.address, Payload(seed + n, 1000 + n)) for n in range(FLOWS_COUNT)]
        for one in sent:
            assert_sealed(one)
        data = data_of(seed, 300_000)
        with Ingest(ingest) as sender:
            sender.begin(name="behind the raw ones")
            sender.send(data)
            assert sender.sealed()["bytes"] == len(data)
        assert daemon.stop() == 0
    assert_stored(store, sent)
    with tally.acknowledged(len(data)):
        assert stored(daemon, sender.flow)[1] == data
    assert_clean(store)


@contextmanager
def dripping(address: tuple[str, int]) -> Iterator[None]:
    """A request for the metrics of which a byte comes now and then, for ever."""
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(DRIP_INTERVAL_S):
            # It is sent away, and comes again.
            with suppress(OSError), socket.create_connection(address, WAIT_S) as client:
                client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
                while not stop.wait(DRIP_INTERVAL_S):
                    client.sendall(b"a")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WAIT_S)


@pytest.mark.fault("scrapers")
def test_scrapers_that_take_their_time(daemon: Daemon, seed: int) -> None:
    """Another is answered, flows are sealed, and the end comes while they are there."""
    metrics = daemon.listener("metrics")
    with ExitStack() as stack:
        for _ in range(SILENT_COUNT):
            stack.enter_context(socket.create_connection(metrics, WAIT_S))
        sent = [send(daemon.address, Payload(seed + n, 50_000)) for n in range(10)]
        assert scrape(daemon).total("ingestd_durable_bytes_total") == 10 * 50_000
        with dripping(metrics):
            sent += [send(daemon.address, Payload(seed + n, 50_000)) for n in range(10)]
            assert scrape(daemon).total("ingestd_durable_bytes_total") == 20 * 50_000
            assert daemon.stop() == 0
    for one in sent:
        assert_sealed(one)
    assert_stored(daemon.store, sent)
    assert_clean(daemon.store)


def _cpu_s(daemon: Daemon) -> float:
    """CPU time that it used so far: utime and stime of proc_pid_stat(5)."""
    text = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(text[11]) + int(text[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.fault("descriptors")
def test_a_scraper_that_waits_for_a_descriptor(
    store_path: Path, start_daemon: StartDaemon, seed: int
) -> None:
    """Accepting it is tried again and again, but not as fast as a CPU can."""
    limit = ("prlimit", f"--nofile={DESCRIPTORS_MAX}:{DESCRIPTORS_MAX}")
    daemon = start_daemon(store_path, wrapper=limit)
    early = SocketSender(daemon.address)
    payload = Payload(seed, 500_000)
    early.write(payload.data()[:1000])
    with ExitStack() as stack:
        for _ in range(2 * DESCRIPTORS_MAX):
            stack.callback(SocketSender(daemon.address).close)
        scraper = stack.enter_context(socket.create_connection(daemon.listener("metrics"), WAIT_S))
        scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        time.sleep(WATCHED_S / 2)
        before_s = _cpu_s(daemon)
        time.sleep(WATCHED_S)
        assert _cpu_s(daemon) - before_s < WATCHED_S / 2
        early.write(payload.data()[1000:])
        sent = [Sent(payload, early.finish())]
        assert_sealed(sent[0])
    sent.append(send(daemon.address, Payload(seed + 1, 1000)))
    assert_stored(store_path, sent)
    assert daemon.stop() == 0


@pytest.mark.parametrize("option", ["--listen", "--metrics"])
def test_a_taken_port_is_told_before_the_store_is_touched(store_path: Path, option: str) -> None:
    before = store_path.read_bytes()[: 1 << 20]
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        options = {"--listen": "127.0.0.1:0", option: taken}
        flags = [text for item in options.items() for text in item]
        result = run_ingestd("serve", "--store", store_path, *flags, code=12)
    assert taken.encode() in result.stderr
    assert b"store_opened" not in result.stderr
    assert store_path.read_bytes()[: 1 << 20] == before, "nor its generation raised"
