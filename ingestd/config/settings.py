# SPDX-License-Identifier: Apache-2.0
"""The models of the configuration.

Invariants: settings are frozen; what loading.py returns has passed every check, and each listener
names its store; every number has limits.

Sizes are bytes; durations are seconds and say so by _s. The models may be read by any thread.
"""

from __future__ import annotations

import ipaddress
import os
import uuid as uuid_module
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

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
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from ingestd.address import Address, parse_address
from ingestd.core_limits import NETWORKS_MAX
from ingestd.sizes import exact_size, parse_size

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

DEFAULT_NAME: Final = "default"
PATH_CHARS_MAX: Final = 4095
CONTROL_PATH_CHARS_MAX: Final = 255  # as bytes, it fits into the holder record of a store
SECTIONS_COUNT_MAX: Final = 64
WORKERS_COUNT_MAX: Final = 64
STREAM_BYTES_MAX: Final = 2**63 - 1  # of a flow, as the store's format counts them
RETAIN_S_MAX: Final = 315360000  # ten years
AREA_BYTES_MIN: Final = 1 * MIB
CONTROL_OFF: Final = "off"
AUTO: Final = "auto"  # of an area or its writes: as large as fits, at the start
DEVICELESS: Final = "none"  # engine.interface: zero-copy receive without a NIC, for tests

# What SIGHUP may change under a running daemon; "*" stands for any name.


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
# Which of the two a value is meant to be follows from the value, so that what is wrong
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


def _socket_place(text: str) -> str:
    is_path = text.startswith("/") and not text.endswith("/") and "\0" not in text
    if text not in (AUTO, CONTROL_OFF) and not is_path:
        raise ValueError(f'{text[:64]!r} is no place for a socket: write "auto", "off" or /a/path')
    return text


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DirectIoSettings(_Section):
    """Limits of one direct write to a store's device, where they are stricter than it states.

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
    stall_after_s: float = Field(default=10, ge=1, le=3600)
    drain: bool = False
    direct_io: DirectIoSettings = DirectIoSettings()


class ListenerSettings(_Section):
    """One address on which flows arrive for one store, or each for one of several."""

    address: AddressText
    protocol: Literal["raw", "ingest"] = "raw"
    store: str = Field(default="", max_length=63)
    stores: tuple[Name, ...] = Field(default=(), max_length=SECTIONS_COUNT_MAX, strict=False)
    placement: Literal["spread", "most-free"] = "spread"
    idle_timeout_s: float = Field(default=300, ge=0, le=604800)
    connections_max: int = Field(default=10000, ge=1, le=262144)
    connections_per_peer_max: int = Field(default=0, ge=0, le=262144)
    keep_empty: bool = True
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
    def store_names(self) -> tuple[str, ...]:
        """The stores that flows of this listener may lie in; loading.py sees to it that one is."""
        return self.stores or ((self.store,) if self.store else ())

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks that are admitted; none: all are."""
        return tuple(ipaddress.ip_network(text) for text in self.allow)


class MetricsSettings(_Section):
    """The Prometheus endpoint; no address: off."""

    address: AddressText | None = None

    @property
    def endpoint(self) -> Address | None:
        """The address in parts."""
        return None if self.address is None else parse_address(self.address)


class EngineSettings(_Section):
    """The engine that receives fragments; an explicit kind is a demand."""

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
        """Return whether the kernel is to play the NIC itself, and copy."""
        return self.interface == DEVICELESS


class ControlSettings(_Section):
    """The control socket; "auto": below the directory that systemd made for it, else off.

    `group`: who may read besides root and the daemon's own user; None: the daemon's own group.
    """

    socket: Annotated[
        str, Field(max_length=CONTROL_PATH_CHARS_MAX), AfterValidator(_socket_place)
    ] = AUTO
    group: Annotated[str, Field(pattern=r"\A[A-Za-z_][A-Za-z0-9_.-]{0,63}\z")] | None = None


class LogSettings(_Section):
    """Level and form of the log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class DaemonSettings(_Section):
    """The process as a whole."""

    drain_timeout_s: float = Field(default=10, ge=0, le=3600)
    state_dir: str | None = Field(
        default=None, max_length=PATH_CHARS_MAX, pattern=r"\A(?:/[^\x00]*)?\z"
    )


@dataclass(frozen=True)
class Overrides:
    """Values that flags of the command line set instead of the file; None: not given."""

    store: str | None = None
    listen: str | None = None
    metrics: str | None = None
    control: str | None = None
    engine: str | None = None
    area: str | None = None


class Settings(_Section):
    """Everything that serve needs to know."""

    store: dict[Name, StoreSettings] = Field(default={}, max_length=SECTIONS_COUNT_MAX)
    listener: dict[Name, ListenerSettings] = Field(default={}, max_length=SECTIONS_COUNT_MAX)
    metrics: MetricsSettings = MetricsSettings()
    engine: EngineSettings = EngineSettings()
    control: ControlSettings = ControlSettings()
    log: LogSettings = LogSettings()
    daemon: DaemonSettings = DaemonSettings()

    _path: str | None = PrivateAttr(default=None)
    _overrides: Overrides | None = PrivateAttr(default=None)

    @property
    def source(self) -> tuple[str | None, Overrides | None]:
        """The file and the flags that these settings were loaded from."""
        return self._path, self._overrides

    def listeners_of(self, store_name: str) -> list[tuple[str, ListenerSettings]]:
        """Return the listeners that feed a store, as (name, settings)."""
        return [item for item in self.listener.items() if store_name in item[1].store_names]

    def loaded_from(self, path: str | None, overrides: Overrides) -> Self:
        """Keep what load() read; returns these settings."""
        self._path, self._overrides = path, overrides
        return self
