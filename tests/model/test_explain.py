"""What `explain` says: every step, every end, and that it never disagrees with the matcher."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model import explain as explain_module
from lb.model.ask import Ask, make_ask
from lb.model.balance import Share, choose_by_maglev, choose_by_rendezvous, hash_client, maglev_table
from lb.model.config import Config
from lb.model.explain import explain
from lb.model.explanation import EndpointStep, Explanation, Source
from lb.model.health import HealthCheck, WhenAllFail
from lb.model.match import match
from lb.model.text import from_content
from lb.problems import Origin
from tests.model.strategies import configs, requests_for

FILE = """
listeners:
  http: {port: 80, http: {max_body: 1Mi, trusted_proxies: [10.0.0.0/8]}}
  local: {port: 80, address: 127.0.0.1, host_set: local}
hosts:
  default:
    shop.example.com:
      - {path: {exact: /healthz}, respond: 204, name: health}
      - {path: /api, methods: [POST], forward: api, name: write, response_timeout: 5s}
      - {path: /api, headers: {X-Version: "2"}, forward: api, name: v2}
      - {path: /api, query: {debug: {present: true}}, forward: api, name: debug}
      - {path: /api, forward: {api: 3, gone: 1}, name: api}
      - {path: /, methods: [GET], forward: web, name: web}
      - {path: /unweighted, forward: {web: 0}, name: unweighted}
    "*.example.com":
      - {path: /x, forward: web, name: wild}
    "*":
      one_label: false
      routes: []
upstreams:
  api: [10.0.1.1:80, {address: 10.0.1.2:80, weight: 0}, {address: 10.0.1.3:80, draining: true}]
  web: {endpoints: [10.0.2.1:80], affinity: client-ip}
  gone: {unavailable: Service shop/gone does not exist}
"""


@pytest.fixture
def config() -> Config:
    config, problems = from_content(yaml.safe_load(FILE), Origin(file="lb.yaml"))
    assert problems == []
    return config


def verdicts(explanation: Explanation) -> dict[str, str]:
    return {step.name: step.failed or step.verdict for step in explanation.routes}


def test_every_route_says_why_it_lost_or_won(config: Config) -> None:
    told = explain(config, Ask("Shop.example.com:80", "/api/v1?x=1"))
    assert (told.reason, told.status, told.host, told.path, told.query) == (
        "ok",
        None,
        "shop.example.com",
        "/api/v1",
        "x=1",
    )
    assert verdicts(told) == {
        "health": "path",
        "write": "method",
        "v2": "header",
        "debug": "query",
        "api": "won",
        "web": "not-reached",
        "unweighted": "path",
    }
    assert [step.why for step in told.routes[:4]] == [
        "path does not match",
        "method: wanted POST, got GET",
        "header: wanted X-Version = '2', got absent",
        "query: wanted debug present, got absent",
    ]


def test_hosts_that_come_into_question_are_told(config: Config) -> None:
    told = explain(config, Ask("shop.example.com"))
    assert [(step.hostname, step.verdict) for step in told.hosts] == [
        ("shop.example.com", "won"),
        ("*.example.com", "not-reached"),
        ("*", "not-reached"),
    ]
    told = explain(config, Ask("a.b.example.com"))
    assert [(step.hostname, step.verdict, step.why) for step in told.hosts] == [
        ("*.example.com", "lost", "covers one label only, and a.b is 2"),
        ("*", "won", "takes what no other host takes"),
    ]


def test_endpoints_have_their_state_and_shares_are_told(config: Config) -> None:
    told = explain(config, Ask("shop.example.com", "/api"))
    api, gone = told.upstreams
    assert (api.share, gone.share, api.why, gone.why) == (0.75, 0.25, "", "Service shop/gone does not exist")
    assert [(one.key, one.state) for one in api.endpoints] == [
        ("10.0.1.1:80", "ready"),
        ("10.0.1.2:80", "zero-weight"),
        ("10.0.1.3:80", "draining"),
    ]
    assert "25% of the requests are answered 503 (no-endpoint): Service shop/gone does not exist" in told.notes


def test_live_states_replace_those_of_the_model(config: Config) -> None:
    states = {"web": [{"key": "10.0.2.1:80", "state": "drain", "weight": 1, "active": 3, "failures": 5}]}
    told = explain(config, Ask("shop.example.com", "/"), states)
    step = EndpointStep("10.0.2.1:80", "drain", 1, "", 3, source=Source(file="lb.yaml"))
    assert told.upstreams[0].endpoints == (step,)
    assert (told.status, told.reason, told.why) == (503, "no-endpoint", "none of the 1 endpoints of web takes requests")


@pytest.mark.parametrize("state", ["ejected", "untested"])
def test_those_serve_when_nobody_is_ready(config: Config, state: str) -> None:
    told = explain(config, Ask("shop.example.com", "/"), {"web": [{"key": "10.0.2.1:80", "state": state, "weight": 1}]})
    assert (told.status, told.reason, told.why) == (None, "ok", "an endpoint answers: none is ready")


@pytest.mark.parametrize(
    ("when_all_fail", "reason", "why"),
    [
        ("serve", "ok", "all endpoints fail their health checks, so all of them get requests (when_all_fail: serve)"),
        ("refuse", "no-healthy-endpoint", "all endpoints of web fail their health checks"),
    ],
)
def test_all_fail_their_health_checks(config: Config, when_all_fail: WhenAllFail, reason: str, why: str) -> None:
    check = HealthCheck(type="http", path="/healthz", when_all_fail=when_all_fail)
    web = msgspec.structs.replace(config.upstreams["web"], health_check=check)
    config = msgspec.structs.replace(config, upstreams={**config.upstreams, "web": web})
    state = {"key": "10.0.2.1:80", "state": "unhealthy", "weight": 1, "health": "unhealthy for 3 s: status 503"}
    told = explain(config, Ask("shop.example.com", "/"), {"web": [state]})
    assert (told.status, told.reason, told.why) == (None if reason == "ok" else 503, reason, why)
    assert told.upstreams[0].endpoints[0].health == "unhealthy for 3 s: status 503"
    note = "all endpoints of web fail their health checks, so they serve all the same"
    assert (note in told.notes) == (when_all_fail == "serve")
    options = {step.name: (step.value, step.set_by) for step in told.options}
    assert options["upstream.health_check"] == ("http GET /healthz every 5s", "upstream web")


def test_options_say_who_set_them(config: Config) -> None:
    told = explain(config, Ask("shop.example.com", "/api", method="POST"))
    options = {step.name: (step.value, step.set_by) for step in told.options}
    assert options["response_timeout"] == ("5s", "route write")
    assert options["retries"] == ("2", "built in")
    assert options["max_body"] == ("1Mi", "listener http")
    assert options["keepalive_timeout"] == ("75s", "built in")
    assert options["upstream.connect_timeout"] == ("5s", "built in")
    assert options["upstream.max_connections"] == ("no limit", "built in")
    assert options["idle_timeout"] == options["client_idle_timeout"] == ("1m", "built in")


def test_options_say_what_endpoints_are_told_of_clients() -> None:
    text = """
listeners: {http: {port: 80}}
hosts: {default: {"*": [{path: /, forward: web}]}}
upstreams: {web: {endpoints: [10.0.0.1:80], proxy_protocol: v2, proxy_values: [ssl, crc32c], transparent: true}}
"""
    config, problems = from_content(yaml.safe_load(text), Origin(file="lb.yaml"))
    assert problems == []
    told = explain(config, Ask("shop.example.com"))
    options = {step.name: (step.value, step.set_by) for step in told.options}
    assert options["upstream.proxy_protocol"] == ("v2, ssl, crc32c", "upstream web")
    assert options["upstream.transparent"] == ("true", "upstream web")


@pytest.mark.parametrize(
    ("ask", "status", "reason"),
    [
        (Ask("shop.example.com", "/healthz"), 204, "local-answer"),
        (Ask("shop.example.com", port=81), None, "no-listener"),
        (Ask("shop.example.com:x"), 400, "bad-host"),
        (Ask("shop.example.com", "/a%2fb"), 400, "bad-target"),
        (Ask("shop.example.com", "/../b"), 400, "bad-target"),
        (Ask("shop.example.com", "/caf\udce9"), 400, "bad-target"),
        (Ask("shop.example.com", method="CONNECT"), 405, "method-refused"),
        (Ask("127.0.0.1:80", address="127.0.0.1"), 404, "no-host"),
        (Ask("other"), 404, "no-route"),
        (Ask("shop.example.com", "/unweighted", method="PUT"), 503, "no-upstream"),
    ],
)
def test_ends(config: Config, ask: Ask, status: int | None, reason: str) -> None:
    told = explain(config, ask)
    assert (told.status, told.reason) == (status, reason)
    assert told.why
    assert msgspec.json.decode(msgspec.json.encode(told), type=Explanation) == told


def test_listener_can_be_named(config: Config) -> None:
    assert explain(config, Ask("shop.example.com", "/", port=8080), listener="http").reason == "ok"
    told = explain(config, Ask("shop.example.com"), listener="https")
    assert (told.reason, told.why) == ("no-listener", "nothing listens on listener https; there is 80")


def test_published_port_names_the_listener(config: Config) -> None:
    told = explain(config, Ask("shop.example.com", "/", port=8080), published={"local": "*:81", "http": "*:8080"})
    assert [(step.name, step.published) for step in told.listeners] == [("http", "*:8080")]
    # Where two listeners have swapped their ports, the published one is where clients arrive.
    told = explain(config, Ask("shop.example.com", "/", port=80), published={"local": "*:80", "http": "*:81"})
    assert [step.name for step in told.listeners] == ["local"]


def test_nobody_listens_where_the_listener_could_not_be_opened(config: Config) -> None:
    closed = {"http": "ports below 1024 need privilege"}
    told = explain(config, Ask("shop.example.com", "/"), published={"http": "*:80"}, closed=closed)
    assert (told.status, told.reason) == (None, "no-listener")
    assert told.why == "nobody listens on *:80 for http: ports below 1024 need privilege"
    assert [(step.verdict, step.closed) for step in told.listeners if step.name == "http"] == [("lost", closed["http"])]
    assert not told.routes


@pytest.mark.parametrize(
    ("url", "scheme", "port"), [("ws://a.test/chat", "http", 80), ("wss://a.test/chat", "https", 443)]
)
def test_a_websocket_begins_as_a_request_with_an_upgrade(url: str, scheme: str, port: int) -> None:
    ask = make_ask(url, lines=["upgrade: mine"])
    assert (ask.scheme, ask.port, ask.target, ask.server_name) == (scheme, port, "/chat", "a.test")
    assert ask.headers == (("upgrade", "mine"), ("Connection", "Upgrade"))
    assert make_ask(url).headers == (("Connection", "Upgrade"), ("Upgrade", "websocket"))


def test_the_only_listener_is_told_about_when_no_one_has_the_port(config: Config) -> None:
    alone = msgspec.structs.replace(config, listeners={"http": config.listeners["http"]})
    told = explain(alone, Ask("shop.example.com", "/", port=8443))
    assert told.reason == "ok"
    assert told.notes[0] == "no listener has port 8443: this is what the only one does, http on *:80"
    assert explain(alone, Ask("shop.example.com", "/", port=80)).notes[0] != told.notes[0]


@pytest.mark.parametrize(("client", "verb"), [("10.1.2.3", "believed and extended"), ("192.0.2.1", "replaced")])
def test_trust_in_the_client_is_told(config: Config, client: str, verb: str) -> None:
    told = explain(config, Ask("shop.example.com", "/", client=client))
    assert told.notes == (
        f"X-Forwarded-* headers from {client} are {verb}",
        "web keeps a client on its endpoint while that can serve, until it has been silent for 3h",
    )


HASHED = """
apiVersion: lb/v1
kind: Config
listeners:
  http: {port: 80, http: {trusted_proxies: [10.9.0.0/16]}}
  game: {port: 4433, protocol: tcp, stream: {forward: game, proxy_protocol: [10.8.0.0/16]}}
hosts: {default: {"*": [{path: /, forward: game}]}}
upstreams:
  game: {balance: maglev, hash_key: %s, endpoints: [10.0.1.1:80, 10.0.1.2:80, {address: 10.0.1.3:80, draining: true}]}
"""


@pytest.mark.parametrize("hash_key", ["source", "source-port"])
def test_whom_a_hash_chooses(hash_key: str) -> None:
    config, problems = from_content(yaml.safe_load(HASHED % hash_key), Origin(file="lb.yaml"))
    assert problems == []

    def chosen(ask: Ask, states: object = None) -> tuple[str, str]:
        told = explain(config, ask, states)  # type: ignore[arg-type]
        assert told.reason == "ok"
        return " ".join(one.key for one in told.upstreams[0].endpoints if one.chosen), told.why

    endpoints = [Share("10.0.1.1:80", 1), Share("10.0.1.2:80", 1)]
    for number in range(1, 20):
        client = f"10.1.0.{number}"
        index = choose_by_maglev(endpoints, maglev_table(endpoints), hash_client(client), lambda _: True)
        wanted = endpoints[index or 0].key
        assert chosen(Ask("x", "/", client=client)) == (wanted, f"{wanted} answers {client}")
        carried = chosen(Ask("x", "", 4433, "TCP", client=client, scheme="tcp"))
        if hash_key == "source":
            assert carried == (wanted, f"{wanted} answers {client}")
        else:  # the port is not known
            assert carried == ("", "one of the ready endpoints answers")
        # Who stands in for one that fails is told, too; nobody is, when none is well.
        fails = [{"key": one.key, "state": "unhealthy" if one.key == wanted else "ready"} for one in endpoints]
        other = next(one.key for one in endpoints if one.key != wanted)
        assert chosen(Ask("x", "/", client=client), {"game": fails})[0] == other
    rest = [{"key": one.key, "state": "ejected"} for one in endpoints]
    assert chosen(Ask("x", "/", client="10.1.0.1"), {"game": rest})[0] == ""
    # A proxy may name another client.
    assert chosen(Ask("x", "", 4433, "TCP", client="10.8.0.1", scheme="tcp"))[0] == ""
    assert chosen(Ask("x", "/", headers=(("X-Forwarded-For", "10.1.0.1"),), client="10.9.0.1"))[0] == ""
    assert chosen(Ask("x", "/", client="10.9.0.1"))[0] != ""
    sticky = msgspec.structs.replace(config.upstreams["game"], affinity="client-ip")
    sticky_config = msgspec.structs.replace(config, upstreams={"game": sticky})
    told = explain(sticky_config, Ask("x", "/", client="10.1.0.1"))
    index = choose_by_rendezvous(endpoints, hash_client("10.1.0.1"), lambda _: True)
    wanted = endpoints[index or 0].key
    assert told.why == f"{wanted} answers 10.1.0.1, unless another one has answered it before"
    other = next(one.key for one in endpoints if one.key != wanted)
    stays = "and stays there; its address alone would lead to"
    memories = {
        other: (other, f"{stays} {wanted}"),
        wanted: (wanted, f"{stays} the same one"),
        "10.0.1.3:80": (wanted, "which is draining now: its address decides"),
        "10.0.1.9:80": (wanted, "which is gone now: its address decides"),
    }
    for key, (answers, note) in memories.items():
        told = explain(sticky_config, Ask("x", "/", client="10.1.0.1"), memory=lambda *_, key=key: (key, 7_300_000))
        assert told.why == f"{answers} answers 10.1.0.1"
        assert told.notes[-1] == f"10.1.0.1 was sent to {key} last, 2h ago, {note}"
    told = explain(sticky_config, Ask("x", "/", client="10.1.0.1"), memory=lambda *_: None)
    assert (told.why, told.notes[-1]) == (
        f"{wanted} answers 10.1.0.1",
        "lb remembers no endpoint of game for 10.1.0.1: its address decides",
    )
    assert (
        explain(config, Ask("x", "/")).notes[-1] == "game chooses by the client's address: --from tells which endpoint"
    )


def test_reasons_and_statuses_are_the_data_planes() -> None:
    text = (Path(explain_module.__file__).parent.parent / "_fastpath/c/reasons.h").read_text()
    listed = {name: int(status) for name, status in re.findall(r'LB_REASON\(\w+, "([a-z-]+)", (\d+)\)', text)}
    assert {reason: listed[reason] for reason in explain_module.STATUS} == explain_module.STATUS
    assert {"ok", "local-answer"} <= set(listed)
    assert explain_module.NO_LISTENER not in listed


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_explain_never_disagrees_with_the_matcher(data: st.DataObject) -> None:
    config = data.draw(configs())
    listener, request = data.draw(requests_for(config))
    target = request.path if request.query is None else f"{request.path}?{request.query}"
    told = explain(config, Ask(request.host, target, 80, request.method, request.headers), listener=listener)
    if told.reason in ("bad-target", "bad-host", "method-refused"):
        return
    options = config.listeners[listener].http
    if options.merge_slashes:
        request = msgspec.structs.replace(request, path=re.sub("/+", "/", request.path))
    host, route = match(config, listener, request)
    assert [step.hostname for step in told.hosts if step.verdict == "won"] == ([host.hostname] if host else [])
    assert [step.name for step in told.routes if step.verdict == "won"] == ([route.name] if route else [])


@pytest.mark.parametrize(
    ("url", "lines", "ask"),
    [
        ("http://Shop.example.com", [], Ask("Shop.example.com", scheme="http", server_name="shop.example.com")),
        ("shop.example.com.:81/a?b#c", [], Ask("shop.example.com.:81", "/a?b", 81, server_name="shop.example.com")),
        (
            "https://u:p@[::1]/%2f",
            [],
            Ask("[::1]", "/%2f", 443, scheme="https", alpn=("h2", "http/1.1"), address="::1"),
        ),
        ("tcp://[::1]:5432/", [], Ask("[::1]:5432", "", 5432, "TCP", scheme="tcp", address="::1")),
        ("udp://192.0.2.1:53", [], Ask("192.0.2.1:53", "", 53, "UDP", scheme="udp", address="192.0.2.1")),
        ("tls://Db.example.com", [], Ask("Db.example.com", "", 443, "TLS", scheme="tls", server_name="db.example.com")),
        ("tls://10.0.0.1:5432/", [], Ask("10.0.0.1:5432", "", 5432, "TLS", scheme="tls", address="10.0.0.1")),
        (
            "http://10.0.0.1:8080/",
            ["host: a", "X-A:  b c "],
            Ask("a", "/", 8080, headers=(("host", "a"), ("X-A", "b c")), scheme="http", address="10.0.0.1"),
        ),
    ],
)
def test_request_of_a_url(url: str, lines: list[str], ask: Ask) -> None:
    assert make_ask(url, "GET", lines) == ask


def test_url_of_another_scheme_is_told_as_such() -> None:
    with pytest.raises(ValueError, match="lb serves http, https, ws, wss, tcp, udp, tls, not ftp"):
        make_ask("ftp://shop")


@pytest.mark.parametrize(
    "arguments",
    [
        ("tcp://a",),
        ("udp://a",),
        ("udp://a:1", "GET", ["X: y"]),
        ("tcp://a:70000",),
        ("tcp://a:1", "PUT"),
        ("tls://a:70000",),
        ("tls://a/x",),
        ("tcp://a:1", "GET", ["X: y"]),
        ("ftp://a/",),
        ("http:///x",),
        ("a:x/",),
        ("a", "GET", ["X"]),
        ("a", "GET", [": x"]),
        ("a", "GET", [], "me"),
    ],
)
def test_request_of_what_is_no_url(arguments: tuple) -> None:
    with pytest.raises(ValueError, match=r".+"):
        make_ask(*arguments)


STREAMS = """
listeners:
  http: {port: 80}
  db: {port: 5432, protocol: tcp, stream: {forward: {db: 3, new: 1}, idle_timeout: 1h, allow: [10.0.0.0/8]}}
  dead: {port: 5433, protocol: tcp, stream: {forward: new}}
  dns: {port: 5432, protocol: udp, datagram: {forward: {db: 1, new: 1}, responses: 1, allow: [10.0.0.0/8]}}
upstreams:
  db: [10.0.1.1:5432]
  new: {unavailable: Service db/new does not exist}
"""


def explain_stream(url: str, client: str = "") -> Explanation:
    config, problems = from_content(yaml.safe_load(STREAMS), Origin(file="lb.yaml"))
    assert problems == []
    return explain(config, make_ask(url, client=client))


def test_a_connection_is_carried_to_the_upstreams() -> None:
    told = explain_stream("tcp://192.0.2.1:5432", "10.1.2.3")
    assert (told.status, told.reason) == (None, "ok")
    assert [(step.name, step.host_set) for step in told.listeners] == [("db", "")]
    assert verdicts(told) == {"db": "won"}
    assert [(step.name, step.share, step.serves) for step in told.upstreams] == [
        ("db", 0.75, True),
        ("new", 0.25, False),
    ]
    assert "25% of the connections are reset (no-endpoint): Service db/new does not exist" in told.notes
    options = {step.name: (step.value, step.set_by) for step in told.options}
    assert options["idle_timeout"] == ("1h", "listener db")
    assert options["retries"] == ("2", "built in")
    assert "max_head" not in options


def test_a_connection_from_outside_is_refused() -> None:
    told = explain_stream("tcp://192.0.2.1:5432", "192.0.2.7")
    assert (told.status, told.reason, told.why) == (None, "source-refused", "192.0.2.7 is not in 10.0.0.0/8")
    assert told.upstreams == ()


def test_who_is_let_in_is_told_when_nobody_says_who_asks() -> None:
    notes = explain_stream("tcp://192.0.2.1:5432").notes
    assert any("only clients in 10.0.0.0/8 are let in" in note for note in notes)


def test_a_connection_to_nobody_gets_no_answer() -> None:
    told = explain_stream("tcp://192.0.2.1:5433")
    assert (told.status, told.reason, told.why) == (None, "no-endpoint", "Service db/new does not exist")


def test_a_datagram_is_carried_by_the_listener_of_its_transport() -> None:
    told = explain_stream("udp://192.0.2.1:5432", "10.1.2.3")
    assert (told.method, told.status, told.reason) == ("UDP", None, "ok")
    assert [(step.name, step.bind, step.verdict) for step in told.listeners] == [("dns", "*:5432/udp", "won")]
    assert [step.match for step in told.routes] == ["every datagram"]
    assert "50% of the datagrams are dropped (no-endpoint): Service db/new does not exist" in told.notes
    options = {step.name: (step.value, step.set_by) for step in told.options}
    assert options["responses"] == ("1", "listener dns")
    assert options["idle_timeout"] == ("2m", "built in")
    assert "half_closed_timeout" not in options
    assert any("say whose datagram it is" in note for note in explain_stream("udp://192.0.2.1:5432").notes)
    assert explain_stream("udp://192.0.2.1:5432", "192.0.2.7").reason == "source-refused"


def test_no_datagram_comes_to_a_listener_of_connections() -> None:
    config, _ = from_content(yaml.safe_load("listeners: {http: {port: 80}}"), Origin(file="lb.yaml"))
    told = explain(config, make_ask("udp://192.0.2.1:80"))
    assert (told.reason, told.why) == ("no-listener", "nothing listens on port 80/udp; for TCP there is http on *:80")


CARRIED = """
listeners:
  db: {port: 5432, protocol: tcp, stream: {forward: db}}
  dns: {port: 53, protocol: udp, datagram: {forward: db}}
  web: {port: 80}
hosts: {default: {"*": [{forward: db}]}}
upstreams:
  db:
    endpoints: ["10.0.0.1:80"]
    max_connections: 5
    max_queue: 7
    queue_timeout: 3s
    idle_timeout: 4s
    max_requests_per_connection: 9
    proxy_protocol: v1
"""
OF_REQUESTS = {"idle_timeout", "max_queue", "queue_timeout", "max_requests_per_connection"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("tcp://192.0.2.1:5432", {"connect_timeout", "proxy_protocol"}),
        ("udp://192.0.2.1:53", set()),
        ("http://a/", {"connect_timeout", "proxy_protocol", *OF_REQUESTS}),
    ],
)
def test_only_options_of_an_upstream_are_shown_that_mean_something(url: str, shown: set[str]) -> None:
    config, problems = from_content(yaml.safe_load(CARRIED), Origin(file="lb.yaml"))
    assert problems == []
    options = {one.name for one in explain(config, make_ask(url)).options if one.name.startswith("upstream.")}
    both = {"max_connections", "max_connections_per_endpoint"}
    assert options == {f"upstream.{name}" for name in shown | both}


def test_that_a_name_is_not_looked_up_is_told() -> None:
    config, _ = from_content(yaml.safe_load(CARRIED), Origin(file="lb.yaml"))
    (note,) = explain(config, make_ask("tcp://db.example.com:5432")).notes
    assert note == (
        "db.example.com is not looked up: this is what db does on *:5432; tcp://ADDRESS:5432 asks about one address"
    )
    assert not explain(config, make_ask("tcp://192.0.2.1:5432")).notes
    assert not explain(config, make_ask("http://db.example.com/")).notes


@pytest.mark.parametrize(
    ("url", "missing"),
    [
        ("tcp://192.0.2.10", "tcp://192.0.2.10:5432"),
        ("udp://[::1]", "udp://[::1]:5432"),
        ("tcp://db/", "tcp://db:5432"),
    ],
)
def test_a_missing_port_is_told(url: str, missing: str) -> None:
    with pytest.raises(ValueError, match="the port is missing") as caught:
        make_ask(url)
    assert str(caught.value).endswith(f", as in {missing}")


def test_the_ports_there_are_stand_in_the_order_of_their_numbers() -> None:
    quic = "{port: 443, protocol: udp, datagram: {forward: quic}}"
    text = f"listeners: {{a: {{port: 443}}, b: {{port: 5432}}, c: {{port: 80}}, d: {quic}}}\n"
    text += "upstreams: {quic: ['10.0.0.1:443']}"
    config, _ = from_content(yaml.safe_load(text), Origin(file="lb.yaml"))
    told = explain(config, make_ask("tcp://192.0.2.1:22"))
    assert told.why == "nothing listens on port 22; there is 80, 443, 443/udp, 5432"


PROXIES = """
listeners:
  some: {port: 1, protocol: tcp, stream: {forward: db, proxy_protocol: [10.0.0.0/8], allow: [192.0.2.0/24]}}
  all: {port: 2, protocol: tcp, stream: {forward: db, proxy_protocol: [0.0.0.0/0, "::/0"]}}
  web: {port: 80, http: {proxy_protocol: [10.0.0.0/8]}}
hosts: {default: {"*": [{forward: db}]}}
upstreams: {db: {endpoints: [10.0.1.1:5432, 10.0.1.2:5432], balance: maglev}}
"""
FROM_SOME = "connections from 10.0.0.0/8 must begin with a PROXY header, which says who the client is"
FROM_ALL = "connections must begin with a PROXY header, which says who the client is"


@pytest.mark.parametrize(
    ("url", "client", "note", "chosen"),
    [
        ("tcp://a:1", "", FROM_SOME, False),
        ("tcp://a:1", "10.1.1.1", f"{FROM_SOME}: 10.1.1.1 is such a proxy, so say with --from whom its header", False),
        (
            "tcp://a:1",
            "192.0.2.1",
            f"{FROM_SOME}: 192.0.2.1 is taken for the one whom it names or who comes without a proxy",
            True,
        ),
        ("tcp://a:2", "10.1.1.1", f"{FROM_ALL}: 10.1.1.1 is taken for the one whom it names", True),
        ("http://a/", "10.1.1.1", f"{FROM_SOME}: 10.1.1.1 is such a proxy", False),
        ("http://a/", "192.0.2.1", f"{FROM_SOME}: 192.0.2.1 is taken for the one", True),
    ],
)
def test_who_the_client_is_behind_proxies(url: str, client: str, note: str, *, chosen: bool) -> None:
    config, problems = from_content(yaml.safe_load(PROXIES), Origin(file="lb.yaml"))
    assert problems == []
    told = explain(config, make_ask(url, client=client))
    assert told.reason == "ok"
    assert any(one.startswith(note) for one in told.notes)
    assert any(one.chosen for one in told.upstreams[0].endpoints) == chosen


ADDRESSES = """
listeners:
  three: {port: 5000, address: 192.168.10.7, protocol: tcp, stream: {forward: db}}
  four: {port: 5000, address: 192.168.10.8, protocol: tcp, stream: {forward: db}}
  six: {port: 5000, address: "FD00::6", protocol: udp, datagram: {forward: db}}
  any4: {port: 5001, address: 0.0.0.0, protocol: tcp, stream: {forward: db}}
  web: {port: 80, address: 192.168.10.7}
  moved: {port: 81}
  both: {port: 82}
  tls: {port: 443, address: 192.168.10.7, protocol: tls, stream: {forward: db}}
hosts: {default: {"*": [{respond: 200}]}}
upstreams: {db: [10.0.1.1:5432]}
"""


def explain_address(url: str, *lines: str, closed: dict[str, str] | None = None) -> Explanation:
    config, problems = from_content(yaml.safe_load(ADDRESSES), Origin(file="lb.yaml"))
    assert problems == []
    return explain(
        config, make_ask(url, lines=lines), published={"moved": "127.0.0.1:8081", "both": "[::]:8082"}, closed=closed
    )


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("tcp://192.168.10.8:5000", "four"),
        ("tcp://db.example.com:5000", "three"),
        ("tcp://0.0.0.0:5000", "three"),
        ("udp://[fd00:0::6]:5000", "six"),
        ("tcp://192.0.2.1:5001", "any4"),
        ("http://192.168.10.7/", "web"),
        ("http://shop.example.com/", "web"),
        ("http://127.0.0.1:8081/", "moved"),
        ("http://192.0.2.1:81/", "moved"),
        ("http://192.0.2.1:8082/", "both"),
    ],
)
def test_the_listener_of_the_address_that_is_asked_for(url: str, name: str) -> None:
    told = explain_address(url)
    assert [step.name for step in told.listeners if step.verdict == "won"] == [name]
    assert told.reason != "no-listener"


@pytest.mark.parametrize(
    ("url", "lines", "why"),
    [
        (
            "tcp://192.168.10.9:5000",
            [],
            "nothing listens on 192.168.10.9:5000; there is three on 192.168.10.7:5000, four on 192.168.10.8:5000",
        ),
        ("udp://[fd00::7]:5000", [], "nothing listens on [fd00::7]:5000/udp; there is six on [FD00::6]:5000/udp"),
        ("tcp://[::1]:5001", [], "nothing listens on [::1]:5001; there is any4 on 0.0.0.0:5001"),
        ("tls://192.168.10.8", [], "nothing listens on 192.168.10.8:443; there is tls on 192.168.10.7:443"),
        (
            "http://192.168.10.8/",
            ["Host: shop"],
            "nothing listens on 192.168.10.8:80; there is web on 192.168.10.7:80",
        ),
        ("http://192.0.2.1:8081/", [], "nothing listens on 192.0.2.1:8081; there is moved on 127.0.0.1:8081"),
        ("udp://192.0.2.1:5003", [], "nothing listens on 192.0.2.1:5003/udp; there is six on [FD00::6]:5000/udp"),
    ],
)
def test_nothing_listens_on_the_address_that_is_asked_for(url: str, lines: list[str], why: str) -> None:
    told = explain_address(url, *lines)
    assert (told.status, told.reason, told.why) == (None, "no-listener", why)
    assert {step.verdict for step in told.listeners} == {"lost"}
    assert told.notes == ()


def test_listeners_that_are_closed_are_not_told_as_others() -> None:
    told = explain_address("tcp://192.168.10.8:5000", closed={"four": "taken"})
    assert told.why == "nobody listens on 192.168.10.8:5000 for four: taken"
    told = explain_address("tcp://192.168.10.9:5000", closed={"four": "taken", "three": "taken"})
    assert told.why == "nothing listens on 192.168.10.9:5000; there is no open listener"


def test_a_connection_to_a_listener_of_http() -> None:
    told = explain_stream("tcp://192.0.2.1:80")
    assert (told.status, told.reason) == (None, "no-listener")
    assert told.why == "http speaks http: ask for http://…"


def test_a_request_to_a_listener_that_carries_bytes() -> None:
    told = explain_stream("http://192.0.2.1:5432/x", "10.1.2.3")
    assert (told.status, told.reason) == (None, "ok")
    assert any("db carries bytes" in note for note in told.notes)


NAMES = """
listeners:
  tls:
    port: 443
    protocol: tls
    stream:
      names:
        db.example.com: db
        "*.example.com": [{forward: new, alpn: [h2, x]}, {forward: db, mode: terminate}]
        only.example.com: {forward: db, alpn: [x]}
  https:
    port: 8443
    protocol: https
    stream: {names: {"*.shop.example.com": db, acme.example.com: {forward: db, alpn: [acme-tls/1]}}}
hosts:
  default:
    web.shop.example.com: [{forward: db, name: web}]
    acme.example.com: [{forward: db, name: acme}]
upstreams:
  db: {tls: {server_name: db.internal}, endpoints: [10.0.1.1:5432]}
  new: [10.0.2.1:5432]
"""


def explain_name(url: str, *alpn: str) -> Explanation:
    config, problems = from_content(yaml.safe_load(NAMES), Origin(file="lb.yaml"))
    assert problems == []
    return explain(config, make_ask(url, alpn=alpn))


def test_a_server_name_that_is_passed_through() -> None:
    told = explain_name("tls://DB.example.com")
    assert (told.status, told.reason, told.tls) == (None, "ok", None)
    assert [(step.entry, step.verdict) for step in told.names] == [
        ("db.example.com", "won"),
        ("*.example.com", "not-reached"),
    ]
    assert [(step.name, step.tls) for step in told.upstreams] == [("db", "")]
    assert any("passed through" in note for note in told.notes)


def test_a_server_name_that_is_terminated() -> None:
    told = explain_name("tls://a.example.com")
    assert told.tls is not None
    assert verdicts(told) == {"tls/*.example.com": "alpn", "tls/*.example.com:1": "won"}
    assert told.upstreams[0].tls
    assert verdicts(explain_name("tls://a.example.com", "x")) == {
        "tls/*.example.com": "won",
        "tls/*.example.com:1": "not-reached",
    }


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("tls://example.com", "unrecognized-name"),
        ("tls://10.0.0.1", "unrecognized-name"),
        ("tls://only.example.com", "no-application-protocol"),
        ("http://db.example.com:443/", "plain-http"),
        ("tcp://db.example.com:443", "no-listener"),
        ("tls://web.shop.example.com:8443", "no-listener"),
    ],
)
def test_connections_that_nobody_takes(url: str, reason: str) -> None:
    told = explain_name(url)
    assert (told.reason, told.upstreams) == (reason, ())


def test_https_says_when_a_name_is_passed_through() -> None:
    told = explain_name("https://a.shop.example.com:8443/cart")
    assert (told.status, told.reason, told.hosts) == (None, "ok", ())
    assert any("no host, path or header decides" in note for note in told.notes)
    told = explain_name("https://web.shop.example.com:8443/cart")
    assert verdicts(told) == {"web": "won"}
    assert [(step.entry, step.verdict) for step in told.names] == [("*.shop.example.com", "lost")]
    assert "HTTP host web.shop.example.com is more specific" in told.names[0].why
    assert verdicts(explain_name("https://acme.example.com:8443/")) == {"acme": "won"}
    assert verdicts(explain_name("https://acme.example.com:8443/", "acme-tls/1")) == {"https/acme.example.com": "won"}
