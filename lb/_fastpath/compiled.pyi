"""What tables consist of, as Python objects. Made by Engine; here to be named, and asked."""

from collections.abc import Sequence

from lb._fastpath.credentials import ClientTls, TlsHost

class HostProgram:
    """One compiled virtual host. Immutable."""

    hostname: str
    route_count: int
    size_bytes: int

class HostIndex:
    """Hostnames to virtual hosts, for one host set."""

    hosts: dict[str, HostProgram]

class TlsIndex:
    """Server names to what they are served with, for one listener."""

    index: HostIndex
    hosts: dict[str, TlsHost]

class ListenerView:
    """A listener as a table sees it."""

    name: str
    index: HostIndex
    tls: TlsIndex | None
    https_port: int

class Endpoint:
    """Live state of one endpoint; keeps its identity over every table."""

    upstream: str
    key: str
    admin: str
    weight_override: int | None

class UpstreamView:
    """An upstream as a table sees it."""

    endpoints: tuple[Endpoint, ...]
    weights: tuple[int, ...]
    tls: ClientTls | None
    maglev: object
    """Its Maglev table, which may be that of other views as well; None with other algorithms."""

class Table:
    """Everything a request needs, as one immutable value. Made by lb.compile.table."""

    listeners: dict[str, ListenerView]
    upstreams: dict[str, UpstreamView]

    generation: int
    host_count: int
    route_count: int
    size_bytes: int
    def match(
        self,
        listener: str,
        host: bytes,
        path: bytes,
        method: bytes = b"GET",
        headers: Sequence[tuple[bytes, bytes]] = (),
        query: bytes | None = None,
    ) -> tuple[str | None, str | None]:
        """(hostname of the virtual host, name of the route) that serve the request. `path` must be normalised."""

    def match_name(self, listener: str, server_name: bytes, offered: bytes = b"") -> str | None:
        """Name of the route that a TLS connection goes to; None: it is for the hosts of HTTP, or for nobody.
        `offered`: ALPN protocols, each behind its length."""
