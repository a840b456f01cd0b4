"""`lb explain`: golden texts, JSON, and asking a daemon."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import yaml
from click.testing import Result

from lb.model.ask import make_ask
from lb.model.explain import explain
from lb.model.text import from_content
from lb.problems import Origin

Lb = Callable[..., Result]
Golden = Callable[[str, str], None]

CASES = {
    "explain-ingress.txt": ["http://shop.example.com/healthz", "shop.yaml", "export.json"],
    "explain-json-source.txt": ["http://blog.example.com/", "export.json"],
    "explain-weights.txt": ["http://old.example.com:8080/v1", "lb.yaml", "-H", "X-Canary: 1", "--from", "192.0.2.1"],
    "explain-method.txt": ["http://old.example.com:8080/v1/%61//b?x", "lb.yaml", "-X", "HEAD"],
    "explain-respond.txt": ["http://old.example.com:8080/v1", "lb.yaml", "-X", "PUT"],
    "explain-no-listener.txt": ["http://old.example.com/", "two-ports.yaml"],
    "explain-other-port.txt": ["https://old.example.com/v2", "lb.yaml"],
    "explain-published.txt": ["http://one.example.com:8443/", "two-ports.yaml", "--publish", "81=127.0.0.1:8443"],
    "explain-published-by-settings.txt": ["http://one.example.com:8444/", "-c", "two-ports.yaml"],
    "explain-no-host.txt": ["http://a.b.example.com/", "shop.yaml"],
    "explain-tcp.txt": ["tcp://192.0.2.1:5432", "tcp.yaml", "--from", "10.0.0.1"],
    "explain-bad-target.txt": ["http://shop.example.com/a%2fb", "shop.yaml"],
    "explain-tls.txt": ["https://web.example.com/", "../../golden/client-certificates.in.yaml"],
    "explain-tls-nobody.txt": ["https://missing.example.com/", "../../golden/client-certificates.in.yaml"],
    "explain-tls-endpoints.txt": ["http://all.example.com/b-all", "../../golden/backend-tls.in.yaml"],
}


@pytest.mark.parametrize("name", CASES)
def test_text(lb: Lb, golden: Golden, name: str) -> None:
    result = lb("explain", *CASES[name])
    assert result.exit_code == 0
    golden(name, result.stdout)


def test_json_has_everything(lb: Lb) -> None:
    told = json.loads(lb("explain", "http://shop.example.com/api/x", "shop.yaml", "--json").stdout)
    assert (told["status"], told["reason"]) == (503, "no-endpoint")
    winner = next(step for step in told["routes"] if step["verdict"] == "won")
    assert winner["source"] == {
        "object": "Ingress shop/web",
        "file": "shop.yaml",
        "line": 1,
        "column": 1,
        "field": "spec.rules[0].http.paths[1]",
    }


CONTENDERS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: NAME, namespace: shop, creationTimestamp: "CREATED"}
spec:
  ingressClassName: CLASS
  rules:
  - host: one.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
"""


DEFAULTED = """
apiVersion: lb/v1
kind: Config
settings:
  defaults:
    http: {max_headers: 7}
    route: {response_timeout: 3s}
    stream: {max_connections_per_client: 9, idle_timeout: 20s}
    datagram: {responses: 1}
    upstream: {connect_timeout: 700ms, slow_start: 1m}
listeners:
  http: {port: 80}
  db: {port: 5432, protocol: tcp, stream: {forward: db, idle_timeout: 10m, retries: 1}}
  dns: {port: 53, protocol: udp, datagram: {forward: db}}
hosts: {default: {a.test: [{forward: db, retries: 0}]}}
upstreams: {db: {slow_start: 0, endpoints: ["10.0.0.1:80"]}}
"""


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "tcp://192.0.2.1:5432",
            {
                "max_connections_per_client": ("9", "settings defaults.stream"),
                "idle_timeout": ("10m", "listener db"),
                "retries": ("1", "listener db"),
                "half_closed_timeout": ("2m", "built in"),
                "upstream.connect_timeout": ("700ms", "settings defaults.upstream"),
            },
        ),
        ("udp://192.0.2.1:53", {"responses": ("1", "settings defaults.datagram"), "idle_timeout": ("2m", "built in")}),
        (
            "http://a.test/",
            {
                "response_timeout": ("3s", "settings defaults.route"),
                "retries": ("0", "route a.test:0"),
                "max_headers": ("7", "settings defaults.http"),
                "head_timeout": ("10s", "built in"),
            },
        ),
    ],
)
def test_each_option_names_its_source(lb: Lb, tmp_path: Path, url: str, expected: dict[str, tuple[str, str]]) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(DEFAULTED)
    told = json.loads(lb("explain", url, "-c", str(path), "--json").stdout)["options"]
    found = {one["name"]: (one["value"], one["set_by"]) for one in told}
    assert {name: found[name] for name in expected} == expected


def test_rules_that_were_left_out_are_told(lb: Lb, tmp_path: Path) -> None:
    contenders = [
        ("first", "2024-01-01T00:00:00Z", "lb"),
        ("second", "2024-02-01T00:00:00Z", "lb"),
        ("third", "", "other"),
    ]
    texts = []
    for name, created, of_class in contenders:
        text = CONTENDERS.replace("NAME", name).replace("CLASS", of_class)
        texts.append(
            text.replace("CREATED", created) if created else text.replace(', creationTimestamp: "CREATED"', "")
        )
    path = tmp_path / "contenders.yaml"
    path.write_text("---".join(texts))
    options = (str(path), "--class", "lb", "--json")
    third, second = json.loads(lb("explain", "http://one.example.com/", *options).stdout)["notes"]
    assert second.startswith("not served: Ingress shop/second: ")
    assert "(LB3004)" in second
    assert third.startswith("not served: Ingress shop/third: ")
    assert "(LB2003)" in third
    assert "notes" not in json.loads(lb("explain", "http://two.example.com/", *options).stdout)


UNHEARD = """
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  type: LoadBalancer
  ports: [{name: sql, port: 5432}, {name: dns, port: 53, protocol: UDP}, {name: x, port: 5000, protocol: SCTP}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: tcp, namespace: shop}
data: {"7001": nonsense}
---
apiVersion: v1
kind: Service
metadata: {name: typo, namespace: shop}
spec: {type: Loadbalancer, ports: [{port: 7003}]}
"""
NO_CLASS = "not served: Service shop/db: Service shop/db of type LoadBalancer has no class, and nobody asks lb"


@pytest.mark.parametrize(
    ("url", "option", "note"),
    [
        ("tcp://a:5432", "", NO_CLASS),
        ("udp://a:53", "", NO_CLASS),
        ("tcp://a:53", "", ""),
        ("tcp://a:5000", "--load-balancers", "not served: Service shop/db: port 5000 of Service shop/db is SCTP"),
        ("tcp://a:7001", "--load-balancers", "not served: ConfigMap shop/tcp: 'nonsense' is not like"),
        ("tcp://a:7002", "--load-balancers", ""),
        ("tcp://a:7003", "--load-balancers", "not served: Service shop/typo: "),
        ("tcp://a:5432", "--load-balancers", ""),
    ],
)
def test_why_nothing_listens_is_told(lb: Lb, url: str, option: str, note: str) -> None:
    options = [option] if option else []
    result = lb("explain", url, "-", "--tcp-services", "shop/tcp", "--json", *options, input=UNHEARD)
    notes = [one for one in json.loads(result.stdout).get("notes", ()) if "not served" in one]
    assert [one[: len(note)] for one in notes] == ([note] if note else [])


def test_a_file_that_cannot_be_read_is_told(lb: Lb) -> None:
    result = lb("explain", "http://one.example.com/", "no-such.yaml")
    assert "lb explain: no-such.yaml cannot be read" in result.stderr


def test_many_losers_are_folded(lb: Lb) -> None:
    routes = ", ".join(f"{{path: /a{number}, respond: 200}}" for number in range(30))
    file = (
        f"apiVersion: lb/v1\nkind: Config\nlisteners: {{http: {{port: 80}}}}\nhosts: {{default: {{a: [{routes}]}}}}\n"
    )
    lines = lb("explain", "http://a/a29", "-", input=file).stdout.splitlines()
    assert sum("path does not match" in line for line in lines) == 12 + 1
    assert any("… 17 more whose path does not match" in line for line in lines)
    assert any("✓ a:29" in line for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ftp://a", "lb.yaml"],
        ["http://a", "lb.yaml", "--publish", "80"],
        ["http://a", "--live", "s", "--publish", "80=:81"],
        ["http://a", "lb.yaml", "-H", "x"],
        ["http://a", "lb.yaml", "--live", "s"],
        [],
    ],
)
def test_wrong_usage_exits_with_2(lb: Lb, arguments: list[str]) -> None:
    assert lb("explain", *arguments).exit_code == 2


FAILED = {"ejected_for_ms": 6_500, "failures_in_row": 3, "last_failure": "no answer in time"}


class _Admin(http.server.BaseHTTPRequestHandler):
    """Answers /v1/explain as the daemon does."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        content = yaml.safe_load((Path(__file__).parent / "inputs/lb.yaml").read_text())
        config, _ = from_content(content, Origin(file="lb.yaml"))
        ask = make_ask(query["url"][0], query["method"][0], query.get("header", []), query.get("client", [""])[0])
        states = {"old": [{"key": "[fd00::3]:80", "state": "ejected", "weight": 1, "active": 2, **FAILED}]}
        body = msgspec.json.encode(explain(config, ask, states)) if parts.path == "/v1/explain" else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "client"

    def log_message(self, *arguments: object) -> None:
        """Nothing: the test's output is the CLI's."""


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@pytest.fixture
def admin_socket(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "admin.sock")
    with _Server(path, _Admin) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def test_daemon_is_asked_without_paths(lb: Lb, admin_socket: str) -> None:
    result = lb("explain", "http://old.example.com:8080/v1", "--live", admin_socket, "-H", "X-A: 1")
    assert result.exit_code == 0
    assert "[fd00::3]:80 ejected, 7 s left (3 connections failed: no answer in time), 2 active" in result.stdout
    assert "forwarded: an endpoint answers: none is ready" in result.stdout


def test_mistakes_in_the_request_are_told_before_the_daemon_is_asked(lb: Lb, admin_socket: str) -> None:
    result = lb("explain", "ftp://shop", "--live", admin_socket)
    assert result.exit_code == 2
    assert "lb serves http, https, ws, wss, tcp, udp, tls, not ftp" in result.stderr
    assert result.stderr.startswith("Usage: lb explain ")


def test_no_daemon_is_told(lb: Lb, tmp_path: Path) -> None:
    result = lb("explain", "http://a/", "--live", str(tmp_path / "absent.sock"))
    assert result.exit_code == 2
    assert result.stderr.startswith("lb explain: no daemon: ")
    assert "does not exist" in result.stderr
