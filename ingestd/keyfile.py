# SPDX-License-Identifier: Apache-2.0
"""Pre-shared keys of protocol `ingest`, from a TOML file that only its owner reads.

The file has one table, [key]: name = "hexadecimal digits, or base64", at least
KEY_BYTES_MIN bytes each.

Invariants: a file that others may read or write is refused; no message shows a
secret. No state; any thread may call.
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

_HEXADECIMAL: Final = re.compile(r"(?:[0-9A-Fa-f]{2})+", re.ASCII)


def load_keys(path: str) -> dict[str, bytes]:
    """Return the secrets of a file by name. Raises ConfigError if it is not as it must be."""
    try:
        with Path(path).open("rb") as file:
            _check_mode(os.fstat(file.fileno()), path)
            content = file.read(KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > KEY_FILE_BYTES_MAX:
        raise ConfigError(f"{path}: is longer than {KEY_FILE_BYTES_MAX} bytes")
    try:
        tables = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):  # their texts may show what is in the file
        raise ConfigError(f"{path}: is not valid TOML in UTF-8") from None
    values = tables.get("key")
    if set(tables) != {"key"} or not isinstance(values, dict) or not values:
        raise ConfigError(f'{path}: must have one table, [key], with lines like: name = "secret"')
    return {name: _secret(value, name, path) for name, value in values.items()}


def _check_mode(status: os.stat_result, path: str) -> None:
    """Root may let a group read it, as for a service; nobody may let anybody else."""
    mode = stat.S_IMODE(status.st_mode)
    forbidden = 0o037 if status.st_uid == 0 else 0o077
    if mode & forbidden:
        raise ConfigError(f"{path}: others may read or change it (mode {mode:04o}): chmod 600 it")


def _secret(value: object, name: str, path: str) -> bytes:
    """Digits that could be both are hexadecimal."""
    problem = ConfigError(
        f"{path}: key.{name}: must be hexadecimal digits or base64"
        f" of at least {KEY_BYTES_MIN} bytes: openssl rand -hex 32 makes one"
    )
    if not isinstance(value, str):
        raise problem
    try:
        is_hexadecimal = _HEXADECIMAL.fullmatch(value) is not None
        secret = bytes.fromhex(value) if is_hexadecimal else base64.b64decode(value, validate=True)
    except ValueError:
        raise problem from None
    if len(secret) < KEY_BYTES_MIN:
        raise problem
    return secret
