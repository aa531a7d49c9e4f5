# SPDX-License-Identifier: Apache-2.0
"""Words: in code and documents those of the field, which operators and implementers search for.

ARCHITECTURE.md has the glossary. CHANGELOG.md is history and keeps its words. In the package the
rule holds for comments, texts and names alike, in tests for comments and docstrings.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_tidy import FILES, PACKAGE, ROOT, _fail_if_any, _matches

# What is not to be said -> what is. A file's tell() and a retry that gave up are the field's own.
WORDS = {
    r"(?<!\.)(?:tells?|told|telling|teller)": "report, log, notify, say; distinguish",
    r"(?:go|goes|gone|going|went)[ _]on": "resume, continue",
    r"lets?[ _]go": "release, unref",
    r"lets?[ _]in": "admit",
    r"(?:give|gives|given|giving)[ _]up": "reclaim, evict, release",
    r"earlier li(?:fe|ves)": "previous generation, previous use",
    r"keepers?": "maintenance thread",
    r"(?<!-)gates?": "flow lock",
    r"upkeep": "maintenance",
    r"speechless": "reserve exhausted",
    r"last[ _]words": "CLOSE records; message",
    r"wait(?:s|ed|ing)? for company": "be buffered",
    r"way[ _]out": "remedy; in the log: hint",
}
# Also as a part of a name: an underscore ends a word.
PATTERN = re.compile(
    rf"(?<![A-Za-z])(?:{'|'.join(f'(?:{word})' for word in WORDS)})(?![A-Za-z])", re.IGNORECASE
)
# A docstring names its thing, or says in the imperative what is done.
BEGINNINGS = re.compile(r"(?:What|Who|Whose|Whether|How|Where|When|Why|Which)\b")
DOCUMENTS = [
    path
    for path in FILES
    if (path.suffix == ".md" and path.name != "CHANGELOG.md" and ROOT / "tests" not in path.parents)
    or path.parent in (ROOT / "config", ROOT / "systemd", ROOT / "examples")
]
PYTHON = [p for p in FILES if p.suffix in {".py", ".pyi"} and PACKAGE in p.parents]
CORE = [
    path
    for path in FILES
    if path.suffix in {".c", ".h", ".pyx", ".pxd"} and PACKAGE in path.parents
]
# Not yet those of the simulator.
TESTS = [
    path
    for path in FILES
    if path.suffix in {".c", ".h", ".py"}
    and ROOT / "tests" in path.parents
    and ROOT / "tests" / "sim" not in path.parents
    and path.name != Path(__file__).name
]
# Lines of the protocol for a sender's log, as they have always been.
SENT = {"the receiver could not go on with", "a newer connection goes on with"}


def _is_sent(path: Path, line: int) -> bool:
    text = path.read_text(encoding="utf-8").splitlines()[line - 1]
    return path.name == "lines.c" and any(sent in text for sent in SENT)


def _remedy(found: str) -> str:
    return next(text for word, text in WORDS.items() if re.fullmatch(word, found, re.IGNORECASE))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It tells who; it told us", ["tells", "told"]),
        ("a flow goes on", ["goes on"]),
        ("Way_out, way out, _tell_all", ["Way_out", "way out", "tell"]),
        ("reader.tell() after it gave up; investigate, propagates; an intellect", []),
        ("the keeper lets go", ["keeper", "lets go"]),
    ],
)
def test_the_finder_finds(text: str, found: list[str]) -> None:
    assert [match[0] for match in PATTERN.finditer(text)] == found


def test_words_are_those_of_the_field() -> None:
    assert len(DOCUMENTS) > 20
    _fail_if_any(
        [
            f"{path.relative_to(ROOT)}:{line}: '{match[0]}': {_remedy(match[0])}"
            for path, line, match in _matches(PATTERN, DOCUMENTS + PYTHON)
        ]
    )


def test_sentences_of_documents_are_plain() -> None:
    """Phrases that readers had to read twice, in the documents that users read."""
    phrases = r"as (?:they|it) lies?|for nothing|for good|comes? of it|an? \w+ of its own choice"
    found = _matches(re.compile(rf"\b(?:{phrases})\b", re.IGNORECASE), DOCUMENTS)
    _fail_if_any([f"{path.relative_to(ROOT)}:{line}: '{match[0]}'" for path, line, match in found])


def test_words_of_the_core_are_those_of_the_field() -> None:
    assert len(CORE) > 70
    found = list(_matches(PATTERN, CORE))
    sent = [(path, line) for path, line, _ in found if _is_sent(path, line)]
    assert len(sent) == len(SENT)
    _fail_if_any(
        [
            f"{path.relative_to(ROOT)}:{line}: '{match[0]}': {_remedy(match[0])}"
            for path, line, match in found
            if (path, line) not in sent
        ]
    )


def _comments(path: Path) -> Iterator[tuple[str, int]]:
    """Comments of a file in C or Python, each with its line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        for match in re.finditer(r"/\*.*?\*/", text, re.DOTALL):
            yield match[0], text.count("\n", 0, match.start()) + 1
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]


def test_comments_are_found(tmp_path: Path) -> None:
    c, python = tmp_path / "a.c", tmp_path / "a.py"
    c.write_text("int a; /* one\n * two */\n/* three */\n")
    python.write_text('A = "# none"  # one\n')
    assert list(_comments(c)) == [("/* one\n * two */", 1), ("/* three */", 3)]
    assert list(_comments(python)) == [("# one", 1)]


def test_words_of_tests_are_those_of_the_field() -> None:
    """Names in backticks are what code calls something."""
    assert len(TESTS) > 200
    _fail_if_any(
        [
            f"{path.relative_to(ROOT)}:{line}: '{match[0]}': {_remedy(match[0])}"
            for path in TESTS
            for text, line in [
                *_comments(path),
                *(_docstrings(path) if path.suffix == ".py" else []),
            ]
            for match in PATTERN.finditer(re.sub(r"`[^`]*`", "", text))
        ]
    )


def _docstrings(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [(ast.get_docstring(node), node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [(text, getattr(node, "lineno", 1)) for text, node in found if text]


def test_docstrings_name_the_thing() -> None:
    _fail_if_any(
        [
            f"{path.relative_to(ROOT)}:{line}: a docstring begins with '{match[0]}'"
            for path in PYTHON
            for text, line in _docstrings(path)
            if (match := BEGINNINGS.match(text))
        ]
    )
