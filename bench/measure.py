"""What figures are made of: the run's settings, the rows they produce, and the contenders they start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.contenders import ADDED_HEADERS, ClosingFloor, Contender, Floor
from bench.export import Cluster
from bench.load import BODY_BYTES, LoadFailed, fetch


@dataclass(frozen=True)
class Row:
    """One contender's values, and what each of them is compared with (empty: with nothing)."""

    contender: str
    values: list[float]
    bases: list[float] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """Paired: both sides of each ratio were taken in the same round."""
        return [value / base for value, base in zip(self.values, self.bases, strict=True)] if self.bases else []


@dataclass(frozen=True)
class Settings:
    quick: bool
    contenders: tuple[type[Contender], ...]
    """In the order they take their turns."""
    directory: Path
    backend_port: int
    backend_pid: int
    rounds: int
    failures: list[str] = field(default_factory=list)
    """What could not be measured."""

    def choose(self, *names: str, slow: tuple[str, ...] = ()) -> list[type[Contender]]:
        """Those of `names` that take part; without the `slow` ones when it shall be quick."""
        return [kind for kind in self.contenders if kind.name in names and not (self.quick and kind.name in slow)]

    def fail(self, what: str, why: Exception) -> None:
        say(f"  {what} not measured: {why}")
        self.failures.append(what)

    def each(self, kinds: Iterable[type[Contender]], take: Callable[[type[Contender]], Row]) -> list[Row]:
        """One row a contender; one that fails costs only its own."""
        rows = []
        for kind in kinds:
            try:
                rows.append(take(kind))
            except (LoadFailed, RuntimeError) as failure:
                self.fail(kind.name, failure)
        return rows


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    unit: str
    ratio_to: str
    """What the ratio compares with; empty when there is none."""
    target: str
    limit: float | None
    """The target as a number: for lb's median ratio where there is one, else for its median value. None: as good as
    nginx and HAProxy."""
    about: str
    run: Callable[[Settings], list[Row]]
    extra_limits: dict[str, float] = field(default_factory=dict)
    """The same for what stands in Row.extra."""


def reaches(figure: Figure, rows: list[Row]) -> bool | None:
    """Whether lb does what the figure asks of it; None when it was not measured."""
    found = {row.contender: median(row.ratios or row.values) for row in rows}
    rivals = [found[name] for name in ("nginx", "haproxy") if name in found]
    limit = figure.limit if figure.limit is not None else min(rivals, default=None)
    lb = next((row for row in rows if row.contender == "lb"), None)
    if lb is None or limit is None:
        return None
    return found["lb"] <= limit and all(lb.extra[name] <= most for name, most in figure.extra_limits.items())


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show_row(row: Row, unit: str) -> None:
    ratio = f"{median(row.ratios):.3f} ×  ({min(row.ratios):.3f}-{max(row.ratios):.3f})  " if row.bases else ""
    extra = "  ".join(f"{key} {value:g}" for key, value in row.extra.items())
    say(f"  {row.contender:<16} {ratio}{median(row.values):.2f} {unit}  {extra}")


@contextmanager
def running(kinds: list[type[Contender]], cluster: Cluster, directory: Path) -> Iterator[list[Contender]]:
    """All of them at once, each checked to do its work. Waiting ones cost nothing; so they can take turns quickly."""
    with ExitStack() as stack:
        started = []
        for kind in kinds:
            contender = kind(cluster, directory)
            stack.callback(contender.stop)
            contender.start()
            check_work(contender)
            started.append(contender)
        yield started


def check_work(contender: Contender) -> None:
    """The answers are whole, and the backend sees the headers that everybody must add."""
    route = contender.cluster.routes[0]
    for answer, size in BODY_BYTES.items():
        if answer.endswith("close") or (isinstance(contender, ClosingFloor) and answer != "128"):
            continue
        got = fetch(contender.port, route.host, route.target(answer))
        if got.status != 200 or got.body != b"x" * size:
            raise LoadFailed(f"{contender.name} answers /{answer} with {got.status} and {len(got.body)} bytes")
    if isinstance(contender, Floor):
        return
    head = fetch(contender.port, route.host, route.target("echo")).body.decode().lower()
    missing = [name for name in ADDED_HEADERS if f"\n{name}: " not in head]
    if missing or f"\nhost: {route.host}\r\n" not in head:
        raise LoadFailed(f"{contender.name} does not send {missing or 'the host'}:\n{head}")
    if fetch(contender.port, "nobody.example.com", "/").status != 404:
        raise LoadFailed(f"{contender.name} serves a host that has no route")
