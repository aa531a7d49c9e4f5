# SPDX-License-Identifier: Apache-2.0
"""Pre-shared keys of listeners: reading the files that hold them.

Invariants: a key has at least KEY_BYTES_MIN bytes and never appears in a
message; a file that others than its owner can read is refused, but for one of
root's that root's own group may read.
"""

from __future__ import annotations

import base64
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Final

from ingestd.errors import ConfigError

KEY_BYTES_MIN: Final = 16
KEY_FILE_BYTES_MAX: Final = 1024 * 1024
KEYS_COUNT_MAX: Final = 1024
KEY_NAME_BYTES_MAX: Final = 64

_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2})+\Z")


def load_keys(path: str) -> dict[str, bytes]:
    """Return the keys of a file by name. Raises ConfigError."""
    try:
        with Path(path).open("rb") as file:
            _check_mode(path, os.fstat(file.fileno()))
            content = file.read(KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from None
    if len(content) > KEY_FILE_BYTES_MAX:
        raise ConfigError(f"key file {path} is longer than {KEY_FILE_BYTES_MAX} bytes: split it")
    try:
        tables = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        # What is wrong may stand beside a key: the text of the fault is not shown.
        raise ConfigError(
            f'key file {path} is not valid TOML: write a table [key] with lines NAME = "..."'
        ) from None
    keys = tables.get("key")
    if set(tables) != {"key"} or not isinstance(keys, dict) or not keys:
        raise ConfigError(f'key file {path} must hold one table, [key], with lines NAME = "..."')
    if len(keys) > KEYS_COUNT_MAX:
        raise ConfigError(f"key file {path} has more than {KEYS_COUNT_MAX} keys: split it")
    return {name: _key(path, name, text) for name, text in keys.items()}


def _check_mode(path: str, status: os.stat_result) -> None:
    forbidden = stat.S_IRWXG | stat.S_IRWXO
    if status.st_uid == 0:
        forbidden &= ~stat.S_IRGRP
    if status.st_mode & forbidden:
        raise ConfigError(
            f"key file {path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}):"
            " chmod 0600 it, or 0640 if it is root's"
        )


def _key(path: str, name: str, text: object) -> bytes:
    if not 0 < len(name.encode()) <= KEY_NAME_BYTES_MAX:
        raise ConfigError(f"key file {path}: a name has 1 to {KEY_NAME_BYTES_MAX} bytes")
    if not isinstance(text, str):
        raise ConfigError(f'key file {path}: key "{name}" must be a text in quotes')
    try:
        key = bytes.fromhex(text) if _HEX.match(text) else base64.b64decode(text, validate=True)
    except ValueError:
        raise ConfigError(
            f'key file {path}: key "{name}" is neither hexadecimal nor base64:'
            " make one with: openssl rand -hex 32"
        ) from None
    if len(key) < KEY_BYTES_MIN:
        raise ConfigError(
            f'key file {path}: key "{name}" has {len(key)} bytes, and needs {KEY_BYTES_MIN}:'
            " make one with: openssl rand -hex 32"
        )
    return key
