"""Active health checks through a running lb: flips under load, changes meanwhile, and everything that tells of them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.certificates import Authority
from tests.harness.client import get
from tests.harness.load import Load
from tests.harness.native import Native
from tests.harness.ports import free_port
from tests.harness.process import LbProcess
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE, wait_until
from tests.health.servers import GrpcHealth, http2, server_tls
from tests.health.servers import serving as server

CHECK: dict[str, Any] = {"type": "http", "path": "/healthz", "interval": "100ms", "fast_interval": "100ms"}


class Patient(RawBackend):
    """A backend that can fall ill: its health checks and its requests are answered as it is told."""

    def __init__(self, name: str, port: int = 0) -> None:
        self.name = name
        self.health = 200
        self.status = 200
        self.may_tell = threading.Event()
        """Whether health checks are answered at all."""
        self.may_tell.set()
        self.served: Counter[str] = Counter()
        """Requests that are no health checks, by host."""
        super().__init__(self._answer, port=port)

    def _answer(self, connection: BackendConnection) -> None:
        while (request := connection.read()) is not None:
            if request.target == b"/healthz":
                self.may_tell.wait(DEADLINE)
                connection.send(b"HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n" % self.health)
                continue
            self.served[dict(request.headers).get(b"Host", b"").decode()] += 1
            head = f"HTTP/1.1 {self.status} x\r\nX-Backend: {self.name}\r\nContent-Length: {len(self.name)}\r\n\r\n"
            connection.send(head.encode() + self.name.encode())


Patients = dict[str, Patient]


@pytest.fixture(scope="module")
def patients() -> Iterator[Patients]:
    made = {name: Patient(name) for name in "abc"}
    yield made
    for one in made.values():
        one.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, patients: Patients) -> Iterator[Serving]:
    native = Native()
    native.serve("shop.test", *patients.values(), health_check=CHECK)
    with serving(tmp_path_factory.mktemp("health"), native) as started:
        yield started


@pytest.fixture(autouse=True)
def well(patients: Patients) -> Iterator[None]:
    yield
    for one in patients.values():
        one.health = one.status = 200
        one.may_tell.set()


def states(lb: LbProcess, upstream: str) -> dict[str, str]:
    """What balancing sees, by endpoint."""
    return {one["endpoint"]: one["state"] for one in lb.get(f"/v1/upstreams/{upstream}")["endpoints"]}


def wait_state(site: Serving, patient: Patient, state: str, upstream: str = "shop.test") -> None:
    wait_until(lambda: states(site.lb, upstream)[patient.key] == state, f"{patient.name} is {state}", interval=0.02)


def wait_all_ready(site: Serving, upstream: str) -> None:
    def ready() -> bool:
        endpoints = site.lb.get(f"/v1/upstreams/{upstream}")["endpoints"]
        return all(one["state"] == "ready" and one["health"]["state"] == "healthy" for one in endpoints)

    wait_until(ready, f"all of {upstream} are healthy", interval=0.02)


def names(site: Serving, host: str, count: int) -> Counter[str]:
    with site.connect() as client:
        return Counter(client.ask(get(host)).body.decode() for _ in range(count))


def test_no_request_fails_on_an_endpoint_that_is_known_to_be_ill(site: Serving, patients: Patients) -> None:
    wait_all_ready(site, "shop.test")
    ill = patients["b"]
    generation = site.lb.generation
    with Load(site.address(), get("shop.test"), connections=16, pause=0.001) as load:
        for _ in range(3):
            ill.health = 503
            wait_state(site, ill, "unhealthy")
            load.wait_for_progress()  # what was on its way before has arrived
            before = ill.served.total()
            ill.status = 500
            load.wait_for_progress(300)
            assert ill.served.total() == before
            ill.status = ill.health = 200
            wait_state(site, ill, "ready")
            wait_until(lambda seen=before: ill.served.total() > seen, "it gets requests again")
    load.assert_perfect()
    assert set(load.backends) == {"a", "b", "c"}
    assert site.lb.generation == generation, "a flip compiles nothing"


def test_changes_of_the_configuration_forget_nothing(site: Serving, patients: Patients) -> None:
    wait_all_ready(site, "shop.test")
    ill = patients["c"]
    ill.health, ill.status = 503, 500
    wait_state(site, ill, "unhealthy")
    since = health_of(site.lb, "shop.test", ill)["since"]
    before = ill.served.total()
    with Load(site.address(), get("shop.test"), connections=8, pause=0.001) as load:
        for number in range(1, 8):
            targets = [{"address": one.key, "weight": 1 + number % 3} for one in patients.values()]
            site.native.upstream(
                "shop.test", targets, health_check=CHECK, balance=["round-robin", "least-connections"][number % 2]
            )
            site.native.serve(f"extra-{number}.test", patients["a"])
            site.apply()
        site.lb.ctl("reload")
        load.wait_for_progress(100)
    load.assert_perfect()
    assert ill.served.total() == before
    known = health_of(site.lb, "shop.test", ill)
    assert (known["state"], known["since"]) == ("unhealthy", since)


def health_of(lb: LbProcess, upstream: str, patient: Patient) -> dict[str, Any]:
    endpoints = lb.get(f"/v1/upstreams/{upstream}")["endpoints"]
    (health,) = (one["health"] for one in endpoints if one["endpoint"] == patient.key)
    assert isinstance(health, dict)
    return health


def test_one_that_joins_waits_for_its_first_check(site: Serving, patients: Patients) -> None:
    a, b, c = patients.values()
    site.native.serve("join.test", a, health_check={**CHECK, "timeout": "20s"})
    site.apply()
    wait_all_ready(site, "join.test")
    b.may_tell.clear()
    c.health = 503
    site.native.upstream("join.test", [a, b, c], health_check={**CHECK, "timeout": "20s"})
    site.apply()
    wait_state(site, c, "unhealthy", "join.test")
    assert states(site.lb, "join.test")[b.key] == "untested"
    assert names(site, "join.test", 20) == {"a": 20}
    # Nobody else is left: then it serves, known or not.
    site.lb.ctl("drain", "join.test", a.key)
    assert names(site, "join.test", 20) == {"b": 20}
    site.lb.ctl("ready", "join.test", a.key)
    b.may_tell.set()
    wait_state(site, b, "ready", "join.test")
    assert names(site, "join.test", 20) == {"a": 10, "b": 10}


def test_those_that_come_when_nobody_was_there_serve_at_once(site: Serving, patients: Patients) -> None:
    a, b, _ = patients.values()
    for one in (a, b):
        one.may_tell.clear()
    site.native.serve("first.test", a, b, health_check={**CHECK, "host": "first.test"})
    site.apply()
    assert names(site, "first.test", 20) == {"a": 10, "b": 10}
    known = health_of(site.lb, "first.test", a)
    assert (known["state"], known["result"], known["checked_at"]) == ("untested", "", 0)


def test_when_all_fail(site: Serving, patients: Patients) -> None:
    """The choice is the upstream's; by default a check that is wrong about all of them takes nothing down."""
    for one in patients.values():
        one.health = 503
    site.native.serve("open.test", *patients.values(), health_check=CHECK)
    site.native.serve("closed.test", *patients.values(), health_check={**CHECK, "when_all_fail": "refuse"})
    site.apply()
    for one in patients.values():
        wait_state(site, one, "unhealthy", "open.test")
        wait_state(site, one, "unhealthy", "closed.test")
    assert names(site, "open.test", 30) == {"a": 10, "b": 10, "c": 10}
    before = site.lb.metric("lb_exchange_end_total", reason="no-healthy-endpoint")
    with site.connect() as client:
        answer = client.ask(get("closed.test", "/", "Accept: application/json"))
    assert (answer.status, json.loads(answer.body)["reason"]) == (503, "no-healthy-endpoint")
    assert site.lb.metric("lb_exchange_end_total", reason="no-healthy-endpoint") == before + 1
    site.lb.wait_log(1, reason="no-healthy-endpoint", status=503, upstream="closed.test")
    told = site.lb.get(f"/v1/explain?url=http://closed.test:{site.address()[1]}/")
    assert (told["status"], told["reason"]) == (503, "no-healthy-endpoint")
    told = site.lb.get(f"/v1/explain?url=http://open.test:{site.address()[1]}/")
    assert told["reason"] == "ok"
    assert "all endpoints of open.test fail their health checks, so they serve all the same" in told["notes"]
    # One that recovers gets everything.
    patients["c"].health = 200
    wait_state(site, patients["c"], "ready", "open.test")
    wait_state(site, patients["c"], "ready", "closed.test")
    assert names(site, "open.test", 12) == names(site, "closed.test", 12) == {"c": 12}


def test_a_retry_does_not_go_to_those_who_are_ill(site: Serving, patients: Patients) -> None:
    """Fail-open is for when all fail, not for a request whose healthy endpoint has just failed."""
    gone = Patient("gone")
    ill = patients["a"]
    ill.health = 503
    patience = {**CHECK, "interval": "1h", "fast_interval": "1h", "down_interval": "1h"}
    site.native.serve("retry.test", ill, gone, health_check={**patience, "host": "retry.test"})
    site.apply()
    wait_state(site, ill, "unhealthy", "retry.test")
    wait_until(lambda: health_of(site.lb, "retry.test", gone)["state"] == "healthy", "the other one is healthy")
    gone.close()
    gone.drop_connections()
    with site.connect() as client:
        assert client.ask(get("retry.test")).status == 502
    assert ill.served["retry.test"] == 0


def test_what_checks_find_is_told_everywhere(site: Serving, patients: Patients) -> None:
    ill = patients["a"]
    site.native.serve("told.test", *patients.values(), health_check=CHECK)
    site.apply()
    wait_all_ready(site, "told.test")
    ill.health = 503
    wait_state(site, ill, "unhealthy", "told.test")
    (upstream,) = (one for one in site.lb.get("/v1/upstreams")["items"] if one["name"] == "told.test")
    assert (upstream["endpoints_ready"], upstream["endpoints_unhealthy"]) == (2, 1)
    assert upstream["health_check"] == "http GET /healthz every 100ms"
    known = health_of(site.lb, "told.test", ill)
    assert (known["state"], known["result"], known["why"]) == ("unhealthy", "wrong-status", "status 503")
    shown = site.lb.ctl("upstreams", "told.test")
    assert "health check: http GET /healthz every 100ms" in shown
    assert [line.partition("unhealthy for ")[2][-10:] for line in shown.splitlines() if ill.key in line] == [
        "status 503"
    ]
    assert "1 unhealthy" in site.lb.ctl("upstreams")
    told = site.lb.get(f"/v1/explain?url=http://told.test:{site.address()[1]}/")
    (endpoint,) = (one for one in told["upstreams"][0]["endpoints"] if one["key"] == ill.key)
    assert endpoint["state"] == "unhealthy"
    assert endpoint["health"].endswith("s: status 503")
    labels = {"upstream": "told.test", "endpoint": ill.key}
    assert site.lb.metric("lb_endpoint_healthy", **labels) == 0
    assert site.lb.metric("lb_endpoint_up", **labels) == 0
    assert site.lb.metric("lb_endpoint_healthy", upstream="told.test") == 2
    assert site.lb.metric("lb_health_checks_total", result="wrong-status") >= 3
    assert site.lb.metric("lb_health_checks_total", result="passed") > 0
    assert site.lb.metric("lb_health_changes_total", upstream="told.test", state="unhealthy") == 1
    lines = [json.loads(line) for line in site.lb.stderr.splitlines() if line.startswith("{")]
    flips = [one for one in lines if one["event"] == "endpoint is unhealthy" and "told.test" in one["upstreams"]]
    assert [(one["endpoint"], one["why"], one["level"]) for one in flips] == [(ill.key, "status 503", "warning")]


def test_an_operators_word_stands_above_what_checks_say(site: Serving, patients: Patients) -> None:
    a, b, c = patients.values()
    site.native.serve("word.test", a, b, c, health_check=CHECK)
    site.apply()
    wait_all_ready(site, "word.test")
    a.health = 503
    wait_state(site, a, "unhealthy", "word.test")
    site.lb.ctl("drain", "word.test", a.key)
    assert states(site.lb, "word.test")[a.key] == "drain"
    site.lb.ctl("ready", "word.test", a.key)
    assert states(site.lb, "word.test")[a.key] == "unhealthy", "checks have gone on"
    site.lb.ctl("weight", "word.test", a.key, "9")
    assert set(names(site, "word.test", 20)) == {"b", "c"}, "weight is nothing against health"
    site.lb.ctl("down", "word.test", b.key)
    assert set(names(site, "word.test", 10)) == {"c"}
    a.health = 200
    wait_state(site, a, "ready", "word.test")
    assert names(site, "word.test", 20) == {"a": 18, "c": 2}


def test_an_endpoint_that_is_back_is_no_longer_ejected(site: Serving) -> None:
    port = free_port()
    kept = Patient("kept")
    site.native.serve("back.test", kept, f"127.0.0.1:{port}", health_check=CHECK)
    site.apply()
    key = f"127.0.0.1:{port}"
    wait_until(lambda: states(site.lb, "back.test")[key] == "unhealthy", "nobody is there")
    # All fail, so that requests go where nobody is, until it is ejected as well.
    kept.health = 503
    wait_state(site, kept, "unhealthy", "back.test")
    site.lb.ctl("drain", "back.test", kept.key)
    with site.connect() as client:
        for _ in range(3):
            assert client.ask(get("back.test")).status == 502
    (one,) = (one for one in site.lb.get("/v1/upstreams/back.test")["endpoints"] if one["endpoint"] == key)
    assert one["ejected_for_ms"] > 0
    with Patient("back", port) as back:
        wait_state(site, back, "ready", "back.test")
        (one,) = (one for one in site.lb.get("/v1/upstreams/back.test")["endpoints"] if one["endpoint"] == key)
        assert one["ejected_for_ms"] == 0
        assert names(site, "back.test", 5) == {"back": 5}
        site.native.hosts.pop("back.test")
        site.native.upstreams.pop("back.test")
        site.apply()
    kept.close()


def test_connections_that_are_kept_end_when_their_endpoint_falls_ill(site: Serving) -> None:
    with Patient("x") as ill, Patient("y") as well:
        site.native.serve("kept.test", ill, well, health_check=CHECK)
        site.apply()
        wait_all_ready(site, "kept.test")
        assert names(site, "kept.test", 4) == {"x": 2, "y": 2}

        def idle(key: str) -> float:
            return site.lb.metric("lb_endpoint_connections_idle", upstream="kept.test", endpoint=key)

        assert idle(ill.key) > 0
        ill.health = 503
        wait_state(site, ill, "unhealthy", "kept.test")
        wait_until(lambda: idle(ill.key) == 0, "they are closed")
        assert idle(well.key) > 0


def test_a_check_that_is_taken_away_brings_its_endpoints_back(site: Serving, patients: Patients) -> None:
    a, b, _ = patients.values()
    a.health = 503
    site.native.serve("off.test", a, b, health_check=CHECK)
    site.apply()
    wait_state(site, a, "unhealthy", "off.test")
    site.native.upstream("off.test", [a, b])
    site.apply()
    assert states(site.lb, "off.test") == {a.key: "ready", b.key: "ready"}
    assert site.lb.metric("lb_endpoint_healthy", upstream="off.test") == 0
    assert names(site, "off.test", 10) == {"a": 5, "b": 5}


def test_the_other_kinds_of_checks(site: Serving) -> None:
    """As they are configured in files, on servers of the real kind."""
    authority = Authority()
    pair = authority.issue("inner.test")
    tls = {"server_name": "inner.test", "ca": authority.pem}
    fast = {"interval": "100ms", "fast_interval": "100ms"}
    with (
        GrpcHealth() as calls,
        server(http2(200, b"fine")) as plain,
        server(http2(200), server_tls(pair, "h2")) as secure,
    ):
        calls.set("shop.v1", "SERVING")
        key = f"127.0.0.1:{calls.port}"
        native = site.native
        native.upstream("calls", [key], protocol="http2", health_check={"type": "grpc", "service": "shop.v1", **fast})
        native.upstream("h2", [plain], protocol="http2", health_check={"type": "http2", "body": "fine", **fast})
        native.upstream("h2-tls", [secure], protocol="http2", tls=tls, health_check={"type": "http2", **fast})
        native.upstream("tls", [secure], protocol="http2", tls=tls, health_check={"type": "tls", **fast})
        native.upstream("tcp", [plain], health_check={"type": "tcp", **fast})
        native.upstream(
            "stranger", [secure], tls={"server_name": "other.test", "ca": authority.pem}, health_check="tls"
        )
        site.apply()
        for name in ("calls", "h2", "h2-tls", "tls", "tcp"):
            wait_all_ready(site, name)
        wait_until(lambda: set(states(site.lb, "stranger").values()) == {"unhealthy"}, "it is not trusted")
        (one,) = site.lb.get("/v1/upstreams/stranger")["endpoints"]
        assert (one["health"]["result"], "mismatch" in one["health"]["why"]) == ("tls-failed", True)
        calls.set("shop.v1", "NOT_SERVING")
        wait_until(lambda: states(site.lb, "calls") == {key: "unhealthy"}, "it does not serve")
        (one,) = site.lb.get("/v1/upstreams/calls")["endpoints"]
        assert (one["health"]["result"], one["health"]["why"]) == ("not-serving", "NOT_SERVING")
        calls.set("shop.v1", "SERVING")
        wait_all_ready(site, "calls")
        for name in ("calls", "h2", "h2-tls", "tls", "tcp", "stranger"):
            native.upstreams.pop(name)
        site.apply()


def test_services_are_checked_as_their_annotations_and_the_settings_say(tmp_path: Path) -> None:
    with Patient("a") as one, Patient("b") as other:
        other.health = 503
        objects, settings = tmp_path / "objects.yaml", tmp_path / "lb.yaml"
        objects.write_text(
            "".join(SERVICE.format(name=name, port=port, annotations=annotations) for name, port, annotations in (
                ("by-default", free_port(), "{}"),
                ("by-annotation", other.port, "{lb/health-check: http, lb/health-check-path: /healthz}"),
                ("not-at-all", free_port(), "{lb/health-check: 'off'}"),
            ))
        )  # fmt: skip
        settings.write_text(
            "apiVersion: lb/v1\nkind: Config\n"
            "settings: {defaults: {health_check: {type: tcp, interval: 100ms, fast_interval: 100ms}}}\n"
            f"listeners: {{http: {{address: 127.0.0.1, port: {free_port()}, host_set: ingress}}}}\n"
            "hosts: {ingress: {h: ["
            + ", ".join(
                f"{{path: /{name}, forward: shop/{name}:80}}" for name in ("by-default", "by-annotation", "not-at-all")
            )
            + "]}}\n"
        )
        with LbProcess([objects], tmp_path / "lb", "-c", str(settings)) as lb:
            found = {}
            for name in ("by-default", "by-annotation"):
                wait_until(lambda of=name: "unhealthy" in states(lb, f"shop/{of}:80").values(), f"{name} is unhealthy")
                (endpoint,) = lb.get(f"/v1/upstreams/shop/{name}:80")["endpoints"]
                found[name] = endpoint["health"]["result"]
            assert found == {"by-default": "refused", "by-annotation": "wrong-status"}
            (endpoint,) = lb.get("/v1/upstreams/shop/not-at-all:80")["endpoints"]
            assert (endpoint["state"], endpoint["health"]) == ("ready", None)
        assert one.served.total() == other.served.total() == 0


SERVICE = """---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop, annotations: {annotations}}}
spec: {{ports: [{{name: http, port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"""
