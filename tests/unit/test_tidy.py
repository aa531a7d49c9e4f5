# SPDX-License-Identifier: Apache-2.0
"""The house rules, as tests: sizes, layers, licence heads, nothing left half done.

Each test lists every offence at once, as ``file:line: what is wrong``.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ingestd"

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
HEAD_LINES_MAX = 3
SPDX = "SPDX-License-Identifier: Apache-2.0"
# A kernel module uses what the kernel exports under the GPL only; it is never installed.
KERNEL_MODULE = ROOT / "tests" / "vm" / "nic"
KERNEL_SPDX = "SPDX-License-Identifier: GPL-2.0"

DIRECTORIES_NOT_OURS = {".git", ".venv", "build", "dist", "var", "__pycache__", ".hypothesis"}
SOURCE_SUFFIXES = {
    ".py",
    ".pyi",
    ".pyx",
    ".pxd",
    ".c",
    ".h",
    ".sh",
    ".toml",
    ".yml",
    ".yaml",
    ".service",
}
SOURCE_NAMES = {"Makefile", "Dockerfile", "meson.build", "run"}
TEXT_SUFFIXES = SOURCE_SUFFIXES | {".md", ".txt", ".json", ".conf", ".rules", ".build"}

# Lower layers do not know the upper ones; each of these knows those behind it.
LAYERS = ("cli", "doctor", "daemon", "core")
# These stand beside the layers and know none of them.
APART = {
    *("store", "protocol", "config", "client", "errors", "address", "sizes", "nic", "finding"),
    "keyfile",
}
# Network cards concern few: the daemon, with what it is made of, and the commands.
NIC_USERS = {"nic", "cli", "daemon", "doctor"}

STUB_WORDS = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK|NotImplemented" r"Error)\b")
# Where people and their tools keep things; what a system has is below other directories.
MACHINE_PATH = re.compile(r"(?<![\w.*}])/(?:home|opt|root|scratch|Users|work|workspace)/[\w.-]+")
ISSUE_NUMBER = re.compile(r"(?<![\w&;])#\d{1,5}\b")


def _files() -> list[Path]:
    """Every file of the project, sorted; nothing that was built or downloaded."""
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not DIRECTORIES_NOT_OURS.intersection(parts):
            found.append(path)
    return sorted(found)


FILES = _files()
SOURCES = [p for p in FILES if p.suffix in SOURCE_SUFFIXES or p.name in SOURCE_NAMES]
TEXTS = [p for p in FILES if p.suffix in TEXT_SUFFIXES or p in SOURCES]
PYTHON = [p for p in FILES if p.suffix in {".py", ".pyi"}]
MODULES = [p for p in PYTHON if PACKAGE in p.parents]


def _name(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def _fail_if_any(offences: list[str]) -> None:
    if offences:
        pytest.fail("\n".join(offences), pytrace=False)


def _python_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, first line, number of lines) of each function of a Python file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.lineno, node.end_lineno - node.lineno + 1


def _c_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """The same for C as clang-format lays it out: only top-level text is at column 0."""
    head, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("}"):
            before_brace = head.partition("{")[0]
            match = re.search(r"(\w+)\s*\(", before_brace)
            if match and "=" not in before_brace:
                yield match[1], first, number - first + 1
            head = ""
        elif not head and re.match(r"\w", line):
            head, first = line, number
        elif head and "{" not in head:
            head += "\n" + line
        if head and "{" not in head and head.rstrip().endswith(";"):
            head = ""


def _cython_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """The same for Cython, by indentation; a function ends with its last indented line."""
    lines = text.splitlines()
    for first, line in enumerate(lines):
        match = re.match(r"(\s*)(?:cpdef|cdef|def)\b[^=]*?(\w+)\(.*", line)
        if not match or line.rstrip().endswith("nogil") or "extern" in line:
            continue
        last = first
        for index in range(first + 1, len(lines)):
            body = lines[index]
            if body.strip() and not body.startswith((match[1] + " ", match[1] + ")")):
                break
            last = index if body.strip() else last
        yield match[2], first + 1, last - first + 1


FUNCTIONS_OF: dict[str, Callable[[str], Iterator[tuple[str, int, int]]]] = {
    ".py": _python_functions,
    ".c": _c_functions,
    ".h": _c_functions,
    ".pyx": _cython_functions,
}


def test_functions_are_found() -> None:
    """The three finders see what they are meant to see; else the next test proves nothing."""
    c = "static int\nf(int a,\n  int b) {\n    return a;\n}\nstatic const int x[] = {\n    1,\n};\n"
    assert list(_c_functions(c + "void g(void) {\n}\n")) == [("f", 1, 5), ("g", 9, 2)]
    assert list(_c_functions("int p(void);\nstruct s {\n    int a;\n};\n")) == []
    assert list(_python_functions("def f():\n    a = 1\n    return a\n")) == [("f", 1, 3)]
    pyx = "cdef class A:\n    def m(self,\n          x):\n        pass\n\n"
    pyx += "    cdef int n(self):\n        pass\n"
    assert list(_cython_functions(pyx)) == [("m", 2, 3), ("n", 6, 2)]


def test_functions_fit_a_screen() -> None:
    offences = [
        f"{_name(path, first)}: {name} has {count} lines, at most {FUNCTION_LINES_MAX} fit"
        for path in FILES
        if path.suffix in FUNCTIONS_OF
        for name, first, count in FUNCTIONS_OF[path.suffix](path.read_text(encoding="utf-8"))
        if count > FUNCTION_LINES_MAX
    ]
    _fail_if_any(offences)


def test_files_are_short() -> None:
    offences = []
    for path in SOURCES:
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > FILE_LINES_MAX:
            offences.append(f"{_name(path)}: {count} lines, at most {FILE_LINES_MAX}")
    _fail_if_any(offences)


def test_licence_is_in_every_head() -> None:
    offences = []
    for path in SOURCES:
        lines = path.read_text(encoding="utf-8").splitlines()
        wanted = KERNEL_SPDX if KERNEL_MODULE in path.parents else SPDX
        if lines and wanted not in "\n".join(lines[:HEAD_LINES_MAX]):
            offences.append(f"{_name(path)}: the first lines lack '{wanted}'")
    _fail_if_any(offences)


def _module_of(path: Path) -> str:
    """`ingestd.store.read.image` for ingestd/store/read/image.py; a package for its __init__."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in it, as (absolute name, line)."""
    package = _module_of(path).split(".")
    if path.stem != "__init__":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{base}.{alias.name}", node.lineno


def _part(module: str) -> str | None:
    """`store` for ingestd.store.read.image; None for what is not ours."""
    names = module.split(".")
    return names[1] if names[0] == "ingestd" and len(names) > 1 else None


def _layer_offence(part: str, imported: str) -> str | None:
    if imported not in LAYERS or part == imported:
        return None
    if part in APART:
        return f"{part} stands apart and must not import {imported}"
    if part in LAYERS and LAYERS.index(imported) < LAYERS.index(part):
        return f"{part} lies below {imported} and must not import it"
    if part not in (*LAYERS, "__main__") and imported in ("cli", "daemon"):
        return f"{part} serves the layers and must not import {imported}"
    return None


def test_layers_look_down_only() -> None:
    offences = []
    for path in MODULES:
        part = _part(_module_of(path))
        for module, line in _imports(path):
            imported = _part(module)
            if part and imported and (offence := _layer_offence(part, imported)):
                offences.append(f"{_name(path, line)}: {offence}")
    _fail_if_any(offences)


def test_few_know_of_network_cards() -> None:
    _fail_if_any(
        [
            f"{_name(path, line)}: {_part(_module_of(path))} must not import {module}"
            for path in MODULES
            for module, line in _imports(path)
            if _part(module) == "nic" and _part(_module_of(path)) not in NIC_USERS
        ]
    )


def test_only_systemd_module_imports_systemd() -> None:
    _fail_if_any(
        [
            f"{_name(path, line)}: only ingestd/systemd.py may import {module}"
            for path in MODULES
            for module, line in _imports(path)
            if module.split(".")[0] == "systemd" and path != PACKAGE / "systemd.py"
        ]
    )


def test_dependencies_are_declared() -> None:
    """Whatever the package imports is Python's own, or among its dependencies, and all are used."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[^\w.-]", line)[0].lower() for line in project["dependencies"]}
    distributions = packages_distributions()
    offences, used = [], set()
    for path in MODULES:
        for module, line in _imports(path):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top == "ingestd":
                continue
            names = {name.lower().replace("_", "-") for name in distributions.get(top, [])}
            used |= names & declared
            if not names & declared:
                offences.append(f"{_name(path, line)}: {top} is not a dependency in pyproject.toml")
    offences += [f"pyproject.toml: {name} is not imported" for name in sorted(declared - used)]
    _fail_if_any(offences)


def test_only_config_reads_settings() -> None:
    """Environment variables and TOML are read in one place, but for keys and systemd's own."""
    exempt = (PACKAGE / "config" / "loading.py", PACKAGE / "keyfile.py", PACKAGE / "systemd.py")
    offences = []
    for path in MODULES:
        if path in exempt:
            continue
        offences += [
            f"{_name(path, line)}: only ingestd/config/loading.py may import {module}"
            for module, line in _imports(path)
            if module.split(".")[0] in {"tomllib", "configparser"}
            or module in {"os.environ", "os.getenv"}
        ]
        offences += [
            f"{_name(path, node.lineno)}: only ingestd/config/loading.py may read the environment"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
        ]
    _fail_if_any(offences)


def _matches(
    pattern: re.Pattern[str], paths: list[Path]
) -> Iterator[tuple[Path, int, re.Match[str]]]:
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in pattern.finditer(line):
                yield path, number, match


def test_nothing_is_left_half_done() -> None:
    _fail_if_any(
        [
            f"{_name(path, number)}: '{match[0]}' marks unfinished work"
            for path, number, match in _matches(STUB_WORDS, TEXTS)
        ]
    )


def test_no_path_of_one_machine() -> None:
    """No file names somebody's home or workplace, least of all the one it lies in."""
    here = re.compile(re.escape(str(ROOT)))
    _fail_if_any(
        [
            f"{_name(path, number)}: '{match[0]}' is a path of one machine"
            for pattern in (MACHINE_PATH, here)
            for path, number, match in _matches(pattern, TEXTS)
        ]
    )


def test_no_issue_numbers() -> None:
    """The text stands by itself: a number of some tracker explains nothing."""
    _fail_if_any(
        [
            f"{_name(path, number)}: '{match[0]}' is a number of some tracker"
            for path, number, match in _matches(ISSUE_NUMBER, TEXTS)
        ]
    )


def test_build_lists_every_file() -> None:
    """ingestd/meson.build and ingestd/core/meson.build name each file of the package once."""
    names = [
        str((build.parent / name).relative_to(PACKAGE))
        for build in (PACKAGE / "meson.build", PACKAGE / "core" / "meson.build")
        for name in re.findall(r"^ +'([\w/]+\.\w+)',$", build.read_text(), re.MULTILINE)
    ]
    present = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if PACKAGE in path.parents and path.name != "meson.build" and path.suffix != ".so"
    }
    offences = [f"ingestd/{name} is not in a meson.build" for name in sorted(present - set(names))]
    offences += [f"a meson.build lists {name}, which is not there" for name in set(names) - present]
    offences += [
        f"a meson.build lists {name} twice" for name in set(names) if names.count(name) > 1
    ]
    _fail_if_any(offences)
