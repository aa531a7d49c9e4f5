# SPDX-License-Identifier: Apache-2.0
"""The soak: lives of the daemon one after the other, under random senders and random trouble.

The first and the last life are long and without kills, so that memory can be
seen to be flat; those between are short, and most end by `kill -9`. What the
driver does is drawn from the seed; what the processes make of it is up to the
machine, so that a seed repeats a soak in kind, not to the byte. One thread
drives; each process of senders has one that reads its reports.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from ingestd.store.device.claim import is_claimed
from ingestd.store.device.opening import open_device
from ingestd.store.read.image import read_image
from soak import removal
from soak.ledger import Ledger
from soak.memory import LIFE_S_MIN, Sampler, assert_flat, look
from soak.sender import SenderProcess, serve_as_sender
from soak.served import (
    OLDEST,
    ON_FULL,
    REJECTING,
    WORKERS_COUNT,
    format_anew,
    make_daemon,
    make_stores,
)
from support.daemon import PROGRAM, run_ingestd
from support.observe import verify, wait_until

PROCESSES_COUNT: Final = 3
THREADS_COUNT: Final = 8  # of a process
ORPHANS_MAX: Final = 8
LONG_LIVES: Final = (0.3, 0.22)  # the first and the last, as parts of the whole
SHORT_LIFE_S: Final = (0.1, 5.0)
TERMINATED_OF: Final = 4  # of so many short lives, one ends by SIGTERM
PAUSE_S_MAX: Final = 3.0
SENDERS_PAUSE_S_MAX: Final = 7.0  # longer than the idle timeout
ACTION_S: Final = (0.1, 1.2)
FULL_FREE_MAX: Final = 8  # with fewer free segments a store is made anew where nothing is removed
COMPARED_LIVE_MAX: Final = 12
REMOVED_AT_ONCE_MAX: Final = 6


class Senders:
    """The processes of senders, and their reports."""

    def __init__(self, seed: int, ledger: Ledger, addresses: Any) -> None:
        self._seed = seed
        self._ledger = ledger
        self._addresses = addresses
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["soak.sender"])
        self._started_count = 0
        self._processes: list[Any] = [None] * PROCESSES_COUNT
        self._readers: list[threading.Thread] = []

    def start_all(self) -> None:
        """Start every process."""
        for number in range(PROCESSES_COUNT):
            self.start(number)

    def start(self, number: int) -> None:
        """Start one process, which resumes some of the flows that are not finished."""
        self._started_count += 1
        process = SenderProcess(
            f"{self._seed} {self._started_count}",
            self._addresses,
            THREADS_COUNT,
            self._ledger.unfinished(ORPHANS_MAX) if self._started_count > PROCESSES_COUNT else [],
        )
        ours, theirs = multiprocessing.Pipe(duplex=False)
        self._processes[number] = self._context.Process(
            target=serve_as_sender, args=(process, theirs), daemon=True
        )
        self._processes[number].start()
        theirs.close()
        reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _read(self, driver: Any) -> None:
        with driver:
            while True:
                try:
                    what = driver.recv()
                except (EOFError, OSError):
                    return
                self._ledger.note(*what)

    def pause(self, number: int, seconds: float) -> None:
        """Stop a process for a while; its connections stay as they are."""
        os.kill(self._processes[number].pid, signal.SIGSTOP)
        timer = threading.Timer(seconds, self._go_on, [self._processes[number]])
        timer.daemon = True
        timer.start()

    @staticmethod
    def _go_on(process: Any) -> None:
        if process.is_alive():
            os.kill(process.pid, signal.SIGCONT)

    def kill(self, number: int) -> None:
        """End a process in the middle of everything."""
        self._processes[number].kill()
        self._processes[number].join()

    def close(self) -> None:
        """End all; all their reports are known when this returns."""
        for number in range(PROCESSES_COUNT):
            if self._processes[number] is not None:
                self.kill(number)
        for reader in self._readers:
            reader.join()
        self._readers.clear()


def _is_served(store: Path) -> bool:
    """Return whether a process holds a store; the kernel releases one some time after its end."""
    with open_device(str(store)) as device:
        return is_claimed(device)


class Soak:
    """One soak; run() raises AssertionError with whatever was wrong."""

    def __init__(self, directory: Path, seed: int, seconds: float) -> None:
        self.ledger = Ledger({OLDEST}, WORKERS_COUNT)
        self.done: Counter[str] = Counter()
        self._seconds = seconds
        self._random = random.Random(seed)
        self._stores = make_stores(directory)
        self._daemon = make_daemon(directory, self._stores, self._random)
        self._senders = Senders(seed, self.ledger, self._daemon.addresses)
        self._sampler = Sampler()
        self._limit_s = 0.0
        self._actions: tuple[tuple[int, str, Callable[[], None]], ...] = (
            (4, "looks at the live store", self._look_live),
            (2, "pauses of the daemon", self._pause_daemon),
            (2, "pauses of senders", self._pause_senders),
            (2, "kills of senders", self._kill_senders),
            (1, "ls", self._list),
            (2, "cat", self._cat),
            (1, "verify", self._verify_live),
            (3 * removal.is_there(), "live removals", self._remove_live),
        )

    def run(self) -> str:
        """Soak, print what was done, and return a line about memory."""
        if not removal.is_there():
            print("this ingestd has no `rm`: removal of flows is NOT part of this soak")
        begun_s = time.monotonic()
        with ExitStack() as stack:
            stack.callback(self._sampler.close)
            stack.enter_context(self._daemon)
            stack.callback(self._senders.close)
            base = look(self._daemon.process.pid)
            self._senders.start_all()
            self._live(begun_s + self._seconds * LONG_LIVES[0])
            last_s = begun_s + self._seconds * (1 - LONG_LIVES[1])
            while time.monotonic() < last_s:
                self._die()
                self._live(min(last_s, time.monotonic() + self._random.uniform(*SHORT_LIFE_S)))
            self._die()
            self._live(max(begun_s + self._seconds, time.monotonic() + LIFE_S_MIN + 1))
            self._senders.close()
            self._settle(base.descriptors_count)
            self._stop()
            for name in self._stores:
                self._compare_dead(name)
        print(self._report(time.monotonic() - begun_s))
        return assert_flat(self._sampler.lives)

    # --- Lives -----------------------------------------------------------------------

    def _live(self, until_s: float) -> None:
        """Trouble everybody but the daemon's life until then."""
        self._sampler.begin(self._daemon.process.pid)
        while (left_s := until_s - time.monotonic()) > 0:
            weights = [weight for weight, _, _ in self._actions]
            _, name, action = self._random.choices(self._actions, weights)[0]
            time.sleep(min(left_s, self._random.uniform(*ACTION_S)))
            if until_s - time.monotonic() > PAUSE_S_MAX:
                action()
                self.done[name] += 1
            assert self._daemon.process.poll() is None, "the daemon has ended by itself"
            assert not self.ledger.complaints, self.ledger.complaints

    def _die(self) -> None:
        """End a life, look at what it left, and begin the next."""
        if self._random.randrange(TERMINATED_OF):
            self._daemon.kill()
            self._sampler.end()
            self.done["kill -9"] += 1
        else:
            self._stop()
        for name in self._stores:
            self._compare_dead(name)
        self._make_room()
        self._daemon.log = self._daemon.store.with_name(f"{sum(self.done.values())}.log")
        self._daemon.start()
        for recovered in self._daemon.events("recovered"):
            assert recovered["segments_damaged"] == 0, recovered
            assert recovered["warnings"] == [], recovered

    def _stop(self) -> None:
        self._sampler.end()
        assert self._daemon.stop() == 0
        self.done["stops"] += 1

    def _settle(self, descriptors_count: int) -> None:
        """When nobody sends any more, nothing of all those connections is left."""
        wait_until(
            lambda: look(self._daemon.process.pid).descriptors_count <= descriptors_count,
            f"the daemon is back at {descriptors_count} descriptors",
        )

    # --- Looking ---------------------------------------------------------------------

    def _compare_dead(self, name: str) -> None:
        """Every flow and every byte, of a store that nobody serves."""
        wait_until(lambda: not _is_served(self._stores[name]), f"{name} is let go")
        known = self.ledger.snapshot(name)
        with read_image(str(self._stores[name])) as image:
            self.ledger.compare(name, known, image)
        self._verify(name)
        self.done["whole stores compared"] += 1

    def _look_live(self) -> None:
        """Every flow, and the bytes of a few, of a store that is served."""
        name = self._any_store()
        known = self.ledger.snapshot(name)
        with read_image(str(self._stores[name])) as image:
            count = min(COMPARED_LIVE_MAX, len(image.flows))
            self.ledger.compare(name, known, image, self._random.sample(image.flows, count))

    def _list(self) -> None:
        run_ingestd("ls", self._stores[self._any_store()], "--json")

    def _verify_live(self) -> None:
        self._verify(self._any_store())

    def _verify(self, name: str) -> None:
        """Nothing is found; but for doubts where the middle of a flow was among the oldest."""
        doubts = {"doubt"} if name == OLDEST else set()
        found = verify(self._stores[name])["findings"]
        assert {finding["severity"] for finding in found} <= doubts, found

    def _cat(self) -> None:
        """The command; of a store that overwrites, the flow may go while it is read."""
        name = self._any_store()
        known = self.ledger.snapshot(name)
        sealed = [flow for flow, record in known.items() if record.checksum and not record.removal]
        if not sealed:
            return
        flow = self._random.choice(sealed)
        done = subprocess.run([PROGRAM, "cat", self._stores[name], flow], capture_output=True)
        if name == OLDEST and (done.returncode or b"begins at byte" in done.stderr):
            return
        assert done.returncode == 0, done.stderr
        self.ledger.compare_whole(known[flow], done.stdout)

    def _any_store(self) -> str:
        return self._random.choice(list(self._stores))

    # --- Trouble ---------------------------------------------------------------------

    def _pause_daemon(self) -> None:
        self._daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(self._random.uniform(0, PAUSE_S_MAX) * self._random.random())
        self._daemon.process.send_signal(signal.SIGCONT)

    def _pause_senders(self) -> None:
        number = self._random.randrange(PROCESSES_COUNT)
        self._senders.pause(number, self._random.uniform(0, SENDERS_PAUSE_S_MAX))

    def _kill_senders(self) -> None:
        number = self._random.randrange(PROCESSES_COUNT)
        self._senders.kill(number)
        self._senders.start(number)

    # --- Room ------------------------------------------------------------------------

    def _remove_live(self) -> None:
        self._remove(self._any_store(), self._random.randint(1, REMOVED_AT_ONCE_MAX))

    def _remove(self, name: str, count: int) -> None:
        flows = self.ledger.removable(name)
        chosen = self._random.sample(flows, min(count, len(flows)))
        self.done["flows removed"] += removal.remove(self.ledger, self._stores[name], chosen)

    def _make_room(self) -> None:
        """What is full is made empty: by removing flows, or by formatting the store anew."""
        path = self._stores[REJECTING]
        with read_image(str(path)) as image:
            free_count = image.segment_counts()["free"]
        if free_count > FULL_FREE_MAX:
            return
        self.done["full stores"] += 1
        if removal.is_there() and self._random.random() < 0.7:
            self._remove(REJECTING, len(self.ledger.removable(REJECTING)) // 2)
            return
        # A sender that is stopped may still have to report what it heard of the old store.
        self._senders.close()
        format_anew(path, REJECTING)
        self.ledger.forget(REJECTING)
        self._senders.start_all()

    def _report(self, seconds: float) -> str:
        flows_count, sealed_count = self.ledger.counts()
        done = ", ".join(f"{count} {name}" for name, count in sorted(self.done.items()))
        on_full = ", ".join(f"{name}: {policy}" for name, policy in ON_FULL.items())
        return (
            f"{seconds:.0f} s, stores {on_full}: {done}\n"
            f"{flows_count} flows at the end, {sealed_count} of them with a receipt;"
            f" {self.ledger.acknowledged_bytes} bytes acknowledged,"
            f" {self.ledger.compared_bytes} compared,"
            f" {self.ledger.heads_missing_count} times a flow was seen without its head"
        )
