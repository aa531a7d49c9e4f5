# SPDX-License-Identifier: Apache-2.0
"""The control socket: a running daemon is asked over it, and reports what becomes of flows."""

__all__ = ["main_calls", "parts", "server", "socket_file", "status_report"]
