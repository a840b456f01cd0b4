"""HTTP/1 over TLS: CPU time per request and per handshake, and what a storm of handshakes does to others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.contenders import Contender
from bench.export import make_cluster
from bench.load import Client, LoadFailed, targets_file
from bench.measure import Figure, Row, Settings, against_best, client_cost, cost_rows, running_all, secure

PEERS = ("lb", "nginx", "haproxy", "nghttpx", "envoy")
CONNECTIONS = 64
RATE, STORM_RATE = 3000, 500
"""Requests on established connections and handshakes, each second."""


def _cost(how: str, *best: str) -> Callable[[Settings], list[Row]]:
    """Ratios are to the best of `best`."""

    def run(settings: Settings) -> list[Row]:
        cluster = secure(make_cluster(100, 10, 2, settings.backend_port), settings.directory)
        route = cluster.routes[7]
        with (
            running_all(settings.choose(*PEERS), cluster, settings) as contenders,
            targets_file([(route.host, route.target("128"))]) as targets,
        ):
            taken = settings.take_turns(contenders, lambda each: client_cost(each, settings, targets, how))
        return against_best(cost_rows(taken), *best)

    return run


class Storm(NamedTuple):
    """Latency p99.9 in µs on established connections."""

    still: float
    storm: float


def _established(contender: Contender, seconds: float, targets: Path) -> dict[str, float]:
    with Client("load", contender.port, CONNECTIONS, seconds, RATE, targets, how="tls") as client:
        client.begin()
        return client.read_line()


def _storm(settings: Settings) -> list[Row]:
    cluster = secure(make_cluster(100, 10, 2, settings.backend_port), settings.directory)
    route = cluster.routes[7]
    seconds = 3 if settings.quick else 5

    def take(contender: Contender) -> Storm:
        still = _established(contender, seconds, targets)
        # The storm's own work must not delay the other client, which shares its CPU.
        what = (contender.port, CONNECTIONS, seconds + 1, STORM_RATE, targets)
        with Client("load", *what, how="full", idle=True) as storm:
            storm.begin()
            stormy = _established(contender, seconds, targets)
            totals = storm.read_line()
        for run in (still, stormy, totals):
            if run["failed"] or run["closed"]:
                raise LoadFailed(f"{contender.name}: {run}")
        return Storm(still["p999_us"], stormy["p999_us"])

    with (
        running_all(settings.choose("lb", "nginx", "haproxy"), cluster, settings) as contenders,
        targets_file([(route.host, route.target("128"))]) as targets,
    ):
        taken = settings.take_turns(contenders, take)
    return [
        Row(
            name,
            [each.storm for each in turns],
            [each.still for each in turns],
            {"p99.9 without": median(each.still for each in turns)},
        )
        for name, turns in taken.items()
    ]


TLS_KEEPALIVE = Figure(
    "tls-keepalive",
    "CPU per request, TLS 1.3, keep-alive, 128-byte answers",
    "µs",
    "the best of nginx and HAProxy",
    "≤ 0.95 × the best of nginx and HAProxy",
    0.95,
    "64 connections, client.c, closed loop; TLS_AES_128_GCM_SHA256. Opening the connections is not counted.",
    _cost("tls", "nginx", "haproxy"),
)
HANDSHAKE = Figure(
    "tls-handshake",
    "CPU per request, each with a full TLS 1.3 handshake of its own",
    "µs",
    "nginx",
    "≤ 1.00 × nginx",
    1.0,
    "64 connections at a time, `Connection: close`, the proxy closes; P-256 certificate, X25519. Tickets are sent, by "
    "each proxy as many as it sends by default, and not used. Envoy brings BoringSSL, all others use the same OpenSSL.",
    _cost("full", "nginx"),
)
RESUMED = Figure(
    "tls-resumed",
    "CPU per request, each with a resumed TLS 1.3 handshake of its own",
    "µs",
    "nginx",
    "≤ 1.00 × nginx",
    1.0,
    "The same, by the newest ticket each (with X25519, as all clients do); every handshake must be resumed.",
    _cost("resumed", "nginx"),
)
STORM = Figure(
    "tls-storm",
    "Latency p99.9 on established TLS connections during a storm of 500 full handshakes a second",
    "µs",
    "itself without the storm",
    "≤ 2 × without",
    2.0,
    "3,000 requests a second on 64 connections, open loop; the proxy, its control plane included, has one CPU. Each "
    "handshake of the storm has its connection and one request.",
    _storm,
)
