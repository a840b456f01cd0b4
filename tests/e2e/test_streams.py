"""TCP through a running lb: who gets the connection, what changes do to it, and what lb tells of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.client import RawClient, get
from tests.harness.echo_server import EchoServer
from tests.harness.native import Native, forward
from tests.harness.ports import free_port
from tests.harness.process import ROOT
from tests.harness.serving import Serving, serving
from tests.harness.tcp import TcpServer, ends_by_reset, named, read_all, read_exactly
from tests.harness.waiting import DEADLINE, wait_until


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, TcpServer]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(TcpServer(named(name))) for name in "abc"}


@pytest.fixture
def site(tmp_path: Path, servers: dict[str, TcpServer]) -> Iterator[Serving]:
    a, b, c = (server.key for server in servers.values())
    native = Native()
    native.upstream("even", [a, b, c])
    native.upstream("weighted", [{"address": a, "weight": 3}, b, {"address": c, "weight": 0}])
    native.upstream("least", [a, b, c], balance="least-connections")
    native.upstream("sticky", [a, b, c], affinity="client-ip")
    native.upstream("only-c", [c])
    for name in ("even", "weighted", "least", "sticky"):
        native.carry(name, free_port(), name)
    native.carry("split", free_port(), {"even": 0, "only-c": 1}, drain_timeout="300ms")
    native.carry("changing", free_port(), "even", drain_timeout="300ms")
    with serving(tmp_path, native) as started:
        yield started


class Flow:
    """A connection to a server that has said its name."""

    def __init__(self, site: Serving, listener: str, **options: object) -> None:
        self.client = site.connect(listener, **options)
        self.server = self.client.socket.recv(1).decode()

    def alive(self) -> bool:
        self.client.send(b"still here")
        return read_exactly(self.client.socket, 10) == b"still here"

    def end(self) -> None:
        """In order, from both sides."""
        self.client.finish()
        assert read_all(self.client.socket) == b""
        self.client.close()


Connect = Callable[..., Flow]


@pytest.fixture
def connect(site: Serving) -> Iterator[Connect]:
    """Opens flows, and closes what is left of them."""
    opened: list[Flow] = []

    def open_one(listener: str, **options: object) -> Flow:
        opened.append(Flow(site, listener, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.client.close()


def reached(site: Serving, listener: str, count: int, **options: object) -> Counter[str]:
    """Which servers so many connections, one after the other, get to."""
    found: Counter[str] = Counter()
    for _ in range(count):
        one = Flow(site, listener, **options)
        found[one.server] += 1
        one.end()
    return found


# -------------------------------------------------------------------------------------------------------------- balance


def test_shares(site: Serving) -> None:
    assert reached(site, "split", 6) == {"c": 6}
    weighted = reached(site, "weighted", 40)
    assert set(weighted) == {"a", "b"}
    assert weighted["a"] > weighted["b"]
    assert set(reached(site, "even", 12)) == {"a", "b", "c"}


def test_least_connections_counts_open_ones(site: Serving, connect: Connect) -> None:
    flows = [connect("least") for _ in range(9)]
    assert Counter(one.server for one in flows) == {"a": 3, "b": 3, "c": 3}
    for one in flows:
        if one.server != "b":
            one.end()
    wait_until(lambda: site.lb.metric("lb_upstream_requests_active", upstream="least") == 3, "the others have ended")
    more = [connect("least") for _ in range(4)]
    assert "b" not in {one.server for one in more}
    for one in more:
        one.end()


def test_a_client_address_stays_on_its_endpoint(site: Serving) -> None:
    for number in range(1, 9):
        assert len(reached(site, "sticky", 3, source=f"127.0.0.{number}")) == 1


def test_an_endpoint_that_refuses_is_passed_over(site: Serving, servers: dict[str, TcpServer]) -> None:
    dead = f"127.0.0.1:{free_port()}"
    site.native.upstream("even", [dead, servers["a"].key])
    site.apply()
    assert reached(site, "even", 10) == {"a": 10}
    assert site.lb.metric("lb_endpoint_failures_total", upstream="even", endpoint=dead) >= 3
    assert site.lb.metric("lb_endpoint_up", upstream="even", endpoint=dead) == 0
    assert site.lb.metric("lb_upstream_retries_total", upstream="even") >= 3


# -------------------------------------------------------------------------------------------------------------- changes


def test_flows_survive_swaps(site: Serving, connect: Connect, servers: dict[str, TcpServer]) -> None:
    """Endpoints and listeners around them come and go while bytes pass, and not one is lost."""
    native = site.native
    native.carry("steady", free_port(), "steady")
    native.upstream("steady", [server.key for server in servers.values()])
    site.apply()
    flows = [connect("steady") for _ in range(12)]
    stop = threading.Event()
    passed: Counter[int] = Counter()
    failures: list[str] = []

    def talk(number: int) -> None:
        for turn in itertools.count():
            if stop.is_set():
                return
            text = b"%08d %08d" % (number, turn) * 50
            flows[number].client.send(text)
            if (got := read_exactly(flows[number].client.socket, len(text))) != text:
                failures.append(f"{number}: {got[:40]!r}")
                return
            passed[number] += 1

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(len(flows))]
    for thread in threads:
        thread.start()
    for number in range(25):
        native.upstream("steady", [servers[name].key for name in "abc"[: 1 + number % 3]])
        native.upstream(f"extra-{number % 3}", [servers["a"].key])
        native.carry(f"extra-{number % 3}", free_port(), f"extra-{number % 3}")
        site.apply()
    before = dict(passed)
    wait_until(lambda: all(passed[one] > before.get(one, 0) + 5 for one in range(len(flows))), "all of them go on")
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    for one in flows:
        one.end()
    wait_until(lambda: site.lb.metric("lb_tables_pinned") == 0, "flows keep no table", interval=0.05)


def test_a_removed_endpoint_has_its_time(site: Serving, connect: Connect, servers: dict[str, TcpServer]) -> None:
    flows = {one.server: one for one in (connect("changing") for _ in range(9))}
    assert set(flows) == {"a", "b", "c"}
    site.native.upstream("even", [servers["a"].key])
    site.apply()
    assert ends_by_reset(flows["b"].client.socket)
    assert ends_by_reset(flows["c"].client.socket)
    assert flows["a"].alive()
    for name in "bc":
        site.lb.wait_log(listener="changing", reason="endpoint-removed", endpoint=servers[name].key)
    removed = {one["endpoint"] for one in site.lb.log_records() if one["reason"] == "endpoint-removed"}
    assert removed == {servers["b"].key, servers["c"].key}
    assert reached(site, "changing", 4) == {"a": 4}


def test_a_flow_may_end_in_its_time(site: Serving, connect: Connect, servers: dict[str, TcpServer]) -> None:
    site.native.listeners["changing"]["stream"]["drain_timeout"] = "1h"
    site.apply()
    flows = {one.server: one for one in (connect("changing") for _ in range(9))}
    site.native.upstream("even", [servers["a"].key])
    site.apply()
    assert flows["b"].alive()
    flows["b"].end()
    site.lb.wait_log(1, listener="changing", reason="ok", endpoint=servers["b"].key)


def test_an_endpoint_that_comes_back_keeps_its_flows(
    site: Serving, connect: Connect, servers: dict[str, TcpServer]
) -> None:
    site.native.listeners["changing"]["stream"]["drain_timeout"] = "2s"
    site.apply()
    flows = {one.server: one for one in (connect("changing") for _ in range(9))}
    every = site.native.upstreams["even"]
    site.native.upstream("even", [servers["a"].key])
    site.apply()
    site.native.upstreams["even"] = every
    site.apply()
    threading.Event().wait(2.2)  # past the time that it would have had
    assert flows["b"].alive()


def test_a_removed_listener_leaves_its_flows(site: Serving, connect: Connect) -> None:
    one = connect("even")
    address = site.address("even")
    del site.native.listeners["even"]
    site.apply()
    wait_until(lambda: not accepts(address), "nobody listens there")
    assert one.alive()
    one.end()
    assert site.lb.wait_log(1, listener="even")[-1]["reason"] == "ok"


def test_a_listener_may_change_what_it_speaks(site: Serving, connect: Connect, servers: dict[str, TcpServer]) -> None:
    port = site.address("even")[1]
    one = connect("even")
    carried = site.native.listeners["even"]
    site.native.listen("even", port)
    with EchoServer("web") as web:
        site.native.serve("shop.test", web.key)
        site.apply()
        with site.connect("even") as client:
            assert client.ask(get("shop.test")).status == 200
        assert one.alive()
        site.native.listeners["even"] = carried
        site.apply()
        assert set(reached(site, "even", 3)) <= {"a", "b", "c"}
        one.end()


def test_a_flow_gives_its_place_to_a_request_that_waits(site: Serving, tmp_path: Path) -> None:
    """TCP and HTTP may share an upstream, and its limits."""
    with EchoServer("web") as web:
        site.native.listen("http", free_port())
        site.native.upstream("shared", [web.key], max_connections=1)
        site.native.host("shop.test", forward("shop", "shared"))
        site.native.carry("shared", free_port(), "shared")
        site.apply()
        with site.connect("shared") as holder:
            wait_until(lambda: site.lb.metric("lb_upstream_requests_active", upstream="shared") == 1, "it is taken")
            with site.connect() as client:
                client.send(get("shop.test"))
                wait_until(lambda: site.lb.metric("lb_upstream_requests_queued", upstream="shared") == 1, "it waits")
                holder.close()
                assert client.response().status == 200


def accepts(address: tuple[str, int]) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(address, DEADLINE):
        return True
    return False


# ------------------------------------------------------------------------------------------------------------- shutdown


def test_stopping_waits_for_flows_and_then_cuts_them(tmp_path: Path, servers: dict[str, TcpServer]) -> None:
    native = Native()
    native.upstream("a", [servers["a"].key])
    native.carry("plain", free_port(), "a")
    with serving(tmp_path, native) as site:
        one = Flow(site, "plain")
        other = Flow(site, "plain")
        port = other.client.socket.getsockname()[1]
        site.lb.signal(signal.SIGTERM)
        wait_until(lambda: not accepts(site.address("plain")), "nothing new is taken")
        assert one.alive()
        one.end()
        site.lb.wait_log(1, reason="ok")
        site.lb.signal(signal.SIGTERM)
        assert ends_by_reset(other.client.socket)
        site.lb.assert_ends()
        assert [one["reason"] for one in site.lb.log_records() if one["client_port"] == port] == ["shutdown"]


# ------------------------------------------------------------------------------------------------------- what lb tells


def test_record_and_counters(site: Serving, servers: dict[str, TcpServer]) -> None:
    with site.connect("split", source="127.0.0.9") as client:
        assert client.socket.recv(1) == b"c"
        client.send(b"hello")
        assert read_exactly(client.socket, 5) == b"hello"
        port = client.socket.getsockname()[1]
        assert site.lb.metric("lb_endpoint_requests_active", upstream="only-c") == 1
        assert site.lb.metric("lb_listener_connections_active", listener="split") == 1
        # Flows may last for days, so their bytes are counted as they pass.
        assert site.lb.metric("lb_listener_received_bytes_total", listener="split") == 5
        assert site.lb.metric("lb_route_sent_bytes_total", route="split") == 6
        assert site.lb.metric("lb_upstream_sent_bytes_total", upstream="only-c") == 5
    (record,) = site.lb.wait_log(1, listener="split")
    expected = {
        "client": "127.0.0.9", "client_port": port, "listener": "split", "protocol": "TCP", "route": "split",
        "upstream": "only-c", "endpoint": servers["c"].key, "bytes_in": 5, "bytes_out": 6, "attempts": 1,
        "reason": "ok", "status": 0, "method": "", "host": "", "target": "", "virtual_host": "", "generation": 1,
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert 0 <= record["connect"] <= record["duration"]
    assert 0 <= record["first_byte"] <= record["duration"]
    assert site.lb.metric("lb_route_received_bytes_total", route="split") == 5
    assert site.lb.metric("lb_route_sent_bytes_total", route="split") == 6
    assert site.lb.metric("lb_upstream_sent_bytes_total", upstream="only-c") == 5
    assert site.lb.metric("lb_upstream_received_bytes_total", upstream="only-c") == 6
    assert site.lb.metric("lb_listener_request_duration_seconds_count", listener="split") == 1
    assert site.lb.metric("lb_listener_requests_total", listener="split") == 0


def test_explain_asks_the_daemon(site: Serving, connect: Connect, servers: dict[str, TcpServer]) -> None:
    one = connect("split")
    port = site.address("split")[1]
    command = [sys.executable, "-m", "lb", "explain", f"tcp://127.0.0.1:{port}", "--live", str(site.lb.admin_socket)]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=True)
    told = json.loads(done.stdout)
    assert (told["reason"], told["action"]) == ("ok", "forward to even (0), only-c (1)")
    (chosen,) = [upstream for upstream in told["upstreams"] if upstream["share"]]
    assert chosen["endpoints"][0]["active"] == 1
    one.end()


def test_ctl_shows_where_connections_go(site: Serving) -> None:
    lines = site.lb.ctl("listeners").splitlines()
    (line,) = [line for line in lines if line.startswith("split")]
    assert "even (0), only-c (1)" in line


def test_rendered_text_serves_the_same(site: Serving, tmp_path: Path) -> None:
    rendered = tmp_path / "rendered.yaml"
    command = [sys.executable, "-m", "lb"]
    done = subprocess.run([*command, "render", str(site.path)], cwd=ROOT, capture_output=True, check=True)
    rendered.write_bytes(done.stdout)
    done = subprocess.run(
        [*command, "diff", str(site.path), str(rendered)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "nothing changes"


def test_http_over_a_listener_that_carries_bytes(site: Serving) -> None:
    with EchoServer("web") as web:
        site.native.upstream("web", [web.key])
        site.native.carry("web", free_port(), "web")
        site.apply()
        with RawClient(site.address("web")) as client:
            first = client.ask(get("shop.test"))
            second = client.ask(get("shop.test", "/again"))
            assert (first.status, second.status) == (200, 200)
            assert b"X-Forwarded-For" not in first.body
