# SPDX-License-Identifier: Apache-2.0
"""Configuration: defaults, sentences for everything that can be wrong, reload."""

from __future__ import annotations

import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ingestd.address import Address
from ingestd.config import loading
from ingestd.config.checks import crosscheck
from ingestd.config.diff import diff
from ingestd.config.loading import cpus_online, effective_toml, load, reload
from ingestd.config.settings import ControlSettings, LogSettings, Overrides, Settings
from ingestd.errors import ConfigError

DOCUMENTED = Path(__file__).parents[3] / "config" / "ingestd.toml"
MINIMAL = '[store.a]\npath = "{store}"\n[listener.x]\naddress = "127.0.0.1:7000"\n'
FLAGS = Overrides(store="/var/s", listen="127.0.0.1:7000")


@pytest.fixture
def toml(tmp_path: Path) -> Any:
    """A function that writes a configuration and loads it."""

    def write_and_load(text: str, overrides: Overrides | None = None) -> Settings:
        path = tmp_path / "ingestd.toml"
        path.write_text(text.replace("{store}", str(tmp_path / "store")), encoding="utf-8")
        return load(str(path), overrides)

    return write_and_load


# --- loading ---------------------------------------------------------------------


def test_flags_alone_are_enough() -> None:
    settings = load(None, Overrides(store="/var/s", listen="[::1]:7", metrics="*:9", engine="recv"))
    assert settings.store["default"].path == "/var/s"
    assert settings.listener["default"].endpoint == Address("::1", 7)
    assert settings.listener["default"].store == "default"
    assert settings.metrics.endpoint == Address("*", 9)
    assert settings.engine.kind == "recv"


def test_flags_override_the_file(toml: Any) -> None:
    settings = toml(
        '[store.default]\npath = "/var/a"\nworkers = 2\n'
        '[listener.default]\naddress = "*:1"\nidle_timeout_s = 5\n',
        Overrides(store="/var/b", listen="*:2"),
    )
    assert (settings.store["default"].path, settings.store["default"].workers) == ("/var/b", 2)
    assert settings.listener["default"].address == "*:2"
    assert settings.listener["default"].idle_timeout_s == 5


def test_sizes_are_numbers_or_texts(toml: Any) -> None:
    settings = toml(
        MINIMAL.replace("[listener", 'area = "64MiB"\nwrite_bytes_max = 65536\n[listener')
    )
    assert settings.store["a"].area == 64 * 1024 * 1024
    assert settings.store["a"].write_bytes_max == 65536


def test_settings_cannot_be_changed() -> None:
    settings = load(None, FLAGS)
    with pytest.raises(ValueError, match="frozen"):
        settings.log.level = "debug"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[store.a]\nworker = 1",
            r'store\.a\.worker: is not a known key: did you mean "workers"\?',
        ),
        ("[stors.a]", r'stors: is not a known key: did you mean "store"\?'),
        ("[store.a]\ndrain_timeout_s = 1", r"drain_timeout_s: .*it belongs below \[daemon\]"),
        ("[daemon]\nidle_timeout_s = 1", r"it belongs below \[listener\.NAME\]"),
        ("[log]\nqqq = 1", r"log\.qqq: is not a known key: known here are level, format"),
        ("[store.a]\nworkers = 1", r"store\.a\.path: is missing"),
        ("[store]\npath = 'x'", r"store\.path: must be a table: .*\[store\.NAME\]"),
        ("metrics = 3", r"metrics: must be a table: .*\[metrics\]"),
        ("[store.'b c']\npath = 'x'", r"store\.b c: is not a valid name"),
        ("[store.a]\nworkers = '2'", r'workers: must be a whole number, not "2"'),
        ("[store.a]\nworkers = 1.5", r"workers: must be a whole number, not 1\.5"),
        ("[store.a]\nworkers = true", r"workers: must be a whole number, not true"),
        ("[store.a]\nworkers = 0", r"workers: must be between 1 and 64, not 0"),
        ("[store.a]\ncpus = 1", r"cpus: must be a list in brackets, not 1"),
        ("[store.a]\ncpus = ['1']", r'cpus\.0: must be a whole number, not "1"'),
        ("[store.a]\ncpus = [-1]", r"cpus\.0: must be between 0 and 8191, not -1"),
        ("[store.a]\narea = '1M'", r"area: '1M' is ambiguous: write 1MiB"),
        ("[store.a]\narea = '2GiB'", r"area: must be between 1MiB and 1GiB, not 2GiB"),
        ("[store.a]\narea = 1.0", r"area: must be a size"),
        ("[store.a]\nwrite_bytes_max = 65537", r"must be a multiple of 4096, not 65537"),
        ("[store.a]\nwrite_bytes_max = '32KiB'", r"must be between 64KiB and 16MiB, not 32KiB"),
        ("[store.a]\nflush_interval_s = 'x'", r'flush_interval_s: must be a number, not "x"'),
        ("[store.a]\nflush_interval_s = nan", r"must be a finite number"),
        ("[store.a]\nflush_interval_s = -1", r"must be between 0\.001 and 60, not -1"),
        ("[store.a]\nchecksum = 'md5'", r"must be 'auto', 'crc32c' or 'none', not \"md5\""),
        ("[store.a]\non_full = 'drop'", r"on_full: must be 'reject' or 'overwrite-oldest'"),
        ("[store.a]\nuuid = 'x'", r"uuid: 'x' is not a UUID"),
        ("[store.a]\npath = ''", r"path: must not be empty"),
        ('[store.a]\npath = "a\\u0000b"', r"path: is not valid here: 'a\\x00b'"),
        ("[store.a]\npath = 1", r"path: must be a text in quotes, not 1"),
        ("[listener.a]\naddress = '7000'", r"address: '7000' is not an address"),
        ("[listener.a]\naddress = 'a:70000'", r"no port between 0 and 65535"),
        ("[engine]\ninterface = 'a b'", r'interface: is not valid here: "a b"'),
        ("[engine]\nqueues = [70000]", r"queues\.0: must be between 0 and 65535"),
        ("[engine]\nrx_buf = '12KiB'", r"rx_buf: .*12288 is not a power of two"),
        ("[engine]\nrx_buf = '2KiB'", r"rx_buf: must be between 4KiB and 2MiB"),
        ("[engine]\nrefill_entries = 100", r"refill_entries: .*100 is not a power of two"),
        ("[engine]\nnic_state_dir = 'run'", r"nic_state_dir: is not valid here"),
        ("[log]\nlevel = 'loud'", r"must be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_one_fault_one_sentence(toml: Any, tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        toml(text)
    for line in str(caught.value).splitlines():
        assert line.startswith(f"{tmp_path / 'ingestd.toml'}: ")
        assert "pydantic" not in line
        assert "Input" not in line


def test_all_faults_are_told_at_once(toml: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        toml('[store.a]\nworkers = "x"\narea = 3\n[log]\nlevel = 1\ncolour = 2\n')
    assert len(str(caught.value).splitlines()) == 5  # and the path that is missing


def test_faults_of_flags_name_the_flag() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, Overrides(store="", listen="nowhere", metrics="1", engine="fast"))
    heads = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert sorted(heads) == ["--engine", "--listen", "--metrics", "--store"]


def test_flag_does_not_hide_that_the_file_is_wrong(toml: Any) -> None:
    with pytest.raises(ConfigError, match="store: must be a table"):
        toml("store = 1", Overrides(store="/var/s"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[store.a\n", r"is not valid TOML: .*line 1"),
        (b"a = 1\na = 2\n", r"is not valid TOML: .*line 2"),
        (b"a = 1\n# \xff\n", r"is not UTF-8 at line 2"),
        (b"#" * (loading.CONFIG_FILE_BYTES_MAX + 1), r"is longer than 1MiB"),
        (b"a = " + b"[" * 100_000, r"nested too deep|is not valid TOML"),
    ],
)
def test_file_that_is_no_toml(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        load(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(str(tmp_path))
    with pytest.raises(ConfigError, match="is not a path"):
        load("a\0b")


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    path = Path(tempfile.gettempdir()) / f"ingestd-test-{os.getpid()}.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        with pytest.raises(ConfigError):
            load(str(path))
    finally:
        path.unlink()


# --- cross checks ----------------------------------------------------------------

STORES = '[store.a]\npath = "{store}1"\n[store.b]\npath = "{store}2"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"toml: names no store"),
        ("[store.a]\npath = 'x'", r"toml: names no listener"),
        (MINIMAL + "store = 'b'", r'listener\.x\.store: there is no store "b": name one of a'),
        (
            STORES + "[listener.x]\naddress = '*:1'",
            r"listener\.x\.store: is missing: with several stores, name one of a, b",
        ),
        (
            "[store.a]\npath = 'a'\n[store.b]\npath = 'b'\n[listener.x]\naddress = '*:1'\n"
            "stores = ['a', 'c']",
            r'listener\.x\.stores: there is no store "c": name one of a, b',
        ),
        (
            "[store.a]\npath = 'a'\n[store.b]\npath = 'b'\n[listener.x]\naddress = '*:1'\n"
            "stores = ['a', 'b']\nstore = 'a'",
            r"listener\.x\.stores: and store are both given",
        ),
        (
            "[store.a]\npath = 'a'\n[listener.x]\naddress = '*:1'\nstores = ['a', 'a']",
            r"listener\.x\.stores: names a store twice",
        ),
        (
            "[store.a]\npath = 'a'\n[listener.x]\naddress = '*:1'\nplacement = 'most-free'",
            r"listener\.x\.placement: needs several stores",
        ),
        (
            "[store.a]\npath = 'a'\n[store.b]\npath = 'b'\n[listener.x]\naddress = '*:1'\n"
            "stores = ['a', 'b']\nplacement = 'most-free'\n"
            "[engine]\nkind = 'zcrx'\ninterface = 'none'",
            r'listener\.x\.placement: must be "spread" with engine\.kind = "zcrx"',
        ),
        (
            "[store.a]\npath = 'x'\nworkers = 2\ncpus = [0]\n[listener.x]\naddress = '*:1'",
            r"store\.a\.cpus: names 1 CPUs for 2 workers",
        ),
        (
            "[store.a]\npath = 'x'\nworkers = 2\ncpus = [0, 0]\n[listener.x]\naddress = '*:1'",
            r"store\.a\.cpus: names a CPU twice",
        ),
        (
            "[store.a]\npath = 'x'\ncpus = [8191]\n[listener.x]\naddress = '*:1'",
            r"store\.a\.cpus: there is no CPU 8191 online",
        ),
        (
            "[store.a]\npath = 'x'\narea = '32MiB'\nwrite_bytes_max = '16MiB'\n"
            "[listener.x]\naddress = '*:1'",
            r"store\.a\.area: must hold 4 writes of write_bytes_max: make it 64MiB or more",
        ),
        (
            MINIMAL + "[listener.y]\naddress = '127.0.0.1:7000'",
            r"listener\.y\.address: 127\.0\.0\.1:7000 is taken by listener\.x\.address",
        ),
        (MINIMAL + "[metrics]\naddress = '*:7000'", r"metrics\.address: .* is taken by listener"),
        (
            '[store.a]\npath = "{store}"\n[store.b]\npath = "{store}"\n'
            '[listener.x]\naddress = "*:1"\nstore = "a"',
            r"store\.b\.path: is the store of store\.a\.path",
        ),
        (MINIMAL + "[engine]\nkind = 'zcrx'", r"engine\.interface: is missing"),
        (MINIMAL + "[engine]\nqueues = [1]", r"engine\.interface: is missing"),
        (
            MINIMAL + "[engine]\ninterface = 'eth0'\nqueues = [1, 1]",
            r"engine\.queues: names a queue twice",
        ),
        (
            MINIMAL + "[engine]\ninterface = 'eth0'\nqueues = [1, 2]",
            r"engine\.queues: names 2 queues for 1 workers of all stores",
        ),
        (
            MINIMAL + "[engine]\nkind = 'zcrx'\ninterface = 'eth0'",
            r"engine\.queues: names 0 queues for 1 workers",
        ),
        (
            MINIMAL + "[engine]\nkind = 'zcrx'\ninterface = 'none'\nqueues = [1]",
            r'engine\.queues: must be empty: interface = "none"',
        ),
        (
            MINIMAL + "[engine]\nkind = 'zcrx'\ninterface = 'none'\nmanage_nic = true",
            r"engine\.manage_nic: must be false",
        ),
        (
            MINIMAL + "".join(f"[listener.l{n}]\naddress = '*:{n + 1}'\n" for n in range(16)),
            r"store\.a: has 17 listeners, at most 16",
        ),
    ],
)
def test_contradictions(toml: Any, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        toml(text)


def test_one_store_by_two_names(toml: Any, tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    (tmp_path / "hard").hardlink_to(tmp_path / "store")
    for alias in ("link", "hard"):
        with pytest.raises(ConfigError, match=r"store\.b\.path: is the store of store\.a\.path"):
            toml(MINIMAL + f'store = "a"\n[store.b]\npath = "{tmp_path / alias}"\n')


def test_cpus_are_those_online() -> None:
    settings = load(None, FLAGS)
    pinned_store = settings.store["default"].model_copy(update={"cpus": (3,)})
    pinned = settings.model_copy(update={"store": {"default": pinned_store}})
    assert crosscheck(pinned, frozenset({3})) == []
    (problem,) = crosscheck(pinned, frozenset({0, 1}))
    assert problem == ("store.default.cpus", "there is no CPU 3 online: there are 0, 1")


def test_cpu_list_of_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "online"
    path.write_text("0-2,5,8-9\n")
    assert cpus_online(str(path)) == {0, 1, 2, 5, 8, 9}
    assert cpus_online(str(tmp_path / "none")) == os.sched_getaffinity(0)
    assert os.sched_getaffinity(0) <= cpus_online()


# --- effective configuration, differences, reload --------------------------------


@given(
    workers=st.integers(1, 64),
    write_pages=st.integers(16, 4096),
    flush_s=st.floats(0.001, 60),
    level=st.sampled_from(["debug", "info", "warning", "error"]),
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z"),
    path=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=50),
)
def test_effective_toml_reads_back_to_the_same(
    workers: int, write_pages: int, flush_s: float, level: str, name: str, path: str
) -> None:
    tables = {
        "store": {
            name: {
                "path": path,
                "workers": workers,
                "write_bytes_max": write_pages * 4096,
                "flush_interval_s": flush_s,
                "uuid": "0192f0c12b3c7def8000123456789abc",
            }
        },
        "listener": {name: {"address": "[::1]:5", "store": name}},
        "log": {"level": level},
        "engine": {"interface": "eth0", "queues": [4, 5]},
    }
    settings = Settings.model_validate(tables)
    text = effective_toml(settings)
    assert Settings.model_validate(tomllib.loads(text)) == settings
    assert effective_toml(Settings.model_validate(tomllib.loads(text))) == text


def test_effective_toml_names_every_option(toml: Any) -> None:
    settings = toml(DOCUMENTED.read_text(encoding="utf-8"))
    again = tomllib.loads(effective_toml(settings))
    assert again["store"]["default"]["area"] == "auto"
    assert again["listener"]["default"]["store"] == "default"
    assert toml(effective_toml(settings)) == settings


def test_diff_parts_what_needs_a_restart(toml: Any) -> None:
    old = toml(MINIMAL)
    new = toml(
        '[store.a]\npath = "{store}"\nflush_interval_s = 1\nworkers = 2\n'
        '[listener.x]\naddress = "127.0.0.1:7001"\nidle_timeout_s = 1\n'
        '[log]\nlevel = "debug"\nformat = "json"\n[daemon]\ndrain_timeout_s = 3\n'
    )
    changed, needs_restart = diff(old, new)
    assert changed == (
        "daemon.drain_timeout_s",
        "listener.x.idle_timeout_s",
        "log.level",
        "store.a.flush_interval_s",
    )
    assert needs_restart == ("listener.x.address", "log.format", "store.a.workers")
    assert diff(old, old) == ((), ())


def test_diff_tells_a_new_or_gone_section_as_one(toml: Any) -> None:
    old = toml(MINIMAL)
    new = toml(
        '[store.a]\npath = "{store}"\n'
        '[listener.x]\naddress = "127.0.0.1:7000"\n[listener.y]\naddress = "*:1"\n'
    )
    assert diff(old, new) == ((), ("listener.y",))
    assert diff(new, old) == ((), ("listener.y",))


def test_reload_reads_the_file_again_and_keeps_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "ingestd.toml"
    path.write_text('[log]\nlevel = "info"\n')
    settings = load(str(path), FLAGS)
    path.write_text('[log]\nlevel = "error"\n')
    again = reload(settings)
    assert again.log.level == "error"
    assert again.store["default"].path == "/var/s"
    path.write_text("[log\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        reload(again)
    assert reload(load(None, FLAGS)) == load(None, FLAGS)


# --- where the log goes ----------------------------------------------------------


def test_log_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    auto = LogSettings()
    with (tmp_path / "err").open("w") as file:
        status = os.fstat(file.fileno())
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert loading.log_target(auto, file.fileno()) == "json"
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert loading.log_target(auto, file.fileno()) == "journald"
        assert loading.log_target(LogSettings(format="console"), file.fileno()) == "console"
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert loading.log_target(auto, file.fileno()) == "json", "redirected: not the journal"
    leader, terminal = os.openpty()
    assert loading.log_target(auto, terminal) == "console"
    os.close(leader)
    os.close(terminal)


# --- the control socket -----------------------------------------------------------


def test_where_the_control_socket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert loading.control_path(ControlSettings()) is None
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/ingestd:/run/more")
    assert loading.control_path(ControlSettings()) == "/run/ingestd/control"
    assert loading.control_path(ControlSettings(socket="off")) is None
    assert loading.control_path(ControlSettings(socket="/tmp/c")) == "/tmp/c"


@pytest.mark.parametrize("path", ["", "relative", "/", "/ends/", "/a\0b", "/" + 255 * "x"])
def test_what_is_no_place_for_a_socket(path: str) -> None:
    with pytest.raises(ValidationError):
        ControlSettings(socket=path)


# --- the state directory ----------------------------------------------------------


def test_the_service_manager_names_the_state_directory(
    toml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert toml(MINIMAL).daemon.state_dir is None
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/ingestd:/var/lib/other")
    assert toml(MINIMAL).daemon.state_dir == "/var/lib/ingestd"
    assert toml(MINIMAL + "[daemon]\nstate_dir = '/srv/s'\n").daemon.state_dir == "/srv/s"
    assert toml(MINIMAL + "[daemon]\nstate_dir = ''\n").daemon.state_dir == ""  # there is none
    with pytest.raises(ConfigError, match="state_dir: is not valid here"):
        toml(MINIMAL + "[daemon]\nstate_dir = 'relative'\n")


# --- protocols -------------------------------------------------------------------


def test_networks_are_let_in_by_their_names(toml: Any) -> None:
    settings = toml(MINIMAL + 'allow = ["192.0.2.0/24", "2001:DB8::/32", "10.0.0.1"]\n')
    listener = settings.listener["x"]
    assert listener.allow == ("192.0.2.0/24", "2001:db8::/32", "10.0.0.1/32")
    assert [network.prefixlen for network in listener.networks] == [24, 32, 32]


@pytest.mark.parametrize("text", ["192.0.2.1/24", "example.org", "", "1.2.3.4/33"])
def test_what_is_no_network(toml: Any, text: str) -> None:
    with pytest.raises(ConfigError, match="is not a network: write"):
        toml(MINIMAL + f'allow = ["{text}"]\n')


@pytest.mark.parametrize(
    "line",
    ["hello_timeout_s = 1", "ack_interval_s = 1", "flow_bytes_max = 1", 'key_file = "/etc/keys"'],
)
def test_what_only_protocol_ingest_has(toml: Any, line: str) -> None:
    with pytest.raises(ConfigError, match='needs protocol = "ingest": raw has no such thing'):
        toml(MINIMAL + line + "\n")
    assert toml(MINIMAL + line + '\nprotocol = "ingest"\n').listener["x"].protocol == "ingest"


@pytest.mark.parametrize("text", ["1e-10", "0.999"])
def test_a_term_that_lets_go_of_all_at_once_is_none(toml: Any, text: str) -> None:
    with pytest.raises(ConfigError, match="retain_for_s: must be 1 or more, or 0 to keep flows"):
        toml(MINIMAL + f"retain_for_s = {text}\n")
    assert toml(MINIMAL + "retain_for_s = 1\n").listener["x"].retain_for_s == 1
