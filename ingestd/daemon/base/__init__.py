# SPDX-License-Identifier: Apache-2.0
"""What every part of the daemon may use: threads, wake-ups, retries, listening sockets."""

__all__ = ["backoff", "listen", "threads", "waker"]
