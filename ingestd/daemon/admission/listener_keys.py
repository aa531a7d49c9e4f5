# SPDX-License-Identifier: Apache-2.0
"""Keys of listeners, read again while the daemon runs.

Invariants: a file that cannot be used changes nothing for its listener; who was
admitted stays, whatever becomes of the key. Owned by the main thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ingestd.errors import ConfigError
from ingestd.keyfile import load_keys
from ingestd.log import Log
from ingestd.log_events import LogEvent

if TYPE_CHECKING:
    from ingestd.config.settings import ListenerSettings
    from ingestd.daemon.admission.admission import Admission


def reread_keys(
    listeners: Mapping[str, ListenerSettings], admission: Admission, log: Log
) -> dict[str, str]:
    """Read every listener's key file again, and log the result.

    Returns, by listener, why a file is not used, so that the keys before are.
    """
    refused = {}
    for name, listener in listeners.items():
        if listener.key_file is None:
            continue
        try:
            keys = load_keys(listener.key_file)
        except ConfigError as error:
            refused[name] = str(error)
            log.emit(LogEvent.KEYS_REFUSED, listener=name, error=str(error))
        else:
            admission.set_keys(name, keys)
            log.emit(LogEvent.KEYS_RELOADED, listener=name, keys_count=len(keys))
    return refused
