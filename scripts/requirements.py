# SPDX-License-Identifier: Apache-2.0
"""Prints what a build, the program and the extras named on the command line depend on.

pyproject.toml is the only place that lists it; pip itself can install a
project's dependencies only together with the project.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The requirement lines of pyproject: build, run time, and these extras."""
    data = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    project = data["project"]
    lines = [*data["build-system"]["requires"], *project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return sorted(lines)


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), sys.argv[2:])))
