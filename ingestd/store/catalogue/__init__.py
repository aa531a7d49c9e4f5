# SPDX-License-Identifier: Apache-2.0
"""The catalogue: an SQLite file beside a store that answers without the store being read.

The store is the only truth: the catalogue can be thrown away at any time, and is made anew from
the segments. It knows SQLite and the store's format, and no daemon.
"""

__all__ = ["catalogue", "feeder", "removed_parts", "rows", "schema", "source"]
