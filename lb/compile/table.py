"""Compiler: a Config becomes a Table.

The virtual host is the unit of compilation and an upstream the unit of balancing: whatever *is* the same model object
as in the Config before keeps its compiled form, so one changed Ingress among 100,000 costs one small trie. Nothing
here looks at a request; what a table means is said in lb/_fastpath/table.pxd, and lb/model/match.py is its oracle.
"""

from __future__ import annotations

import ipaddress
import itertools
import operator
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from lb._fastpath.compiled import HostIndex, HostProgram, ListenerView, Table, UpstreamView
from lb._fastpath.engine import Engine
from lb.compile.tls import TlsParts
from lb.model.address import address_mistake
from lb.model.config import Config
from lb.model.datagram import DatagramOptions
from lb.model.health import HealthCheck
from lb.model.listener import HttpOptions, Listener
from lb.model.route import BUILT_IN_ROUTE_OPTIONS, Forward, PathMatch, Route, RouteOptions, VirtualHost
from lb.model.stream import NameRoute, StreamOptions, StreamRoute
from lb.model.upstream import Endpoint, Upstream, UpstreamOptions
from lb.problems import Problem

if TYPE_CHECKING:
    from lb._fastpath.engine import NameSpec, RouteSpec, StreamSpec

PATH_KINDS = {"exact": 0, "prefix": 1, "string-prefix": 2}
PROTOCOLS = {"http1": 0, "http2": 1, "auto": 2}
BALANCES = {"round-robin": 0, "least-connections": 1, "random-two": 2, "maglev": 3}
HASH_KEYS = {"source": 0, "source-port": 1, "flow": 2}
PROXY_PROTOCOLS = {"none": 0, "v1": 1, "v2": 2}
PROXY_VALUES = {"alpn": 1, "authority": 2, "ssl": 4, "unique-id": 8, "crc32c": 16}
"""TELL_… of proxy_protocol.pxd."""


class Compiler:
    """Compiles one Config after another for one engine. Not thread-safe: one compilation at a time."""

    def __init__(
        self,
        engine: Engine,
        published: Mapping[int, int] | None = None,
        places: Callable[[Iterable[Listener]], dict[str, str]] | None = None,
    ) -> None:
        """`published`: where clients reach a listener's port, if that is another one. `places`: which listener has
        which place, as the engine is told when its sockets are opened.
        """
        self._engine = engine
        self._published = published or {}
        self._places = places or (lambda listeners: {})
        self._config = Config()
        self._indexes: dict[str, HostIndex] = {}
        self._upstreams: dict[str, UpstreamView] = {}
        self._listeners: dict[str, ListenerView] = {}
        self._tls = TlsParts()
        self.refused: Mapping[str, Problem] = {}
        """What OpenSSL (TlsParts.refused) or the kernel would not take of the newest Config. Whole and never changed:
        others read it while the next one is compiled."""
        self._transparency_mistake = _transparency_mistake()

    def compile(self, config: Config, generation: int) -> Table:
        """A Table of everything in `config`. Raises ValueError for an address or network that cannot be parsed; the
        compiler then still stands on the Config before."""
        indexes = {name: self._compile_hosts(name, hosts) for name, hosts in config.hosts.items()}
        self._tls.take(config.certificates)
        upstreams = {name: self._compile_upstream(upstream) for name, upstream in config.upstreams.items()}
        https_ports = {
            host_set: self._published.get(port, port)
            for host_set, port in _https_ports(config.listeners.values()).items()
        }
        listeners = {
            name: self._compile_listener(
                listener, indexes.get(listener.host_set), https_ports.get(listener.host_set, 0)
            )
            for name, listener in config.listeners.items()
        }
        table = self._engine.make_table(generation, listeners, upstreams, self._places(config.listeners.values()))
        self._config = config
        self._indexes, self._upstreams, self._listeners = indexes, upstreams, listeners
        self.refused = self._tls.refused | self._refused_by_kernel(config.upstreams.values())
        return table

    def _refused_by_kernel(self, upstreams: Iterable[Upstream]) -> dict[str, Problem]:
        if not self._transparency_mistake:
            return {}
        return {
            f"transparency {upstream.name}": Problem(
                "LB6010",
                upstream.origin,
                f"connections to {upstream.name} cannot leave with clients' addresses: {self._transparency_mistake}",
                "none is made (reason transparency-refused): the endpoints would see a wrong address",
                "give the service the capability CAP_NET_RAW or CAP_NET_ADMIN, or take `transparent` away",
            )
            for upstream in upstreams
            if upstream.transparent
        }

    def _compile_hosts(self, name: str, hosts: Mapping[str, VirtualHost]) -> HostIndex:
        """The index of a host set: the one before, with what is new or different compiled and put in."""
        before = self._config.hosts.get(name)
        index = self._indexes.get(name)
        if before is None or index is None:
            return self._engine.make_index({hostname: self._compile_host(host) for hostname, host in hosts.items()})
        if before is hosts:
            return index
        if len(before) == len(hosts) and all(map(operator.eq, before, hosts)):
            # The usual change: the same names in the same order. Walking both side by side is five times as fast.
            differ = map(operator.is_not, before.values(), hosts.values())
            different = dict(itertools.compress(hosts.items(), differ))
            removed = []
        else:
            different = {hostname: host for hostname, host in hosts.items() if before.get(hostname) is not host}
            removed = [hostname for hostname in before if hostname not in hosts]
        changed = {hostname: self._compile_host(host) for hostname, host in different.items()}
        return self._engine.change_index(index, changed, removed)

    def _compile_host(self, host: VirtualHost) -> HostProgram:
        return self._engine.compile_host(host.hostname, host.one_label, [_route_spec(route) for route in host.routes])

    def _compile_upstream(self, upstream: Upstream) -> UpstreamView:
        made = self._upstreams.get(upstream.name)
        before = self._config.upstreams.get(upstream.name)
        tls, endpoints = None, upstream.endpoints
        if upstream.tls is not None:
            tls = self._tls.of_upstream(upstream, before, made.tls if made is not None else None)
            endpoints = endpoints if tls is not None else ()
        if made is not None and before is upstream and made.tls is tls:
            return made
        protocol = PROTOCOLS[upstream.protocol] if tls is not None or upstream.protocol != "auto" else 0
        specs = _endpoint_specs(endpoints)
        return self._engine.make_upstream(upstream.name, specs, _policy(upstream), protocol, tls)

    def _compile_listener(self, listener: Listener, index: HostIndex | None, https_port: int) -> ListenerView:
        made = self._listeners.get(listener.name)
        before = self._config.listeners.get(listener.name)
        tls = None
        if listener.terminates:
            old = made.tls.hosts if made is not None and made.tls is not None else {}
            hosts = self._tls.of_listener(listener, before, old)
            tls = made.tls if made is not None and made.tls is not None and made.tls.hosts == hosts else None
            tls = tls or self._engine.make_tls_index(hosts)
        if (
            made is not None
            and before == listener
            and made.index is index
            and made.tls is tls
            and made.https_port == https_port
        ):
            return made
        trusted = tuple(_network(text) for text in listener.http.trusted_proxies)
        stream = listener.stream
        proxies = (
            listener.http.proxy_protocol if stream is None or listener.has_hosts else stream.options.proxy_protocol
        )
        return self._engine.make_listener(
            listener.name,
            index or self._engine.make_index({}),
            listener.port,
            _http_options(_limits(listener)),
            trusted,
            tls,
            https_port,
            listener.tls.hsts.encode() if listener.tls is not None else b"",
            carried=_carried_spec(listener),
            proxies=tuple(_network(text) for text in proxies),
            names={}
            if stream is None
            else {
                name: [_name_spec(route, stream.options) for route in routes] for name, routes in stream.names.items()
            },
            carries=not listener.has_hosts,
            sessions=None if listener.datagram is None else _sessions(listener.datagram.options),
        )


_IP_TRANSPARENT = 19
"""linux/in.h"""


def _transparency_mistake() -> str:
    """Why connections may not leave with clients' addresses (ip(7)); empty when they may."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _limits(listener: Listener) -> HttpOptions:
    """What is looked at when a client connects is the same for all listeners."""
    if listener.stream is None or listener.has_hosts:
        return listener.http
    options = listener.stream.options
    return HttpOptions(
        head_timeout_ms=options.handshake_timeout_ms,
        max_connections=options.max_connections,
        max_connections_per_client=options.max_connections_per_client,
        max_connection_rate=options.max_connection_rate,
        max_connection_rate_per_client=options.max_connection_rate_per_client,
    )


def _carried_spec(listener: Listener) -> StreamSpec | None:
    stream, datagram = listener.stream, listener.datagram
    if stream is not None and stream.route is not None:
        return _stream_spec(stream.route, stream.options)
    return _stream_spec(datagram.route, datagram.options) if datagram is not None else None


def _stream_spec(route: StreamRoute, options: StreamOptions | DatagramOptions) -> StreamSpec:
    half_closed_ms = options.half_closed_timeout_ms if isinstance(options, StreamOptions) else 0
    return (
        route.name,
        _shares(route.forward),
        (
            _int32(options.idle_timeout_ms or _NEVER_MS),
            _int32(half_closed_ms or _NEVER_MS),
            _int32(options.drain_timeout_ms or _NEVER_MS),
            options.retries,
        ),
        tuple(_network(text) for text in options.allow),
    )


def _name_spec(route: NameRoute, options: StreamOptions) -> NameSpec:
    alpn = b"".join(bytes([len(one)]) + one.encode() for one in route.alpn)
    return _stream_spec(route, options), route.mode == "terminate", alpn


def _sessions(options: DatagramOptions) -> tuple[int, int, int, int, int]:
    return (
        _int32(options.responses),
        _int32(options.max_sessions),
        _int32(options.max_sessions_per_client),
        _int32(options.max_session_rate),
        _int32(options.max_session_rate_per_client),
    )


def _https_ports(listeners: Iterable[Listener]) -> dict[str, int]:
    """Host set -> the port where it is served by TLS: 443 if there is one, else the first."""
    ports: dict[str, int] = {}
    for listener in listeners:
        if listener.protocol == "https" and ports.get(listener.host_set) != 443:
            ports[listener.host_set] = listener.port
    return ports


def _route_spec(route: Route) -> RouteSpec:
    match = route.match
    action: object
    if isinstance(route.action, Forward):
        action = _shares(route.action)
    else:
        action = (route.action.status, route.action.body.encode("utf-8", "replace"))
    return (
        route.name,
        PATH_KINDS[match.path.kind],
        _path_key(match.path),
        [method.encode() for method in match.methods],
        [(header.name.lower().encode(), _encoded(header.value)) for header in match.headers],
        [(query.name.encode(), _encoded(query.value)) for query in match.query],
        action,
        _route_options(route.options),
    )


def _shares(forward: Forward) -> list[tuple[str, int]]:
    """(upstream, weight); weights whose sum is beyond the table's 32 bits are scaled down, none of them to nothing."""
    total = sum(upstream.weight for upstream in forward.upstreams)
    most = 2**31 - 1 - len(forward.upstreams)
    if total <= most:
        return [(upstream.name, upstream.weight) for upstream in forward.upstreams]
    return [(upstream.name, -(-upstream.weight * most // total)) for upstream in forward.upstreams]


def _path_key(path: PathMatch) -> bytes:
    """The trie's key: an element-wise prefix is looked up without its trailing slashes (Ingress: `/foo` and `/foo/`
    are one).
    """
    return path.value.removesuffix("/").encode() if path.kind == "prefix" else path.value.encode()


def _int32(value: int) -> int:
    """Milliseconds and counts are 32-bit in the table; what is beyond 24 days means the same as 24 days."""
    return min(value, 2**31 - 1)


def _int64(value: int) -> int:
    return min(value, 2**63 - 1)


def _encoded(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def _route_options(options: RouteOptions) -> tuple[int, int, int, int, int, int, int, int]:
    built_in = BUILT_IN_ROUTE_OPTIONS
    return (
        -1 if options.max_body_bytes is None else _int64(options.max_body_bytes),
        _int32(_either(options.response_timeout_ms, built_in.response_timeout_ms)),
        _int32(_either(options.idle_timeout_ms, built_in.idle_timeout_ms)),
        _int32(_either(options.tunnel_timeout_ms, built_in.tunnel_timeout_ms)),
        _int32(_either(options.request_timeout_ms, built_in.request_timeout_ms)),
        _int32(_either(options.retries, built_in.retries)),
        _either(options.https_redirect, built_in.https_redirect),
        int(built_in.grpc_web if options.grpc_web is None else options.grpc_web),  # type: ignore[arg-type]
    )


def _either(value: int | None, built_in: int | None) -> int:
    return value if value is not None else built_in or 0


def _endpoint_specs(endpoints: tuple[Endpoint, ...]) -> list[tuple[str, str, int, int]]:
    """(key, address, port, effective weight), each key once. Draining endpoints count only while nobody else can serve
    (kube-proxy: `serving && terminating` is used when nothing is ready)."""
    endpoints = tuple(endpoint for endpoint in endpoints if not address_mistake(endpoint.address))
    anybody = any(endpoint.weight > 0 and not endpoint.draining for endpoint in endpoints)
    specs = {
        endpoint.key: (
            endpoint.key,
            endpoint.address,
            endpoint.port,
            0 if endpoint.draining and anybody else endpoint.weight,
        )
        for endpoint in endpoints
    }
    return list(specs.values())


def _checked(check: HealthCheck) -> int:
    """CHECKED_… of table.pxd."""
    if check.type == "off":
        return 0
    return 1 if check.when_all_fail == "serve" else 2


def _policy(upstream: Upstream) -> tuple[int, ...]:
    options: UpstreamOptions = upstream.options
    return (
        BALANCES[upstream.balance],
        int(upstream.affinity == "client-ip"),
        _int32(options.connect_timeout_ms),
        _int32(options.idle_timeout_ms or _NEVER_MS),
        _int32(options.max_requests_per_connection),
        _int32(options.max_connections),
        _int32(options.max_connections_per_endpoint),
        _int32(options.max_queue),
        _int32(options.queue_timeout_ms),
        _int32(options.max_streams_per_connection),
        _checked(upstream.health_check),
        PROXY_PROTOCOLS[upstream.proxy_protocol],
        HASH_KEYS[options.hash_key],
        # A slow start would lead clients elsewhere and back again.
        0 if upstream.balance == "maglev" or upstream.affinity != "none" else _int32(options.slow_start_ms),
        _int32(options.affinity_timeout_ms),
        sum(PROXY_VALUES[value] for value in upstream.proxy_values),
        int(upstream.transparent),
    )


def _http_options(options: HttpOptions) -> tuple[int, ...]:
    return (
        _int32(options.head_timeout_ms or _NEVER_MS),
        _int32(options.keepalive_timeout_ms or _NEVER_MS),
        _int32(options.idle_timeout_ms or _NEVER_MS),
        _int32(options.linger_timeout_ms),
        _int32(options.max_requests_per_connection),
        min(options.max_head_bytes or _MOST_HEAD_BYTES, _MOST_HEAD_BYTES),
        min(options.max_headers or _MOST_HEADERS, _MOST_HEADERS),
        min(options.max_target_bytes or _MOST_HEAD_BYTES, _MOST_HEAD_BYTES),
        _int32(options.max_connections),
        _int32(options.max_connections_per_client),
        _int32(options.max_connection_rate),
        _int32(options.max_connection_rate_per_client),
        _int64(options.max_body_bytes),
        int(options.forwarded_header),
        int(options.merge_slashes),
        int(options.escaped_slashes == "keep"),
        int(options.bare_lf == "reject"),
        int(options.absolute_form_mismatch == "accept"),
    )


_NEVER_MS = 2**31 - 1
_MOST_HEAD_BYTES = 49_152
_MOST_HEADERS = 256


def _network(text: str) -> tuple[bytes, int]:
    """A network as 16 bytes and a count of leading bits; IPv4 as ::ffff:0:0/96."""
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv4Network):
        return b"\0" * 10 + b"\xff\xff" + network.network_address.packed, 96 + network.prefixlen
    return network.network_address.packed, network.prefixlen
