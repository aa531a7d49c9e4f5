# SPDX-License-Identifier: Apache-2.0
"""Key files: what they may hold, who may read them, and that no message has a key."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

import pytest

from ingestd.config.keys import load_keys
from ingestd.errors import ConfigError

SECRET = bytes(range(100, 132))


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.touch(0o600)
    return path


def test_both_ways_to_write_a_key(key_path: Path) -> None:
    key_path.write_text(
        f'[key]\nhex = "{SECRET.hex()}"\nupper = "{SECRET.hex().upper()}"\n'
        f'"with space" = "{base64.b64encode(SECRET).decode()}"\n'
    )
    assert load_keys(str(key_path)) == {"hex": SECRET, "upper": SECRET, "with space": SECRET}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "one table"),
        ("[key]\n", "one table"),
        ("[keys]\na = 'x'\n", "one table"),
        ('key = "x"\n', "one table"),
        (f'[key]\na = "{SECRET.hex()}"\n[more]\n', "one table"),
        ("[key\n", "not valid TOML"),
        ('[key]\na = "ZZZZ*"\n', "neither hexadecimal nor base64"),
        ('[key]\na = "é"\n', "neither hexadecimal nor base64"),
        ("[key]\na = 7\n", "a text in quotes"),
        (f'[key]\na = "{SECRET[:15].hex()}"\n', "has 15 bytes, and needs 16"),
        (f'[key]\na = "{base64.b64encode(SECRET[:15]).decode()}"\n', "has 15 bytes"),
        (f'[key]\n"" = "{SECRET.hex()}"\n', "a name has 1 to 64 bytes"),
    ],
)
def test_what_is_wrong_is_told_without_the_key(key_path: Path, text: str, says: str) -> None:
    key_path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        load_keys(str(key_path))
    assert str(key_path) in str(caught.value)
    assert SECRET.hex()[:20] not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_keys(str(tmp_path / "none"))


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o660, 0o644, 0o640])
def test_others_must_not_read_it(key_path: Path, mode: int) -> None:
    key_path.write_text(f'[key]\na = "{SECRET.hex()}"\n')
    key_path.chmod(mode)
    is_roots = os.geteuid() == 0
    if mode == 0o640 and is_roots:
        assert load_keys(str(key_path)) == {"a": SECRET}
        return
    with pytest.raises(ConfigError, match=f"can be read by others \\(mode {mode:04o}\\)"):
        load_keys(str(key_path))
