"""The commands in README.md and docs/ run, and print what the pages show."""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.blocks import PAGES, ROOT, Block, differs, find_blocks
from tests.harness.ports import free_port

BLOCKS = [block for page in PAGES for block in find_blocks(page)]
REASONS_NOT_TO_RUN = (
    "needs root",
    "needs systemd",
    "needs a cluster",
    "runs until stopped",
    "takes minutes",
    "is what this test does",
)


class Scratch(NamedTuple):
    """Where commands run: a copy of conf/, and a place and port of their own for what the pages name."""

    directory: Path
    port: int
    environment: dict[str, str]

    def localise(self, text: str) -> str:
        return text.replace(":8080", f":{self.port}").replace("/run/lb/", f"{self.directory}/run/")

    def generalise(self, text: str) -> str:
        return text.replace(f":{self.port}", ":8080").replace(f"{self.directory}/run/", "/run/lb/")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Scratch:
    directory = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "conf", directory / "conf")
    (directory / "run").mkdir()
    _install_lb(directory / ".venv/bin")
    environment = os.environ | {
        "PATH": f"{directory}/.venv/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RUNTIME_DIRECTORY": str(directory / "run"),
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    return Scratch(directory, free_port(), environment)


@pytest.fixture(scope="module")
def demo(scratch: Scratch) -> Iterator[None]:
    command = [
        f"{scratch.directory}/.venv/bin/lb",
        "run",
        "--demo",
        "conf/demo",
        "--publish",
        f"80=127.0.0.1:{scratch.port}",
    ]
    with (scratch.directory / "demo.log").open("w+") as log:
        daemon = subprocess.Popen(
            command, cwd=scratch.directory, env=scratch.environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait_until_it_serves(daemon, scratch, log.name)
            yield
        finally:
            daemon.terminate()
            assert daemon.wait(timeout=40) == 0, Path(log.name).read_text()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.is_run], ids=lambda block: block.id)
def test_prints_what_the_page_shows(block: Block, scratch: Scratch, request: pytest.FixtureRequest) -> None:
    if block.needs_demo:
        request.getfixturevalue("demo")
    assert block.commands, f"{block.id}: no line of this block begins with `$ `"
    for command in block.commands:
        done = subprocess.run(
            ["bash", "-c", scratch.localise(command.line)],
            cwd=scratch.directory,
            env=scratch.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        printed = scratch.generalise(done.stdout)
        assert not differs(command.output, printed), _difference(block, command.line, command.output, printed)
        if not command.output.strip():
            assert done.returncode == 0, f"{block.id}: $ {command.line}\n{printed}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.is_run], ids=lambda block: block.id)
def test_what_is_not_run_has_a_known_reason(block: Block) -> None:
    assert block.marker.removeprefix("not run: ") in REASONS_NOT_TO_RUN


def test_the_comparison_notices_a_difference() -> None:
    assert not differs("a … c\n…\nend", "a b c\n1\n2\nend\n")
    assert not differs("a\n…\nend", "a\nend\n")
    assert differs("a … c", "a b d\n")
    assert differs("a", "a\nb\n")


def _install_lb(directory: Path) -> None:
    """The `lb` that the pages call, whether or not the environment that runs the tests has it installed."""
    directory.mkdir(parents=True)
    command = directory / "lb"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lb "$@"\n')
    command.chmod(0o755)


def _wait_until_it_serves(daemon: subprocess.Popen[bytes], scratch: Scratch, log: str) -> None:
    deadline = time.monotonic() + 60
    request = urllib.request.Request(f"http://127.0.0.1:{scratch.port}/", headers={"Host": "shop.example.com"})
    while True:
        assert daemon.poll() is None, f"lb ended with {daemon.returncode}:\n{Path(log).read_text()}"
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # between two looks at the condition


def _difference(block: Block, command: str, shown: str, printed: str) -> str:
    lines = difflib.unified_diff(
        shown.rstrip().splitlines(), printed.rstrip().splitlines(), "shown", "printed", n=20, lineterm=""
    )
    return f"{block.id}: $ {command}\n" + "\n".join(lines)
