# SPDX-License-Identifier: Apache-2.0
"""Creating a store: its geometry, and every check before the first write."""

__all__ = ["formatting"]
