"""Endpoints that break HTTP/2: whatever they send ends their stream or their connection, with a reason, and nothing
else.

Each case is a request whose path names it; the endpoint does what CASES says. A neighbour has a stream of the same
connection meanwhile: what concerns one stream does not touch it.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
)

from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.http2_client import data, frame_bytes, settings
from tests.harness.http2_endpoint import Asked, Ended, FrameConnection, last
from tests.harness.http_client import Exchange, HttpClient, Reset
from tests.harness.native import Native
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE, wait_until

HOST = "hostile.test"
Field = tuple[str | bytes, str | bytes]
Case = Callable[[FrameConnection, int], None]

OK_HEAD: Field = (":status", "200")


def goaway(last: int) -> bytes:
    return frame_bytes(7, 0, 0, struct.pack(">II", last, 0))


def head(*fields: Field, end: bool = False) -> Case:
    """A response that begins with these fields, in this order."""
    return lambda peer, stream: peer.send(peer.head(stream, *fields, end=end))


def with_field(name: str | bytes, value: str | bytes) -> Case:
    return head(OK_HEAD, (name, value))


def with_body(status: str, *pieces: bytes, length: str | None = None) -> Case:
    """A whole response with so much body."""
    fields: list[Field] = [(":status", status), *([("content-length", length)] if length is not None else [])]

    def send(peer: FrameConnection, stream: int) -> None:
        frames = [data(stream, piece) for piece in pieces]
        peer.send(peer.head(stream, *fields), *frames, last(stream))

    return send


def body_and_trailers(*fields: Field, end: bool = True) -> Case:
    return lambda peer, stream: peer.send(
        peer.head(stream, OK_HEAD), data(stream, b"body"), peer.head(stream, *fields, end=end)
    )


def interim(count: int) -> Case:
    return lambda peer, stream: peer.send(*(peer.head(stream, (":status", "103")) for _ in range(count)))


def raw(*parts: bytes) -> Case:
    """These bytes, which concern no stream."""
    return lambda peer, stream: peer.send(*parts)


def many(make: Callable[[int], bytes], count: int) -> Case:
    """So many frames, until lb has had enough."""
    return lambda peer, stream: peer.send(make(stream) * count)


STREAM_FAULTS: dict[str, Case] = {
    "no status": head(("server", "x")),
    "status of two digits": head((":status", "20")),
    "status of letters": head((":status", "abc")),
    "status 099": head((":status", "099")),
    "status 600": head((":status", "600")),
    "status 101": head((":status", "101")),
    "status twice": head(OK_HEAD, OK_HEAD),
    "status behind a field": head(("server", "x"), OK_HEAD),
    "unknown pseudo-header": head(OK_HEAD, (":version", "2")),
    "request pseudo-header": head(OK_HEAD, (":path", "/")),
    "upper case": with_field("Server", "x"),
    "name with a blank": with_field("x y", "1"),
    "name with a colon": with_field("x:y", "1"),
    "empty name": with_field("", "1"),
    "value with LF": with_field("x", b"a\nb"),
    "value with CR": with_field("x", b"a\rb"),
    "value with NUL": with_field("x", b"a\0b"),
    "value that begins with a blank": with_field("x", b" a"),
    "value that ends with a tab": with_field("x", b"a\t"),
    "connection": with_field("connection", "close"),
    "keep-alive": with_field("keep-alive", "timeout=5"),
    "transfer-encoding": with_field("transfer-encoding", "chunked"),
    "upgrade": with_field("upgrade", "websocket"),
    "proxy-connection": with_field("proxy-connection", "close"),
    "length that is none": with_field("content-length", "1x"),
    "negative length": with_field("content-length", "-1"),
    "signed length": with_field("content-length", "+1"),
    "huge length": with_field("content-length", "9" * 30),
    "two lengths": head(OK_HEAD, ("content-length", "1"), ("content-length", "2")),
    "interim that ends": head((":status", "103"), end=True),
    "endless interim responses": interim(100),
    "trailers before the head": head(("x-trailer", "1"), end=True),
}
"""One stream of a response is wrong before its head is known to be right: 502, and the connection goes on."""

BODY_FAULTS: dict[str, Case] = {
    "less than its length": with_body("200", b"abc", length="4"),
    "more than its length": with_body("200", b"abc", b"de", length="4"),
    "nothing of its length": with_body("200", length="4"),
    "trailers that do not end": body_and_trailers(("x-trailer", "1"), end=False),
    "trailers with a status": body_and_trailers(OK_HEAD),
    "trailers in upper case": body_and_trailers(("X-Trailer", "1")),
    "trailers with LF": body_and_trailers(("x-trailer", b"a\nb")),
}
"""The head was fine, so the client's response is cut off; the connection goes on."""


def push(peer: FrameConnection, stream: int) -> None:
    block = peer.encoder.encode([(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", HOST)])
    frame = PushPromiseFrame(stream, 2, data=block, flags=["END_HEADERS"])
    peer.send(frame)


def continuations(peer: FrameConnection, stream: int) -> None:
    """A header block that never ends."""
    frames: list[bytes] = [HeadersFrame(stream, peer.encoder.encode([OK_HEAD])).serialize()]
    frames += [ContinuationFrame(stream, b"").serialize()] * 1000
    peer.send(*frames)


def bomb(peer: FrameConnection, stream: int) -> None:
    """Few bytes that stand for megabytes: one large field, indexed, again and again."""
    block = peer.encoder.encode([OK_HEAD, ("x", "y" * 3000)])
    peer.send(HeadersFrame(stream, block + b"\xbe" * 12_000, flags=["END_HEADERS"]))


def interrupted(peer: FrameConnection, stream: int) -> None:
    """Another frame inside a header block."""
    peer.send(peer.head(stream, OK_HEAD, end_headers=False), PingFrame(0, b"whatever"))


CONNECTION_FAULTS: dict[str, Case] = {
    "undecodable block": lambda peer, stream: peer.send(frame_bytes(1, 4, stream, b"\xff\xff\xff\xff\xff")),
    "index of nothing": lambda peer, stream: peer.send(frame_bytes(1, 4, stream, b"\xfe")),
    "large frame": lambda peer, stream: peer.send(peer.head(stream, OK_HEAD), frame_bytes(0, 0, stream, b"x" * 20_000)),
    "data before the head": lambda peer, stream: peer.send(data(stream, b"x")),
    "nothing but an end": lambda peer, stream: peer.send(last(stream)),
    "data on stream 0": raw(frame_bytes(0, 0, 0, b"x")),
    "data on an idle stream": raw(frame_bytes(0, 0, 99_999, b"x")),
    "data on a stream of its own": raw(frame_bytes(0, 0, 2, b"x")),
    "head on an idle stream": lambda peer, stream: peer.send(peer.head(99_999, OK_HEAD)),
    "head on a stream of its own": lambda peer, stream: peer.send(peer.head(2, OK_HEAD)),
    "reset of an idle stream": raw(frame_bytes(3, 0, 99_999, bytes(4))),
    "reset of stream 0": raw(frame_bytes(3, 0, 0, bytes(4))),
    "short reset": lambda peer, stream: peer.send(frame_bytes(3, 0, stream, bytes(3))),
    "push": push,
    "window of 0 for all": raw(frame_bytes(8, 0, 0, bytes(4))),
    "window too large for all": raw(frame_bytes(8, 0, 0, struct.pack(">I", 0x7FFFFFFF))),
    "short window": raw(frame_bytes(8, 0, 0, bytes(3))),
    "settings on a stream": lambda peer, stream: peer.send(frame_bytes(4, 0, stream)),
    "settings of a wrong size": raw(frame_bytes(4, 0, 0, bytes(5))),
    "acknowledgement with a payload": raw(frame_bytes(4, 1, 0, bytes(6))),
    "window setting too large": raw(settings((4, 0x80000000))),
    "frame size setting too small": raw(settings((5, 100))),
    "push setting of 2": raw(settings((2, 2))),
    "short ping": raw(frame_bytes(6, 0, 0, bytes(7))),
    "ping on a stream": lambda peer, stream: peer.send(frame_bytes(6, 0, stream, bytes(8))),
    "short goaway": raw(frame_bytes(7, 0, 0, bytes(7))),
    "goaway that takes back": raw(goaway(0x7FFFFFFD), goaway(0x7FFFFFFF)),
    "goaway that names a stream of its own": raw(goaway(0x7FFFFFFE)),
    "continuation of nothing": lambda peer, stream: peer.send(frame_bytes(9, 4, stream, b"")),
    "interrupted block": interrupted,
    "padding longer than its frame": lambda peer, stream: peer.send(
        peer.head(stream, OK_HEAD), frame_bytes(0, 8, stream, b"\xff" + bytes(5))
    ),
    "continuations without end": continuations,
    "header bomb": bomb,
    "pings": many(lambda _: frame_bytes(6, 0, 0, bytes(8)), 2000),
    "settings": many(lambda _: frame_bytes(4, 0, 0), 2000),
    "unknown frames": many(lambda _: frame_bytes(0xBB, 0, 0, b"x"), 2000),
    "resets of nobody's streams": many(lambda stream: frame_bytes(3, 0, stream, bytes(4)), 20_000),
}
"""The connection cannot be trusted any more: it ends with GOAWAY, and so does what was on it."""


def answered(case: Case) -> Case:
    """That, and then an ordinary answer."""

    def send(peer: FrameConnection, stream: int) -> None:
        case(peer, stream)
        peer.answer(stream)

    return send


def padded(peer: FrameConnection, stream: int) -> None:
    peer.send(peer.head(stream, OK_HEAD), frame_bytes(0, 9, stream, b"\3ok" + bytes(3)))


def in_pieces(peer: FrameConnection, stream: int) -> None:
    block = peer.encoder.encode([OK_HEAD, ("x", "y" * 100)])
    frames = [frame_bytes(9, 0, stream, block[at : at + 20]) for at in range(20, 100, 20)]
    peer.send(frame_bytes(1, 0, stream, block[:20]), *frames, frame_bytes(9, 4, stream, block[100:]))
    peer.send(last(stream, b"ok"))


def reset_behind(peer: FrameConnection, stream: int) -> None:
    """The answer is complete, and the endpoint says that it wants no more of the request (RFC 9113 8.1)."""
    peer.answer(stream)
    peer.send(RstStreamFrame(stream))


FINE: dict[str, Case] = {
    "unknown frame": answered(lambda peer, stream: peer.send(frame_bytes(0xBB, 0, stream, b"x"))),
    "unknown setting": answered(raw(settings((0x99, 7)))),
    "priority": answered(lambda peer, stream: peer.send(frame_bytes(2, 0, stream, bytes(4) + b"\1"))),
    "window": answered(lambda peer, stream: peer.open_window(stream, 1000)),
    "empty data": with_body("200", b"", b"o", b"", b"k"),
    "interim": answered(interim(3)),
    "padded": padded,
    "head in pieces": in_pieces,
    "reset behind its end": reset_behind,
}
"""What a server may do."""

UNWANTED = {
    "body of 204": with_body("204", b"x"),
    "body of 304": with_body("304", b"x"),
    "body of HEAD": with_body("200", b"x", length="1"),
}

CASES = {**STREAM_FAULTS, **BODY_FAULTS, **CONNECTION_FAULTS, **FINE, **UNWANTED}


class Hostile:
    """The endpoint. `/case/NAME` is answered as CASES says, `/hold` when `/release` comes, all else at once."""

    def __init__(self) -> None:
        self.peers: list[FrameConnection] = []
        self.held = threading.Semaphore(0)
        """Released once for each `/hold` that has come."""

    def __call__(self, connection: BackendConnection) -> None:
        peer = FrameConnection(connection)
        self.peers.append(peer)
        held: list[int] = []
        while True:
            try:
                asked = peer.request()
            except Ended:
                return
            self._answer(peer, asked, held)

    def _answer(self, peer: FrameConnection, asked: Asked, held: list[int]) -> None:
        if asked.path.startswith("/case/"):
            CASES[asked.path.removeprefix("/case/").replace("_", " ")](peer, asked.stream)
        elif asked.path == "/hold":
            held.append(asked.stream)
            self.held.release()
        else:
            while held:
                peer.answer(held.pop(), b"held")
            peer.answer(asked.stream)


class World:
    """lb with one thread, so that all requests meet on one connection to the endpoint."""

    def __init__(self, serving: Serving, endpoint: Hostile) -> None:
        self.serving = serving
        self.endpoint = endpoint

    def client(self, version: str = "2") -> HttpClient:
        return HttpClient(self.serving.address(), version)

    def hold(self, client: HttpClient, method: str = "GET") -> Exchange:
        """A request that has reached the endpoint and waits there."""
        exchange = client.start(HOST, "/hold", method)
        assert self.endpoint.held.acquire(timeout=DEADLINE)
        return exchange


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    endpoint = Hostile()
    backend = RawBackend(endpoint)
    native = Native()
    native.serve(HOST, backend.key, protocol="http2")
    with serving(tmp_path_factory.mktemp("hostile"), native, {HOST: backend}, threads=1) as running:
        yield World(running, endpoint)


@pytest.fixture(autouse=True)
def healthy(world: World) -> Iterator[None]:
    yield
    world.serving.lb.assert_healthy()


def path(name: str) -> str:
    return "/case/" + name.replace(" ", "_")


@pytest.mark.parametrize("name", FINE)
def test_what_a_server_may_do(world: World, name: str) -> None:
    with world.client() as client:
        answer = client.ask(HOST, path(name))
        assert (answer.status, answer.body) == (200, b"ok")


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_wrong_head_costs_its_stream(world: World, name: str, version: str) -> None:
    with world.client() as neighbour, world.client(version) as client:
        waiting = world.hold(neighbour)
        answer = client.ask(HOST, path(name))
        assert answer.status == 502
        assert b"bad-response" in answer.body
        assert client.ask(HOST).body == b"ok"
        assert waiting.rest().body == b"held"


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("name", BODY_FAULTS)
def test_wrong_body_costs_its_stream(world: World, name: str, version: str) -> None:
    with world.client() as neighbour, world.client(version) as client:
        waiting = world.hold(neighbour)
        exchange = client.start(HOST, path(name))
        with pytest.raises(Reset):
            exchange.rest()
        assert neighbour.ask(HOST).body == b"ok"
        assert waiting.rest().body == b"held"


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("name", UNWANTED)
def test_body_where_there_is_none(world: World, name: str, version: str) -> None:
    """Nobody gets to see it."""
    with world.client(version) as client:
        exchange = client.start(HOST, path(name), "HEAD" if "HEAD" in name else "GET")
        with contextlib.suppress(Reset):
            assert exchange.rest().body == b""
    with world.client(version) as client:
        assert client.ask(HOST).body == b"ok"


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_broken_connection_is_left_with_goaway(world: World, name: str) -> None:
    with world.client() as neighbour, world.client() as client:
        waiting = world.hold(neighbour, "POST")
        peer = world.endpoint.peers[-1]
        exchange = client.start(HOST, path(name), "POST")
        try:
            assert exchange.rest().status == 502
        except Reset:
            assert exchange.answer.status in (0, 200)  # the head was right, and may have come so far
        assert waiting.rest().status == 502
        assert client.ask(HOST).body == b"ok"
        assert world.endpoint.peers[-1] is not peer
    wait_until(lambda: peer.ended, "the connection ends")
    assert [frame.error_code != 0 for frame in peer.frames if isinstance(frame, GoAwayFrame)] == [True]


@pytest.mark.parametrize("name", ["undecodable block", "large frame", "continuations without end"])
def test_who_was_not_answered_yet_begins_again(world: World, name: str) -> None:
    """The answer that breaks the connection is somebody else's: the endpoint may well have a good one for this."""
    with world.client() as neighbour, world.client() as client:
        assert client.ask(HOST).body == b"ok"
        waiting = world.hold(neighbour)
        peer = world.endpoint.peers[-1]
        with contextlib.suppress(Reset):
            assert client.ask(HOST, path(name)).status == 502
        assert world.endpoint.held.acquire(timeout=DEADLINE)
        assert world.endpoint.peers[-1] is not peer
        assert client.ask(HOST).body == b"ok"
        assert waiting.rest().body == b"held"
