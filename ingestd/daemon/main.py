# SPDX-License-Identifier: Apache-2.0
"""`ingestd serve` as a process: its log, its daemon, and its end.

Invariants: errors of the start come to standard error by the command line, unless
a thread hangs; the log has what it could take before the process ends. Owned by
the main thread.
"""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING, TextIO, cast

from ingestd import systemd
from ingestd.config.loading import log_target
from ingestd.daemon.exit_code import EXIT_CODE_BUG
from ingestd.daemon.run import Daemon
from ingestd.daemon.shutdown import LOG_TIME_S, leave
from ingestd.daemon.workers.worker import load_core
from ingestd.errors import IngestdError
from ingestd.log import open_log
from ingestd.log_events import LogEvent
from ingestd.log_writer import LogWriter, QueuedStream, descriptor_writer

if TYPE_CHECKING:
    from ingestd.config.settings import Settings


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. Raises IngestdError at start.

    Where a thread hangs, this ends the process instead of returning or raising.
    """
    from ingestd.store.serve.served_store import open_for_serving

    target = log_target(settings.log)
    writer = LogWriter(systemd.journal_sink() if target == "journald" else descriptor_writer(2))
    stream = cast("TextIO", QueuedStream(writer, is_terminal=os.isatty(2)))
    log = open_log(settings.log.level, target, journal_sink=writer.put, stream=stream)
    writer.on_gap = lambda count: log.emit(LogEvent.LOG_DROPPED, count=count)
    writer.start()
    exit_code, message = EXIT_CODE_BUG, ""
    try:
        daemon = Daemon(
            settings,
            core=load_core(),
            open_store=open_for_serving,
            log=log,
            log_dropped_count=lambda: writer.dropped_count,
        )
        exit_code = daemon.run()
    except IngestdError as error:
        exit_code, message = error.exit_code, f"ingestd: error: {error}\n"
        raise
    except BaseException:
        message = traceback.format_exc()
        raise
    finally:
        writer.close(LOG_TIME_S)
        leave(exit_code, message)
    return exit_code
