"""gRPC-Web, byte for byte: what a browser would send and get, with a real gRPC server behind lb."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.harness.grpc_server import SERVICE, GrpcServer
from tests.harness.http_client import Answer, Exchange, HttpClient, Reset
from tests.harness.http_server import Call, HttpServer
from tests.harness.native import Native, forward, respond
from tests.harness.payload import payload
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.waiting import wait_until

BINARY = b"application/grpc-web"
TEXT = b"application/grpc-web-text"
HOST = "web.test"


async def odd(call: Call) -> None:
    """Endpoints that do what grpcio does not."""
    await call.body()
    kind = call.target.split(b"/")[1]
    grpc = [(b"content-type", b"application/grpc+proto")]
    if kind == b"html":
        await call.answer(503, b"<p>overloaded</p>", [(b"content-type", b"text/html")])
    elif kind == b"json":
        await call.answer(200, b"{}", [(b"content-type", b"application/json")], [(b"x-trailer", b"1")])
    elif kind == b"wait":
        await call.until_cancelled()
    elif kind == b"cut":
        call.respond(200, grpc)
        await call.send(frame(b"some"))
        call.reset()
    elif kind == b"mixed":
        await call.answer(200, frame(b""), grpc, [(b"Grpc-Status", b"0"), (b"Grpc-Message", b""), (b"X-Own", b"a: b")])
    elif kind == b"large":
        trailers = [(b"x-%d" % number, b"v" * 1000) for number in range(30)]
        await call.answer(200, frame(b""), grpc, [*trailers, (b"grpc-status", b"0")])
    elif kind == b"headers":
        lines = b"\n".join(b"%b: %b" % (name.lower(), value) for name, value in call.headers)
        await call.answer(200, frame(lines), grpc, [(b"grpc-status", b"0")])


@dataclass
class World:
    serving: Serving
    server: GrpcServer
    odd: HttpServer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    native = Native()
    native.listen("http", free_port())
    with GrpcServer() as server, HttpServer(odd) as other:
        native.upstream("calls", [server.key], protocol="http2")
        native.upstream("odd", [other.key], protocol="http2")
        native.upstream("nobody", [])
        native.host(
            HOST,
            forward("nobody", "nobody", path="/nobody", grpc_web=True),
            forward("small", "calls", path=f"/{SERVICE}/digest", grpc_web=True, max_body="1Ki"),
            forward("calls", "calls", path=f"/{SERVICE}", grpc_web=True),
            respond("local", 403, "no", path="/local"),
            forward("odd", "odd", grpc_web=True),
        )
        native.host("plain.test", forward("plain", "odd"))
        with serving(tmp_path_factory.mktemp("web"), native) as running:
            yield World(running, server, other)
            other.assert_clean()


@dataclass
class Result:
    """A response, taken apart."""

    answer: Answer
    messages: list[bytes] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)


def frame(message: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(message)) + message


def decode(text: bytes) -> bytes:
    """Base64 in pieces, each with its own padding."""
    assert len(text) % 4 == 0
    return b"".join(base64.b64decode(text[at : at + 4], validate=True) for at in range(0, len(text), 4))


def take_apart(answer: Answer) -> Result:
    result = Result(answer)
    body = answer.body
    if (answer.headers.get("content-type") or b"").startswith(TEXT):
        body = decode(body)
    while body:
        flags, size = struct.unpack(">BI", body[:5])
        content, body = body[5 : 5 + size], body[5 + size :]
        assert len(content) == size
        if flags & 0x80:
            assert not body, "nothing stands behind the trailers"
            assert content.endswith(b"\r\n")
            pairs = [line.split(":", 1) for line in content.decode().split("\r\n")[:-1]]
            assert all(name == name.lower() for name, _ in pairs)
            result.trailers = {name: value.strip() for name, value in pairs}
        else:
            result.messages.append(content)
    return result


def call(
    world: World,
    path: str,
    message: bytes = b"",
    *,
    kind: bytes = BINARY,
    version: str = "2",
    host: str = HOST,
    fields: tuple[tuple[bytes, bytes], ...] = (),
) -> Result:
    body = frame(message)
    if kind.startswith(TEXT):
        body = base64.b64encode(body)
    with HttpClient(world.serving.address(), version) as client:
        return take_apart(client.ask(host, path, "POST", [(b"content-type", kind), *fields], body))


@pytest.fixture(params=["1.1", "2"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("suffix", [b"", b"+proto", b"+json", b";charset=utf-8"])
@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_one_to_one(world: World, version: str, kind: bytes, suffix: bytes) -> None:
    if suffix == b"+json":
        path = "/headers"  # grpcio takes nothing but protobuf
        result = call(world, path, kind=kind + suffix, version=version)
        assert b"content-type: application/grpc+json" in result.messages[0]
    else:
        result = call(world, f"/{SERVICE}/echo", b"hello", kind=kind + suffix, version=version)
        assert result.messages == [b"hello"]
    assert result.answer.status == 200
    assert result.answer.headers.get("content-type") == kind + suffix
    assert result.trailers["grpc-status"] == "0"
    assert not result.answer.trailers


@pytest.mark.parametrize("kind", [BINARY, TEXT])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 65_531, 1_000_000])
def test_messages_of_every_size(world: World, version: str, kind: bytes, size: int) -> None:
    result = call(world, f"/{SERVICE}/echo", payload(size), kind=kind, version=version)
    assert result.messages == [payload(size)]


@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_one_to_many(world: World, version: str, kind: bytes) -> None:
    result = call(world, f"/{SERVICE}/repeat", b"50 1001", kind=kind, version=version)
    assert result.messages == [payload(1001)] * 50
    assert result.trailers["grpc-status"] == "0"


@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_status_and_metadata_are_in_the_last_frame(world: World, version: str, kind: bytes) -> None:
    result = call(world, f"/{SERVICE}/meta", kind=kind, version=version)
    assert result.answer.headers.get("x-begin") == b"1"
    assert (result.trailers["grpc-status"], result.trailers["any-name"]) == ("0", "2")
    assert base64.b64decode(result.trailers["end-bin"] + "==") == b"\x02\xfd"


def test_status_without_a_message_may_be_in_the_head(world: World, version: str) -> None:
    """A trailers-only response stays one (PROTOCOL-WEB.md, Message framing 4)."""
    result = call(world, f"/{SERVICE}/fail", b"5 not here", version=version)
    where = result.trailers or {name.decode(): value.decode() for name, value in result.answer.headers}
    assert (where["grpc-status"], where["grpc-message"]) == ("5", "not here")
    world.serving.lb.wait_log(target=f"/{SERVICE}/fail", grpc_status=5)


@pytest.mark.parametrize(
    ("kind", "accept", "wanted"),
    [
        (BINARY, b"application/grpc-web-text", TEXT),
        (BINARY, b"*/*", BINARY),
        (TEXT, b"application/grpc-web", BINARY),
        (TEXT, b"application/grpc-web-text", TEXT),
        (TEXT, b"*/*", TEXT),
        (TEXT, b"application/json, application/grpc-web+proto;q=0.5", BINARY),
        (TEXT, b"application/grpc-web;q=0.5, application/grpc-web-text", TEXT),
        (TEXT + b"-base64", b"", TEXT),
    ],
)
def test_accept_chooses_the_form_of_the_response(world: World, kind: bytes, accept: bytes, wanted: bytes) -> None:
    fields = ((b"accept", accept),) if accept else ()
    result = call(world, f"/{SERVICE}/echo", b"hi", kind=kind, fields=fields)
    assert result.answer.headers.get("content-type") == wanted
    assert result.messages == [b"hi"]


def test_what_the_endpoint_sees(world: World) -> None:
    seen = call(world, "/headers", kind=TEXT + b"+proto").messages[0].decode().split("\n")
    assert "content-type: application/grpc+proto" in seen
    assert "te: trailers" in seen
    assert not any(line.startswith("content-length") for line in seen)


def test_names_are_lower_case(world: World) -> None:
    assert call(world, "/mixed").trailers == {"grpc-status": "0", "grpc-message": "", "x-own": "a: b"}


@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_large_trailers(world: World, version: str, kind: bytes) -> None:
    result = call(world, "/large", kind=kind, version=version)
    assert len(result.trailers) == 31
    assert result.trailers["grpc-status"] == "0"


@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_large_trailers_of_calls_that_share_a_connection(world: World, kind: bytes) -> None:
    """What waits on other streams is written between the pieces of the trailers, and must not get into them."""
    with HttpClient(world.serving.address(), "2") as client:
        paths = ["/large" if number % 3 == 0 else f"/{SERVICE}/echo" for number in range(24)]
        exchanges = [client.start(HOST, path, "POST", [(b"content-type", kind)], end=False) for path in paths]
        body = frame(payload(3_000))
        for exchange in exchanges:
            exchange.send(base64.b64encode(body) if kind == TEXT else body)
        for exchange in reversed(exchanges):
            exchange.end()
        for path, exchange in zip(paths, exchanges, strict=True):
            result = take_apart(exchange.rest())
            assert result.trailers["grpc-status"] == "0"
            assert len(result.trailers) == 31 if path == "/large" else result.messages == [payload(3_000)]


# ------------------------------------------------------------------------------------------------------- text requests


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 7])
def test_text_in_pieces(world: World, version: str, cut: int) -> None:
    """Wherever the body is cut on its way, and although each flush has its own padding."""
    message = payload(100)
    whole = frame(message)
    text = base64.b64encode(whole[:2]) + base64.b64encode(whole[2:6]) + base64.b64encode(whole[6:])
    with HttpClient(world.serving.address(), version) as client:
        exchange = client.start(HOST, f"/{SERVICE}/echo", "POST", [(b"content-type", TEXT)], end=False)
        for at in range(0, len(text), cut):
            exchange.send(text[at : at + cut])
        exchange.end()
        assert take_apart(exchange.rest()).messages == [message]


@pytest.mark.parametrize(
    "text", [b"AAAA!AAA", b"AAA", b"AAAAA", b"=AAA", b"A===", b"AA=A", b"AAAA AAAA", b"AAAA\nAAAA"]
)
def test_text_that_is_no_base64(world: World, version: str, text: bytes) -> None:
    with HttpClient(world.serving.address(), version) as client:
        result = take_apart(client.ask(HOST, "/wait", "POST", [(b"content-type", TEXT)], text))
    assert result.answer.headers.get("grpc-status") == b"13"
    assert result.answer.headers.get("grpc-message") == b"lb: bad-grpc-web"
    world.serving.lb.wait_log(reason="bad-grpc-web")


# ------------------------------------------------------------------------------------------- errors, ends and deadlines


@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_errors_of_lb(world: World, version: str, kind: bytes) -> None:
    result = call(world, "/nobody/x", kind=kind, version=version)
    assert (result.answer.status, result.answer.body) == (200, b"")
    assert result.answer.headers.get("content-type") == kind
    assert result.answer.headers.get("grpc-status") == b"14"
    assert result.answer.headers.get("grpc-message") == b"lb: no-endpoint"


def test_body_over_the_limit(world: World, version: str) -> None:
    result = call(world, f"/{SERVICE}/digest", b"x" * 5000, version=version)
    assert result.answer.headers.get("grpc-status") == b"8"


@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_deadline(world: World, version: str, kind: bytes) -> None:
    before = len(world.odd.calls)
    result = call(world, "/wait", kind=kind, version=version, fields=((b"grpc-timeout", b"200m"),))
    assert result.answer.headers.get("grpc-status") == b"4"
    for one in world.odd.calls[before:]:
        wait_until(lambda one=one: one.cancelled == 8, "the endpoint is told")


def test_endpoint_breaks_off(world: World, version: str) -> None:
    """No last frame makes it look whole."""
    with HttpClient(world.serving.address(), version) as client:
        exchange = client.start(HOST, "/cut", "POST", [(b"content-type", BINARY)])
        with pytest.raises(Reset):
            exchange.rest()


def test_client_goes(world: World, version: str) -> None:
    before = len(world.odd.calls)
    with HttpClient(world.serving.address(), version) as client:
        exchange: Exchange = client.start(HOST, "/wait", "POST", [(b"content-type", TEXT)])
        one = world.odd.wait_calls(before + 1)[before]
        exchange.cancel()
        wait_until(lambda: one.cancelled == 8, "the endpoint is told")


# ----------------------------------------------------------------------------------------------------- what is not ours


@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_responses_that_are_no_grpc(world: World, version: str, kind: bytes) -> None:
    """They are no messages, so that they are neither encoded nor followed by a frame."""
    with HttpClient(world.serving.address(), version) as client:
        answer = client.ask(HOST, "/html", "POST", [(b"content-type", kind)], b"")
        assert (answer.status, answer.body) == (503, b"<p>overloaded</p>")
        assert answer.headers.get("content-type") == b"text/html"
        answer = client.ask(HOST, "/json", "POST", [(b"content-type", kind)], b"")
        assert (answer.body, answer.trailers) == (b"{}", [(b"x-trailer", b"1")])


@pytest.mark.parametrize(
    "kind", [b"application/grpc-webs", b"application/grpc-web-textual", b"application/json", b"grpc"]
)
def test_requests_that_are_no_grpc_web(world: World, kind: bytes) -> None:
    with HttpClient(world.serving.address(), "2") as client:
        answer = client.ask(HOST, "/headers", "POST", [(b"content-type", kind)], b"as it is")
    assert b"content-type: " + kind in answer.body
    assert answer.headers.get("content-type") == b"application/grpc+proto"
    assert answer.trailers == [(b"grpc-status", b"0")]


def test_routes_that_do_not_ask_for_it(world: World) -> None:
    with HttpClient(world.serving.address(), "2") as client:
        answer = client.ask("plain.test", "/headers", "POST", [(b"content-type", TEXT)], b"AAAA")
    assert b"content-type: " + TEXT in answer.body
    assert answer.trailers == [(b"grpc-status", b"0")]


def test_native_calls_through_the_same_route(world: World) -> None:
    with HttpClient(world.serving.address(), "2") as client:
        fields = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
        answer = client.ask(HOST, f"/{SERVICE}/echo", "POST", fields, frame(b"native"))
    assert answer.body == frame(b"native")
    assert answer.trailers.get("grpc-status") == b"0"
    assert answer.headers.get("content-type") == b"application/grpc"


def test_answers_of_routes_are_http(world: World, version: str) -> None:
    with HttpClient(world.serving.address(), version) as client:
        answer = client.ask(HOST, "/local", "POST", [(b"content-type", TEXT)], b"")
    assert (answer.status, answer.body) == (403, b"no")
