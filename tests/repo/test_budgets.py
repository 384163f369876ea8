"""Rules of size and style that keep every file readable; see the layout in docs/architecture.md."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES = 300
FUNCTION_LINES = 60
GENERATED = "sdk/baton/api/"
EXCEPTIONS: dict[str, str] = {}
"""`file` or `file:function` -> why it may be longer. Empty, and best kept so."""


def python_files() -> list[str]:
    """Hand-written Python files that git tracks or would track, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=200).stdout.split("\n")
    return sorted(name for name in listed if name and not name.startswith(GENERATED) and (ROOT / name).is_file())


FILES = python_files()
SOURCES = [name for name in FILES if name.startswith(("sdk/", "services/"))]


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_files_are_found() -> None:
    assert len(SOURCES) > 50
    assert any(name.startswith("tests/") for name in FILES)


def test_no_file_is_longer_than_300_lines() -> None:
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in FILES if name not in EXCEPTIONS}
    assert {name: length for name, length in lengths.items() if length > FILE_LINES} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    lengths = {
        f"{name}:{node.name}": node.end_lineno - node.lineno + 1
        for name in FILES
        if not name.startswith("tests/")
        for node in functions(name)
    }
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES and name not in EXCEPTIONS} == {}


def test_every_exception_still_exists() -> None:
    assert [name for name in EXCEPTIONS if not (ROOT / name.partition(":")[0]).is_file()] == []


@pytest.mark.parametrize("forbidden", ["utils.py", "util.py", "helpers.py", "misc.py", "common.py"])
def test_a_file_is_named_after_what_it_holds(forbidden: str) -> None:
    assert [name for name in FILES if name.rpartition("/")[2] == forbidden] == []


def test_services_and_sdk_log_and_only_the_command_line_prints() -> None:
    printing = [
        f"{name}:{node.lineno}"
        for name in SOURCES
        if not name.startswith("sdk/baton/cli/")
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []


def test_no_test_uses_mocks() -> None:
    importing = []
    for file in FILES:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            importing += [f"{file}: {module}" for module in modules if module.split(".")[0] in ("unittest", "mock")]
    assert importing == []


def test_no_error_leaves_an_except_star() -> None:
    """Python 3.11.2 raises an exception that was in the group as a group again, which no `except BatonError` catches."""
    starred = [
        file
        for file in FILES
        if any(isinstance(node, ast.TryStar) for node in ast.walk(ast.parse((ROOT / file).read_text())))
    ]
    assert starred == []


def test_the_architecture_names_every_file_of_the_trainer() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text()
    files = {Path(name).name for name in SOURCES if name.startswith("services/trainer/")} - {"__init__.py"}
    assert sorted(name for name in files if name not in tree) == []
