# SPDX-License-Identifier: Apache-2.0
"""Texts of /proc that have a line "Name: value" for each fact: status and meminfo.

Invariant: a line without a colon is left out. Pure; any thread may call.
"""

from __future__ import annotations


def proc_fields(text: str) -> dict[str, str]:
    """Return the values of a text of /proc by their names, as proc(5) lays them out."""
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value.strip() for name, _, value in pairs}


def meminfo_number(text: str, name: str) -> int:
    """Return a number of a text of /proc/meminfo, in KiB or a count; 0 where it is not there."""
    return int(proc_fields(text).get(name, "0").split()[0])
