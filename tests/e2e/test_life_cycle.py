# SPDX-License-Identifier: Apache-2.0
"""Start, readiness, reload and stop, as a service manager and an operator see them."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingestd.errors import ConfigError, EngineError, ListenError, ResourceError, StoreError
from support.daemon import Daemon, format_store, free_port, run_ingestd
from support.notify import NotifySocket
from support.observe import assert_stored, scrape, wait_until
from support.patience import WAIT_S
from support.payload import Payload
from support.refusal import refusal, serve_refusal
from support.senders import SocketSender, assert_sealed, send
from support.stores import write_config

StartDaemon = Callable[..., Daemon]
WATCHDOG_S = 2.0
# Root reads what it likes and locks what it likes, unless it gives that up.
WITHOUT_CAPABILITIES = (
    ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
)


# --- The service manager -----------------------------------------------------------


def test_service_manager_is_told(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    with NotifySocket(tmp_path / "notify") as manager:
        environment = {
            "NOTIFY_SOCKET": str(manager.path),
            "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
        }
        daemon = start_daemon(store_path, environment=environment)
        (ready_s,) = wait_until(lambda: manager.times("READY=1"), "READY=1")
        # Ready means: a flow is accepted at once.
        assert_sealed(send(daemon.address, Payload(0, 1)))
        wait_until(lambda: len(manager.times("WATCHDOG=1")) >= 4, "WATCHDOG=1 comes")
        pings = [ready_s, *manager.times("WATCHDOG=1")]
        gaps = [after - before for before, after in itertools.pairwise(pings)]
        assert sorted(gaps)[len(gaps) // 2] < WATCHDOG_S / 2
        assert manager.times("STATUS=")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: manager.times("RELOADING=1"), "RELOADING=1")
        wait_until(lambda: len(manager.times("READY=1")) == 2, "READY=1 after the reload")
        assert manager.times("MONOTONIC_USEC=") == manager.times("RELOADING=1")
        assert not manager.times("STOPPING=1")
        assert daemon.stop() == 0
        assert manager.times("STOPPING=1")


def _is_stopped(pid: int) -> bool:
    """Return whether all of a process is stopped by a signal: state T of proc_pid_stat(5)."""
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in threads)


def test_watchdog_stops_with_the_process(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """A stopped process feeds no watchdog; a continued one does again."""
    with NotifySocket(tmp_path / "notify") as manager:
        environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "300000"}
        daemon = start_daemon(store_path, environment=environment)
        wait_until(lambda: manager.times("WATCHDOG=1"), "WATCHDOG=1 comes")
        daemon.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: _is_stopped(daemon.process.pid), "it stands still")
        manager.catch_up()
        count = len(manager.times("WATCHDOG=1"))
        time.sleep(1.0)
        assert len(manager.times("WATCHDOG=1")) == count
        daemon.process.send_signal(signal.SIGCONT)
        wait_until(lambda: len(manager.times("WATCHDOG=1")) > count, "it comes again")


def test_log_says_what_is_served(daemon: Daemon) -> None:
    names = [line["event"] for line in daemon.log_lines()]
    order = ["daemon_starting", "engine_chosen", "store_opened", "worker_started", "ready"]
    assert [name for name in names if name in order] == order
    (engine,) = daemon.events("engine_chosen")
    assert engine["engine"] == "recv"
    assert engine["reason"]
    addresses = {line["listener"]: line["address"] for line in daemon.events("listening")}
    assert addresses["default"] == f"{daemon.host}:{daemon.port}"
    assert addresses["metrics"] == f"{daemon.host}:{daemon.metrics_port}"
    assert daemon.stop() == 0
    assert daemon.log_lines()[-1]["event"] == "stopped"
    assert daemon.log_lines()[-1]["exit_code"] == 0


def test_metrics_name_engine_and_build(daemon: Daemon) -> None:
    shot = scrape(daemon)
    assert shot.total("ingestd_engine_info", engine="recv") == 1
    assert shot.total("ingestd_build_info") == 1
    for name in ("ingestd_write_latency_seconds_count", "ingestd_flush_latency_seconds_count"):
        assert shot.total(name) >= 0
    sizes = [shot.total("ingestd_store_bytes", state=state) for state in ("free", "used")]
    assert sum(sizes) == shot.total("ingestd_store_bytes")


def test_sigint_is_as_good_as_sigterm(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(WAIT_S) == 0


# --- What keeps it from starting -----------------------------------------------------


def test_port_in_use(store_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = refusal(
            ListenError, "serve", "--store", store_path, "--listen", f"127.0.0.1:{port}"
        )
        assert f"127.0.0.1:{port} is in use" in sentence
        sentence = serve_refusal(ListenError, store_path, "--metrics", f"127.0.0.1:{port}")
        assert f"127.0.0.1:{port}" in sentence
    # The store was released again, and serves another.
    with Daemon(store_path) as daemon:
        assert_sealed(send(daemon.address, Payload(1, 10)))


@pytest.mark.needs_root  # several workers lock more memory than an ordinary user may
def test_port_in_use_by_another_daemon(daemon: Daemon, tmp_path: Path) -> None:
    """Also with several workers, whose sockets share a port among themselves."""
    other = format_store(tmp_path / "other.img")
    config = write_config(tmp_path / "c.toml", store={"default": {"workers": 2, "area": "16MiB"}})
    listen = f"{daemon.host}:{daemon.port}"
    refusal(ListenError, "serve", "--store", other, "--listen", listen)
    refusal(ListenError, "serve", "-c", config, "--store", other, "--listen", listen)
    assert_sealed(send(daemon.address, Payload(2, 10)))


def test_address_that_is_not_ours(store_path: Path) -> None:
    sentence = refusal(ListenError, "serve", "--store", store_path, "--listen", "192.0.2.1:7070")
    assert "no address of this machine" in sentence


@pytest.mark.needs_root  # others get the missing capability reported first
def test_engine_that_cannot_be_had(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """A kind that is asked for by name is a demand; auto takes what there is, and says why."""
    config = tmp_path / "c.toml"
    for kind in ("zcrx", "auto"):
        # No kernel lends queues of the loopback interface.
        write_config(config, engine={"kind": kind, "interface": "lo", "queues": [0]})
        if kind == "zcrx":
            serve_refusal(EngineError, store_path, "-c", str(config))
    daemon = start_daemon(store_path, config=config)
    (chosen,) = daemon.events("engine_chosen")
    assert chosen["engine"] == "recv"
    assert "lo" in chosen["reason"]


def test_locked_memory_that_is_short(store_path: Path) -> None:
    """Root without capabilities is anybody: the area counts against RLIMIT_MEMLOCK."""
    wrapper = ("prlimit", "--memlock=1048576", *WITHOUT_CAPABILITIES)
    serve = ("serve", "--listen", "127.0.0.1:0", "--store", store_path)
    sentence = refusal(ResourceError, *serve, wrapper=wrapper)
    assert "1048576" in sentence
    assert "LimitMEMLOCK" in sentence


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[store.default]\npaht = '/x'\n", "path"),
        ("[store.default]\nflush_intervall_s = 1\n", "flush_interval_s"),
        ("[listner.a]\naddress = '127.0.0.1:1'\n", "listener"),
        ("[store.default]\narea = '12 potatoes'\n", "area"),
        ("[store.default]\nwriters = 3\n", "writers"),
        ("[metrics]\naddress = 'nowhere'\n", "metrics.address"),
        ("[store.default\n", "TOML"),
        ("[daemon]\ndrain_timeout_s = -1\n", "drain_timeout_s"),
    ],
)
def test_configuration_with_a_mistake(
    store_path: Path, tmp_path: Path, text: str, hint: str
) -> None:
    config = tmp_path / "ingestd.toml"
    config.write_text(text)
    for arguments in (("check-config",), ("serve", "--store", store_path)):
        sentence = refusal_of_config(arguments, config)
        assert str(config) in sentence
        assert hint in sentence


def refusal_of_config(arguments: tuple[str | Path, ...], config: Path) -> str:
    """All sentences about a configuration: there may be one per mistake."""
    result = run_ingestd(*arguments, "-c", config, code=ConfigError.exit_code)
    text = result.stderr.decode()
    assert "Traceback" not in text
    assert all(line.startswith("ingestd: error: ") for line in text.splitlines())
    return text


def test_unreadable_configuration(store_path: Path, tmp_path: Path) -> None:
    """Missing, a directory, or without the right to read, which root only loses on purpose."""
    assert "none.toml" in refusal(ConfigError, "check-config", "-c", tmp_path / "none.toml")
    refusal(ConfigError, "serve", "--store", store_path, "-c", tmp_path)
    config = tmp_path / "secret.toml"
    config.write_text("")
    config.chmod(0)
    sentence = refusal(ConfigError, "check-config", "-c", config, wrapper=WITHOUT_CAPABILITIES)
    assert "Permission denied" in sentence


def test_unreadable_store(store_path: Path, tmp_path: Path) -> None:
    store_path.chmod(0)
    # An area that fits the usual RLIMIT_MEMLOCK, which counts without capabilities.
    config = write_config(
        tmp_path / "c.toml", store={"default": {"area": "1MiB", "write_bytes_max": "64KiB"}}
    )
    serve = ("serve", "-c", str(config), "--listen", "127.0.0.1:0", "--store")
    for command in (("ls",), ("verify",), serve):
        sentence = refusal(StoreError, *command, store_path, wrapper=WITHOUT_CAPABILITIES)
        assert "Permission denied" in sentence


# --- Reload ---------------------------------------------------------------------------


def _reload(daemon: Daemon, event: str) -> dict[str, object]:
    before = len(daemon.events(event))
    daemon.process.send_signal(signal.SIGHUP)
    found = wait_until(lambda: daemon.events(event)[before:], f"{event} after SIGHUP")
    assert isinstance(found[0], dict)
    return found[0]


def test_reload(store_path: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int) -> None:
    """What can change at run time does, what cannot is named, flows do not notice."""
    config = tmp_path / "ingestd.toml"
    write_config(config, listener={"default": {"idle_timeout_s": 300}})
    daemon = start_daemon(store_path, config=config)
    sender = SocketSender(daemon.address)
    sender.write(b"before, ")
    write_config(
        config,
        listener={"default": {"idle_timeout_s": 0.5}},
        store={"default": {"flush_interval_s": 0.01, "workers": 2}},
        log={"level": "debug"},
    )
    reloaded = _reload(daemon, "config_reloaded")
    assert reloaded["changed"] == [
        "listener.default.idle_timeout_s",
        "log.level",
        "store.default.flush_interval_s",
    ]
    (waiting,) = daemon.events("config_needs_restart")
    assert waiting["keys"] == ["store.default.workers"]
    # The new idle time holds for the flow that is open already.
    assert sender.answer()["error"] == "idle_timeout"
    sent = send(daemon.address, Payload(seed, 10_000))
    assert_sealed(sent)
    assert wait_until(lambda: daemon.events("flow_opened"), "debug events are shown")
    assert_stored(store_path, [sent])


def test_reload_of_a_bad_configuration(
    store_path: Path, start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    """The old one stays; a good one is taken afterwards."""
    config = write_config(tmp_path / "ingestd.toml", log={"level": "info"})
    daemon = start_daemon(store_path, config=config)
    config.write_text("[log]\nlevle = 'debug'\n")
    refused = _reload(daemon, "config_refused")
    assert "level" in str(refused["error"])
    assert_sealed(send(daemon.address, Payload(seed, 100)))
    assert daemon.events("flow_opened") == []
    config.unlink()
    _reload(daemon, "config_refused")
    write_config(config, log={"level": "debug"})
    _reload(daemon, "config_reloaded")
    assert_sealed(send(daemon.address, Payload(seed, 100)))
    assert wait_until(lambda: daemon.events("flow_opened"), "debug events are shown")
    assert daemon.stop() == 0


# --- Several of everything --------------------------------------------------------------


@pytest.mark.needs_root  # several workers lock more memory than an ordinary user may
def test_several_stores_listeners_and_workers(
    start_daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    first = format_store(tmp_path / "first.img", size="128MiB")
    second = format_store(tmp_path / "second.img")
    ports = [free_port() for _ in range(2)]
    config = write_config(
        tmp_path / "c.toml",
        store={
            "default": {"workers": 2, "area": "16MiB"},
            "second": {"path": str(second), "area": "16MiB", "checksum": "none"},
        },
        listener={
            "default": {"store": "default"},
            "more": {"address": f"127.0.0.1:{ports[0]}", "store": "default"},
            "other": {"address": f"127.0.0.1:{ports[1]}", "store": "second"},
        },
    )
    daemon = start_daemon(first, config=config)
    targets = {"default": daemon.port, "more": ports[0], "other": ports[1]}
    sent = {
        name: [
            send(("127.0.0.1", port), Payload(seed + port + number, 30_000 + number))
            for number in range(20)
        ]
        for name, port in targets.items()
    }
    for name, flows in sent.items():
        for flow in flows:
            assert_sealed(flow, has_checksum=name != "other")
    assert_stored(first, sent["default"] + sent["more"])
    assert_stored(second, sent["other"])
    shot = scrape(daemon)
    for store, names in (("default", ("default", "more")), ("second", ("other",))):
        total = sum(flow.payload.size for name in names for flow in sent[name])
        assert shot.total("ingestd_received_bytes_total", store=store) == total
        assert shot.total("ingestd_durable_bytes_total", store=store) == total
    # The kernel spreads 40 connections over two workers; that one gets none is 2 in 2^40.
    for worker in ("0", "1"):
        assert shot.total("ingestd_received_bytes_total", store="default", worker=worker) > 0
    assert daemon.stop() == 0
