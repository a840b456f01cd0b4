"""Virtual hosts and routes: which request goes where.

The order of VirtualHost.routes is the rank: among the routes whose match holds, the first one serves the request.
The dialect (Ingress, Gateway API, native file) decides that order; the matcher and the compiled table only obey it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from lb.problems import Origin

PathKind = Literal["exact", "prefix", "string-prefix"]


class PathMatch(msgspec.Struct, frozen=True, gc=False):
    """A path condition. All comparisons are case-sensitive and on the normalised path, without the query.

    exact          the whole path
    prefix         element-wise (Ingress `Prefix`, Gateway API `PathPrefix`): `/foo` and `/foo/` both match `/foo`,
                   `/foo/` and `/foo/bar`, never `/foobar`; `/` matches everything. One trailing slash of the value
                   does not count
    string-prefix  the path begins with these bytes (Ingress `ImplementationSpecific` as ingress-nginx reads it)
    """

    kind: PathKind = "prefix"
    value: str = "/"


class HeaderMatch(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A header condition: present when `value` is None, else equal. Names are compared without case.

    Lines with the same name count as one value joined with `, ` (RFC 9110 5.3).
    """

    name: str
    value: str | None = None


class QueryMatch(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A query parameter condition on the raw, undecoded parameter; the first of several with that name counts."""

    name: str
    value: str | None = None


class Match(msgspec.Struct, frozen=True, omit_defaults=True):
    """All conditions must hold."""

    path: PathMatch = PathMatch()
    methods: tuple[str, ...] = ()
    """Any of these; empty for all."""
    headers: tuple[HeaderMatch, ...] = ()
    query: tuple[QueryMatch, ...] = ()


class WeightedUpstream(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A share of the traffic. Weight 0 gets nothing."""

    name: str
    weight: int = 1


class Forward(msgspec.Struct, frozen=True, tag="forward"):
    """Send the request to one of the upstreams, chosen by weight."""

    upstreams: tuple[WeightedUpstream, ...]


class Respond(msgspec.Struct, frozen=True, omit_defaults=True, tag="respond"):
    """Answer from here. `why` is the reason that logs and `explain` show."""

    status: int
    body: str = ""
    why: str = ""


class RouteOptions(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Timeouts, limits and retries of one route. None takes the built-in or the listener's value."""

    response_timeout_ms: int | None = None
    """From the end of the request to the response's head (504). Built in: 60 s."""
    idle_timeout_ms: int | None = None
    """How long a body may stand still in either direction. Built in: 60 s."""
    tunnel_timeout_ms: int | None = None
    """How long an upgraded connection may be silent. Built in: 1 h."""
    request_timeout_ms: int | None = None
    """The whole exchange. Built in: none."""
    max_body_bytes: int | None = None
    """Largest request body (413). Built in: the listener's limit."""
    retries: int | None = None
    """How many more endpoints a request may try after the first one. Built in: 2."""
    https_redirect: int | None = None
    """Status with which plain HTTP requests are sent to https, such as 308; 0: they are served. Built in: 0."""
    grpc_web: bool | None = None
    """Whether gRPC-Web calls are turned into gRPC calls. Built in: false."""


BUILT_IN_ROUTE_OPTIONS = RouteOptions(
    response_timeout_ms=60_000,
    idle_timeout_ms=60_000,
    tunnel_timeout_ms=3_600_000,
    request_timeout_ms=0,
    retries=2,
    https_redirect=0,
    grpc_web=False,
)
"""What holds where a route says None. `max_body_bytes` is the listener's."""


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    """Match and action, with the name that logs, metrics and `explain` show."""

    name: str
    """Unique: `shop/web:0:1` (Ingress namespace/name, rule index, path index)."""
    match: Match
    action: Forward | Respond
    options: RouteOptions = RouteOptions()
    origin: Origin = Origin()
    field: str = ""
    """Path inside the origin object: `spec.rules[0].http.paths[1]`."""


class VirtualHost(msgspec.Struct, frozen=True, omit_defaults=True):
    """A hostname with its routes in rank order. The unit of compilation.

    `*.example.com` covers one label when `one_label` (Ingress), else any number of labels (Gateway API). An exact name
    wins over wildcards, a longer wildcard over a shorter one, and `*` takes the rest. The host that is chosen decides
    alone: a request that none of its routes takes is answered 404, not looked up elsewhere.
    """

    hostname: str
    routes: tuple[Route, ...] = ()
    one_label: bool = True
