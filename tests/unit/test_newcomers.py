# SPDX-License-Identifier: Apache-2.0
"""The pages for who comes new: files, targets and variables that they name are there."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from ingestd.daemon.telemetry.metrics_server import CONNECTIONS_MAX
from ingestd.keyfile import KEY_BYTES_MIN
from ingestd.protocol.blocks import BLOCK_BYTES
from ingestd.protocol.lines import CHALLENGE_BYTES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "tests" / "README.md"]
MAKEFILES = [ROOT / "Makefile", *ROOT.glob("**/*.mk")]
# What a name in backticks begins with if it is a path of the project.
FOLDERS = "(?:config|docs|examples|ingestd|scripts|systemd|tests|bench)"
NAMED = re.compile(rf"(?<![\w/]){FOLDERS}/[\w./*-]+\b")


def _targets() -> set[str]:
    """Every target that somebody is meant to ask for."""
    lists = [
        re.findall(r"^\.PHONY: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        for path in MAKEFILES
        if "build" not in path.relative_to(ROOT).parts
    ]
    return {target for found in lists for line in found for target in line.split()}


def _make(*words: str) -> subprocess.CompletedProcess[str]:
    """Run make as somebody does by hand, also where a make runs these tests."""
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        ["make", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def _help(*words: str) -> list[tuple[str, str]]:
    done = _make(*words)
    assert done.returncode == 0, done.stderr
    return re.findall(r"^make ([\w-]+) +(.+)$", done.stdout, re.MULTILINE)


def test_help_names_every_target() -> None:
    told = _help("help")
    assert {name for name, _ in told} == _targets()
    assert len(told) == len(_targets())
    assert {"test-unit", "test-one", "asan", "check"} <= _targets()


def test_make_alone_helps() -> None:
    assert _help() == _help("help")


def test_one_test_must_be_named() -> None:
    """It is not all tests that run when T was forgotten."""
    done = _make("-n", "test-one")
    assert done.returncode != 0
    assert "T=" in done.stderr
    done = _make("-n", "test-one", "T=tests/unit/test_sizes.py::test_sizes")
    assert done.returncode == 0
    assert 'pytest "tests/unit/test_sizes.py::test_sizes"' in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_named_is_there(page: Path) -> None:
    """Paths exist, and targets of make are some."""
    text = page.read_text(encoding="utf-8")
    paths = set(NAMED.findall(text))
    assert paths, "the pattern finds nothing"
    gone = [path for path in sorted(paths) if not list(ROOT.glob(path.rstrip(".")))]
    assert not gone
    targets = set(re.findall(r"(?:^    |`)make ([a-z][a-z-]*)\b", text, re.MULTILINE))
    assert targets <= _targets()


def test_every_folder_of_tests_is_explained() -> None:
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(tests/\w+|bench)` \|", text, re.MULTILINE)
    folders = {
        f"tests/{path.name}"
        for path in (ROOT / "tests").iterdir()
        if path.is_dir() and not path.name.startswith((".", "__"))
    }
    assert folders <= set(rows)
    assert len(set(rows)) == len(rows)


def test_variables_are_read_somewhere() -> None:
    """Each variable for a seed or a size that the pages name is one that tests read."""
    named = {
        name
        for page in PAGES
        for name in re.findall(r"\bINGESTD_[A-Z_]+\b", page.read_text(encoding="utf-8"))
    }
    assert "INGESTD_TEST_SEED" in named
    read = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "tests").rglob("*.py")
        if path != Path(__file__)
    )
    assert {name for name in named if f'"{name}"' not in read} == set()


def test_security_says_what_is_shipped() -> None:
    """Its figures are those of the code, its defaults those of the configuration and the unit."""
    text = " ".join((ROOT / "SECURITY.md").read_text(encoding="utf-8").split())
    shipped = tomllib.loads((ROOT / "config" / "ingestd.toml").read_text(encoding="utf-8"))
    assert {table["address"].rpartition(":")[0] for table in shipped["listener"].values()} == {
        "127.0.0.1"
    }
    assert "address" not in shipped["metrics"]
    assert "By default the daemon listens on `127.0.0.1` only, and does not serve metrics." in text
    unit = (ROOT / "systemd" / "ingestd.service").read_text(encoding="utf-8").splitlines()
    assert {"CapabilityBoundingSet=", "User=ingestd", "ProtectSystem=strict"} <= set(unit)
    for figure in (
        f"at least {KEY_BYTES_MIN} bytes",
        f"exactly {BLOCK_BYTES} bytes",
        f"{CONNECTIONS_MAX} connections",
        f"challenge of {CHALLENGE_BYTES} random bytes",
    ):
        assert figure in text, figure
