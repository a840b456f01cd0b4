"""The native file: what is written reads back equal, and every mistake is one Problem with its place."""

from __future__ import annotations

import msgspec
import pytest
import yaml
from hypothesis import given, settings

from lb.model.config import Config
from lb.model.datagram import Datagram, DatagramOptions
from lb.model.defaults import Defaults
from lb.model.health import HealthCheck
from lb.model.listener import HttpOptions, Listener
from lb.model.route import Forward, HeaderMatch, Match, PathMatch, Respond, Route, RouteOptions, WeightedUpstream
from lb.model.stream import Stream, StreamOptions, StreamRoute
from lb.model.text import from_content, to_text
from lb.model.upstream import Endpoint, Upstream, UpstreamOptions
from lb.problems import Origin, Problem
from tests.model.strategies import configs

FILE = Origin(kind="Config", name="lb", file="lb.yaml", line=1)


HEAD = "apiVersion: lb/v1\nkind: Config\n"
UPSTREAM = '\nupstreams: {web: ["10.0.0.1:80"]}'


def load(text: str, lines: dict[str, int] | None = None) -> tuple[Config, list[Problem]]:
    return from_content(yaml.safe_load(text), FILE, lines)


@given(config=configs())
@settings(max_examples=100, deadline=None)
def test_what_is_written_reads_back_equal(config: Config) -> None:
    text = to_text(config)
    read, problems = from_content(yaml.load(text, yaml.CSafeLoader), FILE, {"upstreams": 3, "hosts": 7})
    assert [problem for problem in problems if problem.code != "LB5014"] == []
    assert read == config
    assert to_text(read) == text


OTHER_DEFAULTS = Defaults(
    "least-connections",
    HttpOptions(head_timeout_ms=5_000, trusted_proxies=("10.0.0.0/8",), merge_slashes=False),
    StreamOptions(handshake_timeout_ms=3_000, idle_timeout_ms=20_000, max_connections=7, allow=("192.0.2.0/24",)),
    DatagramOptions(responses=1, allow=("192.0.2.0/24",)),
    upstream=UpstreamOptions(connect_timeout_ms=700, max_connections=1, hash_key="flow"),
)


@given(config=configs())
@settings(max_examples=100, deadline=None)
def test_what_is_written_reads_back_equal_with_other_defaults_and_without(config: Config) -> None:
    content = yaml.load(to_text(config, defaults=OTHER_DEFAULTS), yaml.CSafeLoader)
    assert from_content(content, FILE, {"upstreams": 3, "hosts": 7}, None, OTHER_DEFAULTS)[0] == config
    assert from_content(content, FILE, {"upstreams": 3, "hosts": 7})[0] == config


DEFAULTED = """\
apiVersion: lb/v1
kind: Config
listeners:
  web: {port: 80, http: {head_timeout: 10s}}
  tls: {port: 443, protocol: https, stream: {names: {db.test: web}}}
  db: {port: 5432, protocol: tcp, stream: {forward: web, idle_timeout: 10m, allow: []}}
  dns: {port: 53, protocol: udp, datagram: {forward: own}}
hosts: {default: {a.test: [{path: /a, forward: web}, {path: /b, forward: own, response_timeout: 60s}]}}
upstreams:
  web: ["10.0.0.1:80"]
  own: {balance: round-robin, connect_timeout: 5s, endpoints: ["10.0.0.1:80"]}
"""


def test_defaults_are_for_what_says_nothing_and_only_for_that() -> None:
    route = RouteOptions(response_timeout_ms=3_000)
    defaults = msgspec.structs.replace(OTHER_DEFAULTS, route=route)
    config, problems = from_content(yaml.safe_load(DEFAULTED), FILE, defaults=defaults)
    assert not problems
    web, tls, db, dns = (config.listeners[name] for name in ("web", "tls", "db", "dns"))
    assert web.http == msgspec.structs.replace(defaults.http, head_timeout_ms=10_000)
    assert tls.http == defaults.http
    assert tls.stream is not None
    assert tls.stream.options == StreamOptions(idle_timeout_ms=20_000, allow=("192.0.2.0/24",))
    assert db.http == HttpOptions()
    assert db.stream is not None
    assert db.stream.options == msgspec.structs.replace(defaults.stream, idle_timeout_ms=600_000, allow=())
    assert dns.datagram is not None
    assert dns.datagram.options == defaults.datagram
    assert [one.options for one in config.hosts["default"]["a.test"].routes] == [
        route,
        RouteOptions(response_timeout_ms=60_000),
    ]
    assert (config.upstreams["web"].balance, config.upstreams["web"].options) == (
        "least-connections",
        defaults.upstream,
    )
    own = config.upstreams["own"]
    assert (own.balance, own.options.connect_timeout_ms, own.options.hash_key) == ("round-robin", 5_000, "flow")


@pytest.mark.parametrize("allow", ["10.0.0.0/8", "[nobody]"])
@pytest.mark.parametrize(("protocol", "section"), [("tcp", "stream"), ("udp", "datagram")])
def test_a_default_never_says_who_is_let_in_where_the_file_cannot_be_read(
    protocol: str, section: str, allow: str
) -> None:
    text = (
        HEAD + f"listeners: {{db: {{port: 5432, protocol: {protocol}, {section}: {{forward: web, allow: {allow}}}}}}}"
    )
    config, problems = from_content(yaml.safe_load(text + UPSTREAM), FILE, defaults=OTHER_DEFAULTS)
    assert not config.listeners
    assert "who may connect is not understood" in [one.what for one in problems]


HAND_WRITTEN = """\
apiVersion: lb/v1
kind: Config
settings: {threads: 2}
listeners:
  http: {port: 80, http: {head_timeout: 1.5s, max_head: 16Ki, trusted_proxies: [10.0.0.0/8]}}
hosts:
  default:
    shop.example.com:
      - {path: {exact: /healthz}, respond: 204}
      - {path: /api, methods: [GET, POST], forward: {api: 9, web: 1}, response_timeout: 1m30s, max_body: 1Mi}
      - {headers: {X-Debug: {present: true}, X-User: "1"}, forward: web, name: debug}
    "*.example.com":
      one_label: false
      routes: [{forward: web}]
upstreams:
  web: [10.0.0.1:8080, "[fd00::1]:8080"]
  api:
    balance: least-connections
    connect_timeout: 500ms
    endpoints: [{address: 10.0.0.2:8080, weight: 2}, unix:/run/api.sock]
"""


def test_hand_written_file() -> None:
    lines = {"listeners.http": 5, "hosts.default.shop.example.com[1]": 10, "upstreams.web": 16, "upstreams.web[1]": 17}
    config, problems = load(HAND_WRITTEN, lines)
    assert problems == []
    assert config.listeners == {
        "http": Listener(
            "http",
            80,
            http=HttpOptions(head_timeout_ms=1_500, max_head_bytes=16_384, trusted_proxies=("10.0.0.0/8",)),
            origin=Origin("Config", "", "lb", "lb.yaml", 5),
        )
    }
    assert config.hosts["default"]["shop.example.com"].routes == (
        Route("shop.example.com:0", Match(PathMatch("exact", "/healthz")), Respond(204), origin=FILE),
        Route(
            "shop.example.com:1",
            Match(PathMatch("prefix", "/api"), ("GET", "POST")),
            Forward((WeightedUpstream("api", 9), WeightedUpstream("web"))),
            RouteOptions(response_timeout_ms=90_000, max_body_bytes=1 << 20),
            Origin("Config", "", "lb", "lb.yaml", 10),
        ),
        Route(
            "debug",
            Match(headers=(HeaderMatch("X-Debug"), HeaderMatch("X-User", "1"))),
            Forward((WeightedUpstream("web"),)),
            origin=FILE,
        ),
    )
    assert config.hosts["default"]["*.example.com"].one_label is False
    assert config.upstreams == {
        "web": Upstream(
            "web",
            endpoints=(
                Endpoint("10.0.0.1", 8080, origin=Origin("Config", "", "lb", "lb.yaml", 16)),
                Endpoint("fd00::1", 8080, origin=Origin("Config", "", "lb", "lb.yaml", 17)),
            ),
            origin=Origin("Config", "", "lb", "lb.yaml", 16),
        ),
        "api": Upstream(
            "api",
            "least-connections",
            (Endpoint("10.0.0.2", 8080, 2, origin=FILE), Endpoint("unix:/run/api.sock", origin=FILE)),
            options=UpstreamOptions(connect_timeout_ms=500),
            origin=FILE,
        ),
    }


def test_rendered_file_is_pleasant() -> None:
    ingress = Origin("Ingress", "shop", "web", "web.yaml", 12, 3)
    config = Config(
        {"http": Listener("http", 80, host_set="ingress")},
        {},
        {
            "shop/web:http": Upstream(
                "shop/web:http",
                endpoints=(
                    Endpoint("10.0.0.1", 8080, target="pod/web-1", origin=ingress),
                    Endpoint("::1", 80, origin=ingress),
                ),
                origin=ingress,
            )
        },
    )
    assert to_text(config) == (
        "apiVersion: lb/v1\n"
        "kind: Config\n"
        "listeners:\n"
        "  http:\n"
        "    port: 80\n"
        "    host_set: ingress\n"
        "    origin: built-in\n"
        "hosts: {}\n"
        "upstreams:\n"
        "  shop/web:http:\n"
        "    endpoints:\n"
        "    - {address: '10.0.0.1:8080', target: pod/web-1}\n"
        "    - '[::1]:80'\n"
        "    origin: Ingress shop/web (web.yaml:12:3)\n"
    )


ROUTE = "hosts: {default: {a: [{%s}, {respond: 200, name: other}]}}"
UDP = "upstreams: {web: []}\nlisteners: {dns: {port: 53, protocol: udp, datagram: {forward: web, %s}}}"
TLS = "upstreams: {web: []}\nlisteners: {db: {port: 5432, protocol: tls, stream: {%s}}}"
HTTPS = "upstreams: {web: []}\nlisteners: {web: {port: 443, protocol: https, stream: {%s}}}"
TCP = "upstreams: {web: []}\nlisteners: {db: {port: 5432, protocol: tcp, stream: {forward: web, %s}}}"
MISTAKES = [
    ("listenrs: {}", "listenrs", "did you mean `listeners`?", ""),
    ("listeners: {http: {prot: 80, port: 80}}", "listeners.http.prot", "did you mean `port`?", "http"),
    ("listeners: {http: {}}", "listeners.http", "add `port: 80`", ""),
    ("listeners: {http: {port: 70000}}", "listeners.http.port", "write 0 to 65535", ""),
    (
        "listeners: {http: {port: 80, http: {head_timout: 5s}}}",
        "listeners.http.http.head_timout",
        "`head_timeout`",
        "http",
    ),
    (
        "listeners: {http: {port: 80, http: {head_timeout: 5}}}",
        "listeners.http.http.head_timeout",
        "`head_timeout: 5s`",
        "http",
    ),
    ("listeners: {http: {port: 80, http: {max_head: -1}}}", "listeners.http.http.max_head", "`max_head: 8Mi`", "http"),
    (
        "listeners: {http: {port: 80, http: {max_headers: -1}}}",
        "listeners.http.http.max_headers",
        "write 0 or more",
        "http",
    ),
    (
        "listeners: {http: {port: 80, http: {max_headers: x}}}",
        "listeners.http.http.max_headers",
        "a whole number",
        "http",
    ),
    (
        "listeners: {http: {port: 80, http: {merge_slashes: x}}}",
        "listeners.http.http.merge_slashes",
        "or false",
        "http",
    ),
    (
        "listeners: {http: {port: 80, http: {bare_lf: no}}}",
        "listeners.http.http.bare_lf",
        "write `accept` or `reject`",
        "http",
    ),
    ("listeners: {http: {port: 80, stream: {forward: web}}}", "listeners.http.stream", "add `protocol: tcp`", ""),
    ("listeners: {db: {port: 5432, protocol: tcp}}", "listeners.db.stream", "add `forward: NAME` of an upstream", ""),
    ("listeners: {dns: {port: 53, protocol: udp}}", "listeners.dns.datagram", "add `forward: NAME` of an upstream", ""),
    ("listeners: {dns: {port: 53, datagram: {forward: web}}}", "listeners.dns.datagram", "add `protocol: udp`", ""),
    ("listeners: {dns: {port: 53, protocol: udp, http: {}}}", "listeners.dns.http", "remove `http`", ""),
    ("listeners: {dns: {protocol: udp, address: 'unix:/x'}}", "listeners.dns.address", "write an IP address", ""),
    (UDP % "retries: -1", "listeners.dns.datagram.retries", "", "dns web"),
    (UDP % "half_closed_timeout: 1s", "listeners.dns.datagram.half_closed_timeout", "", "dns web"),
    (UDP % "allow: [lan, 10.0.0.1]", "listeners.dns.datagram.allow[0]", "write one such as 10.0.0.0/8", "dns web"),
    (TCP % "names: {a: web}", "listeners.db.stream.names", "add `protocol: tls`", "web"),
    (TLS % "retries: 1", "listeners.db.stream", "add `forward: NAME` of an upstream", "web"),
    (TLS % "forward: web, names: {'*': web}", "listeners.db.stream.forward", "take one of them away", "web"),
    (TLS % "names: {a: web, B: web}", "listeners.db.stream.names.B", "write `b`", "db web"),
    (TLS % "names: {a: web, b: []}", "listeners.db.stream.names.b", "write the NAME of an upstream", "db web"),
    (TLS % "names: {a: web, b: {mode: passthrough}}", "listeners.db.stream.names.b", "add `forward", "db web"),
    (
        TLS % "names: {a: web, b: {forward: web, mode: pass}}",
        "listeners.db.stream.names.b.mode",
        "`terminate`",
        "db web",
    ),
    (TLS % "names: {a: web, b: {forward: web, alpn: [é]}}", "listeners.db.stream.names.b.alpn", "such as h2", "db web"),
    (TLS % "names: {a: [web, {forward: web, alpn: [h2]}]}", "listeners.db.stream.names.a[0]", "put it last", "db web"),
    (
        TLS % "names: {a: {forward: web, modes: x}}",
        "listeners.db.stream.names.a.modes",
        "did you mean `mode`?",
        "db web",
    ),
    (HTTPS % "forward: web", "listeners.web.stream.forward", "write `names: {NAME: UPSTREAM}`", "web"),
    (HTTPS % "names: {}", "listeners.web.stream", "add `forward: NAME` of an upstream", "web"),
    (
        HTTPS % "names: {a: web}, handshake_timeout: 1s",
        "listeners.web.stream.handshake_timeout",
        "write `head_timeout` under `http`",
        "web web",
    ),
    (
        "upstreams: {web: []}\nlisteners: {a: {port: 1, protocol: tls, stream: {names: {a: web}}, tls: {}}}",
        "listeners.a.tls",
        "add `mode: terminate`, or leave it out",
        "a web",
    ),
    (
        "upstreams: {web: []}\nlisteners: {a: {port: 1, protocol: tls, stream: {forward: web}, tls: {hsts: x}}}",
        "listeners.a.tls.hsts",
        "leave it out",
        "a web",
    ),
    (TCP % "frward: web", "listeners.db.stream.frward", "did you mean `forward`?", "db web"),
    (TCP % "retries: -1", "listeners.db.stream.retries", "", "db web"),
    (TCP % "idle_timeout: 5", "listeners.db.stream.idle_timeout", "", "db web"),
    (TCP % "allow: [10.0.0.0/8, lan]", "listeners.db.stream.allow[1]", "write one such as 10.0.0.0/8", "db web"),
    ("listeners: {db: {port: 1, protocol: tcp, http: {}}}", "listeners.db.http", "remove `http`", ""),
    ("hosts: {default: {Shop.Example.com: []}}", "hosts.default.Shop.Example.com", "write `shop.example.com`", ""),
    ("hosts: {default: {'*.A.com': []}}", "hosts.default.*.A.com", "write `*.a.com`", ""),
    ("hosts: {default: {'a.*.com': []}}", "hosts.default.a.*.com", "write `shop.example.com`", ""),
    ("hosts: {default: 5}", "hosts.default", "", ""),
    (ROUTE % "path: a, respond: 200", "hosts.default.a[0].path", "write `/a`", "other"),
    (ROUTE % "path: {exakt: /a}, respond: 200", "hosts.default.a[0].path", "did you mean `exact`?", "other"),
    (ROUTE % "path: /caf\u00e9, respond: 200", "hosts.default.a[0].path", "write `/caf%C3%A9`", "a:0 other"),
    (ROUTE % "path: /a/../b, respond: 200", "hosts.default.a[0].path", "write `/b`", "a:0 other"),
    (ROUTE % "path: /.., respond: 200", "hosts.default.a[0].path", "", "a:0 other"),
    (ROUTE % "path: /", "hosts.default.a[0]", "add `forward: NAME` of an upstream", "other"),
    (ROUTE % "respond: 200, methods: GET", "hosts.default.a[0].methods", "", "other"),
    (ROUTE % "respond: 200, methods: [G T]", "hosts.default.a[0].methods", "", "other"),
    (ROUTE % "respond: 200, headers: {X-A: 1}", "hosts.default.a[0].headers.X-A", "in quotes", "other"),
    (ROUTE % "respond: 200, headers: {X A: '1'}", "hosts.default.a[0].headers.X A", "", "other"),
    (ROUTE % "respond: 20", "hosts.default.a[0].respond.status", "write 200 to 599", "other"),
    (ROUTE % "respond: 200, name: other, path: /x", "hosts.default.a[1].name", "another `name`", "other"),
    (ROUTE % "respond: 200, retries: many", "hosts.default.a[0].retries", "", "a:0 other"),
    (ROUTE % "respond: 200, origin: 5", "hosts.default.a[0].origin", "", "other"),
    ("upstreams: {web: {balance: round-robbin}}", "upstreams.web.balance", "did you mean `round-robin`?", ""),
    ("upstreams: {web: [10.0.0.1]}", "upstreams.web[0].address", "", "web"),
    ("upstreams: {web: ['::1:80']}", "upstreams.web[0].address", "", "web"),
    ("upstreams: {web: [10.0.0.1:99999]}", "upstreams.web[0].address", "", "web"),
    ("upstreams: {web: [{address: 10.0.0.1:80, wait: 1}]}", "upstreams.web[0].wait", "did you mean `weight`?", "web"),
    (
        "upstreams: {web: {endpoints: [{address: 10.0.0.1:80, draining: 1}]}}",
        "upstreams.web.endpoints[0].draining",
        "",
        "web",
    ),
    ("upstreams: {1: []}", "upstreams", "in quotes", ""),
    ("upstreams: {web: ['backend:80']}", "upstreams.web[0].address", "`resolve`", "web"),
    ("upstreams: {web: [10.0.0.256:80]}", "upstreams.web[0].address", "10.0.0.1", "web"),
    ("upstreams: {web: ['[fe80::1%eth0]:80']}", "upstreams.web[0].address", "", "web"),
    ("upstreams: {web: ['10.0.0.1:0']}", "upstreams.web[0].address", "write 1 to 65535", "web"),
    ("upstreams: {web: [{address: 10.0.0.1, port: 0}]}", "upstreams.web[0].port", "write 1 to 65535", "web"),
    ("upstreams: {web: ['unix:']}", "upstreams.web[0].address", "", "web"),
    (f"upstreams: {{web: ['unix:/{'x' * 107}']}}", "upstreams.web[0].address", "", "web"),
    (f"upstreams: {{web: ['unix:/{'é' * 60}']}}", "upstreams.web[0].address", "", "web"),
    *(
        (f"upstreams: {{web: {{health_check: {check}}}}}", f"upstreams.web.health_check{field}", fix, "web")
        for check, field, fix in (
            ("5", "", ""),
            ("htpp", ".type", ""),
            ("{typ: tcp}", ".typ", "did you mean `type`?"),
            ("{type: http, path: healthz}", ".path", ""),
            ("{type: http, path: /a b}", ".path", ""),
            ("{type: tcp, path: /healthz}", ".path", "leave it out"),
            ("{type: http, service: shop}", ".service", "leave it out"),
            (f"{{type: grpc, service: {'é' * 513}}}", ".service", ""),
            ("{type: http, method: CONNECT}", ".method", ""),
            ("{type: http, host: 'a/b'}", ".host", ""),
            ("{type: http, headers: ['X-A']}", ".headers", ""),
            ("{type: http, headers: ['Host: a']}", ".headers", ""),
            ('{type: http, headers: ["X-A: a\\nX-B: b"]}', ".headers", ""),
            ("{type: http, headers: {X-A: b}}", ".headers", ""),
            ("{type: http, statuses: [20]}", ".statuses", ""),
            ("{type: http, statuses: ['300-200']}", ".statuses", ""),
            ("{type: http, statuses: []}", ".statuses", ""),
            ("{type: http, interval: 5}", ".interval", ""),
            ("{type: http, interval: 99ms}", ".interval", ""),
            ("{type: http, fast_interval: 0}", ".fast_interval", ""),
            ("{type: http, down_interval: 1ms}", ".down_interval", ""),
            ("{type: http, timeout: 0}", ".timeout", ""),
            ("{type: http, rise: 0}", ".rise", ""),
            ("{type: http, fall: -1}", ".fall", ""),
            ("{type: http, port: 65536}", ".port", ""),
            ("{type: http, when_all_fail: panic}", ".when_all_fail", ""),
            ("{type: http, open_flows: drop}", ".open_flows", ""),
            ("tls", ".tls", ""),
            ("{type: tls, tls: off}", ".tls", ""),
        )
    ),
    ("listeners: {http: {port: 80, address: localhost}}", "listeners.http.address", "127.0.0.1", ""),
    ("listeners: {http: {address: 'unix:'}}", "listeners.http.address", "", ""),
    ("listeners: {http: {port: 80, http: {trusted_proxies: 5}}}", "listeners.http.http.trusted_proxies", "", "http"),
]


@pytest.mark.parametrize(("text", "field", "fix", "kept"), MISTAKES)
def test_mistake_is_one_problem_and_costs_only_itself(text: str, field: str, fix: str, kept: str) -> None:
    config, problems = load(text, {field: 42})
    assert [(problem.code, problem.field, problem.origin.line) for problem in problems] == [("LB5003", field, 42)]
    assert fix in problems[0].fix
    names = [route.name for hosts in config.hosts.values() for host in hosts.values() for route in host.routes]
    assert " ".join([*config.listeners, *names, *config.upstreams]) == kept


def test_a_mistake_in_a_health_check_costs_the_whole_check() -> None:
    config, problems = load("upstreams: {web: {health_check: {type: http, path: x, rise: 0}}}")
    assert config.upstreams["web"].health_check == HealthCheck()
    assert [one.why for one in problems] == ["the endpoints are not checked"] * 2


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("tcp", HealthCheck("tcp")),
        ("off", HealthCheck()),
        ("'off'", HealthCheck()),
        ("{type: off, interval: 1s}", HealthCheck()),
        ("{}", HealthCheck("http")),
        ("{type: http, tls: off}", HealthCheck("http", tls="off")),
        ("{type: tls, tls: unverified}", HealthCheck("tls", tls="unverified")),
        (
            "{path: '/h?x=1', method: HEAD, host: a.test:80, headers: ['X-A: b'], statuses: [200, 300-399], body: ok}",
            HealthCheck("http", 0, "/h?x=1", "HEAD", "a.test:80", ("X-A: b",), (200, "300-399"), "ok"),
        ),
        (
            "{type: grpc, service: shop.v1, port: 81, interval: 2s, fast_interval: 500ms, down_interval: 10s,"
            " timeout: 250ms, rise: 1, fall: 2, when_all_fail: refuse, open_flows: reset}",
            HealthCheck(
                "grpc", 81, service="shop.v1", interval_ms=2_000, fast_interval_ms=500, down_interval_ms=10_000,
                timeout_ms=250, rise=1, fall=2, when_all_fail="refuse", open_flows="reset",
            ),
        ),
    ],
)  # fmt: skip
def test_health_checks(text: str, check: HealthCheck) -> None:
    config, problems = load(f"upstreams: {{web: {{health_check: {text}}}}}")
    assert problems == []
    assert config.upstreams["web"].health_check == check


def test_a_health_check_over_the_upstreams_own_tls() -> None:
    config, problems = load("upstreams: {web: {health_check: tls, tls: {server_name: a.test}}}")
    assert problems == []
    assert config.upstreams["web"].health_check == HealthCheck("tls")


@pytest.mark.parametrize(("protocol", "codes"), [("http2", ["LB5013"]), ("auto", []), ("http1", [])])
def test_http2_gives_way_to_the_proxy_protocol(protocol: str, codes: list[str]) -> None:
    config, problems = load(f"upstreams: {{web: {{protocol: {protocol}, proxy_protocol: v1}}}}")
    assert [one.code for one in problems] == codes
    assert (config.upstreams["web"].protocol, config.upstreams["web"].proxy_protocol) == ("http1", "v1")


@pytest.mark.parametrize(
    ("text", "values", "codes"),
    [
        ("proxy_protocol: v2, proxy_values: [ssl, alpn, ssl]", ("ssl", "alpn"), []),
        ("proxy_protocol: v2, proxy_values: [ssl, tls]", ("ssl",), ["LB5003"]),
        ("proxy_protocol: v1, proxy_values: [ssl]", (), ["LB5003"]),
        ("proxy_values: [ssl]", (), ["LB5003"]),
    ],
)
def test_what_a_proxy_header_tells(text: str, values: tuple[str, ...], codes: list[str]) -> None:
    config, problems = load(f"upstreams: {{web: {{{text}}}}}")
    assert config.upstreams["web"].proxy_values == values
    assert [one.code for one in problems] == codes


def test_http2_gives_way_to_transparency() -> None:
    config, problems = load("upstreams: {web: {protocol: http2, transparent: true}}")
    assert [one.code for one in problems] == ["LB5013"]
    assert (config.upstreams["web"].protocol, config.upstreams["web"].transparent) == ("http1", True)


def test_reference_to_nothing_is_reported_and_the_route_stays() -> None:
    config, problems = load("hosts: {default: {a: [{forward: wbe}]}}\nupstreams: {web: []}", {"hosts.default.a": 7})
    assert [(one.code, one.origin.line, one.fix) for one in problems] == [("LB5004", 7, "did you mean `web`?")]
    assert problems[0].field == "hosts.default.a[0].forward"
    assert len(config.hosts["default"]["a"].routes) == 1


def test_reference_to_what_is_defined_elsewhere_is_no_problem() -> None:
    content = yaml.safe_load("hosts: {default: {a: [{forward: web}, {forward: api}]}}")
    _, problems = from_content(content, FILE, None, lambda name: name == "web")
    assert [(one.code, one.field) for one in problems] == [("LB5004", "hosts.default.a[1].forward")]
    assert "NAMESPACE/SERVICE:PORT" in problems[0].fix


def test_wrong_network_costs_only_itself() -> None:
    networks = "[10.0.0.0/8, proxy, 10.0.0.0/33, 5, 'fe80::%1/64', '::1']"
    text = f"listeners: {{http: {{port: 80, http: {{trusted_proxies: {networks}}}}}}}"
    field = "listeners.http.http.trusted_proxies"
    config, problems = load(text, {field: 3, f"{field}[1]": 5})
    assert config.listeners["http"].http.trusted_proxies == ("10.0.0.0/8", "::1")
    assert [(one.code, one.field, one.origin.line) for one in problems] == [
        ("LB5003", f"{field}[{index}]", 5 if index == 1 else 3) for index in (1, 2, 3, 4)
    ]
    assert "10.0.0.0/8" in problems[0].fix


def test_a_list_of_clients_of_which_nobody_is_left_lets_in_nobody() -> None:
    config, problems = load(TCP % "allow: [lan, wan]", {})
    assert [one.field for one in problems] == [
        "listeners.db.stream.allow[0]", "listeners.db.stream.allow[1]", "listeners.db.stream.allow",
    ]  # fmt: skip
    assert config.listeners == {}


def test_networks_of_proxies_of_which_none_is_left_take_nobody_for_a_client() -> None:
    config, problems = load(TCP % "proxy_protocol: [lan]", {})
    assert "db" not in config.listeners
    assert [one.field for one in problems] == [
        "listeners.db.stream.proxy_protocol[0]",
        "listeners.db.stream.proxy_protocol",
    ]


def test_names_in_their_short_and_long_forms() -> None:
    config, problems = load(
        TLS % "forward: web, names: {a: web, '*.b': [{forward: {web: 2}, alpn: [h2]}, {forward: web, name: x}]}", {}
    )
    assert problems == []
    stream = config.listeners["db"].stream
    assert stream is not None
    assert {name: [(one.name, one.mode, one.alpn) for one in routes] for name, routes in stream.names.items()} == {
        "a": [("db/a", "passthrough", ())],
        "*.b": [("db/*.b", "passthrough", ("h2",)), ("x", "passthrough", ())],
        "*": [("db", "terminate", ())],
    }
    assert config.listeners["db"].terminates
    written = yaml.safe_load(to_text(config))["listeners"]["db"]["stream"]["names"]
    assert written["a"] == "web"


def test_a_host_whose_name_is_passed_through_is_told() -> None:
    hosts = "hosts: {default: {a: [{forward: web}], b: [{forward: web}], c: [{forward: web}]}}"
    names = "names: {a: web, b: {forward: web, alpn: [acme-tls/1]}, '*': web}"
    _, problems = load(f"{HTTPS % names}\n{hosts}", {})
    assert [(problem.code, problem.field) for problem in problems] == [("LB5014", "listeners.web.stream.names.a")]


def test_a_stream_comes_from_its_listener_unless_it_says_otherwise() -> None:
    config, problems = load(TCP % "name: db/primary, origin: TCPRoute db/primary (db.yaml:7:1)", {})
    assert problems == []
    stream = config.listeners["db"].stream
    assert stream == Stream(
        StreamRoute(
            "db/primary",
            Forward((WeightedUpstream("web"),)),
            Origin("TCPRoute", "db", "primary", "db.yaml", 7, 1),
        )
    )
    config, _ = load(TCP % "retries: 0", {})
    assert config.listeners["db"].stream is not None
    assert config.listeners["db"].stream.route.origin == config.listeners["db"].origin
    assert config.listeners["db"].stream.options == StreamOptions(retries=0)


def test_datagrams_and_connections_may_share_a_port() -> None:
    config, problems = load(
        "upstreams: {dns: []}\n"
        "listeners:\n"
        "  dns: {port: 53, protocol: udp, datagram: {forward: dns, responses: 1, max_sessions: 9}}\n"
        "  dns-tcp: {port: 53, protocol: tcp, stream: {forward: dns}}",
        {},
    )
    assert problems == []
    dns = config.listeners["dns"]
    route = StreamRoute("dns", Forward((WeightedUpstream("dns"),)), dns.origin)
    assert dns.datagram == Datagram(route, DatagramOptions(responses=1, max_sessions=9))
    assert [(one.bind, one.transport, one.carries is not None) for one in config.listeners.values()] == [
        ("*:53/udp", "udp", True),
        ("*:53", "tcp", True),
    ]


@pytest.mark.parametrize("address", ["10.0.0.1:1", "[fd00::1]:65535", "[::ffff:10.0.0.1]:80", f"unix:/{'x' * 106}"])
def test_addresses_at_the_edge_are_taken(address: str) -> None:
    config, problems = load(f"upstreams: {{web: ['{address}']}}", {})
    assert problems == []
    assert [one.key for one in config.upstreams["web"].endpoints] == [address]
