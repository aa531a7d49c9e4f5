# SPDX-License-Identifier: Apache-2.0
"""Key files: what is taken, what is refused, and that no message shows a secret."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from ingestd.client import Key, load_key
from ingestd.errors import ConfigError
from ingestd.keyfile import load_keys

SECRET = bytes(range(100, 116))


def _file(tmp_path: Path, text: str, mode: int = 0o600) -> str:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    "text", [SECRET.hex(), SECRET.hex().upper(), base64.b64encode(SECRET).decode()]
)
def test_hexadecimal_and_base64(tmp_path: Path, text: str) -> None:
    path = _file(tmp_path, f'[key]\nlab = "{text}"\n"beam line" = "{"0" * 32}"\n')
    assert load_key(path, "lab") == Key("lab", SECRET)
    assert load_keys(path)["beam line"] == bytes(16)


def test_secret_is_not_shown(tmp_path: Path) -> None:
    key = load_key(_file(tmp_path, f'[key]\nlab = "{SECRET.hex()}"\n'), "lab")
    assert str(key) == repr(key) == "Key('lab', ...)"
    assert SECRET.hex() not in f"{key}"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o620, 0o601, 0o777])
def test_file_that_others_may_read_or_change(tmp_path: Path, mode: int) -> None:
    path = _file(tmp_path, f'[key]\nlab = "{SECRET.hex()}"\n', mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        load_keys(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("key = 1\n", "must have one table"),
        ("", "must have one table"),
        ("[key]\n", "must have one table"),
        ("[key]\na = 'x'\n[other]\n", "must have one table"),
        ("[key]\na = 5\n", "key.a: must be hexadecimal digits or base64"),
        (f"[key]\na = '{SECRET.hex()[:30]}'\n", "of at least 16 bytes"),
        (f"[key]\na = '{SECRET.hex()}!'\n", "key.a: must be"),
        (f"[key\na = '{SECRET.hex()}'\n", "is not valid TOML"),
        ("[key]\nb = '" + "x" * (1 << 20) + "'\n", "is longer than"),
    ],
)
def test_what_is_no_key_file(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        load_keys(_file(tmp_path, text))
    assert SECRET.hex()[:20] not in str(caught.value)


def test_missing_file_and_missing_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_keys(str(tmp_path / "none"))
    path = _file(tmp_path, f'[key]\nlab = "{SECRET.hex()}"\n')
    with pytest.raises(ConfigError, match="has no key 'barn': it has lab"):
        load_key(path, "barn")
