"""Metrics: the one list of all names, and the collector that fills them from the engine's counters at scrape time.

Everything else is derived from METRICS: the exposition, the table in the documentation (`python -m lb.observe.metrics`)
and the test that both agree. Labels are bounded: routes, upstreams and endpoints beyond a limit are summed as `_other`.
Conventions: prometheus.io/docs/practices/naming. This file knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nlargest, nsmallest
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from lb import __version__
from lb.certs.pem import expiry_of
from lb.health.verdict import RESULTS
from lb.model.grpc import STATUSES
from lb.pipeline import OUTCOMES, Build, Outcome, count_problems
from lb.problems import Severity
from lb.settings import Metrics as MetricsSettings

if TYPE_CHECKING:
    from lb._fastpath.engine import DatagramStats, EndpointStats, Engine, ListenerStats, Traffic, UpstreamStats
    from lb.certs.expiry import Expiry
    from lb.health.monitor import HealthStats, Monitor
    from lb.observe.settings_file import SettingsFile
    from lb.pipeline import Pipeline
    from lb.sockets import Listeners

StatsT = TypeVar("StatsT", bound="Mapping[str, object]")

OTHER = "_other"
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")

GRPC_STATUSES = (*STATUSES, "none")
"""Of gRPC calls, by their numbers from 0 on (gRPC's statuscodes.md); the last one for calls that ended without any."""


class Metric(msgspec.Struct, frozen=True):
    """A metric as users see it. Counters are named without their `_total`, as the client library wants it."""

    name: str
    type: Literal["counter", "gauge", "histogram", "info"]
    labels: tuple[str, ...]
    help: str


def _metrics(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


METRICS = _metrics(
    Metric("lb_build", "info", (), "Version of lb and of the Python it runs on."),
    Metric("lb_ready", "gauge", (), "1 while lb takes new requests, 0 before the first table and while it drains."),
    # Configuration
    Metric("lb_config_generation", "gauge", (), "Generation of the table that serves."),
    Metric("lb_config_last_build_success", "gauge", (), "1 when the newest build serves, 0 when it was refused."),
    Metric("lb_config_last_success_timestamp_seconds", "gauge", (), "When the newest successful build ended."),
    Metric("lb_config_builds", "counter", ("outcome",), "Builds: published, unchanged or refused."),
    Metric("lb_config_stage_seconds", "gauge", ("stage",), "How long each stage of the newest build took."),
    Metric("lb_config_problems", "gauge", ("severity",), "Problems of input, settings, listeners and certificates."),
    Metric("lb_objects", "gauge", ("kind",), "Objects in the input."),
    Metric(
        "lb_certificate_expiry_timestamp_seconds",
        "gauge",
        ("certificate",),
        "When the certificate expires, in seconds since the epoch.",
    ),
    # Listeners
    Metric("lb_listener_up", "gauge", ("listener",), "1 when the listener is open, 0 when it cannot be opened."),
    Metric("lb_listener_connections", "counter", ("listener",), "Client connections accepted; UDP: sessions begun."),
    Metric("lb_listener_connections_active", "gauge", ("listener",), "Client connections open; UDP: sessions."),
    Metric("lb_listener_connections_rejected", "counter", ("listener",), "Client connections over a limit."),
    Metric("lb_listener_tls_handshakes_failed", "counter", ("listener",), "TLS handshakes with clients that failed."),
    Metric("lb_listener_requests", "counter", ("listener",), "Requests answered or given up, refused heads included."),
    Metric("lb_listener_responses", "counter", ("listener", "code_class"), "Responses sent."),
    Metric("lb_listener_received_bytes", "counter", ("listener",), "Bytes from clients."),
    Metric("lb_listener_sent_bytes", "counter", ("listener",), "Bytes to clients."),
    Metric(
        "lb_listener_request_duration_seconds",
        "histogram",
        ("listener",),
        "Whole exchanges, TCP connections and UDP sessions.",
    ),
    Metric("lb_listener_datagrams_received", "counter", ("listener",), "Datagrams of UDP sessions from clients."),
    Metric("lb_listener_datagrams_sent", "counter", ("listener",), "Datagrams of UDP sessions to clients."),
    Metric(
        "lb_listener_datagrams_dropped", "counter", ("listener", "reason"), "Datagrams that were dropped, either way."
    ),
    Metric("lb_listener_sessions_evicted", "counter", ("listener",), "UDP sessions that made way for others."),
    # Routes
    Metric("lb_route_responses", "counter", ("route", "code_class"), "Responses sent."),
    Metric("lb_route_received_bytes", "counter", ("route",), "Bytes from clients."),
    Metric("lb_route_sent_bytes", "counter", ("route",), "Bytes to clients."),
    Metric(
        "lb_route_request_duration_seconds",
        "histogram",
        ("route",),
        "Whole exchanges, TCP connections and UDP sessions.",
    ),
    Metric("lb_route_grpc_calls", "counter", ("route", "grpc_status"), "gRPC calls by how they ended."),
    # Upstreams
    Metric("lb_upstream_responses", "counter", ("upstream", "code_class"), "Responses received from endpoints."),
    Metric("lb_upstream_sent_bytes", "counter", ("upstream",), "Bytes to endpoints."),
    Metric("lb_upstream_received_bytes", "counter", ("upstream",), "Bytes from endpoints."),
    Metric(
        "lb_upstream_first_byte_seconds", "histogram", ("upstream",), "From the attempt to the response's first byte."
    ),
    Metric(
        "lb_upstream_requests_active", "gauge", ("upstream",), "Requests, TCP connections and UDP sessions under way."
    ),
    Metric("lb_upstream_requests_queued", "gauge", ("upstream",), "Requests that wait because a limit is reached."),
    Metric("lb_upstream_attempts", "counter", ("upstream",), "Tries on an endpoint, first ones and retries."),
    Metric("lb_upstream_retries", "counter", ("upstream",), "Tries after the first one of a request."),
    Metric("lb_upstream_connects", "counter", ("upstream",), "New connections to endpoints."),
    Metric(
        "lb_upstream_connect_failures",
        "counter",
        ("upstream",),
        "New connections that failed; UDP: refused by the host.",
    ),
    Metric("lb_upstream_connections_reused", "counter", ("upstream",), "Attempts on a connection that was kept."),
    Metric("lb_upstream_connections_idle", "gauge", ("upstream",), "Connections kept for the next request."),
    Metric(
        "lb_upstream_endpoints_ejected",
        "gauge",
        ("upstream",),
        "Endpoints that were ejected because connections failed, until they serve again.",
    ),
    Metric("lb_upstream_ejections", "counter", ("upstream",), "Ejections of endpoints, each vain probe counted again."),
    # Endpoints
    Metric("lb_endpoint_up", "gauge", ("upstream", "endpoint"), "1 when the endpoint takes new requests."),
    Metric("lb_endpoint_weight", "gauge", ("upstream", "endpoint"), "Weight in force."),
    Metric("lb_endpoint_requests_active", "gauge", ("upstream", "endpoint"), "Requests under way."),
    Metric("lb_endpoint_connections_idle", "gauge", ("upstream", "endpoint"), "Connections kept for the next request."),
    Metric("lb_endpoint_requests", "counter", ("upstream", "endpoint"), "Requests sent."),
    Metric(
        "lb_endpoint_failures", "counter", ("upstream", "endpoint"), "Connections that failed, refused or timed out."
    ),
    Metric(
        "lb_endpoint_healthy",
        "gauge",
        ("upstream", "endpoint"),
        "1 when its health checks pass, 0 when they fail; none before the first one, and where none are made.",
    ),
    # Health checks
    Metric("lb_health_checks", "counter", ("result",), "Health checks by what came of them."),
    Metric("lb_health_checks_active", "gauge", (), "Health checks under way."),
    Metric(
        "lb_health_changes",
        "counter",
        ("upstream", "state"),
        "Times that an endpoint became healthy or unhealthy by its health checks.",
    ),
    # Data plane
    Metric("lb_exchange_end", "counter", ("reason",), "Exchanges and connections by why they ended."),
    Metric("lb_connections_active", "gauge", (), "Client connections open."),
    Metric("lb_descriptors_open", "gauge", (), "File descriptors that the data plane uses."),
    Metric("lb_buffer_bytes", "gauge", (), "Memory of buffers that hold bytes which wait for a client or an endpoint."),
    Metric("lb_tables_pinned", "gauge", (), "Old tables that requests under way still use."),
    Metric("lb_accept_pauses", "counter", (), "Times accepting stopped because descriptors or memory ran short."),
    Metric(
        "lb_connections_shed", "counter", (), "Idle client connections closed because descriptors or memory ran short."
    ),
    Metric(
        "lb_upstream_connections_taken_over", "counter", (), "Kept connections that a thread took from another one."
    ),
    Metric("lb_tls_handshakes", "counter", (), "TLS handshakes with clients that succeeded."),
    Metric("lb_tls_handshakes_resumed", "counter", (), "Those of them that resumed a session."),
    Metric("lb_tls_handshakes_failed", "counter", (), "TLS handshakes with clients that failed; the reasons say why."),
    Metric(
        "lb_tls_handshakes_deferred",
        "counter",
        (),
        "How often a handshake had to wait so that established connections go on. Many: a storm of handshakes.",
    ),
    Metric("lb_tls_passthrough", "counter", (), "TLS connections that were passed through to endpoints."),
    Metric(
        "lb_tls_kernel",
        "counter",
        (),
        "Connections with clients and endpoints for which the kernel encrypts what is sent (`tls.kernel`).",
    ),
    Metric("lb_access_log_records", "counter", (), "Access log records written."),
    Metric("lb_access_log_dropped", "counter", (), "Access log records lost because the writer could not follow."),
    Metric("lb_access_log_failed", "counter", (), "Access log records lost because they could not be written."),
    Metric("lb_reactor_turns", "counter", (), "Turns of all reactor threads."),
    Metric("lb_reactor_events", "counter", (), "Events that all reactor threads handled."),
    Metric("lb_reactor_heartbeat_age_seconds", "gauge", ("thread",), "Since the reactor thread last turned."),
)

ENGINE_COUNTERS = {
    "connections": "lb_connections_active",
    "descriptors": "lb_descriptors_open",
    "buffer_bytes": "lb_buffer_bytes",
    "tables_pinned": "lb_tables_pinned",
    "accept_pauses": "lb_accept_pauses",
    "idle_closed_by_pressure": "lb_connections_shed",
    "upstream_stolen": "lb_upstream_connections_taken_over",
    "tls_handshakes": "lb_tls_handshakes",
    "tls_resumed": "lb_tls_handshakes_resumed",
    "tls_failed": "lb_tls_handshakes_failed",
    "tls_deferred": "lb_tls_handshakes_deferred",
    "tls_by_kernel": "lb_tls_kernel",
    "tls_passed": "lb_tls_passthrough",
    "log_written": "lb_access_log_records",
    "log_dropped": "lb_access_log_dropped",
    "log_failed": "lb_access_log_failed",
    "turns": "lb_reactor_turns",
    "events": "lb_reactor_events",
}
"""Key of Engine.counters() -> metric."""


class Scrape(msgspec.Struct, frozen=True):
    """All numbers of one moment, taken on the control plane's thread; turned into text elsewhere."""

    ready: bool
    generation: int
    newest: Build | None
    last_good: Build | None
    outcomes: Mapping[Outcome, int]
    listeners_up: Mapping[str, bool]
    bounds: Sequence[float]
    listeners: Mapping[str, ListenerStats]
    datagrams: Mapping[str, DatagramStats]
    routes: Mapping[str, Traffic]
    grpc_calls: Mapping[str, Sequence[int]]
    """By route, one count for each of GRPC_STATUSES."""
    upstreams: Mapping[str, UpstreamStats]
    endpoints: Mapping[str, Sequence[EndpointStats]]
    reasons: Mapping[str, int]
    counters: Mapping[str, int]
    heartbeat_ages_ms: Sequence[int]
    certificates: Mapping[str, float]
    problems: Mapping[Severity, int]
    """When they expire."""
    health: HealthStats
    endpoints_healthy: Mapping[str, Mapping[str, bool]]
    """Upstream -> endpoint that is checked -> what its checks say."""


class Names:
    """Which names have series of their own: the busiest when they were chosen. A chosen name stays until it is gone,
    so that no counter, not even that of `_other`, goes down while the configuration stands still."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chosen: set[str] = set()

    def choose(self, busy: Mapping[str, int]) -> set[str]:
        """The names to show, out of all there are with how busy each is."""
        self._chosen &= busy.keys()
        if room := self._limit - len(self._chosen):
            rest = (name for name in busy if name not in self._chosen)
            self._chosen.update(nlargest(room, rest, key=busy.__getitem__))
        return self._chosen


class Exposition(Collector):
    """One scrape as metric families."""

    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape
        self._families: dict[str, Family] = {}

    def collect(self) -> Iterator[Family]:
        self._families = {name: _family(metric) for name, metric in METRICS.items()}
        self._add_process()
        self._add_config()
        self._add_certificates()
        self._add_listeners()
        for route, traffic in self._scrape.routes.items():
            self._add_traffic("lb_route", "request_duration_seconds", (route,), traffic)
        self._add_grpc_calls()
        self._add_upstreams()
        self._add_endpoints()
        self._add_health()
        return iter(self._families.values())

    def _add(self, name: str, value: float | dict[str, str], *labels: str) -> None:
        self._families[name].add_metric(labels, value)  # type: ignore[attr-defined]  # all kinds but the base have it

    def _add_process(self) -> None:
        scrape = self._scrape
        self._add("lb_build", {"version": __version__, "python": platform.python_version()})
        self._add("lb_ready", scrape.ready)
        for reason, count in scrape.reasons.items():
            self._add("lb_exchange_end", count, reason)
        for key, name in ENGINE_COUNTERS.items():
            self._add(name, scrape.counters[key])
        for thread, age_ms in enumerate(scrape.heartbeat_ages_ms):
            self._add("lb_reactor_heartbeat_age_seconds", age_ms / 1000, str(thread))

    def _add_config(self) -> None:
        scrape = self._scrape
        self._add("lb_config_generation", scrape.generation)
        for outcome in OUTCOMES:
            self._add("lb_config_builds", scrape.outcomes.get(outcome, 0), outcome)
        if scrape.last_good is not None:
            self._add("lb_config_last_success_timestamp_seconds", scrape.last_good.time)
        if (newest := scrape.newest) is not None:
            self._add("lb_config_last_build_success", newest.outcome != "refused")
            for stage, seconds in newest.seconds.items():
                self._add("lb_config_stage_seconds", seconds, stage)
            for severity, count in scrape.problems.items():
                self._add("lb_config_problems", count, severity)
            for kind, count in newest.objects.items():
                self._add("lb_objects", count, kind)

    def _add_certificates(self) -> None:
        for name, expiry in self._scrape.certificates.items():
            self._add("lb_certificate_expiry_timestamp_seconds", expiry, name)

    def _add_listeners(self) -> None:
        for name, up in self._scrape.listeners_up.items():
            self._add("lb_listener_up", up, name)
        for name, stats in self._scrape.listeners.items():
            self._add("lb_listener_connections", stats["accepted"], name)
            self._add("lb_listener_connections_active", stats["active"], name)
            self._add("lb_listener_connections_rejected", stats["rejected"], name)
            self._add("lb_listener_tls_handshakes_failed", stats["tls_failed"], name)
            self._add("lb_listener_requests", stats["requests"], name)
            self._add_traffic("lb_listener", "request_duration_seconds", (name,), stats)
        for name, datagrams in self._scrape.datagrams.items():
            self._add("lb_listener_datagrams_received", datagrams["datagrams_in"], name)
            self._add("lb_listener_datagrams_sent", datagrams["datagrams_out"], name)
            self._add("lb_listener_sessions_evicted", datagrams["evicted"], name)
            for reason, count in datagrams["dropped"].items():
                self._add("lb_listener_datagrams_dropped", count, name, reason)

    def _add_grpc_calls(self) -> None:
        """Only what has happened: of most statuses no route has ever seen one."""
        for route, counts in self._scrape.grpc_calls.items():
            for status, count in zip(GRPC_STATUSES, counts, strict=True):
                if count:
                    self._add("lb_route_grpc_calls", count, route, status)

    def _add_upstreams(self) -> None:
        for name, stats in self._scrape.upstreams.items():
            self._add("lb_upstream_requests_active", stats["active"], name)
            self._add("lb_upstream_requests_queued", stats["queued"], name)
            self._add("lb_upstream_attempts", stats["attempts"], name)
            self._add("lb_upstream_retries", stats["retries"], name)
            self._add("lb_upstream_connects", stats["connects"], name)
            self._add("lb_upstream_connect_failures", stats["connect_failures"], name)
            self._add("lb_upstream_connections_reused", stats["reused"], name)
            self._add("lb_upstream_connections_idle", stats["idle"], name)
            self._add("lb_upstream_endpoints_ejected", stats["ejected"], name)
            self._add("lb_upstream_ejections", stats["ejections"], name)
            self._add_traffic("lb_upstream", "first_byte_seconds", (name,), stats)

    def _add_endpoints(self) -> None:
        for upstream, endpoints in self._scrape.endpoints.items():
            for stats in endpoints:
                labels = (upstream, stats["key"])
                self._add("lb_endpoint_up", stats["state"] == "ready", *labels)
                self._add("lb_endpoint_weight", stats["weight"], *labels)
                self._add("lb_endpoint_requests_active", stats["active"], *labels)
                self._add("lb_endpoint_connections_idle", stats["idle"], *labels)
                self._add("lb_endpoint_requests", stats["requests"], *labels)
                self._add("lb_endpoint_failures", stats["failures"], *labels)

    def _add_health(self) -> None:
        health = self._scrape.health
        for upstream, endpoints in self._scrape.endpoints_healthy.items():
            for endpoint, is_healthy in endpoints.items():
                self._add("lb_endpoint_healthy", is_healthy, upstream, endpoint)
        for result in RESULTS:
            self._add("lb_health_checks", health.results[result], result)
        self._add("lb_health_checks_active", health.running)
        for upstream, counts in health.changes.items():
            for state, count in counts.items():
                self._add("lb_health_changes", count, upstream, state)

    def _add_traffic(self, prefix: str, histogram: str, labels: tuple[str, ...], traffic: Traffic) -> None:
        for code_class, count in zip(CLASSES, traffic["responses"], strict=True):
            self._add(f"{prefix}_responses", count, *labels, code_class)
        # `in` comes from the client and goes to the endpoint.
        inward, outward = ("sent", "received") if prefix == "lb_upstream" else ("received", "sent")
        self._add(f"{prefix}_{inward}_bytes", traffic["bytes_in"], *labels)
        self._add(f"{prefix}_{outward}_bytes", traffic["bytes_out"], *labels)
        bounds = (*(str(bound) for bound in self._scrape.bounds), "+Inf")
        buckets = list(zip(bounds, accumulate(map(float, traffic["buckets"])), strict=True))
        self._families[f"{prefix}_{histogram}"].add_metric(labels, buckets, traffic["seconds"])  # type: ignore[attr-defined]


def fold(stats: Mapping[str, StatsT], shown: set[str]) -> dict[str, StatsT]:
    """What is shown as it is, and the sum of the rest as `_other`."""
    kept = {name: stats[name] for name in stats if name in shown}
    rest = [cast("Mapping[str, Any]", stats[name]) for name in stats if name not in shown]
    if rest:
        kept[OTHER] = cast(StatsT, {key: _sum([one[key] for one in rest]) for key in rest[0]})
    return kept


def fold_counts(counts: Mapping[str, list[int]], shown: set[str]) -> dict[str, list[int]]:
    """The same of plain lists."""
    kept = {name: counts[name] for name in counts if name in shown}
    rest = [counts[name] for name in counts if name not in shown]
    if rest:
        kept[OTHER] = cast("list[int]", _sum(rest))
    return kept


def requests_of(traffic: Traffic) -> int:
    """How many exchanges a traffic block counted."""
    return sum(traffic["responses"])


def _sum(values: Sequence[float | list[int]]) -> float | list[int]:
    """Sum of numbers, or of lists place by place."""
    lists = [value for value in values if isinstance(value, list)]
    if lists:
        return [sum(column) for column in zip(*lists, strict=True)]
    return sum(value for value in values if not isinstance(value, list))


def _family(metric: Metric) -> Family:
    families = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
        "info": InfoMetricFamily,
    }
    family: Family = families[metric.type](metric.name, metric.help, labels=metric.labels)
    return family


class Metrics:
    """Takes scrapes and renders them."""

    def __init__(
        self,
        engine: Engine,
        bounds: Sequence[float],
        pipeline: Pipeline,
        listeners: Listeners,
        expiry: Expiry,
        settings_file: SettingsFile,
        health: Monitor,
        settings: MetricsSettings,
    ) -> None:
        self._engine = engine
        self._bounds = bounds
        self._pipeline = pipeline
        self._listeners = listeners
        self._expiry = expiry
        self._settings_file = settings_file
        self._health = health
        self._routes = Names(settings.max_routes)
        self._upstreams = Names(settings.max_upstreams)
        self._max_endpoints = settings.max_endpoints
        self._max_certificates = settings.max_certificates
        self._process = ProcessCollector(registry=CollectorRegistry())

    async def render(self, accept: str, *, ready: bool) -> tuple[bytes, str]:
        """(text, content type) as Prometheus or OpenMetrics, whichever the Accept header asks for."""
        encode, content_type = choose_encoder(accept)
        # Many series take a while to write: not on the loop.
        return await asyncio.to_thread(encode, _Chain(Exposition(self.take(ready=ready)), self._process)), content_type

    def take(self, *, ready: bool) -> Scrape:
        """The numbers of this moment."""
        engine, pipeline = self._engine, self._pipeline
        routes = engine.route_stats()
        upstreams = engine.upstream_stats()
        shown_routes = self._routes.choose({name: requests_of(traffic) for name, traffic in routes.items()})
        shown_upstreams = self._upstreams.choose({name: stats["attempts"] for name, stats in upstreams.items()})
        endpoints = self._endpoints(shown_upstreams)
        health = self._health.stats()
        return Scrape(
            ready=ready,
            generation=pipeline.generation,
            newest=pipeline.newest,
            last_good=pipeline.last_good,
            outcomes=pipeline.outcomes,
            listeners_up={name: name in self._listeners.opened for name in pipeline.config.listeners},
            bounds=self._bounds,
            listeners=engine.listener_stats(),
            datagrams=engine.datagram_stats(),
            routes=fold(routes, shown_routes),
            grpc_calls=fold_counts(engine.grpc_stats(), shown_routes),
            upstreams=fold(upstreams, shown_upstreams),
            endpoints=endpoints,
            reasons=engine.reasons(),
            counters=engine.counters(),
            heartbeat_ages_ms=engine.heartbeat_ages_ms(),
            certificates=self._certificates(),
            problems=count_problems(
                pipeline.newest, self._settings_file.problems, self._listeners.problems, self._expiry.problems
            ),
            health=msgspec.structs.replace(health, changes=fold(health.changes, shown_upstreams)),
            endpoints_healthy={name: self._endpoints_healthy(name, shown) for name, shown in endpoints.items()},
        )

    def _certificates(self) -> dict[str, float]:
        """Those that expire first, as many as the limit allows."""
        ends = {name: expiry_of(one.chain) for name, one in self._pipeline.config.certificates.items()}
        return dict(nsmallest(self._max_certificates, ends.items(), key=itemgetter(1)))

    def _endpoints(self, upstreams: Iterable[str]) -> dict[str, list[EndpointStats]]:
        """By upstream, as many as the limit allows. A sum of the rest would only repeat its upstreams."""
        endpoints: dict[str, list[EndpointStats]] = {}
        room = self._max_endpoints
        for upstream in sorted(upstreams):
            if upstream in self._pipeline.config.upstreams and room > 0:
                endpoints[upstream] = self._engine.endpoint_stats(upstream)[:room]
                room -= len(endpoints[upstream])
        return endpoints

    def _endpoints_healthy(self, upstream: str, shown: Sequence[EndpointStats]) -> dict[str, bool]:
        states = self._health.states(upstream)
        found = {one["key"]: states.get(one["key"], "untested") for one in shown}
        return {key: state == "healthy" for key, state in found.items() if state != "untested"}


class _Chain(Collector):
    def __init__(self, *collectors: Collector) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Family]:
        for collector in self._collectors:
            yield from collector.collect()


def table() -> str:
    """METRICS as a Markdown table, with the names as they are scraped."""
    suffix = {"counter": "_total", "info": "_info"}
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}{suffix.get(metric.type, '')}` | {metric.type} | {labels} | {metric.help} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
