# SPDX-License-Identifier: Apache-2.0
"""Shows ingestd at work: a store, a daemon, a file through TCP and back, compared.

Everything is done by the installed `ingestd` command, as a user would do it.
What it makes lies below var/ and is used again by the next run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from prometheus_client.parser import text_string_to_metric_families

from ingestd.sizes import short_size

ROOT: Final = Path(__file__).resolve().parents[1]
VAR: Final = ROOT / "var"
STORE: Final = VAR / "demo.store"
LOG: Final = VAR / "demo.log"
PID: Final = VAR / "demo.pid"
GENERATED: Final = VAR / "random.bin"
# The command that was installed beside the interpreter that runs this.
PROGRAM: Final = str(Path(sys.executable).with_name("ingestd"))

GIB: Final = 1024**3
GENERATED_BYTES: Final = GIB
STORE_BYTES_MIN: Final = 4 * GIB
CPU_FILE_BYTES_MIN: Final = GIB // 8  # the kernel counts CPU time in ticks of 10 ms
CHUNK_BYTES: Final = 4 * 1024 * 1024
READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 30.0
POLL_INTERVAL_S: Final = 0.05


class DemoError(Exception):
    """The demo cannot go on; one sentence with the way out."""


def say(text: str = "") -> None:
    """Print at once, so that lines of the programs that we start stay in order."""
    print(text, flush=True)


def run_json(*arguments: str | Path) -> Any:
    """Run a command of ingestd that prints JSON; its progress bar and errors show as they come."""
    result = subprocess.run([PROGRAM, *arguments], stdout=subprocess.PIPE, check=False)
    if result.returncode != 0:
        raise DemoError(f"ingestd {arguments[0]} ended with exit code {result.returncode}")
    return json.loads(result.stdout)


def generate_file() -> Path:
    """Make a file of random bytes, unless an earlier run has left it."""
    if not GENERATED.exists() or GENERATED.stat().st_size != GENERATED_BYTES:
        say(f"making {GENERATED.relative_to(ROOT)}: 1 GiB of random bytes")
        with GENERATED.open("wb") as file:
            for _ in range(GENERATED_BYTES // CHUNK_BYTES):
                file.write(os.urandom(CHUNK_BYTES))
    return GENERATED


def prepare_store(file_bytes: int) -> None:
    """Make the demo's store, or make it anew when the file would not fit any more."""
    if STORE.exists():
        info = run_json("info", STORE, "--json")
        room_bytes = info["segments"]["free"] * info["segment_bytes"]
        # A segment is lost to its header, its footer and the batch that did not fit.
        if room_bytes >= file_bytes + file_bytes // 16 + 2 * info["segment_bytes"]:
            say(f"the store of the last run has room: {room_bytes / GIB:.1f} GiB")
            return
        say(f"the store of the last run has only {room_bytes / GIB:.1f} GiB left: formatting it")
        STORE.unlink()
    store_bytes = max(STORE_BYTES_MIN, -(-2 * file_bytes // GIB) * GIB)
    free_bytes = shutil.disk_usage(VAR).free
    if free_bytes < store_bytes + GIB:
        raise DemoError(
            f"{VAR}: {free_bytes / GIB:.1f} GiB are free, and the demo's store needs"
            f" {store_bytes / GIB:.0f} GiB: make room, or name a smaller file by FILE=..."
        )
    say(f"$ ingestd format {STORE.relative_to(ROOT)} --size {store_bytes // GIB}GiB")
    done = subprocess.run(
        [PROGRAM, "format", STORE, "--size", f"{store_bytes // GIB}GiB"], check=False
    )
    if done.returncode != 0:
        raise DemoError(f"ingestd format ended with exit code {done.returncode}")


def refuse_second_daemon() -> None:
    """Stop if the daemon that an earlier KEEP=1 left behind still serves the store."""
    with suppress(OSError, ValueError):
        pid = int(PID.read_text())
        if str(STORE).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            raise DemoError(f"the daemon of an earlier run still serves: stop it by: kill {pid}")


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Served:
    """The running daemon and where to find it."""

    process: subprocess.Popen[bytes]
    address: str
    metrics_url: str

    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far, in user space and in the kernel: proc(5)."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def metrics(self) -> list[Any]:
        """Every sample that the Prometheus endpoint shows now."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as answer:  # noqa: S310 (http)
            text = answer.read().decode()
        return [s for family in text_string_to_metric_families(text) for s in family.samples]

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(STOP_TIMEOUT_S)


def start_daemon() -> Served:
    """Start the daemon on free ports and wait for its `ready`."""
    address, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    say(f"$ ingestd serve --store {STORE.relative_to(ROOT)} --listen {address} --metrics {metrics}")
    command = [PROGRAM, "serve", "--store", str(STORE), "--listen", address, "--metrics", metrics]
    with LOG.open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, start_new_session=True)
    limit = time.monotonic() + READY_TIMEOUT_S
    while not any('"event": "ready"' in line for line in LOG.read_text().splitlines()):
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            raise DemoError(f"the daemon did not get ready; its log {LOG} ends:\n{LOG.read_text()}")
        time.sleep(POLL_INTERVAL_S)
    show_log()
    return Served(process, address, f"http://{metrics}/metrics")


def show_log() -> None:
    """Print the daemon's log, which is JSON, in a form for people."""
    for line in LOG.read_text().splitlines():
        fields = json.loads(line)
        event = fields.pop("event")
        del fields["level"], fields["timestamp"]
        say(f"  {event:22} {' '.join(f'{key}={value}' for key, value in fields.items())}")


def sha256_of_file(path: Path) -> str:
    """Hash a file as it lies on disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_flow(flow: str) -> str:
    """Read a flow back out of the store and hash what comes."""
    with subprocess.Popen([PROGRAM, "cat", STORE, flow], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        digest = hashlib.sha256()
        while chunk := reader.stdout.read(CHUNK_BYTES):
            digest.update(chunk)
    if reader.returncode != 0:
        raise DemoError(f"ingestd cat ended with exit code {reader.returncode}")
    return digest.hexdigest()


def send_and_compare(served: Served, path: Path) -> None:
    """Send the file, show the receipt, read the flow back, compare, and print the figures."""
    file_bytes = path.stat().st_size
    cpu_before_s, begun_s = served.cpu_s(), time.monotonic()
    say(f"$ ingestd send {path} --to {served.address} --json")
    receipt = run_json("send", path, "--to", served.address, "--json")
    taken_s, cpu_s = time.monotonic() - begun_s, served.cpu_s() - cpu_before_s
    say(f"  receipt: {json.dumps(receipt)}")
    say(f"$ ingestd cat {STORE.relative_to(ROOT)} {receipt['flow']} | sha256sum")
    ours, theirs = sha256_of_flow(receipt["flow"]), sha256_of_file(path)
    say(f"  read back {ours}")
    say(f"  sent      {theirs}")
    if ours != theirs or receipt["bytes"] != file_bytes:
        raise DemoError("what was read back is NOT what was sent")
    say("  the same")
    say()
    say(f"durable after  {taken_s:.2f} s: {short_size(int(file_bytes / taken_s))}/s")
    if file_bytes >= CPU_FILE_BYTES_MIN:
        say(f"daemon's CPU   {cpu_s * GIB / file_bytes:.2f} s per GiB")
    show_bounced(served)


def show_bounced(served: Served) -> None:
    """Print what was copied in user space, by reason, as the metrics have it."""
    bounced = [s for s in served.metrics() if s.name == "ingestd_bounced_bytes_total"]
    total = sum(int(s.value) for s in bounced)
    reasons = ", ".join(f"{s.labels['reason']} {int(s.value)}" for s in bounced if s.value)
    say(f"bytes bounced  {total}{f' ({reasons})' if reasons else ''}")


def demonstrate(arguments: argparse.Namespace) -> None:
    """The whole demo, step by step."""
    VAR.mkdir(exist_ok=True)
    refuse_second_daemon()
    path = Path(arguments.file).resolve() if arguments.file else generate_file()
    if not path.is_file():
        raise DemoError(f"{path}: is not a file: name one by FILE=...")
    prepare_store(path.stat().st_size)
    served = start_daemon()
    try:
        send_and_compare(served, path)
    except BaseException:
        served.stop()
        raise
    if arguments.keep:
        PID.write_text(f"{served.process.pid}\n")
        say(f"metrics        {served.metrics_url}")
        say(f"still running  pid {served.process.pid}, listens on {served.address}, logs to {LOG}")
        say(f"stop it by     kill {served.process.pid}")
    else:
        served.stop()
        say(f"metrics        were at {served.metrics_url}; KEEP=1 leaves the daemon running")


def main() -> NoReturn:
    """Parse the command line, run, and turn what a user can cause into one sentence."""
    parser = argparse.ArgumentParser(description="send a file through ingestd and read it back")
    parser.add_argument("--file", help="what to send (default: 1 GiB of random bytes)")
    parser.add_argument("--keep", action="store_true", help="leave the daemon running")
    try:
        demonstrate(parser.parse_args())
    except DemoError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: interrupted")
    sys.exit(0)


if __name__ == "__main__":
    main()
