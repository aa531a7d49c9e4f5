# SPDX-License-Identifier: Apache-2.0
"""The pre-shared key by which a sender shows who it is.

Invariant: no text shows a secret. No state; any thread may call.
"""

from __future__ import annotations

from typing import NamedTuple

from ingestd.errors import ConfigError
from ingestd.keyfile import load_keys


class Key(NamedTuple):
    """A name that both sides know, and the secret that it stands for."""

    name: str
    secret: bytes

    def __repr__(self) -> str:  # logs and tracebacks show it
        return f"Key({self.name!r}, ...)"


def load_key(path: str, name: str) -> Key:
    """Return one key of a key file. Raises ConfigError if it is not there."""
    secrets = load_keys(path)
    if name not in secrets:
        raise ConfigError(f"{path}: has no key {name!r}: it has {', '.join(sorted(secrets))}")
    return Key(name, secrets[name])
