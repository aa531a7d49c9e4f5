# SPDX-License-Identifier: Apache-2.0
"""Minimal systems of Debian, each in a directory, and commands that run in one.

What it is: `Base` bootstraps a suite into a tar file of the cache, `Root` is a copy of it to be
thrown away, and `Root.run` carries out one command there.

Invariants: mounts are made in a mount namespace of their command's own and go with it, however it
ends, so that none ever shows in a directory that is removed; a process namespace ends whatever a
command left running; a base appears in the cache whole or not at all.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from zlib import crc32

from carried import Carried
from vmlab.archive import ARCHIVE_KEYRING
from vmlab.errors import VmError
from vmlab.process import run

PACKAGES = ("python3", "git", "make", "ca-certificates")
"""What everybody has who wants to build something from a clone; all else is for `make` to find."""

BASE_AGE_MAX_S = 7 * 24 * 3600.0
BOOTSTRAP_TIMEOUT_S = 1800.0
COMMAND_TIMEOUT_S = 300.0
EXIT_TIMEOUT = 124  # as timeout(1) says it
USER = "somebody"
UID_MIN, UIDS_COUNT = 20000, 10000
HOMES = Path("/home")
LOCKED_MEMORY_KIB = 8192
"""RLIMIT_MEMLOCK of an ordinary user: MLOCK_LIMIT of linux/resource.h since 5.16, 8 MiB."""

# As login(1) sets it, by /etc/login.defs of Debian; an ordinary user has no sbin.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"

# Whoever is killed takes with it what it started: the mounts go with the last of them.
ALONE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private")
ALONE_WITH_PROCESSES = (*ALONE, "--pid", "--fork", "--kill-child")


@dataclass(frozen=True)
class Base:
    """A suite of the archive at an address, bootstrapped into the cache."""

    suite: str
    site: str
    cache: Path

    @property
    def tar(self) -> Path:
        """The file that has it; another archive or another list of packages is another file."""
        key = sha256("\n".join((self.site, *PACKAGES)).encode()).hexdigest()[:12]
        return self.cache / f"{self.suite}-{key}.tar"

    def prepare(self, carried: Carried, log: Path) -> None:
        """Bootstrap the suite unless the cache has a copy of less than a week; VmError if not."""
        if self.tar.exists() and time.time() - self.tar.stat().st_mtime < BASE_AGE_MAX_S:
            return
        flags = ["--variant=minbase", f"--include={','.join(PACKAGES)}"]
        if ARCHIVE_KEYRING.exists():
            flags.append(f"--keyring={ARCHIVE_KEYRING}")
        with tempfile.TemporaryDirectory(dir=self.cache, prefix="bootstrap.") as scratch:
            tree, tar = Path(scratch) / "tree", Path(scratch) / "tar"
            # It mounts /proc in the tree and might leave it there: hence in a namespace.
            command = [*ALONE, "debootstrap", *flags, self.suite, str(tree), self.site]
            environment = {**os.environ, **carried.environment}
            if run_logged(command, log, BOOTSTRAP_TIMEOUT_S, environment) != 0:
                raise VmError(f"debootstrap of {self.suite} failed, see {log}")
            archives = tree / "var/cache/apt/archives"
            shutil.rmtree(archives, ignore_errors=True)
            (archives / "partial").mkdir(parents=True)
            pack = ["tar", "-C", str(tree), "--numeric-owner", "-cf", str(tar), "."]
            run(pack, timeout_s=COMMAND_TIMEOUT_S)
            os.replace(tar, self.tar)


class Root:
    """A copy of a base in the directory `path`, which must not exist; ready to run commands."""

    def __init__(self, base: Base, path: Path, carried: Carried) -> None:
        self.path = path
        self.uid = uid_of(base.suite)
        self._carried = carried
        self._archives = base.cache / f"archives-{base.suite}"
        self._pip_cache = base.cache / "pip"
        (self._archives / "partial").mkdir(parents=True, exist_ok=True)
        self._pip_cache.mkdir(exist_ok=True)
        path.mkdir(parents=True)
        unpack = ["tar", "-C", str(path), "--numeric-owner", "-xpf", str(base.tar)]
        run(unpack, timeout_s=COMMAND_TIMEOUT_S)
        self._carry_in()

    def _carry_in(self) -> None:
        """Put the machine's settings to their places."""
        for directory in self._carried.directories:
            self._inside(directory).mkdir(parents=True, exist_ok=True)
        for file in (*self._carried.files, Path("/etc/resolv.conf"), Path("/etc/hosts")):
            target = self._inside(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copyfile(file, target)
        texts = {
            "/etc/pip.conf": self._carried.pip_configuration,
            "/etc/apt/apt.conf.d/90carried": self._carried.apt_configuration,
            # Whether packages reach the disk matters to nobody, and waiting for it takes minutes.
            "/etc/dpkg/dpkg.cfg.d/90unsafe": "force-unsafe-io\n",
        }
        for place, text in texts.items():
            self._inside(Path(place)).write_text(text, encoding="utf-8")
        self._inside(_home("root") / ".cache" / "pip").mkdir(parents=True)

    def _inside(self, path: Path) -> Path:
        return self.path / path.relative_to("/")

    def _change(self, *command: str) -> None:
        """Run a small command as root that needs none of the mounts."""
        run(["chroot", str(self.path), *command], timeout_s=COMMAND_TIMEOUT_S)

    def add_user(self) -> None:
        """Make the ordinary user, and give it a copy of what pip has downloaded so far."""
        self._change("useradd", "--create-home", "--shell", "/bin/bash", f"--uid={self.uid}", USER)
        cache = _home(USER) / ".cache"
        shutil.copytree(self._pip_cache, self._inside(cache) / "pip")
        self._change("chown", "-R", f"{USER}:", str(cache))

    def clone_for(self, user: str, tree: Path) -> None:
        """Put a bare clone of what is committed in `tree` where `user` can clone it from."""
        bare = Path("/srv") / f"{user}.git"
        clone = ["git", "clone", "--quiet", "--bare", "--depth", "1", f"file://{tree}"]
        run([*clone, str(self._inside(bare))], timeout_s=COMMAND_TIMEOUT_S)
        # git refuses to read what belongs to somebody else.
        self._change("chown", "-R", f"{user}:", str(bare))

    def run(self, user: str, command: str, log: Path, timeout_s: float) -> int:
        """Run a shell command as a user in its home; return its exit code.

        What it prints goes to the end of the file `log`. It may lock 8 MiB of memory, as nearly
        everybody may. Longer than `timeout_s` seconds it does not live: exit code 124.
        """
        entrance = [*ALONE_WITH_PROCESSES, "sh", "-c", self._entrance(user, command)]
        return run_logged(entrance, log, timeout_s)

    def _mounts(self) -> list[str]:
        """The commands that bring in what a system has beside its files, and the caches."""
        pairs = {
            self._archives: Path("/var/cache/apt/archives"),
            self._pip_cache: _home("root") / ".cache" / "pip",
        }
        commands = [
            f"mount -t proc proc {self._shown(Path('/proc'))}",
            f"mount --rbind /sys {self._shown(Path('/sys'))}",
            f"mount --rbind /dev {self._shown(Path('/dev'))}",
            f"mount -t tmpfs tmpfs {self._shown(Path('/dev/shm'))}",
            f"mount -t tmpfs -o mode=755 tmpfs {self._shown(Path('/run'))}",
        ]
        for outside, inside in pairs.items():
            commands.append(f"mount --bind {shlex.quote(str(outside))} {self._shown(inside)}")
        for path in self._carried.directories:
            commands.append(f"mount --bind {shlex.quote(str(path))} {self._shown(path)}")
            commands.append(f"mount -o remount,bind,ro {self._shown(path)}")
        return commands

    def _shown(self, path: Path) -> str:
        return shlex.quote(str(self._inside(path)))

    def _entrance(self, user: str, command: str) -> str:
        """The script that mounts, enters and becomes the user: process 1 of its namespace."""
        is_root = user == "root"
        environment = {
            **self._carried.environment,
            "HOME": str(_home(user)),
            "USER": user,
            "PATH": SYSTEM_PATH if is_root else USER_PATH,
        }
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        become += ["--inh-caps=-all", "--bounding-set=-all"]
        words = [
            *("env", "-i", f"PATH={SYSTEM_PATH}", *([] if is_root else become), "env"),
            *(f"{name}={value}" for name, value in environment.items()),
            *("bash", "-c", f"ulimit -l {LOCKED_MEMORY_KIB} && cd && {command}"),
        ]
        # Not by exec: the shell stays, as process 1, and buries what has lost its parent.
        inner = f"{shlex.join(words)}; exit $?"
        enter = f"chroot {shlex.quote(str(self.path))} sh -c {shlex.quote(inner)}"
        return "\n".join(["set -e", *self._mounts(), "set +e", enter, "exit $?"])


def uid_of(suite: str) -> int:
    """Return the number of the ordinary user: in each suite another.

    The kernel counts what a user has locked by the number alone: with the same one, suites that
    run beside each other would use up each other's 8 MiB.
    """
    return UID_MIN + crc32(suite.encode()) % UIDS_COUNT


def _home(user: str) -> Path:
    return Path("/root") if user == "root" else HOMES / user


def run_logged(
    command: Sequence[str], log: Path, timeout_s: float, environment: dict[str, str] | None = None
) -> int:
    """Run a command, its output at the end of a file, and return its exit code; 124: too long."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            output.write(f"\nfresh: took longer than {timeout_s:g} s\n".encode())
            return EXIT_TIMEOUT
        finally:
            process.kill()
            process.wait()


def remove(path: Path) -> None:
    """Remove a directory of roots, unless something is mounted below it, which raises VmError."""
    below = f"{path.resolve()}/"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        if line.split()[4].startswith(below):
            raise VmError(f"{line.split()[4]} is mounted: nothing below {path} is removed")
    if path.exists():
        run(["rm", "-rf", "--one-file-system", str(path)], timeout_s=COMMAND_TIMEOUT_S)
