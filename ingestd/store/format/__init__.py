# SPDX-License-Identifier: Apache-2.0
"""The on-disk format: structs, records, and the contents of one segment as values. Pure."""

__all__ = ["footer_part", "layout", "records", "segment"]
