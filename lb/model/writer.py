"""Model -> native file. Writes what differs from the defaults, in the short forms that people write by hand.

Settings may say other defaults than the built-in ones. What differs from either is written, so that the file means the
same with these settings and without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import yaml

from lb.model.config import Config
from lb.model.datagram import Datagram, DatagramOptions
from lb.model.defaults import BUILT_IN_DEFAULTS, Defaults
from lb.model.form import (
    API_VERSION,
    BUNDLES,
    HIDDEN,
    KIND,
    PATH_KINDS,
    default_name_of,
    default_route_name,
    option_fields,
)
from lb.model.health import HealthCheck
from lb.model.listener import HttpOptions, Listener
from lb.model.origins import write_origin
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
)
from lb.model.stream import NameRoute, Stream, StreamOptions, StreamRoute
from lb.model.tls import ClientCertificates, ListenerTls, TlsHost, UpstreamTls
from lb.model.units import format_duration, format_size
from lb.model.upstream import Endpoint, Upstream, UpstreamOptions, split_key

Content = dict[str, Any]

_PATH_KEYS = {kind: key for key, kind in PATH_KINDS.items()}


class _Line(dict[str, Any]):
    """A mapping that is written on one line: `{address: 10.0.0.1:80, weight: 2}`."""


class _Block(str):
    """A text of several lines, written as it stands: `|`."""


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def ignore_aliases(self, data: object) -> bool:
        # Anchors and aliases would make equal parts of the file depend on each other.
        return True


_Dumper.add_representer(
    _Line, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data.items(), flow_style=True)
)
_Dumper.add_representer(_Block, lambda dumper, data: dumper.represent_scalar("tag:yaml.org,2002:str", str(data), "|"))


def to_text(config: Config, *, show_secrets: bool = False, defaults: Defaults = BUILT_IN_DEFAULTS) -> str:
    """The native file of `config`, as YAML. Reading it back gives an equal Config, if private keys are shown: with
    `defaults` as well as with those that are built in.
    """
    text: str = yaml.dump(
        to_content(config, show_secrets=show_secrets, defaults=defaults),
        Dumper=_Dumper,
        sort_keys=False,
        width=120,
        allow_unicode=True,
        default_flow_style=False,
    )
    return text


def to_content(config: Config, *, show_secrets: bool = False, defaults: Defaults = BUILT_IN_DEFAULTS) -> Content:
    """The native file of `config`, as plain data."""
    content: Content = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "listeners": {name: _write_listener(listener, defaults) for name, listener in config.listeners.items()},
        "hosts": {
            host_set: {hostname: _write_host(host_set, host, defaults) for hostname, host in hosts.items()}
            for host_set, hosts in config.hosts.items()
        },
        "upstreams": {name: _write_upstream(upstream, defaults) for name, upstream in config.upstreams.items()},
    }
    if config.certificates:
        content["certificates"] = {
            name: {
                "chain": _Block(one.chain),
                "key": _Block(one.key) if show_secrets else HIDDEN,
                **({"ocsp": one.ocsp} if one.ocsp else {}),
                "origin": write_origin(one.origin),
            }
            for name, one in config.certificates.items()
        }
    return content


def _write_listener(listener: Listener, defaults: Defaults) -> Content:
    content: Content = _differing(listener, "port", "address", "protocol", "host_set")
    if http := _write_options(listener.http, HttpOptions(), defaults.http_of(has_hosts=listener.has_hosts)):
        content["http"] = http
    if listener.tls is not None:
        content["tls"] = _write_tls(listener.tls)
    if listener.stream is not None:
        content["stream"] = _write_stream(listener, listener.stream, defaults)
    if listener.datagram is not None:
        content["datagram"] = _write_datagram(listener, listener.datagram, defaults)
    content["origin"] = write_origin(listener.origin)
    return content


def _write_datagram(listener: Listener, datagram: Datagram, defaults: Defaults) -> Content:
    content: Content = {"forward": _write_forward(datagram.route.forward)}
    content |= _write_options(datagram.options, DatagramOptions(), defaults.datagram)
    return content | _write_identity(datagram.route, listener.name, listener)


def _write_stream(listener: Listener, stream: Stream, defaults: Defaults) -> Content:
    content: Content = {}
    route = stream.route
    if route is not None:
        content["forward"] = _write_forward(route.forward)
    content |= _write_options(stream.options, StreamOptions(), defaults.stream_of(has_hosts=listener.has_hosts))
    if route is not None:
        content |= _write_identity(route, listener.name, listener)
    if stream.names:
        content["names"] = {
            name: _short([_write_name_route(route, listener, name, index) for index, route in enumerate(routes)])
            for name, routes in stream.names.items()
        }
    return content


def _write_name_route(route: NameRoute, listener: Listener, name: str, index: int) -> Content:
    content: Content = {"forward": _write_forward(route.forward), **_differing(route, "mode")}
    if route.alpn:
        content["alpn"] = list(route.alpn)
    return content | _write_identity(route, default_name_of(listener.name, name, index), listener)


def _write_identity(route: StreamRoute, default_name: str, listener: Listener) -> Content:
    """What is not as it is by default: name, origin, field."""
    content: Content = {}
    if route.name != default_name:
        content["name"] = route.name
    if route.origin != listener.origin:
        content["origin"] = write_origin(route.origin)
    if route.field:
        content["field"] = route.field
    return content


def _short(routes: list[Content]) -> object:
    """One route stands without a list, and one that says only where without a mapping."""
    if len(routes) > 1:
        return routes
    target = routes[0]["forward"]
    return target if len(routes[0]) == 1 and isinstance(target, str) else routes[0]


def _write_tls(tls: ListenerTls) -> Content:
    content = _differing(tls, "policy", "hsts")
    if tls.hosts:
        content["hosts"] = {name: _write_tls_host(host) for name, host in tls.hosts.items()}
    return content


def _write_tls_host(host: TlsHost) -> object:
    if host.clients == ClientCertificates():
        return list(host.certificates)
    return {
        "certificates": list(host.certificates),
        "clients": _write_options(host.clients, ClientCertificates()),
    }


def _write_host(host_set: str, host: VirtualHost, defaults: Defaults) -> object:
    routes = [
        _write_route(route, default_route_name(host_set, host.hostname, index), defaults)
        for index, route in enumerate(host.routes)
    ]
    return routes if host.one_label else {"one_label": False, "routes": routes}


def _write_route(route: Route, default_name: str, defaults: Defaults) -> Content:
    content = _write_match(route.match)
    if isinstance(route.action, Forward):
        content["forward"] = _write_forward(route.action)
    else:
        content["respond"] = _write_respond(route.action)
    content |= _write_options(route.options, RouteOptions(), defaults.route)
    if route.name != default_name:
        content["name"] = route.name
    content["origin"] = write_origin(route.origin)
    if route.field:
        content["field"] = route.field
    return content


def _write_match(match: Match) -> Content:
    content: Content = {"path": _write_path(match.path)}
    if match.methods:
        content["methods"] = list(match.methods)
    if match.headers:
        content["headers"] = _write_values(match.headers)
    if match.query:
        content["query"] = _write_values(match.query)
    return content


def _write_path(path: PathMatch) -> object:
    return path.value if path.kind == "prefix" else _Line({_PATH_KEYS[path.kind]: path.value})


def _write_values(conditions: Sequence[HeaderMatch | QueryMatch]) -> object:
    entries = [(one.name, {"present": True} if one.value is None else one.value) for one in conditions]
    if len(dict(entries)) == len(entries):
        return _Line(entries)
    return [_Line([entry]) for entry in entries]


def _write_forward(forward: Forward) -> object:
    shares = [(one.name, one.weight) for one in forward.upstreams]
    if len(shares) == 1 and shares[0][1] == 1:
        return shares[0][0]
    if len(dict(shares)) == len(shares):
        return _Line(shares)
    return [_Line([share]) for share in shares]


def _write_respond(respond: Respond) -> object:
    rest = _differing(respond, "body", "why")
    return _Line(status=respond.status, **rest) if rest else respond.status


def _write_upstream(upstream: Upstream, defaults: Defaults) -> Content:
    content: Content = {"balance": upstream.balance} if defaults.balance != BUILT_IN_DEFAULTS.balance else {}
    content |= _differing(
        upstream, "balance", "affinity", "protocol", "proxy_protocol", "transparent", "resolve", "unavailable"
    )
    if upstream.proxy_values:
        content["proxy_values"] = list(upstream.proxy_values)
    content |= _write_options(upstream.options, UpstreamOptions(), defaults.upstream)
    if upstream.tls is not None:
        content["tls"] = _write_options(upstream.tls, UpstreamTls())
    if upstream.health_check.type != "off":
        content["health_check"] = _write_health_check(upstream.health_check)
    if upstream.endpoints:
        content["endpoints"] = [_write_endpoint(endpoint, upstream) for endpoint in upstream.endpoints]
    content["origin"] = write_origin(upstream.origin)
    return content


def _write_health_check(check: HealthCheck) -> object:
    content = _write_options(check, HealthCheck())
    return check.type if len(content) == 1 else content


def _write_endpoint(endpoint: Endpoint, upstream: Upstream) -> object:
    content: Content = _write_address(endpoint)
    content |= _differing(endpoint, "weight", "draining", "target")
    if endpoint.origin != upstream.origin:
        content["origin"] = write_origin(endpoint.origin)
    return endpoint.key if content == {"address": endpoint.key} else _Line(content)


def _write_address(endpoint: Endpoint) -> Content:
    try:
        exact = split_key(endpoint.key) == (endpoint.address, endpoint.port)
    except ValueError:
        exact = False
    return {"address": endpoint.key} if exact else {"address": endpoint.address, "port": endpoint.port}


def _write_options(options: msgspec.Struct, *defaults: msgspec.Struct) -> Content:
    """Those that differ from one of `defaults`."""
    content: Content = {}
    for field in option_fields(type(options)):
        value = getattr(options, field.attribute)
        # None stands for what is built in, and cannot be written.
        if value is None or all(value == getattr(one, field.attribute) for one in defaults):
            continue
        if field.unit == "duration":
            value = format_duration(value)
        elif field.unit == "size":
            value = format_size(value)
        elif field.attribute in BUNDLES:
            value = _Block(value)
        content[field.key] = list(value) if isinstance(value, tuple) else value
    return content


def _differing(struct: msgspec.Struct, *names: str) -> Content:
    defaults = _defaults(type(struct))
    return {name: value for name in names if (value := getattr(struct, name)) != defaults[name]}


@cache
def _defaults(struct: type[msgspec.Struct]) -> Content:
    return {field.name: field.default for field in msgspec.structs.fields(struct)}
