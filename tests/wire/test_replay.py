"""What an HTTP/2 endpoint has refused without looking at it is sent again, bodies included (RFC 9113 8.7)."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame

from tests.harness.native import Native
from tests.harness.serving import Serving, serving
from tests.harness.waiting import wait_until

Refuse = Callable[["Connection", int], None]


@dataclass
class Connection:
    """One connection to the endpoint, as the refusing function sees it."""

    number: int
    engine: h2.connection.H2Connection
    bodies: dict[int, bytes] = field(default_factory=dict)
    frames: bytes = b""  # to be sent besides what the engine says

    def go_away(self) -> None:
        """No stream was or will be looked at. The engine would end with its own GOAWAY, so it does not know."""
        self.bodies.clear()
        self.frames += GoAwayFrame(0, last_stream_id=0).serialize()


class RefusingEndpoint:
    """Answers each request with the digest of its body, unless `refuse` was told to look at its connection first.

    `refuse` gets the stream as soon as it has its first bytes of a body (or its end) and may refuse it.
    """

    def __init__(self) -> None:
        self.refuse: Refuse | None = None
        self.answered: list[tuple[int, int]] = []  # connection, stream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self._connections += 1
            threading.Thread(target=self._serve, args=(peer, self._connections), daemon=True).start()

    def _serve(self, peer: socket.socket, number: int) -> None:
        engine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection = Connection(number, engine)
        engine.initiate_connection()
        # lb closes a connection that has gone away as soon as nothing runs on it, whatever is still on its way there.
        with peer, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.sendall(engine.data_to_send())
            while data := peer.recv(65536):
                for event in engine.receive_data(data):
                    self._handle(connection, event)
                peer.sendall(engine.data_to_send() + connection.frames)
                connection.frames = b""

    def _handle(self, connection: Connection, event: h2.events.Event) -> None:
        engine = connection.engine
        if isinstance(event, h2.events.RequestReceived):
            connection.bodies[event.stream_id] = b""
        elif isinstance(event, h2.events.DataReceived):
            if event.stream_id not in connection.bodies:
                return
            engine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            connection.bodies[event.stream_id] += event.data
            self._look(connection, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded) and event.stream_id in connection.bodies:
            self._look(connection, event.stream_id)
            if event.stream_id in connection.bodies:
                self._answer(connection, event.stream_id)

    def _look(self, connection: Connection, stream: int) -> None:
        if self.refuse is not None:
            self.refuse(connection, stream)

    def _answer(self, connection: Connection, stream: int) -> None:
        digest = hashlib.sha256(connection.bodies.pop(stream)).hexdigest().encode()
        self.answered.append((connection.number, stream))
        connection.engine.send_headers(stream, [(":status", "200"), ("content-length", str(len(digest)))])
        connection.engine.send_data(stream, digest, end_stream=True)


def goaway(connection: Connection, stream: int) -> None:
    """The first connection serves nothing."""
    if connection.number == 1:
        connection.go_away()


@dataclass
class Setup:
    server: Serving
    endpoint: RefusingEndpoint


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    endpoint = RefusingEndpoint()
    native = Native()
    native.serve("replay.example.com", endpoint.key, protocol="http2")
    with serving(tmp_path, native, threads=1) as server:
        yield Setup(server, endpoint)
    endpoint.close()


def post(setup: Setup, *pieces: bytes, chunked: bool = False) -> tuple[int, bytes]:
    """Send the pieces one after another, each when the one before it is on its way; status and body."""
    size = sum(map(len, pieces))
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    with setup.server.connect() as client:
        client.send(f"POST /x HTTP/1.1\r\nHost: replay.example.com\r\n{framing}\r\n\r\n".encode())
        for piece in pieces:
            client.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            client.send(b"0\r\n\r\n")
        response = client.response("POST")
        return response.status, response.body


@pytest.mark.parametrize(("size", "chunked"), [(1, False), (20_000, True), (60_000, False)])
def test_a_goaway_that_leaves_a_request_out_costs_it_nothing(setup: Setup, size: int, chunked: bool) -> None:
    setup.endpoint.refuse = goaway
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    assert post(setup, body, chunked=chunked) == (200, hashlib.sha256(body).hexdigest().encode())
    assert setup.endpoint.answered == [(2, 1)]


def test_many_requests_that_cross_a_goaway_all_arrive_once(setup: Setup) -> None:
    """They share new connections; none of them needs one of its own."""
    setup.endpoint.refuse = goaway
    results: list[tuple[int, bytes]] = []
    bodies = [f"request {number}".encode() * 100 for number in range(30)]
    threads = [threading.Thread(target=lambda body=body: results.append(post(setup, body))) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted((200, hashlib.sha256(body).hexdigest().encode()) for body in bodies)
    assert len(setup.endpoint.answered) == 30
    assert max(number for number, _ in setup.endpoint.answered) < 10


def test_a_stream_refused_by_name_is_sent_again(setup: Setup) -> None:
    seen: list[tuple[int, int]] = []

    def refuse(connection: Connection, stream: int) -> None:
        if (connection.number, stream) == (1, 1) and connection.bodies.pop(stream, None) is not None:
            seen.append((connection.number, stream))
            connection.engine.reset_stream(stream, ErrorCodes.REFUSED_STREAM)

    setup.endpoint.refuse = refuse
    assert post(setup, b"once more")[0] == 200
    assert seen == [(1, 1)]
    assert len(setup.endpoint.answered) == 1


def test_more_than_is_kept_is_sent_once_only(setup: Setup) -> None:
    """The endpoint refuses after it has had a megabyte: lb no longer has it."""

    def refuse(connection: Connection, stream: int) -> None:
        if len(connection.bodies.get(stream, b"")) > 100_000:
            del connection.bodies[stream]
            connection.engine.reset_stream(stream, ErrorCodes.REFUSED_STREAM)

    setup.endpoint.refuse = refuse
    with setup.server.connect() as client:
        client.send(b"POST /x HTTP/1.1\r\nHost: replay.example.com\r\nContent-Length: 300000\r\n\r\n")
        client.send(b"x" * 120_000)
        assert client.response("POST").status == 502
    assert setup.endpoint.answered == []


def test_a_body_that_comes_while_its_request_is_sent_again_is_whole(setup: Setup) -> None:
    """Refused at its first bytes, and the rest comes only when the next attempt has them."""
    sent_again = threading.Event()

    def refuse(connection: Connection, stream: int) -> None:
        if connection.number == 1 and connection.bodies.pop(stream, None) is not None:
            connection.go_away()
        elif connection.number == 2:
            sent_again.set()

    setup.endpoint.refuse = refuse
    body = b"0123456789" * 50_000
    with setup.server.connect() as client:
        client.send(f"POST /x HTTP/1.1\r\nHost: replay.example.com\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        client.send(body[:1000])
        assert sent_again.wait(10)
        client.send(body[1000:])
        response = client.response("POST")
    assert (response.status, response.body) == (200, hashlib.sha256(body).hexdigest().encode())


def test_kept_bodies_are_given_back(setup: Setup) -> None:
    """Until the response begins, and not longer: `lb_buffer_bytes` must fall to 0 while the connections are open."""
    held = threading.Event()
    setup.endpoint.refuse = lambda connection, stream: held.wait(10) and None  # type: ignore[func-returns-value]
    with setup.server.connect() as client:
        client.send(b"POST /x HTTP/1.1\r\nHost: replay.example.com\r\nContent-Length: 50000\r\n\r\n" + b"x" * 50_000)
        wait_until(lambda: setup.server.lb.metric("lb_buffer_bytes") >= 50_000, "the body is kept")
        held.set()
        assert client.response("POST").status == 200
        wait_until(lambda: setup.server.lb.metric("lb_buffer_bytes") == 0, "the body is given back")
