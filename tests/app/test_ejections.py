"""What is told of endpoints that are ejected."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from lb._fastpath.engine import Engine
from lb.compile.table import Compiler
from lb.model.config import Config
from lb.model.upstream import Endpoint, Upstream
from lb.observe.ejections import MOST_TOLD, Ejections


class FakeEngine:
    """The engine as Ejections sees it."""

    def __init__(self, *keys: str) -> None:
        self.keys = list(keys)
        self.failed: list[str] = []
        self.changes = 7
        self.walks = 0

    def change(self, *failed: str) -> None:
        self.failed = list(failed)
        self.changes += 1

    def ejection_changes(self) -> int:
        return self.changes

    def ejected(self) -> dict[tuple[str, str], tuple[int, int, str]]:
        self.walks += 1
        return {("web", key): (9_500, 3, "connection refused") for key in self.failed}

    def endpoint_stats(self, upstream: str) -> list[dict[str, Any]]:
        assert upstream == "web"
        return [{"key": key} for key in self.keys]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine("a:80", "b:80")


def look(ejections: Ejections) -> list[tuple[str, str]]:
    """(level, endpoint or the whole line) of what is told."""
    with capture_logs() as lines:
        ejections.look()
    return [(line["log_level"], line.get("endpoint", line["event"])) for line in lines]


def test_each_is_told_of_once_when_it_goes_and_once_when_it_is_back(engine: FakeEngine) -> None:
    ejections = Ejections(engine)  # type: ignore[arg-type]
    engine.change("a:80")
    with capture_logs() as lines:
        ejections.look()
    (line,) = lines
    assert (line["upstream"], line["endpoint"], line["why"]) == ("web", "a:80", "connection refused")
    assert (line["failed_in_row"], line["seconds_left"]) == (3, 10)
    assert look(ejections) == []
    engine.change("a:80", "b:80")
    assert look(ejections) == [("warning", "b:80")]
    engine.change("b:80")
    assert look(ejections) == [("info", "a:80")]
    engine.change("a:80", "b:80")
    assert look(ejections) == [("warning", "a:80")]


def test_endpoints_are_looked_at_only_when_something_has_changed(engine: FakeEngine) -> None:
    ejections = Ejections(engine)  # type: ignore[arg-type]
    for _ in range(3):
        ejections.look()
    assert engine.walks == 0
    engine.change("a:80")
    for _ in range(3):
        ejections.look()
    assert engine.walks == 1


def test_one_that_is_removed_is_not_back(engine: FakeEngine) -> None:
    ejections = Ejections(engine)  # type: ignore[arg-type]
    engine.change("a:80", "b:80")
    ejections.look()
    engine.keys.remove("a:80")
    engine.change()
    assert look(ejections) == [("info", "b:80")]


def test_when_many_go_at_once_a_few_are_told_of_and_how_many_more() -> None:
    keys = [f"10.0.0.{number}:80" for number in range(MOST_TOLD + 5)]
    engine = FakeEngine(*keys)
    ejections = Ejections(engine)  # type: ignore[arg-type]
    engine.change(*keys)
    lines = look(ejections)
    assert len(lines) == MOST_TOLD + 1
    assert lines[-1][1].startswith("5 more endpoints are ejected")
    engine.change()
    lines = look(ejections)
    assert len(lines) == MOST_TOLD + 1
    assert lines[-1][1].startswith("5 more endpoints are no longer ejected")


def test_an_engine_in_which_nothing_has_failed_has_nobody_ejected() -> None:
    engine = Engine(threads=1)
    assert engine.ejected() == {}
    web = Upstream("web", endpoints=(Endpoint("10.0.0.1", 80),))
    engine.publish(Compiler(engine).compile(Config(upstreams={"web": web}), 1))
    assert engine.ejected() == {}
    (one,) = engine.endpoint_stats("web")
    assert (one["failures_in_row"], one["last_failure"]) == (0, "")
    assert engine.upstream_stats()["web"]["ejected"] == engine.upstream_stats()["web"]["ejections"] == 0
