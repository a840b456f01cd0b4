"""One exchange, every pair of protocols: HTTP/1.1 and HTTP/2, plain and TLS, towards clients and towards endpoints.

Client, lb and endpoint do the same whatever they speak, so each test runs on all sixteen pairs.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import h2.errors
import pytest
from websockets.frames import Opcode
from websockets.protocol import OPEN, Protocol, Side

from tests.harness.certificates import Authority
from tests.harness.http_client import Exchange, HttpClient, Reset
from tests.harness.http_server import Call, HttpServer
from tests.harness.native import Native, forward
from tests.harness.payload import MEGABYTE, digest, payload, pieces
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.waiting import wait_until

LARGE = 5 * MEGABYTE
DOWNSTREAM = ("h1-plain", "h1-tls", "h2-plain", "h2-tls")
UPSTREAM = ("h1-plain", "h1-tls", "h2-plain", "h2-tls")
PAIRS = [(client, endpoint) for client in DOWNSTREAM for endpoint in UPSTREAM]


async def handle(call: Call) -> None:
    """What the endpoints do, chosen by the first part of the path."""
    _, kind, *rest = call.target.split(b"?")[0].split(b"/")
    await HANDLERS[kind.decode()](call, rest)


async def describe(call: Call, _: list[bytes]) -> None:
    """The request as it came: its line, its fields, the digest of its body and its trailers."""
    seen = hashlib.sha256()
    while data := await call.read():
        seen.update(data)
    lines = [b"%b %b" % (call.method, call.target)]
    lines += [b"%b: %b" % (name.lower(), value) for name, value in call.headers]
    lines += [b"sha256 " + seen.hexdigest().encode()]
    lines += [b"trailer %b: %b" % (name.lower(), value) for name, value in call.trailers]
    fields = [(b"X-Seen", b"one"), (b"X-Seen", b"two"), (b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2")]
    await call.answer(200, b"\n".join(lines), fields)


async def bulk(call: Call, rest: list[bytes]) -> None:
    """So many bytes, with their length or without."""
    framing, size = rest[0], int(rest[1])
    call.respond(200, [(b"content-length", b"%d" % size)] if framing == b"length" else [])
    if call.method != b"HEAD":
        for piece in pieces(size):
            await call.send(bytes(piece))
    call.end()


async def trailing(call: Call, _: list[bytes]) -> None:
    await call.body()
    await call.answer(200, b"body", [(b"trailer", b"x-sum")], [(b"x-sum", b"42"), (b"etag", b'"v1"')])


async def bodyless(call: Call, rest: list[bytes]) -> None:
    await call.body()
    status = int(rest[0])
    call.respond(status, [(b"etag", b'"v1"')], end=True)


async def hinting(call: Call, _: list[bytes]) -> None:
    call.inform(103, [(b"link", b"</style.css>; rel=preload")])
    call.inform(103, [(b"link", b"</app.js>; rel=preload")])
    await call.answer(200, b"hinted")


async def hasty(call: Call, _: list[bytes]) -> None:
    """Answers as soon as some of the body has come, and takes the rest for a while."""
    await call.read()
    await call.answer(413, b"too large")
    if call.version == "2":
        await call.body()


async def careful(call: Call, rest: list[bytes]) -> None:
    """Looks at the head before it asks for the body."""
    assert call.waits_for_continue
    if rest[0] == b"refuse":
        await call.answer(403, b"no")
        return
    call.inform(100)
    await describe(call, rest)


async def endless(call: Call, _: list[bytes]) -> None:
    """A response that goes on until its client gives up; or its first half, when nothing is read any more."""
    call.respond(200)
    await call.send(b"begun")
    await call.until_cancelled()


async def silent(call: Call, _: list[bytes]) -> None:
    await call.until_cancelled()


async def broken(call: Call, rest: list[bytes]) -> None:
    """Cut off: before the head, in the middle of a body with or without length."""
    await call.body()
    if rest[0] != b"head":
        call.respond(200, [(b"content-length", b"1000")] if rest[0] == b"length" else [])
        await call.send(b"some")
    call.reset()


async def tunnel(call: Call, _: list[bytes]) -> None:
    """Sends every message back; a text `push N` is answered by N bytes."""
    assert call.protocol == b"websocket"
    call.accept([(b"sec-websocket-accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")] if call.version == "1.1" else [])
    peer = Protocol(Side.SERVER, state=OPEN, max_size=None)
    while data := await call.read():
        peer.receive_data(data)
        for frame in peer.events_received():
            if frame.opcode is Opcode.TEXT and frame.data.startswith(b"push "):
                peer.send_binary(payload(int(frame.data[5:])))
            elif frame.opcode is Opcode.TEXT:
                peer.send_text(frame.data)
            elif frame.opcode is Opcode.BINARY:
                peer.send_binary(frame.data)
        for out in peer.data_to_send():
            if out:
                await call.send(out)
    call.end()


async def refusing(call: Call, _: list[bytes]) -> None:
    await call.answer(403, b"no tunnel")


HANDLERS = {
    "describe": describe,
    "redirected": describe,
    "bulk": bulk,
    "trailers": trailing,
    "bodyless": bodyless,
    "hints": hinting,
    "hasty": hasty,
    "continue": careful,
    "endless": endless,
    "silent": silent,
    "broken": broken,
    "tunnel": tunnel,
    "refuse": refusing,
}


@dataclass
class World:
    """lb between every kind of client and every kind of endpoint."""

    serving: Serving
    authority: Authority
    servers: dict[str, HttpServer]

    def client(self, kind: str, **options: object) -> HttpClient:
        version, security = kind.split("-")
        ca = self.authority.pem if security == "tls" else None
        listener = "https" if security == "tls" else "http"
        return HttpClient(self.serving.address(listener), "2" if version == "h2" else "1.1", ca=ca, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("protocols")
    authority = Authority()
    native = Native()
    native.certificate("lb", authority.issue("lb.test"))
    native.listen("http", free_port())
    native.listen_tls("https", free_port(), {"*": "lb"}, hsts="max-age=60")
    pair = authority.issue("endpoint.test")
    tls = {"ca": authority.pem, "server_name": "endpoint.test"}
    servers = {}
    for kind in UPSTREAM:
        version, security = kind.split("-")
        alpn = ["h2"] if version == "h2" else ["http/1.1"]
        secured = {"pair": pair, "directory": directory, "alpn": alpn} if security == "tls" else {}
        servers[kind] = HttpServer(handle, **secured)  # type: ignore[arg-type]
        fields: dict[str, object] = {"tls": tls} if security == "tls" else {}
        native.upstream(kind, [servers[kind].key], protocol="http2" if version == "h2" else "http1", **fields)
        native.host(
            f"{kind}.test",
            forward(f"{kind}/plain", kind, path="/redirected", https_redirect=308),
            forward(f"{kind}/small", kind, path="/describe/limited", max_body="10Ki"),
            forward(kind, kind),
        )
    try:
        with serving(directory, native) as running:
            yield World(running, authority, servers)
    finally:
        for server in servers.values():
            server.close()


@dataclass
class Pair:
    """One of the sixteen."""

    world: World
    downstream: str
    upstream: str

    @property
    def host(self) -> str:
        return f"{self.upstream}.test"

    @property
    def server(self) -> HttpServer:
        return self.world.servers[self.upstream]

    def client(self, **options: object) -> HttpClient:
        return self.world.client(self.downstream, **options)


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}>{pair[1]}")
def pair(world: World, request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(world, *request.param)
    yield made
    world.serving.lb.assert_healthy()
    made.server.assert_clean()


def fields_of(body: bytes) -> dict[str, str]:
    """What `describe` has seen of the fields."""
    lines = body.decode().split("\n")[1:]
    return dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith("trailer "))


# ----------------------------------------------------------------------------------------------------------- the matrix


def test_get(pair: Pair) -> None:
    with pair.client() as client:
        answer = client.ask(pair.host, "/describe/a%20b?c=d&e", headers=[(b"x-mine", b"1"), (b"cookie", b"a=1; b=2")])
    assert answer.status == 200
    assert answer.body.startswith(b"GET /describe/a%20b?c=d&e\n")
    seen = fields_of(answer.body)
    secure = pair.downstream.endswith("tls")
    assert seen["host"] == pair.host
    assert seen["x-mine"] == "1"
    assert seen["cookie"] == "a=1; b=2"
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert seen["x-forwarded-proto"] == ("https" if secure else "http")
    assert answer.headers.all("x-seen") == [b"one", b"two"]
    assert answer.headers.all("set-cookie") == [b"a=1", b"b=2"]
    assert answer.headers.all("strict-transport-security") == ([b"max-age=60"] if secure else [])
    assert len(answer.headers.all("date")) == 1


@pytest.mark.parametrize("size", [0, 7, LARGE])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_post(pair: Pair, size: int, framing: str) -> None:
    with pair.client() as client:
        length = [(b"content-length", b"%d" % size)] if framing == "length" else []
        exchange = client.start(pair.host, "/describe", "POST", length, end=False)
        for piece in pieces(size):
            exchange.send(bytes(piece))
        exchange.end()
        answer = exchange.rest()
        assert answer.status == 200
        assert b"sha256 " + digest(size) in answer.body
        if framing == "length":
            assert fields_of(answer.body)["content-length"] == str(size)
        else:
            assert b"content-length" not in answer.body
        assert client.ask(pair.host, "/describe").status == 200  # and the connection goes on


@pytest.mark.parametrize("size", [0, 7, LARGE])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_response_bodies(pair: Pair, size: int, framing: str) -> None:
    with pair.client() as client:
        answer = client.ask(pair.host, f"/bulk/{framing}/{size}")
        assert answer.status == 200
        assert hashlib.sha256(answer.body).hexdigest().encode() == digest(size)
        assert answer.headers.all("content-length") == ([b"%d" % size] if framing == "length" else [])
        assert client.ask(pair.host, "/describe").status == 200


def test_trailers_both_ways(pair: Pair) -> None:
    sent = [(b"x-checksum", b"abc"), (b"x-empty", b"")]
    with pair.client() as client:
        described = client.ask(pair.host, "/describe", "POST", body=b"data", trailers=sent)
        answer = client.ask(pair.host, "/trailers")
    assert b"trailer x-checksum: abc\ntrailer x-empty: " in described.body
    assert answer.body == b"body"
    assert answer.trailers == [(b"x-sum", b"42"), (b"etag", b'"v1"')]


def test_trailers_that_would_change_the_message_are_dropped(pair: Pair) -> None:
    forged = [(b"x-good", b"1"), (b"host", b"evil.test"), (b"x-forwarded-for", b"1.2.3.4"), (b"authorization", b"x")]
    with pair.client() as client:
        answer = client.ask(pair.host, "/describe", "POST", body=b"data", trailers=forged)
    assert [line for line in answer.body.split(b"\n") if line.startswith(b"trailer ")] == [b"trailer x-good: 1"]


def test_head(pair: Pair) -> None:
    with pair.client() as client:
        answer = client.ask(pair.host, "/bulk/length/12345", "HEAD")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers.all("content-length") == [b"12345"]
        assert client.ask(pair.host, "/describe").status == 200


@pytest.mark.parametrize("status", [204, 304])
def test_responses_without_a_body(pair: Pair, status: int) -> None:
    with pair.client() as client:
        answer = client.ask(pair.host, f"/bodyless/{status}", headers=[(b"if-none-match", b'"v1"')])
        assert (answer.status, answer.body) == (status, b"")
        assert answer.headers.all("etag") == [b'"v1"']
        assert answer.headers.all("content-length") == []
        assert client.ask(pair.host, "/describe").status == 200


def test_interim_responses(pair: Pair) -> None:
    with pair.client() as client:
        answer = client.ask(pair.host, "/hints")
    assert [(status, fields.get("link")) for status, fields in answer.interim] == [
        (103, b"</style.css>; rel=preload"),
        (103, b"</app.js>; rel=preload"),
    ]
    assert answer.body == b"hinted"


def test_early_response(pair: Pair) -> None:
    """The answer comes whole although most of the body was never read; HTTP/2 goes on."""
    with pair.client() as client:
        exchange = client.start(pair.host, "/hasty", "POST", [(b"content-length", b"%d" % LARGE)], end=False)
        with contextlib.suppress(Reset):
            exchange.send(payload(LARGE))
        answer = exchange.rest()
        assert exchange.reset is None or exchange.reset.code in (None, h2.errors.ErrorCodes.NO_ERROR)
        assert answer.status == 413
        assert answer.headers.get("content-length") == b"9"
        if client.version == "2":
            assert client.ask(pair.host, "/describe").status == 200
        else:
            assert b"close" in answer.headers.tokens("connection")


def test_expect_continue(pair: Pair) -> None:
    expect = [(b"content-length", b"4"), (b"expect", b"100-continue")]
    with pair.client() as client:
        exchange = client.start(pair.host, "/continue/take", "POST", expect, end=False)
        assert [status for status, _ in exchange.interim()] == [100]
        exchange.send(b"body")
        exchange.end()
        assert b"sha256 " + hashlib.sha256(b"body").hexdigest().encode() in exchange.rest().body
        exchange = client.start(pair.host, "/continue/refuse", "POST", expect, end=False)
        answer = exchange.rest()
        assert (answer.status, answer.body, answer.interim) == (403, b"no", [])


@pytest.mark.parametrize("kind", ["silent", "endless"])
def test_client_gives_up(pair: Pair, kind: str) -> None:
    """The endpoint learns at once that nobody waits any more, before and after its response has begun."""
    before = len(pair.server.calls)
    with pair.client() as client:
        exchange = client.start(pair.host, f"/{kind}")
        call = pair.server.wait_calls(before + 1)[before]
        if kind == "endless":
            assert exchange.read() == b"begun"
        exchange.cancel()
        wait_until(lambda: call.cancelled is not None, "the endpoint is told")
        assert call.cancelled == (h2.errors.ErrorCodes.CANCEL if call.version == "2" else 0)
        if client.version == "2":
            assert client.ask(pair.host, "/describe").status == 200
    pair.world.serving.lb.wait_log(reason="client-reset", virtual_host=pair.host)


@pytest.mark.parametrize("where", ["length", "chunked"])
def test_endpoint_breaks_off_in_the_body(pair: Pair, where: str) -> None:
    """A response that is not whole must not look whole."""
    with pair.client() as client:
        exchange = client.start(pair.host, f"/broken/{where}")
        with pytest.raises(Reset) as caught:
            exchange.rest()
        assert exchange.answer.status in (0, 200)
        if client.version == "2":
            assert caught.value.code == h2.errors.ErrorCodes.INTERNAL_ERROR
            assert client.ask(pair.host, "/describe").status == 200
    pair.world.serving.lb.wait_log(reason="upstream-truncated", virtual_host=pair.host, target=f"/broken/{where}")


def test_endpoint_breaks_off_before_the_head(pair: Pair) -> None:
    with pair.client() as client:
        answer = client.ask(pair.host, "/broken/head", "POST", body=b"once")
        assert answer.status == 502
        assert b"upstream-reset" in answer.body
        assert client.ask(pair.host, "/describe").status == 200


def test_body_over_the_limit(pair: Pair) -> None:
    """Told by its length at once, or found out on the way."""
    with pair.client() as client:
        exchange = client.start(pair.host, "/describe/limited", "POST", [(b"content-length", b"20000")], end=False)
        assert exchange.head().status == 413
    with pair.client() as client:
        exchange = client.start(pair.host, "/describe/limited", "POST", end=False)
        for _ in range(3):
            try:
                exchange.send(b"x" * 5000)
            except Reset:
                break
        assert exchange.head().status == 413


def test_redirect_to_https(pair: Pair) -> None:
    with pair.client() as client:
        answer = client.ask(pair.host, "/redirected/a?b=c")
    if pair.downstream.endswith("tls"):
        assert answer.body.startswith(b"GET /redirected/a?b=c\n")
    else:
        port = pair.world.serving.address("https")[1]
        assert answer.status == 308
        assert answer.headers.get("location") == f"https://{pair.host}:{port}/redirected/a?b=c".encode()


def test_many_requests_on_one_connection(pair: Pair) -> None:
    with pair.client() as client:
        for number in range(20):
            assert client.ask(pair.host, f"/describe/{number}").body.startswith(b"GET /describe/%d\n" % number)
        if client.version == "2":
            under_way = [client.start(pair.host, f"/bulk/length/{100_000 + number}") for number in range(50)]
            for number, exchange in reversed(list(enumerate(under_way))):
                assert len(exchange.rest().body) == 100_000 + number


# ----------------------------------------------------------------------------------------------------------- websockets


class Socket:
    """A websocket on an exchange: the frames by `websockets`, the bytes by the tunnel."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.peer = Protocol(Side.CLIENT, state=OPEN, max_size=None)

    def flush(self) -> None:
        for data in self.peer.data_to_send():
            if data:
                self.exchange.send(data)

    def next(self) -> bytes:
        """The next whole message."""
        frames: list[bytes] = []
        while True:
            for frame in self.peer.events_received():
                frames.append(bytes(frame.data))
                if frame.fin:
                    return b"".join(frames)
            self.peer.receive_data(self.exchange.read())


def test_websocket(pair: Pair) -> None:
    with pair.client() as client:
        exchange = client.websocket(pair.host, "/tunnel")
        answer = exchange.head()
        assert answer.status == (101 if client.version == "1.1" else 200)
        if client.version == "1.1":
            assert answer.headers.get("sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        else:
            assert answer.headers.all("sec-websocket-accept") == answer.headers.all("upgrade") == []
        chat = Socket(exchange)
        chat.peer.send_text(b"hello")
        chat.flush()
        assert chat.next() == b"hello"
        chat.peer.send_binary(payload(MEGABYTE))
        chat.flush()
        assert chat.next() == payload(MEGABYTE)
        chat.peer.send_text(b"push %d" % (2 * MEGABYTE))
        chat.flush()
        assert chat.next() == payload(2 * MEGABYTE)
        chat.peer.send_close(1000)
        chat.flush()
        exchange.end()
        while exchange.read():
            pass
    pair.world.serving.lb.wait_log(reason="ok", virtual_host=pair.host, target="/tunnel")


def test_websocket_that_is_refused(pair: Pair) -> None:
    with pair.client() as client:
        answer = client.websocket(pair.host, "/refuse").rest()
        assert (answer.status, answer.body) == (403, b"no tunnel")


def test_websocket_whose_client_vanishes(pair: Pair) -> None:
    before = len(pair.server.calls)
    with pair.client() as client:
        exchange = client.websocket(pair.host, "/tunnel")
        exchange.head()
        call = pair.server.wait_calls(before + 1)[before]
        exchange.cancel()
        wait_until(lambda: call.cancelled is not None, "the endpoint is told")
