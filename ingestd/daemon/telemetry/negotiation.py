# SPDX-License-Identifier: Apache-2.0
"""The choice between two formats of a scrape: Prometheus' text, or OpenMetrics.

Invariant: whatever a client writes into its Accept header, the answer is one of
both; nothing of the header is returned. No state; any thread may call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

OPENMETRICS: Final = "application/openmetrics-text"
OPENMETRICS_ACCEPT: Final = f"{OPENMETRICS};version=1.0.0"
TEXT_ACCEPT: Final = "text/plain;version=0.0.4"
# RFC 9110, section 12.4.2: 0 to 1 with up to three digits behind the point.
_WEIGHT: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")
_VERSIONS: Final = frozenset({"", "0.0.1", "1.0.0"})


def accepted_format(accept: str) -> str:
    """Return OPENMETRICS_ACCEPT or TEXT_ACCEPT: what is preferred by weight (RFC 9110, 12.5.1).

    OpenMetrics must be named, as Prometheus does; where both weigh the same it is taken.
    """
    openmetrics, text = 0.0, 0.0
    for media, version, weight in _ranges(accept):
        if media == OPENMETRICS and version in _VERSIONS:
            openmetrics = max(openmetrics, weight)
        elif media == "text/plain":
            text = max(text, weight)
    return OPENMETRICS_ACCEPT if openmetrics > 0 and openmetrics >= text else TEXT_ACCEPT


def _ranges(accept: str) -> Iterator[tuple[str, str, float]]:
    """Give each media range as (type, version, weight); none whose weight is no number."""
    for item in accept.split(","):
        media, *parameters = (part.strip().lower() for part in item.split(";"))
        found = dict(parameter.partition("=")[::2] for parameter in parameters)
        weight = found.get("q", "1")
        if _WEIGHT.fullmatch(weight):
            yield media, found.get("version", "").strip('"'), float(weight)
