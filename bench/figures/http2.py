"""HTTP/2 over TLS: CPU time per request, to HTTP/1 endpoints, and per gRPC call."""

from __future__ import annotations

from dataclasses import replace

from bench.contenders import Contender
from bench.export import Cluster, make_cluster
from bench.load import GRPC_BYTES, Streams, backend, frame, run_h2load
from bench.measure import Cost, Figure, Row, Settings, against_best, cost_rows, cpu_cost, running_all, secure

PEERS = ("lb", "nginx", "haproxy", "nghttpx", "envoy")
FIRST_REQUESTS = 8000
"""In the first turn, which tells how many take the time that a turn shall take."""


def _measure(settings: Settings, cluster: Cluster, load: Streams) -> list[Row]:
    counts: dict[str, int] = {}

    def take(contender: Contender) -> Cost:
        count = counts.setdefault(contender.name, FIRST_REQUESTS)
        with cpu_cost(contender, settings) as cost:
            took = run_h2load(load, contender.port, count)
            counts[contender.name] = int(count / took * settings.seconds)
            return cost(count)

    with running_all(settings.choose(*PEERS), cluster, settings) as contenders:
        return cost_rows(settings.take_turns(contenders, take))


def _http2(settings: Settings) -> list[Row]:
    cluster = secure(make_cluster(100, 10, 2, settings.backend_port), settings.directory)
    route = cluster.routes[7]
    rows = _measure(settings, cluster, Streams(f"https://{route.host}{route.target('128')}"))
    return against_best(rows, "nghttpx")


def _grpc(settings: Settings) -> list[Row]:
    message = settings.directory / "call"
    message.write_bytes(frame(b"x" * GRPC_BYTES))
    with backend("grpc_backend") as (port, pid):
        cluster = replace(secure(make_cluster(100, 10, 2, port), settings.directory), grpc=True)
        route = cluster.routes[7]
        load = Streams(
            f"https://{route.host}{route.target('Unary')}", body_bytes=len(frame(b"")) + GRPC_BYTES, call=message
        )
        rows = _measure(replace(settings, backend_port=port, backend_pid=pid), cluster, load)
    return against_best(rows, "nginx", "envoy")


HTTP2 = Figure(
    "h2",
    "CPU per request, HTTP/2 over TLS, 16 connections with 32 streams each, HTTP/1 to the endpoints",
    "µs",
    "nghttpx",
    "≤ 1.10 × nghttpx and below HAProxy",
    1.10,
    "h2load, closed loop, 128-byte answers; TLS_AES_128_GCM_SHA256. The 16 handshakes are in it.",
    _http2,
    rivals={"haproxy": 1},
)
GRPC = Figure(
    "grpc",
    "CPU per unary gRPC call, HTTP/2 over TLS, 16 connections with 32 streams each, HTTP/2 to the endpoints",
    "µs",
    "the best of nginx and Envoy",
    "below Envoy and nginx",
    1.0,
    "h2load, closed loop, messages of 123 bytes both ways, trailers from the backend (`grpc_backend.c`). lb "
    "reads a native file here.",
    _grpc,
)
