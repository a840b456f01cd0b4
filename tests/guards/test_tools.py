"""The linters and the type checker find nothing. `make lint` is this and the other guards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guards.sources import ROOT, files, name, project_files

TOOLS = Path(sys.executable).parent

COMMANDS = {
    "ruff": ["ruff", "check", "--no-cache", "."],
    "ruff-format": ["ruff", "format", "--no-cache", "--check", "."],
    "mypy": ["mypy"],
    "cython-lint": ["cython-lint", *(name(path) for path in files(".pyx", ".pxd", under="lb"))],
    "import-linter": ["lint-imports", "--no-cache"],
    "codespell": ["codespell", *(name(path) for path in project_files() if path.suffix != ".json")],
    "shellcheck": ["shellcheck", ".ci/run", *(name(path) for path in sorted((ROOT / "scripts").iterdir()))],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_finds_nothing(command: list[str]) -> None:
    # cython-lint calls pycodestyle, and shellcheck is a Debian package: both are found by PATH.
    environment = os.environ | {"PATH": f"{TOOLS}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, f"{' '.join(command[:3])}\n{done.stdout}{done.stderr}"
