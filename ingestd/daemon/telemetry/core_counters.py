# SPDX-License-Identifier: Apache-2.0
"""Exported names of the core's counters, gauges and histograms; a test compares them with stats.h.

Invariant: names and units are final: dashboards and alert rules rely on them. Constants.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Family(NamedTuple):
    """One exported name: its help and where its samples come from."""

    name: str  # of counters: without _total
    help: str
    label: str  # the label that distinguishes the samples, or ""
    counters: dict[str, str]  # value of that label -> name in core/base/stats.h


BOUNCED: Final = {
    "head": "bounced_head_bytes",
    "tail": "bounced_tail_bytes",
    "small": "bounced_small_bytes",
    "boundary": "bounced_boundary_bytes",
    "pressure": "bounced_pressure_bytes",
    "trailer": "bounced_trailer_bytes",
}
COUNTERS: Final = (
    Family(
        "ingestd_received_bytes", "Payload bytes taken from sockets.", "", {"": "received_bytes"}
    ),
    Family(
        "ingestd_written_bytes",
        "Bytes of completed device writes: headers, payload, padding.",
        "",
        {"": "written_bytes"},
    ),
    Family(
        "ingestd_durable_bytes",
        "Payload bytes on stable media that recovery can verify.",
        "",
        {"": "durable_bytes"},
    ),
    Family(
        "ingestd_bounced_bytes",
        "Payload bytes that ingestd copied because their alignment does not suit the device.",
        "reason",
        BOUNCED,
    ),
    Family(
        "ingestd_kernel_copied_bytes",
        "Payload bytes that the kernel copied into the area.",
        "",
        {"": "kernel_copied_bytes"},
    ),
    Family(
        "ingestd_padding_bytes",
        "Zeros written so that extents and batches end on a boundary.",
        "",
        {"": "padding_bytes"},
    ),
    Family(
        "ingestd_header_bytes",
        "Bytes of batch headers, segment headers, marks and footers.",
        "",
        {"": "header_bytes"},
    ),
    Family(
        "ingestd_direct_bytes",
        "Payload bytes written without a copy, from where they were received.",
        "",
        {"": "direct_bytes"},
    ),
    Family(
        "ingestd_flows_by_copy",
        "Connections on an rx queue without zero copy, served by the kernel's copy.",
        "",
        {"": "flows_by_copy"},
    ),
    Family(
        "ingestd_flows_handed_away",
        "Connections handed over to the worker whose rx queue they arrived by.",
        "",
        {"": "flows_handed_away"},
    ),
    Family(
        "ingestd_alloc_failures",
        "Times the kernel found no chunk for a packet.",
        "",
        {"": "alloc_failures"},
    ),
    Family("ingestd_batches", "Batches written.", "", {"": "batches"}),
    Family("ingestd_flushes", "Device flushes completed.", "", {"": "flushes"}),
    Family("ingestd_commits", "Commit points reached.", "", {"": "commits"}),
    Family(
        "ingestd_write_retries",
        "Writes submitted again after an error or a short write.",
        "",
        {"": "write_retries"},
    ),
    Family(
        "ingestd_flows",
        "Flows by outcome; opened counts every accepted connection.",
        "outcome",
        {
            "opened": "flows_opened",
            "sealed": "flows_sealed",
            "interrupted": "flows_interrupted",
            "refused": "flows_refused",
            "empty": "flows_empty",
        },
    ),
    Family(
        "ingestd_connections_denied",
        "Connections denied, because of their network or of too many from one peer.",
        "reason",
        {"network": "flows_denied", "peer_limit": "flows_over_peer_max"},
    ),
    Family(
        "ingestd_flows_resumed",
        "Connections that resumed a flow.",
        "",
        {"": "flows_resumed"},
    ),
    Family(
        "ingestd_durable_lines",
        "Lines sent that report the durable offset of a flow.",
        "",
        {"": "durable_lines"},
    ),
    Family(
        "ingestd_events_dropped",
        "Events of a worker that were not fetched in time; only log lines are missing.",
        "",
        {"": "events_dropped"},
    ),
    Family(
        "ingestd_accept_errors",
        "Connections that could not be accepted.",
        "",
        {"": "accept_errors"},
    ),
)

GAUGES: Final = (
    Family(
        "ingestd_connections",
        "Connections: greeting before the hello, open while they send a flow, closing while"
        " they wait for durability or for their receipt.",
        "state",
        {"greeting": "flows_greeting", "open": "flows_open", "closing": "flows_closing"},
    ),
    Family(
        "ingestd_area_bytes",
        "Bytes of the area by use.",
        "state",
        {
            "free": "area_free_bytes",
            "receiving": "area_receiving_bytes",
            "writing": "area_writing_bytes",
        },
    ),
    Family(
        "ingestd_area_hugepage_bytes",
        "Bytes of the area on reserved hugepages.",
        "",
        {"": "area_hugepage_bytes"},
    ),
    Family(
        "ingestd_writes_in_flight",
        "Device writes submitted and not yet completed.",
        "",
        {"": "writes_in_flight"},
    ),
    Family(
        "ingestd_rx_buf_bytes",
        "Bytes of a chunk that the NIC fills; 0 without zero-copy receive.",
        "",
        {"": "rx_buf_len"},
    ),
    Family(
        "ingestd_flows_waiting", "Flows that wait for space in the area.", "", {"": "flows_waiting"}
    ),
)

BACKPRESSURE: Final = {"area": "backpressure_area_ns", "device": "backpressure_device_ns"}
LATENCIES: Final = {
    "ingestd_write_latency_seconds": ("write_latency", "Latency of the writes of batches."),
    "ingestd_flush_latency_seconds": ("flush_latency", "Latency of device flushes."),
    "ingestd_ack_latency_seconds": (
        "ack_latency",
        "Time from the first byte in a batch to the batch's commit, for each flow in it.",
    ),
}
