"""The reference matcher: which route serves a request, in plain Python on the model.

It is written to be obviously right, not fast: `lb explain` uses it, and the compiled table is tested against it with
random configurations and requests. The order of things:

1. The listener names the host set; or its `stream` takes the connection because of the server name that the client's
   first TLS message has, if no host of the set is more specific.
2. The host: an exact name, else the longest wildcard that covers the host, else `*`. It decides alone.
3. The route: the first one of the host, in order, all of whose conditions hold.

Request texts are the normalised bytes (lb/model/normalize.py) decoded as UTF-8 with surrogateescape, so two texts are
equal exactly when their bytes are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from lb.model.config import Config
from lb.model.route import HeaderMatch, Match, PathMatch, QueryMatch, Route, VirtualHost
from lb.model.stream import NameRoute

ConditionKind = Literal["path", "method", "header", "query"]


class Request(msgspec.Struct, frozen=True):
    """What matching looks at. Host and path are normalised; header values are without surrounding blanks."""

    host: str
    path: str
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    """Lines in the order they came."""
    query: str | None = None
    """Raw, without the `?`."""


class Condition(NamedTuple):
    """A condition that does not hold."""

    kind: ConditionKind
    wanted: str
    got: str


class Found(NamedTuple):
    """The virtual host and the route that serve a request; None where the search ended."""

    host: VirtualHost | None
    route: Route | None


class Named(NamedTuple):
    """Which entry of a stream's `names` stands for a server name, and which of its routes takes the connection; None
    where the search ended."""

    entry: str | None
    route: NameRoute | None
    host: VirtualHost | None = None
    """Of HTTP, which is more specific: the entry has lost."""


def match_name(config: Config, listener: str, server_name: str, offered: tuple[str, ...] = ()) -> Named:
    """Who takes a TLS connection on the listener with this name. `server_name` is lower case, without a dot at its end,
    and empty when the client says none; `offered` are its ALPN protocols. KeyError when there is no such listener."""
    one = config.listeners[listener]
    names = one.stream.names if one.stream is not None else {}
    entry = find_host({name: VirtualHost(name, (), one_label=False) for name in names}, server_name)
    if entry is None:
        return Named(None, None)
    host = find_host(config.hosts.get(one.host_set, {}), server_name) if one.has_hosts else None
    if host is not None and _specificity(host.hostname) > _specificity(entry.hostname):
        return Named(entry.hostname, None, host)
    route = next((route for route in names[entry.hostname] if route.takes(offered)), None)
    return Named(entry.hostname, route)


def _specificity(hostname: str) -> tuple[bool, int]:
    return not hostname.startswith("*"), len(hostname)


def match(config: Config, listener: str, request: Request) -> Found:
    """Who serves `request` when it arrives on the listener with this name. KeyError when there is no such listener."""
    host = find_host(config.hosts.get(config.listeners[listener].host_set, {}), request.host)
    return Found(host, find_route(host, request) if host is not None else None)


def find_host(hosts: Mapping[str, VirtualHost], host: str) -> VirtualHost | None:
    """The virtual host of a host set that serves `host`."""
    if host in hosts:
        return hosts[host]
    covering = [candidate for candidate in hosts.values() if covers(candidate, host)]
    if covering:
        return max(covering, key=lambda candidate: len(candidate.hostname))
    return hosts.get("*")


def covers(candidate: VirtualHost, host: str) -> bool:
    """Whether a wildcard such as `*.example.com` covers `host`. Neither exact names nor `*` are wildcards.

    Source: Ingress `IngressRule.host` (one label); Gateway API `Hostname` (any number of labels).
    """
    if not candidate.hostname.startswith("*."):
        return False
    labels = host.removesuffix(candidate.hostname[1:])
    if labels in ("", host):
        return False
    return "." not in labels if candidate.one_label else True


def find_route(host: VirtualHost, request: Request) -> Route | None:
    """The first route in order whose match holds."""
    for route in host.routes:
        if failed_condition(route.match, request) is None:
            return route
    return None


def failed_condition(match: Match, request: Request) -> Condition | None:
    """The first condition that does not hold, in the order path, method, headers, query; None when all hold."""
    if not path_holds(match.path, request.path):
        return Condition("path", f"{match.path.kind} {match.path.value}", request.path)
    if match.methods and request.method not in match.methods:
        return Condition("method", " or ".join(match.methods), request.method)
    for header in match.headers:
        value = header_value(request, header.name)
        if not _value_holds(header, value):
            return Condition("header", _wanted(header), _got(value))
    for parameter in match.query:
        value = query_value(request, parameter.name)
        if not _value_holds(parameter, value):
            return Condition("query", _wanted(parameter), _got(value))
    return None


def path_holds(match: PathMatch, path: str) -> bool:
    """Whether a path condition holds for a normalised path.

    Source: Ingress `HTTPIngressPath.pathType`: a trailing slash of a `Prefix` value does not count.
    """
    if match.kind == "exact":
        return path == match.value
    if match.kind == "string-prefix":
        return path.startswith(match.value)
    base = match.value.removesuffix("/")
    return path == base or path.startswith(f"{base}/")


def header_value(request: Request, name: str) -> str | None:
    """All lines with this name, joined with `, ` (RFC 9110 5.3); None when there is none."""
    wanted = _fold(name)
    values = [value for line_name, value in request.headers if _fold(line_name) == wanted]
    return ", ".join(values) if values else None


def query_value(request: Request, name: str) -> str | None:
    """The first parameter with this name, raw; empty when it has no `=`; None when there is no such parameter."""
    for parameter in (request.query or "").split("&"):
        key, _, value = parameter.partition("=")
        if parameter and key == name:
            return value
    return None


def _value_holds(condition: HeaderMatch | QueryMatch, value: str | None) -> bool:
    if value is None:
        return False
    return condition.value is None or condition.value == value


def _fold(name: str) -> bytes:
    # bytes.lower() folds ASCII only, as field names are compared; str.lower() would make a Kelvin sign a k.
    return name.encode("utf-8", "surrogateescape").lower()


def _wanted(condition: HeaderMatch | QueryMatch) -> str:
    return f"{condition.name} present" if condition.value is None else f"{condition.name} = {condition.value!r}"


def _got(value: str | None) -> str:
    return "absent" if value is None else repr(value)
