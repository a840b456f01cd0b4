"""Differences in routing terms."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model.config import Config
from lb.model.diff import can_meet, diff
from lb.model.match import failed_condition, match
from lb.model.text import from_content, to_text
from lb.problems import Origin
from tests.model.strategies import configs, requests_for

BEFORE = """
listeners:
  http: {port: 80}
  db: {port: 5432, protocol: tcp, stream: {forward: web}}
  dns: {port: 53, protocol: udp, datagram: {name: dns, forward: web}}
hosts:
  default:
    shop.example.com:
      - {path: /api, forward: api, name: api}
      - {path: /, forward: web, name: web}
    old.example.com: [{forward: web, name: old, origin: Ingress shop/old (a.yaml:1:1)}]
    "*.example.com": [{forward: web, name: wild}]
upstreams:
  api: [10.0.0.1:80, 10.0.0.2:80]
  web: [10.0.1.1:80]
"""

STEPS = [
    ("  web: [10.0.1.1:80]", "  web: {health_check: {path: /h}, endpoints: [10.0.1.1:80]}", [
        "upstream web: health check off -> http GET /h every 5s",
    ]),
    ("  web: [10.0.1.1:80]", "  web: {health_check: tcp, endpoints: [10.0.1.1:80]}", [
        "upstream web: health check off -> tcp every 5s",
    ]),
    ("{port: 80}", "{port: 8080, address: 127.0.0.1}", ["moves from *:80 to 127.0.0.1:8080"]),
    ("{port: 80}", "{port: 80, host_set: other}", ["serves host set other instead of default"]),
    ("{port: 80}", "{port: 80, http: {max_body: 1Mi}}", ["listener http: max_body no limit -> 1Mi"]),
    ("  http: {port: 80}", "  two: {port: 81}", [
        "closes *:80; host set default is no longer served there",
        "opens *:81 for host set default",
    ]),
    ("stream: {forward: web}}", "stream: {forward: {web: 1, api: 3}, idle_timeout: 1h, allow: [10.0.0.0/8]}}", [
        "connections to db now go to web (0.25), api (0.75) (before: web)",
        "listener db: idle_timeout 10m -> 1h",
        "listener db: allow none -> 10.0.0.0/8",
    ]),
    ("protocol: tcp, stream: {forward: web}}", "host_set: other}", [
        "speaks http instead of tcp",
        "listener db now serves host set other (before: connections to web)",
    ]),
    ("{name: dns, forward: web}}", "{name: b, forward: api, responses: 1}}", [
        "datagrams to dns now go to api (before: web)",
        "listener dns: its route is now named b (before: dns)",
        "listener dns: responses no limit -> 1",
    ]),
    ("  dns: {port", "  names: {port", [
        "closes *:53/udp; datagrams to web are no longer served there",
        "opens *:53/udp for datagrams to web",
    ]),
    ("protocol: udp, datagram: {name: dns, forward: web}}", "protocol: tcp, stream: {forward: web, name: dns}}", [
        "moves from *:53/udp to *:53",
        "speaks tcp instead of udp",
        "listener dns now serves connections to web (before: datagrams to web)",
    ]),
    ("protocol: tcp, stream: {forward: web}}", "protocol: tls, stream: {names: {a: web, b: {forward: api, alpn: [h2]}}}}", [  # noqa: E501
        "speaks tls instead of tcp",
        "TLS connections to a on db are now for passthrough to web (before: nobody)",
        "TLS connections to b on db are now for passthrough to api if the client offers h2 (before: nobody)",
    ]),
    ("  http: {port: 80}", "  http: {port: 80, protocol: https, stream: {names: {a: web}}}", [
        "speaks https instead of http",
        "TLS connections to a on http are now for passthrough to web (before: nobody)",
    ]),
    ("  db: {port", "  sql: {port", [
        "closes *:5432; connections to web are no longer served there",
        "opens *:5432 for connections to web",
    ]),
    (
        "    old.example.com: [{forward: web, name: old, origin: Ingress shop/old (a.yaml:1:1)}]\n",
        "    new.example.com: []\n",
        ["removes host old.example.com (1 route)", "adds host new.example.com (0 routes)"],
    ),
    ("[{forward: web, name: wild}]", "{one_label: false, routes: [{forward: web, name: wild}]}", [
        "*.example.com now covers any number of labels",
    ]),
    ("      - {path: /, forward: web, name: web}\n", "", ["removes route web (prefix /) of shop.example.com"]),
    ("forward: api, name: api}", "forward: {api: 9, web: 1}, name: api}", [
        "route api now goes to api (0.9), web (0.1) (before: goes to api)",
    ]),
    ("forward: api, name: api}", "respond: {status: 503, why: closed}, name: api}", [
        "route api now answers 503 (closed) (before: goes to api)",
    ]),
    ("path: /api, ", "path: {exact: /api}, methods: [GET], ", [
        "route api now takes exact /api, GET instead of prefix /api",
    ]),
    ("name: api}", "name: api, response_timeout: 5s, retries: 0}", [
        "route api: response_timeout default -> 5s",
        "route api: retries default -> 0",
    ]),
    (
        "      - {path: /api, forward: api, name: api}\n      - {path: /, forward: web, name: web}\n",
        "      - {path: /, forward: web, name: web}\n      - {path: /api, forward: api, name: api}\n",
        ["route web now stands before api, and wins where both match"],
    ),
    ("  web: [10.0.1.1:80]\n", "  web: [10.0.1.1:80]\n  new: []\n", ["adds upstream new (0 endpoints)"]),
    ("[10.0.0.1:80, 10.0.0.2:80]", "[10.0.0.1:80, 10.0.0.3:80]", [
        "drains endpoint 10.0.0.2:80 of api",
        "adds endpoint 10.0.0.3:80 to api",
    ]),
    ("[10.0.1.1:80]", "{unavailable: gone}", [
        "upstream web has no endpoints any more, requests are answered 503: gone",
        "upstream web: unavailable none -> gone",
        "drains endpoint 10.0.1.1:80 of web",
    ]),
    ("[10.0.1.1:80]", "[{address: 10.0.1.1:80, weight: 2, draining: true, target: pod/a}]", [
        "drains endpoint 10.0.1.1:80 of web",
        "endpoint 10.0.1.1:80 of web: weight 1 -> 2",
        "endpoint 10.0.1.1:80 of web is now pod/a instead of unnamed",
    ]),
    ("[10.0.1.1:80]", "{endpoints: [10.0.1.1:80], balance: least-connections, connect_timeout: 1s}", [
        "upstream web: balance round-robin -> least-connections",
        "upstream web: connect_timeout 5s -> 1s",
    ]),
]  # fmt: skip


def load(text: str) -> Config:
    config, problems = from_content(yaml.safe_load(text), Origin(file="lb.yaml"))
    assert problems == []
    return config


@pytest.mark.parametrize(("part", "replacement", "effects"), STEPS)
def test_effects(part: str, replacement: str, effects: list[str]) -> None:
    assert BEFORE.count(part) == 1
    changes = diff(load(BEFORE), load(BEFORE.replace(part, replacement)))
    assert [change.effect for change in changes] == effects


def test_a_health_check_that_changes() -> None:
    check = "{path: /a, interval: 5s, statuses: [200], headers: ['Authorization: secret']}"
    text = f"upstreams: {{web: {{health_check: {check}}}}}"
    after = text.replace("secret", "hidden").replace("/a", "/b").replace("5s", "10s")
    after = after.replace("[200]", "[200, 300-399], open_flows: reset")
    assert [change.effect for change in diff(load(text), load(after))] == [
        "upstream web: health check: path /a -> /b",
        "upstream web: health check: statuses 200 -> 200, 300-399",
        "upstream web: health check: interval 5s -> 10s",
        "upstream web: health check: open_flows keep -> reset",
        "upstream web: health check: other headers (Authorization)",
    ]


def test_change_names_both_places() -> None:
    after = BEFORE.replace("forward: web, name: old", "respond: 410, name: old").replace("a.yaml:1:1", "b.yaml:7:3")
    (change,) = diff(load(BEFORE), load(after))
    assert (change.kind, change.what, change.subject) == ("route", "changed", "old")
    assert (change.before, change.after) == ("Ingress shop/old (a.yaml:1:1)", "Ingress shop/old (b.yaml:7:3)")


def test_moved_lines_and_order_that_decides_nothing_are_no_change() -> None:
    routes = ["{path: /a, forward: web, name: a}", "{path: /b, forward: web, name: b}"]
    text = "hosts: {default: {x: [%s]}}\nupstreams: {web: []}"
    assert diff(load(text % ", ".join(routes)), load(text % ", ".join(reversed(routes)))) == []


@given(config=configs())
@settings(max_examples=30, deadline=None)
def test_equal_configs_do_not_differ(config: Config) -> None:
    again, _ = from_content(yaml.load(to_text(config), yaml.CSafeLoader), Origin())
    assert diff(config, again) == []


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_routes_that_take_the_same_requestcan_meet(data: st.DataObject) -> None:
    config = data.draw(configs())
    listener, request = data.draw(requests_for(config))
    host, _ = match(config, listener, request)
    takers = [route.match for route in (host.routes if host else ()) if failed_condition(route.match, request) is None]
    assert all(can_meet(one, other) for one in takers for other in takers)
