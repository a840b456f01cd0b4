"""Flows that end although neither side wants it: because health checks say so, or an operator."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.client import RawClient
from tests.harness.client_hello import Hello
from tests.harness.many import EchoLoop, descriptors
from tests.harness.native import Native
from tests.harness.payload import payload
from tests.harness.ports import free_port
from tests.harness.process import LbProcess
from tests.harness.serving import Serving, flows, serving
from tests.harness.tcp import TcpServer, black_hole, ends_by_reset, named, read_exactly, reset
from tests.harness.tcp import echo as tcp_echo
from tests.harness.udp import UdpServer, ask, begin_sessions, echo, udp_client, udp_socket
from tests.harness.waiting import SANITIZED, wait_until

FAST: dict[str, Any] = {"type": "tcp", "interval": "100ms", "fast_interval": "100ms", "fall": 1, "rise": 1}
RESETS = {**FAST, "open_flows": "reset"}


def total(site: Serving, **filters: object) -> int:
    count: int = flows(site, **filters, limit=0)["total"]
    return count


def is_alive(client: socket.socket) -> bool:
    client.sendall(b"still here")
    return read_exactly(client, 10) == b"still here"


def healthy(lb: LbProcess, upstream: str) -> float:
    return lb.metric("lb_endpoint_up", upstream=upstream)


@contextmanager
def closing(*servers: TcpServer) -> Iterator[None]:
    with ExitStack() as stack:
        for one in servers:
            stack.callback(one.close)
        yield


# -------------------------------------------------------------------------------------------------------- health checks


def test_flows_of_an_endpoint_that_fails_its_checks_are_reset_where_the_upstream_says_so(tmp_path: Path) -> None:
    """It still takes bytes: only its checks fail. Flows of others, and those of upstreams that keep them, go on."""
    native = Native()
    well, ill = TcpServer(named("w")), TcpServer(named("i"))
    with closing(well, ill):
        for name, check in (("resets", RESETS), ("keeps", FAST), ("unchecked", "off")):
            native.upstream(name, [well.key, ill.key], health_check=check)
            native.carry(name, free_port(), name)
        with serving(tmp_path, native) as site, ExitStack() as stack:
            wait_until(lambda: healthy(site.lb, "resets") == healthy(site.lb, "keeps") == 2, "all are healthy")
            clients: dict[str, list[tuple[str, socket.socket]]] = {}
            for name in ("resets", "keeps", "unchecked"):
                for _ in range(8):
                    client = stack.enter_context(site.connect(name)).socket
                    clients.setdefault(name, []).append((client.recv(1).decode(), client))
            of_ill = [client for name, client in clients["resets"] if name == "i"]
            assert 0 < len(of_ill) < 8
            ill.close()
            assert all(ends_by_reset(client) for client in of_ill)
            assert all(is_alive(client) for name, client in clients["resets"] if name == "w")
            assert all(is_alive(client) for name in ("keeps", "unchecked") for _, client in clients[name])
            records = site.lb.wait_log(len(of_ill), reason="endpoint-unhealthy")
            assert {(one["listener"], one["endpoint"]) for one in records} == {("resets", ill.key)}
            assert site.lb.metric("lb_exchange_end_total", reason="endpoint-unhealthy") == len(of_ill)
            assert total(site, upstream="resets", endpoint=ill.key) == 0
            assert total(site, upstream="keeps", endpoint=ill.key) > 0


def test_what_waits_for_a_client_is_not_waited_for(tmp_path: Path) -> None:
    """Neither bytes that a side has not taken, nor an end of one half, hold a reset up."""
    native = Native()
    with TcpServer() as server:
        native.upstream("resets", [server.key], health_check=RESETS)
        native.carry("resets", free_port(), "resets", idle_timeout="1h", half_closed_timeout="1h")
        with serving(tmp_path, native) as site, ExitStack() as stack:
            stack.callback(server.close)
            peers: list[socket.socket] = []

            def peer_of(client: RawClient) -> socket.socket:
                """Checks connect as well: they end, and say nothing."""
                client.send(b"!")
                while (peer := server.accept()).recv(1) != b"!":
                    peer.close()
                peers.append(stack.enter_context(peer))
                return peer

            slow = stack.enter_context(site.connect("resets", receive_buffer=4_096))
            sender = threading.Thread(target=send_much, args=(peer_of(slow),))
            sender.start()
            half = stack.enter_context(site.connect("resets"))
            peer_of(half).shutdown(socket.SHUT_WR)
            assert half.socket.recv(1) == b""
            wait_until(
                lambda: (
                    {one["state"] for one in flows(site)["items"]} == {"open", "half-closed-endpoint"}
                    and any(one["waiting_for_client"] for one in flows(site)["items"])
                ),
                "bytes wait, and one half has ended",
            )
            server.close()
            assert len(site.lb.wait_log(2, reason="endpoint-unhealthy")) == 2
            sender.join()
            assert ends_by_reset(peers[1])


def send_much(peer: socket.socket) -> None:
    """Until nobody takes it any more."""
    try:
        while True:
            peer.sendall(payload(1 << 20))
    except OSError:
        peer.close()


def test_a_flow_that_is_still_connecting_goes_elsewhere(tmp_path: Path) -> None:
    """Nothing of the client's has been read: it need not know."""
    native = Native()
    port = free_port()
    with black_hole() as hole, TcpServer(named("b"), address="127.0.0.2") as other:
        dying = TcpServer(address="127.0.0.1", port=port)
        with closing(dying, TcpServer(address="127.0.0.2", port=port)):
            check = {**RESETS, "port": port}
            native.upstream("resets", [hole, other.key], health_check=check, connect_timeout="1h")
            native.upstream("alone", [hole], health_check=check, connect_timeout="1h")
            native.upstream("keeps", [hole], health_check={**FAST, "port": port}, connect_timeout="1h")
            for name in native.upstreams:
                native.carry(name, free_port(), name)
            with serving(tmp_path, native) as site, ExitStack() as stack:
                wait_until(lambda: healthy(site.lb, "resets") == 2, "both are healthy")
                clients = [stack.enter_context(site.connect("resets")).socket for _ in range(6)]
                alone = stack.enter_context(site.connect("alone")).socket
                kept = stack.enter_context(site.connect("keeps")).socket
                wait_until(lambda: connecting(site, "alone") == connecting(site, "keeps") == 1, "both are connecting")
                assert wait_until(lambda: connecting(site, "resets"), "some are connecting")
                dying.close()
                assert [client.recv(1) for client in clients] == [b"b"] * 6
                assert all(is_alive(client) for client in clients)
                assert ends_by_reset(alone), "there is nobody else"
                (record,) = site.lb.wait_log(1, listener="alone")
                assert (record["reason"], record["endpoint"], record["attempts"]) == ("endpoint-unhealthy", hole, 1)
                assert connecting(site, "keeps") == 1
                reset(kept)
                for client in clients:
                    client.close()
                records = site.lb.wait_log(len(clients), listener="resets")
                told = {(one["attempts"], one["failed_attempts"]) for one in records}
                assert told == {(1, ""), (2, f"{hole} endpoint-unhealthy")}
                assert site.lb.metric("lb_upstream_connect_failures_total", upstream="resets") == 0


def connecting(site: Serving, listener: str) -> int:
    return sum(one["state"] == "connecting" for one in flows(site, listener=listener)["items"])


def test_flows_that_begin_while_all_fail_and_serve_are_left_alone(tmp_path: Path) -> None:
    """Each endpoint loses its flows when it is found to fail, the last one too. Those that come afterwards come to
    endpoints that fail, which lb knows: they end when somebody wants it."""
    native = Native()
    port = free_port()
    checked = TcpServer(port=port)
    with TcpServer(named("a")) as a, TcpServer(named("b")) as b, closing(checked):
        native.upstream("resets", [a.key, b.key], health_check={**RESETS, "port": port})
        native.carry("resets", free_port(), "resets")
        with serving(tmp_path, native) as site, ExitStack() as stack:
            wait_until(lambda: healthy(site.lb, "resets") == 2, "both are healthy")
            before = [stack.enter_context(site.connect("resets")).socket for _ in range(4)]
            assert Counter(client.recv(1) for client in before).keys() == {b"a", b"b"}
            checked.close()
            assert all(ends_by_reset(client) for client in before)
            wait_until(lambda: healthy(site.lb, "resets") == 0, "both fail")
            after = [stack.enter_context(site.connect("resets")).socket for _ in range(4)]
            assert Counter(client.recv(1) for client in after).keys() == {b"a", b"b"}
            failed = checks(site.lb, "refused")
            wait_until(lambda: checks(site.lb, "refused") >= failed + 4, "they fail again")
            assert all(is_alive(client) for client in after)
            with TcpServer(port=port) as again:
                wait_until(lambda: healthy(site.lb, "resets") == 2, "both are healthy again")
                assert all(is_alive(client) for client in after)
                again.close()
                assert all(ends_by_reset(client) for client in after)


def checks(lb: LbProcess, result: str) -> float:
    return lb.metric("lb_health_checks_total", result=result)


def test_an_upstream_that_is_told_to_reset_later_does_so_when_an_endpoint_fails_next(tmp_path: Path) -> None:
    native = Native()
    port = free_port()
    with TcpServer(named("a")) as a:
        native.upstream("web", [a.key], health_check={**FAST, "port": port})
        native.carry("web", free_port(), "web")
        with serving(tmp_path, native) as site, ExitStack() as stack:
            wait_until(lambda: checks(site.lb, "refused") >= 1, "it fails")
            client = stack.enter_context(site.connect("web")).socket
            assert client.recv(1) == b"a"
            native.upstreams["web"]["health_check"]["open_flows"] = "reset"
            site.apply()
            failed = checks(site.lb, "refused")
            wait_until(lambda: checks(site.lb, "refused") >= failed + 2, "it fails again")
            assert is_alive(client)
            with TcpServer(port=port) as checked:
                wait_until(lambda: healthy(site.lb, "web") == 1, "it is healthy")
                assert is_alive(client)
                checked.close()
                assert ends_by_reset(client)


def test_flows_by_server_name_are_reset_as_well(tmp_path: Path) -> None:
    native = Native()
    server = TcpServer(tcp_echo)
    with closing(server):
        native.upstream("web", [server.key], health_check=RESETS)
        native.carry_tls("named", free_port(), {"*": "web"})
        with serving(tmp_path, native) as site, site.connect("named") as client:
            wait_until(lambda: healthy(site.lb, "web") == 1, "it is healthy")
            hello = Hello(b"db.example.com").records()
            client.send(hello)
            assert read_exactly(client.socket, len(hello)) == hello
            server.close()
            assert ends_by_reset(client.socket)


def test_hundreds_of_flows_of_one_endpoint_are_reset_and_no_other(tmp_path: Path) -> None:
    """More than one turn resets; flows of the endpoint end by themselves meanwhile, and new ones begin elsewhere."""
    native = Native()
    port = free_port()
    with ExitStack() as stack:
        given = stack.enter_context(descriptors(20_000))
        count = 600 if SANITIZED else min(3_000, given // 8)
        servers = stack.enter_context(EchoLoop(2))
        ill, well = servers.addresses
        checked = TcpServer(address=ill.partition(":")[0], port=port)
        stack.enter_context(closing(checked, TcpServer(address=well.partition(":")[0], port=port)))
        native.upstream("web", servers.addresses, health_check={**RESETS, "port": port})
        native.carry("web", free_port(), "web")
        site = stack.enter_context(serving(tmp_path, native, open_files=given))
        wait_until(lambda: healthy(site.lb, "web") == 2, "both are healthy")
        clients = [stack.enter_context(site.connect("web")) for _ in range(count)]
        wait_until(lambda: states(site) == {"open"} and total(site) == count, "all are connected")
        of_ill = total(site, endpoint=ill)
        assert count // 3 < of_ill < count * 2 // 3
        over = threading.Event()
        wrong: list[str] = []

        def come_and_go() -> None:
            while not over.is_set():
                with site.connect("web") as client:
                    client.send(b"x")
                    if client.socket.recv(1) != b"x":
                        wrong.append("one that came later was ended")

        checked.close()
        comer = threading.Thread(target=come_and_go)
        wait_until(lambda: healthy(site.lb, "web") == 1, "one fails")
        comer.start()
        try:
            wait_until(lambda: total(site, endpoint=ill) == 0, "its flows are over")
        finally:
            over.set()
            comer.join()
        assert not wrong
        assert len(site.lb.wait_log(of_ill, reason="endpoint-unhealthy")) == of_ill
        alive = sum(_is_alive_or_reset(client.socket) for client in clients)
        assert alive == count - of_ill
        site.lb.assert_healthy()


def states(site: Serving) -> set[str]:
    return {one["state"] for one in flows(site, limit=1_000)["items"]}


def _is_alive_or_reset(client: socket.socket) -> bool:
    try:
        return is_alive(client)
    except (ConnectionResetError, BrokenPipeError):
        return False


def test_an_endpoint_that_is_removed_while_its_flows_are_reset(tmp_path: Path) -> None:
    """Flaps, removals and returns with flows at every moment: whoever still has to do with it finds it there."""
    native = Native()
    port = free_port()
    with ExitStack() as stack:
        given = stack.enter_context(descriptors(8_000))
        servers = stack.enter_context(EchoLoop(2))
        ill, well = servers.addresses
        native.upstream("web", [well], health_check={**RESETS, "port": port})
        native.carry("web", free_port(), "web", drain_timeout="50ms")
        stack.enter_context(closing(TcpServer(address=well.partition(":")[0], port=port)))
        site = stack.enter_context(serving(tmp_path, native, open_files=given))
        for _ in range(3 if SANITIZED else 6):
            with ExitStack() as opened:
                with TcpServer(address=ill.partition(":")[0], port=port):
                    native.upstreams["web"]["endpoints"] = [ill, well]
                    site.apply()
                    wait_until(lambda: healthy(site.lb, "web") == 2, "both are healthy")
                    for _ in range(400):
                        opened.enter_context(site.connect("web"))
                    assert total(site, endpoint=ill) > 0
                native.upstreams["web"]["endpoints"] = [well]
                site.apply()
                wait_until(lambda: total(site, endpoint=ill) == 0, "its flows are over")
        site.lb.assert_healthy()


# ---------------------------------------------------------------------------------------------------------- an operator


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, TcpServer]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(TcpServer(named(name))) for name in "ab"}


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, servers: dict[str, TcpServer]
) -> Iterator[Serving]:
    native = Native()
    with ExitStack() as stack:
        for name, server in servers.items():
            native.upstream(name, [server.key])
            native.carry(name, free_port(), name)
        native.upstream("both", [server.key for server in servers.values()])
        native.carry("both", free_port(), "both")
        native.upstream("lost", [stack.enter_context(black_hole())], connect_timeout="1h")
        native.carry("lost", free_port(), "lost")
        native.upstream("echo", [stack.enter_context(UdpServer(echo)).key])
        native.carry_datagrams("dns", free_port(), "echo")
        yield stack.enter_context(serving(tmp_path_factory.mktemp("ended"), native, threads=request.param))


def end(site: Serving, **which: str) -> dict[str, Any]:
    status, content = site.lb.admin("/v1/flows/end", "POST", which)
    assert status == 200, content
    answer: dict[str, Any] = json.loads(content)
    assert sum(one["connections"] for one in answer["endpoints"]) == answer["connections"]
    assert sum(one["sessions"] for one in answer["endpoints"]) == answer["sessions"]
    return answer


Connect = Callable[..., socket.socket]


@pytest.fixture
def connect(site: Serving) -> Iterator[Connect]:
    """Opens flows to servers that have said their names; all are closed at the end."""
    with ExitStack() as stack:

        def open_one(listener: str, source: str = "127.0.0.1") -> socket.socket:
            client = stack.enter_context(site.connect(listener, source=source)).socket
            assert client.recv(1) in (b"a", b"b")
            return client

        yield open_one
    wait_until(lambda: total(site, client="127.0.0.0/16", listener="a") == 0, "they are over")
    wait_until(lambda: total(site, listener="b") == total(site, listener="both") == 0, "they are over")


@pytest.mark.parametrize(
    ("which", "ends"),
    [
        ({"listener": "a"}, {"a1", "a2"}),
        ({"client": "127.0.5.0/24"}, {"a2", "b2"}),
        ({"client": "127.0.5.2", "listener": "b"}, {"b2"}),
        ({"endpoint": "b"}, {"b1", "b2"}),
        ({"upstream": "b"}, {"b1", "b2"}),
        ({"endpoint": "a", "upstream": "b"}, set()),
    ],
)
def test_those_that_match_end_and_no_others(
    site: Serving, connect: Connect, servers: dict[str, TcpServer], which: dict[str, str], ends: set[str]
) -> None:
    if "endpoint" in which:
        which = {**which, "endpoint": servers[which["endpoint"]].key}
    clients = {
        f"{name}{number}": connect(name, source=f"127.0.{3 + number}.{number}") for name in "ab" for number in (1, 2)
    }
    places = {client.getsockname(): name for name, client in clients.items()}
    before = len(site.lb.log_records())
    answer = end(site, **which)
    assert (answer["connections"], answer["sessions"]) == (len(ends), 0)
    for name, client in clients.items():
        assert ends_by_reset(client) if name in ends else is_alive(client), name

    def ended() -> set[str]:
        records = site.lb.log_records()[before:]
        return {places[one["client"], one["client_port"]] for one in records if one["reason"] == "ended-by-operator"}

    wait_until(lambda: ended() == ends, "the log says so")


def test_ctl_ends_connections_and_sessions(site: Serving, connect: Connect, servers: dict[str, TcpServer]) -> None:
    clients = [connect("both", "127.0.6.1") for _ in range(4)]
    before = site.lb.metric("lb_exchange_end_total", reason="ended-by-operator")
    with udp_client(site.address("dns"), "127.0.6.1") as client:
        assert ask(client, b"who") == b"who"
        port = client.getsockname()[1]
        shown = site.lb.ctl("end-flows", "--client", "127.0.6.1").splitlines()
        assert shown[0] == "ended 4 TCP connections and 1 UDP session"
        rows = {tuple(line.split()) for line in shown[3:]}
        assert {row[1:] for row in rows} == {("both", "2", "0"), ("echo", "0", "1")}
        assert {row[0] for row in rows} >= {server.key for server in servers.values()}
        assert all(ends_by_reset(client) for client in clients)
        (record,) = site.lb.wait_log(1, client_port=port, listener="dns")
        assert (record["reason"], record["bytes_in"], record["bytes_out"]) == ("ended-by-operator", 3, 3)
        assert ask(client, b"again") == b"again", "a new session"
        assert total(site, client="127.0.6.1") == 1
        assert site.lb.ctl("end-flows", "--client", "127.0.6.1").startswith("ended 1 UDP session\n")
    assert site.lb.metric("lb_exchange_end_total", reason="ended-by-operator") == before + 6
    assert "no UDP session matches" in site.lb.ctl("end-flows", "--client", "127.0.6.1")
    assert "flows ended" in site.lb.stderr


def test_flows_that_are_connecting_end_too(site: Serving) -> None:
    with site.connect("lost") as client:
        wait_until(lambda: connecting(site, "lost") == 1, "it is connecting")
        assert end(site, listener="lost")["connections"] == 1
        assert ends_by_reset(client.socket)
    (record,) = site.lb.wait_log(1, listener="lost")
    assert (record["reason"], record["attempts"]) == ("ended-by-operator", 1)


@pytest.mark.parametrize(
    ("which", "status", "text"),
    [
        ({}, 400, "say which: `listener`, `client`, `endpoint`, `upstream`, or several of them"),
        ({"listener": ""}, 400, "say which: "),
        ({"listens": "a"}, 400, "unknown field `listens`"),
        ({"listener": "aa"}, 404, "there is no listener aa"),
        ({"upstream": "ecko"}, 404, "there is no upstream ecko; did you mean `echo`?"),
        ({"client": "x"}, 400, "`client` is an address or network like"),
        ({"endpoint": "x"}, 400, "`endpoint`: 'x' is not an address such as"),
    ],
)
def test_what_is_not_said_well_ends_nothing(
    site: Serving, connect: Connect, which: dict[str, str], status: int, text: str
) -> None:
    client = connect("a")
    got, content = site.lb.admin("/v1/flows/end", "POST", which)
    assert got == status
    assert text in content.decode()
    assert is_alive(client)


def test_thousands_end_in_many_turns_and_each_once(tmp_path: Path) -> None:
    """Of TCP and UDP, while others end by themselves and new ones come; those that are not meant go on."""
    native = Native()
    with ExitStack() as stack:
        given = stack.enter_context(descriptors(30_000))
        count = 400 if SANITIZED else min(4_000, given // 8)
        loop = stack.enter_context(EchoLoop(2))
        native.upstream("web", loop.addresses)
        native.upstream("silent", [stack.enter_context(UdpServer()).key])
        native.carry("web", free_port(), "web")
        native.carry_datagrams("dns", free_port(), "silent", address="0.0.0.0", max_sessions=100_000)
        site = stack.enter_context(serving(tmp_path, native, None, open_files=given))
        meant = [stack.enter_context(site.connect("web", source="127.0.7.1")) for _ in range(count)]
        others = [stack.enter_context(site.connect("web", source="127.0.8.1")) for _ in range(50)]
        port = site.address("dns")[1]
        sender = stack.enter_context(udp_socket("127.0.7.1"))
        begin_sessions(sender, port, count, lambda: total(site, listener="dns"))
        wait_until(lambda: total(site, listener="web") == count + 50, "all have been let in")
        over = threading.Event()

        def come_and_go() -> None:
            while not over.is_set():
                with site.connect("web", source="127.0.8.2") as client:
                    client.send(b"x")
                    assert client.socket.recv(1) == b"x"

        comer = threading.Thread(target=come_and_go)
        comer.start()
        try:
            answer = end(site, client="127.0.7.0/24")
        finally:
            over.set()
            comer.join()
        assert (answer["connections"], answer["sessions"]) == (count, count)
        assert total(site, client="127.0.7.0/24") == 0
        assert total(site, client="127.0.8.1") == 50
        assert all(ends_by_reset(one.socket) for one in meant)
        assert all(is_alive(one.socket) for one in others)
        assert len(site.lb.wait_log(2 * count, reason="ended-by-operator")) == 2 * count
        site.lb.assert_healthy()
