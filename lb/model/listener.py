"""Listeners: the addresses and ports lb accepts on, and the rules for the bytes that arrive there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from lb.model.datagram import Datagram
from lb.model.stream import Stream, StreamRoute
from lb.model.tls import ListenerTls
from lb.problems import Origin

ListenerProtocol = Literal["http", "https", "tcp", "tls", "udp"]
Transport = Literal["tcp", "udp"]


class HttpOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Timeouts, limits and trust of an HTTP listener. Times in milliseconds, sizes in bytes; 0 means no limit, unless
    the field says otherwise.
    """

    head_timeout_ms: int = 10_000
    """From the first byte of a request to the end of its head (408)."""
    keepalive_timeout_ms: int = 75_000
    """How long a connection may wait for its next request, and for its first one."""
    idle_timeout_ms: int = 60_000
    """How long a request body, or a client that is not reading, may stand still."""
    linger_timeout_ms: int = 2_000
    """How long unread bytes are drained after an early answer, so that the client can read it; 0: not at all."""
    max_requests_per_connection: int = 0
    """After how many requests a client's connection is closed."""
    max_head_bytes: int = 32_768
    """Largest request head, request line and headers together (431)."""
    max_headers: int = 100
    """Most header lines of a request (431)."""
    max_target_bytes: int = 8_192
    """Longest request target (414)."""
    max_body_bytes: int = 0
    """Largest request body (413). A route's own limit comes before it."""
    max_connections: int = 0
    """Client connections open on this listener (503)."""
    max_connections_per_client: int = 0
    """Client connections open from one address (429); of IPv6 from one /64 network."""
    max_connection_rate: int = 0
    """New client connections a second (503), as many at once as in one second."""
    max_connection_rate_per_client: int = 0
    """The same from one address (429); of IPv6 from one /64 network."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose X-Forwarded-* and Forwarded headers are believed and extended; everybody else's are replaced."""
    proxy_protocol: tuple[str, ...] = ()
    """Networks of proxies whose connections begin with a PROXY protocol header (version 1 or 2), which says who the
    client is. From elsewhere none is expected, and none believed."""
    forwarded_header: bool = False
    """Also send RFC 7239 `Forwarded`."""
    merge_slashes: bool = True
    """Match and forward `//` as `/`."""
    escaped_slashes: Literal["reject", "keep"] = "reject"
    """What to do with %2F and %5C in a path. %00 is always rejected."""
    bare_lf: Literal["accept", "reject"] = "accept"
    """Whether a lone LF may end a line of a request head. Always sent on as CRLF."""
    absolute_form_mismatch: Literal["reject", "accept"] = "reject"
    """A request target `http://a/` with `Host: b`: 400, or the target wins (RFC 9112 3.2.2)."""


class Listener(msgspec.Struct, frozen=True, omit_defaults=True):
    """One address and port."""

    name: str
    port: int = 0
    address: str = ""
    """IPv4 or IPv6 address, `unix:/path`, or empty for all addresses of both families."""
    protocol: ListenerProtocol = "http"
    host_set: str = "default"
    """Which entry of Config.hosts it serves."""
    http: HttpOptions = HttpOptions()
    origin: Origin = Origin()
    tls: ListenerTls | None = None
    """Of `https`, and of `tls` where lb terminates; without it all names get lb's self-made certificate."""
    stream: Stream | None = None
    """Of `tcp` and `tls`, which have no hosts, and of `https` for names that are no hosts of HTTP."""
    datagram: Datagram | None = None
    """Of `udp`, and only there: it has no hosts."""

    @property
    def transport(self) -> Transport:
        """A listener of each may have the same port."""
        return "udp" if self.protocol == "udp" else "tcp"

    @property
    def has_hosts(self) -> bool:
        """Whether it serves HTTP; of others, bytes are all that it knows of its clients."""
        return self.protocol in ("http", "https")

    @property
    def terminates(self) -> bool:
        """Whether lb speaks TLS with some of its clients."""
        if self.protocol == "tls" and self.stream is not None:
            return any(route.mode == "terminate" for routes in self.stream.names.values() for route in routes)
        return self.protocol == "https"

    @property
    def carries(self) -> StreamRoute | None:
        """Where all that comes is carried; None where a server name decides, and for HTTP."""
        if self.stream is not None:
            return self.stream.route
        return self.datagram.route if self.datagram is not None else None

    @property
    def carried_routes(self) -> Iterator[StreamRoute]:
        """All the places where something is carried."""
        if self.datagram is not None:
            yield self.datagram.route
        if self.stream is not None:
            yield from self.stream.routes

    @property
    def bind(self) -> str:
        """`*:80`, `127.0.0.1:80`, `[::1]:80` or `unix:/path`, and behind it `/udp` where it is not TCP."""
        return write_bind(self.address, self.port, self.transport)


def write_bind(address: str, port: int, transport: Transport) -> str:
    """`*:80`, `[::1]:53/udp` or `unix:/path`; an empty address is all of them."""
    if address.startswith("unix:"):
        return address
    place = f"[{address}]:{port}" if ":" in address else f"{address or '*'}:{port}"
    return f"{place}/udp" if transport == "udp" else place
