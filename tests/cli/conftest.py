"""Runs `lb` in a directory of inputs, and compares what it prints with golden files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lb.cli.main import main

HERE = Path(__file__).parent


@pytest.fixture
def lb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Calls the CLI with tests/cli/inputs as the working directory; not a terminal, no colours."""
    monkeypatch.chdir(HERE / "inputs")
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def run(*arguments: str, input: str | None = None) -> Result:
        return CliRunner().invoke(main, arguments, input=input, prog_name="lb", catch_exceptions=False)

    return run


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with tests/cli/golden/NAME; `--update-golden` writes it."""

    def compare(name: str, text: str) -> None:
        path = HERE / "golden" / name
        if request.config.getoption("--update-golden", default=False):
            path.write_text(text)
        assert text == path.read_text()

    return compare
