# SPDX-License-Identifier: Apache-2.0
"""The README says what the program does: exit codes, links, version."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import ingestd
from ingestd.cli.main import build_parser, exit_codes
from ingestd.errors import IngestdError

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _tree(error: type[IngestdError]) -> Iterator[type[IngestdError]]:
    yield error
    for below in error.__subclasses__():
        yield from _tree(below)


def test_exit_codes_are_those_of_the_program() -> None:
    """The README's table, the command line's help and errors.py agree."""
    ours = [error for error in _tree(IngestdError) if error.__module__ == "ingestd.errors"]
    table = README.partition("<!-- exit codes: begin")[2].partition("<!-- exit codes: end")[0]
    rows = re.findall(r"^\| (\d+) \| (?:`(\w+)` )?\| (.*) \|$", table, re.MULTILINE)
    errors = {(int(code), name) for code, name, _ in rows if name}
    assert errors == {(error.exit_code, error.__name__) for error in ours}
    assert {int(code): meaning.rstrip(".") for code, _, meaning in rows} == exit_codes()
    assert len(rows) == len(exit_codes())


def test_exit_codes_differ() -> None:
    codes = [e.exit_code for e in _tree(IngestdError) if e.__module__ == "ingestd.errors"]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(parser: argparse.ArgumentParser) -> set[tuple[str, ...]]:
    """Every option with its spellings, those of sub-commands included."""
    own = {tuple(a.option_strings) for a in parser._actions if a.option_strings}
    below = [_options(child) for child in _commands(parser).values()]
    return own.union(*below) - {("-h", "--help")}


def test_commands_are_those_of_the_program() -> None:
    """The README's table names each command, and exactly the options that it has."""
    rows = re.findall(r"^\| `ingestd ([a-z][\w-]*) ?(.*?)` \|", README, re.MULTILINE)
    commands = _commands(build_parser())
    assert commands
    assert {name for name, _ in rows} == set(commands)
    for name, usage in rows:
        named = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", usage))
        options = _options(commands[name])
        assert named <= {string for strings in options for string in strings}, name
        assert all(named.intersection(strings) for strings in options), name


def test_links_lead_somewhere() -> None:
    """Every relative link of every page names a file of the project."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "tests" / "README.md"]
    gone = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not gone


def test_every_alert_is_explained() -> None:
    """docs/operations.md has a row for each alert of the rules, in their order."""
    rules = (ROOT / "config" / "prometheus-rules.yml").read_text(encoding="utf-8")
    alerts = re.findall(r"^ +- alert: (\w+)$", rules, re.MULTILINE)
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert alerts
    assert re.findall(r"^\| `(Ingestd\w+)` \|", operations, re.MULTILINE) == alerts


def test_version_is_the_installed_one() -> None:
    assert ingestd.__version__ == version("ingestd")
