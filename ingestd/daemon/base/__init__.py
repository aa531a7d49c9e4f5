# SPDX-License-Identifier: Apache-2.0
"""Parts that the whole daemon may use: threads, wake-ups, retries, listening sockets."""

__all__ = ["backoff", "listen", "periodic", "threads", "waker"]
