# SPDX-License-Identifier: Apache-2.0
"""The blocks that describe a store: superblocks, footers, freed record, tombstones, requests."""

__all__ = ["footer", "freed_record", "superblock", "tombstones"]
