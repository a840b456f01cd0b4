"""Streams: listeners whose bytes are carried as they come, and where they go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from lb.model.route import Forward
from lb.problems import Origin


class StreamOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Timeouts, limits and access of a listener that carries bytes. Times in milliseconds; 0 means no limit, unless the
    field says otherwise.
    """

    handshake_timeout_ms: int = 10_000
    """How long a client may take until its bytes are carried: for the header of a proxy before it and for the TLS
    handshake, or its first message."""
    idle_timeout_ms: int = 600_000
    """How long a connection may be silent in both directions."""
    half_closed_timeout_ms: int = 120_000
    """The same once one side has ended its half."""
    drain_timeout_ms: int = 300_000
    """How long connections go on when their endpoint is removed; 0: until they end by themselves."""
    retries: int = 2
    """How many more endpoints are tried when connecting to the first one fails."""
    max_connections: int = 0
    """Client connections open on this listener; those over it are reset."""
    max_connections_per_client: int = 0
    """Client connections open from one address; of IPv6 from one /64 network."""
    max_connection_rate: int = 0
    """New client connections a second, as many at once as in one second."""
    max_connection_rate_per_client: int = 0
    """The same from one address; of IPv6 from one /64 network."""
    allow: tuple[str, ...] = ()
    """Networks whose clients are let in; all others are reset. Empty: everybody is let in."""
    proxy_protocol: tuple[str, ...] = ()
    """Networks of proxies whose connections begin with a PROXY protocol header (version 1 or 2), which says who the
    client is. From elsewhere none is expected."""

    def beside_http(self) -> StreamOptions:
        """Those of names on an `https` listener: what concerns all its clients is said in its `http` section."""
        defaults = StreamOptions()
        return msgspec.structs.replace(self, **{name: getattr(defaults, name) for name in OF_HTTP})


OF_HTTP = (
    "handshake_timeout_ms", "max_connections", "max_connections_per_client", "max_connection_rate",
    "max_connection_rate_per_client", "proxy_protocol",
)  # fmt: skip
"""Options that an `https` listener has for all its clients (HttpOptions; the first one is its `head_timeout`)."""


class StreamRoute(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where connections go (Gateway API TCPRoute), with the name that logs, metrics and `explain` show."""

    name: str
    forward: Forward
    origin: Origin = Origin()
    field: str = ""
    """Path inside the origin object."""


Mode = Literal["passthrough", "terminate"]


class NameRoute(StreamRoute, frozen=True, omit_defaults=True):
    """Where the connections go of clients that name a server in their first TLS message (Gateway API TLSRoute)."""

    mode: Mode = "passthrough"
    """passthrough: as they are, the endpoint speaks TLS with the client. terminate: lb does, with the certificates of
    the listener's `tls`, and the endpoint gets what was encrypted."""
    alpn: tuple[str, ...] = ()
    """Only for clients that offer one of these protocols (ALPN); where lb terminates it agrees to the first of them
    that is offered. Empty: for all clients, and lb agrees to none."""

    def takes(self, offered: tuple[str, ...]) -> bool:
        """Whether a client that offers these protocols is meant."""
        return not self.alpn or any(one in offered for one in self.alpn)


class Stream(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a `tcp` or `tls` listener does with its connections, and an `https` listener with those of some names."""

    route: StreamRoute | None = None
    """Of `tcp`: all connections."""
    options: StreamOptions = StreamOptions()
    names: dict[str, tuple[NameRoute, ...]] = {}
    """Of `tls` and `https`: server name -> routes, of which the first one wins that takes what the client offers.
    `*.example.com` covers any number of labels (Gateway API Hostname), `*` all other names and clients that say
    none."""

    @property
    def routes(self) -> Iterator[StreamRoute]:
        """All of them."""
        if self.route is not None:
            yield self.route
        for routes in self.names.values():
            yield from routes
