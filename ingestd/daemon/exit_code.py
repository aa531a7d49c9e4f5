# SPDX-License-Identifier: Apache-2.0
"""The exit code of a daemon, from the ends of its workers, each of which is logged.

Invariants: a worker that ends while the daemon serves ends the process, since nothing can take its
place; a bug is logged with its trace. Owned by the main thread.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from ingestd.errors import IngestdError, StoreFailedError, SystemCallError
from ingestd.log import Log
from ingestd.log_events import LogEvent

if TYPE_CHECKING:
    from ingestd.daemon.workers.worker import WorkerThread

EXIT_CODE_BUG: Final = 1


def exit_code_of_ended(workers: Iterable[WorkerThread], log: Log) -> int | None:
    """Return the exit code where a worker has ended though nobody stopped it; None: all live."""
    code = None
    for worker in workers:
        if not worker.alive():
            log_dead(worker.name, worker.error, log)
            code = _exit_code_of(worker.error)
    return code


def exit_code_of_overdue(workers: Iterable[WorkerThread], log: Log) -> int | None:
    """Return the exit code where a worker has not ended in time; None: all have."""
    code = None
    for worker in workers:
        if worker.alive():
            log.emit(
                LogEvent.WORKER_FAILED,
                worker=worker.name,
                error="it did not stop within drain_timeout_s",
                hint="look for a device that hangs (dmesg); acknowledged bytes are safe",
            )
            code = SystemCallError.exit_code
    return code


def exit_code_at_end(workers: Iterable[WorkerThread], *, is_store_failed: bool, log: Log) -> int:
    """Return the exit code of a stopped daemon: that of a worker's error, if there is one."""
    for worker in workers:
        if worker.error is not None:
            log_dead(worker.name, worker.error, log)
            return _exit_code_of(worker.error)
    return StoreFailedError.exit_code if is_store_failed else 0


def log_dead(name: str, error: BaseException | None, log: Log) -> None:
    """Log the end of a worker or pump that was not to end."""
    if error is None:
        log.emit(LogEvent.WORKER_FAILED, worker=name, error="it ended by itself")
    elif isinstance(error, IngestdError):
        log.emit(LogEvent.WORKER_FAILED, worker=name, error=str(error))
    else:
        trace = "".join(traceback.format_exception(error))
        log.emit(LogEvent.WORKER_FAILED, worker=name, error=repr(error), trace=trace)


def _exit_code_of(error: BaseException | None) -> int:
    return error.exit_code if isinstance(error, IngestdError) else EXIT_CODE_BUG
