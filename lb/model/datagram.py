"""Datagrams: listeners whose UDP datagrams are carried as they come, and where they go."""

from __future__ import annotations

import msgspec

from lb.model.stream import StreamRoute


class DatagramOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Timeouts, limits and access of a UDP listener. A session is all that is sent between one address and port of a
    client and one endpoint. Times in milliseconds; 0 means no limit.
    """

    # RFC 4787 4.3: no binding may end in less than two minutes; conntrack (nf_conntrack_udp_timeout_stream) and NLB
    # wait as long. QUIC sends something every 15 to 30 s at least, so its sessions do not end between two datagrams.
    idle_timeout_ms: int = 120_000
    """How long a session may be silent in both directions."""
    drain_timeout_ms: int = 30_000
    """How long sessions stay with an endpoint that is removed; then their clients' next datagrams go to another one."""
    retries: int = 2
    """How many more endpoints are tried when a session's first datagram is refused by the host it is sent to."""
    responses: int = 0
    """After how many datagrams of the endpoint a session ends: 1 where a question has one answer, as in DNS."""
    max_sessions: int = 16_384
    """Sessions at a time; a new one takes the place of the one that has been silent longest."""
    max_sessions_per_client: int = 0
    """Sessions of one address at a time, of IPv6 of one /64 network; datagrams that would begin another one are
    dropped."""
    max_session_rate: int = 0
    """New sessions a second, as many at once as in one second; datagrams that would begin more are dropped."""
    max_session_rate_per_client: int = 0
    """The same of one address; of IPv6 of one /64 network."""
    allow: tuple[str, ...] = ()
    """Networks whose clients are served; datagrams of all others are dropped. Empty: everybody is served."""


class Datagram(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a `udp` listener does with its datagrams."""

    route: StreamRoute
    options: DatagramOptions = DatagramOptions()
