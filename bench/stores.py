# SPDX-License-Identifier: Apache-2.0
"""make bench-stores: what flows of well stores notice when another store behind the port hangs.

    python bench/stores.py [--rounds 5] [--seconds 5] [--senders 64] [--directory build]

Three stores behind one port; each sender sends one long flow, as fast as it is taken, so that each
store has a third of them. (Senders of short flows would all come to wait for the third store one
after the other, before it is known to hang.) In each round the bytes that became durable in two of
the stores are counted for a while, first with all stores well, then with the file system of the
third one frozen, so that no write to it ends.
Needs root, a loop device and some 2 GiB; prints the figures, and writes no document.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
# Behind the installed package: the source tree's `ingestd` has no compiled core.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path += [str(ROOT), str(ROOT / "tests")]  # for `bench` and `support`

from support.daemon import Daemon, format_store  # noqa: E402
from support.loop import frozen, loop_device, make_ext4, mounted  # noqa: E402
from support.observe import scrape, wait_until  # noqa: E402
from support.stores import MIB, write_config  # noqa: E402

WELL: Final = ("default", "b")
SICK: Final = "c"
PIECE: Final = bytes(256 * 1024)
GOAL: Final = 0.9


class Round(NamedTuple):
    """Bytes a second that became durable in the well stores."""

    all_well: float
    one_hangs: float


class Senders:
    """Threads that send a flow each until stop()."""

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self._address = address
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(count)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End with the flows that are under way."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        with suppress(OSError), socket.create_connection(self._address) as sock:
            while not self._is_over.is_set():
                sock.sendall(PIECE)
            sock.shutdown(socket.SHUT_WR)
            sock.recv(4096)


def durable_rate(daemon: Daemon, seconds: float) -> float:
    """Return how fast bytes become durable in the well stores, in bytes a second."""

    def total() -> float:
        shot = scrape(daemon)
        return sum(shot.total("ingestd_durable_bytes_total", store=name) for name in WELL)

    before, began_s = total(), time.monotonic()
    time.sleep(seconds)
    return (total() - before) / (time.monotonic() - began_s)


def measure(daemon: Daemon, directory: Path, rounds: int, seconds: float) -> list[Round]:
    """Measure each round twice, and print it."""
    results = []
    for number in range(rounds):
        all_well = durable_rate(daemon, seconds)
        outs = len(daemon.events("store_out"))
        with frozen(directory):
            wait_until(lambda outs=outs: len(daemon.events("store_out")) > outs, "it to stall")
            one_hangs = durable_rate(daemon, seconds)
        backs = len(daemon.events("store_out"))
        wait_until(lambda backs=backs: len(daemon.events("store_back")) >= backs, "it to be well")
        results.append(Round(all_well, one_hangs))
        print(
            f"round {number + 1}: {all_well / MIB:.0f} MiB/s with all stores well,"
            f" {one_hangs / MIB:.0f} MiB/s while {SICK} hangs: {one_hangs / all_well:.2f} x",
            flush=True,
        )
    return results


def main() -> int:
    """Measure; return 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--senders", type=int, default=64)
    parser.add_argument("--directory", type=Path, default=ROOT / "build")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=arguments.directory) as name,
        loop_device(Path(name, "fs.img"), 700 * MIB) as device,
    ):
        make_ext4(device)
        with mounted(device, Path(name, "mnt")) as directory:
            places = {"default": Path(name), "b": Path(name), SICK: directory}
            paths = {
                store: format_store(place / f"{store}.img", "--segment-size", "8MiB", size="512MiB")
                for store, place in places.items()
            }
            tables = {
                store: {"path": str(path), "on_full": "overwrite-oldest", "stall_after_s": 1}
                for store, path in paths.items()
            }
            config = write_config(
                Path(name, "node.toml"),
                store={store: {**table, "area": "32MiB"} for store, table in tables.items()},
                listener={"default": {"stores": list(paths)}},
            )
            with Daemon(paths["default"], config=config, log=Path(name, "daemon.log")) as daemon:
                senders = Senders(daemon.address, arguments.senders)
                senders.start()
                time.sleep(2)
                results = measure(daemon, directory, arguments.rounds, arguments.seconds)
                senders.stop()
                daemon.stop()
    ratio = median(one.one_hangs / one.all_well for one in results)
    print(f"median of {len(results)} rounds: {ratio:.2f} x (goal: {GOAL} x)")
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
