# SPDX-License-Identifier: Apache-2.0
"""Telemetry: what workers and stores report, as log lines, metrics and events."""

__all__ = [
    "event_stream",
    "flow_events",
    "metrics",
    "metrics_server",
    "worker_events",
    "worker_health",
]
