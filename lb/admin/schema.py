"""The admin API's answers and requests as types: what clients may rely on.

Names are snake_case; fields are only ever added. The OpenAPI document is generated from these types and from the table
of operations in api.py.
"""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from lb.health.monitor import EndpointHealth
from lb.model.route import Forward, Match, Respond
from lb.pipeline import Build
from lb.problems import CODES, Origin, Problem, Severity
from lb.settings import LogLevel

ItemT = TypeVar("ItemT")


class ErrorDocument(msgspec.Struct, frozen=True):
    """Why a request failed. Source: RFC 9457, `application/problem+json`."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"


class Liveness(msgspec.Struct, frozen=True):
    """The process answers."""

    live: bool = True


class Readiness(msgspec.Struct, frozen=True):
    """Whether lb takes new requests."""

    ready: bool
    why: str
    """`serving`, or what it waits for."""
    generation: int


class Status(msgspec.Struct, frozen=True):
    """The daemon at a glance."""

    version: str
    pid: int
    started_at: float
    """Seconds since the epoch."""
    uptime_seconds: float
    ready: bool
    why: str
    generation: int
    threads: int
    exchanges: int
    """Requests and tunnels under way."""
    connections: int
    """Client connections open."""
    listeners: int
    listeners_open: int
    hosts: int
    routes: int
    upstreams: int
    upstreams_checked: int
    """Those with health checks."""
    upstreams_unhealthy: int
    """Of these, those without a healthy endpoint."""
    upstreams_unhealthy_first: tuple[str, ...]
    """The first few of them."""
    problems: dict[Severity, int]
    log_level: str
    tls_library: str = ""
    """`OpenSSL 3.5.4 30 Sep 2025`"""
    tls_kernel: str = "off"
    """Whether the kernel encrypts what is sent: `off`, `on`, or why it cannot although it should."""
    tls_groups_missing: tuple[str, ...] = ()
    """Key exchange groups of the policies that this library does not have; they are left out."""


class ConfigStatus(msgspec.Struct, frozen=True):
    """What was built, what serves, and what was refused."""

    generation: int
    builds: dict[str, int]
    """By outcome, since start."""
    newest: Build | None
    last_good: Build | None
    last_refused: Build | None


class ProblemInfo(msgspec.Struct, frozen=True):
    """One thing that is wrong with the input."""

    code: str
    severity: Severity
    title: str
    object: str
    place: str
    """`web.yaml:12:3` or `export.json items[12]`."""
    field: str
    what: str
    why: str
    fix: str
    origin: Origin

    @classmethod
    def of(cls, problem: Problem) -> ProblemInfo:
        """From the problem itself."""
        return cls(
            code=problem.code,
            severity=problem.severity,
            title=CODES[problem.code].title,
            object=problem.origin.object,
            place=problem.origin.place,
            field=problem.field,
            what=problem.what,
            why=problem.why,
            fix=problem.fix,
            origin=problem.origin,
        )


class DatagramInfo(msgspec.Struct, frozen=True):
    """What a UDP listener has carried since lb started."""

    received: int
    """From clients; those that were dropped before they came to a session are not among them."""
    sent: int
    dropped: dict[str, int]
    """Either way, by reason."""
    sessions_evicted: int
    """Sessions that made way for others."""


class ListenerInfo(msgspec.Struct, frozen=True):
    """A listener, and where it really is."""

    name: str
    port: int
    """In the model; `address` tells where it was published."""
    protocol: str
    host_set: str
    """Empty for TCP and UDP."""
    forward: str
    """Where connections and datagrams go that are only carried: `db (0.9), db-next (0.1)`; empty for HTTP."""
    open: bool
    address: str
    """Where it accepts; where it should, when it is not open."""
    activated: bool
    """systemd opened the socket."""
    problem: str
    """Why it is not open."""
    connections: int
    """Of UDP, sessions."""
    connections_active: int
    connections_rejected: int
    requests: int
    datagrams: DatagramInfo | None
    """Of UDP, once it was opened."""


class CarriedPort(msgspec.Struct, frozen=True):
    """A port of a load balancer: where lb listens, and to whom it sends."""

    listener: ListenerInfo
    upstreams: tuple[UpstreamInfo, ...]


class LoadBalancerInfo(msgspec.Struct, frozen=True):
    """A Service of type LoadBalancer, or a ConfigMap of ports."""

    object: str
    """`Service shop/db`"""
    source: str
    ports: tuple[CarriedPort, ...]
    problems: tuple[ProblemInfo, ...]
    """What is wrong with it, or why lb does not listen."""


class CertificateInfo(msgspec.Struct, frozen=True):
    """A certificate that is served, or shown to endpoints. All of it is public."""

    name: str
    kind: str
    """EC, RSA or Ed25519."""
    names: tuple[str, ...]
    """DNS names and addresses it is for."""
    hosts: tuple[str, ...]
    """`LISTENER NAME` of what is served with it."""
    upstreams: tuple[str, ...]
    """Whose endpoints it is shown to."""
    subject: str
    issuer: str
    serial: str
    fingerprint: str
    """SHA-256, hexadecimal."""
    not_before: float
    """Seconds since the epoch."""
    not_after: float
    stapled: bool
    """Whether an OCSP response goes with it."""
    source: str
    warning: str = ""
    """That a newer one was refused, and what follows from it; empty when all is well."""


class RouteInfo(msgspec.Struct, frozen=True):
    """A route with the host it belongs to."""

    name: str
    host_set: str
    hostname: str
    rank: int
    """Place in the order of its host: the first route that matches serves."""
    match: Match
    action: Forward | Respond
    source: str
    """Object and place it was made from."""
    requests: int
    """Answered since start."""


class UpstreamInfo(msgspec.Struct, frozen=True):
    """An upstream in numbers, all since start."""

    name: str
    balance: str
    affinity: str
    protocol: str
    """What its endpoints speak: http1, http2, or auto (by ALPN)."""
    endpoints: int
    endpoints_ready: int
    endpoints_unhealthy: int
    endpoints_ejected: int
    """Passed over for a while because connections to them failed."""
    health_check: str
    """`http GET /healthz every 5s`, or `off`."""
    all_fail: Literal["", "serve", "refuse"]
    """What happens because all endpoints fail their health checks; empty: not all do."""
    unavailable: str
    """Why there are no endpoints, when the reason is known."""
    source: str
    requests_active: int
    requests_queued: int
    attempts: int
    retries: int
    connects: int
    connect_failures: int
    ejections: int
    """How often an endpoint was ejected."""
    connections_idle: int


class EndpointInfo(msgspec.Struct, frozen=True):
    """An endpoint as balancing sees it."""

    endpoint: str
    """`10.0.0.1:8080`"""
    state: str
    weight: int
    target: str
    """`pod/web-7f9c` or `node/worker-1`"""
    source: str
    requests: int
    requests_active: int
    failures: int
    connections_idle: int
    ejected_for_ms: int
    """For how long more it is passed over because connections to it failed."""
    failures_in_row: int
    """How many connections have failed since the last one that succeeded."""
    last_failure: str
    """Why the last of them failed; empty since one has succeeded."""
    slow_share: float
    """How much of its weight it has: less than 1 while it starts slowly (`slow_start`)."""
    tls_error: str
    """Why its last TLS handshake failed (reason `upstream-tls-failed`); empty since one has succeeded."""
    health: EndpointHealth | None
    """What its health checks say; null when it is not checked."""


class UpstreamDetail(msgspec.Struct, frozen=True):
    """An upstream with its endpoints."""

    upstream: UpstreamInfo
    endpoints: tuple[EndpointInfo, ...]


class FlowInfo(msgspec.Struct, frozen=True):
    """A TCP connection that is carried, or a UDP session, at this moment."""

    kind: Literal["tcp", "udp"]
    listener: str
    client: str
    """`10.0.0.7:41234` or `[2001:db8::7]:41234`, as a PROXY header says it, if there was one; `unix`: by a Unix
    socket."""
    proxy: str
    """Who sent the PROXY header: an address, or `unix`; empty: there was none."""
    server_name: str
    """What its first TLS message asks for (SNI), on listeners that look at it."""
    route: str
    upstream: str
    endpoint: str
    state: Literal[
        "connecting",
        "open",
        "half-closed-client",
        "half-closed-endpoint",
        "ending",
        "reset-client",
        "reset-endpoint",
        "unanswered",
    ]
    """half-closed-client: the client has ended its half. ending: both have, or one was reset (reset-client), and what
    came before is still on its way. unanswered: a UDP session whose endpoint has not said anything."""
    draining_seconds: float | None
    """What is left to it because its endpoint has been removed; null: it may stay."""
    age_seconds: float
    idle_seconds: float
    """Since the last byte in either direction; while it connects, since that began."""
    bytes_in: int
    """From the client."""
    bytes_out: int
    """To the client."""
    datagrams_in: int
    """Of UDP."""
    datagrams_out: int
    waiting_for_endpoint: int
    """Bytes in lb's memory that the endpoint has not taken yet."""
    waiting_for_client: int
    attempts: int
    """Endpoints that were tried."""
    thread: int


class EndpointFlows(msgspec.Struct, frozen=True):
    """What goes to one endpoint of an upstream, summed over all that pass the filters."""

    upstream: str
    endpoint: str
    connections: int
    """Of TCP."""
    sessions: int
    """Of UDP."""
    bytes_in: int
    """Of these connections and sessions, so far; those that are over do not count."""
    bytes_out: int
    waiting_for_endpoint: int
    waiting_for_client: int


class Flows(msgspec.Struct, frozen=True):
    """What lb carries right now."""

    items: tuple[FlowInfo, ...]
    """The first ones in the order that was asked for."""
    total: int
    """Of all that pass the filters."""
    endpoints: tuple[EndpointFlows, ...]
    """Of all that pass the filters, those with the most first."""


class FlowsEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which TCP connections and UDP sessions an operator wants to end: all that pass these filters, of which there must
    be one. They are those of GET /v1/flows."""

    listener: str = ""
    client: str = ""
    """An address, a network, or `unix`."""
    endpoint: str = ""
    upstream: str = ""


class FlowsEnded(msgspec.Struct, frozen=True):
    """What an operator has ended."""

    connections: int
    """Of TCP."""
    sessions: int
    """Of UDP."""
    endpoints: tuple[EndpointFlows, ...]
    """Where they went, those with the most first."""


class Page(msgspec.Struct, Generic[ItemT], frozen=True):
    """A part of a list."""

    items: tuple[ItemT, ...]
    total: int
    """Of all that pass the filters, not only of this page."""
    offset: int


class EndpointChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator wants of an endpoint, until they say otherwise: reloads do not undo it."""

    upstream: str
    endpoint: str = ""
    """Empty: all of the upstream."""
    state: Literal["ready", "drain", "down"] | None = None
    """drain: nothing new. down: nothing new, and kept connections are closed."""
    weight: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    """-1 returns to the configured weight."""


class LevelChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The level of lb's own log."""

    level: LogLevel
