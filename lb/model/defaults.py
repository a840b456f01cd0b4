"""What parts of the model get where nobody says: the built-in values, or the operator's in place of them."""

from __future__ import annotations

import msgspec

from lb.model.datagram import DatagramOptions
from lb.model.listener import HttpOptions
from lb.model.route import RouteOptions
from lb.model.stream import StreamOptions
from lb.model.upstream import Balance, UpstreamOptions


class Defaults(msgspec.Struct, frozen=True):
    """Options of what says nothing itself, whoever defines it: a native file or objects of Kubernetes.

    Health checks are not among them: a native upstream speaks for itself, and a check that suits one kind of endpoints
    finds all others bad.
    """

    balance: Balance = "round-robin"
    http: HttpOptions = HttpOptions()
    stream: StreamOptions = StreamOptions()
    datagram: DatagramOptions = DatagramOptions()
    route: RouteOptions = RouteOptions()
    upstream: UpstreamOptions = UpstreamOptions()

    def stream_of(self, *, has_hosts: bool) -> StreamOptions:
        """Of a listener that carries connections: of all of them, or beside those of HTTP."""
        return self.stream.beside_http() if has_hosts else self.stream

    def http_of(self, *, has_hosts: bool) -> HttpOptions:
        """Of a listener: only one that serves HTTP has any."""
        return self.http if has_hosts else HttpOptions()


BUILT_IN_DEFAULTS = Defaults()
