"""HTTP/1 over TLS: CPU time per request and per handshake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.contenders import Contender
from bench.export import make_cluster
from bench.load import Client, LoadFailed, targets_file
from bench.measure import Cost, Figure, Row, Settings, against_best, cost_rows, cpu_cost, running_all, secure

PEERS = ("lb", "nginx", "haproxy", "nghttpx", "envoy")
CONNECTIONS = 64


def _measure(contender: Contender, settings: Settings, seconds: float, targets: Path, how: str) -> Cost:
    """Requests of client.c, as many as it gets answered."""
    with Client("load", contender.port, CONNECTIONS, seconds, 0, targets, how=how) as client:
        with cpu_cost(contender, settings) as cost:
            client.begin()
            totals = client.read_line()
            took = cost(max(1, totals["requests"]))
    wanted = {"tls": (CONNECTIONS, 0), "full": (totals["requests"], 0), "resumed": (totals["requests"],) * 2}[how]
    if not totals["requests"] or totals["failed"] or (totals["handshakes"], totals["resumed"]) != wanted:
        raise LoadFailed(f"{contender.name}: {totals}")
    return took


def _cost(how: str, *best: str) -> Callable[[Settings], list[Row]]:
    """Ratios are to the best of `best`."""

    def run(settings: Settings) -> list[Row]:
        cluster = secure(make_cluster(100, 10, 2, settings.backend_port), settings.directory)
        route = cluster.routes[7]
        seconds = 1 if settings.quick else 2
        with (
            running_all(settings.choose(*PEERS), cluster, settings) as contenders,
            targets_file([(route.host, route.target("128"))]) as targets,
        ):
            taken = settings.take_turns(contenders, lambda each: _measure(each, settings, seconds, targets, how))
        return against_best(cost_rows(taken), *best)

    return run


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
