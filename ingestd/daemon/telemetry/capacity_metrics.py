# SPDX-License-Identifier: Apache-2.0
"""Metrics of the capacity of stores: segments evicted and reclaimed, and when space is short.

Invariant: scrapes only read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ingestd.store.reclaim.candidates import REASONS

if TYPE_CHECKING:
    from ingestd.store.serve.served_store import ServedStore


def overwritten_families(stores: Mapping[str, ServedStore]) -> Iterator[Metric]:
    """Yield how much each store has overwritten since the daemon began."""
    segments = CounterMetricFamily(
        "ingestd_segments_overwritten",
        "Segments evicted because the store was full.",
        labels=["store"],
    )
    sizes = CounterMetricFamily(
        "ingestd_overwritten_bytes", "Payload bytes in evicted segments.", labels=["store"]
    )
    overwrites = GaugeMetricFamily(
        "ingestd_store_overwrites",
        "1 if the store overwrites its oldest segment when it is full.",
        labels=["store"],
    )
    for name, store in stores.items():
        overwrites.add_metric([name], store.is_overwriting)
        segments_count, payload_bytes = store.overwritten
        segments.add_metric([name], segments_count)
        sizes.add_metric([name], payload_bytes)
    yield from (segments, sizes, overwrites)


def reclaim_families(stores: Mapping[str, ServedStore]) -> Iterator[Metric]:
    """Yield what was removed and reclaimed since the daemon began."""
    labels = ["store", "reason"]
    flows = CounterMetricFamily(
        "ingestd_flows_removed",
        "Flows removed, on request (removed) or by expiry (retention).",
        labels=labels,
    )
    segments = CounterMetricFamily(
        "ingestd_segments_freed",
        "Segments reclaimed because nothing in them is kept.",
        labels=labels,
    )
    sizes = CounterMetricFamily(
        "ingestd_freed_bytes", "Payload bytes in reclaimed segments.", labels=labels
    )
    waiting = GaugeMetricFamily(
        "ingestd_removed_flows",
        "Removed flows of which segments still hold records.",
        labels=["store"],
    )
    room = GaugeMetricFamily(
        "ingestd_removed_flows_room",
        "Number of flows that can still be removed before segments are reclaimed.",
        labels=["store"],
    )
    held = GaugeMetricFamily(
        "ingestd_removed_flows_held",
        "Removed flows that are remembered only because damaged segments may hold records of them.",
        labels=["store"],
    )
    blocked = GaugeMetricFamily(
        "ingestd_segments_waiting_for_removal_room",
        "Segments not reclaimed, though nothing in them is kept: the removal table is full.",
        labels=["store"],
    )
    discarded = CounterMetricFamily(
        "ingestd_discarded_bytes",
        "Bytes of segments that were discarded on the device.",
        labels=["store"],
    )
    for name, store in stores.items():
        counts = store.sweeper.counts
        discarded.add_metric([name], counts.discarded_bytes)
        for reason in REASONS:
            flows.add_metric([name, reason], counts.flows[reason])
            segments.add_metric([name, reason], counts.segments[reason])
            sizes.add_metric([name, reason], counts.payload_bytes[reason])
        waiting.add_metric([name], len(store.sweeper.removed))
        room.add_metric([name], store.sweeper.room_count)
        held.add_metric([name], store.sweeper.held_count)
        blocked.add_metric([name], store.sweeper.blocked_count)
    yield from (flows, segments, sizes, waiting, room, held, blocked, discarded)


def warn_free_family(percents: Mapping[str, float]) -> Metric:
    """Return, for each store's `warn_free_percent`, the share that an alert compares with."""
    share = GaugeMetricFamily(
        "ingestd_store_warn_free_ratio",
        "Free share of the store below which a warning is due; 0: never.",
        labels=["store"],
    )
    for name, percent in percents.items():
        share.add_metric([name], percent / 100)
    return share


def maintenance_failed_family(
    stores: Mapping[str, ServedStore], failures: Mapping[str, str]
) -> Metric:
    """Return which stores' maintenance fails, of those that `failures` names."""
    failed = GaugeMetricFamily(
        "ingestd_maintenance_failed",
        "1 while removing flows, or reclaiming or evicting segments, fails; it is retried.",
        labels=["store"],
    )
    for name in stores:
        failed.add_metric([name], name in failures)
    return failed
