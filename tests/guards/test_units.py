"""The systemd units are valid, and give the daemon no more than it needs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from lb.app import CLOSE_SECONDS
from lb.settings import Settings
from tests.guards.sources import ROOT

UNITS = ROOT / "systemd"
MOST_EXPOSURE = 2.0
"""`systemd-analyze security` rates from 0 (nothing allowed) to 10; below 2 is its `OK`."""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with commands that exist: lb is not installed where tests run, and containers often lack `kill`."""
    for path in UNITS.glob("lb.*"):
        (tmp_path / path.name).write_text(re.sub(r"/opt/lb/bin/lb|/bin/kill", "/bin/true", path.read_text()))
    return tmp_path


def test_units_are_valid(units: Path) -> None:
    done = _analyze("verify", "--man=no", units / "lb.service", units / "lb.socket", path=units)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_units_in_the_documentation_are_valid(units: Path) -> None:
    """Each says in a comment where it goes. A name that systemd does not allow it passes over with a message."""
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    found = re.findall(r"^```ini\n(# \S+/(\S+)\n.*?)^```$", pages, re.MULTILINE | re.DOTALL)
    assert found
    for text, name in found:
        (units / name).write_text(text)
        done = _analyze("verify", "--man=no", units / name, path=units)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_service_is_confined(units: Path) -> None:
    done = _analyze("security", "--offline=true", "--no-pager", units / "lb.service", path=units)
    found = re.search(r"Overall exposure level for lb.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) < MOST_EXPOSURE, done.stdout


def test_user_file_is_valid() -> None:
    done = subprocess.run(
        ["systemd-sysusers", "--dry-run", UNITS / "lb.sysusers"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_reload_checks_what_is_served() -> None:
    service = (UNITS / "lb.service").read_text()
    start = re.search(r"^ExecStart=\S+ run (?:-c )?(.*)$", service, re.MULTILINE)
    reload = re.search(r"^ExecReload=\S+ check (?:-c )?(.*)$", service, re.MULTILINE)
    assert start
    assert reload
    assert start[1] == reload[1]


def test_stopping_takes_longer_than_draining() -> None:
    """Else systemd would kill requests that lb still waits for."""
    service = (UNITS / "lb.service").read_text()
    stop = re.search(r"^TimeoutStopSec=(\d+)$", service, re.MULTILINE)
    assert stop
    assert int(stop[1]) * 1000 >= Settings().drain_timeout_ms + CLOSE_SECONDS * 1000


def _analyze(*arguments: str | Path, path: Path) -> subprocess.CompletedProcess[str]:
    # The colon keeps the system's own units (network-online.target) findable.
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{path}:", "SYSTEMD_COLORS": "0"}
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
