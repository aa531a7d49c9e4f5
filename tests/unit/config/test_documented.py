# SPDX-License-Identifier: Apache-2.0
"""config/ingestd.toml against the models: every option, its default, its limits."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ingestd.config.diff import RUN_TIME_KEYS
from ingestd.config.loading import load
from ingestd.config.problems import constraints
from ingestd.config.settings import Settings
from ingestd.sizes import exact_size

DOCUMENTED = Path(__file__).parents[3] / "config" / "ingestd.toml"


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """(head of a table, model) of every section; tables by name have the name "default"."""
    for name, field in Settings.model_fields.items():
        if get_origin(field.annotation) is dict:
            model = get_args(field.annotation)[1]
            yield f"{name}.default", model
            for key, inner in model.model_fields.items():
                if isinstance(inner.annotation, type) and issubclass(inner.annotation, BaseModel):
                    yield f"{name}.default.{key}", inner.annotation
        else:
            assert isinstance(field.annotation, type)
            yield name, field.annotation


ALL_FIELDS = [
    pytest.param(head, name, field, id=f"{head}.{name}")
    for head, model in _sections()
    for name, field in model.model_fields.items()
]


def _numeric(field: FieldInfo) -> bool:
    text = str(field.annotation) + str(field.metadata)
    return any(kind in text for kind in ("int", "float")) and "Literal" not in text


def _tables_at(tables: dict[str, Any], head: str) -> dict[str, Any]:
    for part in head.split("."):
        tables = tables[part]
    return tables


@pytest.mark.parametrize(("head", "name", "field"), ALL_FIELDS)
def test_documented_file_has_every_option_with_its_default(
    head: str, name: str, field: FieldInfo
) -> None:
    text = DOCUMENTED.read_text(encoding="utf-8")
    with_options_on = tomllib.loads(re.sub(r"(?m)^#(?=[a-z_]+ = )", "", text))
    assert name in _tables_at(with_options_on, head)
    as_it_is = _tables_at(tomllib.loads(text), head)
    if field.is_required():
        assert name in as_it_is
    elif field.default in (None, ""):
        assert name not in as_it_is, "an option that is off by default is shown in a comment"
    else:
        value = getattr(_section(load(str(DOCUMENTED)), head), name)
        assert value == field.default
        assert name in as_it_is


def _section(settings: Settings, head: str) -> Any:
    name, *keys = head.split(".")
    section: Any = getattr(settings, name)
    for key in keys:
        section = section[key] if isinstance(section, dict) else getattr(section, key)
    return section


def test_documented_file_says_what_sighup_applies() -> None:
    """Options that [reload] stands above are those that may change at run time."""
    head, comment, found = "", "", set()
    for line in DOCUMENTED.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\[([a-z.]+)\]$", line):
            head, comment = match[1].replace(".default", ".*"), ""
        elif match := re.match(r"#?([a-z_]+) = ", line):
            if "[reload]" in comment:
                found.add(f"{head}.{match[1]}")
            comment = ""
        else:
            comment += line
    assert found == set(RUN_TIME_KEYS)


def test_documented_limits_are_those_of_the_models() -> None:
    """Where the comment of a number gives a range, it is the right one."""
    text, told = DOCUMENTED.read_text(encoding="utf-8"), 0
    for _, model in _sections():
        for name, field in model.model_fields.items():
            is_list = get_origin(field.annotation) is tuple
            limits = {type(m).__name__: m for m in ([] if is_list else constraints(field))}
            block = re.search(rf"((?:^#.*\n)+)#?{name} = ", text, re.MULTILINE)
            if not {"Ge", "Le"} <= limits.keys() or block is None:
                continue
            low, high = limits["Ge"].ge, limits["Le"].le
            if name in ("area", "write_bytes_max", "rx_buf"):
                low, high = exact_size(low), exact_size(high)
            assert f"{low} to {high}" in block[1].replace("\n# ", " "), name
            told += 1
    assert told >= 10


def test_every_number_has_limits() -> None:
    for _, model in _sections():
        for name, field in model.model_fields.items():
            if not _numeric(field):
                continue
            text = str(field.metadata) + str(field.annotation)
            assert "ge=" in text, name
            assert "le=" in text, name


def test_run_time_keys_are_keys() -> None:
    fields = {
        f"{head.replace('.default', '.*')}.{name}"
        for head, model in _sections()
        for name in model.model_fields
    }
    assert set(RUN_TIME_KEYS) <= fields
