"""Extended CONNECT (RFC 8441): websockets of HTTP/2 clients, on endpoints that speak HTTP/1 or HTTP/2."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hyperframe.frame import GoAwayFrame

from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.http2_backend import Exchange, Http2Backend
from tests.harness.http2_client import CANCEL, CONNECT_ERROR, NO_ERROR, Field, Http2Client, data, request_fields, reset
from tests.harness.native import Native
from tests.harness.payload import MEGABYTE, digest_of, pieces
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE, wait_until

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
HOSTS = ("old.test", "new.test")


def websocket(host: str, target: str = "/") -> list[Field]:
    return [
        *request_fields(target, method="CONNECT", host=host),
        (":protocol", "websocket"),
        ("sec-websocket-version", "13"),
    ]


class Peers:
    """What both endpoints do with a tunnel, by its target: `/shout`, `/refuse`, `/half`, `/reset`, `/slow`, and behind
    that a number, which tells tunnels apart.
    """

    def __init__(self) -> None:
        self.received: dict[str, bytes] = {}
        self.go = threading.Event()
        self.numbers = itertools.count()

    def target(self, kind: str) -> str:
        return f"/{kind}/{next(self.numbers)}"

    def received_on(self, target: str) -> bytes:
        """All that came, once the tunnel is over."""
        wait_until(lambda: target in self.received, f"{target} ends")
        return self.received[target]

    def old(self, connection: BackendConnection) -> None:
        request = connection.read()
        if request is None:
            return
        target = request.target.decode()
        kind = target.split("/")[1]
        if kind == "refuse":
            connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            return
        key = request.headers.get("sec-websocket-key") or b""
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        assert len(base64.b64decode(key)) == 16
        assert request.headers.tokens("upgrade") == {b"websocket"}
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-A: 1\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
        )
        if kind == "reset":
            connection.reader.fill()
            connection.reset()
            return
        if kind == "half":
            connection.send(b"bye")
            connection.socket.shutdown(socket.SHUT_WR)
        if kind == "slow":
            assert self.go.wait(DEADLINE)
        data = b""
        while connection.reader.buffer or connection.reader.fill():
            part = bytes(connection.reader.buffer)
            data += part
            connection.reader.buffer.clear()
            if kind == "shout":
                connection.send(part.upper())
        self.received[target] = data

    def new(self, exchange: Exchange) -> None:
        request = exchange.request
        target = request.path.decode()
        kind = target.split("/")[1]
        if kind == "refuse":
            exchange.respond(403, (b"content-length", b"2"), body=b"no")
            return
        assert (request.method, request.protocol) == (b"CONNECT", b"websocket")
        assert not request.headers.all("sec-websocket-key")
        exchange.head(200, (b"x-a", b"1"), (b"sec-websocket-protocol", b"chat"))
        if kind == "reset":
            exchange.read_body(1)
            exchange.reset()
            return
        if kind == "half":
            exchange.data(b"bye", end=True)
        if kind == "slow":
            assert self.go.wait(DEADLINE)
        sent = 0
        while exchange.read_body(sent + 1):
            part = bytes(request.body[sent:])
            sent += len(part)
            if kind == "shout":
                exchange.data(part.upper())
        if kind == "shout" and request.complete:
            exchange.data(end=True)
        self.received[target] = bytes(request.body)


@contextlib.contextmanager
def started(directory: Path, peers: Peers) -> Iterator[Serving]:
    old = RawBackend(peers.old)
    native = Native()
    native.listen("http", free_port())
    native.serve("old.test", old)
    native.serve("fast.test", old, route={"tunnel_timeout": "300ms"})
    with Http2Backend(peers.new, settings={8: 1}) as new, Http2Backend() as plain:
        native.serve("new.test", new.key, protocol="http2")
        native.serve("plain.test", plain.key, protocol="http2")
        with serving(directory, native, {"old.test": old}, threads=1) as running:
            yield running


@pytest.fixture(scope="module")
def peers() -> Peers:
    return Peers()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, peers: Peers) -> Iterator[Serving]:
    with started(tmp_path_factory.mktemp("tunnels"), peers) as running:
        yield running
        running.lb.assert_healthy()
        running.backends["old.test"].assert_clean()


@pytest.fixture
def client(site: Serving) -> Iterator[Http2Client]:
    with Http2Client(site.connect()) as connected:
        connected.handshake()
        assert connected.settings[8] == 1, "SETTINGS_ENABLE_CONNECT_PROTOCOL"
        yield connected


def open_tunnel(client: Http2Client, host: str, target: str, *more: Field) -> int:
    stream = max(client.streams, default=-1) + 2
    client.send(client.headers(stream, *websocket(host, target), *more, end=False))
    client.until(lambda _: client.streams[stream].status != 0, "an answer")
    return stream


def read_to(client: Http2Client, stream: int, size: int) -> bytes:
    while len(client.streams[stream].body) < size:
        assert client.receive() is not None
    return bytes(client.streams[stream].body)


@pytest.mark.parametrize("host", HOSTS)
class TestTunnels:
    def test_bytes_pass_both_ways(self, host: str, client: Http2Client, peers: Peers, site: Serving) -> None:
        target = peers.target("shout")
        stream = open_tunnel(client, host, target)
        found = client.streams[stream]
        assert (found.status, found.headers.get("x-a"), found.headers.get("sec-websocket-protocol")) == (
            200,
            b"1",
            b"chat",
        )
        for name in ("upgrade", "connection", "sec-websocket-accept", "content-length", "transfer-encoding"):
            assert not found.headers.all(name)
        for word in (b"hello ", b"world", b"!" * 1_000):
            client.send(data(stream, word))
            read_to(client, stream, len(client.streams[stream].body) + len(word))
        assert found.body == b"HELLO WORLD" + b"!" * 1_000
        assert not found.over
        client.send(data(stream, b"", "END_STREAM"))
        if host == "new.test":
            assert client.response(stream).ended
        record = site.lb.wait_log(1, target=target)[0]
        assert (record["reason"], record["protocol"]) == ("ok", "HTTP/2.0")

    def test_much_passes_both_ways(self, host: str, client: Http2Client) -> None:
        size = 3 * MEGABYTE
        stream = open_tunnel(client, host, "/shout")
        client.upload(stream, (bytes(part).replace(b"a", b"A") for part in pieces(size)), end=False)
        body = read_to(client, stream, size)
        assert len(body) == size
        expected = b"".join(bytes(part).upper() for part in pieces(size))
        assert digest_of(body) == digest_of(expected)

    def test_a_refusal_is_a_response(self, host: str, client: Http2Client) -> None:
        stream = open_tunnel(client, host, "/refuse")
        assert client.streams[stream].status == 403
        while not client.streams[stream].over:
            client.receive()
        assert client.streams[stream].body == b"no"
        assert open_tunnel(client, host, "/shout")

    def test_the_endpoints_end_is_the_streams(self, host: str, client: Http2Client, peers: Peers) -> None:
        """A half-close passes through, and what the client says then still arrives."""
        target = peers.target("half")
        stream = open_tunnel(client, host, target)
        assert client.response(stream).body == b"bye"
        client.send(data(stream, b"last words", "END_STREAM"))
        assert peers.received_on(target) == b"last words"

    def test_the_clients_last_bytes_arrive_at_a_slow_endpoint(
        self, host: str, client: Http2Client, peers: Peers
    ) -> None:
        size = 2 * MEGABYTE
        target = peers.target("slow")
        peers.go.clear()
        stream = open_tunnel(client, host, target)
        sent = 0
        while client.streams[stream].room > 0 and client.room > 0 and sent < size:
            part = next(iter(pieces(min(16_384, client.streams[stream].room, client.room, size - sent))))
            client.send(data(stream, bytes(part)))
            sent += len(part)
            if sent % 131_072 < len(part):
                client.settle()
        client.send(data(stream, b"", "END_STREAM"))
        client.settle()
        peers.go.set()
        assert len(peers.received_on(target)) == sent

    def test_a_reset_is_no_end(self, host: str, client: Http2Client, peers: Peers, site: Serving) -> None:
        target = peers.target("reset")
        stream = open_tunnel(client, host, target)
        client.send(data(stream, b"x"))
        assert client.reset_of(stream) == CONNECT_ERROR
        record = site.lb.wait_log(1, target=target)[0]
        assert record["reason"] in ("upstream-reset", "upstream-truncated")

    def test_a_cancelled_tunnel_is_closed(self, host: str, client: Http2Client, peers: Peers, site: Serving) -> None:
        target = peers.target("shout")
        stream = open_tunnel(client, host, target)
        client.send(data(stream, b"x"))
        read_to(client, stream, 1)
        client.send(reset(stream, CANCEL))
        assert peers.received_on(target) == b"x"
        assert site.lb.wait_log(1, target=target)[0]["reason"] == "client-reset"
        assert open_tunnel(client, host, "/shout")

    def test_many_tunnels_on_one_connection(self, host: str, client: Http2Client) -> None:
        streams = [open_tunnel(client, host, "/shout") for _ in range(40)]
        client.send(*(data(stream, b"stream %d" % stream) for stream in streams))
        for stream in streams:
            assert read_to(client, stream, len(b"STREAM %d" % stream)) == b"STREAM %d" % stream


def test_an_endpoint_that_knows_no_websockets(client: Http2Client) -> None:
    stream = open_tunnel(client, "plain.test", "/")
    assert client.streams[stream].status == 502


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("length", ["0", "5", "70"])
def test_a_tunnel_has_no_length(client: Http2Client, peers: Peers, site: Serving, host: str, length: str) -> None:
    """An HTTP/1 endpoint that refuses the upgrade would wait for a body of that length, and take another client's
    request, next on its connection, for it.
    """
    stream = open_tunnel(client, host, peers.target("refuse"), ("content-length", length))
    assert client.streams[stream].status == 400
    records = site.lb.wait_log(1, reason="bad-framing")
    assert {record["attempts"] for record in records} == {0}, "nothing of it reaches an endpoint"


def test_a_tunnel_that_stands_still(client: Http2Client, peers: Peers, site: Serving) -> None:
    target = peers.target("shout")
    stream = open_tunnel(client, "fast.test", target)
    assert client.reset_of(stream) != NO_ERROR
    assert site.lb.wait_log(1, target=target)[0]["reason"] == "tunnel-timeout"


def test_a_drain_waits_for_tunnels(tmp_path: Path) -> None:
    with started(tmp_path, Peers()) as site, Http2Client(site.connect()) as client:
        stream = open_tunnel(client, "old.test", "/shout")
        site.lb.signal(signal.SIGTERM)
        client.until(lambda frame: isinstance(frame, GoAwayFrame), "GOAWAY")
        client.send(data(stream, b"still here"))
        assert read_to(client, stream, 10) == b"STILL HERE"
        client.send(data(stream, b"", "END_STREAM"))
        assert client.end() == NO_ERROR
        client.close()
        site.lb.assert_ends()
