# SPDX-License-Identifier: Apache-2.0
"""Reclaiming segments: retention, deletion, eviction of the oldest, discard."""

__all__ = ["candidates", "deletion", "eviction", "presence", "retention", "sweep"]
