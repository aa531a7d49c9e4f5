# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of the log: every event by name, with its usual level and its meaning.

Invariant: a name is looked up by people and matched by programs, so that it changes only with a
line in CHANGELOG.md. Constants.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal, Self

LevelName = Literal["debug", "info", "warning", "error"]


class LogEvent(Enum):
    """Every event of the log: name, usual level, and what it says in one line."""

    level: LevelName
    meaning: str

    DAEMON_STARTING = "daemon_starting", "info", "the process begins; version, stores, listeners"
    ENGINE_CHOSEN = "engine_chosen", "info", "the engine that receives bytes, and the reason for it"
    NIC_CHANGED = "nic_changed", "info", "the interface was prepared for zcrx: one change of it"
    NIC_RESTORED = "nic_restored", "info", "a change of the interface was undone, or was gone"
    NIC_NOT_RESTORED = "nic_not_restored", "error", "changes of the interface could not be undone"
    NIC_WARNING = (
        "nic_warning",
        "warning",
        "a property of the interface makes zcrx less effective",
    )
    STORE_HELD = (
        "store_held",
        "warning",
        "another process, perhaps one that is ending, holds the store; the start waits for it",
    )
    STORE_OPENED = "store_opened", "info", "a store is locked, recovered and ready to be written"
    CATALOGUE_CHOSEN = (
        "catalogue_chosen",
        "info",
        "where the catalogue of a store's flows is kept, and whether it was there",
    )
    CATALOGUE_FED = "catalogue_fed", "info", "the catalogue has every segment that was closed"
    CATALOGUE_FAILED = (
        "catalogue_failed",
        "warning",
        "the catalogue cannot be used now; it is tried again, and the store is read meanwhile",
    )
    SUPERBLOCK_DAMAGED = (
        "superblock_damaged",
        "warning",
        "one of the two superblocks was not valid; the other one was used",
    )
    RECOVERED = "recovered", "info", "results of the recovery of a store"
    AREA_CHOSEN = (
        "area_chosen",
        "info",
        'the size of an area that is "auto", and the limit that decided it',
    )
    WORKER_STARTED = "worker_started", "info", "a worker's thread runs; its CPU, area and profile"
    AREA_WITHOUT_HUGEPAGES = (
        "area_without_hugepages",
        "warning",
        "no hugepages were free, so an area uses ordinary pages",
    )
    DESCRIPTORS_SHORT = (
        "descriptors_short",
        "warning",
        "the limit of file descriptors is lower than the configured flows may need",
    )
    CONTROL_OFF = "control_off", "info", "there is no control socket, as none is configured"
    CONTROL_COMMAND = (
        "control_command",
        "info",
        "somebody asked over the control socket to change something",
    )
    CONTROL_FAILED = "control_failed", "error", "a command of the control socket met a bug"
    LISTENING = "listening", "info", "a listener, or the metrics or control endpoint, is bound"
    READY = "ready", "info", "every listener accepts flows"
    FLOW_OPENED = "flow_opened", "debug", "a connection was accepted and is a flow"
    FLOW_RESUMED = "flow_resumed", "info", "a connection resumes a flow at an offset"
    FLOW_SEALED = "flow_sealed", "info", "a flow is complete; all its bytes are durable"
    FLOW_INTERRUPTED = (
        "flow_interrupted",
        "warning",
        "a flow ended early; its durable bytes can be read",
    )
    FLOW_REFUSED = "flow_refused", "warning", "a connection was refused; nothing of it is stored"
    FLOW_EMPTY = "flow_empty", "debug", "a connection ended without a byte; keep_empty is false"
    CONNECTION_DENIED = (
        "connection_denied",
        "warning",
        "connections were denied, by network or by the limit of one peer; their number",
    )
    FLOW_BY_COPY = (
        "flow_by_copy",
        "info",
        "a connection arrived by an rx queue without zero copy; the kernel copies its bytes",
    )
    FLOW_HANDED_OVER = (
        "flow_handed_over",
        "debug",
        "a connection was handed over to the worker that is to have it",
    )
    ACCEPT_FAILED = "accept_failed", "warning", "the kernel could not hand over a connection"
    SEGMENT_OPENED = "segment_opened", "debug", "a worker begins to fill a segment"
    SEGMENT_CLOSED = "segment_closed", "debug", "a segment was closed with its footer"
    SEGMENT_OVERWRITTEN = (
        "segment_overwritten",
        "info",
        "the store is full, and its oldest segment was evicted; the flows in it",
    )
    OVERWRITING_FAILED = (
        "overwriting_failed",
        "error",
        "the oldest segment could not be evicted; the reason, and the time of the retry",
    )
    REMOVAL_TABLE_FULL = (
        "removal_table_full",
        "warning",
        "the table of removed flows is full, so some segments cannot be reclaimed",
    )
    CLOCK_SET = (
        "clock_set",
        "warning",
        "the machine's clock was set; retention uses the former time for a while",
    )
    FLOWS_MISDATED = (
        "flows_misdated",
        "warning",
        "flows have impossible end times; their retention counts from when they were seen",
    )
    FLOW_REMOVED = (
        "flow_removed",
        "info",
        "a flow was removed permanently; its bytes, and the reason",
    )
    REMOVAL_REFUSED = (
        "removal_refused",
        "warning",
        "a removal was refused: the flow is being received, or the table is full",
    )
    SEGMENT_FREED = (
        "segment_freed",
        "info",
        "a segment in which nothing is kept was reclaimed; the flows in it",
    )
    DISCARD_FAILED = (
        "discard_failed",
        "warning",
        "the device did not discard a reclaimed segment; it is reused nevertheless",
    )
    REMOVED_FLOWS_HELD = (
        "removed_flows_held",
        "warning",
        "removed flows are remembered because damaged segments may hold records of them",
    )
    MAINTENANCE_FAILED = (
        "maintenance_failed",
        "error",
        "flows could not be removed, or segments reclaimed; the reason, and the time of the retry",
    )
    MAINTENANCE_RESUMED = (
        "maintenance_resumed",
        "info",
        "removing flows and reclaiming segments works again",
    )
    STORE_SPACE_LOW = (
        "store_space_low",
        "warning",
        "fewer segments are free than warn_free_percent",
    )
    STORE_FULL = "store_full", "error", "no segment is free; flows that need one are refused"
    STORE_FAILED = (
        "store_failed",
        "error",
        "the device failed, or the store is gone; nothing more is acknowledged",
    )
    STORE_OUT = (
        "store_out",
        "warning",
        "a store takes no new flows; the reason, one of failed, full, stalled, drained",
    )
    STORE_BACK = (
        "store_back",
        "info",
        "a reason why a store took no new flows is gone; whether it takes them again",
    )
    STORE_MOVED = (
        "store_moved",
        "warning",
        "the path of a store now leads elsewhere; the open store is still served",
    )
    STORE_SPARSE = (
        "store_sparse",
        "warning",
        "a store's file has lost preallocated space; segments without space are not used",
    )
    STORE_WHOLE = (
        "store_whole",
        "info",
        "all free segments of a store's file have preallocated space again",
    )
    RESERVING_FAILED = "reserving_failed", "error", "reserving a store file's space failed; a bug"
    WRITE_RETRIED = (
        "write_retried",
        "warning",
        "a device write failed or was short, and is retried",
    )
    BACKPRESSURE_STARTED = (
        "backpressure_started",
        "info",
        "senders are held back, because the area or the device is full",
    )
    BACKPRESSURE_ENDED = "backpressure_ended", "info", "senders are no longer held back"
    EVENTS_LOST = (
        "events_lost",
        "warning",
        "a worker, or a maintenance thread, had more events than were fetched in time",
    )
    WATCHDOG_LATE = "watchdog_late", "error", "a worker's loop has made no progress for too long"
    WORKER_FAILED = "worker_failed", "error", "a worker's thread ended with an error"
    CONFIG_RELOADED = "config_reloaded", "info", "changed settings are in effect"
    CONFIG_NEEDS_RESTART = (
        "config_needs_restart",
        "warning",
        "some changed settings take effect only after a restart",
    )
    CONFIG_REFUSED = (
        "config_refused",
        "error",
        "the changed configuration is not valid; the old one stays in effect",
    )
    KEYS_RELOADED = "keys_reloaded", "info", "a listener's key file was read again"
    KEYS_REFUSED = (
        "keys_refused",
        "error",
        "a listener's changed key file cannot be used; the old keys stay in effect",
    )
    DRAINING = (
        "draining",
        "info",
        "no more connections are accepted; open flows have some time to end",
    )
    STOPPED = "stopped", "info", "everything received is durable or reported lost; the process ends"
    LEFT_BEHIND = (
        "left_behind",
        "error",
        "a part of the daemon hangs and did not end in time; the process ends without it",
    )
    LOG_DROPPED = (
        "log_dropped",
        "warning",
        "the log was not read for a while; the number of lines missing before this one",
    )
    EVENTS_SUPPRESSED = (
        "events_suppressed",
        "info",
        "the number of events of one kind that were not logged",
    )

    def __new__(cls, name: str, level: LevelName, meaning: str) -> Self:
        member = object.__new__(cls)
        member._value_ = name
        member.level = level
        member.meaning = meaning
        return member


# These come once for each thing that is configured: however many, each counts.
NEVER_SUPPRESSED: Final = frozenset(
    {
        LogEvent.DAEMON_STARTING,
        LogEvent.ENGINE_CHOSEN,
        LogEvent.NIC_CHANGED,
        LogEvent.NIC_RESTORED,
        LogEvent.NIC_NOT_RESTORED,
        LogEvent.NIC_WARNING,
        LogEvent.STORE_HELD,
        LogEvent.STORE_OPENED,
        LogEvent.STORE_SPARSE,
        LogEvent.STORE_WHOLE,
        LogEvent.SUPERBLOCK_DAMAGED,
        LogEvent.RECOVERED,
        LogEvent.AREA_CHOSEN,
        LogEvent.WORKER_STARTED,
        LogEvent.AREA_WITHOUT_HUGEPAGES,
        LogEvent.LISTENING,
        LogEvent.READY,
        LogEvent.WORKER_FAILED,
        LogEvent.STORE_FAILED,
        LogEvent.DRAINING,
        LogEvent.STOPPED,
        LogEvent.LEFT_BEHIND,
        LogEvent.LOG_DROPPED,
    }
)
