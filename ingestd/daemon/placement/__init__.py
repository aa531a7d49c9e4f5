# SPDX-License-Identifier: Apache-2.0
"""Placement: which stores take new flows, and connections on their way to the one that does."""

__all__ = ["handover", "placement", "store_states"]
