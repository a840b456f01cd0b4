"""Upstreams and endpoints: who serves the requests, and the policy of choosing and connecting."""

from __future__ import annotations

from typing import Literal

import msgspec

from lb.model.health import HealthCheck
from lb.model.tls import UpstreamTls
from lb.problems import Origin

Balance = Literal["round-robin", "least-connections", "random-two", "maglev"]
HashKey = Literal["source", "source-port", "flow"]
Protocol = Literal["http1", "http2", "auto"]
ProxyProtocol = Literal["none", "v1", "v2"]
ProxyValue = Literal["alpn", "authority", "ssl", "unique-id", "crc32c"]


class Endpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """An address that serves requests. Weight 0 gets nothing new, but finishes what it has."""

    address: str
    """IPv4, IPv6 without brackets, or `unix:/path`."""
    port: int = 0
    weight: int = 1
    draining: bool = False
    """Terminating in the cluster: gets nothing new while another endpoint can serve."""
    target: str = ""
    """What stands behind it: `pod/web-7f9c` or `node/worker-1`."""
    origin: Origin = Origin()

    @property
    def key(self) -> str:
        """`10.0.0.1:8080`, `[fd00::1]:8080` or `unix:/path`: the endpoint's identity within its upstream."""
        if self.address.startswith("unix:"):
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def split_key(key: str) -> tuple[str, int]:
    """(address, port) of `10.0.0.1:8080`, `[fd00::1]:8080` or `unix:/path`; ValueError otherwise."""
    if key.startswith("unix:"):
        return key, 0
    address, _, port = key.rpartition(":")
    bracketed = address.startswith("[") and address.endswith("]")
    bare = address[1:-1] if bracketed else address
    if not bare or (":" in bare) != bracketed or not (port.isascii() and port.isdigit()):
        raise ValueError(f"{key!r} is not an address such as 10.0.0.1:80, [fd00::1]:80 or unix:/path")
    return bare, int(port)


class UpstreamOptions(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Policy of choosing and connecting. Times in milliseconds; 0 means no limit, unless the field says otherwise."""

    connect_timeout_ms: int = 5_000
    """How long connecting to an endpoint may take; then another one is tried."""
    idle_timeout_ms: int = 55_000
    """How long an unused connection is kept. A server's `Keep-Alive: timeout=` shortens it."""
    max_requests_per_connection: int = 0
    """After how many requests a connection to an endpoint is closed."""
    max_streams_per_connection: int = 100
    """Requests under way on one HTTP/2 connection, unless the endpoint allows fewer; others get another one."""
    max_connections: int = 0
    """Requests, TCP connections and UDP sessions under way in the whole upstream; only requests wait in the queue."""
    max_connections_per_endpoint: int = 0
    """Requests, TCP connections and UDP sessions under way on one endpoint."""
    max_queue: int = 1_024
    """How many requests may wait when a limit is reached; the next one is answered 503. 0: nobody waits."""
    queue_timeout_ms: int = 10_000
    """How long a request may wait in the queue (503)."""
    affinity_timeout_ms: int = 10_800_000
    """How long after its last request or connection affinity keeps a client (Service `sessionAffinityConfig`)."""
    slow_start_ms: int = 0
    """An endpoint that joins others, or comes back to them, begins with a tenth of its share and has all of it after
    this time; 0: at once. Not with maglev, and not with affinity."""
    hash_key: HashKey = "source"
    """What balance maglev chooses by: the client's address; or address and port; or flow: these, where it connects to,
    and the protocol. Requests (HTTP) are chosen for by the client's address alone."""


def spoken_for(protocol: Protocol, proxy_protocol: ProxyProtocol, *, transparent: bool) -> Protocol:
    """What endpoints are spoken to with: HTTP/2 gives way where each connection is for one client, because it tells or
    has its address, and HTTP/2 would share it among many.
    """
    return "http1" if transparent or proxy_protocol != "none" else protocol


class Upstream(msgspec.Struct, frozen=True, omit_defaults=True):
    """A named set of endpoints with one policy."""

    name: str
    balance: Balance = "round-robin"
    endpoints: tuple[Endpoint, ...] = ()
    affinity: Literal["none", "client-ip"] = "none"
    """client-ip keeps a client on its endpoint while that endpoint can serve, for as long as `affinity_timeout` says
    (Service `sessionAffinity: ClientIP`)."""
    options: UpstreamOptions = UpstreamOptions()
    unavailable: str = ""
    """Why there are no endpoints, when the reason is known: `Service shop/web does not exist`."""
    resolve: str = ""
    """External name whose addresses are the endpoints (Service type ExternalName)."""
    origin: Origin = Origin()
    tls: UpstreamTls | None = None
    """None: plain."""
    protocol: Protocol = "http1"
    """What its endpoints speak; auto: what TLS agrees on (ALPN), and HTTP/1 where there is no TLS."""
    health_check: HealthCheck = HealthCheck()
    """How its endpoints are checked while lb runs."""
    proxy_protocol: ProxyProtocol = "none"
    """Begin each connection with a PROXY protocol header that tells the client's address. Connections are then made for
    one client and not kept."""
    proxy_values: tuple[ProxyValue, ...] = ()
    """What a v2 header tells besides addresses and what a proxy before lb has said: alpn and authority (the protocol
    and the name that the client's TLS has agreed on and asked for), ssl (its version, cipher and client certificate),
    unique-id (of the request or connection, as in the access log), crc32c (a checksum of the header)."""
    transparent: bool = False
    """Connections leave with the client's address, and its port when it is free (IP_TRANSPARENT). They are then made
    for one client and not kept. Needs a privilege, and routes that lead the answers back through lb."""
