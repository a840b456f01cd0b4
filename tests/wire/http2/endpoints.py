"""Endpoints of both protocols that do the same for the same target, so that a test can be run with either.

`/echo` answers with the body's digest and the trailers it got, `/length/N` and `/open/N` with N bytes of known and of
unknown length, `/mirror` with what comes as it comes, `/status/N` with that status, `/interim` with 103 before 200,
`/early` before the body, `/hang` not at all, `/cut` not to the end, `/gate` when the test opens it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.backend import BackendConnection, RawBackend, Received
from tests.harness.http2_backend import Exchange, Http2Backend
from tests.harness.messages import Headers
from tests.harness.native import Native
from tests.harness.payload import digest_of, pieces
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE

OLD, NEW = "old.test", "new.test"
HOSTS = (OLD, NEW)


@dataclass
class Endpoints:
    """A running lb in front of one endpoint of each protocol, and what they have seen."""

    serving: Serving
    old: RawBackend
    new: Http2Backend
    seen: Seen

    def assert_sound(self) -> None:
        self.serving.lb.assert_healthy()
        self.old.assert_clean()
        self.new.assert_clean()


@dataclass
class Seen:
    gate: threading.Event = field(default_factory=threading.Event)
    given_up: list[str] = field(default_factory=list)
    """Targets whose request lb has ended before its response was complete."""


@contextmanager
def endpoints(directory: Path, native: Native, *options: str, threads: int = 2) -> Iterator[Endpoints]:
    seen = Seen()
    old = RawBackend(lambda connection: serve_old(connection, seen))
    with Http2Backend(lambda exchange: serve_new(exchange, seen)) as new:
        native.serve(OLD, old)
        native.serve(NEW, new.key, protocol="http2")
        with serving(directory, native, {OLD: old}, *options, threads=threads) as started:
            try:
                yield Endpoints(started, old, new, seen)
            finally:
                seen.gate.set()


# ------------------------------------------------------------------------------------------------------------- HTTP/1


def reply(status: int, body: bytes = b"", *lines: bytes) -> bytes:
    length = b"" if status in (204, 304) else b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 %d X\r\n%b%b\r\n%b" % (status, length, b"".join(line + b"\r\n" for line in lines), body)


def in_chunks(data: Iterator[memoryview] | list[bytes], trailers: Headers | None = None) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    for part in data:
        yield b"%x\r\n%b\r\n" % (len(part), part)
    yield b"0\r\n" + b"".join(b"%b: %b\r\n" % item for item in trailers or ()) + b"\r\n"


def serve_old(connection: BackendConnection, seen: Seen) -> None:
    while (received := connection.read_head()) is not None:
        if not answer_old(connection, received, seen):
            return


def answer_old(connection: BackendConnection, received: Received, seen: Seen) -> bool:
    """False when the connection ends with it."""
    request = received.request
    _, kind, *rest = request.target.split(b"?")[0].decode().split("/")
    if kind == "early":
        connection.send(reply(413, b"too much", b"Connection: close"))
        connection.wait_for_end()
        connection.done()
        return False
    if kind == "mirror":
        mirror_old(connection)
        return True
    if request.headers.tokens("expect"):
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not connection.read_body(received):
        seen.given_up.append(request.target.decode())
        return False
    match kind:
        case "length":
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % int(rest[0]), *pieces(int(rest[0])))
        case "open":
            connection.send(*in_chunks(pieces(int(rest[0]), 50_000)))
        case "status":
            connection.send(reply(int(rest[0]), b"", b"Content-Length: 7" if rest[0] == "304" else b"X-A: 1"))
        case "interim":
            link = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
            connection.send(link, link, reply(200, b"late"))
        case "hang":
            connection.wait_for_end()
            seen.given_up.append(request.target.decode())
            return False
        case "cut":
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
            return False
        case "gate":
            assert seen.gate.wait(DEADLINE)
            connection.send(reply(200, request.target))
        case _:
            connection.send(*in_chunks([digest_of(request.body)], request.trailers))
    return True


def mirror_old(connection: BackendConnection) -> None:
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    reader = connection.reader
    while size := int(reader.line(), 16):
        data = reader.take(size)
        reader.take(2)
        connection.send(b"%x\r\n%b\r\n" % (size, data))
    reader.take(2)
    connection.send(b"0\r\n\r\n")
    connection.done()


# ------------------------------------------------------------------------------------------------------------- HTTP/2


def serve_new(exchange: Exchange, seen: Seen) -> None:
    target = exchange.request.path.decode()
    _, kind, *rest = target.split("?")[0].split("/")
    if kind == "early":
        exchange.respond(413, (b"content-length", b"8"), body=b"too much")
        return
    if kind == "mirror":
        mirror_new(exchange)
        return
    if exchange.request.headers.tokens("expect"):
        exchange.head(100)
    if not exchange.read():
        seen.given_up.append(target)
        return
    match kind:
        case "length" | "open":
            known = [(b"content-length", rest[0].encode())] if kind == "length" else []
            exchange.head(200, *known)
            for part in pieces(int(rest[0])):
                exchange.data(part)
            exchange.data(end=True)
        case "status":
            known = (b"content-length", b"7") if rest[0] == "304" else (b"x-a", b"1")
            exchange.head(int(rest[0]), known, end=True)
        case "interim":
            exchange.head(103, (b"link", b"</a.css>"))
            exchange.head(103, (b"link", b"</a.css>"))
            exchange.respond(body=b"late")
        case "hang":
            exchange.wait_for_end()
            seen.given_up.append(target)
        case "cut":
            exchange.head(200, (b"content-length", b"10"))
            exchange.data(b"12345")
            exchange.reset()
        case "gate":
            assert seen.gate.wait(DEADLINE)
            exchange.respond(body=target.encode())
        case _:
            exchange.respond(body=digest_of(bytes(exchange.request.body)), trailers=exchange.request.trailers)


def mirror_new(exchange: Exchange) -> None:
    exchange.head(200)
    sent = 0
    while exchange.read_body(sent + 1) or exchange.request.complete:
        piece = bytes(exchange.request.body[sent:])
        sent += len(piece)
        exchange.data(piece)
        if exchange.request.complete and sent == len(exchange.request.body):
            exchange.data(end=True)
            return
