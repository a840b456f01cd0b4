"""The reference matcher against the tables of the documents it follows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model.config import Config
from lb.model.listener import Listener
from lb.model.match import Request, failed_condition, find_host, find_route, match, path_holds
from lb.model.normalize import normalize_host, normalize_target
from lb.model.route import HeaderMatch, Match, PathMatch, QueryMatch, Respond, Route, VirtualHost
from tests.model.strategies import configs, requests_for

# Kubernetes documentation, Ingress, "Examples": kind, rule paths, request path, the path that serves it.
INGRESS_EXAMPLES = [
    ("prefix", "/", "/anything", True),
    ("exact", "/foo", "/foo", True),
    ("exact", "/foo", "/bar", False),
    ("exact", "/foo", "/foo/", False),
    ("exact", "/foo/", "/foo", False),
    ("prefix", "/foo", "/foo", True),
    ("prefix", "/foo", "/foo/", True),
    ("prefix", "/foo/", "/foo", True),
    ("prefix", "/foo/", "/foo/", True),
    ("prefix", "/aaa/bb", "/aaa/bbb", False),
    ("prefix", "/aaa/bbb", "/aaa/bbb", True),
    ("prefix", "/aaa/bbb/", "/aaa/bbb", True),
    ("prefix", "/aaa/bbb", "/aaa/bbb/", True),
    ("prefix", "/aaa/bbb", "/aaa/bbb/ccc", True),
    ("prefix", "/aaa/bbb", "/aaa/bbbxyz", False),
    ("prefix", "/aaa", "/ccc", False),
    ("prefix", "/Foo", "/foo", False),
    ("string-prefix", "/foo", "/foobar", True),
    ("string-prefix", "/foo/", "/foo", False),
    ("string-prefix", "", "/foo", True),
]


@pytest.mark.parametrize(("kind", "value", "path", "holds"), INGRESS_EXAMPLES)
def test_path(kind: str, value: str, path: str, holds: bool) -> None:
    assert path_holds(PathMatch(kind, value), path) is holds


def route(name: str, **conditions: object) -> Route:
    return Route(name, Match(**conditions), Respond(200))


def hosts(*names: str, one_label: bool = True) -> dict[str, VirtualHost]:
    return {name: VirtualHost(name, one_label=one_label) for name in names}


@pytest.mark.parametrize(
    ("names", "host", "chosen"),
    [
        (["*.foo.com"], "bar.foo.com", "*.foo.com"),
        (["*.foo.com"], "baz.bar.foo.com", None),
        (["*.foo.com"], "foo.com", None),
        (["*.foo.com"], ".foo.com", None),
        (["*.foo.com"], "barfoo.com", None),
        (["*.foo.com", "bar.foo.com"], "bar.foo.com", "bar.foo.com"),
        (["*.foo.com", "*"], "baz.bar.foo.com", "*"),
        (["*.com", "*.foo.com"], "bar.foo.com", "*.foo.com"),
        (["*.foo.com"], "", None),
        (["*"], "", "*"),
        (["*"], "[::1]", "*"),
        (["[::1]", "*"], "[::1]", "[::1]"),
    ],
)
def test_host(names: list[str], host: str, chosen: str | None) -> None:
    found = find_host(hosts(*names), host)
    assert (found and found.hostname) == chosen


def test_wildcard_of_any_depth_serves_what_the_longer_one_label_wildcard_does_not_cover() -> None:
    both = hosts("*.foo.com") | hosts("*.com", one_label=False)
    chosen = {
        host: found.hostname for host in ("a.foo.com", "b.a.foo.com", "foo.com") if (found := find_host(both, host))
    }
    assert chosen == {"a.foo.com": "*.foo.com", "b.a.foo.com": "*.com", "foo.com": "*.com"}


def test_first_route_that_holds_wins() -> None:
    host = VirtualHost("*", (route("a", path=PathMatch(value="/x")), route("b"), route("c")))
    found = [find_route(host, Request("h", path)) for path in ("/x", "/y")]
    assert [one and one.name for one in found] == ["a", "b"]


@pytest.mark.parametrize(
    ("conditions", "request_parts", "holds"),
    [
        ({"methods": ("GET", "PUT")}, {"method": "PUT"}, True),
        ({"methods": ("GET",)}, {"method": "get"}, False),
        ({"headers": (HeaderMatch("x-a", "1"),)}, {"headers": (("X-A", "1"),)}, True),
        ({"headers": (HeaderMatch("X-A", "1"),)}, {"headers": (("x-a", "1"), ("X-a", "2"))}, False),
        ({"headers": (HeaderMatch("X-A", "1, 2"),)}, {"headers": (("x-a", "1"), ("y", "0"), ("X-a", "2"))}, True),
        ({"headers": (HeaderMatch("X-A"),)}, {"headers": (("x-a", ""),)}, True),
        ({"headers": (HeaderMatch("X-A"),)}, {}, False),
        ({"headers": (HeaderMatch("X-A", ""),)}, {}, False),
        ({"headers": (HeaderMatch("X-A", "a"),)}, {"headers": (("x-a", "A"),)}, False),
        ({"headers": (HeaderMatch("k"),)}, {"headers": (("\u212a", ""),)}, False),
        ({"query": (QueryMatch("a", "1"),)}, {"query": "b=2&a=1"}, True),
        ({"query": (QueryMatch("a", "1"),)}, {"query": "a=2&a=1"}, False),
        ({"query": (QueryMatch("a", ""),)}, {"query": "a"}, True),
        ({"query": (QueryMatch("a", ""),)}, {"query": "a="}, True),
        ({"query": (QueryMatch("a", "b=c"),)}, {"query": "a=b=c"}, True),
        ({"query": (QueryMatch("a"),)}, {"query": "&&a"}, True),
        ({"query": (QueryMatch("a"),)}, {"query": "A=1"}, False),
        ({"query": (QueryMatch("a", " "),)}, {"query": "a=%20"}, False),
        ({"query": (QueryMatch("a"),)}, {"query": ""}, False),
        ({"query": (QueryMatch("a"),)}, {}, False),
    ],
)
def test_condition(conditions: dict[str, object], request_parts: dict[str, object], holds: bool) -> None:
    host = VirtualHost("*", (route("r", **conditions),))
    assert (find_route(host, Request("h", "/", **request_parts)) is not None) is holds


def test_chosen_host_decides_alone() -> None:
    exact = VirtualHost("a.example.com", (route("exact", path=PathMatch(value="/x")),))
    config = Config(
        listeners={"http": Listener("http", 80)},
        hosts={"default": {"a.example.com": exact, "*": VirtualHost("*", (route("rest"),))}},
    )
    assert match(config, "http", Request("a.example.com", "/y")) == (exact, None)
    assert match(config, "http", Request("b.example.com", "/y"))[1].name == "rest"


def test_listener_without_host_set_finds_nothing() -> None:
    config = Config(listeners={"http": Listener("http", 80, host_set="other")})
    assert match(config, "http", Request("a", "/")) == (None, None)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_winner_holds_and_everything_before_it_fails(data: st.DataObject) -> None:
    config = data.draw(configs())
    listener, request = data.draw(requests_for(config))
    assert normalize_host(request.host.encode()) == request.host.encode()
    target = request.path if request.query is None else f"{request.path}?{request.query}"
    assert normalize_target(target.encode(), merge_slashes=False, escaped_slashes="keep")[0].decode() == request.path
    host, route = match(config, listener, request)
    if host is None:
        assert not {request.host, "*"} & set(config.hosts[config.listeners[listener].host_set])
        return
    losers = host.routes[: host.routes.index(route)] if route else host.routes
    assert all(failed_condition(loser.match, request) for loser in losers)
    assert route is None or failed_condition(route.match, request) is None
