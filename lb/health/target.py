"""What is checked: an address, the check, and how it is spoken to. Equal targets are checked once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from lb.health.attempt import SocketAddress
from lb.health.grpc import GrpcQuestion
from lb.health.http1 import Http1Question
from lb.health.http2 import Http2Question
from lb.health.talk import Asked, Question
from lb.health.tls import ClientPair, TlsNeeds
from lb.model.address import UNIX_PREFIX
from lb.model.health import HealthCheck
from lb.model.tls import UpstreamTls
from lb.model.upstream import Endpoint, ProxyProtocol, Upstream, split_key

_QUESTIONS: dict[str, Callable[[HealthCheck, Asked], Question]] = {
    "http": Http1Question,
    "http2": Http2Question,
    "grpc": GrpcQuestion,
}


_PROXY_HEADERS: dict[ProxyProtocol, bytes] = {
    "none": b"",
    "v1": b"PROXY UNKNOWN\r\n",
    "v2": b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
}
"""Of a connection that is for no client: UNKNOWN, or the command LOCAL (PROXY protocol 2.1 and 2.2). HAProxy's checks
begin with the same."""


class Target(NamedTuple):
    """An endpoint under a check."""

    address: str
    """IP address, or `unix:/path`."""
    port: int
    check: HealthCheck
    tls: TlsNeeds | None
    proxy_protocol: ProxyProtocol

    @property
    def key(self) -> str:
        """As endpoints are named."""
        return Endpoint(self.address, self.port).key

    @property
    def socket_address(self) -> SocketAddress:
        if self.address.startswith(UNIX_PREFIX):
            return self.address.removeprefix(UNIX_PREFIX)
        return self.address, self.port

    @property
    def preamble(self) -> bytes:
        """What a connection begins with, before TLS."""
        return _PROXY_HEADERS[self.proxy_protocol]

    def question(self) -> Question | None:
        """What is asked; None where there is nothing to say."""
        make = _QUESTIONS.get(self.check.type)
        if make is None:
            return None
        own = "localhost" if self.address.startswith(UNIX_PREFIX) else self.key
        return make(self.check, Asked(self.check.host or own, self.tls is not None))


def target_of(upstream: Upstream, endpoint: Endpoint, pair: ClientPair | None) -> Target:
    """The target of an endpoint; `pair` is the upstream's own certificate."""
    # What follows from a result is the upstream's own business: those that differ in nothing else share the check.
    check = msgspec.structs.replace(upstream.health_check, when_all_fail="serve", open_flows="keep")
    # Behind a port of its own is something else than what serves, and it expects no header (as in HAProxy).
    proxy_protocol = "none" if check.port else upstream.proxy_protocol
    return Target(endpoint.address, check.port or endpoint.port, check, _tls_of(upstream, pair), proxy_protocol)


def _tls_of(upstream: Upstream, pair: ClientPair | None) -> TlsNeeds | None:
    check, tls = upstream.health_check, upstream.tls
    if check.type == "tcp" or check.tls == "off":
        return None
    if check.tls == "unverified":
        tls = UpstreamTls(server_name=tls.server_name if tls is not None else _name_of(check.host), verify=False)
    if tls is None:
        return None
    is_http2 = check.type in ("http2", "grpc") or (check.type == "tls" and upstream.protocol == "http2")
    return TlsNeeds(tls, pair, "h2" if is_http2 else "http/1.1")


def _name_of(host: str) -> str:
    """Without the port."""
    try:
        return split_key(host)[0]
    except ValueError:
        return host
