# SPDX-License-Identifier: Apache-2.0
"""The machine under the daemon, only read: limits of the process, direct I/O, zero-copy receive."""

__all__ = ["direct_io", "limits", "memory", "zcrx_support"]
