"""What fails around lb: endpoints that die, hang and return, descriptors that run out, floods of clients."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.backend import OK, BackendConnection, RawBackend
from tests.harness.client import RawClient, get, post
from tests.harness.echo_server import EchoServer
from tests.harness.load import Load
from tests.harness.messages import Truncated
from tests.harness.native import Native, respond
from tests.harness.netns import Host, require_hosts
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.tcp import TcpServer, black_hole, echo
from tests.harness.waiting import DEADLINE, wait_until


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[EchoServer]]:
    with EchoServer("a", tmp_path / "a.journal") as a, EchoServer("b", tmp_path / "b.journal") as b:
        yield [a, b]


@pytest.fixture
def site(tmp_path: Path, servers: list[EchoServer]) -> Iterator[Serving]:
    native = Native()
    keys = [server.key for server in servers]
    native.serve("shop.test", *keys, connect_timeout="500ms")
    native.serve("hanging.test", *keys, connect_timeout="500ms", route={"response_timeout": "500ms"})
    native.host("local.test", respond("local", 200, "from lb"))
    native.listen("http", free_port(), head_timeout="2m")  # half-sent requests wait for the others here
    with serving(tmp_path, native) as started:
        yield started


def journal(servers: list[EchoServer]) -> Counter[str]:
    """How often each X-Id was executed."""
    seen: Counter[str] = Counter()
    for server in servers:
        if server.journal is not None and server.journal.exists():
            seen.update(server.journal.read_text().split())
    return seen


def test_no_get_fails_when_one_of_two_endpoints_is_killed(site: Serving, servers: list[EchoServer]) -> None:
    with Load(site.address(), get("shop.test"), connections=16, pause=0.002) as load:
        servers[0].kill()
        load.wait_for_progress(400)
        servers[0].start()
        seen = load.backends["a"]
        wait_until(lambda: load.backends["a"] > seen, "the endpoint is used again")
    load.assert_perfect()


def test_no_get_fails_when_an_endpoint_dies_in_the_middle_of_it(site: Serving, servers: list[EchoServer]) -> None:
    """Sent, unanswered, and idempotent: it may be tried again (RFC 9110 9.2.2)."""
    with Load(site.address(), get("shop.test", "/slow/100"), connections=16) as load:
        servers[0].kill()
        load.wait_for_progress(200)
        servers[0].start()
    answered = load.statuses
    # A request that was already on its way to a fresh connection may be answered 502, once a connection at most.
    assert set(answered) <= {200, 502}
    assert answered[502] <= 16
    assert load.closed == 0


def test_no_post_is_executed_twice(site: Serving, servers: list[EchoServer]) -> None:
    load = Load(
        site.address(), lambda n: post("shop.test", b"pay", "/slow/5", f"X-Id: {n}"), connections=16, pause=0.001
    )
    load.remember = True
    with load:
        for server in servers * 2:
            server.kill()
            load.wait_for_progress(200)
            server.start()
            load.wait_for_progress(200)
    executed = journal(servers)
    assert executed
    assert [number for number, count in executed.items() if count > 1] == []
    assert {str(number) for number in load.answered} <= set(executed)


def test_a_paused_endpoint_costs_a_timeout_and_nothing_more(site: Serving, servers: list[EchoServer]) -> None:
    with Load(site.address(), get("hanging.test"), connections=8, pause=0.002) as load:
        servers[0].process.send_signal(signal.SIGSTOP)
        try:
            load.wait_for_progress(30)
        finally:
            servers[0].process.send_signal(signal.SIGCONT)
        wait_until(lambda: load.backends["a"], "the endpoint is used again")
        failures = len(load.failures)
        load.wait_for_progress(300)
        # Whatever was sent while it was paused has been answered or given up by now.
        assert len(load.failures) <= failures + 8
    assert set(load.statuses) <= {200, 504}


def test_all_endpoints_down_and_back_again(site: Serving, servers: list[EchoServer]) -> None:
    with site.connect() as client:
        assert client.ask(get("shop.test")).status == 200
        for server in servers:
            server.kill()
        for _ in range(5):
            assert client.ask(get("shop.test")).status in (502, 503)
        assert client.ask(get("local.test")).status == 200
        for server in servers:
            server.start()
        wait_until(lambda: client.ask(get("shop.test")).status == 200, "it is served again", interval=0.05)


def test_a_black_hole_is_told_of_everywhere(tmp_path: Path, servers: list[EchoServer]) -> None:
    native = Native()
    with black_hole() as hole:
        native.serve("shop.test", servers[0].key, hole, connect_timeout="100ms")
        with serving(tmp_path, native) as site:
            with Load(site.address(), get("shop.test"), connections=4) as load:
                wait_until(lambda: bool(told(site, "endpoint is ejected")), "the log tells of it")
                (line,) = told(site, "endpoint is ejected")
                assert (line["upstream"], line["endpoint"]) == ("shop.test", hole)
                assert line["why"] == "no answer in time"
                assert line["failed_in_row"] >= 3
                assert 0 < line["seconds_left"] <= 10
                assert site.lb.metric("lb_upstream_endpoints_ejected", upstream="shop.test") == 1
                assert site.lb.metric("lb_upstream_ejections_total", upstream="shop.test") >= 1
                assert "connections failed: no answer in time)" in site.lb.ctl("upstreams", "shop.test")
                (row,) = (row for row in explain(site) if hole in row)
                assert "connections failed: no answer in time)" in row
            load.assert_perfect()
            assert len(told(site, "endpoint is ejected")) == 1


def test_one_connection_finds_out_whether_a_black_hole_is_one_still(tmp_path: Path, servers: list[EchoServer]) -> None:
    native = Native()
    with black_hole() as hole:
        native.serve("shop.test", servers[0].key, hole, connect_timeout="1s")
        # Two threads might both connect at the very moment when the ejection is over.
        with serving(tmp_path, native, threads=1) as site:

            def state() -> dict[str, Any]:
                (one,) = (one for one in site.lb.get("/v1/upstreams/shop.test")["endpoints"] if one["endpoint"] == hole)
                return dict(one)

            with Load(site.address(), get("shop.test"), connections=8, pause=0.002) as load:
                wait_until(lambda: state()["state"] == "ejected", "connections fail")
                wait_until(lambda: state()["requests_active"] == 0, "those on their way have failed as well")
                failures = state()["failures"]
                wait_until(lambda: state()["state"] == "ready" or state()["requests_active"], "its time is over")
                wait_until(lambda: state()["ejected_for_ms"] > 10_000, "it is ejected again, and for longer")
                assert state()["failures"] == failures + 1
            load.assert_perfect()


def test_an_endpoint_that_takes_connections_again_is_told_of(tmp_path: Path, servers: list[EchoServer]) -> None:
    server = servers[0]
    native = Native()
    native.serve("shop.test", server.key)
    server.kill()
    with serving(tmp_path, native) as site:
        with site.connect() as client:
            for _ in range(3):
                assert client.ask(get("shop.test")).status == 502
        wait_until(lambda: bool(told(site, "endpoint is ejected")), "the log tells of it")
        (line,) = told(site, "endpoint is ejected")
        assert line["why"] == "connection refused"
        server.start()
        with site.connect() as client:  # nobody else is there: it is asked as a last resort
            assert client.ask(get("shop.test")).status == 200
        wait_until(lambda: bool(told(site, "endpoint is no longer ejected")), "the log tells of it")
        assert site.lb.metric("lb_upstream_endpoints_ejected", upstream="shop.test") == 0


def test_an_endpoint_that_serves_on_kept_connections_is_ejected_no_longer(tmp_path: Path) -> None:
    gate = threading.Event()

    def script(connection: BackendConnection) -> None:
        while (request := connection.read()) is not None:
            assert request.target != b"/slow" or gate.wait(DEADLINE)
            connection.send(OK)

    backend = RawBackend(script)
    native = Native()
    native.serve("shop.test", backend)

    def ejected() -> float:
        return site.lb.metric("lb_upstream_endpoints_ejected", upstream="shop.test")

    def state() -> str:
        (one,) = site.lb.get("/v1/upstreams/shop.test")["endpoints"]
        return str(one["state"])

    with serving(tmp_path, native, {"shop.test": backend}) as site, site.connect() as first, site.connect() as client:
        first.send(get("shop.test", "/slow"))
        wait_until(lambda: backend.received, "the connection is in use")
        backend.stop_listening()
        for _ in range(3):
            assert client.ask(get("shop.test")).status == 502
        wait_until(lambda: bool(told(site, "endpoint is ejected")), "the log tells of it")
        gate.set()
        assert first.response().status == 200
        assert ejected() == 1
        wait_until(lambda: state() == "ready", "its time is over")
        assert ejected() == 1
        assert first.ask(get("shop.test")).status == 200
        assert ejected() == 0
        wait_until(lambda: bool(told(site, "endpoint is no longer ejected: it serves again")), "the log tells of it")


def told(site: Serving, event: str) -> list[dict[str, Any]]:
    """The lines of the log that begin so."""
    lines = (json.loads(line) for line in site.lb.stderr.splitlines() if line.startswith("{"))
    return [line for line in lines if str(line["event"]).startswith(event)]


def explain(site: Serving) -> list[str]:
    arguments = ("explain", "http://shop.test/", "--live", str(site.lb.admin_socket))
    done = subprocess.run([sys.executable, "-m", "lb", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_descriptors_that_run_out_stop_nothing_for_long(tmp_path: Path) -> None:
    native = Native()
    backend = RawBackend()
    native.serve("shop.test", backend)
    native.host("local.test", respond("local", 200, "from lb"))
    with serving(tmp_path, native, {"shop.test": backend}, open_files=160) as site:
        with contextlib.ExitStack() as stack:
            clients = []
            for _ in range(300):
                with contextlib.suppress(OSError):
                    clients.append(stack.enter_context(site.connect(timeout=5)))
            for client in clients:
                client.send(get("shop.test"))
            assert site.lb.process.poll() is None
            # It must not spin on a listener that it cannot accept from.
            spent = site.lb.cpu_seconds()
            idle = threading.Event()
            idle.wait(1.0)
            assert site.lb.cpu_seconds() - spent < 0.5

        def served() -> bool:
            with contextlib.suppress(OSError, AssertionError, Truncated), site.connect(timeout=2) as client:
                return client.ask(get("shop.test")).status == 200
            return False

        wait_until(served, "it serves again", interval=0.1)
        wait_until(lambda: site.lb.fd_count() < 100, "descriptors are given back", interval=0.1)
        backend.assert_clean()


@contextlib.contextmanager
def few_descriptors(directory: Path) -> Iterator[Serving]:
    """An lb that carries `tcp` to a server, and answers local.test itself, with room for some 150 clients."""
    native = Native()
    native.host("local.test", respond("local", 200, "before"))
    native.listen("http", free_port())
    with TcpServer(echo) as server:
        native.upstream("server", [server.key])
        native.carry("tcp", free_port(), "server")
        with serving(directory, native, open_files=400) as site:
            yield site


def test_clients_that_take_all_descriptors_leave_lb_its_own(tmp_path: Path) -> None:
    """It reads what changes, answers its operator, and says why clients have to wait."""
    with few_descriptors(tmp_path) as site:
        with contextlib.ExitStack() as stack:
            for _ in range(350):
                stack.enter_context(site.connect("tcp"))
            wait_until(lambda: site.lb.metric("lb_accept_pauses_total") > 0, "clients have to wait")
            assert site.lb.metric("lb_connections_active") > 100
            assert site.lb.metric("lb_upstream_connects_total", upstream="server") == site.lb.metric(
                "lb_connections_active"
            ), "who is in has an endpoint"
            site.native.hosts["local.test"] = [respond("local", 200, "after")]
            site.apply()
            assert not site.lb.get("/v1/problems")["items"]
            wait_until(lambda: "new clients have to wait" in site.lb.stderr, "it is told")

        def answered() -> bool:
            with contextlib.suppress(OSError, Truncated), site.connect() as client:
                return client.ask(get("local.test")).body == b"after"
            return False  # while others leave an idle client has to make way

        wait_until(answered, "clients are let in again")
        wait_until(lambda: "new clients are let in again" in site.lb.stderr, "it is told", timeout=40)


def test_who_has_just_come_while_descriptors_are_short_has_time_to_ask(tmp_path: Path) -> None:
    """Connections that are carried hold what makes them short, and no idle client is there to make way."""
    with few_descriptors(tmp_path) as site, contextlib.ExitStack() as stack:
        carried: list[RawClient] = []
        while not site.lb.metric("lb_accept_pauses_total"):
            carried.append(stack.enter_context(site.connect("tcp")))
        full = site.lb.metric("lb_descriptors_open")  # 95 %
        for one in carried[-8:]:
            one.close()
        wait_until(lambda: site.lb.metric("lb_descriptors_open") < 0.95 * full + 4, "some have gone")
        while site.lb.metric("lb_descriptors_open") < 0.955 * full:
            client = stack.enter_context(site.connect("tcp"))
            client.send(b"x")
            assert client.reader.take(1) == b"x"
        for _ in range(20):
            with site.connect() as client:
                assert client.ask(get("local.test")).body == b"before"
        with site.lb.stopped():  # they come at once, and their requests with them
            clients = [stack.enter_context(site.connect()) for _ in range(6)]
            for client in clients:
                client.send(get("local.test"))
        for client in clients:
            assert client.response().body == b"before"


def test_ports_that_run_out_are_not_the_endpoints_fault(tmp_path: Path) -> None:
    require_hosts()
    native = Native()
    native.listen("http", free_port())
    with Host("lb") as host, host.entered(), TcpServer(echo) as server:
        native.upstream("server", [server.key])
        native.carry("tcp", free_port(), "server")
        host.set(ipv4__ip_local_port_range="61000 61007")
        with serving(tmp_path, native) as site:
            with contextlib.ExitStack() as stack:
                for number in range(12):
                    with contextlib.suppress(ConnectionResetError):
                        stack.enter_context(site.connect("tcp", source=f"127.0.0.{100 + number}"))
                (record, *_) = site.lb.wait_log(reason="no-port")
                assert record["upstream"] == "server"
                assert site.lb.metric("lb_upstream_connect_failures_total", upstream="server") == 0

            def answered() -> bool:
                with contextlib.suppress(OSError, Truncated), site.connect("tcp", source="127.0.0.120") as client:
                    client.send(b"hello")
                    return client.reader.take(5) == b"hello"
                return False

            wait_until(answered, "ports come free (TIME_WAIT)", interval=0.1)


def test_two_thousand_half_sent_requests_leave_others_alone(site: Serving) -> None:
    half = get("shop.test")[:-2]
    clients: list[RawClient] = []
    before = site.lb.rss_bytes()
    try:
        for _ in range(2_000):
            client = site.connect()
            client.send(half)
            clients.append(client)
        wait_until(lambda: site.lb.metric("lb_connections_active") >= 2_000, "all are accepted", interval=0.1)
        assert site.lb.rss_bytes() - before < 100_000_000
        with site.connect() as client:
            for _ in range(50):
                assert client.ask(get("shop.test")).status == 200
        for client in clients[::100]:
            client.send(b"\r\n")
            assert client.response().status == 200
    finally:
        for client in clients:
            client.close()
    wait_until(lambda: site.lb.metric("lb_connections_active") == 0, "all have gone", interval=0.1)


def test_connections_that_are_reset_at_once_leak_nothing(site: Serving) -> None:
    with site.connect() as client:
        assert client.ask(get("shop.test")).status == 200
    before = site.lb.sockets()
    for number in range(1_000):
        client = site.connect()
        if number % 2:
            client.send(get("shop.test"))
        client.reset()
    wait_until(lambda: site.lb.metric("lb_connections_active") == 0, "all have gone", interval=0.05)
    # What stays are connections kept to the two endpoints.
    wait_until(lambda: site.lb.sockets() <= before + 100, "their sockets have gone", timeout=DEADLINE)
    with Load(site.address(), get("shop.test"), connections=4) as load:
        load.wait_for_progress(200)
    load.assert_perfect()


def test_limits_of_an_upstream_queue_and_refuse(tmp_path: Path, servers: list[EchoServer]) -> None:
    native = Native()
    native.serve("queue.test", servers[0].key, max_connections=2, max_queue=100, queue_timeout="20s")
    native.serve("full.test", servers[0].key, max_connections=1, max_queue=1)
    native.serve("late.test", servers[0].key, max_connections=1, queue_timeout="300ms")
    with serving(tmp_path / "limits", native) as site:
        with Load(site.address(), get("queue.test", "/slow/5"), connections=20) as load:
            load.wait_for_progress(200)
        load.assert_perfect()
        for host in ("full.test", "late.test"):
            clients = [site.connect() for _ in range(4)]
            for client in clients:
                client.send(get(host, "/slow/1000"))
            statuses = Counter(client.response().status for client in clients)
            assert statuses[200] >= 1
            assert statuses[503] + statuses[504] >= 2
            assert sum(statuses.values()) == 4
            for client in clients:
                client.close()
