"""What lb says about itself is what its clients and backends saw; and the signals that operators send it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.client import RawClient, get, post
from tests.harness.echo_server import EchoServer
from tests.harness.load import Load
from tests.harness.native import Native, respond
from tests.harness.ports import free_port
from tests.harness.process import LbProcess
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE, wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EchoServer]:
    with EchoServer("a") as server:
        yield server


@pytest.fixture
def site(tmp_path: Path, server: EchoServer) -> Iterator[Serving]:
    native = Native()
    native.serve("shop.test", server.key)
    native.serve("half.test", f"127.0.0.1:{free_port()}", server.key)
    native.serve("refused.test", f"127.0.0.1:{free_port()}")
    native.serve("nobody.test", *(f"127.0.0.{last}:{free_port()}" for last in range(10, 50)), route={"retries": 39})
    native.serve("empty.test")
    native.host("local.test", respond("local", 200, "from lb"))
    with serving(tmp_path, native) as started:
        yield started


class TestCounters:
    def test_they_add_up_to_what_the_clients_saw(self, site: Serving) -> None:
        clients = [site.connect() for _ in range(5)]
        for client in clients:
            for _ in range(20):
                assert client.ask(get("shop.test")).status == 200
            for _ in range(3):
                assert client.ask(get("local.test")).status == 200
            assert client.ask(get("else.test")).status == 404
            assert client.ask(get("empty.test")).status == 503
            assert client.ask(get("refused.test")).status in (502, 503)
        with site.connect() as client:
            assert client.ask(get("shop.test", "/a%00")).status == 400
        lb = site.lb
        wait_until(lambda: lb.metric("lb_listener_responses_total", code_class="4xx") >= 6, "all are counted")
        assert lb.metric("lb_listener_connections_total", listener="http") == 6
        wait_until(lambda: lb.metric("lb_listener_connections_active", listener="http") == 5, "the sixth has ended")
        assert lb.metric("lb_listener_responses_total", listener="http", code_class="2xx") == 115
        assert lb.metric("lb_listener_responses_total", listener="http", code_class="4xx") == 6
        assert lb.metric("lb_listener_responses_total", listener="http", code_class="5xx") == 10
        assert lb.metric("lb_listener_request_duration_seconds_count", listener="http") in (130, 131)
        assert lb.metric("lb_route_responses_total", route="shop.test", code_class="2xx") == 100
        assert lb.metric("lb_route_responses_total", route="local", code_class="2xx") == 15
        assert lb.metric("lb_upstream_responses_total", upstream="shop.test", code_class="2xx") == 100
        assert lb.metric("lb_upstream_attempts_total", upstream="shop.test") == 100
        assert lb.metric("lb_endpoint_requests_total", upstream="shop.test") == 100
        connects = lb.metric("lb_upstream_connects_total", upstream="shop.test")
        assert connects + lb.metric("lb_upstream_connections_reused_total", upstream="shop.test") == 100
        assert connects <= 5
        assert lb.metric("lb_upstream_connect_failures_total", upstream="refused.test") >= 1
        assert lb.metric("lb_upstream_requests_active") == 0
        assert lb.metric("lb_exchange_end_total", reason="ok") == 100
        assert lb.metric("lb_exchange_end_total", reason="local-answer") == 15
        for client in clients:
            client.close()
        wait_until(lambda: lb.metric("lb_listener_connections_active", listener="http") == 0, "connections end")

    def test_bytes_are_counted(self, site: Serving) -> None:
        request = post("shop.test", b"x" * 10_000)
        with site.connect() as client:
            for _ in range(10):
                client.ask(request)
        wait_until(lambda: site.lb.metric("lb_route_responses_total", route="shop.test") == 10, "all are counted")
        received = site.lb.metric("lb_route_received_bytes_total", route="shop.test")
        assert received == 10 * len(request)
        assert site.lb.metric("lb_upstream_sent_bytes_total", upstream="shop.test") > received

    def test_the_exposition_is_well_formed(self, site: Serving) -> None:
        with site.connect() as client:
            client.ask(get("shop.test"))
        site.lb.wait_turns()
        status, body = site.lb.admin("/metrics")
        assert status == 200
        families = {family.name: family for family in text_string_to_metric_families(body.decode())}
        histogram = families["lb_listener_request_duration_seconds"]
        counts = [sample.value for sample in histogram.samples if sample.name.endswith("_bucket")]
        assert counts == sorted(counts)
        assert counts[-1] == 1

    def test_the_lists_show_what_serves(self, site: Serving, server: EchoServer) -> None:
        assert site.lb.admin("/livez")[0] == 200
        listener = site.lb.get("/v1/listeners")[0]
        assert (listener["name"], listener["open"]) == ("http", True)
        routes = {item["name"] for item in site.lb.get("/v1/routes")["items"]}
        assert {"shop.test", "local"} <= routes
        detail = site.lb.get("/v1/upstreams/half.test")
        assert detail["upstream"]["endpoints"] == 2
        assert server.key in {item["endpoint"] for item in detail["endpoints"]}


class TestAccessLog:
    def test_a_record_tells_the_whole_story(self, site: Serving, server: EchoServer) -> None:
        with site.connect() as client:
            answer = client.ask(get("shop.test", "/a/../b?c=d", "User-Agent: test/1.0", 'Referer: "quoted\\'))
            source = client.socket.getsockname()
        record = site.lb.wait_log(virtual_host="shop.test")[0]
        assert record["client"] == source[0]
        assert int(record["client_port"]) == source[1]
        assert (record["listener"], record["host"], record["method"]) == ("http", "shop.test", "GET")
        assert record["target"] in ("/a/../b?c=d", "/b?c=d")
        assert (record["status"], record["route"], record["upstream"]) == (200, "shop.test", "shop.test")
        assert record["endpoint"] == server.key
        assert (record["reason"], record["attempts"]) == ("ok", 1)
        assert record["user_agent"] == "test/1.0"
        assert record["referer"] == '"quoted\\'
        assert record["request_id"]
        assert 0 <= record["connect"] <= record["duration"]
        assert 0 < record["first_byte"] <= record["duration"]
        assert record["bytes_out"] > len(answer.body)
        assert record["generation"] == site.lb.generation

    def test_the_request_id_is_the_one_the_backend_saw(self, tmp_path: Path) -> None:
        native = Native()
        with RawBackend() as backend:
            native.serve("raw.test", backend)
            with serving(tmp_path / "id", native) as site, site.connect() as client:
                for _ in range(20):
                    assert client.ask(get("raw.test")).status == 200
                seen = [(request.headers.get("x-request-id") or b"").decode() for request in backend.requests()]
                logged = [record["request_id"] for record in site.lb.wait_log(20)]
            assert seen == logged
            assert len(set(seen)) == 20

    def test_failures_have_reasons(self, site: Serving) -> None:
        with site.connect() as client:
            for host in ("refused.test", "empty.test", "else.test"):
                client.ask(get(host))
            client.ask(get("shop.test", "/a%00"))
        records = site.lb.wait_log(4)
        reasons = {record["host"]: record["reason"] for record in records[:3]}
        assert "ok" not in reasons.values()
        assert len(set(reasons.values())) == 3
        assert records[3]["status"] == 400
        assert records[3]["reason"] not in ("ok", *reasons.values())

    def test_attempts_are_counted(self, site: Serving, server: EchoServer) -> None:
        with site.connect() as client:
            for _ in range(4):
                assert client.ask(get("half.test")).status == 200
        records = site.lb.wait_log(4, upstream="half.test")
        assert {record["endpoint"] for record in records} == {server.key}
        (refused,) = site.lb.endpoints("half.test") - {server.key}
        told = {(record["attempts"], record["failed_attempts"]) for record in records}
        assert told == {(1, ""), (2, f"{refused} connect-failed")}

    def test_so_many_attempts_fail_that_the_first_are_told(self, site: Serving) -> None:
        with site.connect() as client:
            assert client.ask(get("nobody.test")).status == 502
        (record,) = site.lb.wait_log(upstream="nobody.test")
        told = record["failed_attempts"].split(", ")
        assert record["attempts"] == 40
        assert 20 < len(told) < 39
        assert {one.removesuffix(" connect-failed") for one in told} < site.lb.endpoints("nobody.test")

    def test_a_client_that_leaves_is_told_apart(self, site: Serving) -> None:
        client = site.connect()
        client.send(get("shop.test", "/slow/3000"))
        wait_until(lambda: site.lb.get("/v1/status")["exchanges"] == 1, "the request is under way")
        client.reset()
        record = site.lb.wait_log(upstream="shop.test")[0]
        assert "client" in record["reason"]

    def test_usr1_reopens_it(self, site: Serving) -> None:
        with site.connect() as client:
            client.ask(get("local.test", "/before"))
            site.lb.wait_log(target="/before")
            rotated = site.lb.access_log.with_suffix(".1")
            site.lb.access_log.rename(rotated)
            site.lb.signal(signal.SIGUSR1)
            wait_until(site.lb.access_log.exists, "the file is there again")

            def logged() -> bool:
                client.ask(get("local.test", "/after"))
                return "/after" in site.lb.access_log.read_text()

            wait_until(logged, "records are written to the new file")
        assert "/before" in rotated.read_text()
        assert "/before" not in site.lb.access_log.read_text()

    def test_nothing_is_lost_under_load(self, site: Serving) -> None:
        with Load(site.address(), get("shop.test"), connections=16) as load:
            load.wait_for_progress(3_000)
        load.assert_perfect()
        total = load.statuses.total()
        wait_until(lambda: len(site.lb.log_records()) >= total, "all records are written", interval=0.1)
        assert len(site.lb.log_records()) == total
        assert site.lb.metric("lb_access_log_dropped_total") == 0


class TestSignals:
    def test_term_finishes_what_is_under_way(self, site: Serving) -> None:
        idle, busy = site.connect(), site.connect()
        assert idle.ask(get("local.test")).status == 200
        busy.send(get("shop.test", "/slow/1500"))
        wait_until(lambda: site.lb.get("/v1/status")["exchanges"] == 1, "the request is under way")
        site.lb.signal(signal.SIGTERM)
        assert idle.rest() == b""
        wait_until(lambda: not self.accepts(site), "nothing new is accepted")
        answer = busy.response()
        assert (answer.status, answer.closes) == (200, True)
        assert busy.rest() == b""
        site.lb.assert_ends()

    def test_readiness_goes_first(self, site: Serving) -> None:
        client = site.connect()
        client.send(get("shop.test", "/slow/2000"))
        wait_until(lambda: site.lb.get("/v1/status")["exchanges"] == 1, "the request is under way")
        assert site.lb.admin("/readyz")[0] == 200
        site.lb.signal(signal.SIGTERM)
        wait_until(lambda: site.lb.admin("/readyz")[0] == 503, "it is not ready any more")
        assert site.lb.admin("/livez")[0] == 200
        assert client.response().status == 200
        site.lb.assert_ends()

    def test_a_second_term_waits_for_nobody(self, tmp_path: Path) -> None:
        def silent(connection: BackendConnection) -> None:
            connection.read()
            connection.wait_for_end()

        native = Native()
        with RawBackend(silent) as backend:
            native.serve("silent.test", backend)
            with serving(tmp_path / "second", native) as site, site.connect() as client:
                client.send(get("silent.test"))
                wait_until(lambda: backend.received, "the request is under way")
                site.lb.signal(signal.SIGTERM)
                wait_until(lambda: not self.accepts(site), "it drains")
                assert site.lb.process.poll() is None
                began = time.monotonic()
                site.lb.signal(signal.SIGTERM)
                site.lb.assert_ends()
                # The drain time is 30 s.
                assert time.monotonic() - began < 20

    def test_term_without_traffic_ends_at_once(self, site: Serving) -> None:
        site.lb.signal(signal.SIGTERM)
        site.lb.assert_ends()

    def test_int_is_term(self, site: Serving) -> None:
        site.lb.signal(signal.SIGINT)
        site.lb.assert_ends()

    def test_hup_reads_the_file_again(self, site: Serving) -> None:
        site.native.host("new.test", respond("new", 200, "new"))
        site.native.write(site.path)
        site.lb.signal(signal.SIGHUP)
        with site.connect() as client:
            wait_until(lambda: client.ask(get("new.test")).status == 200, "the new host is served")

    def accepts(self, site: Serving) -> bool:
        try:
            RawClient(site.address()).close()
        except ConnectionRefusedError:
            return False
        return True


class TestControl:
    def test_status(self, site: Serving) -> None:
        assert "serving" in site.lb.ctl("status")

    def test_drain_gives_an_endpoint_nothing_new(self, tmp_path: Path) -> None:
        with EchoServer("a") as a, EchoServer("b") as b:
            native = Native()
            native.serve("shop.test", a.key, b.key)
            with serving(tmp_path / "drain", native) as site:
                slow = [site.connect() for _ in range(4)]
                with Load(site.address(), get("shop.test"), connections=8, pause=0.002) as load:
                    wait_until(lambda: load.backends["a"] and load.backends["b"], "both are used")
                    for client in slow:
                        client.send(get("shop.test", "/slow/1500"))
                    wait_until(lambda: site.lb.get("/v1/status")["exchanges"] >= 4, "slow requests are under way")
                    site.lb.ctl("drain", "shop.test", a.key)
                    load.wait_for_progress(100)
                    before = load.backends["a"]
                    load.wait_for_progress(300)
                    assert load.backends["a"] == before
                    # What it has goes on.
                    assert [client.response().status for client in slow] == [200] * 4
                    for client in slow:
                        client.close()
                    # A change of the configuration does not take the operator's word back.
                    native.host("other.test", respond("other", 200))
                    site.apply()
                    load.wait_for_progress(300)
                    assert load.backends["a"] == before
                    site.lb.ctl("ready", "shop.test", a.key)
                    wait_until(lambda: load.backends["a"] > before, "it is used again")
                load.assert_perfect()

    def test_weight_changes_the_share(self, tmp_path: Path) -> None:
        with EchoServer("a") as a, EchoServer("b") as b:
            native = Native()
            native.serve("shop.test", a.key, b.key)
            with serving(tmp_path / "weight", native, None, threads=1) as site, site.connect() as client:
                site.lb.ctl("weight", "shop.test", a.key, "3")
                names = [client.ask(get("shop.test")).body for _ in range(40)]
                assert (names.count(b"a"), names.count(b"b")) == (30, 10)
                site.lb.ctl("weight", "shop.test", a.key, "default")
                names = [client.ask(get("shop.test")).body for _ in range(40)]
                assert (names.count(b"a"), names.count(b"b")) == (20, 20)


def test_a_listener_that_cannot_be_opened_costs_only_itself(tmp_path: Path) -> None:
    with RawBackend() as occupier:
        native = Native()
        native.listen("http", free_port())
        native.listen("taken", occupier.port)
        native.host("*", respond("all", 200, "ok"))
        path = tmp_path / "lb.yaml"
        native.write(path)
        with LbProcess([path], tmp_path / "lb") as lb:
            with RawClient(("127.0.0.1", native.listeners["http"]["port"])) as client:
                assert client.ask(get("any.test")).status == 200
            problems = lb.get("/v1/problems")["items"]
            assert [problem["code"] for problem in problems] == ["LB6001"]
            wait_until(lambda: lb.metric("lb_listener_up", listener="taken") == 0, "it is down", timeout=DEADLINE)
