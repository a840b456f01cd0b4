"""UDP that is only carried: every datagram in both directions, whose it is, and every way in which a session ends."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.harness.native import Native
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.udp import UDP_GRO, UDP_SEGMENT, UdpServer, ask, echo, hears_nothing, named, udp_client, udp_socket
from tests.harness.waiting import SANITIZED, wait_until

MOST = 65_507
"""RFC 768: 65,535 less the headers of UDP and IPv4."""


@pytest.fixture(scope="module")
def server() -> Iterator[UdpServer]:
    """Hands its datagrams to the test."""
    with UdpServer() as started:
        yield started


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, server: UdpServer
) -> Iterator[Serving]:
    refused = f"127.0.0.1:{free_port()}"
    native = Native()
    with ExitStack() as stack:
        v4 = stack.enter_context(UdpServer(echo))
        v6 = stack.enter_context(UdpServer(echo, address="::1"))
        twice = stack.enter_context(UdpServer(lambda data: (data, data)))
        native.upstream("echo", [v4.key])
        native.upstream("echo6", [v6.key])
        native.upstream("twice", [twice.key])
        native.upstream("server", [server.key])
        native.upstream("nobody", [refused])
        native.upstream("second", [refused, v4.key])
        native.upstream("empty", [])
        native.carry_datagrams("plain", free_port(), "echo")
        native.carry_datagrams("fresh", free_port(), "echo")
        native.carry_datagrams("six", free_port(), "echo6", address="::1")
        native.carry_datagrams("every", free_port(), "echo6", address="")
        native.carry_datagrams("every4", free_port(), "echo", address="0.0.0.0")
        native.carry_datagrams("held", free_port(), "server")
        native.carry_datagrams("once", free_port(), "echo", responses=1)
        native.carry_datagrams("twice", free_port(), "twice", responses=2)
        native.carry_datagrams("silent", free_port(), "echo", idle_timeout="300ms")
        native.carry_datagrams("few", free_port(), "server", max_sessions=4)
        native.carry_datagrams("few-each", free_port(), "echo", max_sessions_per_client=2)
        native.carry_datagrams("chosen", free_port(), "echo", allow=["127.0.0.2", "::1"])
        native.carry_datagrams("not-you", free_port(), "echo", allow=["127.0.0.2"])
        native.carry_datagrams("nobody", free_port(), "nobody")
        native.carry_datagrams("moving", free_port(), "second", responses=1)
        native.carry_datagrams("empty", free_port(), "empty")
        native.carry_datagrams("weightless", free_port(), {"echo": 0})
        deaf = stack.enter_context(UdpServer(lambda data: () if data == b"flood" else (data,)))
        native.upstream("deaf", [deaf.key])
        native.carry_datagrams("flooded", free_port(), "deaf", max_sessions=512)
        with serving(tmp_path_factory.mktemp("datagrams"), native, threads=request.param) as started:
            yield started


def sessions(site: Serving, listener: str) -> float:
    return site.lb.metric("lb_listener_connections_active", listener=listener)


def dropped(site: Serving, listener: str, reason: str) -> float:
    return site.lb.metric("lb_listener_datagrams_dropped_total", listener=listener, reason=reason)


# ------------------------------------------------------------------------------------------------------------- carrying


@pytest.mark.parametrize("size", [0, 1, 64, 1_432, 1_433, 9_000, MOST])
def test_datagrams_of_every_size(site: Serving, size: int) -> None:
    data = random.Random(size).randbytes(size)
    with udp_client(site.address("plain")) as client:
        for _ in range(3):
            assert ask(client, data) == data


def test_both_families(site: Serving) -> None:
    with udp_client(("::1", site.address("six")[1])) as client:
        assert ask(client, b"six") == b"six"


@pytest.mark.parametrize(
    ("listener", "asked", "source"),
    [
        ("every", "127.0.0.1", "127.0.0.1"),
        ("every", "127.0.0.53", "127.0.0.1"),
        ("every", "127.8.9.10", "127.0.0.7"),
        ("every", "::1", "::1"),
        ("every4", "127.0.0.1", "127.0.0.1"),
        ("every4", "127.0.0.99", "127.0.0.98"),
    ],
)
def test_answers_leave_from_the_address_that_was_asked(site: Serving, listener: str, asked: str, source: str) -> None:
    with udp_client((asked, site.address(listener)[1]), source) as client:
        assert ask(client, b"who") == b"who"
        assert ask(client, b"again") == b"again"


def test_one_client_that_asks_two_addresses_has_two_sessions(site: Serving) -> None:
    port = site.address("every4")[1]
    before = sessions(site, "every4")
    with udp_socket() as client:
        for asked in ("127.0.0.41", "127.0.0.42"):
            for _ in range(2):
                client.sendto(asked.encode(), (asked, port))
                assert client.recvfrom(100) == (asked.encode(), (asked, port))
    assert sessions(site, "every4") == before + 2


def test_a_client_stays_on_its_session(site: Serving) -> None:
    """Were a client's datagrams to come to several threads, it would have a session on each of them."""
    # On a listener of its own: elsewhere a client may have the port of one that was there before, and take its session.
    with ExitStack() as stack:
        clients = [stack.enter_context(udp_client(site.address("fresh"))) for _ in range(50)]
        for turn in range(5):
            for number, client in enumerate(clients):
                assert ask(client, b"%d %d" % (number, turn)) == b"%d %d" % (number, turn)
    assert sessions(site, "fresh") == 50


def test_an_endpoint_may_speak_unasked(site: Serving, server: UdpServer) -> None:
    with udp_client(site.address("held")) as client:
        client.send(b"subscribe")
        data, session = server.receive()
        assert data == b"subscribe"
        for number in range(100):
            server.send(b"%d" % number, session)
        assert [client.recv(10) for _ in range(100)] == [b"%d" % number for number in range(100)]


def test_only_the_endpoint_is_heard(site: Serving, server: UdpServer) -> None:
    with udp_client(site.address("held")) as client, udp_socket() as stranger:
        client.send(b"hello")
        _, session = server.receive()
        stranger.sendto(b"forged", session)
        server.send(b"true", session)
        assert client.recv(10) == b"true"
        assert hears_nothing(client)


# --------------------------------------------------------------------------------------------------------------- trains


def send_train(client: socket.socket, data: bytes, piece: int) -> None:
    """As many datagrams as `data` has pieces, with one system call."""
    client.sendmsg([data], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", piece))])


def receive_pieces(sink: socket.socket, count: int) -> list[bytes]:
    return [sink.recv(70_000) for _ in range(count)]


@pytest.mark.parametrize(("piece", "count", "rest"), [(1_200, 50, 0), (100, 60, 37), (1_432, 45, 1), (1, 20, 0)])
def test_trains_from_clients_keep_their_bytes_and_order(site: Serving, piece: int, count: int, rest: int) -> None:
    """lb gets them as one (UDP_GRO), and the endpoint answers them one by one."""
    data = random.Random(piece).randbytes(piece * count + rest)
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
    with udp_client(site.address("plain")) as client:
        for _ in range(3):
            send_train(client, data, piece)
            assert receive_pieces(client, len(pieces)) == pieces


def test_trains_from_endpoints_keep_their_bytes_and_order(site: Serving, server: UdpServer) -> None:
    with udp_client(site.address("held")) as client:
        client.send(b"begin")
        _, session = server.receive()
        for turn in range(8):
            data = random.Random(turn).randbytes(40 * 1_300 + 7 * turn)
            server.send_train(data, 1_300, session)
            pieces = [data[at : at + 1_300] for at in range(0, len(data), 1_300)]
            assert receive_pieces(client, len(pieces)) == pieces


def test_bursts_of_mixed_sizes_keep_their_order(site: Serving) -> None:
    """Runs of equal sizes go out as trains, and others between them."""
    chance = random.Random(7)
    sizes = [size for size in (0, 64, 64, 1_200, 9_000, 1, 700) for _ in range(chance.randrange(1, 7))]
    with udp_client(site.address("plain")) as client:
        for turn in range(20):
            chance.shuffle(sizes)
            sent = [bytes([turn]) * size for size in sizes]
            for data in sent:
                client.send(data)
            assert receive_pieces(client, len(sent)) == sent


def test_a_client_may_be_given_trains(site: Serving, server: UdpServer) -> None:
    """Who has asked for it gets as one what came in a burst: nothing of it is lost or out of order."""
    with udp_client(site.address("held")) as client:
        client.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        client.send(b"begin")
        _, session = server.receive()
        pieces = [b"%04d" % number * 250 for number in range(200)]
        got = b""
        for at in range(0, len(pieces), 40):
            for piece in pieces[at : at + 40]:
                server.send(piece, session)
            while len(got) < (at + 40) * 1_000:
                got += client.recv(70_000)
        assert got == b"".join(pieces)


# --------------------------------------------------------------------------------------------------- how sessions end


def test_an_answer_ends_what_has_one(site: Serving) -> None:
    with udp_client(site.address("once")) as client:
        port = client.getsockname()[1]
        for number in range(3):
            assert ask(client, b"question %d" % number) == b"question %d" % number
        records = site.lb.wait_log(3, listener="once", client_port=port)
    assert [(one["reason"], one["bytes_in"], one["bytes_out"], one["attempts"]) for one in records] == [
        ("ok", 10, 10, 1)
    ] * 3
    assert sessions(site, "once") == 0


def test_answers_are_counted_for_each_question(site: Serving, server: UdpServer) -> None:
    """As in nginx, whose proxy_responses counts so: two questions at once wait for the answers to both."""
    with udp_client(site.address("twice")) as client:
        port = client.getsockname()[1]
        client.send(b"a")
        client.send(b"b")
        assert sorted(receive_pieces(client, 4)) == [b"a", b"a", b"b", b"b"]
        records = site.lb.wait_log(1, listener="twice", client_port=port)
    assert sum(one["bytes_out"] for one in records) == 4
    assert {one["reason"] for one in records} == {"ok"}


def test_silence_ends_a_session(site: Serving) -> None:
    with udp_client(site.address("silent")) as client:
        port = client.getsockname()[1]
        assert ask(client, b"one") == b"one"
        (record,) = site.lb.wait_log(1, listener="silent", client_port=port)
        assert (record["reason"], record["bytes_in"], record["bytes_out"]) == ("session-timeout", 3, 3)
        assert record["duration"] >= 0.3
        assert ask(client, b"two") == b"two"


def test_the_longest_silent_session_makes_way(site: Serving, server: UdpServer, request: pytest.FixtureRequest) -> None:
    """At most four. Several threads have each its share of them, and an order of their own."""
    address = site.address("few")
    evicted = site.lb.metric("lb_listener_sessions_evicted_total", listener="few")
    with ExitStack() as stack:
        clients = [stack.enter_context(udp_client(address)) for _ in range(12)]
        ports = [client.getsockname()[1] for client in clients]
        for client in clients:
            client.send(b"x")
            server.receive()
            assert 1 <= sessions(site, "few") <= 4
    records = site.lb.wait_log(8, listener="few", reason="session-evicted")
    order = [ports.index(one["client_port"]) for one in records if one["client_port"] in ports]
    assert site.lb.metric("lb_listener_sessions_evicted_total", listener="few") - evicted == len(order) >= 8
    if "one thread" in request.node.name:
        assert order == list(range(8))


def test_a_client_has_so_many_sessions(site: Serving) -> None:
    address = site.address("few-each")
    with ExitStack() as stack:
        clients = [stack.enter_context(udp_client(address, "127.0.0.61")) for _ in range(3)]
        assert ask(clients[0], b"a") == b"a"
        assert ask(clients[1], b"b") == b"b"
        before = dropped(site, "few-each", "too-many-from-client")
        clients[2].send(b"c")
        wait_until(lambda: dropped(site, "few-each", "too-many-from-client") == before + 1, "it is dropped")
        port = clients[2].getsockname()[1]
        site.lb.wait_log(1, listener="few-each", client="127.0.0.61", client_port=port, reason="too-many-from-client")
        assert ask(clients[0], b"still") == b"still"
        with udp_client(address, "127.0.0.62") as other:
            assert ask(other, b"d") == b"d"


def test_who_is_not_let_in_is_not_answered(site: Serving) -> None:
    before = dropped(site, "chosen", "source-refused")
    with udp_client(site.address("chosen")) as client:
        client.send(b"knock")
        wait_until(lambda: dropped(site, "chosen", "source-refused") == before + 1, "it is dropped")
        assert hears_nothing(client, 0.05)
        port = client.getsockname()[1]
    (record,) = site.lb.wait_log(1, listener="chosen", client="127.0.0.1", client_port=port)
    assert (record["reason"], record["protocol"], record["status"], record["duration"]) == (
        "source-refused", "UDP", 0, 0,
    )  # fmt: skip
    with udp_client(site.address("chosen"), "127.0.0.2") as client:
        assert ask(client, b"let in") == b"let in"


# ---------------------------------------------------------------------------------------------------- failing endpoints


def test_a_refused_datagram_goes_to_another_endpoint(site: Serving) -> None:
    """The very first one: lb has kept it, and the host's ICMP is what tells."""
    for number in range(6):
        with udp_client(site.address("moving")) as client:
            assert ask(client, b"question %d" % number) == b"question %d" % number
    assert site.lb.metric("lb_upstream_retries_total", upstream="second") >= 1
    assert site.lb.metric("lb_upstream_connect_failures_total", upstream="second") >= 1
    moved = [record for record in site.lb.wait_log(6, listener="moving") if record["attempts"] == 2]
    (first,) = site.lb.endpoints("second") - {moved[0]["endpoint"]}
    assert {record["failed_attempts"] for record in moved} == {f"{first} connect-failed"}


def test_where_nobody_is_a_session_ends(site: Serving) -> None:
    with udp_client(site.address("nobody")) as client:
        port = client.getsockname()[1]
        client.send(b"hello?")
        (record,) = site.lb.wait_log(1, listener="nobody", client_port=port)
        assert (record["reason"], record["attempts"], record["bytes_out"]) == ("connect-failed", 1, 0)


@pytest.mark.parametrize(("listener", "reason"), [("empty", "no-endpoint"), ("weightless", "no-upstream")])
def test_who_cannot_be_served_is_told_in_the_log(site: Serving, listener: str, reason: str) -> None:
    with udp_client(site.address(listener)) as client:
        port = client.getsockname()[1]
        client.send(b"hello?")
        (record,) = site.lb.wait_log(1, listener=listener, client_port=port)
        assert (record["reason"], record["protocol"], record["status"]) == (reason, "UDP", 0)


def test_an_endpoint_that_dies_ends_its_sessions(site: Serving) -> None:
    """After an answer nobody else could go on with it; the client's next datagram begins anew."""
    with UdpServer(named("a")) as alive:
        dying = UdpServer(named("b"))
        site.native.upstream("pair", [dying.key])
        site.native.carry_datagrams("pair", free_port(), "pair")
        site.apply()
        with udp_client(site.address("pair")) as client:
            port = client.getsockname()[1]
            assert ask(client, b"1") == b"b1"
            site.native.upstream("pair", [dying.key, alive.key])
            site.apply()
            dying.close()
            client.send(b"2")
            site.lb.wait_log(1, listener="pair", client_port=port, reason="upstream-reset")
            assert ask(client, b"3") == b"a3"
    del site.native.listeners["pair"]
    site.apply()


# ----------------------------------------------------------------------------------------------------------- bounds


def test_a_flood_of_refused_sources_leaves_some_records(site: Serving) -> None:
    """Ten a second of each thread: addresses are easily invented, and a disk is easily filled."""
    before = dropped(site, "not-you", "source-refused")
    count, began = 300, time.monotonic()
    with udp_client(site.address("not-you")) as client:
        for _ in range(count):
            client.send(b"knock")
        wait_until(lambda: dropped(site, "not-you", "source-refused") == before + count, "all are counted")
    most = 10 * (1 + time.monotonic() - began) + 1
    site.lb.wait_log(1, listener="not-you", reason="source-refused")
    with udp_client(site.address("plain")) as client:
        assert ask(client, b"hello") == b"hello"
    assert len(site.lb.wait_log(5, listener="not-you", reason="source-refused")) <= most


def test_a_flood_of_sources_is_bounded(site: Serving) -> None:
    """Each of many sources sends once. Who has spoken with an endpoint before stays."""
    address = site.address("flooded")
    descriptors = site.lb.fd_count()
    with udp_client(address) as steady:
        port = steady.getsockname()[1]
        assert [ask(steady, b"hello"), ask(steady, b"proven")] == [b"hello", b"proven"]
        before = site.lb.rss_bytes()
        sources = 600 if SANITIZED else 3_000
        for number in range(sources):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as once:
                once.bind((f"127.{1 + number // 250}.1.{1 + number % 250}", 0))
                once.sendto(b"flood", address)
            if number % 100 == 99:  # no faster than lb reads
                assert ask(steady, b"still here") == b"still here"
                assert sessions(site, "flooded") <= 512
        assert site.lb.fd_count() <= descriptors + 520
        if not SANITIZED:
            assert site.lb.rss_bytes() - before < 8 << 20
        evicted = "lb_listener_sessions_evicted_total"
        wait_until(lambda: site.lb.metric(evicted, listener="flooded") >= sources - 512, "all have been read")
        records = [one for one in site.lb.log_records() if one["reason"] == "session-evicted"]
        assert ("127.0.0.1", port) not in {(one["client"], one["client_port"]) for one in records}
