# SPDX-License-Identifier: Apache-2.0
"""What an operator states of a device: stricter is taken, laxer is an error that names both."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ingestd.config.loading import effective_toml, load
from ingestd.config.settings import DirectIoSettings
from ingestd.daemon.machine.direct_io import DirectProfile, stricter_profile
from ingestd.errors import ConfigError

NVME = DirectProfile(4, 512, 4095, 1024)
PLAIN = DirectProfile(512, 512, 0, 1024)
BLOCK_BYTES = 4096


def _stated(**values: int) -> DirectIoSettings:
    return DirectIoSettings(**values)


@pytest.mark.parametrize(
    ("found", "stated", "expected"),
    [
        (NVME, _stated(), NVME),
        (NVME, _stated(mem_align=4, write_align=512, virt_boundary=4096), NVME),
        (NVME, _stated(mem_align=512), DirectProfile(512, 512, 4095, 1024)),
        (PLAIN, _stated(virt_boundary=4096), DirectProfile(512, 512, 4095, 1024)),
        (PLAIN, _stated(virt_boundary=0), PLAIN),
        (PLAIN, _stated(write_align=4096), DirectProfile(512, 4096, 0, 1024)),
    ],
)
def test_stricter_is_taken(
    found: DirectProfile, stated: DirectIoSettings, expected: DirectProfile
) -> None:
    assert stricter_profile(found, stated, "data", BLOCK_BYTES) == expected


def test_laxer_names_both_values_of_each_key() -> None:
    stated = _stated(mem_align=2, write_align=512, virt_boundary=0)
    found = DirectProfile(4, 4096, 4095, 1024)
    with pytest.raises(ConfigError) as caught:
        stricter_profile(found, stated, "data", BLOCK_BYTES)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"store.data.direct_io.{key}" for key in ("mem_align", "write_align", "virt_boundary")
    ]
    for line, (value, was_found) in zip(lines, ((2, 4), (512, 4096), (0, 4096)), strict=True):
        assert f" {value} is laxer than what was found, {was_found}:" in line


def test_a_write_is_not_finer_than_the_store() -> None:
    with pytest.raises(ConfigError, match="more than a block of this store, 4096"):
        stricter_profile(PLAIN, _stated(write_align=8192), "data", BLOCK_BYTES)


def _config(directory: Path, text: str) -> Path:
    path = directory / "c.toml"
    path.write_text(
        '[store.data]\npath = "/dev/null"\n[listener.in]\naddress = "127.0.0.1:1"\n'
        f"[store.data.direct_io]\n{text}\n"
    )
    return path


def test_the_effective_configuration_shows_it(tmp_path: Path) -> None:
    path = _config(tmp_path, "mem_align = 512\nvirt_boundary = 4096")
    tables = tomllib.loads(effective_toml(load(str(path))))
    assert tables["store"]["data"]["direct_io"] == {"mem_align": 512, "virt_boundary": 4096}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mem_align = 3", "store.data.direct_io.mem_align: 3 is not a power of two"),
        ("mem_align = 8192", "store.data.direct_io.mem_align: must be between 1 and 4096"),
        ("virt_boundry = 0", 'did you mean "virt_boundary"?'),
        ("write_align = true", "store.data.direct_io.write_align: must be"),
    ],
)
def test_what_is_no_alignment_is_told_by_its_key(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(str(_config(tmp_path, text)))
    assert sentence in str(caught.value)
