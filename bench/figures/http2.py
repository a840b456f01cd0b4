"""HTTP/2 over TLS: CPU time per request, to HTTP/1 endpoints."""

from __future__ import annotations

from bench.contenders import Contender
from bench.export import make_cluster
from bench.load import Streams, run_h2load
from bench.measure import Cost, Figure, Row, Settings, against_best, cost_rows, cpu_cost, running_all, secure

PEERS = ("lb", "nginx", "haproxy", "nghttpx", "envoy")
FIRST_REQUESTS = 8000
"""In the first turn, which tells how many take the time that a turn shall take."""


def _http2(settings: Settings) -> list[Row]:
    cluster = secure(make_cluster(100, 10, 2, settings.backend_port), settings.directory)
    route = cluster.routes[7]
    load = Streams(f"https://{route.host}{route.target('128')}")
    seconds = 1 if settings.quick else 2
    counts: dict[str, int] = {}

    def measure(contender: Contender) -> Cost:
        count = counts.setdefault(contender.name, FIRST_REQUESTS)
        with cpu_cost(contender, settings) as cost:
            took = run_h2load(load, contender.port, count)
            counts[contender.name] = int(count / took * seconds)
            return cost(count)

    with running_all(settings.choose(*PEERS), cluster, settings) as contenders:
        taken = settings.take_turns(contenders, measure)
    return against_best(cost_rows(taken), "nghttpx")


HTTP2 = Figure(
    "h2",
    "CPU per request, HTTP/2 over TLS, 16 connections with 32 streams each, HTTP/1 to the endpoints",
    "µs",
    "nghttpx",
    "≤ 1.10 × nghttpx and below HAProxy",
    1.10,
    "h2load, closed loop, 128-byte answers; TLS_AES_128_GCM_SHA256.",
    _http2,
    rivals={"haproxy": 1},
)
