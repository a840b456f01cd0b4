"""What differs between two Configs, said in routing terms: who gains and who loses traffic.

It compares what serves, not where it came from: a moved line is no change. Order counts only between routes that can
take the same request, because only then the order decides who wins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Literal, TypeVar

import msgspec

from lb.certs.pem import read_chain
from lb.model.config import Config
from lb.model.description import describe_carried, describe_forward, describe_match, describe_name_route
from lb.model.form import option_fields
from lb.model.health import describe_check, header_lines
from lb.model.listener import Listener
from lb.model.match import path_holds
from lb.model.route import Forward, Match, PathMatch, Respond, Route, VirtualHost
from lb.model.stream import Stream, StreamRoute
from lb.model.tls import Certificate, ListenerTls, TlsHost
from lb.model.upstream import Endpoint, Upstream
from lb.problems import Origin

Kind = Literal["listener", "certificate", "host", "route", "order", "upstream", "endpoint"]
What = Literal["added", "removed", "changed"]
KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")
StructT = TypeVar("StructT", bound=msgspec.Struct)

_MAX_ROUTES_FOR_ORDER = 1_000
"""Pairs are compared, so a host with more routes than this is only said to be in another order."""


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One difference and its effect."""

    kind: Kind
    what: What
    subject: str
    """Name of what differs: `default shop.example.com`, `shop/web:80 10.0.0.1:80`."""
    effect: str
    """`drains endpoint 10.0.0.1:80 of shop/web:80`."""
    before: str = ""
    """Object and place that said so in the first Config."""
    after: str = ""


def diff(before: Config, after: Config) -> list[Change]:
    """The changes from `before` to `after`: listeners, certificates, hosts and routes, then upstreams and endpoints."""
    return [
        *_diff_listeners(before, after),
        *_diff_certificates(before, after),
        *_diff_hosts(before, after),
        *_diff_upstreams(before, after),
    ]


def _diff_listeners(before: Config, after: Config) -> Iterator[Change]:
    for name, old, new in _pairs(before.listeners, after.listeners):
        if new is None and old is not None:
            verb = "is" if old.has_hosts else "are"
            effect = f"closes {old.bind}; {_carries(old)} {verb} no longer served there"
            yield Change("listener", "removed", name, effect, _place(old.origin))
        elif old is None and new is not None:
            effect = f"opens {new.bind} for {_carries(new)}"
            yield Change("listener", "added", name, effect, "", _place(new.origin))
        elif old is not None and new is not None:
            for effect in _listener_effects(old, new):
                yield Change("listener", "changed", name, effect, _place(old.origin), _place(new.origin))


def _carries(listener: Listener) -> str:
    hosts = f"host set {listener.host_set}" if listener.has_hosts else ""
    carried = f"{_what(listener)} to {describe_carried(listener)}" if describe_carried(listener) else ""
    return " and ".join(filter(None, (hosts, carried)))


def _what(listener: Listener) -> str:
    return "datagrams" if listener.transport == "udp" else "connections"


def _listener_effects(old: Listener, new: Listener) -> Iterator[str]:
    if old.bind != new.bind:
        yield f"moves from {old.bind} to {new.bind}"
    if old.host_set != new.host_set and old.has_hosts and new.has_hosts:
        yield f"serves host set {new.host_set} instead of {old.host_set}"
    if old.protocol != new.protocol:
        yield f"speaks {new.protocol} instead of {old.protocol}"
    for option in _changed_options(old.http, new.http):
        yield f"listener {old.name}: {option}"
    yield from _tls_effects(old.name, old.tls or ListenerTls(), new.tls or ListenerTls())
    if old.datagram is not None and new.datagram is not None:
        yield from _carried_effects(old, old.datagram.route, new.datagram.route)
        yield from (
            f"listener {old.name}: {one}" for one in _changed_options(old.datagram.options, new.datagram.options)
        )
    elif (old.has_hosts, old.transport) != (new.has_hosts, new.transport):
        yield f"listener {old.name} now serves {_carries(new)} (before: {_carries(old)})"
    else:
        yield from _stream_effects(old, old.stream or Stream(), new.stream or Stream())


def _carried_effects(listener: Listener, old: StreamRoute, new: StreamRoute) -> Iterator[str]:
    if old.forward != new.forward:
        was, now = describe_forward(old.forward), describe_forward(new.forward)
        yield f"{_what(listener)} to {listener.name} now go to {now} (before: {was})"
    if old.name != new.name:
        yield f"listener {listener.name}: its route is now named {new.name} (before: {old.name})"


def _stream_effects(listener: Listener, old: Stream, new: Stream) -> Iterator[str]:
    if old.route is not None and new.route is not None:
        yield from _carried_effects(listener, old.route, new.route)
    for name, before, after in _pairs(old.names, new.names):
        was, now = (", ".join(map(describe_name_route, routes or ())) or "nobody" for routes in (before, after))
        if was != now:
            yield f"TLS connections to {name} on {listener.name} are now for {now} (before: {was})"
    for option in _changed_options(old.options, new.options):
        yield f"listener {listener.name}: {option}"


def _tls_effects(listener: str, old: ListenerTls, new: ListenerTls) -> Iterator[str]:
    for field in ("policy", "hsts"):
        was, now = getattr(old, field), getattr(new, field)
        if was != now:
            yield f"listener {listener}: {field} {was or 'none'} -> {now or 'none'}"
    for name, before, after in _pairs(old.hosts, new.hosts):
        was, now = before or TlsHost(), after or TlsHost()
        if was.certificates != now.certificates or (before is None) != (after is None):
            yield f"{name} is served on {listener} with {_served_with(after)} instead of {_served_with(before)}"
        if was.clients.mode != now.clients.mode:
            yield f"client certificates of {name} on {listener}: {was.clients.mode} -> {now.clients.mode}"
        elif was.clients != now.clients:
            yield f"{name} on {listener} asks something else of client certificates"


def _served_with(host: TlsHost | None) -> str:
    if host is None:
        return "what other names get"
    return ", ".join(host.certificates) or "lb's self-made certificate"


def _diff_certificates(before: Config, after: Config) -> Iterator[Change]:
    """What is said of a certificate is public; of its key only that it is another one."""
    for name, old, new in _pairs(before.certificates, after.certificates):
        if new is None and old is not None:
            yield Change(
                "certificate", "removed", name, f"removes certificate {name} ({_told(old)})", _place(old.origin)
            )
        elif old is None and new is not None:
            yield Change(
                "certificate", "added", name, f"adds certificate {name} ({_told(new)})", "", _place(new.origin)
            )
        elif old is not None and new is not None and (old.chain, old.key, old.ocsp) != (new.chain, new.key, new.ocsp):
            effect = f"certificate {name}: {_told(old)} -> {_told(new)}"
            if _told(old) == _told(new):
                effect = f"certificate {name} ({_told(new)}) has another chain, key or OCSP response"
            yield Change("certificate", "changed", name, effect, _place(old.origin), _place(new.origin))


def _told(certificate: Certificate) -> str:
    pair = read_chain(certificate.chain)
    names = ", ".join(pair.names[:3]) + (", …" if len(pair.names) > 3 else "")
    return f"{names or pair.subject}, {pair.kind}, serial {pair.serial}, until {pair.not_after:%Y-%m-%d}"


def _diff_hosts(before: Config, after: Config) -> Iterator[Change]:
    old_hosts, new_hosts = _flatten(before), _flatten(after)
    for (host_set, hostname), old, new in _pairs(old_hosts, new_hosts):
        subject = f"{host_set} {hostname}"
        if new is None and old is not None:
            yield Change(
                "host", "removed", subject, f"removes host {hostname} ({_count(old.routes, 'route')})", _first(old)
            )
        elif old is None and new is not None:
            yield Change(
                "host", "added", subject, f"adds host {hostname} ({_count(new.routes, 'route')})", "", _first(new)
            )
        elif old is not None and new is not None and old is not new:
            yield from _diff_host(subject, old, new)


def _flatten(config: Config) -> dict[tuple[str, str], VirtualHost]:
    return {(host_set, hostname): host for host_set, hosts in config.hosts.items() for hostname, host in hosts.items()}


def _diff_host(subject: str, old: VirtualHost, new: VirtualHost) -> Iterator[Change]:
    if old.one_label != new.one_label and new.hostname.startswith("*."):
        covered = "one label only" if new.one_label else "any number of labels"
        yield Change("host", "changed", subject, f"{new.hostname} now covers {covered}", _first(old), _first(new))
    old_routes = {route.name: route for route in old.routes}
    new_routes = {route.name: route for route in new.routes}
    for name, before, after in _pairs(old_routes, new_routes):
        if after is None and before is not None:
            effect = f"removes route {name} ({describe_match(before.match)}) of {old.hostname}"
            yield Change("route", "removed", name, effect, _place(before.origin))
        elif before is None and after is not None:
            effect = f"adds route {name} to {new.hostname}: {describe_match(after.match)} {_describe_action(after)}"
            yield Change("route", "added", name, effect, "", _place(after.origin))
        elif before is not None and after is not None:
            for effect in _route_effects(before, after):
                yield Change("route", "changed", name, effect, _place(before.origin), _place(after.origin))
    yield from _diff_order(subject, old.routes, new.routes)


def _route_effects(old: Route, new: Route) -> Iterator[str]:
    if old.match != new.match:
        yield f"route {old.name} now takes {describe_match(new.match)} instead of {describe_match(old.match)}"
    if old.action != new.action:
        yield f"route {old.name} now {_describe_action(new)} (before: {_describe_action(old)})"
    for option in _changed_options(old.options, new.options):
        yield f"route {old.name}: {option}"


def _describe_action(route: Route) -> str:
    action = route.action
    return (
        f"goes to {describe_forward(action)}" if isinstance(action, Forward) else f"answers {_describe_answer(action)}"
    )


def _describe_answer(respond: Respond) -> str:
    return f"{respond.status} ({respond.why})" if respond.why else str(respond.status)


def _diff_order(subject: str, old: Sequence[Route], new: Sequence[Route]) -> Iterator[Change]:
    """Routes that changed places although one request can suit both."""
    rank = {route.name: index for index, route in enumerate(new)}
    kept = [route for route in old if route.name in rank]
    if all(rank[one.name] < rank[other.name] for one, other in pairwise(kept)):
        return
    if len(kept) > _MAX_ROUTES_FOR_ORDER:
        yield Change("order", "changed", subject, f"the {len(kept)} routes stand in another order")
        return
    for first, second in combinations(kept, 2):
        if rank[first.name] > rank[second.name] and can_meet(first.match, second.match):
            effect = f"route {second.name} now stands before {first.name}, and wins where both match"
            yield Change("order", "changed", subject, effect, _place(first.origin), _place(second.origin))


def can_meet(one: Match, other: Match) -> bool:
    """Whether some request suits both. Errs towards yes for headers and queries given as presence."""
    if one.methods and other.methods and not set(one.methods) & set(other.methods):
        return False
    return _pathscan_meet(one.path, other.path) and not (
        _values_conflict(one.headers, other.headers, fold=True) or _values_conflict(one.query, other.query, fold=False)
    )


def _pathscan_meet(one: PathMatch, other: PathMatch) -> bool:
    if "exact" in (one.kind, other.kind):
        exact, rest = (one, other) if one.kind == "exact" else (other, one)
        return path_holds(rest, exact.value)
    return path_holds(one, other.value or "/") or path_holds(other, one.value or "/")


def _values_conflict(one: Sequence[msgspec.Struct], other: Sequence[msgspec.Struct], *, fold: bool) -> bool:
    """The same name with two different values."""
    wanted = dict(_values(one, fold=fold))
    return any(name in wanted and wanted[name] != value for name, value in _values(other, fold=fold))


def _values(conditions: Sequence[msgspec.Struct], *, fold: bool) -> Iterator[tuple[str, str]]:
    for name, value in map(msgspec.structs.astuple, conditions):
        if value is not None:
            yield (name.lower() if fold else name), value


def _diff_upstreams(before: Config, after: Config) -> Iterator[Change]:
    for name, old, new in _pairs(before.upstreams, after.upstreams):
        if new is None and old is not None:
            effect = f"removes upstream {name} ({_count(old.endpoints, 'endpoint')})"
            yield Change("upstream", "removed", name, effect, _place(old.origin))
        elif old is None and new is not None:
            effect = f"adds upstream {name} ({_count(new.endpoints, 'endpoint')})"
            yield Change("upstream", "added", name, effect, "", _place(new.origin))
        elif old is not None and new is not None and old is not new:
            for effect in _upstream_effects(old, new):
                yield Change("upstream", "changed", name, effect, _place(old.origin), _place(new.origin))
            yield from _diff_endpoints(old, new)


def _upstream_effects(old: Upstream, new: Upstream) -> Iterator[str]:
    if old.endpoints and not new.endpoints:
        why = f": {new.unavailable}" if new.unavailable else ""
        yield f"upstream {new.name} has no endpoints any more, requests are answered 503{why}"
    for field in (
        "balance",
        "affinity",
        "protocol",
        "proxy_protocol",
        "proxy_values",
        "transparent",
        "resolve",
        "unavailable",
    ):
        was, now = getattr(old, field), getattr(new, field)
        if was != now:
            was, now = (", ".join(one) if isinstance(one, tuple) else one for one in (was, now))
            yield f"upstream {new.name}: {field} {was or 'none'} -> {now or 'none'}"
    for option in _changed_options(old.options, new.options):
        yield f"upstream {new.name}: {option}"
    if old.tls != new.tls:
        yield f"upstream {new.name}: {_spoken(new)} instead of {_spoken(old)}"
    yield from _health_check_effects(old, new)


def _health_check_effects(old: Upstream, new: Upstream) -> Iterator[str]:
    if "off" in (old.health_check.type, new.health_check.type):
        was, now = describe_check(old.health_check), describe_check(new.health_check)
        if was != now:
            yield f"upstream {new.name}: health check {was} -> {now}"
        return
    # Values of header lines may be credentials.
    before, after = (msgspec.structs.replace(one.health_check, headers=()) for one in (old, new))
    for option in _changed_options(before, after):
        yield f"upstream {new.name}: health check: {option}"
    if old.health_check.headers != new.health_check.headers:
        names = ", ".join(name for name, _ in header_lines(new.health_check)) or "none"
        yield f"upstream {new.name}: health check: other headers ({names})"


def _spoken(upstream: Upstream) -> str:
    """How its endpoints are spoken to."""
    tls = upstream.tls
    if tls is None:
        return "without TLS"
    if not tls.verify:
        return "TLS that is not verified"
    names = ", ".join(tls.names) or tls.server_name
    whom = f"authorities {hashlib.sha256((tls.ca + tls.crl).encode()).hexdigest()[:12]}" if tls.ca else "the system's"
    return f"TLS for {names} (trusting {whom}{f', showing {tls.certificate}' if tls.certificate else ''})"


def _diff_endpoints(old: Upstream, new: Upstream) -> Iterator[Change]:
    old_endpoints = {endpoint.key: endpoint for endpoint in old.endpoints}
    new_endpoints = {endpoint.key: endpoint for endpoint in new.endpoints}
    for key, before, after in _pairs(old_endpoints, new_endpoints):
        subject = f"{new.name} {key}"
        if after is None and before is not None:
            effect = f"drains endpoint {key} of {new.name}"
            yield Change("endpoint", "removed", subject, effect, _place(before.origin))
        elif before is None and after is not None:
            effect = f"adds endpoint {key} to {new.name}"
            yield Change("endpoint", "added", subject, effect, "", _place(after.origin))
        elif before is not None and after is not None:
            for effect in _endpoint_effects(new.name, before, after):
                yield Change("endpoint", "changed", subject, effect, _place(before.origin), _place(after.origin))


def _endpoint_effects(upstream: str, old: Endpoint, new: Endpoint) -> Iterator[str]:
    if old.draining != new.draining:
        yield f"{'drains' if new.draining else 'brings back'} endpoint {new.key} of {upstream}"
    if old.weight != new.weight:
        yield f"endpoint {new.key} of {upstream}: weight {old.weight} -> {new.weight}"
    if old.target != new.target:
        yield f"endpoint {new.key} of {upstream} is now {new.target or 'unnamed'} instead of {old.target or 'unnamed'}"


def _changed_options(old: StructT, new: StructT) -> Iterator[str]:
    for field in option_fields(type(old)):
        was, now = getattr(old, field.attribute), getattr(new, field.attribute)
        if was != now:
            yield f"{field.key} {field.format(was)} -> {field.format(now)}"


def _pairs(
    old: Mapping[KeyT, ValueT], new: Mapping[KeyT, ValueT]
) -> Iterator[tuple[KeyT, ValueT | None, ValueT | None]]:
    """Both sides of every name, in the first one's order, then what is only in the second."""
    for name in [*old, *(name for name in new if name not in old)]:
        yield name, old.get(name), new.get(name)


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _first(host: VirtualHost) -> str:
    return _place(host.routes[0].origin) if host.routes else ""


def _place(origin: Origin) -> str:
    return f"{origin.object} ({origin.place})" if origin.kind and origin.place else origin.place or origin.object
