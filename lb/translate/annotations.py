"""Our own annotations, `lb/…`: the one table of them, and how they are read.

An entry says where the annotation may stand, how its value is read and which field of the model it sets; the reader,
the checks and the documentation come from it. Annotations of other controllers are none of this file's business.

Who wins: for an upstream the Service's annotation, then that of the oldest Ingress that uses it, then the operator's
default. Route options come from the Ingress alone.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from lb.model.address import is_ip_address
from lb.model.health import CheckTls, CheckType, OpenFlows, WhenAllFail, split_statuses
from lb.model.units import parse_duration, parse_size
from lb.model.upstream import Balance, HashKey, ProxyProtocol, ProxyValue
from lb.objects.fields import nearest
from lb.objects.view import Stored
from lb.problems import Problems
from lb.translate.protocols import BACKEND_PROTOCOLS

PREFIX = "lb/"

Place = Literal["Ingress", "Service"]
Part = Literal[
    "route",
    "upstream",
    "stream",
    "datagram",
    "balance",
    "protocol",
    "targets",
    "health",
    "proxy_protocol",
    "transparent",
    "load_balancer",
    "addresses",
    "clients",
    "tls",
]

GUARDED: dict[str, str] = {
    "health": "its endpoints are not checked until it is mended: half understood, a check might find good ones bad",
    "clients": "nobody gets in until it is mended",
    "tls": "requests are answered 503 until it is mended: they might go out in the clear, or to anybody",
    "proxy_protocol": "its endpoints get no connections until it is mended: without lb's header clients might send one",
    "transparent": "its endpoints get nothing until it is mended: they might take all clients for lb",
}
"""Parts of which a mistake costs the whole, and what that means."""

_UNREADABLE = "?"
"""A value that no annotation has which narrows what it cannot read."""

_MAX_COUNT = 2**31 - 1
_MAX_DEPTH = 100
_MAX_BYTES = 2**62


class Annotation(NamedTuple):
    """One annotation of ours."""

    name: str
    places: tuple[Place, ...]
    part: Part
    field: str
    """Attribute of RouteOptions, UpstreamOptions, StreamOptions, DatagramOptions or HealthCheck, or what `clients` and
    `tls` call it; empty when `part` is the value itself."""
    parse: Callable[[str], object]
    """Raises ValueError with a text for people."""
    text: str
    """One sentence for the documentation."""


_EXAMPLES: dict[Callable[[str], object], str] = {}
"""What the parsers take, for those who have written something else."""


class NarrowedError(ValueError):
    """A value that cannot be read as a whole, and what is taken instead: the default would let in more."""

    def __init__(self, mistake: str, value: object, effect: str) -> None:
        super().__init__(mistake)
        self.value = value
        self.effect = effect


class Said(NamedTuple):
    """What an annotation that is none of lb's says, in the words of one that is."""

    part: Part | None
    """None: it has no effect."""
    field: str
    value: object


class Values(msgspec.Struct, frozen=True):
    """What the annotations of one object say; what is not said is not there."""

    balance: Any = None
    targets: Any = None
    proxy_protocol: Any = None
    load_balancer: Any = None
    addresses: Any = None
    route: Mapping[str, Any] = {}
    upstream: Mapping[str, Any] = {}
    clients: Mapping[str, Any] = {}
    """What is asked of clients (lb/translate/tls.py)."""
    tls: Mapping[str, Any] = {}
    """How endpoints are spoken to over TLS (lb/translate/backend_tls.py)."""
    mistakes: Mapping[str, str] = {}
    """Of the GUARDED parts: what is wrong with one of their annotations."""
    protocol: Any = None
    health: Mapping[str, Any] = {}
    stream: Mapping[str, Any] = {}
    datagram: Mapping[str, Any] = {}
    transparent: Any = None
    borrowed: frozenset[str] = frozenset()
    """Fields of `health` that annotations of others say."""

    def over(self, others: Iterable[Said]) -> Values:
        """These values, and where they say nothing what others say: the last of them wins."""
        new: dict[str, Any] = {}
        for part, field, value in others:
            if part is None:
                continue
            mine = getattr(self, part)
            if not field:
                new[part] = value if mine is None else mine
            else:
                new[part] = {**new.get(part, {}), field: value} | mine
        health = new.get("health", {}).keys() - self.health.keys()
        return msgspec.structs.replace(self, **new, borrowed=frozenset(health)) if new else self


NOTHING = Values()


def _duration(value: str) -> int:
    milliseconds = 0 if value == "0" else parse_duration(value)
    if milliseconds > _MAX_COUNT:
        raise ValueError(f"{value!r} is longer than 24 days")
    return milliseconds


_NGINX_SIZE = re.compile(r"([0-9]+)([mg])")


def _size(value: str) -> int:
    # `10m` is how ingress-nginx's users write 10 MiB, and a Kubernetes quantity in thousandths of a byte means nothing.
    nginx = _NGINX_SIZE.fullmatch(value)
    if nginx is not None:
        value = f"{nginx[1]}{'Mi' if nginx[2] == 'm' else 'Gi'}"
    size = parse_size(value)
    if size > _MAX_BYTES:
        raise ValueError(f"{value!r} is too large")
    return size


def parse_count(value: str) -> int:
    if not (value.isascii() and value.isdigit()) or int(value) > _MAX_COUNT:
        raise ValueError(f"{value!r} is not a whole number from 0 to {_MAX_COUNT}")
    return int(value)


def _flag(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError(f"{value!r} is neither true nor false")
    return value == "true"


def _rate(value: str) -> int:
    try:
        return parse_count(value)
    except ValueError as error:
        raise NarrowedError(str(error), 1, "one a second is let in until it is mended") from None


def _wants_lb(value: str) -> bool:
    try:
        return _flag(value)
    except ValueError as error:
        raise NarrowedError(str(error), value=False, effect="lb does not listen for it until it is mended") from None


def parse_addresses(value: str) -> tuple[str, ...] | None:
    """None when nothing is written; never fewer than none of those that are, which would stand for all."""
    written = tuple(filter(None, (one.strip() for one in value.split(","))))
    good = tuple(dict.fromkeys(str(ipaddress.ip_address(one)) for one in written if is_ip_address(one)))
    bad = [one for one in written if not is_ip_address(one)]
    if bad:
        mistake = f"{', '.join(map(repr, bad))} {'is no IP address' if len(bad) == 1 else 'are no IP addresses'}"
        effect = f"lb listens on {', '.join(good)} only" if good else "nothing listens for it until it is mended"
        raise NarrowedError(mistake, good, effect)
    return good or None


def _redirect(value: str) -> int:
    return 308 if _flag(value) else 0


_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_SOURCE_KINDS = {"secret": "Secret", "configmap": "ConfigMap"}
_ELSEWHERE = "an object of another namespace cannot be named: what others may read is not theirs to say"


def _object_name(value: str) -> str:
    if "/" in value:
        raise ValueError(f"{value!r}: {_ELSEWHERE}")
    if _OBJECT_NAME.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not the name of an object")
    return value


def _source(value: str) -> tuple[str, str]:
    """(kind, name)"""
    kind, slash, name = value.rpartition("/")
    if slash and kind not in _SOURCE_KINDS:
        raise ValueError(f"{value!r} is not NAME, secret/NAME or configmap/NAME; {_ELSEWHERE}")
    return _SOURCE_KINDS[kind or "secret"], _object_name(name)


def _server_name(value: str) -> str:
    if not is_ip_address(value) and (_OBJECT_NAME.fullmatch(value) is None or len(value) > 253):
        raise ValueError(f"{value!r} is neither a name such as api.example.com nor an address")
    return value


def _server_names(value: str) -> tuple[str, ...]:
    return tuple(_server_name(one.strip()) for one in value.split(","))


def _depth(value: str) -> int:
    depth = parse_count(value)
    if depth > _MAX_DEPTH:
        raise ValueError(f"{value!r} is more than {_MAX_DEPTH}")
    return depth


def _headers(value: str) -> tuple[object, ...]:
    return tuple(_one_of("xfcc", "ssl-client")(one.strip()) for one in value.split(","))


def _lines(value: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in value.splitlines() if line.strip())


def _text(value: str) -> str:
    return value


def _one_of(*choices: str) -> Callable[[str], object]:
    def parse(value: str) -> object:
        if value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}{hint}")
        return value

    # Who copies it should not let in more by it.
    _EXAMPLES[parse] = "required" if "required" in choices else next(one for one in choices if one != "off")
    return parse


def _protocol(value: str) -> object:
    _one_of(*BACKEND_PROTOCOLS)(value)
    return BACKEND_PROTOCOLS[value]


def _proxy_protocol(value: str) -> object:
    """(version, what its header tells besides addresses)"""
    version, *told = (one.strip() for one in value.split(","))
    _one_of(*get_args(ProxyProtocol))(version)
    for one in told:
        _one_of(*get_args(ProxyValue))(one)
    if told and version != "v2":
        raise ValueError(f"{value!r}: only headers of version 2 tell more than addresses")
    return version, tuple(dict.fromkeys(told))


def _route(name: str, field: str, parse: Callable[[str], object], text: str) -> Annotation:
    return Annotation(f"{PREFIX}{name}", ("Ingress",), "route", field, parse, text)


def _clients(name: str, field: str, parse: Callable[[str], object], text: str) -> Annotation:
    return Annotation(f"{PREFIX}{name}", ("Ingress",), "clients", field, parse, text)


def _tls(name: str, field: str, parse: Callable[[str], object], text: str) -> Annotation:
    return Annotation(f"{PREFIX}{name}", ("Service",), "tls", field, parse, text)


def _stream(name: str, field: str, text: str, parse: Callable[[str], object] = _duration) -> Annotation:
    return Annotation(f"{PREFIX}{name}", ("Service",), "stream", field, parse, text)


def _datagram(name: str, field: str, parse: Callable[[str], object], text: str) -> Annotation:
    return Annotation(f"{PREFIX}{name}", ("Service",), "datagram", field, parse, text)


def _upstream(name: str, field: str, parse: Callable[[str], object], text: str) -> Annotation:
    return Annotation(f"{PREFIX}{name}", ("Service",), "upstream", field, parse, text)


def _health(name: str, field: str, parse: Callable[[str], object], text: str) -> Annotation:
    return Annotation(f"{PREFIX}health-check{name}", ("Service",), "health", field, parse, text)


ANNOTATIONS: tuple[Annotation, ...] = (
    Annotation(
        "lb/balance",
        ("Ingress", "Service"),
        "balance",
        "",
        _one_of(*get_args(Balance)),
        "How an endpoint is chosen: `round-robin`, `least-connections`, `random-two` or `maglev`. On an "
        "Ingress it holds for all its backends; the Service's own annotation wins, then the oldest Ingress.",
    ),
    Annotation(
        "lb/backend-protocol",
        ("Service",),
        "protocol",
        "",
        _protocol,
        "What endpoints speak: `http1`, `http2`, `grpc` (which is HTTP/2), or `auto`: what TLS agrees on (ALPN), and "
        "HTTP/1 where there is no TLS. Without it the port's `appProtocol` says so.",
    ),
    Annotation(
        "lb/targets",
        ("Service",),
        "targets",
        "",
        _one_of("endpoints", "nodeports"),
        "Send requests to the pods' addresses (`endpoints`) or to the nodes' addresses and the nodePort (`nodeports`).",
    ),
    Annotation(
        "lb/load-balancer",
        ("Service",),
        "load_balancer",
        "",
        _wants_lb,
        "Whether lb listens on the ports of a Service of type LoadBalancer that has no `loadBalancerClass`.",
    ),
    Annotation(
        "lb/addresses",
        ("Service",),
        "addresses",
        "",
        parse_addresses,
        "Addresses of this host to listen on for a Service of type LoadBalancer, with commas between them.",
    ),
    Annotation(
        "lb/proxy-protocol",
        ("Service",),
        "proxy_protocol",
        "",
        _proxy_protocol,
        "Begin each connection to the Service with a PROXY protocol header, which tells the client's address: `v1`, "
        "`v2`, or `none`. Behind `v2` may stand, with commas, what else lb tells: `v2,alpn,authority,ssl,unique-id,"
        "crc32c`.",
    ),
    Annotation(
        "lb/transparent",
        ("Service",),
        "transparent",
        "",
        _flag,
        "Whether connections to the Service leave with the client's address: `true` or `false`. See "
        "[Transparency](operations.md#transparency) for what that needs.",
    ),
    _stream("tcp-idle-timeout", "idle_timeout_ms", "How long a TCP connection may be silent; `0` for no limit."),
    _stream("tcp-half-closed-timeout", "half_closed_timeout_ms", "The same once one side has ended its half."),
    _stream(
        "tcp-drain-timeout",
        "drain_timeout_ms",
        "How long TCP connections go on when their endpoint is removed; `0`: until they end by themselves.",
    ),
    _stream(
        "max-connection-rate",
        "max_connection_rate",
        "New TCP connections a second on each port of a Service of type LoadBalancer; those over it are reset.",
        _rate,
    ),
    _stream(
        "max-connection-rate-per-client",
        "max_connection_rate_per_client",
        "The same from one address; of IPv6 from one /64 network.",
        _rate,
    ),
    _datagram("udp-idle-timeout", "idle_timeout_ms", _duration, "How long a UDP session may be silent; `0`: no limit."),
    _datagram(
        "udp-responses",
        "responses",
        parse_count,
        "After how many datagrams of the endpoint a UDP session ends, such as `1` for DNS; `0`: when it is silent.",
    ),
    _datagram(
        "udp-drain-timeout",
        "drain_timeout_ms",
        _duration,
        "How long UDP sessions stay with an endpoint that is removed.",
    ),
    _datagram(
        "max-session-rate",
        "max_session_rate",
        _rate,
        "New UDP sessions a second on each port of a Service of type LoadBalancer; datagrams that would begin more are "
        "dropped.",
    ),
    _datagram(
        "max-session-rate-per-client",
        "max_session_rate_per_client",
        _rate,
        "The same from one address; of IPv6 from one /64 network.",
    ),
    _route("response-timeout", "response_timeout_ms", _duration, "From the end of the request to the response's head."),
    _route("idle-timeout", "idle_timeout_ms", _duration, "How long a body may stand still in either direction."),
    _route("tunnel-timeout", "tunnel_timeout_ms", _duration, "How long an upgraded connection may be silent."),
    _route("request-timeout", "request_timeout_ms", _duration, "The whole exchange; `0` for no limit."),
    _route("max-body-size", "max_body_bytes", _size, "The largest request body, such as `8Mi`; `0` for no limit."),
    _route("retries", "retries", parse_count, "How many more endpoints a request may try after the first one."),
    _route(
        "ssl-redirect",
        "https_redirect",
        _redirect,
        "Whether plain HTTP is sent to https (308): `true` or `false`. Without it hosts with TLS are, others are not.",
    ),
    _route("grpc-web", "grpc_web", _flag, "Whether gRPC-Web calls are turned into gRPC calls: `true` or `false`."),
    _clients(
        "client-certificate",
        "mode",
        _one_of("off", "optional", "required", "unverified"),
        "What is asked of clients: `off`, `optional` (verified when shown), `required`, or `unverified` (asked for and "
        "handed on, whoever signed it). `required` when another of these annotations is there.",
    ),
    _clients(
        "client-ca",
        "ca",
        _source,
        "Who must have signed clients' certificates: `NAME` or `secret/NAME` of a Secret, or `configmap/NAME`, in the "
        "Ingress's namespace, with `ca.crt` and, if there are revocation lists, `ca.crl`.",
    ),
    _clients(
        "client-certificate-depth",
        "depth",
        _depth,
        "Most intermediate authorities between a client's certificate and a trusted one; 4 if it is left out.",
    ),
    _clients(
        "client-certificate-headers",
        "forward",
        _headers,
        "How endpoints are told who the client is: `xfcc` (X-Forwarded-Client-Cert), `ssl-client` (ssl-client-verify, "
        "ssl-client-subject-dn, …), or both with a comma.",
    ),
    _tls(
        "backend-tls",
        "enabled",
        _flag,
        "Whether endpoints are spoken to over TLS: `true` or `false`. Their certificates are verified. `true` when "
        "one of the next five is there.",
    ),
    _tls(
        "backend-ca",
        "ca",
        _source,
        "Who must have signed the endpoints' certificates: `NAME` or `secret/NAME` of a Secret, or `configmap/NAME`, "
        "in the Service's namespace, with `ca.crt` (and `ca.crl`). Without it: the system's authorities.",
    ),
    _tls(
        "backend-server-name",
        "server_name",
        _server_name,
        "The name sent to endpoints (SNI), which their certificate must have; if it is left out, "
        "`SERVICE.NAMESPACE.svc`.",
    ),
    _tls(
        "backend-names",
        "names",
        _server_names,
        "Names or addresses, with commas, of which the endpoints' certificate must have one; then it need not have the "
        "server name.",
    ),
    _tls(
        "backend-certificate",
        "certificate",
        _object_name,
        "The Secret (`kubernetes.io/tls`) in the Service's namespace whose certificate lb shows to endpoints.",
    ),
    _tls(
        "backend-verify",
        "verify",
        _flag,
        "`false` takes any certificate of endpoints: [LB5009](problems.md#lb5009) stays for as long as it is there.",
    ),
    _upstream("connect-timeout", "connect_timeout_ms", _duration, "How long connecting to an endpoint may take."),
    _upstream("keepalive-timeout", "idle_timeout_ms", _duration, "How long an unused connection is kept."),
    _upstream(
        "max-requests-per-connection",
        "max_requests_per_connection",
        parse_count,
        "After how many requests a connection is closed; `0` for no limit.",
    ),
    _upstream(
        "max-streams-per-connection",
        "max_streams_per_connection",
        parse_count,
        "Requests under way on one HTTP/2 connection, if the endpoint allows as many; `0` for no limit but its own.",
    ),
    _upstream(
        "max-connections",
        "max_connections",
        parse_count,
        "Requests, TCP connections and UDP sessions under way in the whole Service; `0` for no limit.",
    ),
    _upstream(
        "max-connections-per-endpoint",
        "max_connections_per_endpoint",
        parse_count,
        "Requests, TCP connections and UDP sessions under way on one endpoint; `0` for no limit.",
    ),
    _upstream("max-queue", "max_queue", parse_count, "How many requests may wait when a limit is reached."),
    _upstream("queue-timeout", "queue_timeout_ms", _duration, "How long a request may wait in the queue."),
    _upstream(
        "slow-start",
        "slow_start_ms",
        _duration,
        "How long the share of an endpoint that joins others, or comes back to them, grows from a tenth to all of it; "
        "`0`: it has all of it at once. Not with `maglev` or `sessionAffinity`.",
    ),
    _upstream(
        "hash-key",
        "hash_key",
        _one_of(*get_args(HashKey)),
        "What `maglev` chooses by: `source`, the client's address; `source-port`, with its port; `flow`, these, where "
        "it connects to, and the protocol. Requests go by the address alone.",
    ),
    _health(
        "",
        "type",
        _one_of(*get_args(CheckType)),
        "How endpoints are checked: `http`, `http2`, `grpc`, `tcp`, `tls` or `off`.",
    ),
    _health("-port", "port", parse_count, "Port that is checked; `0` for the endpoint's own."),
    _health("-path", "path", _text, "Path and query of the request (http, http2)."),
    _health("-method", "method", _text, "Method of the request (http, http2)."),
    _health("-host", "host", _text, "Host of the request (http, http2, grpc); without it the endpoint's address."),
    _health("-headers", "headers", _lines, "Header lines of the request, `Name: value` (http, http2, grpc)."),
    _health("-statuses", "statuses", split_statuses, "Good statuses, such as `200,300-399` (http, http2)."),
    _health("-body", "body", _text, "Text that must be in the response's body (http, http2)."),
    _health("-service", "service", _text, "Name of the service that is asked for (grpc)."),
    _health(
        "-tls",
        "tls",
        _one_of(*get_args(CheckTls)),
        "`upstream`: as requests are sent; `off`: no TLS; `unverified`: TLS, whoever answers.",
    ),
    _health("-interval", "interval_ms", _duration, "From the start of a check to the next one."),
    _health("-fast-interval", "fast_interval_ms", _duration, "The same while results contradict the state."),
    _health("-down-interval", "down_interval_ms", _duration, "The same while unhealthy; `0`: as the interval."),
    _health("-timeout", "timeout_ms", _duration, "How long a check may take, connecting included."),
    _health("-rise", "rise", parse_count, "Checks in a row that an unhealthy endpoint must pass."),
    _health("-fall", "fall", parse_count, "Checks in a row that a healthy endpoint must fail."),
    _health(
        "-when-all-fail",
        "when_all_fail",
        _one_of(*get_args(WhenAllFail)),
        "When no endpoint is healthy: `serve`, all get requests; `refuse`, requests are answered 503.",
    ),
    _health(
        "-open-flows",
        "open_flows",
        _one_of(*get_args(OpenFlows)),
        "TCP connections that are carried to an endpoint when it turns unhealthy: `keep`, they go on; `reset`, they "
        "are reset at once.",
    ),
)

_BY_NAME = {one.name: one for one in ANNOTATIONS}
_HEALTH_BY_FIELD = {one.field: one for one in ANNOTATIONS if one.part == "health"}


FOREIGN_PREFIXES = (
    "alb.ingress.kubernetes.io/",
    "haproxy-ingress.github.io/",
    "haproxy.org/",
    "ingress.cilium.io/",
    "ingress.kubernetes.io/",
    "konghq.com/",
    "nginx.ingress.kubernetes.io/",
    "nginx.org/",
    "projectcontour.io/",
    "traefik.ingress.kubernetes.io/",
)
"""Annotations that tell another controller how to serve an Ingress."""
SSL_PASSTHROUGH = "nginx.ingress.kubernetes.io/ssl-passthrough"
"""The one that counts here, too, where the operator says so (lb/translate/passthrough.py)."""
_ACCESS_WORDS = (
    "allow",
    "auth",
    "blacklist",
    "cidr",
    "deny",
    "internal",
    "jwt",
    "modsecurity",
    "oidc",
    "permit",
    "satisfy",
    "scheme",
    "security",
    "source-range",
    "waf",
    "whitelist",
)
"""Annotations with one of these in their name say who gets in: without them everybody does."""


def field_of(part: Part, field: str) -> str:
    """Where in an object the annotation stands that sets a field: `metadata.annotations[lb/client-ca]`."""
    return next(f"metadata.annotations[{one.name}]" for one in ANNOTATIONS if (one.part, one.field) == (part, field))


def read_annotations(stored: Stored, place: Place, problems: Problems, served: Collection[str] = ()) -> Values:
    """The values of an object's `lb/…` annotations; what cannot be read becomes a problem and is left out. `served` are
    annotations of other controllers that have an effect."""
    annotations = stored.object.metadata.annotations
    if not annotations:
        return NOTHING
    if place == "Ingress":
        _report_foreign(stored, served, problems)
    ours = sorted(name for name in annotations if name.startswith(PREFIX))
    if not ours:
        return NOTHING
    values: defaultdict[Part, dict[str, object]] = defaultdict(dict)
    mistakes: dict[str, str] = {}
    for name in ours:
        entry = _BY_NAME.get(name)
        if entry is None and (meant := _guard_meant_by(name, place, annotations)) is not None:
            _report_misspelt(stored, name, meant, values[meant.part], mistakes, problems)
            continue
        if entry is None or place not in entry.places:
            _report_unknown(stored, place, name, entry, problems)
            continue
        try:
            values[entry.part][entry.field] = entry.parse(annotations[name].strip())
        except NarrowedError as error:
            values[entry.part][entry.field] = error.value
            _report_value(stored, entry, str(error), problems, error.effect)
        except ValueError as error:
            _report_value(stored, entry, str(error), problems)
            if entry.part in GUARDED:
                mistakes[entry.part] = f"{entry.name}: {error}"
    return Values(
        values["balance"].get(""),
        values["targets"].get(""),
        values["proxy_protocol"].get(""),
        values["load_balancer"].get(""),
        values["addresses"].get(""),
        values["route"],
        values["upstream"],
        values["clients"],
        values["tls"],
        mistakes,
        protocol=values["protocol"].get(""),
        health=values["health"],
        stream=values["stream"],
        datagram=values["datagram"],
        transparent=values["transparent"].get(""),
    )


def report_health_mistake(stored: Stored, field: str, mistake: str, problems: Problems) -> None:
    """A health check that cannot be used, for a reason that more than one annotation is part of (LB5001)."""
    _report_value(stored, _HEALTH_BY_FIELD[field], mistake, problems)


def report_health_unused(stored: Stored, field: str, check_type: str, problems: Problems) -> None:
    """An annotation that says something of a health check and is not looked at (LB5002)."""
    entry = _HEALTH_BY_FIELD[field]
    what = f"a check of type {check_type}" if check_type != "off" else "endpoints that are not checked"
    problems.add(
        "LB5002",
        stored.origin,
        f"{entry.name} has no effect on {what}",
        why="it is ignored",
        fix=f"leave it out, or set {_HEALTH_BY_FIELD['type'].name}",
        field=f"metadata.annotations[{entry.name}]",
    )


def _report_value(stored: Stored, entry: Annotation, error: str, problems: Problems, effect: str = "") -> None:
    problems.add(
        "LB5001",
        stored.origin,
        f"{entry.name}: {error}",
        why=effect or GUARDED.get(entry.part, "the default is used"),
        fix=example_of(entry),
        field=f"metadata.annotations[{entry.name}]",
    )


_EXAMPLES |= {
    _duration: "5s",
    _size: "8Mi",
    parse_count: "3",
    _rate: "100",
    _depth: "2",
    _flag: "true",
    _redirect: "true",
    _wants_lb: "true",
    _protocol: "http2",
    _proxy_protocol: "v2",
    _headers: "xfcc",
    parse_addresses: "192.0.2.10",
    _object_name: "client-of-api",
    _source: "secret/authorities",
    _server_name: "api.example.com",
    _server_names: "api.example.com",
    split_statuses: "200,300-399",
}


def example_of(entry: Annotation, name: str = "") -> str:
    """How to write an annotation whose value cannot be read; `name` is what another controller calls it."""
    example = _EXAMPLES.get(entry.parse)
    if example is not None:
        return f'write a value such as `{name or entry.name}: "{example}"`'
    return f"correct {name or entry.name}: {entry.text}"


def _guard_meant_by(name: str, place: Place, annotations: Mapping[str, str]) -> Annotation | None:
    """The annotation that holds access back and is probably misspelt as `name`: without it more would be let in."""
    meant = _BY_NAME.get(nearest(name, tuple(one.name for one in ANNOTATIONS if place in one.places)))
    if meant is None or meant.name in annotations:
        return None
    return meant if meant.part in GUARDED.keys() - {"health"} or _narrowed(meant) is not None else None


def _narrowed(entry: Annotation) -> NarrowedError | None:
    """What is taken in place of a value that cannot be read, if that is not the default."""
    try:
        entry.parse(_UNREADABLE)
    except NarrowedError as error:
        return error
    except ValueError:
        pass
    return None


def _report_misspelt(
    stored: Stored,
    name: str,
    meant: Annotation,
    values: dict[str, object],
    mistakes: dict[str, str],
    problems: Problems,
) -> None:
    """As if the value of what is meant could not be read (LB1010)."""
    narrowed = _narrowed(meant)
    if narrowed is not None:
        values[meant.field] = narrowed.value
    else:
        mistakes[meant.part] = f"{name} is no annotation of lb"
    problems.add(
        "LB1010",
        stored.origin,
        f"{name} is no annotation of lb: did you mean {meant.name}?",
        why=GUARDED[meant.part] if narrowed is None else narrowed.effect,
        fix=f"write {meant.name}, or take it away",
        field=f"metadata.annotations[{name}]",
    )


def _report_unknown(stored: Stored, place: Place, name: str, entry: Annotation | None, problems: Problems) -> None:
    if entry is not None:
        what = f"{name} has no effect on {_articled(place)}"
        fix = f"set it on {' or '.join(_articled(one) for one in entry.places)}"
    else:
        what = f"{name} is no annotation of lb"
        near = difflib.get_close_matches(name, [one.name for one in ANNOTATIONS if place in one.places], n=1)
        fix = f"did you mean {near[0]}?" if near else ""
    problems.add("LB5002", stored.origin, what, why="it is ignored", fix=fix, field=f"metadata.annotations[{name}]")


def _report_foreign(stored: Stored, served: Collection[str], problems: Problems) -> None:
    """What another controller would have done for an Ingress, an access rule perhaps, does not happen here."""
    names = [name for name in stored.object.metadata.annotations or () if name.startswith(FOREIGN_PREFIXES)]
    names = [name for name in names if name not in served]
    report_without_effect(stored, names, problems, "paths are not rewritten, and access is not restricted")


def report_without_effect(
    stored: Stored, names: Sequence[str], problems: Problems, effect: str = "clients may see something else than there"
) -> None:
    """One warning an object, if there are any (LB5007)."""
    if not names:
        return
    fix = "see docs/configuration.md for lb's own annotations; do not expose what they protected"
    if SSL_PASSTHROUGH in names:
        fix += f"; --ssl-passthrough serves {SSL_PASSTHROUGH}"
    shown = ", ".join(sorted(names, key=lambda name: (not _controls_access(name), name)))
    problems.add(
        "LB5007",
        stored.origin,
        f"annotations of another controller have no effect: {shown}",
        why=f"what they ask for does not happen: {effect}",
        fix=fix,
        field="metadata.annotations",
    )


def _controls_access(name: str) -> bool:
    return any(word in name.partition("/")[2] for word in _ACCESS_WORDS)


def _articled(place: Place) -> str:
    return "an Ingress" if place == "Ingress" else "a Service"
