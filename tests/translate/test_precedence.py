"""The order of routes gives the documented answers, and what is called shadowed never matches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lb.model.match import Request, failed_condition, find_route, path_holds
from lb.model.route import Forward, HeaderMatch, Match, PathMatch, Route
from lb.objects.meta import ObjectMeta
from lb.problems import Origin
from lb.translate.precedence import Age, Claim, age_of, assemble_host
from lb.translate.shadow import shadowed_routes

SEGMENTS = st.sampled_from(["a", "ab", "b"])
PATHS = st.builds(
    lambda segments, slash: "/" + "/".join(segments) + ("/" if slash and segments else ""),
    st.lists(SEGMENTS, max_size=3),
    st.booleans(),
)
KINDS = st.sampled_from(["exact", "prefix", "string-prefix"])
MATCHES = st.builds(Match, st.builds(PathMatch, KINDS, PATHS))
AGES = st.builds(
    Age, st.booleans(), st.sampled_from(["2024", "2025"]), st.sampled_from(["a", "b"]), st.sampled_from(["x", "y"])
)


def route(name: str, match: Match, owner: str = "") -> Route:
    return Route(name, match, Forward(()), origin=Origin("Ingress", "", owner or name), field=name)


@st.composite
def claims(draw: st.DrawFn) -> list[Claim]:
    """Oldest first."""
    found = []
    for age in sorted(draw(st.lists(AGES, min_size=1, max_size=3, unique=True))):
        matches = draw(st.lists(MATCHES, max_size=5))
        routes = (route(f"{len(found)}:{index}", match, str(age)) for index, match in enumerate(matches))
        found.append(Claim("h", age, tuple(routes)))
    return found


@given(claims(), PATHS)
def test_the_first_route_is_the_one_the_documentation_names(found: list[Claim], path: str) -> None:
    """Exact if there is one, else the longest path; Prefix before ImplementationSpecific; oldest; first written."""
    host, _ = assemble_host("h", found)
    candidates = [one for claim in found for one in claim.routes if path_holds(one.match.path, path)]
    exact = [one for one in candidates if one.match.path.kind == "exact"]
    longest = max((len(one.match.path.value) for one in candidates), default=0)
    long = [one for one in candidates if len(one.match.path.value) == longest]
    prefixes = [one for one in long if one.match.path.kind == "prefix"]
    expected = next(iter([*exact, *prefixes, *long]), None)
    assert find_route(host, Request("h", path)) is expected


@given(claims())
def test_every_path_and_kind_stands_once_and_who_loses_is_told(found: list[Claim]) -> None:
    host, problems = assemble_host("h", found)
    everything = [one for claim in found for one in claim.routes]
    matches = [one.match for one in host.routes]
    assert len(matches) == len(set(matches))
    assert set(matches) == {one.match for one in everything}
    losers = {one.name for one in everything if one not in host.routes}
    told = {one.field for one in problems if one.code in ("LB3004", "LB3007")}
    assert losers <= told
    assert {one.field for one in problems if one.code in ("LB3004", "LB3008")} <= losers


HEADERS = st.sampled_from([(), (HeaderMatch("X-Debug"),)])
METHODS = st.sampled_from([(), ("GET",), ("POST",)])
ROUTES = st.lists(
    st.builds(Match, st.builds(PathMatch, KINDS, PATHS), methods=METHODS, headers=HEADERS), max_size=8
).map(lambda matches: [route(str(index), match) for index, match in enumerate(matches)])


@given(ROUTES, PATHS, METHODS, HEADERS, st.sampled_from(["", "x"]))
def test_a_shadowed_route_never_serves(
    routes: list[Route],
    path: str,
    methods: tuple[str, ...],
    headers: tuple[HeaderMatch, ...],
    tail: str,
) -> None:
    method = methods[0] if methods else "PUT"
    request = Request("h", path + tail, method, tuple((one.name, "1") for one in headers))
    for loser, winner in shadowed_routes(routes):
        assert routes.index(winner) < routes.index(loser)
        if failed_condition(loser.match, request) is None:
            assert failed_condition(winner.match, request) is None, f"{winner.match} does not cover {loser.match}"


def test_an_unknown_age_is_younger_than_every_known_one() -> None:
    known = age_of(ObjectMeta("z", "z", creation_timestamp="2999-01-01T00:00:00Z"))
    assert known < age_of(ObjectMeta("a", "a")) < age_of(ObjectMeta("b", "a"))
