# SPDX-License-Identifier: Apache-2.0
"""Turns what pydantic finds wrong into sentences that name key, fault and remedy.

Invariants: one Problem per fault, in the order of the file; values are shown
shortened. Pure; any thread may call.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args, get_origin

from ingestd.sizes import exact_size, parse_size

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

SHOWN_CHARS_MAX: Final = 60
PROBLEMS_COUNT_MAX: Final = 100

_EXPECTED: Final = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list in brackets",
    "list_type": "a list in brackets",
}
_NAME_RULE: Final = "a name has 1 to 63 letters, digits, - and _, and begins with no - or _"


class Problem(NamedTuple):
    """One thing that is wrong: dotted key (or "") and what is wrong with it."""

    key: str
    text: str


def describe(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """Return a sentence per fault that validating the tables of root found."""
    details = error.errors(include_url=False)
    problems = [_describe_one(detail, root) for detail in details[:PROBLEMS_COUNT_MAX]]
    if len(details) > PROBLEMS_COUNT_MAX:
        problems.append(Problem("", f"{len(details) - PROBLEMS_COUNT_MAX} more problems"))
    return problems


def _describe_one(detail: ErrorDetails, root: type[BaseModel]) -> Problem:
    loc, kind = _untagged(detail["loc"], root), detail["type"]
    key = ".".join(str(part) for part in loc)
    if loc and loc[-1] == "[key]":
        return Problem(f"{loc[0]}.{loc[1]}", f"is not a valid name: {_NAME_RULE}")
    if kind == "extra_forbidden":
        return Problem(key, f"is not a known key: {_hint(loc, root)}")
    if kind == "missing":
        return Problem(key, "is missing")
    if kind in ("model_type", "dict_type"):
        return Problem(key, _table_text(loc))
    return Problem(key, _value_text(detail, _field_at(loc, root)))


def _untagged(loc: tuple[int | str, ...], root: type[BaseModel]) -> tuple[int | str, ...]:
    """The place without the name of the kind, where a value may be of one of several."""
    has_kinds = len(loc) > 1 and isinstance(loc[-2], str) and loc[-2] in _keys(loc, root)
    return loc[:-1] if has_kinds and isinstance(loc[-1], str) else loc


def _table_text(loc: tuple[int | str, ...]) -> str:
    section = str(loc[0])
    if section in ("store", "listener"):
        return f"must be a table: the keys of a {section} stand below a head [{section}.NAME]"
    return f"must be a table: its keys stand below a head [{section}]"


def _value_text(detail: ErrorDetails, field: FieldInfo | None) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), _shown(detail["input"])
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}, not {value}"
    if kind == "literal_error":
        return f"must be {context['expected']}, not {value}"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("greater_than_equal", "less_than_equal") and field is not None:
        if _is_size(field):
            value = exact_size(parse_size(detail["input"]))
        return f"must be {_limits(field)}, not {value}"
    if kind == "multiple_of":
        return f"must be a multiple of {context['multiple_of']}, not {value}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind in ("string_too_long", "too_long"):
        return f"must not have more than {context['max_length']} {_counted(kind)}"
    if kind == "string_pattern_mismatch":
        return f"is not valid here: {value}"
    message = detail["msg"]  # a kind that no model of ours raises today
    return f"{message[:1].lower()}{message[1:]}, not {value}"


def _counted(kind: str) -> str:
    return "characters" if kind == "string_too_long" else "entries"


def _shown(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) and value.isprintable() else repr(value)
    if isinstance(value, bool):
        text = text.lower()
    return text if len(text) <= SHOWN_CHARS_MAX else f"{text[: SHOWN_CHARS_MAX - 3]}..."


def _limits(field: FieldInfo) -> str:
    low = next(m.ge for m in constraints(field) if hasattr(m, "ge"))
    high = next(m.le for m in constraints(field) if hasattr(m, "le"))
    if _is_size(field):
        low, high = exact_size(low), exact_size(high)
    return f"between {low} and {high}"


def _is_size(field: FieldInfo) -> bool:
    return any(getattr(m, "func", None) is parse_size for m in constraints(field))


def constraints(field: FieldInfo) -> Iterator[Any]:
    """The limits of a field, of the items of a list, or of the kinds that a value may be of."""
    yield from field.metadata
    for item in get_args(field.annotation):
        for constraint in get_args(item)[1:]:
            yield from getattr(constraint, "metadata", (constraint,))


def _models(root: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel], bool]]:
    """Section name, its model, and whether it is a table of tables by name."""
    for name, field in root.model_fields.items():
        if get_origin(field.annotation) is dict:
            yield name, get_args(field.annotation)[1], True
        else:
            model: Any = field.annotation
            yield name, model, False


def _keys(loc: tuple[int | str, ...], root: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys that are known beside the last one of loc."""
    if len(loc) == 1:
        return root.model_fields
    model, named = next((model, named) for name, model, named in _models(root) if name == loc[0])
    for part in loc[2 if named else 1 : -1]:
        field = model.model_fields.get(str(part))
        inner: Any = field.annotation if field else None
        if hasattr(inner, "model_fields"):
            model = inner  # a table in a table
    return model.model_fields


def _field_at(loc: tuple[int | str, ...], root: type[BaseModel]) -> FieldInfo | None:
    keys = _keys(loc, root)
    return next((keys[str(part)] for part in reversed(loc) if part in keys), None)


def _hint(loc: tuple[int | str, ...], root: type[BaseModel]) -> str:
    unknown, known = str(loc[-1]), _keys(loc, root)
    homes = [
        f"[{section}.NAME]" if named else f"[{section}]"
        for section, model, named in _models(root)
        if unknown in model.model_fields
    ]
    if homes:
        return f"it belongs below {' or '.join(homes)}"
    nearest = difflib.get_close_matches(unknown, known, n=1)
    if nearest:
        return f'did you mean "{nearest[0]}"?'
    return f"known here are {', '.join(known)}"
