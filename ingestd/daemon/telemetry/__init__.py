# SPDX-License-Identifier: Apache-2.0
"""Telemetry: what workers and stores report, as log lines and metrics."""

__all__ = ["metrics", "metrics_server", "worker_events", "worker_health"]
