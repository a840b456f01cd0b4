"""The one idea: objects come in, one value comes out, threads read it.

    store ──> translate ──> model ──> compile ──> publish
    objects   what they     Config    one table   one pointer swap
    by key    mean                    of C data   in the engine

Read this file first. It owns the order of the stages, the generation counter and the rule that a build that fails
never replaces one that works: until its last step a build changes nothing that serves, so whatever goes wrong before
costs only the change itself. It knows nothing of files, sockets or Kubernetes.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

import msgspec
import structlog

from lb.model.config import Config
from lb.objects.view import Changes
from lb.problems import CODES, SEVERITIES, Origin, Problem, Severity
from lb.translate.translation import Options, Translation, translate

if TYPE_CHECKING:
    from lb._fastpath.compiled import Table
    from lb._fastpath.engine import Engine
    from lb.compile.table import Compiler
    from lb.sources.store import Store

log = structlog.stdlib.get_logger(__name__)

Outcome = Literal["published", "unchanged", "refused"]
OUTCOMES: tuple[Outcome, ...] = ("published", "unchanged", "refused")
STAGES = ("read", "translate", "compile", "publish")


class Build(msgspec.Struct, frozen=True):
    """What one run through the line did."""

    generation: int
    """Of the table that serves after it; 0 before the first one."""
    outcome: Outcome
    time: float
    """When it ended, in seconds since the epoch."""
    seconds: dict[str, float]
    """How long each stage that was reached took. Files that change are read before, while the build does not wait."""
    objects: dict[str, int]
    """By kind."""
    problems: dict[str, int]
    """By severity."""
    error: str = ""
    """Why it was refused."""


class Pipeline:
    """Runs builds one after the other, and remembers what serves and what was refused."""

    def __init__(self, store: Store, options: Options, compiler: Compiler, engine: Engine) -> None:
        self.store = store
        self.options = options
        self.compiler = compiler
        self.engine = engine
        self.config = Config()
        """What serves now."""
        self.generation = 0
        self.read_problems: tuple[Problem, ...] = ()
        """With the newest files, also when they do not serve."""
        self.translated_problems: tuple[Problem, ...] = ()
        """With what the newest objects say. Where such an object stands now is to be asked: see `place`."""
        self.new_errors: tuple[Problem, ...] = ()
        """Of the newest input, those that the input before it did not have."""
        self.newest: Build | None = None
        self.last_good: Build | None = None
        self.last_refused: Build | None = None
        self.outcomes: Counter[Outcome] = Counter()
        self._translation: Translation | None = None
        """The newest that did not fail: it knows what serves in place of what has turned bad since."""
        self._failures = 0
        """Of translation, since then."""
        self._errors: Collection[Hashable] = ()
        self.lock = asyncio.Lock()
        """Held while a build runs. Who changes in the engine what a build reads must hold it."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Of the newest input, also when it does not serve."""
        return (*self.read_problems, *self.translated_problems)

    def place(self, origin: Origin) -> Origin:
        """Where the object of an origin in the model stands now.

        An object that only moved in its file is no change, so the model goes on naming its old line.
        """
        stored = self.store.get(origin.kind, origin.namespace, origin.name) if origin.kind else None
        return origin if stored is None else stored.origin

    async def apply(self, read: Callable[[], object] | None = None) -> Build:
        """Let `read` bring the store up to date, then serve what the store holds. Never raises for what is in it.

        Reading and building run in a worker thread, so that the loop goes on answering meanwhile; nothing else touches
        the store while they do.
        """
        async with self.lock:
            seconds: dict[str, float] = {}
            try:
                config, table = await asyncio.to_thread(self._build, read, seconds)
                if table is not None:
                    self._publish(config, table, seconds)
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                log.exception(
                    "build refused; what served before goes on"
                    if self.generation
                    else "the first build was refused: nothing is served",
                    generation=self.generation,
                    error=text,
                )
                return self._finish("refused", seconds, text)
            return self._finish("published" if table is not None else "unchanged", seconds)

    def _build(self, read: Callable[[], object] | None, seconds: dict[str, float]) -> tuple[Config, Table | None]:
        """Store to table; no table when nothing changed."""
        self.new_errors = ()
        with _timed("read", seconds):
            if read is not None:
                read()
        with _timed("translate", seconds):
            translation, is_fresh = self._translate()
        # An incremental translation that changes nothing gives the very Config of before; to compare 100,000 hosts
        # takes longer than to translate one.
        config = translation.config
        if self.generation and (config is self.config or (is_fresh and config == self.config)):
            return self.config, None
        with _timed("compile", seconds):
            return config, self.compiler.compile(config, self.generation + 1)

    def _translate(self) -> tuple[Translation, bool]:
        """The newest translation, and whether everything was translated for it."""
        changes = self.store.take_changes()
        # Should translation fail, the store has forgotten its changes all the same: the next one does everything anew,
        # and from nothing when it fails again, since what it builds on may be at fault.
        previous = self._translation if self._failures < 2 else None
        is_fresh = previous is None or self._failures > 0
        if is_fresh:
            changes = Changes(everything=True)
        self._failures += 1
        self._translation = translation = translate(self.store, self.options, changes, previous)
        self._failures = 0
        self.read_problems = tuple(self.store.problems())
        self.translated_problems = translation.problems
        self._note_errors()
        return translation, is_fresh

    def _note_errors(self) -> None:
        """A line that moved makes no error a new one."""
        errors: dict[Hashable, Problem] = {
            (one.code, one.origin.object, one.field, one.what): one for one in self.problems if one.severity == "error"
        }
        self.new_errors = tuple(one for key, one in errors.items() if key not in self._errors)
        self._errors = errors.keys()

    def _publish(self, config: Config, table: Table, seconds: dict[str, float]) -> None:
        with _timed("publish", seconds):
            self.engine.publish(table)
        self.config = config
        self.generation += 1

    def _finish(self, outcome: Outcome, seconds: dict[str, float], error: str = "") -> Build:
        severities: Counter[Severity] = Counter()
        for code, count in Counter(map(attrgetter("code"), self.problems)).items():
            severities[CODES[code].severity] += count
        build = Build(
            generation=self.generation,
            outcome=outcome,
            time=time.time(),
            seconds=seconds,
            objects=dict(self.store.counts()),
            problems={severity: severities[severity] for severity in SEVERITIES},
            error=error,
        )
        self.outcomes[outcome] += 1
        self.newest = build
        if outcome == "refused":
            self.last_refused = build
        else:
            self.last_good = build
        return build


def count_problems(build: Build | None, *others: Iterable[Problem]) -> dict[Severity, int]:
    """By severity: those of a build, and `others` that came to light since."""
    counts = Counter(problem.severity for problems in others for problem in problems)
    found = build.problems if build is not None else {}
    return {severity: found.get(severity, 0) + counts[severity] for severity in SEVERITIES}


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = time.monotonic() - started
