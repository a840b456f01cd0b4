"""Parts of the model in a few words, as `lb explain`, `lb diff` and the admin API say them."""

from __future__ import annotations

from lb.model.listener import Listener
from lb.model.route import Forward, Match
from lb.model.stream import NameRoute

_NAMES_SHOWN = 3
"""More of them say less."""


def describe_match(match: Match) -> str:
    """`prefix /api, GET or POST, header X-A = '1'`: all conditions in one line."""
    parts = [f"{match.path.kind} {match.path.value}"]
    if match.methods:
        parts.append(" or ".join(match.methods))
    for kind, conditions in (("header", match.headers), ("query", match.query)):
        for one in conditions:
            parts.append(f"{kind} {one.name}" + (" present" if one.value is None else f" = {one.value!r}"))
    return ", ".join(parts)


def describe_forward(forward: Forward) -> str:
    """`api`, or `api (90 %), api-next (10 %)`."""
    total = sum(share.weight for share in forward.upstreams)
    if len(forward.upstreams) == 1 and total:
        return forward.upstreams[0].name
    shares = (f"{share.name} ({share.weight / total if total else 0:.3g})" for share in forward.upstreams)
    return ", ".join(shares) or "nothing"


def describe_carried(listener: Listener) -> str:
    """Where what it carries goes: `db`, or `db.example.com: passthrough to db`; of many names only how many."""
    if listener.carries is not None:
        return describe_forward(listener.carries.forward)
    names = listener.stream.names if listener.stream is not None else {}
    if len(names) > _NAMES_SHOWN:
        return f"{len(names)} names"
    return "; ".join(f"{name}: {', '.join(map(describe_name_route, routes))}" for name, routes in names.items())


def describe_name_route(route: NameRoute) -> str:
    """`passthrough to db`, or `terminate to web if the client offers h2`."""
    offers = f" if the client offers {' or '.join(route.alpn)}" if route.alpn else ""
    return f"{route.mode} to {describe_forward(route.forward)}{offers}"
