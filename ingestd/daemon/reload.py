# SPDX-License-Identifier: Apache-2.0
"""Applying a changed configuration to a daemon that serves.

Invariants: a configuration that is not valid changes nothing; what needs a
restart is logged at each reload until there was one. Owned by the main thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ingestd.config.diff import diff
from ingestd.config.loading import reload
from ingestd.daemon.admission.listener_keys import reread_keys
from ingestd.errors import ConfigError
from ingestd.log import Log
from ingestd.log_events import LogEvent

if TYPE_CHECKING:
    from ingestd.config.settings import Settings
    from ingestd.daemon.admission.admission import Admission
    from ingestd.daemon.placing import Placing
    from ingestd.daemon.workers.worker import WorkerThread


class ReloadOutcome(NamedTuple):
    """The keys that a reload changed, dotted; `error`: why it changed nothing.

    `keys_refused`: by listener, why its key file is not used, and the keys before are.
    """

    changed: Sequence[str] = ()
    needs_restart: Sequence[str] = ()
    keys_refused: Mapping[str, str] = {}
    error: str = ""


class Reloader:
    """Knows with what the daemon started, and the settings that are in effect."""

    def __init__(self, started: Settings, log: Log) -> None:
        self.settings = started  # as reloaded
        self._started = started  # what needs a restart to change
        self._log = log

    def reload(
        self,
        workers: Sequence[WorkerThread],
        listener_names: Sequence[str],
        admission: Admission,
        placing: Placing,
    ) -> ReloadOutcome:
        """Apply what of a changed configuration can be; a bad one changes nothing."""
        try:
            new = reload(self.settings)
        except ConfigError as error:
            self._log.emit(LogEvent.CONFIG_REFUSED, error=str(error))
            return ReloadOutcome(error=str(error))
        before, changed = self.settings, diff(self.settings, new).changed_at_run_time
        waiting = diff(self._started, new).needs_restart
        self.settings = new
        self._log.set_level(new.log.level)
        for worker in workers:
            store = new.store.get(worker.store_name)
            if store is not None:
                worker.set_intervals(store.flush_interval_s, store.commit_interval_s)
        self._apply_idle_timeouts(new, workers, listener_names)
        placing.change(before, new)
        self._log.emit(LogEvent.CONFIG_RELOADED, changed=list(changed))
        if waiting:
            self._log.emit(LogEvent.CONFIG_NEEDS_RESTART, keys=list(waiting))
        # Another path waits for a restart, like every option that names what is served.
        keys_refused = reread_keys(self._started.listener, admission, self._log)
        return ReloadOutcome(changed, waiting, keys_refused)

    def _apply_idle_timeouts(
        self, new: Settings, workers: Sequence[WorkerThread], listener_names: Sequence[str]
    ) -> None:
        for index, name in enumerate(listener_names):
            store_names = self._started.listener[name].store_names
            listener = new.listener.get(name)
            for worker in workers:
                if listener is not None and worker.store_name in store_names:
                    worker.set_idle_timeout(index, listener.idle_timeout_s)
