"""UDP through a running lb: who gets the datagrams, what changes do to sessions, and what lb tells of them."""

from __future__ import annotations

import contextlib
import copy
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.native import Native
from tests.harness.netns import Host, require_hosts
from tests.harness.ports import free_port
from tests.harness.process import ROOT
from tests.harness.serving import Serving, serving
from tests.harness.tcp import TcpServer
from tests.harness.tcp import echo as tcp_echo
from tests.harness.udp import UdpServer, ask, echo, hears_nothing, named, udp_client
from tests.harness.waiting import DEADLINE, wait_until


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, UdpServer]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(UdpServer(named(name), port=free_port())) for name in "abc"}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, servers: dict[str, UdpServer]) -> Iterator[Serving]:
    a, b, c = (server.key for server in servers.values())
    native = Native()
    native.upstream("even", [a, b, c])
    native.upstream("sticky", [a, b, c], affinity="client-ip")
    native.upstream("least", [a, b, c], balance="least-connections")
    native.upstream("only-c", [c])
    for name in ("even", "sticky", "least"):
        native.carry_datagrams(name, free_port(), name)
    native.upstream("counted", [c])
    native.upstream("told", [c])
    for name in ("counted", "told"):
        native.carry_datagrams(name, free_port(), {"even": 0, name: 1})
    native.carry_datagrams("split", free_port(), {"even": 0, "only-c": 1})
    native.carry_datagrams("changing", free_port(), "even", drain_timeout="300ms")
    with serving(tmp_path_factory.mktemp("datagrams"), native) as serving_all:
        yield serving_all


@pytest.fixture
def site(started: Serving) -> Iterator[Serving]:
    """One lb for all tests; what a test changes is put back."""
    native = started.native
    before = copy.deepcopy((native.listeners, native.upstreams))
    yield started
    if before != (native.listeners, native.upstreams):
        native.listeners, native.upstreams = before
        started.apply()


def who(site: Serving, listener: str, address: str = "127.0.0.1") -> str:
    """Which server a new client gets to."""
    with udp_client(site.address(listener), address) as client:
        return ask(client, b"?").decode()[0]


# -------------------------------------------------------------------------------------------------------------- balance


def test_shares(site: Serving) -> None:
    assert {who(site, "split") for _ in range(6)} == {"c"}
    assert {who(site, "even") for _ in range(12)} == {"a", "b", "c"}
    for number in range(1, 6):
        assert len({who(site, "sticky", f"127.0.0.{number}") for _ in range(3)}) == 1


def test_sessions_count_as_connections(site: Serving) -> None:
    assert Counter(who(site, "least") for _ in range(9)) == {"a": 3, "b": 3, "c": 3}
    assert site.lb.metric("lb_endpoint_requests_active", upstream="least") == 9


# -------------------------------------------------------------------------------------------------------------- changes


def test_no_datagram_is_lost_while_tables_swap(site: Serving, servers: dict[str, UdpServer]) -> None:
    """Endpoints and listeners around them come and go; each client sends its next datagram when the answer is there."""
    native = site.native
    native.upstream("steady", [server.key for server in servers.values()])
    native.carry_datagrams("steady", free_port(), "steady")
    site.apply()
    stop = threading.Event()
    passed: Counter[int] = Counter()
    failures: list[str] = []

    def talk(number: int) -> None:
        with udp_client(site.address("steady")) as client:
            server = ""
            while not stop.is_set():
                text = b"%d %d" % (number, passed[number])
                try:
                    got = ask(client, text)
                except TimeoutError:
                    failures.append(f"{number} waits for {text!r}")
                    return
                server = server or got[:1].decode()
                if got != server.encode() + text:
                    failures.append(f"{number} of {server}: {got!r}")
                    return
                passed[number] += 1

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for number in range(20):
        names = "abc"[: 1 + number % 3]
        native.upstream("steady", [servers[name].key for name in names])
        native.carry_datagrams(f"extra-{number % 3}", free_port(), "even")
        site.apply()
    before = dict(passed)
    wait_until(lambda: all(passed[one] > before.get(one, 0) + 5 for one in range(len(threads))), "all of them go on")
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    wait_until(lambda: site.lb.metric("lb_tables_pinned") == 0, "sessions keep no table", interval=0.05)
    assert site.lb.metric("lb_listener_datagrams_dropped_total", listener="steady") == 0


def test_a_removed_endpoint_has_its_time_and_then_its_clients_move(
    site: Serving, servers: dict[str, UdpServer]
) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(udp_client(site.address("changing"))) for _ in range(9)]
        ports = {client.getsockname()[1] for client in clients}
        assert {ask(client, b"?")[:1] for client in clients} == {b"a", b"b", b"c"}
        site.native.upstream("even", [servers["a"].key])
        site.apply()
        # Under traffic all the while: not one datagram is without an answer.
        wait_until(lambda: {ask(client, b"?")[:1] for client in clients} == {b"a"}, "all of them have moved")
        records = site.lb.wait_log(6, listener="changing", reason="endpoint-removed")
        left = {record["endpoint"] for record in records if record["client_port"] in ports}
        assert left == {servers["b"].key, servers["c"].key}


def lead_to(site: Serving, name: str, server: UdpServer) -> None:
    """A listener of this name, or what it leads to from now on."""
    site.native.upstream(name, [server.key])
    if name not in site.native.listeners:
        site.native.carry_datagrams(name, free_port(), name, drain_timeout="100ms")
    site.apply()


def test_who_has_asked_when_the_time_is_over_gets_the_answer(site: Serving) -> None:
    """And the next question goes to another endpoint."""
    with UdpServer() as slow, UdpServer(named("other")) as other:
        lead_to(site, "asked", slow)
        with udp_client(site.address("asked")) as idle, udp_client(site.address("asked")) as waiting:
            for client in (idle, waiting):
                client.send(b"first")
                _, session = slow.receive()
                slow.send(b"answer", session)
                assert client.recv(100) == b"answer"
            waiting.send(b"late")
            slow.receive()
            lead_to(site, "asked", other)
            site.lb.wait_log(listener="asked", client_port=idle.getsockname()[1], reason="endpoint-removed")
            slow.send(b"late answer", session)
            assert waiting.recv(100) == b"late answer"
            assert ask(waiting, b"?") == b"other?"
            site.lb.wait_log(listener="asked", client_port=waiting.getsockname()[1], reason="endpoint-removed")


def test_who_gets_no_answer_leaves_a_removed_endpoint_all_the_same(site: Serving) -> None:
    with UdpServer() as mute, UdpServer(named("other")) as other:
        lead_to(site, "mute", mute)
        with udp_client(site.address("mute")) as client:
            client.send(b"?")
            mute.receive()
            lead_to(site, "mute", other)

            def asks_on() -> bool:
                client.send(b"?")
                return other.datagrams > 0

            wait_until(asks_on, "the client is sent elsewhere", interval=0.02)


def test_an_endpoint_that_comes_back_keeps_its_sessions(site: Serving, servers: dict[str, UdpServer]) -> None:
    site.native.listeners["changing"]["datagram"]["drain_timeout"] = "1h"
    site.apply()
    with udp_client(site.address("changing")) as client:
        port = client.getsockname()[1]
        name = ask(client, b"?")[:1].decode()
        every = site.native.upstreams["even"]
        site.native.upstream("even", [servers[other].key for other in "abc" if other != name])
        site.apply()
        assert ask(client, b"?")[:1].decode() == name
        site.native.upstreams["even"] = every
        site.apply()
        assert ask(client, b"?")[:1].decode() == name
    assert [one for one in site.lb.log_records() if one["client_port"] == port] == []


def test_an_endpoint_that_is_set_down_loses_its_sessions(site: Serving, servers: dict[str, UdpServer]) -> None:
    with udp_client(site.address("changing")) as client:
        port = client.getsockname()[1]
        name = ask(client, b"?")[:1].decode()
        site.lb.ctl("down", "even", servers[name].key)
        wait_until(lambda: ask(client, b"?")[:1].decode() != name, "it moves")
        (record,) = site.lb.wait_log(1, client_port=port)
        assert (record["reason"], record["endpoint"]) == ("endpoint-removed", servers[name].key)
        site.lb.ctl("ready", "even", servers[name].key)


def test_a_listener_that_leads_elsewhere_moves_its_clients(site: Serving) -> None:
    with udp_client(site.address("changing")) as client:
        port = client.getsockname()[1]
        ask(client, b"?")
        site.native.listeners["changing"]["datagram"]["forward"] = "only-c"
        site.apply()
        wait_until(lambda: ask(client, b"?")[:1] == b"c", "it moves")
        ended = [one["reason"] for one in site.lb.log_records() if one["client_port"] == port]
        assert ended in ([], ["endpoint-removed"])  # it may have been with c from the beginning


def test_a_removed_listener_ends_its_sessions(site: Serving) -> None:
    address = site.address("even")
    with udp_client(address) as client:
        ask(client, b"?")
        port = client.getsockname()[1]
        carried = site.native.listeners.pop("even")
        site.apply()
        site.lb.wait_log(1, listener="even", client_port=port, reason="listener-removed")
        with pytest.raises(ConnectionRefusedError):
            wait_until(lambda: client.send(b"?") and hears_nothing(client, 0.02) and False, "nobody is there")
        # Also at another address, under the same name.
        site.native.listeners["even"] = {**carried, "address": "127.0.0.53"}
        site.apply()
        with udp_client(("127.0.0.53", address[1])) as other:
            assert ask(other, b"?")[:1] in (b"a", b"b", b"c")


def echo_by_tcp(address: tuple[str, int]) -> bytes:
    """Empty when the connection is refused or cut, which may happen while lb goes from one socket to another."""
    try:
        with socket.create_connection(address, DEADLINE) as client:
            client.sendall(b"tcp")
            return client.recv(10)
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        return b""


def answer_by_udp(address: tuple[str, int]) -> bytes:
    """Empty when none comes at once."""
    with udp_client(address) as client, contextlib.suppress(TimeoutError, ConnectionRefusedError):
        client.settimeout(0.2)
        return ask(client, b"?")
    return b""


def ask_by_tcp_until(over: threading.Event, address: tuple[str, int]) -> None:
    """Whatever else happens, what comes back is the echo."""
    while not over.is_set():
        assert echo_by_tcp(address) in (b"tcp", b"")


def test_tcp_and_udp_share_a_port_and_a_listener_may_change_between_them(site: Serving) -> None:
    with TcpServer(tcp_echo) as server:
        site.native.upstream("tcp", [server.key])
        port = site.address("even")[1]
        site.native.carry("even-tcp", port, "tcp")
        site.apply()
        address = site.address("even")
        over = threading.Event()
        with ThreadPoolExecutor() as pool:
            asking = pool.submit(ask_by_tcp_until, over, address)
            try:
                for _ in range(11):
                    listeners = site.native.listeners
                    listeners["even"], listeners["even-tcp"] = listeners["even-tcp"], listeners["even"]
                    site.apply()
                    wait_until(lambda: echo_by_tcp(address) == b"tcp", "TCP is served")
                    wait_until(lambda: answer_by_udp(address)[:1] in (b"a", b"b", b"c"), "UDP is served")
            finally:
                over.set()
            asking.result()


def test_sessions_leave_an_endpoint_that_fails_its_checks(site: Serving, servers: dict[str, UdpServer]) -> None:
    """The endpoints' health is asked by TCP. Nobody would tell a client that its endpoint is dead."""
    with contextlib.ExitStack() as stack:
        checked = {name: TcpServer(tcp_echo, port=servers[name].port) for name in "ab"}
        for one in checked.values():
            stack.callback(one.close)
        check = {"type": "tcp", "interval": "100ms", "fast_interval": "100ms", "fall": 1}
        site.native.upstream("checked", [servers[name].key for name in "ab"], health_check=check)
        site.native.carry_datagrams("checked", free_port(), "checked")
        site.apply()
        wait_until(lambda: site.lb.metric("lb_endpoint_up", upstream="checked") == 2, "both are healthy")
        with udp_client(site.address("checked")) as client:
            name = ask(client, b"?")[:1].decode()
            port = client.getsockname()[1]
            other = "b" if name == "a" else "a"
            checked[name].close()
            (record,) = site.lb.wait_log(1, listener="checked", client_port=port)
            assert (record["reason"], record["endpoint"]) == ("endpoint-unhealthy", servers[name].key)
            assert ask(client, b"?")[:1].decode() == other


def test_a_narrow_way_takes_no_trains(tmp_path: Path) -> None:
    """Where pieces are longer than the MTU a train cannot be cut into them, but single datagrams can be fragmented."""
    require_hosts()
    with Host("narrow") as host, host.entered():
        host.ip("link set lo mtu 1300")
        native = Native()
        with UdpServer(echo) as echoing, UdpServer() as held:
            native.upstream("echo", [echoing.key])
            native.upstream("held", [held.key])
            native.carry_datagrams("echo", free_port(), "echo")
            native.carry_datagrams("held", free_port(), "held")
            with serving(tmp_path, native) as site:
                with udp_client(site.address("echo")) as client:
                    for size in (1_400, 1_000):
                        burst = [bytes([number]) * size for number in range(20)]
                        for data in burst * 3:
                            client.send(data)
                        assert [client.recv(2_000) for _ in burst * 3] == burst * 3
                with udp_client(site.address("held")) as client:
                    client.send(b"begin")
                    _, session = held.receive()
                    burst = [bytes([number]) * 1_400 for number in range(40)]
                    for _ in range(5):
                        for data in burst:
                            held.send(data, session)
                        assert [client.recv(2_000) for _ in burst] == burst


def test_trains_that_wait_when_a_way_turns_out_to_be_narrow(tmp_path: Path) -> None:
    """While lb finds out that the client's way takes no such trains, more of the endpoint's have come."""
    require_hosts()
    with Host("narrowing") as host, host.entered():
        host.ip("route add local 127.9.0.0/16 dev lo mtu 1000 table local")
        native = Native()
        with UdpServer() as held:
            native.upstream("held", [held.key])
            native.carry_datagrams("held", free_port(), "held", address="0.0.0.0")
            with serving(tmp_path, native) as site, udp_client(site.address("held"), "127.9.0.1") as client:
                client.send(b"begin")
                _, session = held.receive()
                for piece in (400, 1_200):
                    with site.lb.stopped():
                        for number in range(6):
                            held.send_train(bytes([number]) * 20 * piece, piece, session)
                    assert [client.recv(70_000) for _ in range(120)] == [bytes([i // 20]) * piece for i in range(120)]
                    for _ in range(3):  # so that lb asks for one at a time again
                        held.send(b"single", session)
                        assert client.recv(70_000) == b"single"


# ------------------------------------------------------------------------------------------------------------- shutdown


def test_stopping_waits_for_sessions_that_speak(tmp_path: Path, servers: dict[str, UdpServer]) -> None:
    native = Native()
    native.upstream("a", [servers["a"].key])
    native.carry_datagrams("plain", free_port(), "a")
    with (
        serving(tmp_path, native) as site,
        udp_client(site.address("plain")) as speaking,
        udp_client(site.address("plain")) as silent,
    ):
        ports = [one.getsockname()[1] for one in (speaking, silent)]
        ask(speaking, b"1")
        ask(silent, b"1")
        site.lb.signal(signal.SIGTERM)
        wait_until(lambda: "draining" in site.lb.stderr, "it drains")

        def silent_has_ended() -> bool:
            time.sleep(0.05)  # the rhythm in which one of them speaks
            assert ask(speaking, b"2") == b"a2"
            return any(one["client_port"] == ports[1] for one in site.lb.log_records())

        wait_until(silent_has_ended, "who says nothing is not waited for")
        site.lb.assert_ends()
        reasons = {one["client_port"]: one["reason"] for one in site.lb.log_records()}
        assert reasons == dict.fromkeys(ports, "drain")


def test_who_comes_while_lb_stops_is_served_and_not_waited_for(tmp_path: Path, servers: dict[str, UdpServer]) -> None:
    """What lb still waits for, a TCP connection here, may take its time; the others have no other lb meanwhile."""
    native = Native()
    native.upstream("a", [servers["a"].key])
    native.carry_datagrams("plain", free_port(), "a")
    with TcpServer(tcp_echo) as server:
        native.upstream("server", [server.key])
        native.carry("tcp", free_port(), "server")
        with serving(tmp_path, native) as site, udp_client(site.address("plain")) as late:
            with site.connect("tcp") as held:
                held.send(b"1")
                assert held.reader.take(1) == b"1"
                site.lb.signal(signal.SIGTERM)
                wait_until(lambda: "draining" in site.lb.stderr, "it drains")
                site.lb.metrics()  # answered when all that was to be done for it has been done
                for _ in range(20):
                    assert ask(late, b"2") == b"a2"
            site.lb.assert_ends()
            (record,) = [one for one in site.lb.log_records() if one["protocol"] == "UDP"]
            assert (record["client_port"], record["reason"]) == (late.getsockname()[1], "shutdown")


# ------------------------------------------------------------------------------------------------------- what lb tells


def test_record_and_counters(site: Serving, servers: dict[str, UdpServer]) -> None:
    with udp_client(site.address("counted"), "127.0.0.9") as client:
        assert [ask(client, b"12345"), ask(client, b"")] == [b"c12345", b"c"]
        port = client.getsockname()[1]
    wanted = {
        "lb_listener_connections_total": 1, "lb_listener_connections_active": 1,
        "lb_listener_datagrams_received_total": 2, "lb_listener_datagrams_sent_total": 2,
        "lb_listener_datagrams_dropped_total": 0, "lb_listener_sessions_evicted_total": 0,
        "lb_listener_received_bytes_total": 5, "lb_listener_sent_bytes_total": 7,
    }  # fmt: skip
    assert {name: site.lb.metric(name, listener="counted") for name in wanted} == wanted
    assert site.lb.metric("lb_route_received_bytes_total", route="counted") == 5
    assert site.lb.metric("lb_upstream_sent_bytes_total", upstream="counted") == 5
    assert site.lb.metric("lb_upstream_received_bytes_total", upstream="counted") == 7
    assert site.lb.metric("lb_endpoint_requests_active", upstream="counted") == 1
    (info,) = [one for one in site.lb.get("/v1/listeners") if one["name"] == "counted"]
    assert info["address"] == f"127.0.0.1:{site.address('counted')[1]}/udp"
    assert (info["protocol"], info["forward"], info["connections_active"]) == ("udp", "even (0), counted (1)", 1)
    assert info["datagrams"] == {"received": 2, "sent": 2, "dropped": {}, "sessions_evicted": 0}
    assert f"{info['address']} " in site.lb.ctl("listeners")
    del site.native.listeners["counted"]
    site.apply()
    (record,) = site.lb.wait_log(1, listener="counted")
    expected = {
        "client": "127.0.0.9", "client_port": port, "listener": "counted", "protocol": "UDP", "route": "counted",
        "upstream": "counted", "endpoint": servers["c"].key, "bytes_in": 5, "bytes_out": 7, "attempts": 1,
        "reason": "listener-removed", "status": 0, "method": "", "host": "", "target": "", "virtual_host": "",
    }  # fmt: skip
    assert {key: record[key] for key in expected} == expected
    assert 0 <= record["first_byte"] <= record["duration"]


def test_explain_asks_the_daemon(site: Serving, servers: dict[str, UdpServer]) -> None:
    who(site, "told")
    port = site.address("told")[1]
    command = [sys.executable, "-m", "lb", "explain", f"udp://127.0.0.1:{port}", "--live", str(site.lb.admin_socket)]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=True)
    told = json.loads(done.stdout)
    assert (told["method"], told["reason"], told["action"]) == ("UDP", "ok", "forward to even (0), told (1)")
    (endpoint,) = told["upstreams"][1]["endpoints"]
    assert (endpoint["key"], endpoint["active"]) == (servers["c"].key, 1)
    assert told["listeners"][0]["bind"] == f"127.0.0.1:{port}/udp"


def test_a_port_that_is_taken_is_a_problem(site: Serving) -> None:
    with UdpServer(named("x")) as rival:
        site.native.carry_datagrams("taken", rival.port, "even")
        site.apply()
        problems = site.lb.get("/v1/problems")["items"]
        (problem,) = [one for one in problems if one["code"] == "LB6001"]
        assert "listener taken cannot be opened" in problem["what"]
        assert f"{rival.port}/udp" in problem["what"]
        assert problem["fix"].endswith("/udp")
    site.lb.signal(signal.SIGHUP)
    wait_until(lambda: site.lb.metric("lb_listener_up", listener="taken") == 1, "it is opened when the port is free")
