"""Our own annotations, `lb/…`: the one table of them, and how they are read.

An entry says where the annotation may stand, how its value is read and which field of the model it sets; the reader,
the checks and the documentation come from it. Annotations of other controllers are none of this file's business.

Who wins: for an upstream the Service's annotation, then that of the oldest Ingress that uses it, then the operator's
default. Route options come from the Ingress alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from lb.model.units import parse_duration, parse_size
from lb.objects.view import Stored
from lb.problems import Problems

PREFIX = "lb/"

Place = Literal["Ingress", "Service"]
Part = Literal["route", "upstream", "balance", "targets"]

_MAX_COUNT = 2**31 - 1
_MAX_BYTES = 2**62


class Annotation(NamedTuple):
    """One annotation of ours."""

    name: str
    places: tuple[Place, ...]
    part: Part
    field: str
    """Attribute of RouteOptions or UpstreamOptions; empty when `part` is the value itself."""
    parse: Callable[[str], object]
    """Raises ValueError with a text for people."""
    text: str
    """One sentence for the documentation."""


class Values(msgspec.Struct, frozen=True):
    """What the annotations of one object say; what is not said is not there."""

    balance: Any = None
    targets: Any = None
    route: Mapping[str, Any] = {}
    upstream: Mapping[str, Any] = {}


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
    size = int(value) if value.isascii() and value.isdigit() else parse_size(value)
    if size > _MAX_BYTES:
        raise ValueError(f"{value!r} is too large")
    return size


def _count(value: str) -> int:
    if not (value.isascii() and value.isdigit()) or int(value) > _MAX_COUNT:
        raise ValueError(f"{value!r} is not a whole number from 0 to {_MAX_COUNT}")
    return int(value)


def _flag(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError(f"{value!r} is neither true nor false")
    return value == "true"


def _redirect(value: str) -> int:
    return 308 if _flag(value) else 0


def _one_of(*choices: str) -> Callable[[str], object]:
    def parse(value: str) -> object:
        if value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{value!r} is not one of {', '.join(choices)}{hint}")
        return value

    return parse


def _route(name: str, field: str, parse: Callable[[str], object], text: str) -> Annotation:
    return Annotation(f"{PREFIX}{name}", ("Ingress",), "route", field, parse, text)


def _upstream(name: str, field: str, parse: Callable[[str], object], text: str) -> Annotation:
    return Annotation(f"{PREFIX}{name}", ("Service",), "upstream", field, parse, text)


ANNOTATIONS: tuple[Annotation, ...] = (
    Annotation(
        "lb/balance",
        ("Ingress", "Service"),
        "balance",
        "",
        _one_of("round-robin", "least-connections"),
        "How an endpoint is chosen: `round-robin` or `least-connections`. On an Ingress it holds for all its backends; "
        "the Service's own annotation wins, then the oldest Ingress.",
    ),
    Annotation(
        "lb/targets",
        ("Service",),
        "targets",
        "",
        _one_of("endpoints", "nodeports"),
        "Send requests to the pods' addresses (`endpoints`) or to the nodes' addresses and the nodePort (`nodeports`).",
    ),
    _route("response-timeout", "response_timeout_ms", _duration, "From the end of the request to the response's head."),
    _route("idle-timeout", "idle_timeout_ms", _duration, "How long a body may stand still in either direction."),
    _route("tunnel-timeout", "tunnel_timeout_ms", _duration, "How long an upgraded connection may be silent."),
    _route("request-timeout", "request_timeout_ms", _duration, "The whole exchange; `0` for no limit."),
    _route("max-body-size", "max_body_bytes", _size, "The largest request body, such as `8Mi`; `0` for no limit."),
    _route("retries", "retries", _count, "How many more endpoints a request may try after the first one."),
    _route(
        "ssl-redirect",
        "https_redirect",
        _redirect,
        "Whether plain HTTP is sent to https (308): `true` or `false`. Without it hosts with TLS are, others are not.",
    ),
    _route("grpc-web", "grpc_web", _flag, "Whether gRPC-Web calls are turned into gRPC calls: `true` or `false`."),
    _upstream("connect-timeout", "connect_timeout_ms", _duration, "How long connecting to an endpoint may take."),
    _upstream("keepalive-timeout", "idle_timeout_ms", _duration, "How long an unused connection is kept."),
    _upstream(
        "max-requests-per-connection",
        "max_requests_per_connection",
        _count,
        "After how many requests a connection is closed; `0` for no limit.",
    ),
    _upstream(
        "max-connections", "max_connections", _count, "Requests under way in the whole Service; `0` for no limit."
    ),
    _upstream(
        "max-connections-per-endpoint",
        "max_connections_per_endpoint",
        _count,
        "Requests under way on one endpoint; `0` for no limit.",
    ),
    _upstream("max-queue", "max_queue", _count, "How many requests may wait when a limit is reached."),
    _upstream("queue-timeout", "queue_timeout_ms", _duration, "How long a request may wait in the queue."),
)

_BY_NAME = {one.name: one for one in ANNOTATIONS}


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
_FOREIGN_SHOWN = 6


def read_annotations(stored: Stored, place: Place, problems: Problems) -> Values:
    """The values of an object's `lb/…` annotations; what cannot be read becomes a problem and is left out."""
    annotations = stored.object.metadata.annotations
    if not annotations:
        return NOTHING
    if place == "Ingress":
        _report_foreign(stored, problems)
    ours = sorted(name for name in annotations if name.startswith(PREFIX))
    if not ours:
        return NOTHING
    values: dict[Part, dict[str, object]] = {"route": {}, "upstream": {}, "balance": {}, "targets": {}}
    for name in ours:
        entry = _BY_NAME.get(name)
        if entry is None or place not in entry.places:
            _report_unknown(stored, place, name, entry, problems)
            continue
        try:
            values[entry.part][entry.field] = entry.parse(annotations[name].strip())
        except ValueError as error:
            _report_value(stored, entry, str(error), problems)
    return Values(values["balance"].get(""), values["targets"].get(""), values["route"], values["upstream"])


def _report_value(stored: Stored, entry: Annotation, error: str, problems: Problems) -> None:
    problems.add(
        "LB5001",
        stored.origin,
        f"{entry.name}: {error}",
        why="the default is used",
        fix=entry.text,
        field=f"metadata.annotations[{entry.name}]",
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


def _report_foreign(stored: Stored, problems: Problems) -> None:
    """One warning an Ingress: what another controller would have done, an access rule perhaps, does not happen here."""
    names = sorted(name for name in stored.object.metadata.annotations or () if name.startswith(FOREIGN_PREFIXES))
    if not names:
        return
    shown = ", ".join(names[:_FOREIGN_SHOWN]) + (", …" if len(names) > _FOREIGN_SHOWN else "")
    problems.add(
        "LB5007",
        stored.origin,
        f"annotations of another controller have no effect: {shown}",
        why="what they ask for does not happen: paths are not rewritten, and access is not restricted",
        fix="see docs/configuration.md for lb's own annotations; do not expose what they protected",
        field="metadata.annotations",
    )


def _articled(place: Place) -> str:
    return "an Ingress" if place == "Ingress" else "a Service"
