"""Changes while serving: how soon they are seen, and what traffic feels of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from bench.contenders import Contender, Lb, LbSingleFile
from bench.export import Cluster, make_cluster
from bench.figures.size import ENDPOINTS, INGRESSES, SERVICES, SLOW_SECONDS
from bench.load import Answer, Client, LoadFailed, targets_file
from bench.measure import Figure, Row, Settings

CHANGED = 8
"""The route that changes. Its path is not `/`, so that the new one is not served before."""
PATIENCE_SECONDS = 90
CONNECTIONS = 64
RATE = 5000


def _apply(contender: Contender, cluster: Cluster, path: str, seen: Callable[[Answer], bool]) -> float:
    """Seconds from the change (file moved into place, or reload asked for) to the first answer that shows it."""
    route = cluster.routes[CHANGED]
    contender.prepare(cluster, route.service.namespace)
    if seen(contender.fetch(route.host, path)):
        raise LoadFailed(f"{contender.name} shows the change before it is made")
    began = time.perf_counter()
    contender.apply()
    while not seen(contender.fetch(route.host, path)):
        if time.perf_counter() > began + PATIENCE_SECONDS:
            raise LoadFailed(f"{contender.name} does not take the change\n{contender.log_tail()}")
        time.sleep(0.001)
    return time.perf_counter() - began


def _change_path(contender: Contender, number: int) -> float:
    path = f"/v{number}"
    return _apply(contender, contender.cluster.with_path(CHANGED, path), f"{path}/128", lambda a: a.status == 200)


def _change_endpoint(contender: Contender, number: int) -> float:
    address = f"127.200.{number >> 8}.{number & 255}"
    route = contender.cluster.routes[CHANGED]
    cluster = contender.cluster.with_endpoints(CHANGED, (address,))
    return _apply(contender, cluster, route.target("who"), lambda a: a.body.decode() == address)


def _delay(
    change: Callable[[Contender, int], float], *names: str, slow: tuple[str, ...] = ()
) -> Callable[[Settings], list[Row]]:
    def run(settings: Settings) -> list[Row]:
        cluster = make_cluster(INGRESSES, SERVICES, ENDPOINTS, settings.backend_port)

        def take(kind: type[Contender]) -> Row:
            contender = kind(cluster, settings.directory)
            try:
                count = settings.rounds if contender.start() < SLOW_SECONDS else 1
                time.sleep(1)  # what a start leaves to do is not the change's cost
                return Row(kind.name, [1000 * change(contender, number) for number in range(count)])
            finally:
                contender.stop()

        kinds = settings.choose(*names, slow=slow)
        if Lb in kinds and not settings.quick:
            kinds.insert(kinds.index(Lb) + 1, LbSingleFile)
        return settings.each(kinds, take)

    return run


def _load_with_swaps(contender: Contender, seconds: float, every: float, numbers: range) -> dict[str, float]:
    """Fixed rate for `seconds`; a change each `every` seconds (0: none)."""
    route = contender.cluster.routes[0]
    with (
        targets_file([(route.host, route.target("128"))]) as targets,
        Client("load", contender.port, CONNECTIONS, seconds, RATE, targets) as client,
    ):
        client.begin()
        began = time.monotonic()
        for turn, number in enumerate(numbers if every else ()):
            time.sleep(max(0.0, began + (turn + 0.5) * every - time.monotonic()))
            if not client.running:
                break
            _change_path(contender, number)
        return client.read_line()


def _tail(settings: Settings) -> list[Row]:
    seconds = 3 if settings.quick else 6
    cluster = make_cluster(1000, 100, 3, settings.backend_port)

    def take(kind: type[Contender]) -> Row:
        contender = kind(cluster, settings.directory)
        still, swapping = [], []
        try:
            contender.start()
            _load_with_swaps(contender, 1, 0, range(0))
            for turn in range(1 if settings.quick else 3 if kind is Lb else 2):
                numbers = range(turn * seconds, (turn + 1) * seconds)
                still.append(_load_with_swaps(contender, seconds, 0, numbers))
                swapping.append(_load_with_swaps(contender, seconds, 1, numbers))
        finally:
            contender.stop()
        extra = {
            "p99.9 without changes": median(run["p999_us"] for run in still),
            "longest": max(run["max_us"] for run in swapping),
            "failed": sum(run["failed"] for run in swapping),
            "connections closed": sum(run["closed"] for run in swapping),
        }
        return Row(kind.name, [run["p999_us"] for run in swapping], [run["p999_us"] for run in still], extra)

    return settings.each(settings.choose("lb", "nginx", "haproxy", "envoy", slow=("haproxy", "envoy")), take)


def _swaps(settings: Settings) -> list[Row]:
    cluster = make_cluster(1000, 100, 3, settings.backend_port)
    route = cluster.routes[0]

    def take(kind: type[Contender]) -> Row:
        contender = kind(cluster, settings.directory)
        count = 20 if settings.quick else 200 if kind is Lb else 50
        began = time.monotonic()
        totals = []
        number = 0
        try:
            contender.start()
            with targets_file([(route.host, route.target("128"))]) as targets:
                while number < count:  # as many spells of load as the changes take
                    with Client("load", contender.port, CONNECTIONS, 5, 0, targets) as client:
                        client.begin()
                        while number < count and client.running:
                            _change_path(contender, number)
                            number += 1
                        totals.append(client.read_line())
        finally:
            contender.stop()
        sums = {key: sum(run[key] for run in totals) for key in ("failed", "closed", "requests")}
        extra = {
            "connections closed": sums["closed"],
            "changes": count,
            "requests": sums["requests"],
            "seconds": round(time.monotonic() - began),
        }
        return Row(kind.name, [sums["failed"]], extra=extra)

    return settings.each(settings.choose("lb", "nginx", "haproxy"), take)


_RELOADS = (
    "nginx and HAProxy reload, timed from the signal, Envoy takes a new route file; the time to write their "
    "configuration is not counted."
)
_LAYOUT = (
    "`lb` reads a directory with one file per namespace, one of which is replaced; `lb-single-file` reads the whole "
    "cluster from one file of about 240 MB, which is replaced. "
)
INGRESS = Figure(
    "ingress-change",
    "One Ingress changed among 100,000: from the file's replacement to the new answer",
    "ms",
    "",
    "≤ 300 ms",
    300,
    _LAYOUT + _RELOADS + " nginx is left out: it reads everything again, which takes it as long as its start.",
    _delay(_change_path, "lb", "haproxy", "envoy", slow=("envoy",)),
)
ENDPOINT = Figure(
    "endpoint-change",
    "One EndpointSlice changed among 10,000: from the file's replacement to the new endpoint's answer",
    "ms",
    "",
    "≤ 100 ms",
    100,
    _LAYOUT,
    _delay(_change_endpoint, "lb"),
)
TAIL = Figure(
    "tail",
    "Latency p99.9 at a fixed rate with a change every second",
    "µs",
    "itself without changes",
    "≤ 1.5 ×",
    1.5,
    "5,000 requests a second on 64 connections, open loop, 1,000 Ingresses. The proxy, its control plane included, has "
    "one CPU. " + _RELOADS,
    _tail,
)
SWAPS = Figure(
    "swaps",
    "Failed requests over 200 changes under full load",
    "failed",
    "",
    "0 failed and 0 closed",
    0,
    "64 connections, closed loop, 1,000 Ingresses; each change is waited for. nginx and HAProxy: 50 reloads.",
    _swaps,
    {"connections closed": 0},
)
