"""What the guards look at: the project's files, with text files told from everything built or downloaded."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = frozenset({"build", "dist", "results", "bin", "__pycache__", "node_modules"})
FASTPATH = ROOT / "lb" / "_fastpath"


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that somebody wrote. Hidden directories but .ci hold tools' caches and the environment."""
    found = []
    for directory, names, files in os.walk(ROOT):
        names[:] = [
            name
            for name in names
            if name == ".ci" or (name[0] != "." and name not in BUILT and not name.endswith(".egg-info"))
        ]
        found += [Path(directory, name) for name in files]
    generated = {".so", ".pyc", ".html"}
    return tuple(sorted(path for path in found if path.suffix not in generated and not _is_generated_c(path)))


def files(*suffixes: str, under: str = "") -> list[Path]:
    """Project files with one of these suffixes below a directory."""
    base = ROOT / under
    return [path for path in project_files() if path.suffix in suffixes and path.is_relative_to(base)]


def name(path: Path) -> str:
    """As a person would write it."""
    return str(path.relative_to(ROOT))


def _is_generated_c(path: Path) -> bool:
    return path.suffix == ".c" and path.parent == FASTPATH
