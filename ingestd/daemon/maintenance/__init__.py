# SPDX-License-Identifier: Apache-2.0
"""Maintenance of served stores: deletion, expiry, capacity, and whether the store is there."""

__all__ = ["coordinator", "removals"]
