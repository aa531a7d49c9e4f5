# SPDX-License-Identifier: Apache-2.0
"""Memory that is left for areas, from made-up texts of /proc and from this machine."""

from __future__ import annotations

import os
from pathlib import Path

from ingestd.daemon.machine.memory import bounds_now, cgroup_bounds, pinned_by_others
from ingestd.daemon.machine.proc_text import meminfo_number, proc_fields

MIB = 1024 * 1024


def test_texts_of_proc() -> None:
    text = "Name:\tpy:thon\nMemFree:   12 kB\n\nno colon\nHugePages_Free:     3\n"
    assert proc_fields(text) == {"Name": "py:thon", "MemFree": "12 kB", "HugePages_Free": "3"}
    assert [meminfo_number(text, name) for name in ("MemFree", "HugePages_Free", "Not")] == [
        12,
        3,
        0,
    ]


def make_group(group: Path, **files: str) -> None:
    group.mkdir(parents=True)
    for name, text in files.items():
        (group / name.replace("__", ".")).write_text(text)


def test_control_groups_of_both_versions(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text("4:cpu,memory:/a/b\n3:cpu:/\n0::/x/y\n")
    one = {"memory__usage_in_bytes": "30", "memory__stat": "inactive_file 10\n"}
    make_group(groups / "memory/a", memory__limit_in_bytes="100\n", **one)
    make_group(groups / "memory/a/b", memory__limit_in_bytes="9223372036854771712\n", **one)
    two = {"memory__current": "40", "memory__stat": "anon 1\ninactive_file 20\n"}
    make_group(groups / "x/y", memory__max="max\n", **two)
    (groups / "x/memory.max").write_text("1020\n")
    (groups / "x/memory.current").write_text("40\n")
    (groups / "x/memory.stat").write_text("inactive_file 20\n")
    assert [bound.bytes_count for bound in cgroup_bounds(proc, groups)] == [40, 500]
    (proc / "self/cgroup").unlink()
    assert cgroup_bounds(proc, groups) == []


def test_what_others_of_the_user_have_pinned(tmp_path: Path) -> None:
    own, all_capabilities = os.getuid(), "000001ffffffffff"
    others = [(own, 12, "0"), (own, 30, "0"), (4711, 99, "0"), (own, 500, all_capabilities)]
    for number, (uid, kib, capabilities) in enumerate(others):
        (tmp_path / str(999_999_000 + number)).mkdir()
        text = f"Uid:\t{uid}\t0\t0\t0\nVmPin:\t      {kib} kB\nCapEff:\t{capabilities}\n"
        (tmp_path / str(999_999_000 + number) / "status").write_text(text)
    (tmp_path / str(os.getpid())).mkdir()
    (tmp_path / "999999100").mkdir()  # it has ended: no status
    (tmp_path / "uptime").write_text("1")
    assert pinned_by_others(tmp_path) == 42 * 1024


def test_bounds_of_this_machine() -> None:
    bounds = bounds_now(None)
    assert bounds
    assert all(bound.bytes_count > 0 for bound in bounds)
    assert any("RLIMIT_MEMLOCK" in bound.reason for bound in bounds_now(8 * MIB))
