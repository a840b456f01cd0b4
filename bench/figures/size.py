"""Start and memory: with a large cluster, and for idle connections."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from bench.contenders import Contender, Lb, LbSingleFile
from bench.export import make_cluster
from bench.load import Client, LoadFailed, targets_file
from bench.machine import resident_bytes
from bench.measure import Figure, Row, Settings, secure

INGRESSES, SERVICES, ENDPOINTS = 100_000, 10_000, 3
SLOW_SECONDS = 10
"""Who takes longer to start is started once."""


def _scale(settings: Settings) -> list[Row]:
    cluster = make_cluster(INGRESSES, SERVICES, ENDPOINTS, settings.backend_port)

    def take(kind: type[Contender]) -> Row:
        seconds: list[float] = []
        megabytes: list[float] = []
        while not seconds or (len(seconds) < 3 and not settings.quick and seconds[0] < SLOW_SECONDS):
            contender = (LbSingleFile if kind is Lb else kind)(cluster, settings.directory)
            try:
                seconds.append(contender.start())
                megabytes.append(resident_bytes(contender.pid) / 1e6)
            finally:
                contender.stop()
        return Row(kind.name, seconds, extra={"resident MB": round(median(megabytes))})

    return settings.each(settings.choose("lb", "nginx", "haproxy", "envoy", slow=("nginx",)), take)


def _hold(contender: Contender, count: int, route_target: tuple[str, str]) -> int:
    """Resident bytes while `count` connections wait for their next request."""
    how = "tls" if contender.cluster.certificate else "plain"
    with targets_file([route_target]) as targets, Client("idle", contender.port, count, targets, how=how) as client:
        opened = client.read_line()
        resident = resident_bytes(contender.pid)
        client.finish()
        after = client.read_line()
    if opened["answered"] != count or after["closed"]:
        raise LoadFailed(f"{contender.name}: {opened} {after}")
    return resident


def _idle(few: int, many: int, peers: tuple[str, ...], *, tls: bool) -> Callable[[Settings], list[Row]]:
    def run(settings: Settings) -> list[Row]:
        cluster = make_cluster(100, 10, 2, settings.backend_port)
        if tls:
            cluster = secure(cluster, settings.directory)
        target = (cluster.routes[7].host, cluster.routes[7].target("128"))

        def take(kind: type[Contender]) -> Row:
            values = []
            for _ in range(1 if settings.quick else 3):
                contender = kind(cluster, settings.directory)
                try:
                    contender.start()
                    base = _hold(contender, few, target)
                    values.append((_hold(contender, many, target) - base) / (many - few))
                finally:
                    contender.stop()
            return Row(kind.name, values)

        return settings.each(settings.choose(*peers), take)

    return run


SCALE = Figure(
    "scale",
    "Start to first answer with 100,000 Ingresses",
    "s",
    "",
    "≤ 10 s and ≤ 600 MB",
    10,
    "lb reads one JSON export with 100,000 Ingresses, 10,000 Services and EndpointSlices of 3 endpoints; the peers "
    "read their own configuration with the same routes and endpoints. Resident memory after the first answer.",
    _scale,
    {"resident MB": 600},
)
IDLE = Figure(
    "idle",
    "Resident memory per idle keep-alive connection",
    "bytes",
    "",
    "≤ 512 bytes",
    512,
    "Growth from 1,000 to 8,000 connections, each after one request. Kernel memory is not counted.",
    _idle(1000, 8000, ("lb", "nginx", "haproxy", "envoy"), tls=False),
)
TLS_IDLE = Figure(
    "tls-idle",
    "Resident memory per idle TLS connection",
    "bytes",
    "",
    "≤ 14,000 bytes",
    14_000,
    "Growth from 500 to 2,500 connections, TLS 1.3, each after one request. Kernel memory is not counted.",
    _idle(500, 2500, ("lb", "nginx", "haproxy", "nghttpx", "envoy"), tls=True),
)
