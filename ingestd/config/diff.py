# SPDX-License-Identifier: Apache-2.0
"""The differences of two configurations, and which of them a reload may apply.

Pure; any thread may call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from ingestd.config.settings import Settings

RUN_TIME_KEYS: Final = (
    "log.level",
    "daemon.drain_timeout_s",
    "store.*.flush_interval_s",
    "store.*.commit_interval_s",
    "store.*.stall_after_s",
    "store.*.drain",
    "listener.*.idle_timeout_s",
)


class ConfigDiff(NamedTuple):
    """Dotted keys in which two configurations differ, by what it takes to change them."""

    changed_at_run_time: tuple[str, ...]
    needs_restart: tuple[str, ...]


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
    """Return whether SIGHUP may change the value of a dotted key."""
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
