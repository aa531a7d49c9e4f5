# SPDX-License-Identifier: Apache-2.0
"""Ids of flows that a file gets again when it is sent again, so that it is there once.

Invariants: the same name, labels, size and time of change make the same id on any
machine and in any version; another one of these makes another id. Pure; any thread.

docs/protocol.md says the same for people who write senders.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Final

NAMESPACE: Final = uuid.UUID("a2b6a1ae-94c0-5a0e-8f2b-3f0f6c1d7e55")  # drawn once, for this alone


def file_flow_id(
    name: str, size: int, mtime_ns: int, labels: Mapping[str, str] | None = None
) -> str:
    """Return the id (UUIDv5) of the flow that a file becomes.

    name: as it is in the flow; size in bytes; mtime_ns: time of last change, ns since 1970.
    """
    terms = [name, sorted((labels or {}).items()), size, mtime_ns]
    # JSON in ASCII, as a name may have bytes that are no text
    return str(uuid.uuid5(NAMESPACE, json.dumps(terms)))


def next_flow_id(flow: str, checksum: str | None) -> str:
    """Return the id to take where that one is of a sealed flow with other bytes."""
    return str(uuid.uuid5(uuid.UUID(flow), str(checksum)))
