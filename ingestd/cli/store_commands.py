# SPDX-License-Identifier: Apache-2.0
"""The commands that make a store and describe one: format, ls, info.

Invariant: each imports what it needs when it runs, and none needs the daemon.
Owned by the main thread.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ingestd.cli.output import (
    counted,
    note,
    print_json,
    print_pairs,
    print_table,
    safe,
    short_time,
)
from ingestd.cli.several_stores import listed_in_all, raise_all, stores_of
from ingestd.errors import ControlError, IngestdError
from ingestd.sizes import full_size, short_size

if TYPE_CHECKING:
    from ingestd.daemon.machine.direct_io import DirectProfile
    from ingestd.store.metadata.superblock import Superblock
    from ingestd.store.read.image import StoreImage

_COLUMNS: Final = ("FLOW", "STATE", "SIZE", "BYTES", "STARTED", "NAME", "PEER")
_SEGMENTS_SHOWN_MAX: Final = 10
_FLUSH_RIGHT: Final = frozenset({"SIZE", "BYTES"})


def run_format(arguments: Namespace) -> int:
    """Make a store; print its UUID and geometry."""
    from ingestd.store.create.formatting import format_store

    superblock = format_store(
        arguments.path,
        size_bytes=arguments.size,
        segment_bytes=arguments.segment_size,
        zero=arguments.zero,
        label=arguments.label,
        force=arguments.force,
    )
    print(f"{safe(arguments.path)}: formatted")
    print_pairs(_geometry(superblock))
    return 0


def _geometry(superblock: Superblock) -> list[tuple[str, object]]:
    return [
        ("UUID", superblock.uuid),
        ("label", superblock.label or None),
        ("size", full_size(superblock.store_bytes)),
        ("segments", f"{superblock.segment_count} of {full_size(superblock.segment_bytes)}"),
        ("block", full_size(superblock.block_bytes)),
    ]


class Listing(NamedTuple):
    """Flows as their JSON objects, as they come; and whether a daemon gives them."""

    flows: Iterator[dict[str, Any]]
    is_served: bool


@contextmanager
def listed(store: str, arguments: Namespace) -> Iterator[Listing]:
    """List flows as the flags select them, by the catalogue of the daemon that serves the store.

    Without a catalogue this process reads the store: a daemon's memory is not for that.

    Flags of an order and a limit need not be there.
    """
    from ingestd.cli.selection import filter_arguments
    from ingestd.control.finding import find_serving

    sort, limit = getattr(arguments, "sort", None), getattr(arguments, "limit", None)
    serving = find_serving(store)
    if serving is not None and not serving.has_catalogue:
        serving.client.close()
    elif serving is not None:
        with serving.client as client:
            flows = client.flows(
                serving.store, **filter_arguments(arguments), sort=sort, limit=limit
            )
            try:
                first = list(islice(flows, 1))
            except ControlError as error:
                # It has no time, or ends: the store can be read without it.
                if error.code not in (None, "busy", "stopping", "failed"):
                    raise
            else:
                yield Listing(chain(first, flows), is_served=True)
                return
    with _read_listing(store, arguments) as flows:
        yield Listing(flows, is_served=False)


@contextmanager
def _read_listing(store: str, arguments: Namespace) -> Iterator[Iterator[dict[str, Any]]]:
    from ingestd.cli.selection import filter_of
    from ingestd.store.read.flow_age import floor_ns, is_misdated
    from ingestd.store.read.flow_source import FlowOrder, ImageFlowSource
    from ingestd.store.read.image import read_image

    order = FlowOrder.parse(getattr(arguments, "sort", "started"))
    with read_image(store) as image:
        _report_warnings(image.warnings)
        now_ns = time.time_ns()
        floor = floor_ns(image.superblock, now_ns)
        found = ImageFlowSource(image).flows(
            filter_of(arguments), order, getattr(arguments, "limit", None)
        )
        yield ({**flow.as_dict(), "misdated": is_misdated(flow, floor, now_ns)} for flow in found)


@contextmanager
def _flows_of(store: str, arguments: Namespace) -> Iterator[Iterator[dict[str, Any]]]:
    with listed(store, arguments) as listing:
        yield listing.flows


def run_ls(arguments: Namespace) -> int:
    """List the flows, oldest first unless another order is asked for."""
    paths = stores_of(arguments)
    if len(paths) == 1:
        with listed(paths[0], arguments) as listing:
            print_flows(listing.flows, as_json=arguments.json)
        return 0
    errors: list[IngestdError] = []
    with ExitStack() as undo:
        flows = listed_in_all(paths, arguments, _flows_of, undo, errors)
        print_flows(flows, as_json=arguments.json, is_several=True)
    raise_all(errors)
    return 0


def print_flows(
    flows: Iterator[dict[str, Any]], *, as_json: bool, is_several: bool = False
) -> None:
    """Print flows as they come, and how many of them have times that cannot be.

    is_several: they lie in several stores, which they name.
    """
    shown_count = misdated_count = 0

    def counted_flows() -> Iterator[dict[str, Any]]:
        nonlocal shown_count, misdated_count
        for flow in flows:
            shown_count += 1
            misdated_count += flow["misdated"]
            yield flow

    if as_json:
        for flow in flows:
            print_json(flow)
        return
    columns = (*_COLUMNS, "STORE") if is_several else _COLUMNS
    rows = ((*_row(flow), flow["store"]) if is_several else _row(flow) for flow in counted_flows())
    print_table(columns, rows, _FLUSH_RIGHT)
    if misdated_count:
        note(
            f"{misdated_count} of {shown_count} flows, marked with ?, began or ended when"
            " they cannot have: the clock was wrong then, or is now"
        )


def _row(flow: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        flow["flow"],
        flow["state"],
        short_size(flow["bytes"]),
        _bytes_text(flow),
        short_time(flow["started"]) + ("?" if flow["misdated"] else ""),
        flow["name"] or "-",
        flow["peer"] or "-",
    )


def _bytes_text(flow: Mapping[str, Any]) -> str:
    """Return how many bytes, or FIRST..END where those before FIRST were overwritten."""
    first, end = flow["first_offset"], flow["bytes"]
    return f"{first}..{end}" if first else str(end)


def _report_warnings(warnings: Iterable[str]) -> None:
    for text in warnings:
        note(text)


def run_info(arguments: Namespace) -> int:
    """Show identity, geometry, use and device of a store."""
    from ingestd.store.read.image import read_image

    with read_image(arguments.store) as image:
        _report_warnings(image.warnings)
        # The profile is the core's knowledge, and reading a store needs no core.
        from ingestd.daemon.workers.worker import device_profile

        profile = device_profile(image.path)
        daemon = _daemon_of(arguments.store) if image.served else None
        if arguments.json:
            print_json({**_info_object(image, profile), "daemon": daemon})
        else:
            print(f"{safe(image.path)}: a store of ingestd")
            print_pairs([*_info_pairs(image, profile), ("daemon", _daemon_text(daemon))])
    return 0


def _daemon_of(store: str) -> dict[str, Any] | None:
    """Return what the daemon that serves a store says of it; None if it cannot be asked."""
    from ingestd.control.finding import find_serving

    serving = find_serving(store)
    if serving is None:
        return None
    with serving.client as client:
        try:
            status = client.status()
        except ControlError:
            return None
        (own,) = (found for found in status["stores"] if found["name"] == serving.store)
        process = {key: status[key] for key in ("pid", "version", "state", "uptime_s")}
        return {**process, "socket": client.path, "store": own}


def _daemon_text(daemon: dict[str, Any] | None) -> str | None:
    if daemon is None:
        return None
    store = daemon["store"]
    failure = store["failure"] or store["maintenance_failure"]
    text = (
        f"process {daemon['pid']}, {daemon['state']}, store {store['name']!r} {store['state']},"
        f" {store['connections']} connections, {daemon['socket']}"
    )
    return f"{text}: {failure}" if failure else text


def _info_object(image: StoreImage, profile: DirectProfile) -> dict[str, Any]:
    from ingestd.store.metadata.tombstones import FLOWS_MAX
    from ingestd.store.read.flows import utc_text
    from ingestd.store.reclaim.presence import damaged_indexes

    superblock = image.superblock
    return {
        "path": image.path,
        "uuid": superblock.uuid,
        "label": superblock.label,
        "created": utc_text(superblock.created_ns),
        "generation": superblock.generation,
        "served": image.served,
        "store_bytes": superblock.store_bytes,
        "segment_bytes": superblock.segment_bytes,
        "segment_count": superblock.segment_count,
        "block_bytes": superblock.block_bytes,
        "segments": image.segment_counts(),
        "flows": _flow_counts(image),
        "removed": {
            "flows": len(image.removed),
            "bytes": sum(flow.bytes - flow.first_offset for flow in image.removed),
            "remembered": image.removed_count,
            "remembered_max": FLOWS_MAX,
        },
        "damaged": damaged_indexes(image.segments),
        "payload_bytes": sum(segment.payload_bytes for segment in image.segments),
        "direct_io": profile._asdict(),
    }


def _flow_counts(image: StoreImage) -> dict[str, int]:
    from ingestd.store.read.flows import STATES

    counts = Counter(flow.state for flow in image.flows)
    return {state: counts[state] for state in STATES}


def _info_pairs(image: StoreImage, profile: DirectProfile) -> list[tuple[str, object]]:
    info = _info_object(image, profile)
    free_bytes = info["segments"]["free"] * image.superblock.segment_bytes
    return [
        *_geometry(image.superblock),
        ("created", info["created"]),
        ("generation", image.superblock.generation),
        ("served", "yes, by a daemon that runs now" if image.served else "no"),
        ("in use", f"{counted(info['segments'])} segments"),
        ("free", full_size(free_bytes)),
        ("flows", counted(info["flows"])),
        ("removed", _removed_text(info["removed"])),
        ("damaged", _damaged_text(info["damaged"], info["removed"])),
        ("payload", full_size(info["payload_bytes"])),
        ("direct I/O", _profile_text(profile)),
    ]


def _removed_text(removed: dict[str, int]) -> str | None:
    if not removed["flows"]:
        return None
    return f"{removed['flows']} flows, {full_size(removed['bytes'])} of them not reclaimed yet"


def _damaged_text(indexes: Sequence[int], removed: Mapping[str, int]) -> str | None:
    """Name damaged segments, and what stays in the table of removed flows for them."""
    if not indexes:
        return None
    more = len(indexes) - _SEGMENTS_SHOWN_MAX
    text = f"segments {', '.join(map(str, indexes[:_SEGMENTS_SHOWN_MAX]))}"
    text += f" and {more} more" if more > 0 else ""
    held_count = removed["remembered"] - removed["flows"]
    if held_count > 0:
        text += f"; {held_count} removed flows of which nothing else is left are remembered"
    return text


def _profile_text(profile: DirectProfile) -> str:
    boundary = f", boundary {profile.virt_mask + 1}" if profile.virt_mask else ""
    return (
        f"memory aligned to {profile.mem_align}, writes to {profile.write_align} bytes{boundary},"
        f" up to {profile.iovecs_max} pieces a write"
    )
