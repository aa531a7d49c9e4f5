# SPDX-License-Identifier: Apache-2.0
"""The file or block device under a store: direct I/O, what it is stacked on, who may write."""

__all__ = ["block_device", "claim", "device", "holder", "opening", "output_guard", "stacking"]
