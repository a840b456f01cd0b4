"""Random Configs and requests that collide: few words, so that hosts, paths and conditions meet all the time.

`configs()` makes valid Configs only: what the native file's reader accepts without a Problem. `requests_for(config)`
makes (listener name, Request) pairs near to what the Config has: normalised, on or just beside its hosts, paths and
conditions.
"""

from __future__ import annotations

from typing import get_args

import msgspec
from hypothesis import strategies as st

from lb.model.config import Config
from lb.model.datagram import Datagram, DatagramOptions
from lb.model.health import HealthCheck
from lb.model.listener import HttpOptions, Listener
from lb.model.match import Request
from lb.model.normalize import normalize_rule_path
from lb.model.route import (
    Forward,
    HeaderMatch,
    Match,
    PathMatch,
    QueryMatch,
    Respond,
    Route,
    RouteOptions,
    VirtualHost,
    WeightedUpstream,
)
from lb.model.stream import NameRoute, Stream, StreamOptions, StreamRoute
from lb.model.tls import ListenerTls
from lb.model.upstream import Balance, Endpoint, HashKey, ProxyValue, Upstream, UpstreamOptions, spoken_for
from lb.problems import Origin

LABELS = ["a", "b", "ab", "com", "example"]
SEGMENTS = ["a", "b", "aa", "ab", "A", "a.b", ".a", "%2F", "%C3%A9", "a;b", ""]
METHODS = ["GET", "POST", "get", "PURGE", "M-SEARCH"]
HEADER_NAMES = ["X-A", "x-a", "X-B", "Accept", "Host"]
PARAMETER_NAMES = ["a", "A", "b", "a%20", "é"]
VALUES = ["", "1", "2", "1, 2", "a=b", "%31", "yes", "é", "null"]

texts = st.text(st.characters(codec="utf-8"), max_size=12)
counts = st.sampled_from([0, 1, 7, 1_000, 1_024, 60_000, 90_000, 3_600_000, 10**12])
names = st.one_of(st.sampled_from(["web", "api", "shop/web:http", "on", "1"]), texts.filter(bool))

origins = st.one_of(
    st.just(Origin()),
    st.builds(
        Origin,
        kind=st.sampled_from(["Ingress", "EndpointSlice", "Config"]),
        namespace=st.sampled_from(["", "shop"]),
        name=st.sampled_from(["web", "web.v2"]),
        file=st.sampled_from(["", "web.yaml", "a b.yaml"]),
        line=st.integers(0, 99),
        column=st.integers(0, 9),
        item=st.sampled_from(["", "items[12]"]),
    ),
    st.builds(Origin, file=texts, line=st.integers(0, 99)),
    st.builds(Origin, kind=texts, namespace=texts, name=texts, file=texts, item=texts),
)

_names_of_hosts = st.lists(st.sampled_from(LABELS), min_size=1, max_size=4).map(".".join)
hostnames = st.one_of(
    _names_of_hosts, _names_of_hosts.map(lambda name: f"*.{name}"), st.sampled_from(["*", "[::1]", "10.0.0.1"])
)

rule_paths = st.lists(st.sampled_from(SEGMENTS), max_size=4).map(lambda segments: "/" + "/".join(segments))
_partial_paths = st.one_of(
    st.just(""), rule_paths, rule_paths.flatmap(lambda path: st.integers(1, len(path)).map(lambda end: path[:end]))
).filter(lambda path: not path or normalize_rule_path(path, partial=True) == path)

path_matches = st.one_of(
    st.builds(PathMatch, st.sampled_from(["exact", "prefix"]), rule_paths),
    st.builds(PathMatch, st.just("string-prefix"), _partial_paths),
)


def _conditions(kind: type, names: list[str]) -> st.SearchStrategy:
    one = st.builds(kind, st.sampled_from(names), st.none() | st.sampled_from(VALUES))
    return st.lists(one, max_size=2).map(tuple)


matches = st.builds(
    Match,
    path=path_matches,
    methods=st.lists(st.sampled_from(METHODS), max_size=2).map(tuple),
    headers=_conditions(HeaderMatch, HEADER_NAMES) | st.just(()),
    query=_conditions(QueryMatch, PARAMETER_NAMES) | st.just(()),
)

http_options = st.just(HttpOptions()) | st.builds(
    HttpOptions,
    head_timeout_ms=counts,
    keepalive_timeout_ms=counts,
    max_head_bytes=counts,
    max_headers=counts,
    max_body_bytes=counts,
    trusted_proxies=st.lists(st.sampled_from(["10.0.0.0/8", "fd00::/8"]), max_size=2).map(tuple),
    forwarded_header=st.booleans(),
    merge_slashes=st.booleans(),
    escaped_slashes=st.sampled_from(["reject", "keep"]),
)
route_options = st.just(RouteOptions()) | st.builds(
    RouteOptions,
    response_timeout_ms=st.none() | counts,
    idle_timeout_ms=st.none() | counts,
    max_body_bytes=st.none() | counts,
    retries=st.none() | st.integers(0, 3),
)
upstream_options = st.just(UpstreamOptions()) | st.builds(
    UpstreamOptions,
    connect_timeout_ms=counts,
    max_connections=counts,
    max_queue=counts,
    queue_timeout_ms=counts,
    hash_key=st.sampled_from(get_args(HashKey)),
)

_times = st.sampled_from([100, 1_000, 5_000, 90_000])
_check_fields = {
    "port": st.sampled_from([0, 81, 65_535]),
    "interval_ms": _times,
    "down_interval_ms": st.just(0) | _times,
    "timeout_ms": st.just(1) | _times,
    "rise": st.integers(1, 3),
    "fall": st.integers(1, 3),
    "when_all_fail": st.sampled_from(["serve", "refuse"]),
    "open_flows": st.sampled_from(["keep", "reset"]),
}
health_checks = st.one_of(
    st.just(HealthCheck()),
    st.builds(HealthCheck, type=st.just("tcp"), **_check_fields),
    st.builds(HealthCheck, type=st.just("tls"), tls=st.just("unverified"), **_check_fields),
    st.builds(HealthCheck, type=st.just("grpc"), service=texts, tls=st.sampled_from(["off", "upstream"])),
    st.builds(
        HealthCheck,
        type=st.sampled_from(["http", "http2"]),
        path=st.sampled_from(["/", "/healthz?deep=1"]),
        method=st.sampled_from(METHODS),
        host=st.sampled_from(["", "a.example.com", "[::1]:80"]),
        headers=st.sampled_from([(), ("X-A: 1", "X-A:"), ("Authorization: Bearer x y",)]),
        statuses=st.sampled_from([("200-399",), (200,), (204, "300-399")]),
        body=texts,
        **_check_fields,
    ),
)

_addresses = st.one_of(
    st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]), st.integers(1, 65_535)),
    st.tuples(st.sampled_from(["unix:/run/a.sock", "unix:/run/a b:1"]), st.just(0)),
)
endpoints = st.builds(
    lambda address, **rest: Endpoint(*address, **rest),
    address=_addresses,
    weight=st.sampled_from([0, 1, 1, 1, 5]),
    draining=st.booleans(),
    target=st.just("") | st.just("pod/web-1") | texts,
    origin=origins,
)


def _as_it_is_read(one: Upstream) -> Upstream:
    protocol = spoken_for(one.protocol, one.proxy_protocol, transparent=one.transparent)
    values = one.proxy_values if one.proxy_protocol == "v2" else ()
    return msgspec.structs.replace(one, protocol=protocol, proxy_values=values)


# Parts are drawn without names, which `configs` gives them: building a strategy costs more than drawing from it.
_upstreams = st.builds(
    Upstream,
    name=st.just(""),
    balance=st.sampled_from(get_args(Balance)),
    endpoints=st.lists(endpoints, max_size=3, unique_by=lambda endpoint: endpoint.key).map(tuple),
    affinity=st.sampled_from(["none", "client-ip"]),
    protocol=st.sampled_from(["http1", "http2", "auto"]),
    proxy_protocol=st.sampled_from(["none", "v1", "v2"]),
    proxy_values=st.lists(st.sampled_from(get_args(ProxyValue)), max_size=3, unique=True).map(tuple),
    transparent=st.booleans(),
    options=upstream_options,
    unavailable=st.just("") | texts,
    resolve=st.sampled_from(["", "db.example.com"]),
    origin=origins,
    health_check=health_checks,
).map(_as_it_is_read)
_shares = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 1, 9])), min_size=1, max_size=3)
_responds = st.builds(Respond, st.sampled_from([200, 204, 404, 503]), st.just("") | texts, st.just("") | texts)
_routes = st.tuples(
    matches, _shares | _responds, route_options, origins, st.sampled_from(["", "spec.rules[0].http.paths[1]"])
)
_hosts = st.dictionaries(hostnames, st.tuples(st.lists(_routes, max_size=6), st.booleans()), max_size=5)
_places = st.one_of(
    st.tuples(st.integers(1, 65_535), st.sampled_from(["", "127.0.0.1", "::1"])),
    st.tuples(st.just(0), st.just("unix:/run/lb.sock")),
)
_listeners = st.tuples(_places, st.booleans(), http_options, origins)
stream_options = st.just(StreamOptions()) | st.builds(
    StreamOptions,
    idle_timeout_ms=counts,
    drain_timeout_ms=counts,
    retries=st.integers(0, 3),
    allow=st.sampled_from([(), ("10.0.0.0/8", "::1")]),
    proxy_protocol=st.sampled_from([(), ("10.0.0.1",)]),
)
_streams = st.tuples(_places, _shares, stream_options, origins, origins)
datagram_options = st.just(DatagramOptions()) | st.builds(
    DatagramOptions,
    idle_timeout_ms=counts,
    drain_timeout_ms=counts,
    retries=st.integers(0, 3),
    responses=st.integers(0, 2),
    max_sessions=st.integers(0, 9),
    max_sessions_per_client=st.integers(0, 9),
    allow=st.sampled_from([(), ("10.0.0.0/8", "::1")]),
)
_udp_places = st.tuples(st.integers(1, 65_535), st.sampled_from(["", "127.0.0.1", "::1"]))
_datagrams = st.tuples(_udp_places, _shares, datagram_options, origins, origins)
PROTOCOLS = ["h2", "http/1.1", "acme-tls/1"]
offers = st.lists(st.sampled_from(PROTOCOLS), unique=True).map(tuple)
server_names = _names_of_hosts | _names_of_hosts.map(lambda name: f"*.{name}") | st.just("*")
_ways = st.tuples(_shares, st.sampled_from(["passthrough", "terminate"]), offers)
# Only the last one takes everybody: those behind it would be a mistake.
_names = st.dictionaries(
    server_names,
    st.tuples(st.lists(_ways.filter(lambda way: way[2]), max_size=2), _ways).map(lambda both: [*both[0], both[1]]),
    min_size=1,
    max_size=4,
)
_by_name = st.tuples(_places, _names, st.booleans(), origins)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """A whole Config: one or two listeners and host sets, and only references that exist."""
    upstreams = draw(st.dictionaries(names, _upstreams, min_size=1, max_size=3))
    host_sets = draw(st.dictionaries(st.sampled_from(["default", "ingress"]), _hosts, min_size=1, max_size=2))
    listeners = draw(st.dictionaries(names, _listeners, min_size=1, max_size=2))
    streams = draw(st.dictionaries(names.map("tcp {}".format), _streams, max_size=1))
    datagrams = draw(st.dictionaries(names.map("udp {}".format), _datagrams, max_size=1))
    route_names = (f"route {number}" for number in range(1_000))
    by_name = draw(st.dictionaries(names.map("tls {}".format), _by_name, max_size=1))
    return Config(
        {
            name: Listener(
                name, port, address, host_set=max(host_sets) if last else min(host_sets), http=http, origin=origin
            )
            for name, ((port, address), last, http, origin) in listeners.items()
        }
        | {
            name: Listener(
                name,
                port,
                address,
                "tcp",
                origin=origin,
                stream=Stream(StreamRoute(name, _forward(list(upstreams), shares), route_origin), options),
            )
            for name, ((port, address), shares, options, origin, route_origin) in streams.items()
        }
        | {
            name: Listener(
                name,
                port,
                address,
                "udp",
                origin=origin,
                datagram=Datagram(StreamRoute(name, _forward(list(upstreams), shares), route_origin), options),
            )
            for name, ((port, address), shares, options, origin, route_origin) in datagrams.items()
        }
        | {
            name: _listener_by_name(
                name,
                *place,
                carries,
                origin,
                min(host_sets),
                {
                    server_name: tuple(
                        NameRoute(next(route_names), _forward(list(upstreams), shares), origin, mode=mode, alpn=alpn)
                        for shares, mode, alpn in ways
                    )
                    for server_name, ways in entries.items()
                },
            )
            for name, (place, entries, carries, origin) in by_name.items()
        },
        {
            host_set: {
                hostname: VirtualHost(
                    hostname,
                    tuple(_name_route(next(route_names), list(upstreams), *route) for route in routes),
                    one_label,
                )
                for hostname, (routes, one_label) in hosts.items()
            }
            for host_set, hosts in host_sets.items()
        },
        {name: msgspec.structs.replace(upstream, name=name) for name, upstream in upstreams.items()},
    )


def _name_route(
    name: str,
    upstreams: list[str],
    match: Match,
    action: Respond | list[tuple[int, int]],
    options: RouteOptions,
    origin: Origin,
    field: str,
) -> Route:
    if not isinstance(action, Respond):
        action = _forward(upstreams, action)
    return Route(name, match, action, options, origin, field)


def _forward(upstreams: list[str], shares: list[tuple[int, int]]) -> Forward:
    return Forward(tuple(WeightedUpstream(upstreams[index % len(upstreams)], one) for index, one in shares))


@st.composite
def requests_for(draw: st.DrawFn, config: Config) -> tuple[str, Request]:
    """A listener of `config` and a normalised request for it, near to what it serves."""
    speaking = sorted(
        name for name, listener in config.listeners.items() if listener.has_hosts and listener.stream is None
    )
    listener = config.listeners[draw(st.sampled_from(speaking))]
    hosts = config.hosts.get(listener.host_set, {})
    hostname = draw(st.sampled_from(sorted(hosts))) if hosts else "a.com"
    routes = hosts[hostname].routes if hosts else ()
    near = draw(st.sampled_from(routes)).match if routes else Match()
    return listener.name, Request(
        host=draw(_hosts_near(hostname)),
        path=draw(_paths_near(near.path.value)),
        method=draw(st.sampled_from([*near.methods, *METHODS])),
        headers=draw(_headers_near(near)),
        query=draw(_queries_near(near)),
    )


def _hosts_near(hostname: str) -> st.SearchStrategy[str]:
    base = hostname.removeprefix("*.").replace("*", "a.example.com")
    prefixes = st.sampled_from(["", "", "a.", "b.", "a.b.", "ab.a.b."])
    return st.one_of(prefixes.map(lambda prefix: base if base.startswith("[") else prefix + base), _names_of_hosts)


def _paths_near(value: str) -> st.SearchStrategy[str]:
    value = value or "/"
    near = [value, value + "/", value + "x", value + "/a", value.rstrip("/") or "/", value[:-1], value.upper()]
    normal = [path for path in near if path.startswith("/") and normalize_rule_path(path) == path]
    return st.sampled_from(normal) | rule_paths if normal else rule_paths


def _headers_near(match: Match) -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    wanted = [(one.name, one.value or "") for one in match.headers]
    line = st.tuples(st.sampled_from(HEADER_NAMES), st.sampled_from(VALUES))
    some = st.lists(line, max_size=3)
    return st.one_of(
        some.map(tuple),
        some.map(lambda lines: (*wanted, *lines)),
        st.just(tuple((name.upper(), value) for name, value in wanted)),
    )


def _queries_near(match: Match) -> st.SearchStrategy[str | None]:
    # A query is ASCII once it is accepted; a condition that is not never holds.
    wanted = [f"{one.name}={one.value or ''}" for one in match.query]
    pieces = st.sampled_from([*wanted, *wanted, "a", "a=", "a=1", "a=2", "A=1", "b=a=b", "", "a%20=%31"])
    queries = st.lists(pieces, min_size=1, max_size=3).map("&".join).filter(lambda query: query.isascii())
    return st.one_of(queries.filter(lambda query: " " not in query), st.none())


def _listener_by_name(
    name: str, port: int, address: str, carries: bool, origin: Origin, host_set: str, entries: dict
) -> Listener:
    """A `tls` listener, or one of `https` with names beside its hosts."""
    listener = Listener(
        name,
        port,
        address,
        "tls" if carries else "https",
        host_set="default" if carries else host_set,
        origin=origin,
        stream=Stream(names=entries),
    )
    return msgspec.structs.replace(listener, tls=ListenerTls() if listener.terminates else None)
