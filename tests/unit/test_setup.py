# SPDX-License-Identifier: Apache-2.0
"""What `make` does before anything is installed: scripts/setup-debian.sh, requirements.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from support.patience import WAIT_S

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / "scripts" / "setup-debian.sh"
PRINTED_LINE = re.compile(r"^    apt-get install (?:--no-install-recommends )?(.*)$", re.MULTILINE)
NAMED_BY_BUILD = re.compile(r"^debian_packages = '(.*)'$", re.MULTILINE)


def _bare_path(directory: Path, *programs: str) -> str:
    """A PATH that has these programs, and above all no apt-get."""
    for program in ("id", "grep", "uname", *programs):
        found = shutil.which(program)
        assert found is not None, program
        (directory / program).symlink_to(found)
    return str(directory)


def _packages(pattern: re.Pattern[str], text: str) -> set[str]:
    match = pattern.search(text)
    assert match is not None, text
    return set(match[1].split())


def _setup(path: str, *arguments: str, python: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", str(SETUP), *arguments],
        env={"PATH": path, "PYTHON": python},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def test_setup_prints_the_line_that_installs_what_is_missing(tmp_path: Path) -> None:
    """The README and the build's own message name the same packages."""
    result = _setup(_bare_path(tmp_path), python="no-such-python")
    assert result.returncode == 1
    missing = _packages(PRINTED_LINE, result.stderr)
    named = _packages(NAMED_BY_BUILD, (ROOT / "meson.build").read_text())
    assert named <= missing
    for page in ("README.md", "docs/operations.md"):
        installed = _packages(PRINTED_LINE, (ROOT / page).read_text())
        assert named <= installed <= missing, page


def test_setup_wants_more_for_the_checks(tmp_path: Path) -> None:
    result = _setup(_bare_path(tmp_path), "check", python="no-such-python")
    wanted = {"faketime", "prometheus", "socat", "systemd", "valgrind"}
    wanted.add("systemtap-sdt-dev")
    assert wanted <= set(result.stderr.split())


def test_no_version_is_named_outside_of_pyproject() -> None:
    """Debian's next release has other versions; what must be of one comes from PyPI, pinned."""
    versioned = re.compile(r"\b(?:clang|gcc|llvm|python3|libclang-rt)[a-z-]*[-.]\d+(?:-dev)?\b")
    places = [ROOT / "Makefile", SETUP, ROOT / "meson.build", ROOT / "bench/bench.mk"]
    found = [m[0] for path in places for m in versioned.finditer(path.read_text(encoding="utf-8"))]
    assert found == []
    checks = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = checks["project"]["optional-dependencies"]["check"]
    assert [line for line in lines if not re.fullmatch(r"[\w-]+==[\w.]+", line)] == []


def test_checks_run_in_the_pinned_versions() -> None:
    """What is in the venv is what pyproject.toml pins."""
    checks = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for line in checks["project"]["optional-dependencies"]["check"]:
        name, _, pinned = line.partition("==")
        assert version(name) == pinned, name


def test_setup_says_nothing_where_nothing_is_missing() -> None:
    programs = ("gcc", "pkg-config", "promtool", "systemd-analyze", "valgrind")
    assert all(map(shutil.which, programs)), "make test has not installed what it checks with"
    result = subprocess.run(
        ["/bin/bash", str(SETUP), "check"],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_an_old_python_is_refused_by_name(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\n[ \"$1\" = -V ] && echo 'Python 3.9.0' && exit 0\nexit 1\n")
    old.chmod(0o755)
    result = _setup(_bare_path(tmp_path), python=str(old))
    assert result.returncode == 1
    assert "Python 3.9.0" in result.stderr
    assert "3.11" in result.stderr


def _requirements(*extras: str) -> list[str]:
    script, pyproject = ROOT / "scripts" / "requirements.py", ROOT / "pyproject.toml"
    return subprocess.run(
        [sys.executable, str(script), str(pyproject), *extras],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    ).stdout.splitlines()


def test_requirements_come_from_pyproject() -> None:
    plain, all_of_them = set(_requirements()), set(_requirements("test", "check"))
    assert {"meson-python", "pydantic"} <= {re.split(r"[<>=]", line)[0] for line in plain}
    assert plain < all_of_them
    assert {"pytest", "mypy"} <= {re.split(r"[<>=]", line)[0] for line in all_of_them - plain}
