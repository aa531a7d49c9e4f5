# SPDX-License-Identifier: Apache-2.0
"""A store as the daemon has it: lock, recovery, compaction, free segments, loss of the device."""

__all__ = ["served_store"]
