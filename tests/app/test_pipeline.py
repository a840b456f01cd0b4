"""The pipeline's promises: order, durations, generations, and that what fails changes nothing."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, NamedTuple

import pytest
import structlog

from lb import pipeline as pipeline_module
from lb.model.config import Config
from lb.objects.meta import Key
from lb.objects.view import Changes
from lb.pipeline import Pipeline
from lb.problems import Origin, Problem
from tests.app.fakes import FakeCompiler, FakeEngine, FakeStore, make_config


class Result(NamedTuple):
    config: Config
    problems: tuple[Problem, ...] = ()


class Line:
    """A pipeline among fakes; `results` is what translation answers next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.compiler, self.engine = FakeStore(), FakeCompiler(), FakeEngine()
        self.results: list[Result | Exception] = []
        self.calls: list[tuple[Changes, object]] = []
        monkeypatch.setattr(pipeline_module, "translate", self.translate)
        self.pipeline = Pipeline(self.store, None, self.compiler, self.engine)  # type: ignore[arg-type]

    def translate(self, view: object, options: object, changes: Changes, previous: object) -> Result:
        self.calls.append((changes, previous))
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    return Line(monkeypatch)


async def test_a_build_goes_through_all_stages(line: Line) -> None:
    line.results = [Result(make_config())]
    build = await line.pipeline.apply()
    assert (build.outcome, build.generation) == ("published", 1)
    assert list(build.seconds) == ["read", "translate", "compile", "publish"]
    assert all(seconds >= 0 for seconds in build.seconds.values())
    assert build.objects == {"Ingress": 2, "Service": 1}
    assert line.engine.tables == [(1, make_config())]
    assert line.pipeline.config == make_config()


async def test_the_first_build_forgets_nothing_and_later_ones_are_incremental(line: Line) -> None:
    first, second = Result(make_config(1)), Result(make_config(2))
    line.results = [first, second]
    await line.pipeline.apply()
    line.store.pending = changes = Changes(changed=frozenset({Key("Ingress", "shop", "web")}))
    await line.pipeline.apply()
    assert line.calls == [(Changes(everything=True), None), (changes, first)]


async def test_nothing_is_published_when_nothing_changed(line: Line) -> None:
    line.results = [Result(make_config())] * 2
    await line.pipeline.apply()
    build = await line.pipeline.apply()
    assert (build.outcome, build.generation) == ("unchanged", 1)
    assert "compile" not in build.seconds
    assert len(line.engine.tables) == 1
    assert line.pipeline.last_good == build


async def test_a_translation_from_nothing_that_gives_the_same_is_no_change(line: Line) -> None:
    line.results = [Result(make_config()), RuntimeError("a bug"), Result(make_config())]
    outcomes = [(await line.pipeline.apply()).outcome for _ in range(3)]
    assert outcomes == ["published", "refused", "unchanged"]
    assert len(line.engine.tables) == 1


async def test_an_empty_input_is_published_too(line: Line) -> None:
    line.results = [Result(Config())]
    assert (await line.pipeline.apply()).outcome == "published"


@pytest.mark.parametrize("stage", ["read", "translate", "compile", "publish"])
async def test_whatever_fails_leaves_what_serves(line: Line, stage: str) -> None:
    line.results = [Result(make_config(1))]
    await line.pipeline.apply()

    def read() -> None:
        if stage == "read":
            raise OSError("disk on fire")

    line.results = [RuntimeError("a bug") if stage == "translate" else Result(make_config(2))]
    line.compiler.fail = stage == "compile"
    line.engine.fail_to_publish = stage == "publish"
    build = await line.pipeline.apply(read)

    assert build.outcome == "refused"
    assert build.error
    assert list(build.seconds)[-1] == stage
    assert line.pipeline.generation == 1
    assert line.pipeline.config == make_config(1)
    assert line.engine.tables == [(1, make_config(1))]
    assert line.pipeline.last_refused == build
    assert line.pipeline.last_good is not None
    assert line.pipeline.last_good.generation == 1

    line.compiler.fail = line.engine.fail_to_publish = False
    line.results = [Result(make_config(3))]
    assert (await line.pipeline.apply()).generation == 2
    assert line.pipeline.config == make_config(3)
    assert line.pipeline.outcomes == {"published": 2, "refused": 1}


async def test_a_refused_build_is_told_with_what_serves_now(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "log", structlog.stdlib.get_logger())
    line.compiler.fail = True
    line.results = [Result(make_config(1)), Result(make_config(1)), Result(make_config(2))]
    with structlog.testing.capture_logs() as told:
        await line.pipeline.apply()
        line.compiler.fail = False
        await line.pipeline.apply()
        line.compiler.fail = True
        await line.pipeline.apply()
    assert [(one["log_level"], one["event"], one["generation"], one["error"]) for one in told] == [
        ("error", "the first build was refused: nothing is served", 0, "ValueError: cannot compile this"),
        ("error", "build refused; what served before goes on", 1, "ValueError: cannot compile this"),
    ]


async def test_after_a_failed_translation_the_next_one_does_everything_anew(line: Line) -> None:
    """It still knows what serves in place of what has turned bad."""
    first, third = Result(make_config(1)), Result(make_config(2))
    line.results = [first, RuntimeError("a bug"), third, Result(make_config(3))]
    for _ in range(4):
        await line.pipeline.apply()
    assert line.calls[2:] == [(Changes(everything=True), first), (Changes(), third)]


async def test_after_two_failed_translations_the_next_one_starts_from_nothing(line: Line) -> None:
    """What it builds on may be what makes it fail."""
    line.results = [Result(make_config(1)), RuntimeError("a bug"), RuntimeError("again"), Result(make_config(2))]
    for _ in range(4):
        await line.pipeline.apply()
    assert line.calls[3] == (Changes(everything=True), None)


async def test_problems_of_reading_and_of_translation_are_kept_also_when_refused(line: Line) -> None:
    line.store.found = [Problem("LB1002", Origin(file="a.yaml"), "syntax error")]
    line.results = [Result(make_config(), (Problem("LB4003", Origin(file="b.yaml"), "no endpoint"),))]
    line.compiler.fail = True
    build = await line.pipeline.apply()
    assert build.problems == {"error": 1, "warning": 1, "note": 0}
    assert [problem.code for problem in line.pipeline.problems] == ["LB1002", "LB4003"]


async def test_builds_run_one_after_the_other_and_the_loop_goes_on(line: Line) -> None:
    line.results = [Result(make_config(1)), Result(make_config(2))]
    started, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    order: list[Any] = []

    def slow() -> None:
        loop.call_soon_threadsafe(started.set)
        assert go_on.wait(20)
        order.append("slow")

    first = asyncio.create_task(line.pipeline.apply(slow))
    second = asyncio.create_task(line.pipeline.apply(lambda: order.append("second")))
    await started.wait()  # the loop runs while the first build does
    assert not order
    go_on.set()
    assert [(await first).generation, (await second).generation] == [1, 2]
    assert order == ["slow", "second"]
