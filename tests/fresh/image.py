# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile without Docker: its instructions, carried out in minimal roots.

What it is: `stages_of` reads a Dockerfile, `ImageBuild` carries out each stage in a root of its
own and then runs what an image is for, as the image's user.

Invariants: an instruction that is not known here is an error, as nobody would notice that it was
left out; what only a registry has (debian:12-slim) is stood in for by a minimal root of the same
suite, which has git and make beside it.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from roots import Root
from vmlab.errors import VmError
from vmlab.process import run

SUITES_BY_IMAGE = {"debian:12-slim": "bookworm", "debian:13-slim": "trixie"}
DECLARATIONS = {"VOLUME", "EXPOSE", "STOPSIGNAL", "CMD", "ENTRYPOINT"}
"""What tells the container's runner something and does nothing while the image is made."""

COPY_TIMEOUT_S = 300.0

# A store, a daemon, a flow by netcat's kind of protocol, and the flow back.
TRIAL = """
set -e
cd "$HOME"
ingestd --version
ingestd check-config -c /etc/ingestd/ingestd.toml > /dev/null
ingestd format trial.store --size 64MiB
ingestd serve --store trial.store --listen 127.0.0.1:7979 &
head -c 3000001 /dev/urandom > sent
ingestd send sent --to 127.0.0.1:7979 --retry 60
kill -TERM $!
wait $!
ingestd ls trial.store --json
ingestd verify trial.store
flow=$(ingestd ls trial.store --json | sed 's/.*"flow": "\\([^"]*\\)".*/\\1/')
ingestd cat trial.store "$flow" | cmp - sent
"""


@dataclass
class Stage:
    """One FROM and what follows it."""

    image: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages_of(text: str) -> list[Stage]:
    """Read a Dockerfile; raises VmError where an instruction is not known here."""
    stages: list[Stage] = []
    for line in _logical_lines(text):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            stages.append(Stage(image, name or str(len(stages))))
        elif word in {"RUN", "COPY", "WORKDIR", "USER", *DECLARATIONS} and stages:
            stages[-1].steps.append((word, rest.strip()))
        else:
            raise VmError(f"the Dockerfile says {word}, which is not known here")
    return stages


def _logical_lines(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


class ImageBuild:
    """A Dockerfile's stages, each in a root that `make_root` gives for an image and a name."""

    def __init__(self, tree: Path, make_root: Callable[[str, str], Root], log: Path) -> None:
        self._tree = tree  # what COPY copies from
        self._make_root = make_root
        self._log = log
        self._roots: dict[str, Root] = {}

    def build(self, stages: Sequence[Stage], timeout_s: float) -> int:
        """Carry out everything and try the last stage; return the exit code of what failed."""
        user = "root"
        for stage in stages:
            user, directory = "root", "/"
            root = self._roots[stage.name] = self._make_root(stage.image, stage.name)
            for word, rest in stage.steps:
                if word == "RUN":
                    code = root.run("root", f"cd {directory} && {rest}", self._log, timeout_s)
                    if code != 0:
                        return code
                elif word == "COPY":
                    self._copy(root, rest, directory)
                elif word == "WORKDIR":
                    directory = rest
                    _inside(root, directory).mkdir(parents=True, exist_ok=True)
                elif word == "USER":
                    user = rest
        return self._try(self._roots[stages[-1].name], user, timeout_s)

    def _copy(self, root: Root, arguments: str, directory: str) -> None:
        words = shlex.split(arguments)
        origin = self._tree
        if words[0].startswith("--from="):
            source = words.pop(0).removeprefix("--from=")
            origin = self._roots[source].path
        *sources, place = words
        target = _inside(root, str(Path(directory) / place))
        for source in sources:
            found = origin / source.lstrip("/")
            # A directory's contents are copied, to a directory of the target's name.
            into = target / found.name if place.endswith("/") else target
            into.parent.mkdir(parents=True, exist_ok=True)
            names = [f"{found}/.", f"{into}/"] if found.is_dir() else [str(found), str(into)]
            if found.is_dir():
                into.mkdir(parents=True, exist_ok=True)
            run(["cp", "-a", *names], timeout_s=COPY_TIMEOUT_S)

    def _try(self, root: Root, user: str, timeout_s: float) -> int:
        become = f"setpriv --reuid={user} --regid={user} --init-groups"
        home = f"$(getent passwd {user} | cut -d: -f6)"
        command = f"{become} env HOME={home} sh -c {shlex.quote(TRIAL)}"
        return root.run("root", command, self._log, timeout_s)


def _inside(root: Root, path: str) -> Path:
    return root.path / path.lstrip("/")


def suites_of(stages: Sequence[Stage], known: Mapping[str, str] = SUITES_BY_IMAGE) -> set[str]:
    """Return the suites of Debian that stages begin from; VmError for another image."""
    try:
        return {known[stage.image] for stage in stages}
    except KeyError as error:
        raise VmError(f"the Dockerfile begins from {error}, which nobody here can make") from None
