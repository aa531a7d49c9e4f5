# SPDX-License-Identifier: Apache-2.0
"""Admission of flows of protocol `ingest`: hello, key, id, resume offset, and the flow lock."""

__all__ = [
    "admission",
    "bloom_filter",
    "flow_index",
    "flow_lock",
    "listener_keys",
    "listener_policy",
    "marked_ids",
]
