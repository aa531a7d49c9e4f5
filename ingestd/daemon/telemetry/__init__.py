# SPDX-License-Identifier: Apache-2.0
"""Telemetry: what workers and stores report, as log lines and metrics."""

__all__ = ["event_log", "metrics", "metrics_server", "worker_health"]
