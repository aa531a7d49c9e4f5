# SPDX-License-Identifier: Apache-2.0
"""Reading a store: scanning segments, the image of all flows, a flow's bytes, verification."""

__all__ = [
    "assembly",
    "flow_age",
    "flow_source",
    "flows",
    "footer_records",
    "image",
    "inspection",
    "point_query",
    "read_ahead",
    "reader",
    "scan",
    "verdict",
    "verify",
]
