# SPDX-License-Identifier: Apache-2.0
"""With CI=true no test is skipped: the hook of tests/conftest.py turns it into a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
SKIPS = {
    "call": "import pytest\ndef test():\n    pytest.skip('no such thing')\n",
    "mark": "import pytest\n@pytest.mark.skipif(True, reason='no such thing')\ndef test(): pass\n",
    "fixture": "import pytest\n@pytest.fixture\ndef a(): pytest.skip('no such thing')\n"
    "def test(a): pass\n",
    "file": "import pytest\npytest.importorskip('no_such_thing', reason='no such thing')\n",
}
XFAIL = "import pytest\n@pytest.mark.xfail\ndef test(): assert False\n"


def _run(tmp_path: Path, text: str, ci: str) -> tuple[int, str]:
    """Exit status and report of pytest on a file beside our conftest.py."""
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_it.py").write_text(text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(CONFTEST.parent), "CI": ci},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("kind", SKIPS)
def test_what_is_skipped_fails_where_nobody_would_see_it(kind: str, tmp_path: Path) -> None:
    status, report = _run(tmp_path, SKIPS[kind], "true")
    assert status != 0, report
    assert "with CI=true nothing may be skipped" in report
    assert "no such thing" in report


def test_elsewhere_it_is_skipped(tmp_path: Path) -> None:
    status, report = _run(tmp_path, SKIPS["call"], "")
    assert (status, "1 skipped" in report) == (0, True), report


def test_what_is_to_fail_is_not_skipped(tmp_path: Path) -> None:
    status, report = _run(tmp_path, XFAIL, "true")
    assert (status, "1 xfailed" in report) == (0, True), report
