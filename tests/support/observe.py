# SPDX-License-Identifier: Apache-2.0
"""What tests look at: flows and bytes as the command line shows them, metrics, memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from ingestd.store.read.image import read_image
from ingestd.store.read.reader import read_flow
from support import tally
from support.daemon import PROGRAM, Daemon, run_ingestd
from support.patience import WAIT_S
from support.payload import Payload
from support.senders import Receipt, Sent

READ_BYTES: Final = 1024 * 1024
POLL_INTERVAL_S: Final = 0.05
MIB: Final = 1024 * 1024
# What the daemon may use beside its area, whatever the load.
RSS_BEYOND_AREA_MAX: Final = 64 * MIB


def wait_until(holds: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """Return the first true value of holds(); fail when none comes in time."""
    limit = time.monotonic() + timeout_s
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < limit, f"not within {timeout_s} s: {what}"
        time.sleep(POLL_INTERVAL_S)


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of a name that have these labels; there must be one."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert found, f"no sample {name} {labels}"
        return sum(found)


def scrape(daemon: Daemon) -> Metrics:
    """Ask the daemon for its metrics."""
    with urllib.request.urlopen(daemon.metrics_url, timeout=WAIT_S) as answer:
        return Metrics(answer.read().decode())


def list_flows(store: Path) -> list[dict[str, Any]]:
    """What `ingestd ls --json` shows."""
    return [json.loads(line) for line in run_ingestd("ls", store, "--json").stdout.splitlines()]


def flow_of(store: Path, flow: str) -> dict[str, Any]:
    """One flow of the list, by its whole id."""
    (found,) = [entry for entry in list_flows(store) if entry["flow"] == flow]
    return found


def flows_by_peer(store: Path) -> dict[str, dict[str, Any]]:
    """The list by the sender's end of the connection."""
    return {entry["peer"]: entry for entry in list_flows(store)}


def cat_sha256(store: Path, flow: str) -> str:
    """The hash of what `ingestd cat` writes to a pipe."""
    command = [PROGRAM, "cat", str(store), flow]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stderr is not None
        digest = hashlib.sha256()
        while chunk := reader.stdout.read(READ_BYTES):
            digest.update(chunk)
        errors = reader.stderr.read().decode(errors="replace")
    assert reader.returncode == 0, errors
    return digest.hexdigest()


def cat(store: Path, flow: str, *flags: str) -> bytes:
    """What `ingestd cat` writes."""
    return run_ingestd("cat", store, flow, *flags).stdout


def image_sha256(store: Path, flows: Iterable[str]) -> dict[str, str]:
    """The same through the library that `cat` calls: for flows too many to start it for each."""
    result = {}
    for flow, pieces in _read(store, flows):
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        result[flow] = digest.hexdigest()
    return result


def image_bytes(store: Path, flows: Iterable[str]) -> dict[str, bytes]:
    """The bytes themselves, of flows that are small."""
    return {
        flow: b"".join(bytes(piece) for piece in pieces) for flow, pieces in _read(store, flows)
    }


def _read(store: Path, flows: Iterable[str]) -> Iterator[tuple[str, Iterator[Any]]]:
    with read_image(str(store)) as image:
        by_id = {flow.flow: flow for flow in image.flows}
        for flow in flows:
            yield flow, read_flow(image, by_id[flow])


def verify(store: Path) -> dict[str, Any]:
    """Run `ingestd verify`, which must find the store intact."""
    report: dict[str, Any] = json.loads(run_ingestd("verify", store, "--json").stdout)
    return report


def assert_clean(store: Path) -> None:
    """Nothing at all is to be found in a store that nobody serves."""
    report = verify(store)
    assert report["findings"] == [], report["findings"]


def assert_stored(store: Path, sent: list[Sent], cat_count: int = 3) -> None:
    """`ls` shows every flow sealed and whole, and reading gives back what was sent.

    Every flow is read through the library, cat_count of them, the smallest and
    the largest among them, by `ingestd cat` as well.
    """
    with tally.acknowledged(sum(flow.payload.size for flow in sent)):
        _assert_stored(store, sent, cat_count)


def _assert_stored(store: Path, sent: list[Sent], cat_count: int) -> None:
    listed = {entry["flow"]: entry for entry in list_flows(store)}
    for flow in sent:
        entry = listed[flow.flow]
        assert entry["state"] == "sealed", entry
        assert entry["bytes"] == entry["durable_bytes"] == flow.payload.size, entry
        assert entry["checksum"] == flow.receipt["checksum"], entry
    if not sent:
        return
    ordered = sorted(sent, key=lambda flow: flow.payload.size)
    step = max(1, len(ordered) // cat_count)
    sample = {flow.flow: flow for flow in [*ordered[::step], ordered[-1]]}
    rest = [flow for flow in ordered if flow.flow not in sample]
    found = image_sha256(store, [flow.flow for flow in rest])
    with ThreadPoolExecutor(2) as pool:
        found |= zip(sample, pool.map(lambda flow: cat_sha256(store, flow), sample), strict=True)
    for flow in sent:
        assert found[flow.flow] == flow.payload.sha256(), flow


def assert_claims(store: Path, answers: Iterable[tuple[Payload, Receipt]]) -> None:
    """Answers other than sealed: what they call durable is there, and is what was sent.

    More than they claim may be there, but never anything else, and never as sealed.
    """
    listed = {entry["flow"]: entry for entry in list_flows(store)}
    claims = [(payload, receipt) for payload, receipt in answers if receipt["state"] != "sealed"]
    for _, receipt in claims:
        if receipt["flow"] not in listed:
            assert (receipt["bytes"], receipt["durable"]) == (0, False), receipt
    held = [(p, r, listed[r["flow"]]) for p, r in claims if r["flow"] in listed]
    hashes = image_sha256(store, [receipt["flow"] for _, receipt, _ in held])
    for payload, receipt, entry in held:
        assert entry["state"] != "sealed", (entry, receipt)
        assert payload.size >= entry["bytes"] >= receipt["bytes"], (entry, receipt)
        assert hashes[receipt["flow"]] == payload.sha256(entry["bytes"]), (entry, receipt)


def assert_adds_up(daemon: Daemon, flows_bytes: int) -> None:
    """Once nothing is under way: received = flows' bytes = durable, and every write explained.

    Engine recv copies only what is short; what it writes is payload, padding and headers, to the
    byte.
    """

    def has_settled() -> bool:
        shot = scrape(daemon)
        explained = (
            shot.total("ingestd_durable_bytes_total")
            + shot.total("ingestd_padding_bytes_total")
            + shot.total("ingestd_header_bytes_total")
        )
        return explained == shot.total("ingestd_written_bytes_total")

    wait_until(has_settled, "written bytes = durable payload + padding + headers")
    shot = scrape(daemon)
    assert shot.total("ingestd_received_bytes_total") == flows_bytes
    assert shot.total("ingestd_durable_bytes_total") == flows_bytes
    short_bytes = shot.total("ingestd_bounced_bytes_total", reason="small")
    assert shot.total("ingestd_direct_bytes_total") + short_bytes == flows_bytes
    assert shot.total("ingestd_kernel_copied_bytes_total") == flows_bytes
    assert shot.total("ingestd_bounced_bytes_total") == short_bytes
    assert shot.total("ingestd_connections", state="open") == 0
    assert shot.total("ingestd_writes_in_flight") == 0
    area = {s: shot.total("ingestd_area_bytes", state=s) for s in ("receiving", "writing")}
    assert area == {"receiving": 0, "writing": 0}


def rss_bytes(daemon: Daemon) -> int:
    """The daemon's resident memory: VmRSS of proc(5)."""
    return _status_bytes(daemon, "VmRSS")


def rss_bytes_max(daemon: Daemon) -> int:
    """The most that it ever was: VmHWM of proc(5)."""
    return _status_bytes(daemon, "VmHWM")


def _status_bytes(daemon: Daemon, key: str) -> int:
    """A size of /proc/PID/status; memory on hugepages is not in it."""
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024
