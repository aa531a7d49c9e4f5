# SPDX-License-Identifier: Apache-2.0
"""Metrics: every name and label, what they mean, the endpoint, and the files that use them."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families as text_families

from ingestd import __version__
from ingestd.daemon.placement.store_states import Reason
from ingestd.daemon.telemetry.metrics import IngestdCollector
from ingestd.daemon.telemetry.negotiation import OPENMETRICS_ACCEPT, TEXT_ACCEPT
from ingestd.daemon.workers.engine import EngineChoice
from support.fake_core import FakeCore, counter_names
from support.fake_store import MIB, FakeStore

ROOT = Path(__file__).resolve().parents[4]
REFUSED = {("data", "in", "unauthorised"): 3}
BOUNDS_NS = FakeCore.HISTOGRAM_BOUNDS_NS

# Exported name -> its labels besides store and worker, or besides store.
WORKER_NAMES = {
    "ingestd_received_bytes_total": set(),
    "ingestd_written_bytes_total": set(),
    "ingestd_durable_bytes_total": set(),
    "ingestd_bounced_bytes_total": {"reason"},
    "ingestd_kernel_copied_bytes_total": set(),
    "ingestd_padding_bytes_total": set(),
    "ingestd_header_bytes_total": set(),
    "ingestd_direct_bytes_total": set(),
    "ingestd_flows_by_copy_total": set(),
    "ingestd_flows_handed_away_total": set(),
    "ingestd_alloc_failures_total": set(),
    "ingestd_chunks": {"state"},
    "ingestd_rx_buf_bytes": set(),
    "ingestd_zero_copy_ratio": set(),
    "ingestd_batches_total": set(),
    "ingestd_flushes_total": set(),
    "ingestd_commits_total": set(),
    "ingestd_write_retries_total": set(),
    "ingestd_write_latency_seconds_bucket": {"le"},
    "ingestd_write_latency_seconds_count": set(),
    "ingestd_write_latency_seconds_sum": set(),
    "ingestd_flush_latency_seconds_bucket": {"le"},
    "ingestd_flush_latency_seconds_count": set(),
    "ingestd_flush_latency_seconds_sum": set(),
    "ingestd_connections": {"state"},
    "ingestd_flows_total": {"outcome"},
    "ingestd_flows_resumed_total": set(),
    "ingestd_connections_denied_total": {"reason"},
    "ingestd_ack_latency_seconds_bucket": {"le"},
    "ingestd_ack_latency_seconds_count": set(),
    "ingestd_ack_latency_seconds_sum": set(),
    "ingestd_commit_bytes_bucket": {"le"},
    "ingestd_commit_bytes_count": set(),
    "ingestd_commit_bytes_sum": set(),
    "ingestd_durable_lines_total": set(),
    "ingestd_area_bytes": {"state"},
    "ingestd_area_hugepage_bytes": set(),
    "ingestd_writes_in_flight": set(),
    "ingestd_backpressure_seconds_total": {"cause"},
    "ingestd_flows_waiting": set(),
    "ingestd_events_dropped_total": set(),
    "ingestd_accept_errors_total": set(),
    "ingestd_worker_loop_age_seconds": set(),
    "ingestd_device_age_seconds": set(),
}
STORE_NAMES = {
    "ingestd_store_bytes": {"state"},
    "ingestd_store_failed": set(),
    "ingestd_store_full": set(),
    "ingestd_store_out_seconds": {"reason"},
    "ingestd_segments": {"state"},
    "ingestd_segments_overwritten_total": set(),
    "ingestd_overwritten_bytes_total": set(),
    "ingestd_store_overwrites": set(),
    "ingestd_flows_removed_total": {"reason"},
    "ingestd_segments_freed_total": {"reason"},
    "ingestd_freed_bytes_total": {"reason"},
    "ingestd_removed_flows": set(),
    "ingestd_removed_flows_room": set(),
    "ingestd_removed_flows_held": set(),
    "ingestd_segments_waiting_for_removal_room": set(),
    "ingestd_discarded_bytes_total": set(),
    "ingestd_store_warn_free_ratio": set(),
    "ingestd_maintenance_failed": set(),
    "ingestd_refused_total": {"listener", "reason"},
    "ingestd_lookups_waiting": set(),
}
PROCESS_NAMES = {
    "ingestd_log_records_dropped_total": set(),
    "ingestd_engine_info": {"engine", "reason"},
    "ingestd_build_info": {"version", "python", "kernel"},
}
EXPORTED = {
    **{name: labels | {"store", "worker"} for name, labels in WORKER_NAMES.items()},
    **{name: labels | {"store"} for name, labels in STORE_NAMES.items()},
    **PROCESS_NAMES,
}


class FakeWorker:
    """What the collector asks of a WorkerThread; each counter is its own number."""

    def __init__(self, store_name: str, index: int) -> None:
        self.store_name = store_name
        self.index = index
        self.values = {name: number + 1 for number, name in enumerate(counter_names())}
        self.values.update(store_errno=0, store_is_full=0, segments_ready=1)

    def counters(self) -> dict[str, int]:
        return dict(self.values)

    def histograms(self) -> dict[str, tuple[int, ...]]:
        none = (0, 0, 0, 0)
        return {
            "write_latency": (5, 0, 2, 1),
            "flush_latency": none,
            "ack_latency": none,
            "commit_bytes": (1, 0, 2, 3),
        }

    def loop_age_s(self) -> float:
        return 0.25


@pytest.fixture
def workers() -> list[FakeWorker]:
    return [FakeWorker("data", 0), FakeWorker("data", 1), FakeWorker("more", 0)]


@pytest.fixture
def collector(workers: list[FakeWorker]) -> IngestdCollector:
    stores = {"data": FakeStore(taken_count=3), "more": FakeStore(segments_count=4)}
    return IngestdCollector(
        workers,
        stores,
        EngineChoice("recv", "asked for"),
        FakeCore(),
        dict(REFUSED),
        {"data": 12.5, "more": 0},
        lambda: {"more": "no flush"},
        lambda: 5,
        {"data": 0, "more": 3},
        lambda name: {Reason.FULL: 2.5} if name == "more" else {},
    )


def _samples(collector: IngestdCollector) -> dict[tuple[str, frozenset[Any]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def _value(samples: dict[Any, float], name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_names_and_labels(collector: IngestdCollector) -> None:
    found: dict[str, set[str]] = {}
    for family in collector.collect():
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert found.setdefault(sample.name, set(sample.labels)) == set(sample.labels)
    assert found == EXPORTED


def test_every_counter_of_the_core_is_exported(
    workers: list[FakeWorker], collector: IngestdCollector
) -> None:
    """A counter that is added to core/base/stats.h must not be forgotten here."""
    read: set[str] = set()

    class Noting(dict[str, int]):
        def __getitem__(self, name: str) -> int:
            read.add(name)
            return super().__getitem__(name)

    workers[0].counters = lambda: Noting(workers[0].values)
    list(collector.collect())
    # The size of the area is the sum of its parts; turns are reported by their age.
    unexported = {"loop_turns", "loop_beat_ns", "segments_used", "segments_wanted"}
    assert set(counter_names()) - read <= unexported


def test_values(workers: list[FakeWorker], collector: IngestdCollector) -> None:
    worker = {"store": "data", "worker": "1"}
    values = workers[1].values
    values["backpressure_area_ns"] = 1_500_000_000
    values["write_latency_sum_ns"] = 250_000_000
    samples = _samples(collector)
    assert _value(samples, "ingestd_received_bytes_total", **worker) == values["received_bytes"]
    for reason in ("head", "tail", "small", "boundary", "pressure", "trailer"):
        bounced = _value(samples, "ingestd_bounced_bytes_total", reason=reason, **worker)
        assert bounced == values[f"bounced_{reason}_bytes"]
    for outcome in ("opened", "sealed", "interrupted", "refused"):
        count = _value(samples, "ingestd_flows_total", outcome=outcome, **worker)
        assert count == values[f"flows_{outcome}"]
    open_flows = _value(samples, "ingestd_connections", state="open", **worker)
    assert open_flows == values["flows_open"]
    assert _value(samples, "ingestd_backpressure_seconds_total", cause="area", **worker) == 1.5
    assert _value(samples, "ingestd_worker_loop_age_seconds", **worker) == 0.25
    assert _value(samples, "ingestd_write_latency_seconds_sum", **worker) == 0.25
    assert _value(samples, "ingestd_commit_bytes_sum", **worker) == values["durable_bytes"]
    assert _value(samples, "ingestd_commit_bytes_bucket", le="16384.0", **worker) == 3
    refused = {"store": "data", "listener": "in", "reason": "unauthorised"}
    assert _value(samples, "ingestd_refused_total", **refused) == 3
    assert _value(samples, "ingestd_engine_info", engine="recv", reason="asked for") == 1
    (build,) = [dict(labels) for name, labels in samples if name == "ingestd_build_info"]
    assert build["version"] == __version__


def test_chunks(workers: list[FakeWorker], collector: IngestdCollector) -> None:
    worker = {"store": "data", "worker": "1"}
    workers[1].values.update(chunks_lent=10, rx_buf_len=4096, area_bytes=64 * 4096)
    samples = _samples(collector)
    assert _value(samples, "ingestd_chunks", state="lent", **worker) == 10
    assert _value(samples, "ingestd_chunks", state="kernel", **worker) == 54
    assert _value(samples, "ingestd_rx_buf_bytes", **worker) == 4096
    workers[1].values.update(chunks_lent=0, rx_buf_len=0)
    assert _value(_samples(collector), "ingestd_chunks", state="kernel", **worker) == 0


@pytest.mark.parametrize(
    ("direct", "bounced", "by_kernel", "ratio"),
    [(900, 100, 0, 0.9), (1000, 0, 0, 1), (900, 100, 300, 0.6), (500, 500, 1000, 0), (0, 7, 0, 0)],
)
def test_zero_copy_ratio(
    workers: list[FakeWorker],
    collector: IngestdCollector,
    direct: int,
    bounced: int,
    by_kernel: int,
    ratio: float,
) -> None:
    values = dict.fromkeys(workers[0].values, 0)
    values.update(direct_bytes=direct, bounced_tail_bytes=bounced, kernel_copied_bytes=by_kernel)
    workers[0].values = values
    samples = _samples(collector)
    found = _value(samples, "ingestd_zero_copy_ratio", store="data", worker="0")
    assert found == pytest.approx(ratio)


def test_no_ratio_before_the_first_byte(
    workers: list[FakeWorker], collector: IngestdCollector
) -> None:
    workers[0].values = dict.fromkeys(workers[0].values, 0)
    found = _value(_samples(collector), "ingestd_zero_copy_ratio", store="data", worker="0")
    assert math.isnan(found)


def test_buckets_add_up(collector: IngestdCollector) -> None:
    samples = _samples(collector)
    buckets = {
        float(dict(labels)["le"]): value
        for (name, labels), value in samples.items()
        if name == "ingestd_write_latency_seconds_bucket"
        and {("store", "data"), ("worker", "0")} <= labels
    }
    assert buckets == {1e-05: 5, 0.001: 5, 1.0: 7, math.inf: 8}
    count = _value(samples, "ingestd_write_latency_seconds_count", store="data", worker="0")
    assert count == 8


def test_stores(workers: list[FakeWorker], collector: IngestdCollector) -> None:
    samples = _samples(collector)
    states = {
        state: _value(samples, "ingestd_segments", store="data", state=state)
        for state in ("free", "ready", "used")
    }
    assert states == {"free": 5, "ready": 2, "used": 1}  # 8 segments, 3 taken, 2 workers
    free = _value(samples, "ingestd_store_bytes", store="data", state="free")
    used = _value(samples, "ingestd_store_bytes", store="data", state="used")
    assert (free, used) == (7 * 8 * MIB, 8 * MIB)
    for name in ("ingestd_store_failed", "ingestd_store_full"):
        assert _value(samples, name, store="data") == 0
    assert _value(samples, "ingestd_store_warn_free_ratio", store="data") == 0.125
    assert _value(samples, "ingestd_store_warn_free_ratio", store="more") == 0
    workers[1].values.update(store_errno=5, store_is_full=1)
    samples = _samples(collector)
    assert _value(samples, "ingestd_store_out_seconds", store="more", reason="full") == 2.5
    assert _value(samples, "ingestd_store_out_seconds", store="data", reason="full") == 0
    for name in ("ingestd_store_failed", "ingestd_store_full"):
        assert _value(samples, name, store="data") == 1
        assert _value(samples, name, store="more") == 0


# --- Formats ----------------------------------------------------------------------------


def _exposed(collector: IngestdCollector, accept: str) -> str:
    """What a scrape gets, the process's own figures included."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    encoder, _ = choose_encoder(accept)
    return encoder(registry).decode()


def test_openmetrics_accepts_every_family(collector: IngestdCollector) -> None:
    """The strict parser: no clash of names, suffixes as the types demand, buckets in order."""
    families = list(openmetrics_families(_exposed(collector, OPENMETRICS_ACCEPT)))
    names = {sample.name for family in families for sample in family.samples}
    assert set(EXPORTED) <= names
    assert {f.type for f in families} == {"counter", "gauge", "histogram", "info"}


def test_both_formats_have_the_same_samples(collector: IngestdCollector) -> None:
    """Whoever goes from one to the other finds every series again."""
    text = text_families(_exposed(collector, TEXT_ACCEPT))
    openmetrics = openmetrics_families(_exposed(collector, OPENMETRICS_ACCEPT))
    found = [
        {
            (sample.name, frozenset(sample.labels.items()))
            for family in families
            for sample in family.samples
            if sample.name.startswith("ingestd_")
        }
        for families in (text, openmetrics)
    ]
    assert found[0] == found[1]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing")
def test_promtool_finds_nothing_to_object_to(collector: IngestdCollector, tmp_path: Path) -> None:
    """By its linter, and by Prometheus' own parser of OpenMetrics, which wants times."""
    text = _exposed(collector, TEXT_ACCEPT)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    lines = _exposed(collector, OPENMETRICS_ACCEPT).splitlines()
    dated = [line if line.startswith("#") else f"{line} 1700000000" for line in lines]
    file = tmp_path / "openmetrics"
    file.write_text("\n".join(dated) + "\n", encoding="utf-8")
    done = subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", file, tmp_path / "blocks"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert any((tmp_path / "blocks").iterdir())


# --- Files that use the names -----------------------------------------------------------

_NAME = re.compile(r"\bingestd_[a-z_]+\b")


def _expressions(value: Any) -> Iterator[str]:
    """Every "expr" or "query" in a tree of JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("expr", "query", "definition") and isinstance(inner, str):
                yield inner
            yield from _expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _expressions(inner)


def test_the_dashboard_uses_names_that_exist() -> None:
    board = json.loads((ROOT / "config" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    used = {name for text in _expressions(board) for name in _NAME.findall(text)}
    assert used <= set(EXPORTED)
    # Whoever looks at it sees bytes, copies, latencies, back-pressure and stores.
    assert {
        "ingestd_received_bytes_total",
        "ingestd_durable_bytes_total",
        "ingestd_bounced_bytes_total",
        "ingestd_write_latency_seconds_bucket",
        "ingestd_backpressure_seconds_total",
        "ingestd_store_bytes",
        "ingestd_store_warn_free_ratio",
        "ingestd_overwritten_bytes_total",
        "ingestd_ack_latency_seconds_bucket",
        "ingestd_refused_total",
        "ingestd_flows_resumed_total",
        "ingestd_zero_copy_ratio",
    } <= used
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
    for panel, other in itertools.combinations((panel["gridPos"] for panel in board["panels"]), 2):
        beside = panel["x"] + panel["w"] <= other["x"] or other["x"] + other["w"] <= panel["x"]
        above = panel["y"] + panel["h"] <= other["y"] or other["y"] + other["h"] <= panel["y"]
        assert beside or above, (panel, other)


def test_the_alerts_use_names_that_exist() -> None:
    text = (ROOT / "config" / "prometheus-rules.yml").read_text(encoding="utf-8")
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert set(_NAME.findall(code)) <= set(EXPORTED)
    alerts = re.findall(r"^\s+- alert: (\w+)$", text, re.MULTILINE)
    assert {
        "IngestdStoreFullSoon",
        "IngestdStoreFull",
        "IngestdStoreFailed",
        "IngestdEventsDropped",
        "IngestdBackpressure",
        "IngestdWorkerStuck",
        "IngestdNothingDurable",
    } <= set(alerts)
    assert len(set(alerts)) == len(alerts)
    for key in ("expr", "summary", "description", "severity"):
        assert len(re.findall(rf"^\s+{key}:", text, re.MULTILINE)) == len(alerts), key


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing")
def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    rules = ROOT / "config" / "prometheus-rules.yml"
    text = (ROOT / "tests/unit/prometheus_rules_test.yml").read_text(encoding="utf-8")
    script = tmp_path / "test.yml"
    script.write_text(text.replace("[RULES]", f"[{rules}]"), encoding="utf-8")
    result = subprocess.run(
        ["promtool", "test", "rules", str(script)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
