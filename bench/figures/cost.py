"""CPU time per request: of the whole process tree, divided by the requests completed."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median

from bench.contenders import ClosingFloor, Contender, Floor, HAProxy, HAProxyForLarge
from bench.export import Cluster, make_cluster
from bench.load import BODY_BYTES, Load, run_wrk, targets_file
from bench.measure import (
    Cost,
    Figure,
    Row,
    Settings,
    against_best,
    client_cost,
    cost_rows,
    cpu_cost,
    running,
    running_all,
    secure,
)

PLAIN = ("floor", "lb", "nginx", "haproxy", "envoy")
FEW, MANY = 100, 100_000


def _measure(contender: Contender, load: Load, settings: Settings) -> Cost:
    with cpu_cost(contender, settings) as cost:
        return cost(run_wrk(load, contender.port, settings.seconds))


def _cost(answer: str, *, close: bool = False) -> Callable[[Settings], list[Row]]:
    def run(settings: Settings) -> list[Row]:
        cluster = make_cluster(FEW, 10, 2, settings.backend_port)
        route = cluster.routes[7]
        kinds = [ClosingFloor if close and kind is Floor else kind for kind in settings.choose(*PLAIN)]
        with running_all(kinds, cluster, settings) as contenders, ExitStack() as stack:
            loads = {}
            for contender in contenders:
                path = route.target("128-close" if isinstance(contender, ClosingFloor) else answer)
                targets = stack.enter_context(targets_file([(route.host, path)]))
                loads[contender.name] = Load(targets, close=close, body_bytes=BODY_BYTES[answer])
            taken = settings.take_turns(contenders, lambda each: _measure(each, loads[each.name], settings))
        return against_best(cost_rows(taken), "floor")

    return run


def _targets(cluster: Cluster) -> list[tuple[str, str]]:
    """Every route once, in an order that no cache can guess."""
    routes = list(cluster.routes)
    random.Random(1).shuffle(routes)
    return [(route.host, route.target("128")) for route in routes]


def _routes(settings: Settings) -> list[Row]:
    few, many = (make_cluster(count, 10, 2, settings.backend_port) for count in (FEW, MANY))

    def take(kind: type[Contender]) -> Row:
        with (
            running(kind(few, settings.directory)) as small,
            running(kind(many, settings.directory)) as large,
            targets_file(_targets(few)) as few_targets,
            targets_file(_targets(many)) as many_targets,
        ):
            turns = [(small, Load(few_targets)), (large, Load(many_targets))]
            for contender, load in turns:
                run_wrk(load, contender.port, 1)
            taken = [[_measure(*turn, settings).proxy for turn in turns] for _ in range(settings.rounds)]
        return Row(kind.name, [value for _, value in taken], [base for base, _ in taken])

    # One after the other: together they need gigabytes.
    return settings.each(settings.choose("lb", "nginx", "haproxy", "envoy", slow=("envoy",)), take)


def _large(settings: Settings, *, tls: bool) -> list[Row]:
    cluster = make_cluster(FEW, 10, 2, settings.backend_port)
    if tls:
        cluster = secure(cluster, settings.directory)
    route = cluster.routes[7]
    size = BODY_BYTES["1m"]
    peers = settings.choose("lb", "nginx", "haproxy", "nghttpx", "envoy")
    kinds = [HAProxyForLarge if kind is HAProxy else kind for kind in peers]

    def take(contender: Contender) -> Cost:
        return client_cost(contender, settings, targets, "tls" if tls else "plain", connections=16, body_bytes=size)

    with (
        running_all(kinds, cluster, settings) as contenders,
        targets_file([(route.host, route.target("1m"))]) as targets,
    ):
        rows = cost_rows(settings.take_turns(contenders, take))
    for row in rows:
        row.extra["MiB per CPU second"] = round(1e6 / median(row.values))
    return against_best(rows, "nginx", "haproxy")


KEEPALIVE = Figure(
    "keepalive",
    "CPU per request, keep-alive, 128-byte answers",
    "µs",
    "the floor",
    "≤ 1.20 × floor and below every peer",
    1.20,
    "64 connections, wrk, closed loop.",
    _cost("128"),
    rivals={"nginx": 1, "haproxy": 1, "envoy": 1},
)
BODY_16K = Figure(
    "body-16k",
    "CPU per request, keep-alive, 16 KiB answers",
    "µs",
    "the floor",
    "≤ 1.35 × floor",
    1.35,
    "64 connections, wrk, closed loop.",
    _cost("16k"),
)
_LARGE = "16 connections, client.c, closed loop. No proxy writes temporary files."
BODY_1M = Figure(
    "body-1m",
    "CPU per 1 MiB answer, keep-alive",
    "µs",
    "the best of nginx and HAProxy",
    "throughput per CPU second ≥ nginx and HAProxy",
    1.0,
    _LARGE,
    partial(_large, tls=False),
)
TLS_BODY_1M = Figure(
    "tls-body-1m",
    "CPU per 1 MiB answer, TLS 1.3, keep-alive",
    "µs",
    "the best of nginx and HAProxy",
    "throughput per CPU second ≥ nginx and HAProxy",
    1.0,
    f"{_LARGE} TLS_AES_128_GCM_SHA256.",
    partial(_large, tls=True),
)
NEW_CONNECTION = Figure(
    "new-connection",
    "CPU per request, a new client connection for each",
    "µs",
    "the floor",
    "≤ nginx and HAProxy",
    None,
    "wrk sends `Connection: close`, the proxy closes; backend connections are kept.",
    _cost("128", close=True),
    rivals={"nginx": 1, "haproxy": 1},
)
ROUTES = Figure(
    "routes",
    "CPU per request with 100,000 routes against 100",
    "µs",
    "itself with 100 routes",
    "≤ 1.05 ×",
    1.05,
    "Each request goes to another host, in random order over all of them; 10 Services.",
    _routes,
)
