"""lb's own log: forms, levels, and the journal's priorities."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from lb.observe import logs


@pytest.fixture(autouse=True)
def keep_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_json_lines_from_both_libraries() -> None:
    stream = io.StringIO()
    logs.set_up("info", "auto", stream)
    structlog.stdlib.get_logger("lb.test").info("opened", port=80)
    logging.getLogger("other").warning("about %s", "it")
    structlog.stdlib.get_logger("lb.test").debug("hidden")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["port"], first["level"]) == ("opened", 80, "info")
    assert (second["event"], second["level"]) == ("about it", "warning")


def test_the_level_changes_at_once() -> None:
    stream = io.StringIO()
    logs.set_up("error", "json", stream)
    log = structlog.stdlib.get_logger("lb.test")
    log.info("before")
    logs.set_level("debug")
    log.debug("after")
    assert logs.level() == "debug"
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["after"]


def test_exceptions_are_told() -> None:
    stream = io.StringIO()
    logs.set_up("info", "json", stream)
    try:
        raise ValueError("no")
    except ValueError:
        structlog.stdlib.get_logger("lb.test").exception("failed")
    assert "ValueError: no" in json.loads(stream.getvalue())["exception"]


def test_console_text() -> None:
    stream = io.StringIO()
    logs.set_up("info", "console", stream)
    structlog.stdlib.get_logger("lb.test").info("opened", port=80)
    assert "opened" in stream.getvalue()
    assert "port=80" in stream.getvalue()


def test_the_journal_gets_priorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert logs.reads_journal(stream)
        logs.set_up("info", "auto", stream)
        log = structlog.stdlib.get_logger("lb.test")
        log.info("one")
        log.error("two")
    lines = (tmp_path / "journal").read_text().splitlines()
    assert [line[:3] for line in lines] == ["<6>", "<3>"]
    assert json.loads(lines[1][3:])["event"] == "two"
