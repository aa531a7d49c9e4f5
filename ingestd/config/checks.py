# SPDX-License-Identifier: Apache-2.0
"""Checks that need more than one value of the configuration at a time.

Invariants: a check reads settings that are valid one by one, and reports; it
changes nothing. The only thing asked of the machine is what a path stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Final

from ingestd.address import Address, same_listening_address
from ingestd.config.problems import Problem
from ingestd.config.settings import Settings
from ingestd.core_limits import LISTENERS_MAX
from ingestd.identity import identity
from ingestd.sizes import exact_size

RETAIN_S_MIN: Final = 1.0
INGEST_KEYS: Final = ("hello_timeout_s", "ack_interval_s", "flow_bytes_max", "key_file")
WRITES_PER_AREA_MIN: Final = 4  # one fills, one is written, one is flushed, one to spare


def crosscheck(settings: Settings, cpus_online: frozenset[int]) -> list[Problem]:
    """Return what is contradictory in settings, on a machine with these CPUs."""
    return [
        *_check_presence(settings),
        *_check_store_names(settings),
        *_check_placement(settings),
        *_check_listener_counts(settings),
        *_check_cpus(settings, cpus_online),
        *_check_areas(settings),
        *_check_addresses(settings),
        *_check_protocols(settings),
        *_check_retention(settings),
        *_check_paths(settings),
        *_check_engine(settings),
    ]


def _check_presence(settings: Settings) -> Iterator[Problem]:
    if not settings.store:
        yield Problem("", "names no store: add [store.NAME] with a path, or give --store PATH")
    if not settings.listener:
        yield Problem(
            "",
            "names no listener: add [listener.NAME] with an address, or give --listen HOST:PORT",
        )


def _check_store_names(settings: Settings) -> Iterator[Problem]:
    known = ", ".join(settings.store)
    for name, listener in settings.listener.items():
        key = f"listener.{name}.{'stores' if listener.stores else 'store'}"
        if not listener.store_names and len(settings.store) > 1:
            yield Problem(key, f"is missing: with several stores, name one of {known}")
        for store_name in listener.store_names if settings.store else ():
            if store_name not in settings.store:
                yield Problem(key, f'there is no store "{store_name}": name one of {known}')


def _check_placement(settings: Settings) -> Iterator[Problem]:
    engine = settings.engine
    for name, listener in settings.listener.items():
        key = f"listener.{name}.stores"
        if listener.store and listener.stores:
            yield Problem(key, "and store are both given: name one store, or several in stores")
        if len(set(listener.stores)) != len(listener.stores):
            yield Problem(key, "names a store twice")
        if listener.placement == "spread":
            continue
        key = f"listener.{name}.placement"
        if len(listener.stores) < 2:
            yield Problem(key, "needs several stores: name them in stores")
        if engine.kind == "zcrx" and engine.interface is not None:
            yield Problem(
                key,
                'must be "spread" with engine.kind = "zcrx": the network card decides by which'
                " rx queue, and so in which store, a connection arrives",
            )


def _check_listener_counts(settings: Settings) -> Iterator[Problem]:
    for name in settings.store:
        count = len(settings.listeners_of(name))
        if count > LISTENERS_MAX:
            yield Problem(f"store.{name}", f"has {count} listeners, at most {LISTENERS_MAX} can be")


def _check_cpus(settings: Settings, cpus_online: frozenset[int]) -> Iterator[Problem]:
    for name, store in settings.store.items():
        key = f"store.{name}.cpus"
        if store.cpus and len(store.cpus) != store.workers:
            yield Problem(
                key,
                f"names {len(store.cpus)} CPUs for {store.workers} workers:"
                " give one each, or none to leave them unpinned",
            )
        if len(set(store.cpus)) != len(store.cpus):
            yield Problem(key, "names a CPU twice: each worker needs one of its own")
        for cpu in sorted(set(store.cpus) - cpus_online):
            online = ", ".join(str(number) for number in sorted(cpus_online))
            yield Problem(key, f"there is no CPU {cpu} online: there are {online}")


def _check_areas(settings: Settings) -> Iterator[Problem]:
    for name, store in settings.store.items():
        if store.area == "auto" or store.write_bytes_max == "auto":
            continue  # the one is made to fit the other
        area_min = WRITES_PER_AREA_MIN * store.write_bytes_max
        if store.area < area_min:
            yield Problem(
                f"store.{name}.area",
                f"must hold {WRITES_PER_AREA_MIN} writes of write_bytes_max:"
                f" make it {exact_size(area_min)} or more, or the writes smaller",
            )


def _check_addresses(settings: Settings) -> Iterator[Problem]:
    endpoints: list[tuple[str, Address]] = [
        (f"listener.{name}.address", listener.endpoint)
        for name, listener in settings.listener.items()
    ]
    if settings.metrics.endpoint is not None:
        endpoints.append(("metrics.address", settings.metrics.endpoint))
    for (key, one), (other_key, other) in combinations(endpoints, 2):
        if same_listening_address(one, other):
            yield Problem(other_key, f"{other} is taken by {key} ({one}): use another port")


def _check_protocols(settings: Settings) -> Iterator[Problem]:
    """Keys that only protocol ingest has are errors elsewhere, not silently without effect."""
    for name, listener in settings.listener.items():
        defaults = type(listener).model_fields
        for key in INGEST_KEYS if listener.protocol != "ingest" else ():
            if getattr(listener, key) != defaults[key].default:
                yield Problem(
                    f"listener.{name}.{key}",
                    f'needs protocol = "ingest": {listener.protocol} has no such thing',
                )


def _check_retention(settings: Settings) -> Iterator[Problem]:
    """A term that no flow could outlive would expire all at once."""
    for name, listener in settings.listener.items():
        if 0 < listener.retain_for_s < RETAIN_S_MIN:
            yield Problem(
                f"listener.{name}.retain_for_s",
                f"must be {RETAIN_S_MIN:g} or more, or 0 to keep flows for ever",
            )


def _check_paths(settings: Settings) -> Iterator[Problem]:
    identities = [(name, identity(store.path)) for name, store in settings.store.items()]
    for (name, one), (other_name, other) in combinations(identities, 2):
        if one == other:
            yield Problem(
                f"store.{other_name}.path", f"is the store of store.{name}.path: name each once"
            )


def _check_engine(settings: Settings) -> Iterator[Problem]:
    engine = settings.engine
    if engine.kind == "zcrx" and engine.interface is None:
        yield Problem("engine.interface", 'is missing: kind = "zcrx" needs a network interface')
    if engine.queues and engine.interface is None:
        yield Problem("engine.interface", "is missing: engine.queues are queues of an interface")
    if len(set(engine.queues)) != len(engine.queues):
        yield Problem("engine.queues", "names a queue twice")
    if engine.interface is not None and engine.kind != "recv":
        yield from _check_queues(settings)


def _check_queues(settings: Settings) -> Iterator[Problem]:
    """Every worker has a queue of its own; those of one store follow those of the one before."""
    engine = settings.engine
    if engine.is_deviceless:
        if engine.queues:
            yield Problem("engine.queues", 'must be empty: interface = "none" has no queues')
        if engine.manage_nic:
            yield Problem("engine.manage_nic", 'must be false: interface = "none" is no NIC')
        return
    workers_count = sum(store.workers for store in settings.store.values())
    if settings.store and len(engine.queues) != workers_count:
        yield Problem(
            "engine.queues",
            f"names {len(engine.queues)} queues for {workers_count} workers of all stores:"
            " give one each, in the order of the stores",
        )
