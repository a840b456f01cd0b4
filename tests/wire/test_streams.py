"""TCP that is only carried: every byte in both directions, every way to end, and who waits for whom."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.native import Native
from tests.harness.payload import MEGABYTE, payload
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.tcp import (
    TcpServer,
    black_hole,
    ends_by_reset,
    read_all,
    read_exactly,
    reset,
    sending_fails,
    unread_bytes,
)
from tests.harness.waiting import wait_until

LARGE = 8 * MEGABYTE
BUFFERED = 2 * 262_144 + MEGABYTE
"""What may wait in lb: one read behind the high-water mark, and pages that stay at hand."""
POOLED = MEGABYTE
"""What stays at hand of pages that nobody uses."""


@pytest.fixture(scope="module")
def server() -> Iterator[TcpServer]:
    with TcpServer() as started:
        yield started


@pytest.fixture(scope="module")
def hole() -> Iterator[str]:
    with black_hole() as address:
        yield address


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, server: TcpServer, hole: str
) -> Iterator[Serving]:
    refused = f"127.0.0.1:{free_port()}"
    native = Native()
    native.upstream("server", [server.key])
    native.upstream("second-answers", [refused, server.key])
    native.upstream("second-answers-late", [hole, server.key], connect_timeout="200ms")
    native.upstream("nobody", [refused])
    native.upstream("lost", [hole], connect_timeout="200ms")
    native.upstream("empty", [])
    native.upstream("one-place", [server.key], max_connections=1)
    native.carry("plain", free_port(), "server")
    native.carry("moving", free_port(), "second-answers")
    native.carry("moving-late", free_port(), "second-answers-late")
    native.carry("nobody", free_port(), "nobody")
    native.carry("lost", free_port(), "lost")
    native.carry("empty", free_port(), "empty")
    native.carry("weightless", free_port(), {"server": 0})
    native.carry("silent", free_port(), "server", idle_timeout="300ms")
    native.carry("half", free_port(), "server", half_closed_timeout="300ms")
    native.carry("one-place", free_port(), "one-place")
    native.carry("few", free_port(), "server", max_connections=1)
    native.carry("few-each", free_port(), "server", max_connections_per_client=1)
    native.carry("chosen", free_port(), "server", allow=["127.0.0.2", "127.1.0.0/16", "::1"])
    native.carry("six-only", free_port(), "server", allow=["::/0"])
    with serving(tmp_path_factory.mktemp("streams"), native, threads=request.param) as started:
        yield started


@contextmanager
def flow(
    site: Serving, server: TcpServer, listener: str = "plain", **options: object
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's connection, and the endpoint's end of it."""
    with site.connect(listener, **options) as client, server.accept() as peer:
        yield client.socket, peer


def is_reset(site: Serving, listener: str, **options: object) -> bool:
    """Whether a client is let in by nobody. The reset may come before its connect has returned."""
    try:
        with site.connect(listener, **options) as client:
            client.socket.sendall(b"anybody?")
            return ends_by_reset(client.socket)
    except ConnectionResetError:
        return True


def last_record(site: Serving, listener: str, **fields: object) -> dict[str, object]:
    return site.lb.wait_log(1, listener=listener, **fields)[-1]


def timers(local: tuple[str, int], remote: tuple[str, int]) -> set[str]:
    """Of a connection's socket: `01` sends again, `02` asks whether the other end is still there (proc_net_tcp)."""
    ends = [f"{socket.ntohl(int.from_bytes(socket.inet_aton(host))):08X}:{port:04X}" for host, port in (local, remote)]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[5].partition(":")[0] for row in rows if row[1:3] == ends}


def test_the_kernel_asks_whether_both_ends_are_still_there(site: Serving, server: TcpServer) -> None:
    """Otherwise a host that has vanished would keep both connections for ever where there is no idle_timeout."""
    with flow(site, server) as (client, peer):
        for far in (client, peer):
            lb, other = (far.getpeername(), far.getsockname())
            wait_until(lambda lb=lb, other=other: timers(lb, other) == {"02"}, "keepalive is on")


# ---------------------------------------------------------------------------------------------------------------- bytes


def test_bytes_pass_in_both_directions_at_once(site: Serving, server: TcpServer) -> None:
    up, down = payload(LARGE), payload(LARGE)[::-1]
    with flow(site, server) as (client, peer):
        threads = [
            threading.Thread(target=client.sendall, args=(up,)),
            threading.Thread(target=peer.sendall, args=(down,)),
        ]
        got: dict[str, bytes] = {}
        for thread in threads:
            thread.start()
        reader = threading.Thread(target=lambda: got.update(up=read_exactly(peer, LARGE)))
        reader.start()
        got["down"] = read_exactly(client, LARGE)
        reader.join()
        assert got["up"] == up
        assert got["down"] == down


def test_small_exchanges(site: Serving, server: TcpServer) -> None:
    with flow(site, server) as (client, peer):
        for number in range(300):
            client.sendall(b"ask %d" % number)
            assert peer.recv(100) == b"ask %d" % number
            peer.sendall(b"answer %d" % number)
            assert client.recv(100) == b"answer %d" % number


def test_an_exchange_wakes_twice(site: Serving, server: TcpServer) -> None:
    """One event for each message: sockets are registered once, and nothing is asked twice."""
    with flow(site, server) as (client, peer):
        before = site.lb.metric("lb_reactor_events_total")
        for _ in range(500):
            client.sendall(b"ask")
            assert peer.recv(100) == b"ask"
            peer.sendall(b"answer")
            assert client.recv(100) == b"answer"
        events = site.lb.metric("lb_reactor_events_total") - before
    assert events <= 2 * 500 + 50


def test_an_endpoint_may_speak_first(site: Serving, server: TcpServer) -> None:
    with flow(site, server) as (client, peer):
        peer.sendall(b"220 welcome")
        assert client.recv(100) == b"220 welcome"


def test_bytes_that_look_like_http_are_not_touched(site: Serving, server: TcpServer) -> None:
    request = b"GET http://x/../y HTTP/1.1\r\nhost: a\nHost: b\r\n\r\n\0\xff"
    with flow(site, server) as (client, peer):
        client.sendall(request)
        assert read_exactly(peer, len(request)) == request


# ----------------------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("first", ["client", "endpoint"])
def test_a_half_that_has_ended_does_not_end_the_other(site: Serving, server: TcpServer, first: str) -> None:
    with flow(site, server) as (client, peer):
        one, other = (client, peer) if first == "client" else (peer, client)
        one.sendall(b"all I have")
        one.shutdown(socket.SHUT_WR)
        assert read_all(other) == b"all I have"
        answer = payload(MEGABYTE)
        sender = threading.Thread(target=other.sendall, args=(answer,))
        sender.start()
        assert read_exactly(one, MEGABYTE) == answer
        sender.join()
        other.shutdown(socket.SHUT_WR)
        assert read_all(one) == b""
        port = client.getsockname()[1]
    record = last_record(site, "plain", client_port=port)
    assert record["reason"] == "ok"
    assert {record["bytes_in"], record["bytes_out"]} == {len(b"all I have"), MEGABYTE}


@pytest.mark.parametrize("sender", ["client", "endpoint"])
def test_a_slow_reader_gets_the_last_byte_before_the_end(site: Serving, server: TcpServer, sender: str) -> None:
    with flow(site, server, receive_buffer=8_192) as (client, peer):
        one, other = (client, peer) if sender == "client" else (peer, client)
        thread = threading.Thread(target=lambda: (one.sendall(payload(LARGE)), one.close()))
        thread.start()
        assert read_all(other) == payload(LARGE)
        thread.join()


@pytest.mark.parametrize("who", ["client", "endpoint"])
def test_a_reset_is_passed_on(site: Serving, server: TcpServer, who: str) -> None:
    with flow(site, server) as (client, peer):
        one, other = (client, peer) if who == "client" else (peer, client)
        port = client.getsockname()[1]
        one.sendall(b"last words")
        assert other.recv(100) == b"last words"
        reset(one)
        assert ends_by_reset(other)
    assert last_record(site, "plain", client_port=port)["reason"] == (
        "client-reset" if who == "client" else "upstream-reset"
    )


@pytest.mark.parametrize("who", ["client", "endpoint"])
def test_what_came_before_a_reset_is_delivered_before_it(site: Serving, server: TcpServer, who: str) -> None:
    """The other side does not read, so that much of it waits in lb when the reset comes."""
    with flow(site, server, receive_buffer=8_192) as (client, peer):
        one, other = (client, peer) if who == "client" else (peer, client)
        one.setblocking(False)
        sent = fill(one)
        reset(one)
        got = bytearray()
        assert read_until_reset(other, got)
        assert 65_536 < len(got) <= sent
        assert got == payload(len(got))


@pytest.mark.parametrize("first", ["client", "endpoint"])
def test_a_reset_in_the_other_half_after_an_end(site: Serving, server: TcpServer, first: str) -> None:
    with flow(site, server) as (client, peer):
        one, other = (client, peer) if first == "client" else (peer, client)
        one.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""
        reset(other)
        assert ends_by_reset(one)


def test_a_unix_socket_that_is_closed_has_ended(tmp_path: Path) -> None:
    """It never says that only one half has ended: a close is the end of what it sends, and no reset."""

    def answer(connection: BackendConnection) -> None:
        connection.send(b"asked: " + connection.socket.recv(100))

    native = Native()
    with RawBackend(answer, address=f"unix:{tmp_path}/s") as backend:
        native.upstream("local", [backend.key])
        native.carry("plain", free_port(), "local")
        with serving(tmp_path / "lb", native) as site:
            with site.connect("plain") as client:
                client.send(b"who?")
                assert read_all(client.socket) == b"asked: who?"
            assert last_record(site, "plain")["reason"] == "ok"
            with site.connect("plain") as client:
                client.send(b"who?")
                assert client.socket.recv(100) == b"asked: who?"
                assert client.socket.recv(100) == b""
                assert sending_fails(client.socket)


def test_a_client_that_closes_without_reading_resets_its_endpoint(site: Serving, server: TcpServer) -> None:
    with flow(site, server) as (client, peer):
        client.close()
        assert sending_fails(peer)


@pytest.mark.parametrize("who", ["client", "endpoint"])
def test_who_does_not_read_stops_who_sends(site: Serving, server: TcpServer, who: str) -> None:
    with flow(site, server, receive_buffer=8_192) as (client, peer):
        one, other = (client, peer) if who == "endpoint" else (peer, client)
        other.setblocking(False)
        sent = fill(other)
        assert sent < 96 * MEGABYTE
        assert site.lb.metric("lb_buffer_bytes") <= BUFFERED
        assert read_exactly(one, sent) == payload(sent)
    wait_until(lambda: site.lb.metric("lb_buffer_bytes") <= POOLED, "buffers are given back")


def test_bytes_that_cannot_be_passed_on_wake_nobody(site: Serving, server: TcpServer) -> None:
    with flow(site, server, receive_buffer=8_192) as (client, peer):
        sent = send_until_left_alone(peer)
        waiting = unread_bytes(peer)
        before = site.lb.metric("lb_reactor_events_total")
        for number in range(1, 31):
            peer.sendall(b"more")
            wait_until(lambda number=number: unread_bytes(peer) == waiting + 4 * number, "it has come")
        assert site.lb.metric("lb_reactor_events_total") - before < 15
        assert read_exactly(client, sent + 120) == payload(65_536) * (sent // 65_536) + 30 * b"more"


def send_until_left_alone(sender: socket.socket) -> int:
    """Send until lb leaves some of it where it is; how much it was."""
    sent = looks = 0
    while looks < 20:
        sender.sendall(payload(65_536))
        sent += 65_536
        looks = 0
        while unread_bytes(sender) and looks < 20:
            looks += 1
            threading.Event().wait(0.02)
    return sent


def test_a_flow_whose_bytes_find_no_place_ends(tmp_path: Path, server: TcpServer) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("apiVersion: lb/v1\nkind: Config\nsettings: {limits: {max_buffer: 64Ki}}\n")
    native = Native()
    native.upstream("server", [server.key])
    native.carry("plain", free_port(), "server")
    with serving(tmp_path / "lb", native, None, "-c", str(settings)) as site:
        with flow(site, server, receive_buffer=8_192) as (client, peer):
            # Small pieces, each after lb has read the one before: bulk would wait in a pipe.
            with suppress(OSError):
                while True:
                    peer.sendall(payload(24_576))
                    wait_until(lambda: unread_bytes(peer) == 0, "lb has read it")
            assert read_until_reset(client, bytearray())
        assert last_record(site, "plain")["reason"] == "no-memory"


def read_until_reset(reader: socket.socket, got: bytearray) -> bool:
    """Collect what comes; whether a reset is behind it, and no end."""
    try:
        while data := reader.recv(65_536):
            got += data
    except ConnectionResetError:
        return True
    return False


def fill(sender: socket.socket, limit: int = 1 << 30) -> int:
    """Send until the socket takes no more for as long as lb needs to pass on what it has; how much it was."""
    sent = idle = 0
    while idle < 20 and sent < limit:
        try:
            start = sent % MEGABYTE
            sent += sender.send(payload(MEGABYTE)[start : start + limit])
            idle = 0
        except BlockingIOError:
            idle += 1
            threading.Event().wait(0.01)
    return sent


# ----------------------------------------------------------------------------------------------------------- connecting


@pytest.mark.parametrize(("listener", "why"), [("moving", "connect-failed"), ("moving-late", "connect-timeout")])
def test_a_failed_connect_moves_on_before_a_byte_is_lost(
    site: Serving, server: TcpServer, listener: str, why: str
) -> None:
    for number in range(4):
        with site.connect(listener) as client:
            client.send(b"early %d" % number)
            client.finish()
            with server.accept() as peer:
                assert read_all(peer) == b"early %d" % number
                peer.sendall(b"late")
                peer.shutdown(socket.SHUT_WR)
                assert read_all(client.socket) == b"late"
    records = site.lb.wait_log(4, listener=listener)
    assert {record["reason"] for record in records} == {"ok"}
    (first,) = site.lb.endpoints(records[0]["upstream"]) - {server.key}
    assert {(record["attempts"], record["failed_attempts"]) for record in records} == {(1, ""), (2, f"{first} {why}")}


@pytest.mark.parametrize(
    ("listener", "reason", "attempts"),
    [
        ("nobody", "connect-failed", 1),
        ("lost", "connect-timeout", 1),
        ("empty", "no-endpoint", 0),
        ("weightless", "no-upstream", 0),
    ],
)
def test_a_client_that_nobody_can_serve_is_reset(site: Serving, listener: str, reason: str, attempts: int) -> None:
    assert is_reset(site, listener)
    record = last_record(site, listener)
    assert (record["reason"], record["attempts"], record["bytes_in"]) == (reason, attempts, 0)


def test_a_client_may_go_while_lb_connects(site: Serving) -> None:
    with site.connect("lost") as client:
        client.send(b"never mind")
        client.reset()
    assert last_record(site, "lost", reason="client-reset")["bytes_in"] == 0


# ------------------------------------------------------------------------------------------------------ time and limits


def test_a_silent_flow_ends(site: Serving, server: TcpServer) -> None:
    with flow(site, server, "silent") as (client, peer):
        client.sendall(b"hello")
        assert peer.recv(100) == b"hello"
        assert ends_by_reset(client)
        assert ends_by_reset(peer)
    assert last_record(site, "silent")["reason"] == "flow-timeout"


def test_a_half_closed_flow_has_its_own_time(site: Serving, server: TcpServer) -> None:
    with flow(site, server, "half") as (client, peer):
        client.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
        for _ in range(4):  # longer than its time in all, but never silent for so long
            threading.Event().wait(0.12)
            peer.sendall(b"still here")
            assert client.recv(100) == b"still here"
        assert ends_by_reset(client)
    assert last_record(site, "half")["reason"] == "half-closed-timeout"


def test_who_takes_nothing_for_too_long_is_named(site: Serving, server: TcpServer) -> None:
    with flow(site, server, "silent", receive_buffer=8_192) as (_, peer):
        peer.setblocking(False)
        with suppress(ConnectionResetError, BrokenPipeError):
            fill(peer)
        wait_until(
            lambda: site.lb.metric("lb_exchange_end_total", reason="client-idle-timeout") > 0, "the client is cut"
        )
    assert last_record(site, "silent", reason="client-idle-timeout")["bytes_out"]


def test_no_more_connections_than_allowed(site: Serving, server: TcpServer) -> None:
    for listener in ("few", "few-each"):
        with flow(site, server, listener) as (client, peer):
            assert is_reset(site, listener)
            reason = "too-many-connections" if listener == "few" else "too-many-from-client"
            record = last_record(site, listener, reason=reason)
            assert (record["client"], record["status"], record["duration"]) == ("127.0.0.1", 0, 0)
            client.sendall(b"unharmed")
            assert peer.recv(100) == b"unharmed"
        wait_until(
            lambda name=listener: site.lb.metric("lb_listener_connections_active", listener=name) == 0,
            "the place is free",
        )
        with flow(site, server, listener):
            pass


def test_a_full_upstream_lets_nobody_wait(site: Serving, server: TcpServer) -> None:
    with flow(site, server, "one-place"):
        assert is_reset(site, "one-place")
    assert last_record(site, "one-place", reason="queue-full")["upstream"] == "one-place"


@pytest.mark.parametrize(("source", "admitted"), [("127.0.0.1", False), ("127.0.0.2", True), ("127.1.2.3", True)])
def test_only_allowed_sources_are_let_in(site: Serving, server: TcpServer, source: str, admitted: bool) -> None:
    if admitted:
        with flow(site, server, "chosen", source=source) as (client, peer):
            client.sendall(b"hello")
            assert peer.recv(100) == b"hello"
        return
    assert is_reset(site, "chosen", source=source)
    record = last_record(site, "chosen", reason="source-refused")
    assert (record["client"], record["endpoint"]) == (source, "")


def test_a_network_of_ipv6_has_no_ipv4_in_it(site: Serving) -> None:
    """Not even ::/0, though ::ffff:127.0.0.1 would be in it."""
    assert is_reset(site, "six-only")
    assert last_record(site, "six-only", reason="source-refused")["client"] == "127.0.0.1"


# ----------------------------------------------------------------------------------------------------------------- many


def test_bulk_and_small_exchanges_take_turns(site: Serving, server: TcpServer) -> None:
    """What is spliced and what is copied stays in order."""
    with flow(site, server) as (client, peer):
        for one, other in ((client, peer), (peer, client), (client, peer)):
            sender = threading.Thread(target=one.sendall, args=(payload(3 * MEGABYTE),))
            sender.start()
            assert read_exactly(other, 3 * MEGABYTE) == payload(3 * MEGABYTE)
            sender.join()
            for number in range(30):
                one.sendall(b"small %d" % number)
                assert other.recv(100) == b"small %d" % number


def test_more_bulk_than_there_are_pipes(site: Serving, server: TcpServer) -> None:
    """Readers that stand still keep their pipes; who gets none is copied."""
    count, size = 24 if site.lb.get("/v1/status")["threads"] == 1 else 48, 8 * MEGABYTE
    with ExitStack() as stack:
        flows = [stack.enter_context(flow(site, server, receive_buffer=8_192)) for _ in range(count)]
        senders = [threading.Thread(target=peer.sendall, args=(payload(size),)) for _, peer in flows]
        for sender in senders:
            sender.start()
        wait_until(lambda: site.lb.metric("lb_buffer_bytes") > POOLED, "some bytes wait in pages, not in pipes")
        readers = [stack.enter_context(ThreadPoolExecutor(1)).submit(read_exactly, client, size) for client, _ in flows]
        assert all(reader.result() == payload(size) for reader in readers)
        for sender in senders:
            sender.join()
    wait_until(lambda: site.lb.metric("lb_connections_active") == 0, "all have ended")
    # Listening sockets, and the pipes, which stay for the next.
    assert site.lb.metric("lb_descriptors_open") <= 2 * len(site.native.listeners) + 2 * 16 * 2
