#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`make fresh`: what a newcomer does, on systems that have nothing yet.

In a minimal root of each Debian, as root and then as an ordinary user who may lock 8 MiB of
memory: a clone of what is committed, `make run`, `make check`, and the unit, core and e2e tests.
root's part installs the packages; a user cannot. Beside it what the Dockerfile says is done, in
roots as well, and the daemon tried that comes of it.

Ends with "N passed, N failed". Exit codes: 0, 1 when a part failed or no root could be made; then
a line says why. Nothing is skipped: without root or without an archive it fails.
"""

import argparse
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "vm")]

from carried import Carried, carried_from_machine  # noqa: E402
from image import ImageBuild, stages_of, suites_of  # noqa: E402
from roots import USER, Base, Root, remove  # noqa: E402
from vmlab.archive import host_archive_address  # noqa: E402
from vmlab.errors import VmError  # noqa: E402
from vmlab.tools import install_host_programs  # noqa: E402

TREE = HERE.parents[1]
LOGS = TREE / "build" / "fresh"
SUITES = ("bookworm", "trixie")
USERS = ("root", USER)
STEPS = {
    "run": "make run",
    "check": "make check",
    "tests": "make pytest PYTEST_ARGS='tests/unit tests/core tests/e2e'",
}
IMAGE_STEP = "image"
PROGRAMS = {"debootstrap": "debootstrap", "git": "git", "unshare": "util-linux"}
STEP_TIMEOUT_S = 2400.0
TAIL_LINES = 40


@dataclass(frozen=True)
class Outcome:
    """How one part ended."""

    name: str
    exit_code: int
    seconds: float


def say(text: str) -> None:
    """Print a line at once: what follows may take minutes."""
    print(f"fresh: {text}", flush=True)


def default_cache() -> Path:
    """INGESTD_FRESH_CACHE, or ingestd-fresh below the user's cache directory."""
    named = os.environ.get("INGESTD_FRESH_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "ingestd-fresh"


def run_part(root: Root, suite: str, user: str, step: str) -> Outcome:
    """Run one step as one user and say how it went."""
    name = f"{suite}-{user}-{step}"
    log = LOGS / f"{name}.log"
    begun_s = time.monotonic()
    code = root.run(user, f"cd ingestd && {STEPS[step]}", log, STEP_TIMEOUT_S)
    return _outcome(name, code, begun_s, log)


def _outcome(name: str, code: int, begun_s: float, log: Path) -> Outcome:
    outcome = Outcome(name, code, time.monotonic() - begun_s)
    say(f"{name}: {'FAILED' if code else 'passed'} in {outcome.seconds:.0f} s")
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
        print("\n".join([f"--- the end of {log}", *lines, "---"]), flush=True)
    return outcome


def steps_of(user: str, steps: Sequence[str], *, is_brief: bool) -> list[str]:
    """Return the steps of a user; in brief `make check` is root's: it looks at the same sources."""
    own = [step for step in steps if step in STEPS]
    return [step for step in own if step != "check" or user == "root" or not is_brief]


def run_image(base: Base, carried: Carried, options: argparse.Namespace) -> list[Outcome]:
    """Do what the Dockerfile says, if it begins from this suite; roots of its own are made."""
    stages = stages_of((TREE / "Dockerfile").read_text(encoding="utf-8"))
    if IMAGE_STEP not in options.step or base.suite not in suites_of(stages):
        return []
    begun_s = time.monotonic()
    log = LOGS / f"{IMAGE_STEP}.log"
    directory = options.cache / "roots" / IMAGE_STEP
    build = ImageBuild(TREE, lambda _, name: Root(base, directory / name, carried), log)
    return [_outcome(IMAGE_STEP, build.build(stages, STEP_TIMEOUT_S), begun_s, log)]


def run_suite(base: Base, carried: Carried, options: argparse.Namespace) -> list[Outcome]:
    """Make a root of a suite and run every part in it, root's first."""
    begun_s = time.monotonic()
    log = LOGS / f"{base.suite}-root.log"
    base.prepare(carried, log)
    outcomes = run_image(base, carried, options)
    if not set(options.step) & set(STEPS):
        return outcomes
    root = Root(base, options.cache / "roots" / base.suite, carried)
    say(f"{base.suite}: a root is there after {time.monotonic() - begun_s:.0f} s")
    for user in USERS:
        if user not in options.user:
            # Only root can install what the user then finds.
            if user == "root" and root.run("root", *_installing(root, log)) != 0:
                raise VmError(f"the packages of {base.suite} could not be installed, see {log}")
            continue
        if user != "root":
            root.add_user()
        root.clone_for(user, TREE)
        if root.run(user, f"git clone -q /srv/{user}.git ingestd", log, STEP_TIMEOUT_S) != 0:
            raise VmError(f"{user} of {base.suite} could not clone the tree, see {log}")
        steps = steps_of(user, options.step, is_brief=options.brief)
        outcomes += [run_part(root, base.suite, user, step) for step in steps]
    return outcomes


def _installing(root: Root, log: Path) -> tuple[str, Path, float]:
    root.clone_for("root", TREE)
    command = "git clone -q /srv/root.git ingestd && cd ingestd && make setup && make setup-check"
    return command, log, STEP_TIMEOUT_S


def run_all(options: argparse.Namespace) -> list[Outcome]:
    """Run what was asked for, the suites beside each other: builds and tests also wait a lot."""
    if os.geteuid() != 0:
        raise VmError("a root is made and entered by root only: run `make fresh` as root")
    install_host_programs(PROGRAMS)
    site = host_archive_address()
    carried = carried_from_machine(Path(sys.executable).with_name("pip"))
    if _git("status", "--porcelain", "--untracked-files=no"):
        say("what is not committed yet is not in the clones")
    options.cache.mkdir(parents=True, exist_ok=True)
    with (options.cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at a time would use the same roots
        remove(options.cache / "roots")
        try:
            bases = [Base(suite, site, options.cache) for suite in options.suite]
            with ThreadPoolExecutor(len(bases)) as pool:
                runs = [pool.submit(run_suite, base, carried, options) for base in bases]
            return [outcome for done in runs for outcome in done.result()]
        finally:
            remove(options.cache / "roots")


def summary(outcomes: Sequence[Outcome]) -> str:
    """The closing line: how many passed, how many failed, and which."""
    failed = [outcome.name for outcome in outcomes if outcome.exit_code != 0]
    names = f" ({', '.join(failed)})" if failed else ""
    return f"{len(outcomes) - len(failed)} passed, {len(failed)} failed{names}"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(TREE), *arguments], capture_output=True, text=True, check=True
    ).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="run_fresh.py", description=__doc__)
    add = parser.add_argument
    add("--suite", action="append", choices=SUITES, help="default: all")
    add("--user", action="append", choices=USERS, help="default: both")
    add("--step", action="append", choices=(*STEPS, IMAGE_STEP), help="default: all")
    add("--brief", action="store_true", help="no `make check` as the ordinary user")
    add("--cache", type=Path, default=default_cache(), metavar="DIRECTORY")
    options = parser.parse_args(arguments)
    options.suite = options.suite or list(SUITES)
    options.user = options.user or list(USERS)
    options.step = options.step or [*STEPS, IMAGE_STEP]
    LOGS.mkdir(parents=True, exist_ok=True)
    for old in LOGS.glob("*.log"):
        old.unlink()
    try:
        outcomes = run_all(options)
    except VmError as error:
        say(str(error))
        return 1
    say(summary(outcomes))
    return 1 if any(outcome.exit_code != 0 for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
