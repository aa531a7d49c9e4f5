# SPDX-License-Identifier: Apache-2.0
"""The walls between rooms of ingestd/daemon and ingestd/store, as tests.

A room is a package of one of the two. Imports count wherever they stand, in functions and for
type checkers too: what a module names, it knows.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from tests.unit.test_tidy import MODULES, ROOT, _fail_if_any, _imports, _module_of

# Each room may import those before it of its part.
DAEMON = (
    "base",
    "machine",
    "workers",
    "segments",
    "placement",
    "telemetry",
    "admission",
    "maintenance",
    "control",
)
STORE = ("format", "device", "metadata", "read", "catalogue", "reclaim", "serve")
ALLOWED: dict[str, set[str]] = {
    **{f"daemon.{room}": {f"daemon.{r}" for r in DAEMON[:i]} for i, room in enumerate(DAEMON)},
    **{f"store.{room}": {f"store.{r}" for r in STORE[:i]} for i, room in enumerate(STORE)},
    "store.create": {"store.format", "store.device", "store.metadata"},
}
# Parts and rooms outside its own part that a room must not import.
DAEMON_MAY_NOT = {"daemon.base": {"store"}, "daemon.admission": {"store.reclaim", "store.serve"}}
ENDINGS = ("ings", "ments", "ing", "ment", "als", "ers", "ies", "al", "er", "ed", "es", "s", "e")
STEM_CHARS_MIN = 3
NAMES = {_module_of(path): path for path in MODULES if path.suffix == ".py"}


def _room(module: str) -> str | None:
    """`store.read` for ingestd.store.read.image; None for what is in no room."""
    room = ".".join(module.split(".")[1:3])
    return room if room in ALLOWED else None


def _edges() -> Iterator[tuple[str, str, str]]:
    """(module, module that it imports, place) for all of ours."""
    for module, path in NAMES.items():
        for imported, line in _imports(path):
            name = imported if imported in NAMES else imported.rpartition(".")[0]
            if name in NAMES:
                yield module, name, f"{path.relative_to(ROOT)}:{line}"


EDGES = list(_edges())


def _circle(edges: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= STEM_CHARS_MIN:
            stem = word.removesuffix(ending)
            return stem[:-1] if stem[-2:-1] == stem[-1:] else stem  # "running" is of "run"
    return word


def _near_twins(names: list[str]) -> list[list[str]]:
    """The groups of module names that differ in the endings or the order of words only."""
    groups = defaultdict(list)
    for name in names:
        words = frozenset(_stem(word) for word in name.rpartition(".")[2].split("_"))
        groups[words].append(name)
    return [group for group in groups.values() if len(group) > 1]


def test_the_finders_find() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    twins = [("freed", "freeing"), ("removals", "removing"), ("lookup", "lookups")]
    for one, other in [*twins, ("scan", "scanner"), ("flow_gate", "gate_flows"), ("key", "keys")]:
        assert _near_twins([one, other]), (one, other)
    assert not _near_twins(["reader", "claim", "flows", "flow_index"])
    assert len(EDGES) > 2 * len(ALLOWED)


def test_every_room_is_known() -> None:
    rooms = {
        ".".join(module.split(".")[1:3])
        for module in NAMES
        if module.startswith(("ingestd.daemon.", "ingestd.store."))
        and NAMES[module].name == "__init__.py"
    }
    assert rooms == set(ALLOWED)
    loose = [m for m in NAMES if m.startswith("ingestd.store.") and _room(m) is None]
    assert not loose, "the store has rooms only"


def test_rooms_look_down_only() -> None:
    _fail_if_any(
        [
            f"{place}: {one} must not import {other}"
            for module, imported, place in EDGES
            if (one := _room(module)) and (other := _room(imported)) and one != other
            if one.partition(".")[0] == other.partition(".")[0] and other not in ALLOWED[one]
        ]
    )


def test_rooms_do_not_know_who_starts_them() -> None:
    """What lies in ingestd/daemon itself brings rooms up; no room imports it."""
    _fail_if_any(
        [
            f"{place}: {_room(module)} must not import {imported}"
            for module, imported, place in EDGES
            if _room(module) and imported.startswith("ingestd.daemon.") and not _room(imported)
        ]
    )


def test_some_rooms_know_little_of_the_store() -> None:
    _fail_if_any(
        [
            f"{place}: {room} must not import {imported}"
            for module, imported, place in EDGES
            for room, forbidden in DAEMON_MAY_NOT.items()
            if _room(module) == room
            and any(f"{imported}.".startswith(f"ingestd.{part}.") for part in forbidden)
        ]
    )


def test_no_circle_of_imports() -> None:
    edges: dict[str, set[str]] = {module: set() for module in NAMES}
    for module, imported, _ in EDGES:
        edges[module].add(imported)
    circle = _circle(edges)
    assert not circle, " -> ".join(circle)


def _public(room: str) -> list[str]:
    path = NAMES[f"ingestd.{room}"]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def test_only_public_modules_are_imported_from_outside() -> None:
    """A room's __init__ names in __all__ the modules that others may import, and no more."""
    offences, used = [], set()
    for module, imported, place in EDGES:
        room = _room(imported)
        if room is None or _room(module) == room:
            continue
        name = imported.removeprefix(f"ingestd.{room}").lstrip(".")
        used.add((room, name))
        if name not in _public(room):
            offences.append(f"{place}: {name or 'the package'} is not in __all__ of {room}")
    offences += [
        f"{room}: {name} is in __all__, and nobody outside imports it"
        for room in ALLOWED
        for name in _public(room)
        if (room, name) not in used
    ]
    _fail_if_any(offences)


def test_no_near_twins() -> None:
    parts = defaultdict(list)
    for module, path in NAMES.items():
        if path.name != "__init__.py":
            parts[module.split(".")[1]].append(module)
    _fail_if_any([" and ".join(g) for names in parts.values() for g in _near_twins(names)])


def test_no_two_classes_of_one_name() -> None:
    """Who looks a public class up finds one."""
    places = defaultdict(list)
    for module, path in NAMES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{module}:{node.lineno}")
    _fail_if_any([f"{name}: {', '.join(p)}" for name, p in places.items() if len(p) > 1])
