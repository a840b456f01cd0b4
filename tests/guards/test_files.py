"""What every file of the project keeps to: a docstring that says what it owns, nothing unfinished, no foreign paths."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.guards.sources import ROOT, files, name, project_files

PYTHON = files(".py", ".pyi")
CYTHON = files(".pyx", ".pxd", under="lb")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX)\b|NotImplementedError|pytest\.mark\.(?:skip|xfail)\b")
RELATIVE = re.compile(r"(?<![\w./])(?:\.\./)+[\w-][\w./-]*")
WITH_PATHS = {"", ".md", ".toml", ".yaml", ".service", ".socket"}


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_python_has_a_docstring(path: Path) -> None:
    text = path.read_text()
    assert not text or ast.get_docstring(ast.parse(text)), "say what the file owns, and what it must not know"


@pytest.mark.parametrize("path", CYTHON, ids=name)
def test_cython_has_a_docstring(path: Path) -> None:
    assert path.read_text().startswith(('"""', "#")) or path.name == "__init__.pxd"


def test_nothing_is_unfinished() -> None:
    found = [
        place
        for path in PYTHON + CYTHON
        if path != Path(__file__) and not path.is_relative_to(ROOT / "bench")
        for place in _find(UNFINISHED, path)
    ]
    assert not found, "\n".join(found)


def test_paths_lead_to_something_in_the_project() -> None:
    texts = [path for path in project_files() if path.suffix in WITH_PATHS]
    assert len(texts) > 10
    broken = [
        f"{name(path)}: {found}"
        for path in texts
        for found in RELATIVE.findall(path.read_text())
        if not (path.parent / found).resolve().is_relative_to(ROOT) or not (path.parent / found).exists()
    ]
    assert not broken, "\n".join(broken)


def test_no_file_knows_where_the_checkout_is() -> None:
    found = [place for path in project_files() for place in _find(re.compile(re.escape(f"{ROOT}/")), path)]
    assert not found, "\n".join(found)


def test_every_make_target_is_described() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE))
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert phony
    assert phony == described


def _find(pattern: re.Pattern[str], path: Path) -> list[str]:
    lines = enumerate(path.read_text(errors="replace").splitlines(), 1)
    return [f"{name(path)}:{line}: {text.strip()}" for line, text in lines if pattern.search(text)]
