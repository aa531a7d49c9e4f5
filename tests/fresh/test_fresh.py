# SPDX-License-Identifier: Apache-2.0
"""The parts of `make fresh` that need neither root nor an archive.

Roots themselves are made and entered by `make fresh`.
"""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "vm"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import roots
from carried import (
    Carried,
    carried_from_machine,
    environment_to_carry,
    local_paths,
    pip_configuration,
    pip_settings,
)
from image import ImageBuild, stages_of, suites_of
from roots import EXIT_TIMEOUT, LOCKED_MEMORY_KIB, USER, Base, Root, remove, run_logged, uid_of
from run_fresh import STEPS, SUITES, Outcome, steps_of, summary
from vmlab.errors import VmError

LISTED = """\
:env:.cert='/etc/certs/all.pem'
:env:.cache-dir='/elsewhere'
global.cert='/etc/certs/some.pem'
global.index-url='https://index.example/simple'
global.extra-index-url='file:///srv/index/simple\\nhttps://more.example/simple'
install.user='true'
"""


def test_settings_of_pip_come_along_and_the_environment_wins() -> None:
    settings = pip_settings(LISTED)
    assert settings == {
        "cert": "/etc/certs/all.pem",
        "index-url": "https://index.example/simple",
        "extra-index-url": "file:///srv/index/simple\nhttps://more.example/simple",
    }


def test_pip_reads_what_is_written_for_it() -> None:
    settings = pip_settings(LISTED)
    read = configparser.RawConfigParser()
    read.read_string(pip_configuration(settings))
    assert dict(read["global"]) == settings


def test_only_ways_out_come_along_of_the_environment() -> None:
    environment = {
        "https_proxy": "http://proxy.example:3128",
        "NO_PROXY": "localhost",
        "SSL_CERT_FILE": "/etc/certs/all.pem",
        "CI": "true",
        "PYTHONPATH": "/somewhere",
        "HOME": "/somewhere",
        "http_proxy": "",
    }
    assert set(environment_to_carry(environment)) == {
        "https_proxy",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "CI",
    }


def test_paths_that_are_there_are_found(tmp_path: Path) -> None:
    index = tmp_path / "index" / "simple"
    index.mkdir(parents=True)
    bundle = tmp_path / "all.pem"
    bundle.touch()
    values = [f"file://{index} https://index.example/simple", str(bundle), f"{tmp_path}/none"]
    assert list(local_paths(values)) == [index.parent, bundle]


def test_machine_tells_pip_and_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are asked, not their files: only they know which files count."""
    bundle = tmp_path / "all.pem"
    bundle.touch()
    for name, text in {
        "pip": f"global.cert='{bundle}'",
        "apt-config": 'Acquire::http::Proxy "http://proxy.example:3142";\nDir::Cache "x";\n',
    }.items():
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ncat << 'END'\n{text}\nEND\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    carried = carried_from_machine(tmp_path / "pip")
    assert carried.apt_configuration == 'Acquire::http::Proxy "http://proxy.example:3142";\n'
    assert carried.pip_configuration == f"[global]\ncert = {bundle}\n"
    assert bundle in carried.files


def _root(tmp_path: Path, *directories: Path) -> Root:
    """A root of an empty base: nothing can be entered, but all is in its place."""
    base = Base("suite", "http://archive.example/debian", tmp_path)
    tree = tmp_path / "tree"
    for name in ("etc/apt/apt.conf.d", "etc/dpkg/dpkg.cfg.d"):
        (tree / name).mkdir(parents=True)
    subprocess.run(["tar", "-C", str(tree), "-cf", str(base.tar), "."], check=True)
    return Root(
        base, tmp_path / "roots" / "suite", Carried({"CI": "true"}, "", "", (), directories)
    )


def test_a_root_has_what_was_carried(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    root = _root(tmp_path, wheels)
    assert (root.path / "etc/resolv.conf").read_bytes() == Path("/etc/resolv.conf").read_bytes()
    assert (root.path / wheels.relative_to("/")).is_dir()
    script = root._entrance("root", "true")
    assert f"mount -o remount,bind,ro {root.path}{wheels}" in script


@pytest.mark.parametrize("user", ["root", USER])
def test_entrance_is_a_script(tmp_path: Path, user: str) -> None:
    """Of the user's kind: its path, its limit, and for an ordinary one no capability."""
    script = _root(tmp_path)._entrance(user, "make 'run it'")
    subprocess.run(["sh", "-n", "-c", script], check=True)
    assert f"ulimit -l {LOCKED_MEMORY_KIB}" in script
    assert ("--bounding-set=-all" in script) == (user != "root")
    assert (f"PATH={roots.USER_PATH} " in script) == (user != "root")


def test_another_archive_is_another_base(tmp_path: Path) -> None:
    names = {Base("suite", site, tmp_path).tar for site in ("http://a.example", "http://b.example")}
    assert len(names) == 2


def test_a_base_that_cannot_be_had_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "ALONE", ("sh", "-c", "echo no archive; exit 1"))
    base, log = Base("suite", "http://archive.example", tmp_path), tmp_path / "log"
    with pytest.raises(VmError, match="debootstrap of suite failed"):
        base.prepare(Carried({}, "", "", (), ()), log)
    assert log.read_text() == "no archive\n"
    assert list(tmp_path.iterdir()) == [log]


def test_what_lasts_too_long_is_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_logged(["sh", "-c", "echo begun; exec sleep 1000"], log, 0.5) == EXIT_TIMEOUT
    assert "took longer than 0.5 s" in log.read_text()
    assert run_logged(["sh", "-c", "exit 3"], log, 60) == 3


@pytest.mark.needs_root
def test_nothing_is_removed_over_a_mount(tmp_path: Path) -> None:
    inside = tmp_path / "roots" / "suite" / "proc"
    inside.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inside)], check=True)
    try:
        with pytest.raises(VmError, match="is mounted"):
            remove(tmp_path / "roots")
        assert inside.exists()
    finally:
        subprocess.run(["umount", str(inside)], check=True)
    remove(tmp_path / "roots")
    assert not (tmp_path / "roots").exists()


def test_in_brief_only_the_second_check_is_left_out() -> None:
    steps = list(STEPS)
    assert steps_of("root", steps, is_brief=True) == steps
    assert steps_of(USER, steps, is_brief=True) == ["run", "tests"]
    assert steps_of(USER, steps, is_brief=False) == steps


def test_the_sum_names_what_failed() -> None:
    outcomes = [Outcome("suite-root-run", 0, 1.0), Outcome("suite-root-check", 2, 1.0)]
    assert summary(outcomes) == "1 passed, 1 failed (suite-root-check)"
    assert summary(outcomes[:1]) == "1 passed, 0 failed"


def test_suites_side_by_side_share_no_users_locked_memory() -> None:
    assert len({uid_of(suite) for suite in SUITES}) == len(SUITES)


# --- the Dockerfile -----------------------------------------------------------------


class PretendedRoot:
    """A directory in which nothing runs; it keeps what was asked for."""

    def __init__(self, path: Path, exit_codes: dict[str, int]) -> None:
        self.path = path
        self.commands: list[str] = []
        self._exit_codes = exit_codes
        path.mkdir()

    def run(self, _user: str, command: str, _log: Path, _timeout_s: float) -> int:
        self.commands.append(command)
        return next((code for part, code in self._exit_codes.items() if part in command), 0)


def _build(tmp_path: Path, text: str, **exit_codes: int) -> tuple[int, dict[str, PretendedRoot]]:
    tree = tmp_path / "tree"
    (tree / "package").mkdir(parents=True)
    (tree / "one").write_text("1", encoding="ascii")
    (tree / "package" / "module").write_text("m", encoding="ascii")
    made: dict[str, PretendedRoot] = {}

    def make(_image: str, name: str) -> PretendedRoot:
        made[name] = PretendedRoot(tmp_path / f"root-{name}", exit_codes)
        return made[name]

    build = ImageBuild(tree, make, tmp_path / "log")  # type: ignore[arg-type]
    return build.build(stages_of(text), 1.0), made


DOCKERFILE = """\
# A comment
FROM debian:12-slim AS build
WORKDIR /usr/src
COPY one ./
COPY package package
RUN first \\
 && second
FROM debian:12-slim
COPY --from=build /usr/src /usr/share/src
USER somebody
CMD ["serve"]
"""


def test_what_a_dockerfile_says_is_done(tmp_path: Path) -> None:
    code, made = _build(tmp_path, DOCKERFILE)
    assert code == 0
    assert made["build"].commands == ["cd /usr/src && first   && second"]
    for place in (tmp_path / "root-build/usr/src", tmp_path / "root-1/usr/share/src"):
        assert (place / "one").read_text(encoding="ascii") == "1"
        assert (place / "package/module").read_text(encoding="ascii") == "m"
    (trial,) = made["1"].commands
    assert trial.startswith("setpriv --reuid=somebody")


def test_an_instruction_that_fails_ends_it(tmp_path: Path) -> None:
    code, made = _build(tmp_path, DOCKERFILE, second=7)
    assert code == 7
    assert list(made) == ["build"]


@pytest.mark.parametrize("line", ["ADD a b", "ARG x", "HEALTHCHECK NONE"])
def test_an_instruction_that_is_not_known_is_an_error(line: str) -> None:
    with pytest.raises(VmError, match=line.split()[0]):
        stages_of(f"FROM debian:12-slim\n{line}\n")


def test_the_projects_dockerfile_can_be_read() -> None:
    stages = stages_of((Path(__file__).resolve().parents[2] / "Dockerfile").read_text("utf-8"))
    assert suites_of(stages) <= {"bookworm", "trixie"}
    with pytest.raises(VmError, match="alpine"):
        suites_of(stages_of("FROM alpine:3\n"))
