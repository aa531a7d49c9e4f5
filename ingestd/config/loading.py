# SPDX-License-Identifier: Apache-2.0
"""Loading the configuration from TOML and flags, and writing it out again.

Invariants: this is the only module that reads files or the environment for settings; every
problem is one sentence with file (or flag) and dotted key, and all problems that can be seen at
once are reported at once. Owned by the main thread.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from ingestd.config.checks import crosscheck
from ingestd.config.problems import Problem, describe
from ingestd.config.settings import (
    AUTO,
    CONTROL_OFF,
    DEFAULT_NAME,
    MIB,
    ControlSettings,
    LogSettings,
    Overrides,
    Settings,
)
from ingestd.errors import ConfigError
from ingestd.sizes import exact_size

CONFIG_FILE_BYTES_MAX: Final = 1 * MIB
CPUS_ONLINE_PATH: Final = "/sys/devices/system/cpu/online"


# Field of Overrides, which is the flag's name too -> the key that it sets.
_OVERRIDE_KEYS: Final = {
    "store": ("store", DEFAULT_NAME, "path"),
    "listen": ("listener", DEFAULT_NAME, "address"),
    "metrics": ("metrics", "address"),
    "control": ("control", "socket"),
    "engine": ("engine", "kind"),
}


def load(path: str | None, overrides: Overrides | None = None) -> Settings:
    """Return the settings that the TOML file at path (None: no file) and the flags make.

    Raises ConfigError with one line per problem.
    """
    overrides = overrides or Overrides()
    tables = {} if path is None else _read_toml(path)
    flags = _apply(overrides, tables)
    try:
        settings = _with_state_dir(_name_stores(Settings.model_validate(tables)))
        problems = crosscheck(settings, cpus_online())
    except ValidationError as error:
        problems = describe(error, Settings)
    if problems:
        source = "command line" if path is None else path
        raise ConfigError("\n".join(_sentence(problem, source, flags) for problem in problems))
    return settings.loaded_from(path, overrides)


def reload(settings: Settings) -> Settings:
    """Load again what settings were loaded from; raises ConfigError like load()."""
    return load(*settings.source)


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
                break  # the file is wrong here, and will be reported
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
        name: listener if listener.store_names else listener.model_copy(update={"store": only})
        for name, listener in settings.listener.items()
    }
    return settings.model_copy(update={"listener": named})


def _with_state_dir(settings: Settings) -> Settings:
    """Let the service manager name the state directory, where the file does not.

    systemd.exec(5): STATE_DIRECTORY has the paths that StateDirectory= makes, with colons between.
    """
    first = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if settings.daemon.state_dir is not None or not first.startswith("/"):
        return settings
    daemon = settings.daemon.model_copy(update={"state_dir": first})
    return settings.model_copy(update={"daemon": daemon})


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


def control_path(control: ControlSettings) -> str | None:
    """Return where the control socket is to be; None: nowhere.

    systemd.exec(5): RUNTIME_DIRECTORY names those of RuntimeDirectory=, with colons between.
    """
    if control.socket != AUTO:
        return None if control.socket == CONTROL_OFF else control.socket
    directory = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return f"{directory}/control" if directory else None


def effective_toml(settings: Settings) -> str:
    """Return the settings, defaults included, as TOML that load() reads back to the same."""
    import tomli_w  # not needed by serve, which is to stay small

    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))
