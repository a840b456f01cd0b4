"""TLS that is not lb's to end: ingress-nginx's annotation ssl-passthrough, where the operator lets it count.

All TLS connections of the host go to the Service of its path `/`, found by the exact server name; the Ingress's other
paths and annotations, and its certificates, are for plain HTTP only. As there, the oldest Ingress of a host decides.
Sources: ingress-nginx docs/user-guide/nginx-configuration/annotations.md (SSL Passthrough), controller.go
(createServers, buildPassthroughBackends) and tcp.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from lb.model.listener import Listener
from lb.model.route import Forward, Route
from lb.model.stream import NameRoute, Stream, StreamOptions
from lb.objects.view import Stored
from lb.problems import Origin, Problem, Problems
from lb.translate.annotations import SSL_PASSTHROUGH
from lb.translate.options import Options
from lb.translate.precedence import Claim

FIELD = f"metadata.annotations[{SSL_PASSTHROUGH}]"

_VALUES = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
"""Go's strconv.ParseBool, which also takes them in upper case."""


def wants_passthrough(stored: Stored, options: Options, problems: Problems) -> bool:
    """Whether an Ingress has its TLS connections passed through."""
    value = (stored.object.metadata.annotations or {}).get(SSL_PASSTHROUGH)
    if value is None or not options.ssl_passthrough:
        return False
    wanted = _VALUES.get(value.strip().lower())
    if wanted is None:
        what, fix = f"{SSL_PASSTHROUGH}: {value!r} is neither true nor false", "write true or false, in quotes"
        problems.add("LB5001", stored.origin, what, why="TLS is not passed through", fix=fix, field=FIELD)
    return bool(wanted)


def assemble_names(hostname: str, claims: Sequence[Claim]) -> tuple[tuple[NameRoute, ...], tuple[Problem, ...]]:
    """Where TLS connections of a host go that are passed through, and what is wrong. `claims`: the oldest first."""
    wanting = [claim for claim in claims if claim.passes_tls is not None]
    if not wanting:
        return (), ()
    oldest = claims[0].passes_tls
    if hostname.startswith("*"):
        return (), tuple(_refused(claim.passes_tls, f"{hostname} is no single name") for claim in wanting)
    if oldest is None:
        what = f"an older Ingress serves {hostname} without it ({claims[0].age.namespace}/{claims[0].age.name})"
        return (), tuple(_refused(claim.passes_tls, what) for claim in wanting)
    root = next((route for claim in claims for route in claim.routes if _is_root(route)), None)
    if root is None or not isinstance(root.action, Forward):
        return (), (_refused(oldest, f"host {hostname} has no path / with a Service"),)
    route = NameRoute(f"{root.name}:tls", root.action, root.origin, root.field)
    lost = [route for claim in claims for route in claim.routes if route is not root]
    return (route,), tuple(_lost(hostname, route) for route in lost)


def with_names(
    listener: Listener, names: Mapping[str, tuple[NameRoute, ...]], options: StreamOptions | None = None
) -> Listener:
    """A listener of hosts, with the names whose TLS is passed through; what it says of a name itself counts."""
    if not names or listener.protocol != "https":
        return listener
    own = listener.stream or Stream(options=(options or StreamOptions()).beside_http())
    stream = msgspec.structs.replace(own, names={**names, **own.names})
    return msgspec.structs.replace(listener, stream=stream)


def _is_root(route: Route) -> bool:
    return route.match.path.value == "/" and route.match.path.kind != "exact"


def _refused(origin: Origin | None, why: str) -> Problem:
    return Problem(
        "LB3015",
        origin or Origin(),
        f"TLS is not passed through: {why}",
        "lb answers TLS clients itself, with its own certificate or that of a TLS section",
        "give the host one Ingress with the annotation, a host and the path /",
        FIELD,
    )


def _lost(hostname: str, route: Route) -> Problem:
    return Problem(
        "LB3016",
        route.origin,
        f"path {route.match.path.value} of {hostname} is served by plain HTTP only",
        "TLS connections of the host are passed through to the Service of its path /, whatever they ask for",
        "take the rule away, or give it a host of its own",
        route.field,
    )
