# SPDX-License-Identifier: Apache-2.0
"""The configuration: its models, loading them from TOML and flags, comparing two.

Invariants:
 - This is the only module that reads files or the environment for settings.
 - Settings are frozen; what load() returns has passed every check, and each
   listener names its store.
 - Every number has limits; every problem is one sentence with file (or flag)
   and dotted key, and all problems that can be seen at once are told at once.

Sizes are bytes; durations are seconds and say so by _s. Owned by the main
thread; the models may be read by any.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
import uuid as uuid_module
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from ingestd.address import Address, parse_address
from ingestd.config.checks import crosscheck
from ingestd.config.problems import Problem, describe
from ingestd.errors import ConfigError
from ingestd.sizes import exact_size, parse_size

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

CONFIG_FILE_BYTES_MAX: Final = 1 * MIB
PATH_CHARS_MAX: Final = 4095
SECTIONS_COUNT_MAX: Final = 64
WORKERS_COUNT_MAX: Final = 64
CPUS_ONLINE_PATH: Final = "/sys/devices/system/cpu/online"
DEFAULT_NAME: Final = "default"
NETWORKS_MAX: Final = 64  # of core/connection/network.h
STREAM_BYTES_MAX: Final = 2**63 - 1  # of a flow, as the store's format counts them
RETAIN_S_MAX: Final = 315360000  # ten years
AREA_BYTES_MIN: Final = 1 * MIB
AUTO: Final = "auto"  # of an area or its writes: as large as fits, at the start
DEVICELESS: Final = "none"  # engine.interface: zero-copy receive without a NIC, for tests

# What SIGHUP may change under a running daemon; "*" stands for any name.
RUN_TIME_KEYS: Final = (
    "log.level",
    "daemon.drain_timeout_s",
    "store.*.flush_interval_s",
    "store.*.commit_interval_s",
    "listener.*.idle_timeout_s",
)


def _canonical_address(text: str) -> str:
    return str(parse_address(text))


def _canonical_network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(
            f'{text[:64]!r} is not a network: write "192.0.2.0/24" or "2001:db8::/32",'
            " with zeros behind the prefix"
        ) from None


def _canonical_uuid(text: str) -> str:
    try:
        return str(uuid_module.UUID(text))
    except ValueError:
        raise ValueError(f"{text[:64]!r} is not a UUID: ingestd info prints a store's") from None


Size = Annotated[
    int, BeforeValidator(parse_size), PlainSerializer(exact_size, return_type=str, when_used="json")
]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
NetworkText = Annotated[str, AfterValidator(_canonical_network)]
AddressText = Annotated[str, AfterValidator(_canonical_address)]
UuidText = Annotated[str, AfterValidator(_canonical_uuid)]
Name = Annotated[str, Field(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,62}\z")]
Cpu = Annotated[int, Field(ge=0, le=8191)]
Queue = Annotated[int, Field(ge=0, le=65535)]


def _power_of_two(number: int) -> int:
    if number & (number - 1):
        raise ValueError(f"{number} is not a power of two")
    return number


PowerOfTwo = AfterValidator(_power_of_two)


def _kind_of_size(value: object) -> str:
    return "auto" if value == AUTO else "size"


Automatic = Annotated[Literal["auto"], Tag("auto")]
# Which of the two a value is meant to be is told by the value, so that what is wrong
# with a size is said of a size.
SizeOrAuto = Discriminator(_kind_of_size)


def _as_path(value: object, check: ValidatorFunctionWrapHandler) -> object:
    """Let a path be any bytes, as those of the command line are; check them as characters."""
    if isinstance(value, str):
        with suppress(UnicodeEncodeError):
            value.encode()
            return check(value)
        with suppress(UnicodeEncodeError):
            check(os.fsencode(value).decode("latin-1"))
            return value
    return check(value)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DirectIoSettings(_Section):
    """What a store's device takes in one direct write, where that is stricter than it says.

    None: as found. Bytes; virt_boundary 0: none.
    """

    mem_align: Annotated[int, PowerOfTwo, Field(ge=1, le=4096)] | None = None
    write_align: Annotated[int, PowerOfTwo, Field(ge=512, le=65536)] | None = None
    virt_boundary: Annotated[int, PowerOfTwo, Field(ge=0, le=4096)] | None = None


class StoreSettings(_Section):
    """One store and the workers that write to it; sizes are per worker."""

    path: Annotated[
        str,
        Field(min_length=1, max_length=PATH_CHARS_MAX, pattern=r"\A[^\x00]*\z"),
        WrapValidator(_as_path),
    ]
    uuid: UuidText | None = None
    on_full: Literal["reject", "overwrite-oldest"] = "reject"
    warn_free_percent: float = Field(default=10, ge=0, le=90)
    discard: bool = False
    checksum: Literal["auto", "crc32c", "none"] = "auto"
    workers: int = Field(default=1, ge=1, le=WORKERS_COUNT_MAX)
    cpus: tuple[Cpu, ...] = Field(default=(), max_length=WORKERS_COUNT_MAX, strict=False)
    area: Annotated[
        Annotated[Size, Field(ge=AREA_BYTES_MIN, le=1 * GIB, multiple_of=4096), Tag("size")]
        | Automatic,
        SizeOrAuto,
    ] = AUTO
    write_bytes_max: Annotated[
        Annotated[Size, Field(ge=64 * KIB, le=16 * MIB, multiple_of=4096), Tag("size")] | Automatic,
        SizeOrAuto,
    ] = AUTO
    writes_in_flight_max: Annotated[
        Annotated[int, Field(ge=1, le=256), Tag("size")] | Automatic, SizeOrAuto
    ] = AUTO
    flows_max: int = Field(default=16384, ge=1, le=262144)
    flush_interval_s: float = Field(default=0.05, ge=0.001, le=60)
    commit_interval_s: float = Field(default=0.2, ge=0.001, le=60)
    direct_io: DirectIoSettings = DirectIoSettings()


class ListenerSettings(_Section):
    """One address on which flows arrive for one store."""

    address: AddressText
    protocol: Literal["raw", "ingest"] = "raw"
    store: str = Field(default="", max_length=63)
    idle_timeout_s: float = Field(default=300, ge=0, le=604800)
    connections_max: int = Field(default=10000, ge=1, le=262144)
    connections_per_peer_max: int = Field(default=0, ge=0, le=262144)
    retain_for_s: float = Field(default=0, ge=0, le=RETAIN_S_MAX)
    retain_bytes: Size = Field(default=0, ge=0, le=STREAM_BYTES_MAX)
    allow: tuple[NetworkText, ...] = Field(default=(), max_length=NETWORKS_MAX, strict=False)
    hello_timeout_s: float = Field(default=10, ge=0.1, le=600)
    ack_interval_s: float = Field(default=0.2, ge=0.01, le=60)
    flow_bytes_max: Size = Field(default=0, ge=0, le=STREAM_BYTES_MAX)
    key_file: Annotated[str, Field(min_length=1, max_length=PATH_CHARS_MAX)] | None = None

    @property
    def endpoint(self) -> Address:
        """The address in parts."""
        return parse_address(self.address)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks that are let in; none: all are."""
        return tuple(ipaddress.ip_network(text) for text in self.allow)


class MetricsSettings(_Section):
    """The Prometheus endpoint; no address: off."""

    address: AddressText | None = None

    @property
    def endpoint(self) -> Address | None:
        """The address in parts."""
        return None if self.address is None else parse_address(self.address)


class EngineSettings(_Section):
    """How fragments arrive; an explicit kind is a demand."""

    kind: Literal["auto", "recv", "zcrx"] = "auto"
    interface: Annotated[str, Field(pattern=r"\A[^/:\s]{1,15}\z")] | None = None
    queues: tuple[Queue, ...] = Field(default=(), max_length=WORKERS_COUNT_MAX, strict=False)
    rx_buf: Annotated[Size, PowerOfTwo] = Field(default=4 * KIB, ge=4 * KIB, le=2 * MIB)
    refill_entries: Annotated[int, PowerOfTwo] = Field(default=4096, ge=64, le=32768)
    queue_retry_s: float = Field(default=5, ge=0, le=600)
    manage_nic: bool = False
    nic_state_dir: str = Field(
        default="/run/ingestd", min_length=1, max_length=PATH_CHARS_MAX, pattern=r"\A/[^\x00]*\z"
    )

    @property
    def is_deviceless(self) -> bool:
        """Whether the kernel is to play the NIC itself, and copy."""
        return self.interface == DEVICELESS


class LogSettings(_Section):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class DaemonSettings(_Section):
    """The process as a whole."""

    drain_timeout_s: float = Field(default=10, ge=0, le=3600)


class Settings(_Section):
    """Everything that serve needs to know."""

    store: dict[Name, StoreSettings] = Field(default={}, max_length=SECTIONS_COUNT_MAX)
    listener: dict[Name, ListenerSettings] = Field(default={}, max_length=SECTIONS_COUNT_MAX)
    metrics: MetricsSettings = MetricsSettings()
    engine: EngineSettings = EngineSettings()
    log: LogSettings = LogSettings()
    daemon: DaemonSettings = DaemonSettings()

    _path: str | None = PrivateAttr(default=None)
    _overrides: Overrides | None = PrivateAttr(default=None)

    def reload(self) -> Settings:
        """Load again what these settings were loaded from; raises ConfigError like load()."""
        return load(self._path, self._overrides)

    def _loaded_from(self, path: str | None, overrides: Overrides) -> Self:
        self._path, self._overrides = path, overrides
        return self


@dataclass(frozen=True)
class Overrides:
    """What flags of the command line say instead of the file; None: nothing."""

    store: str | None = None
    listen: str | None = None
    metrics: str | None = None
    engine: str | None = None
    area: str | None = None


# Field of Overrides, which is the flag's name too -> the key that it sets.
_OVERRIDE_KEYS: Final = {
    "store": ("store", DEFAULT_NAME, "path"),
    "listen": ("listener", DEFAULT_NAME, "address"),
    "metrics": ("metrics", "address"),
    "engine": ("engine", "kind"),
}


class ConfigDiff(NamedTuple):
    """Dotted keys in which two configurations differ, by what it takes to change them."""

    changed_at_run_time: tuple[str, ...]
    needs_restart: tuple[str, ...]


def load(path: str | None, overrides: Overrides | None = None) -> Settings:
    """Return the settings that the TOML file at path (None: no file) and the flags make.

    Raises ConfigError with one line per problem.
    """
    overrides = overrides or Overrides()
    tables = {} if path is None else _read_toml(path)
    flags = _apply(overrides, tables)
    try:
        settings = _name_stores(Settings.model_validate(tables))
        problems = crosscheck(settings, cpus_online())
    except ValidationError as error:
        problems = describe(error, Settings)
    if problems:
        source = "command line" if path is None else path
        raise ConfigError("\n".join(_sentence(problem, source, flags) for problem in problems))
    return settings._loaded_from(path, overrides)


def _read_toml(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            content = file.read(CONFIG_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:  # a zero byte in the path
        raise ConfigError(f"{path!r}: is not a path") from None
    if len(content) > CONFIG_FILE_BYTES_MAX:
        raise ConfigError(f"{path}: is longer than {exact_size(CONFIG_FILE_BYTES_MAX)}")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: is not UTF-8 at line {line}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: is not valid here: its values are nested too deep") from None


def _apply(overrides: Overrides, tables: dict[str, Any]) -> dict[str, str]:
    """Put the flags into the tables; return dotted key -> flag for those that were given."""
    flags: dict[str, str] = {}
    for name, keys in _override_keys(tables):
        value = getattr(overrides, name)
        if value is None:
            continue
        table: Any = tables
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                break  # the file is wrong here, and will be told so
        else:
            table[keys[-1]] = value
            flags[".".join(keys)] = f"--{name}"
    return flags


def _override_keys(tables: dict[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each flag's name and the key that it sets; the area is that of every store there is."""
    yield from _OVERRIDE_KEYS.items()
    stores = tables.get("store")
    for name in stores if isinstance(stores, dict) and stores else (DEFAULT_NAME,):
        yield "area", ("store", name, "area")


def _name_stores(settings: Settings) -> Settings:
    """Let listeners that name no store feed the only one."""
    if len(settings.store) != 1:
        return settings
    (only,) = settings.store
    named = {
        name: listener if listener.store else listener.model_copy(update={"store": only})
        for name, listener in settings.listener.items()
    }
    return settings.model_copy(update={"listener": named})


def _sentence(problem: Problem, source: str, flags: Mapping[str, str]) -> str:
    if problem.key in flags:
        return f"{flags[problem.key]}: {problem.text}"
    place = f"{source}: {problem.key}" if problem.key else source
    return f"{place}: {problem.text}"


def cpus_online(path: str = CPUS_ONLINE_PATH) -> frozenset[int]:
    """Return the numbers of the CPUs that are online; without sysfs, those we may run on.

    The file's form, such as "0-3,8", is given in the kernel's
    Documentation/admin-guide/cputopology.rst.
    """
    try:
        ranges = Path(path).read_text(encoding="ascii").strip().split(",")
    except OSError:
        return frozenset(os.sched_getaffinity(0))
    bounds = [item.partition("-") for item in ranges]
    return frozenset(
        cpu for first, _, last in bounds for cpu in range(int(first), int(last or first) + 1)
    )


def log_target(log: LogSettings, stderr_fd: int = 2) -> Literal["journald", "console", "json"]:
    """Return where "auto" leads: the journal if stderr is its stream, else by terminal.

    systemd.exec(5): JOURNAL_STREAM holds device and inode of the stream, to be
    compared, because a redirected child inherits the variable as well.
    """
    if log.format != "auto":
        return log.format
    try:
        status = os.fstat(stderr_fd)
    except OSError:
        return "json"
    if os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}":
        return "journald"
    return "console" if os.isatty(stderr_fd) else "json"


def effective_toml(settings: Settings) -> str:
    """Return the settings, defaults included, as TOML that load() reads back to the same."""
    import tomli_w  # not needed by serve, which is to stay small

    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def diff(old: Settings, new: Settings) -> ConfigDiff:
    """Return in which keys two configurations differ; a new or gone section is one key."""
    old_values, new_values = dict(_flatten(old)), dict(_flatten(new))
    sections = {
        f"{kind}.{name}"
        for kind in ("store", "listener")
        for name in getattr(old, kind).keys() ^ getattr(new, kind).keys()
    }
    changed = {
        key
        for key in old_values.keys() | new_values.keys()
        if key.rpartition(".")[0] not in sections and old_values.get(key) != new_values.get(key)
    }
    at_run_time = {key for key in changed if is_run_time_key(key)}
    return ConfigDiff(tuple(sorted(at_run_time)), tuple(sorted(changed - at_run_time | sections)))


def is_run_time_key(key: str) -> bool:
    """Tell whether SIGHUP may change the value of a dotted key."""
    section, _, name = key.rpartition(".")
    kind = section.partition(".")[0]
    return f"{kind}.*.{name}" in RUN_TIME_KEYS if "." in section else key in RUN_TIME_KEYS


def _flatten(settings: Settings) -> Iterator[tuple[str, object]]:
    for section, values in settings.model_dump().items():
        for name, value in values.items():
            if isinstance(value, dict):
                yield from ((f"{section}.{name}.{key}", leaf) for key, leaf in value.items())
            else:
                yield f"{section}.{name}", value
