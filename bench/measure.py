"""What figures are made of: the run's settings, the rows they produce, and the contenders they start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

from bench.certificate import make_certificate
from bench.contenders import ADDED_HEADERS, ClosingFloor, Contender, Floor, Proxy
from bench.export import Cluster, certificate_names
from bench.load import BODY_BYTES, GRPC_BYTES, Client, LoadFailed, Reply, call
from bench.machine import cpu_seconds

T = TypeVar("T")
P = TypeVar("P", bound=Proxy)


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
    seconds: float
    """How long a turn takes."""
    figure: str = ""
    """Which one is being measured."""
    failures: list[str] = field(default_factory=list)
    """What could not be measured."""

    def choose(self, *names: str, slow: tuple[str, ...] = ()) -> list[type[Contender]]:
        """Those of `names` that take part; without the `slow` ones when it shall be quick."""
        return [kind for kind in self.contenders if kind.name in names and not (self.quick and kind.name in slow)]

    def fail(self, what: str, why: Exception) -> None:
        say(f"  {what} not measured: {why}")
        self.failures.append(f"{self.figure} of {what}")

    def each(self, kinds: Iterable[type[Contender]], take: Callable[[type[Contender]], Row]) -> list[Row]:
        """One row a contender; one that fails costs only its own."""
        rows = []
        for kind in kinds:
            try:
                rows.append(take(kind))
            except (LoadFailed, RuntimeError) as failure:
                self.fail(kind.name, failure)
        return rows

    def take_turns(self, contenders: Iterable[P], take: Callable[[P], T]) -> dict[str, list[T]]:
        """What each contender gave in each round, by name, after one turn to warm up.

        One that fails costs only its own."""
        taken: dict[str, list[T]] = {contender.name: [] for contender in contenders}
        for _ in range(self.rounds + 1):
            for contender in contenders:
                if contender.name in taken:
                    try:
                        taken[contender.name].append(take(contender))
                    except (LoadFailed, RuntimeError) as failure:
                        self.fail(contender.name, failure)
                        del taken[contender.name]
        return {name: values[1:] for name, values in taken.items()}


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    unit: str
    ratio_to: str
    """What the ratio compares with; empty when there is none."""
    target: str
    limit: float | None
    """The target as a number: for lb's median ratio where there is one, else for its median value. None: only `rivals`
    count."""
    about: str
    run: Callable[[Settings], list[Row]]
    extra_limits: dict[str, float] = field(default_factory=dict)
    """The same for what stands in Row.extra."""
    rivals: dict[str, float] = field(default_factory=dict)
    """The most that lb's value may be as a multiple of these peers'."""


def reaches(figure: Figure, rows: list[Row]) -> bool | None:
    """Whether lb does what the figure asks of it; None when it, or what it is compared with, was not measured."""
    by_name = {row.contender: row for row in rows}
    if (lb := by_name.get("lb")) is None or (figure.ratio_to and not lb.bases):
        return None
    checks = [median(lb.ratios or lb.values) <= figure.limit] if figure.limit is not None else []
    checks += [lb.extra[name] <= most for name, most in figure.extra_limits.items()]
    checks += [ratio(lb, by_name[name]) <= most for name, most in figure.rivals.items() if name in by_name]
    return all(checks) if checks else None


def ratio(row: Row, other: Row) -> float:
    """Median of the ratios of the same rounds; of the medians where the two have not taken turns."""
    if len(row.values) == len(other.values):
        return median(against(row, other).ratios)
    return median(row.values) / median(other.values)


def best_peer(rows: list[Row]) -> Row | None:
    """Who comes out best besides lb and the floor."""
    peers = [row for row in rows if row.contender not in ("floor", "lb", "lb-single-file")]
    return min(peers, key=lambda row: median(row.values), default=None)


def verdict(figure: Figure, rows: list[Row]) -> str:
    """Words for the report."""
    words = {True: "lb reaches it", False: "**lb misses it**", None: "nobody to compare lb with was measured"}
    if all(row.contender != "lb" for row in rows):
        words[None] = "**lb was not measured**"
    return f"Must reach: {figure.target}; {words[reaches(figure, rows)]}."


def against(row: Row, other: Row) -> Row:
    """The row as compared with another one of the same rounds."""
    return replace(row, bases=other.values)


def against_best(rows: list[Row], *names: str) -> list[Row]:
    """All rows compared with that of the best of these contenders; as they are when none of them was measured."""
    best = min((row for row in rows if row.contender in names), key=lambda row: median(row.values), default=None)
    return [against(row, best) for row in rows] if best else rows


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(figure: Figure, rows: list[Row]) -> None:
    for row in rows:
        compared = f"{median(row.ratios):.3f} ×  ({min(row.ratios):.3f}-{max(row.ratios):.3f})  " if row.bases else ""
        extra = "  ".join(f"{key} {value:g}" for key, value in row.extra.items())
        say(f"  {row.contender:<16} {compared}{median(row.values):.2f} {figure.unit}  {extra}")
    lb, peer = next((row for row in rows if row.contender == "lb"), None), best_peer(rows)
    if lb and peer and median(peer.values):
        say(f"  lb is at {ratio(lb, peer):.3f} × {peer.contender}, the best peer")
    say(f"  {verdict(figure, rows).replace('*', '')}")


class Cost(NamedTuple):
    """µs of CPU per request."""

    proxy: float
    backend: float


@contextmanager
def cpu_cost(contender: Proxy, settings: Settings) -> Iterator[Callable[[float], Cost]]:
    """What it yields turns the number of requests made since into their cost."""
    pids = contender.pid, settings.backend_pid
    before = [cpu_seconds(pid) for pid in pids]

    def cost(requests: float) -> Cost:
        return Cost(*((cpu_seconds(pid) - was) * 1e6 / requests for pid, was in zip(pids, before, strict=True)))

    yield cost


def client_cost(
    contender: Proxy, settings: Settings, targets: Path, how: str, connections: int = 64, body_bytes: int = 128
) -> Cost:
    """Of the requests that client.c gets answered in a turn. What opening kept connections costs is not in it."""
    with (
        Client("load", contender.port, connections, settings.seconds, 0, targets, how=how) as client,
        cpu_cost(contender, settings) as cost,
    ):
        client.begin()
        totals = client.read_line()
        took = cost(max(1, totals["requests"]))
    each = totals["requests"]
    handshakes = {"plain": (0, 0), "tls": (connections, 0), "full": (each, 0), "resumed": (each, each)}[how]
    whole = each and totals["bytes"] >= each * body_bytes
    if not whole or totals["failed"] or totals["closed"] or (totals["handshakes"], totals["resumed"]) != handshakes:
        raise LoadFailed(f"{contender.name}: {totals}")
    return took


def cost_rows(taken: dict[str, list[Cost]]) -> list[Row]:
    def backend(costs: list[Cost]) -> float:
        return round(median(cost.backend for cost in costs), 1)

    return [
        Row(name, [cost.proxy for cost in costs], extra={"backend µs": backend(costs)}) for name, costs in taken.items()
    ]


def secure(cluster: Cluster, directory: Path) -> Cluster:
    """The same cluster, served by TLS."""
    return replace(cluster, certificate=make_certificate(directory, certificate_names(cluster)))


@contextmanager
def running(contender: Contender) -> Iterator[Contender]:
    """Started, and checked to do its work."""
    with started(contender, check_work):
        yield contender


@contextmanager
def running_all(kinds: list[type[Contender]], cluster: Cluster, settings: Settings) -> Iterator[list[Contender]]:
    """All that can at once. Waiting ones cost nothing; so they can take turns quickly."""
    with all_started([kind(cluster, settings.directory) for kind in kinds], check_work, settings) as contenders:
        yield contenders


@contextmanager
def started(proxy: P, check: Callable[[P], None]) -> Iterator[P]:
    try:
        proxy.start()
        check(proxy)
        yield proxy
    finally:
        proxy.stop()


@contextmanager
def all_started(proxies: Iterable[P], check: Callable[[P], None], settings: Settings) -> Iterator[list[P]]:
    """Those of them that start and do their work."""
    with ExitStack() as stack:
        found = []
        for proxy in proxies:
            try:
                found.append(stack.enter_context(started(proxy, check)))
            except (LoadFailed, RuntimeError) as failure:
                settings.fail(proxy.name, failure)
        yield found


def check_work(contender: Contender) -> None:
    """The answers are whole, and the backend sees the headers that everybody must add."""
    route = contender.cluster.routes[0]
    if contender.cluster.grpc:
        check_calls(contender)
        return
    for answer, size in BODY_BYTES.items():
        if answer.endswith("close") or (isinstance(contender, ClosingFloor) and answer != "128"):
            continue
        got = contender.fetch(route.host, route.target(answer))
        if got.status != 200 or got.body != b"x" * size:
            raise LoadFailed(f"{contender.name} answers /{answer} with {got.status} and {len(got.body)} bytes")
    if isinstance(contender, Floor):
        return
    check_head(contender, contender.fetch(route.host, route.target("echo")).body)
    if contender.fetch("nobody.example.com", "/", server_name=route.host).status not in range(400, 600):
        raise LoadFailed(f"{contender.name} serves a host that has no route")


def check_calls(contender: Contender) -> None:
    """The same for gRPC."""
    route = contender.cluster.routes[0]
    assert contender.cluster.certificate
    unary = partial(call, contender.port, route.host, certificate=contender.cluster.certificate, message=b"hello")
    got = unary(route.target("Unary"))
    if got != Reply("0", b"x" * GRPC_BYTES):
        raise LoadFailed(f"{contender.name} answers a call with {got}")
    check_head(contender, unary(route.target("echo")).message)


def check_head(contender: Contender, received: bytes) -> None:
    """What the backend saw of a request has the host and all headers that are to be added."""
    head = f"\n{received.decode().lower()}"
    host = contender.cluster.routes[0].host
    missing = [name for name in ADDED_HEADERS if f"\n{name}: " not in head]
    if missing or not (f"\nhost: {host}\r\n" in head or f"\n:authority: {host}\r\n" in head):
        raise LoadFailed(f"{contender.name} does not send {missing or 'the host'}:\n{head}")
