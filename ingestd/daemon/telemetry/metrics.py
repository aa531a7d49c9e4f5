# SPDX-License-Identifier: Apache-2.0
"""The collector of all metrics: what workers and stores count, read at each scrape.

Invariants:
 - Nothing is stored here: a scrape reads the workers' counters, and counters
   only grow, as the core's do.
 - No two families share a name, also without the suffixes of their samples, as OpenMetrics
   demands.
 - Every series of a worker has the labels store and worker, every series of a
   store has the label store.

Scrapes run on the HTTP server's threads and only read.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ingestd import __version__
from ingestd.daemon.placement.store_states import Reason, device_age_s
from ingestd.daemon.telemetry.capacity_metrics import (
    maintenance_failed_family,
    overwritten_families,
    reclaim_families,
    warn_free_family,
)
from ingestd.daemon.telemetry.core_counters import (
    BACKPRESSURE,
    BOUNCED,
    COUNTERS,
    GAUGES,
    LATENCIES,
    Family,
)
from ingestd.daemon.workers.engine import EngineChoice

if TYPE_CHECKING:
    from ingestd.daemon.workers.worker import Core, WorkerThread
    from ingestd.store.serve.served_store import ServedStore

NS_PER_S: Final = 1e9
_WORKER: Final = ("store", "worker")


class IngestdCollector(Collector):
    """Reads workers and stores at each scrape; the two sequences may not change."""

    def __init__(
        self,
        workers: Sequence[WorkerThread],
        stores: Mapping[str, ServedStore],
        engine: EngineChoice,
        core: Core,
        refused_counts: dict[tuple[str, str, str], int],
        warn_free_percents: Mapping[str, float],
        maintenance_failures: Callable[[], Mapping[str, str]],
        log_dropped_count: Callable[[], int],
        lookups_waiting_counts: Mapping[str, int],
        reasons_out: Callable[[str], Mapping[Reason, float]],
    ) -> None:
        self._reasons_out = reasons_out
        self._lookups_waiting_counts = lookups_waiting_counts
        self._maintenance_failures = maintenance_failures
        self._log_dropped_count = log_dropped_count
        self._warn_free_percents = warn_free_percents
        self._workers = workers
        self._stores = stores
        self._engine = engine
        self._refused_counts = refused_counts
        self._bounds_s = [bound / NS_PER_S for bound in core.HISTOGRAM_BOUNDS_NS]
        self._bounds_bytes = [float(bound) for bound in core.HISTOGRAM_BOUNDS_BYTES]

    def collect(self) -> Iterator[Metric]:
        """Yield every family with the samples of this moment."""
        shots = [(worker, worker.counters()) for worker in self._workers]
        yield from self._counters(shots)
        yield from self._gauges(shots)
        yield from self._latencies(shots)
        yield from self._stores_families(shots)
        yield from overwritten_families(self._stores)
        yield from reclaim_families(self._stores)
        yield warn_free_family(self._warn_free_percents)
        yield maintenance_failed_family(self._stores, self._maintenance_failures())
        yield self._log_dropped()
        yield self._refused()
        yield self._lookups_waiting()
        yield self._engine_info()
        yield _build_info()

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry then does not scrape to learn the names."""
        return []

    def _counters(self, shots: _Shots) -> Iterator[Metric]:
        for family in COUNTERS:
            counter = CounterMetricFamily(family.name, family.help, labels=_labels(family))
            yield _filled(counter, family, shots)
        waited = CounterMetricFamily(
            "ingestd_backpressure_seconds",
            "Time in which some flow was held back, by the cause.",
            labels=[*_WORKER, "cause"],
        )
        for worker, counters in shots:
            for cause, name in BACKPRESSURE.items():
                waited.add_metric([*_of(worker), cause], counters[name] / NS_PER_S)
        yield waited

    def _gauges(self, shots: _Shots) -> Iterator[Metric]:
        for family in GAUGES:
            gauge = GaugeMetricFamily(family.name, family.help, labels=_labels(family))
            yield _filled(gauge, family, shots)
        yield from self._zero_copy(shots)
        age = GaugeMetricFamily(
            "ingestd_worker_loop_age_seconds",
            "Time since the worker's loop last ran; it runs at least once a second.",
            labels=_WORKER,
        )
        oldest = GaugeMetricFamily(
            "ingestd_device_age_seconds",
            "Time for which the oldest write or flush has been under way; 0: none is.",
            labels=_WORKER,
        )
        for worker, counters in shots:
            age.add_metric(_of(worker), worker.loop_age_s())
            oldest.add_metric(_of(worker), device_age_s(counters, time.monotonic_ns()))
        yield from (age, oldest)

    def _zero_copy(self, shots: _Shots) -> Iterator[Metric]:
        chunks = GaugeMetricFamily(
            "ingestd_chunks",
            "Chunks of the area: lent ones hold data, kernel ones can be filled by the NIC.",
            labels=[*_WORKER, "state"],
        )
        ratio = GaugeMetricFamily(
            "ingestd_zero_copy_ratio",
            "Share of the payload written so far that was not copied, as far as ingestd and the"
            " kernel count copies; NaN before the first byte.",
            labels=_WORKER,
        )
        for worker, counters in shots:
            lent = counters["chunks_lent"]
            size = counters["rx_buf_len"]
            total = counters["area_bytes"] // size if size else 0
            chunks.add_metric([*_of(worker), "lent"], lent)
            chunks.add_metric([*_of(worker), "kernel"], max(0, total - lent))
            ratio.add_metric(_of(worker), zero_copy_ratio(counters))
        yield from (chunks, ratio)

    def _latencies(self, shots: _Shots) -> Iterator[Metric]:
        counts = [(worker, worker.histograms(), counters) for worker, counters in shots]
        for name, (source, text) in LATENCIES.items():
            family = HistogramMetricFamily(name, text, labels=_WORKER)
            for worker, histograms, counters in counts:
                family.add_metric(
                    _of(worker),
                    _buckets(self._bounds_s, histograms[source]),
                    counters[f"{source}_sum_ns"] / NS_PER_S,
                )
            yield family
        sizes = HistogramMetricFamily(
            "ingestd_commit_bytes", "Payload bytes that a commit made durable.", labels=_WORKER
        )
        for worker, histograms, counters in counts:
            buckets = _buckets(self._bounds_bytes, histograms["commit_bytes"])
            sizes.add_metric(_of(worker), buckets, counters["durable_bytes"])
        yield sizes

    def _stores_families(self, shots: _Shots) -> Iterator[Metric]:
        sizes = GaugeMetricFamily(
            "ingestd_store_bytes", "Bytes of a store's segments by use.", labels=["store", "state"]
        )
        segments = GaugeMetricFamily(
            "ingestd_segments",
            "Segments of a store: ready ones are granted to a worker and not yet opened.",
            labels=["store", "state"],
        )
        failed = GaugeMetricFamily(
            "ingestd_store_failed", "1 if the store failed.", labels=["store"]
        )
        full = GaugeMetricFamily(
            "ingestd_store_full",
            "1 if no segment can be granted to a worker of the store.",
            labels=["store"],
        )
        for name, store in self._stores.items():
            own = [counters for worker, counters in shots if worker.store_name == name]
            ready = sum(counters["segments_ready"] for counters in own)
            free = store.segments_free_count
            used = store.superblock.segment_count - free - ready
            for state, count in (("free", free), ("ready", ready), ("used", max(0, used))):
                segments.add_metric([name, state], count)
            unit = store.superblock.segment_bytes
            sizes.add_metric([name, "free"], (free + ready) * unit)
            sizes.add_metric([name, "used"], max(0, used) * unit)
            failed.add_metric([name], any(counters["store_errno"] for counters in own))
            full.add_metric([name], any(counters["store_is_full"] for counters in own))
        yield from (sizes, segments, failed, full)
        yield self._stores_out()

    def _stores_out(self) -> Metric:
        out = GaugeMetricFamily(
            "ingestd_store_out_seconds",
            "For how long a store has taken no new flows for a reason; 0: not for that one.",
            labels=["store", "reason"],
        )
        for name in self._stores:
            reasons = self._reasons_out(name)
            for reason in Reason:
                out.add_metric([name, reason.value], reasons.get(reason, 0.0))
        return out

    def _refused(self) -> Metric:
        refused = CounterMetricFamily(
            "ingestd_refused",
            "Connections of protocol ingest refused before a flow began, by reason.",
            labels=["store", "listener", "reason"],
        )
        for labels, count in self._refused_counts.copy().items():
            refused.add_metric(list(labels), count)
        return refused

    def _lookups_waiting(self) -> Metric:
        waiting = GaugeMetricFamily(
            "ingestd_lookups_waiting",
            "Connections of protocol ingest that wait for a look-up of their flow in the store.",
            labels=["store"],
        )
        for name, count in self._lookups_waiting_counts.items():
            waiting.add_metric([name], count)
        return waiting

    def _log_dropped(self) -> Metric:
        dropped = CounterMetricFamily(
            "ingestd_log_records_dropped",
            "Log lines dropped because they could not be written in time.",
        )
        dropped.add_metric([], self._log_dropped_count())
        return dropped

    def _engine_info(self) -> Metric:
        return InfoMetricFamily(
            "ingestd_engine",
            "The engine, and the reason for its choice.",
            value={"engine": self._engine.kind, "reason": self._engine.reason},
        )


_Shots = Sequence[tuple["WorkerThread", dict[str, int]]]
_LabelledFamily = CounterMetricFamily | GaugeMetricFamily


def zero_copy_ratio(counters: Mapping[str, int]) -> float:
    """Return the part of the payload written that neither ingestd nor the kernel copied.

    A byte that the kernel copied may be copied by us again: both are taken off.
    The kernel does not count what it copies out of a packet's linear part, which
    header split keeps empty. NaN as long as nothing is written.
    """
    bounced_bytes = sum(counters[name] for name in BOUNCED.values())
    payload_bytes = counters["direct_bytes"] + bounced_bytes
    if payload_bytes == 0:
        return math.nan
    return max(0.0, 1 - (bounced_bytes + counters["kernel_copied_bytes"]) / payload_bytes)


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Counts per bucket as (upper bound, count up to there); the last is what is over."""
    assert len(counts) == len(bounds) + 1, (len(counts), len(bounds))
    buckets, total = [], 0
    for bound, count in zip([*map(repr, bounds), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def _labels(family: Family) -> list[str]:
    return [*_WORKER, family.label] if family.label else list(_WORKER)


def _of(worker: WorkerThread) -> list[str]:
    return [worker.store_name, str(worker.index)]


def _filled(metric: _LabelledFamily, family: Family, shots: _Shots) -> Metric:
    for worker, counters in shots:
        for value, name in family.counters.items():
            labels = [*_of(worker), value] if family.label else _of(worker)
            metric.add_metric(labels, counters[name])
    return metric


def _build_info() -> Metric:
    return InfoMetricFamily(
        "ingestd_build",
        "The versions of ingestd, Python and the kernel.",
        value={
            "version": __version__,
            "python": platform.python_version(),
            "kernel": platform.release(),
        },
    )
