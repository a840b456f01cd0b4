"""The order of Ingress routes inside one host, and who wins when two claim the same thing.

Order (Ingress v1 documentation, "Multiple matches"): the longest path wins, and on equal length Exact beats Prefix;
Prefix beats ImplementationSpecific, which the documentation leaves open. All Exact paths come first here, which gives
the same answers: a Prefix that also takes the path of an Exact rule is at most as long as that path, but for a trailing
slash that does not count (`/foo/` takes `/foo`). After them the longest path is first, so `/foo/` comes before `/foo`.

Same host, path and pathType in several Ingresses: the oldest one wins, as in ingress-nginx (`docs/how-it-works.md`).
Objects of the same age, or of unknown age (files that never were in a cluster), are ordered by namespace and name; an
unknown age counts as younger than every known one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from lb.model.route import Route, VirtualHost
from lb.objects.meta import ObjectMeta
from lb.problems import Origin, Problem, Problems
from lb.translate.shadow import shadowed_routes

_KIND_RANK = {"exact": 0, "prefix": 1, "string-prefix": 2}


class Age(NamedTuple):
    """Sorts the oldest first."""

    unknown: bool
    timestamp: str
    namespace: str
    name: str


class Claim(msgspec.Struct, frozen=True):
    """What one Ingress wants of one host."""

    hostname: str
    age: Age
    routes: tuple[Route, ...] = ()
    """As written."""
    default: Route | None = None
    """Takes what no route of the host takes."""
    passes_tls: Origin | None = None
    """The Ingress, when TLS connections of its hosts are passed through."""


def age_of(metadata: ObjectMeta) -> Age:
    timestamp = metadata.creation_timestamp
    return Age(not timestamp, timestamp or "", metadata.namespace, metadata.name)


def assemble_host(hostname: str, claims: Sequence[Claim]) -> tuple[VirtualHost, tuple[Problem, ...]]:
    """The virtual host that the claims (oldest first) make together, and what they dispute."""
    if len(claims) == 1 and claims[0].default is None and len(claims[0].routes) == 1:
        return VirtualHost(hostname, claims[0].routes), ()
    problems = Problems()
    routes = _settle_conflicts(hostname, claims, problems)
    default = _choose_default(hostname, claims, problems)
    for loser, winner in shadowed_routes(routes):
        problems.extend((shadow_problem(hostname, loser, winner),))
    # A default backend is the location "/" of the host when no rule takes it (ingress-nginx, createServers).
    if default is not None and not any(_takes_all(route) for route in routes):
        routes.append(default)
    return VirtualHost(hostname, tuple(routes)), tuple(problems)


def shadow_problem(hostname: str, loser: Route, winner: Route) -> Problem:
    """The warning that `loser` never matches (LB3007)."""
    return Problem(
        "LB3007",
        loser.origin,
        f"{describe(loser)} of host {hostname} never matches",
        why=f"{describe(winner)} of {winner.origin.object or winner.name} comes earlier and takes all its requests",
        fix="remove the rule, or make its path more specific",
        field=loser.field,
    )


def describe(route: Route) -> str:
    """`Prefix /foo`, in the words of the Ingress that said so."""
    names = {"exact": "Exact", "prefix": "Prefix", "string-prefix": "ImplementationSpecific"}
    return f"{names[route.match.path.kind]} {route.match.path.value}"


def _rank(claimed: tuple[Route, Age]) -> tuple[bool, int, int]:
    path = claimed[0].match.path
    return path.kind != "exact", -len(path.value), _KIND_RANK[path.kind]


def _settle_conflicts(hostname: str, claims: Sequence[Claim], problems: Problems) -> list[Route]:
    """All routes in rank order, each path and pathType once."""
    claimed = [(route, claim.age) for claim in claims for route in claim.routes]
    claimed.sort(key=_rank)  # Stable: the oldest, then the first one written, stays first.
    winners: dict[tuple[str, str], tuple[Route, Age]] = {}
    for route, age in claimed:
        path = route.match.path
        winner, winner_age = winners.setdefault((path.kind, path.value), (route, age))
        if winner is not route:
            _report_conflict(hostname, route, age, winner, winner_age, problems)
    return [route for route, _ in winners.values()]


def _choose_default(hostname: str, claims: Sequence[Claim], problems: Problems) -> Route | None:
    defaults = [(claim.default, claim.age) for claim in claims if claim.default is not None]
    if not defaults:
        return None
    winner, winner_age = defaults[0]
    for route, age in defaults[1:]:
        _report_conflict(hostname, route, age, winner, winner_age, problems)
    return winner


def _takes_all(route: Route) -> bool:
    return route.match.path.value == "/" and route.match.path.kind != "exact"


def _report_conflict(
    hostname: str, loser: Route, loser_age: Age, winner: Route, winner_age: Age, problems: Problems
) -> None:
    if loser_age == winner_age:
        problems.extend((shadow_problem(hostname, loser, winner),))
        return
    subject = "the default backend" if loser.field == DEFAULT_FIELD else describe(loser)
    problems.add(
        "LB3004",
        loser.origin,
        f"{subject} of host {hostname} is already served by {winner.origin.object}",
        why="the oldest Ingress wins; this rule is ignored",
        fix="remove one of the two rules",
        field=loser.field,
    )
    if loser_age.unknown or winner_age.unknown or loser_age.timestamp == winner_age.timestamp:
        problems.add(
            "LB3008",
            loser.origin,
            f"{winner.origin.object} comes before {loser.origin.object} by name, not by age, for host {hostname}",
            why="metadata.creationTimestamp is missing or equal",
            field=loser.field,
        )


DEFAULT_FIELD = "spec.defaultBackend"
