"""Streams: listeners whose bytes are carried as they come, and where they go."""

from __future__ import annotations

import msgspec

from lb.model.route import Forward
from lb.problems import Origin


class StreamOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Timeouts, limits and access of a listener that carries bytes. Times in milliseconds; 0 means no limit, unless the
    field says otherwise.
    """

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
    """Client connections open from one address."""
    allow: tuple[str, ...] = ()
    """Networks whose clients are let in; all others are reset. Empty: everybody is let in."""
    proxy_protocol: tuple[str, ...] = ()
    """Networks of proxies whose connections begin with a PROXY protocol header (version 1 or 2), which says who the
    client is. From elsewhere none is expected."""


class StreamRoute(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where connections go (Gateway API TCPRoute), with the name that logs, metrics and `explain` show."""

    name: str
    forward: Forward
    origin: Origin = Origin()
    field: str = ""
    """Path inside the origin object."""


class Stream(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a `tcp` listener does with its connections."""

    route: StreamRoute
    options: StreamOptions = StreamOptions()
