"""Extended CONNECT (RFC 8441): websockets of HTTP/2 clients, on endpoints that speak HTTP/1 or HTTP/2."""

from __future__ import annotations

import base64
import hashlib
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
    """What both endpoints do with a tunnel, by its target: `/shout`, `/refuse`, `/half`, `/reset`, `/slow`."""

    def __init__(self) -> None:
        self.received: dict[str, bytes] = {}
        self.over = threading.Event()
        self.go = threading.Event()

    def old(self, connection: BackendConnection) -> None:
        request = connection.read()
        if request is None:
            return
        target = request.target.decode()
        if target == "/refuse":
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
        if target == "/reset":
            connection.reader.fill()
            connection.reset()
            return
        if target == "/half":
            connection.send(b"bye")
            connection.socket.shutdown(socket.SHUT_WR)
        if target == "/slow":
            assert self.go.wait(DEADLINE)
        data = b""
        while connection.reader.buffer or connection.reader.fill():
            part = bytes(connection.reader.buffer)
            data += part
            connection.reader.buffer.clear()
            if target == "/shout":
                connection.send(part.upper())
        self.ended(target, data)

    def new(self, exchange: Exchange) -> None:
        request = exchange.request
        target = request.path.decode()
        if target == "/refuse":
            exchange.respond(403, (b"content-length", b"2"), body=b"no")
            return
        assert (request.method, request.protocol) == (b"CONNECT", b"websocket")
        assert not request.headers.all("sec-websocket-key")
        exchange.head(200, (b"x-a", b"1"), (b"sec-websocket-protocol", b"chat"))
        if target == "/reset":
            exchange.read_body(1)
            exchange.reset()
            return
        if target == "/half":
            exchange.data(b"bye", end=True)
        if target == "/slow":
            assert self.go.wait(DEADLINE)
        sent = 0
        while exchange.read_body(sent + 1):
            part = bytes(request.body[sent:])
            sent += len(part)
            if target == "/shout":
                exchange.data(part.upper())
        if target == "/shout" and request.complete:
            exchange.data(end=True)
        self.ended(target, bytes(request.body))

    def ended(self, target: str, data: bytes) -> None:
        self.received[target] = data
        self.over.set()


@pytest.fixture
def peers() -> Peers:
    return Peers()


@pytest.fixture
def site(tmp_path: Path, peers: Peers) -> Iterator[Serving]:
    old = RawBackend(peers.old)
    native = Native()
    native.listen("http", free_port())
    native.serve("old.test", old)
    native.serve("fast.test", old, route={"tunnel_timeout": "300ms"})
    with Http2Backend(peers.new, settings={8: 1}) as new, Http2Backend() as plain:
        native.serve("new.test", new.key, protocol="http2")
        native.serve("plain.test", plain.key, protocol="http2")
        with serving(tmp_path, native, {"old.test": old}, threads=1) as started:
            yield started
            if started.lb.process.poll() is None:
                started.lb.assert_healthy()
            old.assert_clean()


@pytest.fixture
def client(site: Serving) -> Iterator[Http2Client]:
    with Http2Client(site.connect()) as connected:
        connected.handshake()
        assert connected.settings[8] == 1, "SETTINGS_ENABLE_CONNECT_PROTOCOL"
        yield connected


def open_tunnel(client: Http2Client, host: str, target: str) -> int:
    stream = max(client.streams, default=-1) + 2
    client.send(client.headers(stream, *websocket(host, target), end=False))
    client.until(lambda _: client.streams[stream].status != 0, "an answer")
    return stream


def read_to(client: Http2Client, stream: int, size: int) -> bytes:
    while len(client.streams[stream].body) < size:
        assert client.receive() is not None
    return bytes(client.streams[stream].body)


@pytest.mark.parametrize("host", HOSTS)
class TestTunnels:
    def test_bytes_pass_both_ways(self, host: str, client: Http2Client, site: Serving) -> None:
        stream = open_tunnel(client, host, "/shout")
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
        record = site.lb.wait_log(1, target="/shout")[0]
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
        stream = open_tunnel(client, host, "/half")
        assert client.response(stream).body == b"bye"
        client.send(data(stream, b"last words", "END_STREAM"))
        assert peers.over.wait(DEADLINE)
        assert peers.received["/half"] == b"last words"

    def test_the_clients_last_bytes_arrive_at_a_slow_endpoint(
        self, host: str, client: Http2Client, peers: Peers, site: Serving
    ) -> None:
        size = 2 * MEGABYTE
        stream = open_tunnel(client, host, "/slow")
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
        assert peers.over.wait(DEADLINE)
        assert len(peers.received["/slow"]) == sent
        wait_until(lambda: site.lb.metric("lb_upstream_requests_active") == 0 or host == "new.test", "it is over")

    def test_a_reset_is_no_end(self, host: str, client: Http2Client, site: Serving) -> None:
        stream = open_tunnel(client, host, "/reset")
        client.send(data(stream, b"x"))
        assert client.reset_of(stream) == CONNECT_ERROR
        record = site.lb.wait_log(1, target="/reset")[0]
        assert record["reason"] in ("upstream-reset", "upstream-truncated")

    def test_a_cancelled_tunnel_is_closed(self, host: str, client: Http2Client, peers: Peers, site: Serving) -> None:
        stream = open_tunnel(client, host, "/shout")
        client.send(data(stream, b"x"))
        read_to(client, stream, 1)
        client.send(reset(stream, CANCEL))
        assert peers.over.wait(DEADLINE)
        assert site.lb.wait_log(1, target="/shout")[0]["reason"] == "client-reset"
        assert open_tunnel(client, host, "/shout")

    def test_many_tunnels_on_one_connection(self, host: str, client: Http2Client) -> None:
        streams = [open_tunnel(client, host, "/shout") for _ in range(40)]
        client.send(*(data(stream, b"stream %d" % stream) for stream in streams))
        for stream in streams:
            assert read_to(client, stream, len(b"STREAM %d" % stream)) == b"STREAM %d" % stream


def test_an_endpoint_that_knows_no_websockets(client: Http2Client) -> None:
    stream = open_tunnel(client, "plain.test", "/")
    assert client.streams[stream].status == 502


def test_a_tunnel_that_stands_still(client: Http2Client, site: Serving) -> None:
    stream = open_tunnel(client, "fast.test", "/shout")
    assert client.reset_of(stream) != NO_ERROR
    assert site.lb.wait_log(1, target="/shout")[0]["reason"] == "tunnel-timeout"


def test_a_drain_waits_for_tunnels(client: Http2Client, site: Serving) -> None:
    stream = open_tunnel(client, "old.test", "/shout")
    site.lb.signal(signal.SIGTERM)
    client.until(lambda frame: isinstance(frame, GoAwayFrame), "GOAWAY")
    client.send(data(stream, b"still here"))
    assert read_to(client, stream, 10) == b"STILL HERE"
    client.send(data(stream, b"", "END_STREAM"))
    assert client.end() == NO_ERROR
    client.close()
    site.lb.assert_ends()
