# SPDX-License-Identifier: Apache-2.0
"""What a fresh root takes over from this machine: how the world outside is reached.

What it is: the settings of pip and apt, proxies, certificates and the files that these name, read
from the machine's own configuration.

Invariants: no address and no path is written down here; nothing else of the machine comes along,
above all no package, no program and no other variable of the environment.
"""

import ast
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmlab.process import run

PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
# Of pip's settings these belong to a run, or to the machine's own layout.
PIP_LEFT_OUT = {"cache-dir", "target", "prefix", "root", "src", "user", "log", "require-virtualenv"}
# Of apt's settings these say how an archive is reached.
APT_CARRIED = re.compile(r"^Acquire::(?:https?|ftp|socks)::.+ \".*\";$", re.IGNORECASE)
COMMAND_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Carried:
    """Settings for a root; `files` are copied into it, `directories` mounted, each to its place."""

    environment: Mapping[str, str]
    pip_configuration: str
    apt_configuration: str
    files: tuple[Path, ...]
    directories: tuple[Path, ...]


def carried_from_machine(pip: Path) -> Carried:
    """Read this machine's settings; `pip` is the program that is asked for its own.

    Raises VmError when pip or apt-config cannot be run.
    """
    listed = run([str(pip), "config", "list"], timeout_s=COMMAND_TIMEOUT_S)
    dumped = run(["apt-config", "dump"], timeout_s=COMMAND_TIMEOUT_S)
    environment = environment_to_carry(os.environ)
    settings = pip_settings(listed)
    apt = [line for line in dumped.splitlines() if APT_CARRIED.match(line)]
    quoted = [value for line in apt for value in re.findall(r'"([^"]*)"', line)]
    values = [*environment.values(), *settings.values(), *quoted]
    paths = sorted(set(local_paths(values)))
    return Carried(
        environment=environment,
        pip_configuration=pip_configuration(settings),
        apt_configuration="".join(f"{line}\n" for line in apt),
        files=tuple(path for path in paths if path.is_file()),
        directories=tuple(path for path in paths if path.is_dir()),
    )


def environment_to_carry(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say how to get out of this machine, and CI."""
    names = {*PROXIES, *(name.upper() for name in PROXIES), *CERTIFICATES, "CI"}
    return {name: environment[name] for name in sorted(names) if environment.get(name)}


def pip_settings(listed: str) -> dict[str, str]:
    """Return {option: value} of what `pip config list` printed, for every command of pip.

    The environment, listed as `:env:`, wins over files, as it does in pip.
    """
    files: dict[str, str] = {}
    environment: dict[str, str] = {}
    for line in listed.splitlines():
        key, separator, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if not separator or option in PIP_LEFT_OUT or section not in ("global", ":env:"):
            continue
        target = environment if section == ":env:" else files
        target[option] = str(ast.literal_eval(value))
    return files | environment


def pip_configuration(settings: Mapping[str, str]) -> str:
    """Return a pip.conf with these settings; values of several lines are indented."""
    lines = [f"{name} = {value}".replace("\n", "\n    ") for name, value in settings.items()]
    return "\n".join(["[global]", *lines, ""])


def local_paths(values: Iterable[str]) -> Iterator[Path]:
    """Yield what there is on this machine of the paths and file: addresses in the values.

    An index below DIRECTORY/simple often names files beside it: the whole DIRECTORY is yielded.
    """
    for value in values:
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if not path.is_absolute() or len(path.parts) < 3 or not path.exists():
                continue
            yield path.parent if path.name == "simple" and len(path.parts) > 3 else path
