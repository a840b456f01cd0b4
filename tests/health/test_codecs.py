"""What is asked and how answers are judged, without sockets; h11, h2 and protobuf are at the other end."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import h2.config
import h2.connection
import h2.errors
import h2.events
import h11
import pytest
from grpc_health.v1 import health_pb2
from hypothesis import given
from hypothesis import strategies as st

from lb import __version__
from lb.health.expected import BODY_BYTES, Answer, Expected
from lb.health.grpc import PATH, GrpcQuestion, frame, request, serving_status, unframe
from lb.health.http1 import Http1Question
from lb.health.http2 import Http2Question
from lb.health.talk import CLOSED, Asked, Question, Talk
from lb.health.verdict import PASSED, RESULTS, Verdict
from lb.model.health import HealthCheck

PLAIN = Asked("10.0.0.1:8080", False)
AGENT = f"lb-health-check/{__version__}"


def answer1(check: HealthCheck, *parts: bytes, close: bool = False) -> Verdict | None:
    """What a check makes of a response in parts."""
    talk = Http1Question(check, PLAIN).open()
    talk.begin()
    verdict = None
    for part in parts:
        verdict = verdict or talk.receive(part)
    return talk.end() if verdict is None and close else verdict


def head(status: int, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} x", *lines, "", ""]).encode()


# -- HTTP/1.1


def test_the_request_of_http1() -> None:
    check = HealthCheck("http", path="/healthz?deep=1", headers=("X-A: 1", "Authorization: Bearer a b"))
    server = h11.Connection(h11.SERVER)
    server.receive_data(Http1Question(check, PLAIN).open().begin())
    asked = server.next_event()
    assert isinstance(asked, h11.Request)
    assert (asked.method, asked.target, asked.http_version) == (b"GET", b"/healthz?deep=1", b"1.1")
    assert list(asked.headers) == [
        (b"host", b"10.0.0.1:8080"),
        (b"user-agent", AGENT.encode()),
        (b"x-a", b"1"),
        (b"authorization", b"Bearer a b"),
        (b"connection", b"close"),
    ]
    assert isinstance(server.next_event(), h11.EndOfMessage)


def test_host_method_and_user_agent_of_ones_own() -> None:
    check = HealthCheck("http", method="HEAD", host="shop.test", headers=("User-Agent: probe",))
    sent = Http1Question(check, Asked(check.host, False)).open().begin()
    assert sent == b"HEAD / HTTP/1.1\r\nHost: shop.test\r\nUser-Agent: probe\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("statuses", "status", "result"),
    [
        (("200-399",), 200, "passed"),
        (("200-399",), 399, "passed"),
        (("200-399",), 400, "wrong-status"),
        (("200-399",), 503, "wrong-status"),
        ((200, "401-403"), 401, "passed"),
        ((200, "401-403"), 204, "wrong-status"),
        ((404,), 404, "passed"),
    ],
)
def test_statuses(statuses: tuple[int | str, ...], status: int, result: str) -> None:
    check = HealthCheck("http", statuses=statuses)
    verdict = answer1(check, head(status, "Content-Length: 5"))
    assert verdict == Verdict(result, "" if result == "passed" else f"status {status}")


def test_an_interim_response_is_not_the_answer() -> None:
    assert answer1(HealthCheck("http"), head(103, "Link: x"), head(200)) == PASSED
    assert answer1(HealthCheck("http"), head(100), head(500)) == Verdict("wrong-status", "status 500")


@pytest.mark.parametrize(
    ("parts", "close", "result"),
    [
        ([head(200, "Content-Length: 8"), b"all ", b"ok.."], False, "passed"),
        ([head(200, "Content-Length: 8"), b"not", b" yet!"], False, "wrong-body"),
        ([head(200, "Transfer-Encoding: chunked"), b"3\r\nl o\r\n", b"1\r\nk\r\n0\r\n\r\n"], False, "passed"),
        ([head(200), b"so far", b" all ok"], False, "passed"),  # to the end of the connection
        ([head(200), b"so far"], True, "wrong-body"),
        ([head(200, "Content-Length: 2")], True, "bad-response"),  # cut off
        ([head(503, "Content-Length: 2"), b"ok"], False, "wrong-status"),
        ([head(200), b"x" * (BODY_BYTES + 1)], False, "wrong-body"),
        ([head(200), b"x" * (BODY_BYTES - 2) + b"ok"], False, "passed"),
    ],
)
def test_bodies(parts: list[bytes], close: bool, result: str) -> None:
    body = "l ok" if b"chunked" in parts[0] else "ok"
    verdict = answer1(HealthCheck("http", body=body), *parts, close=close)
    assert verdict is not None
    assert verdict.result == result


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
        b"\0" * 100_000,
        bytes(range(256)) * 400,
    ],
)
def test_what_is_no_http1(data: bytes) -> None:
    verdict = answer1(HealthCheck("http"), data)
    assert verdict is not None
    assert verdict.result == "bad-response"
    assert verdict.text.isprintable()


@pytest.mark.parametrize("parts", [[], [b"HTT"], [b"HTTP/1.1 200 OK\r\nX: "], [b"HTTP/1.1 103 Early Hints\r\n\r\n"]])
def test_closing_before_an_answer(parts: list[bytes]) -> None:
    assert answer1(HealthCheck("http"), *parts, close=True) == CLOSED


@given(st.binary(max_size=40), st.binary(min_size=1, max_size=4), st.lists(st.integers(0, 40)))
def test_a_text_is_found_however_the_body_is_cut(body: bytes, text: bytes, cuts: list[int]) -> None:
    wanted = text.decode("latin-1")
    expected = Expected(HealthCheck("http", body=wanted))
    answer, places = Answer(expected), [0, *sorted(cuts), len(body) + 40]
    verdicts = [answer.take_body(body[start:end]) for start, end in itertools.pairwise(places)]
    assert (PASSED in verdicts) == (wanted.encode() in body)
    whole = body + wanted.encode() + body
    answer = Answer(expected)
    assert PASSED in [answer.take_body(whole[index : index + 1]) for index in range(len(whole))]


# -- HTTP/2 and gRPC


class Server:
    """h2 at the other end of a talk."""

    def __init__(self, question: Question) -> None:
        self.talk: Talk = question.open()
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events = self.h2.receive_data(self.talk.begin())

    @property
    def headers(self) -> list[tuple[str, str]]:
        (asked,) = (event for event in self.events if isinstance(event, h2.events.RequestReceived))
        return list(asked.headers or ())

    @property
    def body(self) -> bytes:
        return b"".join(event.data or b"" for event in self.events if isinstance(event, h2.events.DataReceived))

    def answer(
        self, headers: dict[str, str], data: bytes = b"", trailers: dict[str, str] | None = None
    ) -> Verdict | None:
        more = bool(data) or trailers is not None
        self.h2.send_headers(1, list(headers.items()), end_stream=not more)
        if data:
            self.h2.send_data(1, data, end_stream=trailers is None)
        if trailers is not None:
            self.h2.send_headers(1, list(trailers.items()), end_stream=True)
        return self.flush()

    def flush(self) -> Verdict | None:
        verdict = self.talk.receive(self.h2.data_to_send())
        self.h2.receive_data(self.talk.take_output())
        return verdict


def test_the_request_of_http2() -> None:
    check = HealthCheck("http2", path="/healthz", method="POST", headers=("X-A: 1",))
    server = Server(Http2Question(check, Asked("a.test", True)))
    assert server.headers == [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "a.test"),
        (":path", "/healthz"),
        ("user-agent", AGENT),
        ("x-a", "1"),
    ]
    assert any(isinstance(event, h2.events.StreamEnded) for event in server.events)
    assert server.h2.remote_settings.enable_push == 0


@pytest.mark.parametrize(
    ("body", "status", "data", "result"),
    [
        ("", 200, b"", "passed"),
        ("", 204, b"", "passed"),
        ("", 503, b"", "wrong-status"),
        ("ok", 200, b"all ok", "passed"),
        ("ok", 200, b"no", "wrong-body"),
        ("ok", 200, b"", "wrong-body"),
        ("ok", 500, b"ok", "wrong-status"),
    ],
)
def test_answers_of_http2(body: str, status: int, data: bytes, result: str) -> None:
    verdict = Server(Http2Question(HealthCheck("http2", body=body), PLAIN)).answer({":status": str(status)}, data)
    assert verdict is not None
    assert verdict.result == result


def test_a_long_body_of_http2_is_read_on() -> None:
    """Beyond the first window of a stream, as far as bodies are looked at."""
    server = Server(Http2Question(HealthCheck("http2", body="ok"), PLAIN))
    server.h2.send_headers(1, [(":status", "200")])
    for _ in range(7):
        server.h2.send_data(1, b"x" * 8_192)
        assert server.flush() is None
    server.h2.send_data(1, b"x" * 8_190 + b"ok")
    assert server.flush() == PASSED


def test_resets_and_goaway() -> None:
    server = Server(Http2Question(HealthCheck("http2"), PLAIN))
    server.h2.reset_stream(1, h2.errors.ErrorCodes.REFUSED_STREAM)
    assert server.talk.receive(server.h2.data_to_send()) == Verdict(
        "closed", "the endpoint reset the stream: REFUSED_STREAM"
    )
    server = Server(Http2Question(HealthCheck("http2"), PLAIN))
    server.h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
    assert server.talk.receive(server.h2.data_to_send()) == Verdict(
        "closed", "the endpoint sent GOAWAY: ENHANCE_YOUR_CALM"
    )


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100, b"\xff" * 100_000])
def test_what_is_no_http2(data: bytes) -> None:
    talk = Http2Question(HealthCheck("http2"), PLAIN).open()
    talk.begin()
    verdict = talk.receive(data)
    assert verdict is not None
    assert verdict.result == "bad-response"
    assert verdict.text.isprintable()


@given(st.binary(max_size=300))
def test_no_bytes_break_a_talk(data: bytes) -> None:
    settings = b"\0\0\0\4\0\0\0\0\0"
    check = HealthCheck(body="ok")
    for question in (Http1Question(check, PLAIN), Http2Question(check, PLAIN), GrpcQuestion(check, PLAIN)):
        for begun in (b"", settings):
            talk = question.open()
            talk.begin()
            verdict = talk.receive(begun + data) or talk.end()
            assert verdict.result in RESULTS
            assert verdict.text.isprintable()
            assert not verdict.passed


def recorded(question: Question) -> bytes:
    """What a server sends that is well."""
    if isinstance(question, Http1Question):
        return head(200, "Content-Length: 2", "X-A: b") + b"ok"
    server = Server(question)
    headers = [(":status", "200"), ("content-type", "application/grpc"), ("x-a", "b")]
    server.h2.send_headers(1, headers)
    server.h2.send_data(1, b"ok" if isinstance(question, Http2Question) else message(1))
    server.h2.send_headers(1, [("grpc-status", "0"), ("grpc-message", "x")], end_stream=True)
    return server.h2.data_to_send()


@given(st.data())
def test_no_answer_that_is_broken_breaks_a_talk(data: st.DataObject) -> None:
    check = HealthCheck(body="ok")
    kind = data.draw(st.sampled_from([Http1Question, Http2Question, GrpcQuestion]))
    question = kind(check, PLAIN)
    answer = bytearray(recorded(question))
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(answer) - 1), st.integers(0, 255)), max_size=4)):
        answer[place] = byte
    talk = question.open()
    talk.begin()
    cut = data.draw(st.integers(0, len(answer)))
    verdict = talk.receive(bytes(answer[:cut])) or talk.receive(bytes(answer[cut:])) or talk.end()
    assert verdict.result in RESULTS
    assert verdict.text.isprintable()


def grpc_server(service: str = "") -> Server:
    return Server(GrpcQuestion(HealthCheck("grpc", service=service), PLAIN))


GRPC = {":status": "200", "content-type": "application/grpc"}


def message(status: int) -> bytes:
    return frame(health_pb2.HealthCheckResponse(status=status).SerializeToString())


@pytest.mark.parametrize("service", ["", "shop.v1.Cart", "é" * 100])
def test_the_request_of_grpc(service: str) -> None:
    server = grpc_server(service)
    assert dict(server.headers).items() >= {
        (":method", "POST"),
        (":scheme", "http"),
        (":path", PATH),
        (":authority", "10.0.0.1:8080"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("grpc-timeout", "2000m"),
    }
    assert health_pb2.HealthCheckRequest.FromString(unframe(server.body)).service == service


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (1, PASSED),
        (0, Verdict("not-serving", "UNKNOWN")),
        (2, Verdict("not-serving", "NOT_SERVING")),
        (3, Verdict("not-serving", "SERVICE_UNKNOWN")),
        (77, Verdict("not-serving", "status 77")),
    ],
)
def test_answers_of_grpc(status: int, verdict: Verdict) -> None:
    assert grpc_server().answer(GRPC, message(status), {"grpc-status": "0"}) == verdict


@pytest.mark.parametrize(
    ("headers", "data", "trailers", "verdict"),
    [
        (
            {**GRPC, "grpc-status": "12", "grpc-message": "unknown%20service\x01%0a"},
            b"",
            None,
            Verdict("not-serving", "grpc-status 12 UNIMPLEMENTED: unknown service??"),
        ),
        (GRPC, message(1), {"grpc-status": "5"}, Verdict("not-serving", "grpc-status 5 NOT_FOUND")),
        (GRPC, message(1), {"grpc-status": "x"}, Verdict("not-serving", "grpc-status that is none")),
        (GRPC, message(1), {"other": "0"}, Verdict("bad-response", "no gRPC: there is no grpc-status")),
        ({":status": "503"}, b"", None, Verdict("wrong-status", "status 503, and no gRPC")),
        (
            {":status": "200", "content-type": "text/html"},
            b"<p>",
            None,
            Verdict("bad-response", "no gRPC: the content type is another one"),
        ),
        (GRPC, b"", {"grpc-status": "0"}, Verdict("bad-response", "no answer of the health service: not one message")),
        (
            GRPC,
            b"x" * 5_000,
            {"grpc-status": "0"},
            Verdict("bad-response", "no answer of the health service: it is too long"),
        ),
        (
            GRPC,
            frame(b"\x08"),
            {"grpc-status": "0"},
            Verdict("bad-response", "no answer of the health service: a number without an end"),
        ),
    ],
)
def test_what_is_no_answer_of_grpc(
    headers: dict[str, str], data: bytes, trailers: dict[str, str] | None, verdict: Verdict
) -> None:
    server = grpc_server()
    server.h2.config.validate_outbound_headers = False
    assert server.answer(headers, data, trailers) == verdict


@given(st.text(max_size=400))
def test_the_grpc_request_is_what_protobuf_writes(service: str) -> None:
    assert request(service) == health_pb2.HealthCheckRequest(service=service).SerializeToString()


def varint(value: int) -> Iterable[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


fields = st.one_of(
    st.integers(0, 2**31 - 1).map(lambda value: bytes([0x08, *varint(value)])),
    st.integers(0, 2**63).map(lambda value: bytes([0x10, *varint(value)])),
    st.binary(max_size=200).map(lambda data: bytes([0x1A, *varint(len(data))]) + data),
    st.binary(min_size=8, max_size=8).map(lambda data: b"\x21" + data),
    st.binary(min_size=4, max_size=4).map(lambda data: b"\x2d" + data),
)


@given(st.lists(fields, max_size=6).map(b"".join))
def test_the_grpc_answer_is_read_as_protobuf_reads_it(data: bytes) -> None:
    assert serving_status(data) == health_pb2.HealthCheckResponse.FromString(data).status


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_told_from_those_that_are(data: bytes) -> None:
    try:
        status = serving_status(data)
    except ValueError:
        return
    assert status >= 0
