# SPDX-License-Identifier: Apache-2.0
"""The policy of a listener: the terms under which its connections are admitted.

Invariant: a policy is a value; other keys make another one. Any thread may read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ingestd.keyfile import load_keys

if TYPE_CHECKING:
    from ingestd.config.settings import ListenerSettings


@dataclass(frozen=True)
class ListenerPolicy:
    """A listener as admission sees it; keys None: it does not authenticate."""

    name: str
    keys: Mapping[str, bytes] | None
    flow_bytes_max: int  # 0: no limit
    is_ingest: bool
    stores: tuple[str, ...]  # that its flows may lie in


def policy_of(name: str, listener: ListenerSettings) -> ListenerPolicy:
    """Return a listener as admission sees it, with its keys. Raises ConfigError."""
    keys = None if listener.key_file is None else load_keys(listener.key_file)
    is_ingest = listener.protocol == "ingest"
    return ListenerPolicy(name, keys, listener.flow_bytes_max, is_ingest, listener.store_names)
