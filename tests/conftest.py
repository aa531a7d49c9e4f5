# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test may use, and the care that the right ingestd is tested.

The source tree's `ingestd` has no compiled core. `make test` therefore installs
the package, and the tests must see that one, wherever they are started from.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
# `python -m pytest` puts the working directory before site-packages.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

try:
    import ingestd
except ModuleNotFoundError:
    # Not installed: what needs no compiled core can still be tested; the report's head says so.
    sys.path.append(str(ROOT))
    import ingestd

from support import tally  # noqa: E402
from support.daemon import Daemon, format_store  # noqa: E402
from support.stores import StoreMaker  # noqa: E402

# `bench` lies beside `tests`; the root, which has the uncompiled ingestd, stays off the path.
if (bench := spec_from_file_location("bench", ROOT / "bench" / "__init__.py")) is not None:
    sys.modules["bench"] = module_from_spec(bench)

# A shell has jobs in the background ignore the interrupt, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where mke2fs and the like lie, which an ordinary user's PATH lacks on Debian.
os.environ["PATH"] += ":/usr/sbin:/sbin"

SEED_VARIABLE = "INGESTD_TEST_SEED"

# How long an example takes says more of the machine than of the code. Chance looks for new ones,
# but not in continuous integration: what fails there must fail again.
settings.register_profile(
    "ingestd",
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ingestd")

LEFT_OUT_COUNT = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Have the faults counted that tests try."""
    config.pluginmanager.register(tally, "tally")


def pytest_report_header() -> str:
    """Say at the top which ingestd is under test."""
    return f"ingestd {ingestd.__version__} from {Path(ingestd.__file__).parent}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, for an ordinary user, what only root may do: loop devices and mounts."""
    left_out = [item for item in items if item.get_closest_marker("needs_root") is not None]
    if os.geteuid() == 0 or not left_out:
        return
    config.stash[LEFT_OUT_COUNT] = len(left_out)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item.get_closest_marker("needs_root") is None]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how many were left out, since nobody sees what did not run."""
    count = config.stash.get(LEFT_OUT_COUNT, 0)
    if count:
        terminalreporter.write_line(f"{count} tests need root and were left out: run them as root")


def _is_ci() -> bool:
    """Return whether nobody would see that a test was skipped."""
    return os.environ.get("CI") == "true"


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn what was skipped into a failure with its reason; a test that is to fail is none."""
    if not _is_ci() or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"with CI=true nothing may be skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a test that skips itself fails."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file that skips itself."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """A fresh store of 64 MiB in a file."""
    return format_store(tmp_path / "store.img")


@pytest.fixture
def start_daemon() -> Iterator[Callable[..., Daemon]]:
    """A function that takes Daemon's arguments and returns one that is ready; all are ended."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(Daemon(*args, **kwargs))


@pytest.fixture
def daemon(store_path: Path, start_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon with a fresh store, ready on free ports of 127.0.0.1."""
    return start_daemon(store_path)


@pytest.fixture
def seed() -> int:
    """A seed for what a test does at random, printed; the environment can repeat one."""
    value = int(os.environ.get(SEED_VARIABLE) or secrets.randbits(32))
    print(f"{SEED_VARIABLE}={value}")
    return value


@pytest.fixture(
    params=[
        "file",
        pytest.param("loop512", marks=pytest.mark.needs_root),
        pytest.param("loop4096", marks=pytest.mark.needs_root),
    ]
)
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreMaker]:
    """A function that makes a store of a size: in a file, and on loop devices of both blocks."""
    with ExitStack() as stack:
        yield StoreMaker(str(request.param), tmp_path, stack)
