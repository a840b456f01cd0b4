"""Bodies, tunnels and time: how bytes flow, who has to wait, and what happens when nobody moves."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator

import pytest

from tests.harness.backend import OK, BackendConnection, RawBackend
from tests.harness.client import RawClient, bytewise, chunked, get, post
from tests.harness.messages import Truncated, body_framing
from tests.harness.native import Native, respond
from tests.harness.payload import MEGABYTE, digest, digest_of, payload, pieces
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.tcp import black_hole
from tests.harness.waiting import DEADLINE, SANITIZED, wait_until

LARGE = 50 * MEGABYTE
MEMORY_ALLOWANCE = 24 * MEGABYTE
"""How much lb may grow while bodies of LARGE wait on it."""


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def check(connection: BackendConnection) -> None:
    """Answers with the SHA-256 of the body, or when asked for `/length/N`, `/chunked/N` or `/close/N`, with N bytes."""
    while (request := connection.read()) is not None:
        _, kind, *rest = request.target.decode().split("/")
        if not rest:
            connection.send(ok(digest_of(request.body)))
        elif kind == "length":
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % int(rest[0]), *pieces(int(rest[0])))
        elif kind == "chunked":
            connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            connection.send(*(b"%x\r\n%b\r\n" % (len(part), part) for part in pieces(int(rest[0]), 50_000)))
            connection.send(b"0\r\n\r\n")
        else:
            connection.send(b"HTTP/1.1 200 OK\r\n\r\n", *pieces(int(rest[0])))
            return


def mirror(connection: BackendConnection) -> None:
    """Sends every chunk back as soon as it comes."""
    received = connection.read_head()
    if received is None:
        return
    connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    reader = connection.reader
    while size := int(reader.line(), 16):
        data = reader.take(size)
        reader.take(2)
        connection.send(b"%x\r\n%b\r\n" % (size, data))
    reader.take(2)
    connection.send(b"0\r\n\r\n")
    connection.done()


class Gate:
    """A backend that waits at a gate which the test opens."""

    def __init__(self, *, before_body: bool) -> None:
        self.gate = threading.Event()
        self.before_body = before_body

    def __call__(self, connection: BackendConnection) -> None:
        received = connection.read_head()
        if received is None:
            return
        if self.before_body:
            assert self.gate.wait(DEADLINE)
        if not connection.read_body(received):
            return
        if not self.before_body:
            assert self.gate.wait(DEADLINE)
        connection.send(ok(digest_of(received.request.body)))


def continuing(connection: BackendConnection) -> None:
    """Asks for the body of a request that waits to be asked; refuses `/refuse` instead."""
    while (received := connection.read_head()) is not None:
        if received.request.target == b"/refuse":
            connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.done()
            return
        if received.request.headers.tokens("expect") == {b"100-continue"}:
            connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not connection.read_body(received):
            return
        connection.send(ok(digest_of(received.request.body)))


def hasty(connection: BackendConnection) -> None:
    """Answers before the body has come; `/stay` reads it afterwards."""
    while (received := connection.read_head()) is not None:
        if received.request.target == b"/stay":
            connection.send(ok(b"early"))
            if not connection.read_body(received):
                return
            continue
        connection.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
        connection.done()
        return


def switching(connection: BackendConnection) -> None:
    """A tunnel that sends back upper case after 101; `/no` answers 200 instead; `/push` speaks first."""
    while (request := connection.read()) is not None:
        if request.target != b"/no" and request.headers.all("upgrade"):
            break
        connection.send(OK)
    else:
        return
    greeting = b"hello" if request.target == b"/push" else b""
    connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n" + greeting)
    while connection.reader.buffer or connection.reader.fill():
        connection.send(bytes(connection.reader.buffer).upper())
        connection.reader.buffer.clear()
    connection.send(b"bye")


def dripping(connection: BackendConnection) -> None:
    """A response that begins and never goes on."""
    connection.read()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
    connection.wait_for_end()


UPGRADE = ("Connection: Upgrade", "Upgrade: shout")


@pytest.fixture(scope="module")
def blackhole() -> Iterator[str]:
    with black_hole() as address:
        yield address


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory, blackhole: str) -> Iterator[Serving]:
    backends = {
        "check.test": RawBackend(check),
        "mirror.test": RawBackend(mirror),
        "continue.test": RawBackend(continuing),
        "hasty.test": RawBackend(hasty),
        "switch.test": RawBackend(switching),
        "drip.test": RawBackend(dripping),
    }
    sockets = tmp_path_factory.mktemp("sockets")
    backends["six.test"] = RawBackend(check, address="::1")
    backends["unix.test"] = RawBackend(check, address=f"unix:{sockets}/backend.sock")
    native = Native()
    native.listen("http", free_port())
    native.listen("impatient", free_port(), head_timeout="300ms", keepalive_timeout="300ms", idle_timeout="300ms")
    native.listen(
        "small",
        free_port(),
        max_body=1_000,
        max_requests_per_connection=3,
        max_head=2_000,
        max_target=500,
        max_headers=20,
    )
    native.listen("few", free_port(), max_connections=3)
    native.listen("fair", free_port(), max_connections_per_client=2)
    for host, backend in backends.items():
        native.serve(host, backend)
    native.serve("limited.test", backends["check.test"], route={"max_body": 1_000})
    native.serve("short-idle.test", backends["drip.test"], route={"idle_timeout": "300ms"})
    native.serve("short-total.test", backends["drip.test"], route={"request_timeout": "300ms"})
    native.serve("short-tunnel.test", backends["switch.test"], route={"tunnel_timeout": "300ms"})
    native.serve("blackhole.test", blackhole, connect_timeout="300ms")
    native.serve("half-blackhole.test", blackhole, backends["check.test"], connect_timeout="300ms")
    native.serve("refused.test", f"127.0.0.1:{free_port()}")
    native.serve("empty.test")
    native.host("local.test", respond("local", 200, "from lb"))
    with serving(tmp_path_factory.mktemp("streaming"), native, backends) as started:
        yield started


@pytest.fixture(autouse=True)
def healthy(wire: Serving) -> Iterator[None]:
    for backend in wire.backends.values():
        backend.take()
    yield
    wire.lb.assert_healthy()
    for backend in wire.backends.values():
        backend.assert_clean()


@contextlib.contextmanager
def gated(wire: Serving, *, before_body: bool) -> Iterator[Gate]:
    """`gate.test` is served by a backend that waits at a gate."""
    gate = Gate(before_body=before_body)
    with RawBackend(gate) as backend:
        wire.native.serve("gate.test", backend)
        wire.apply()
        try:
            yield gate
        finally:
            gate.gate.set()


def in_background(client: RawClient, *parts: bytes | memoryview) -> threading.Thread:
    def send() -> None:
        for part in parts:
            client.send(bytes(part))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


class TestLargeBodies:
    def test_an_upload_with_its_length_arrives_whole(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("check.test", "/", f"Content-Length: {LARGE}", method="POST"))
            client.send(bytes(part) for part in pieces(LARGE, MEGABYTE))
            assert client.response("POST").body == digest(LARGE)

    def test_an_upload_in_chunks_arrives_whole(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("check.test", "/", "Transfer-Encoding: chunked", method="POST"))
            client.send(b"%x\r\n%b\r\n" % (len(part), part) for part in pieces(LARGE, 60_001))
            client.send(b"0\r\n\r\n")
            assert client.response("POST").body == digest(LARGE)

    @pytest.mark.parametrize("kind", ["length", "chunked", "close"])
    def test_a_download_arrives_whole(self, kind: str, wire: Serving) -> None:
        with wire.connect() as client:
            answer = client.ask(get("check.test", f"/{kind}/{LARGE}"))
        assert len(answer.body) == LARGE
        assert digest_of(answer.body) == digest(LARGE)

    @pytest.mark.parametrize("kind", ["length", "chunked", "close"])
    def test_a_download_for_http_1_0_arrives_whole(self, kind: str, wire: Serving) -> None:
        size = 5 * MEGABYTE + 7
        with wire.connect() as client:
            answer = client.ask(get("check.test", f"/{kind}/{size}", version="HTTP/1.0"))
        assert not answer.headers.all("transfer-encoding")
        assert digest_of(answer.body) == digest(size)

    def test_both_directions_at_once(self, wire: Serving) -> None:
        size = 8 * MEGABYTE
        with wire.connect() as client:
            parts = [b"%x\r\n%b\r\n" % (len(part), part) for part in pieces(size, 30_000)]
            head = get("mirror.test", "/", "Transfer-Encoding: chunked", method="POST")
            sender = in_background(client, head, *parts, b"0\r\n\r\n")
            answer = client.response("POST")
            sender.join(DEADLINE)
        assert digest_of(answer.body) == digest(size)

    @pytest.mark.parametrize(
        "size", [0, 1, 100, 4_095, 4_096, 4_097, 16_383, 16_384, 16_385, 32_768, 65_535, 65_536, 65_537, 262_145]
    )
    def test_sizes_around_the_edges_of_buffers(self, size: int, wire: Serving) -> None:
        with wire.connect() as client:
            for kind in ("length", "chunked"):
                assert client.ask(get("check.test", f"/{kind}/{size}")).body == payload(size)
            assert client.ask(post("check.test", payload(size))).body == digest(size)
            request = get("check.test", "/", "Transfer-Encoding: chunked", method="POST")
            assert client.ask(request + chunked(*([payload(size)] if size else []))).body == digest(size)

    @pytest.mark.parametrize("host", ["six.test", "unix.test"])
    def test_endpoints_of_other_families(self, host: str, wire: Serving) -> None:
        with wire.connect() as client:
            for _ in range(3):
                assert client.ask(post(host, payload(100_000))).body == digest(100_000)
            assert client.ask(get(host, "/chunked/100000")).body == payload(100_000)


class TestBackpressure:
    def test_clients_that_do_not_read_cost_no_memory(self, wire: Serving) -> None:
        before = wire.lb.rss_bytes()
        clients = [wire.connect(receive_buffer=16_384) for _ in range(8)]
        for client in clients:
            client.send(get("check.test", f"/length/{LARGE}"))
        self.wait_for_standstill(wire)
        if not SANITIZED:
            assert wire.lb.rss_bytes() - before < MEMORY_ALLOWANCE
        assert digest_of(clients[0].response().body) == digest(LARGE)
        for client in clients:
            client.close()

    def test_a_backend_that_does_not_read_costs_no_memory(self, wire: Serving) -> None:
        with gated(wire, before_body=True) as gate, wire.connect() as client:
            before = wire.lb.rss_bytes()
            client.send(get("gate.test", "/", f"Content-Length: {LARGE}", method="POST"))
            sender = in_background(client, *pieces(LARGE, MEGABYTE))
            self.wait_for_standstill(wire)
            assert sender.is_alive(), "lb swallowed the whole body"
            if not SANITIZED:
                assert wire.lb.rss_bytes() - before < MEMORY_ALLOWANCE
            gate.gate.set()
            assert client.response("POST").body == digest(LARGE)
            sender.join(DEADLINE)

    def test_requests_that_are_pipelined_without_reading_cost_no_memory(self, wire: Serving) -> None:
        before = wire.lb.rss_bytes()
        with wire.connect(receive_buffer=16_384, timeout=0.3) as client:
            with contextlib.suppress(TimeoutError):
                for _ in range(400):
                    client.send(get("check.test", "/length/100000") * 1_000)
            if not SANITIZED:
                assert wire.lb.rss_bytes() - before < MEMORY_ALLOWANCE

    def wait_for_standstill(self, wire: Serving) -> None:
        """lb neither sends nor reads any more: its CPU time stands still."""
        seen = [-1.0] * 5

        def still() -> bool:
            seen.append(wire.lb.cpu_seconds())
            return seen[-1] - seen[-6] < 0.02

        wait_until(still, "the streams stand still", interval=0.1)


class TestStreaming:
    def test_a_request_body_is_passed_on_as_it_comes(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("mirror.test", "/", "Transfer-Encoding: chunked", method="POST"))
            answer = None
            for word in (b"one", b"two", b"three"):
                client.send(b"%x\r\n%b\r\n" % (len(word), word))
                answer = answer or client.reader.response_head()
                seen = b""
                while seen != word:
                    seen += client.reader.take(int(client.reader.line(), 16))
                    client.reader.take(2)
            client.send(b"0\r\n\r\n")
            assert client.reader.line() == b"0"
            assert client.reader.line() == b""
            assert answer is not None
            assert answer.status == 200

    def test_a_body_byte_by_byte(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("check.test", "/", "Content-Length: 300", method="POST"))
            client.send(bytewise(payload(300)))
            assert client.response().body == digest(300)

    def test_request_trailers_never_become_headers(self, wire: Serving) -> None:
        with wire.connect() as client:
            body = chunked(b"x", trailers=("X-Late: 1", "grpc-status: 0"))
            request = get("check.test", "/", "Transfer-Encoding: chunked", "Trailer: X-Late", method="POST")
            assert client.ask(request + body).status == 200
            assert client.ask(get("check.test")).status == 200
        for request in wire.backends["check.test"].requests():
            assert not request.headers.all("x-late")

    def test_an_early_answer_reaches_the_client(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("hasty.test", "/", "Content-Length: 1000000", method="POST") + b"x" * 1_000)
            answer = client.response("POST")
            assert (answer.status, answer.body) == (413, b"large")

    def test_an_early_answer_reaches_a_client_that_sends_everything_first(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("hasty.test", "/", "Content-Length: 1000000", method="POST"))
            client.send(payload(1_000_000))
            answer = client.response("POST")
            assert (answer.status, answer.body) == (413, b"large")

    def test_an_early_answer_does_not_end_a_body_that_goes_on(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("hasty.test", "/stay", "Content-Length: 1000", method="POST") + b"x" * 10)
            answer = client.response("POST")
            assert (answer.status, answer.body) == (200, b"early")
            client.send(b"x" * 990)
            if not answer.closes:
                assert client.ask(get("local.test")).body == b"from lb"


class TestContinue:
    def test_the_client_is_asked_for_the_body(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("continue.test", "/", "Expect: 100-continue", "Content-Length: 5", method="POST"))
            assert client.reader.response_head().status == 100
            client.send(b"hello")
            assert client.response("POST").body == digest_of(b"hello")
            assert client.ask(get("local.test")).status == 200

    def test_a_client_that_does_not_wait_is_served(self, wire: Serving) -> None:
        with wire.connect() as client:
            answer = client.ask(post("continue.test", b"hello", "/", "Expect: 100-continue"))
            assert answer.body == digest_of(b"hello")
            assert client.ask(get("local.test")).status == 200

    def test_a_refusal_reaches_the_client_before_any_body(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("continue.test", "/refuse", "Expect: 100-continue", "Content-Length: 5", method="POST"))
            answer = client.response("POST")
            assert answer.status == 403
            # The body may still come (RFC 9110 10.1.1): the connection ends, or what comes is read as that body.
            client.send(b"hello" + get("local.test"))
            if answer.closes:
                client.rest()
            else:
                assert client.response().status == 200

    def test_http_1_0_is_never_told_to_continue(self, wire: Serving) -> None:
        with wire.connect() as client:
            request = get(
                "continue.test", "/", "Expect: 100-continue", "Content-Length: 5", method="POST", version="HTTP/1.0"
            )
            answer = client.ask(request + b"hello")
            assert answer.interim == []
            assert answer.body == digest_of(b"hello")

    def test_a_body_over_the_limit_is_refused_before_it_is_asked_for(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("limited.test", "/", "Expect: 100-continue", "Content-Length: 5000", method="POST"))
            answer = client.response("POST")
            assert (answer.status, answer.interim) == (413, [])


class TestPipelining:
    def test_many_requests_in_one_packet_are_answered_in_order(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(b"".join(get("check.test", f"/length/{size}") for size in range(200)))
            for size in range(200):
                assert client.response().body == payload(size)

    def test_requests_with_bodies_in_one_packet(self, wire: Serving) -> None:
        bodies = [payload(size) for size in (1, 5_000, 0, 70_000, 3)]
        chunk_head = get("check.test", "/", "Transfer-Encoding: chunked", method="POST")
        with wire.connect() as client:
            stream = b"".join(post("check.test", body) + chunk_head + chunked(body or b"x") for body in bodies)
            sender = in_background(client, stream)
            for body in bodies:
                assert client.response("POST").body == digest_of(body)
                assert client.response("POST").body == digest_of(body or b"x")
            sender.join(DEADLINE)

    def test_local_and_forwarded_answers_keep_their_order(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send((get("check.test", "/length/3") + get("local.test") + get("empty.test")) * 20)
            for _ in range(20):
                assert [client.response().status for _ in range(3)] == [200, 200, 503]

    def test_head_requests_in_between(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send((get("local.test", method="HEAD") + get("local.test")) * 5)
            for _ in range(5):
                assert client.response("HEAD").headers.get("content-length") == b"7"
                assert client.response().body == b"from lb"


class TestEnds:
    def test_a_client_that_half_closes_gets_its_answer(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("check.test", "/length/100000"))
            client.finish()
            assert client.response().body == payload(100_000)
            assert client.rest() == b""

    def test_a_client_that_half_closes_after_several_requests_gets_all_answers(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("check.test", "/length/1000") * 5)
            client.finish()
            assert [len(client.response().body) for _ in range(5)] == [1_000] * 5
            assert client.rest() == b""

    @pytest.mark.parametrize(
        "part", [b"G", b"GET / HTTP/1.1\r\nHost: check.test\r\n", b"GET / HTTP/1.1\r\nHost: check.test\r\n\r"]
    )
    def test_a_head_that_ends_early_is_not_forwarded(self, part: bytes, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(part)
            client.finish()
            assert client.rest()[:12] in (b"", b"HTTP/1.1 400")
        assert wire.backends["check.test"].take() == []

    @pytest.mark.parametrize("lines", [("Content-Length: 10",), ("Transfer-Encoding: chunked",)])
    def test_a_body_that_ends_early_is_not_taken_as_whole(self, lines: tuple[str, ...], wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("check.test", "/", *lines, method="POST") + b"5\r\nhel")
            client.finish()
            assert client.rest()[:12] in (b"", b"HTTP/1.1 400")
        assert not [item for item in wire.backends["check.test"].take() if item.complete]

    def test_a_client_that_resets_in_its_body_is_not_taken_as_whole(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("check.test", "/", "Content-Length: 10", method="POST") + b"12345")
            wait_until(lambda: wire.backends["check.test"].received, "the head arrives")
            client.reset()
        assert not [item for item in wire.backends["check.test"].take() if item.complete]

    @pytest.mark.parametrize("body", [payload(1_000_000)])
    def test_a_refusal_can_be_read_although_the_body_was_not(self, body: bytes, wire: Serving) -> None:
        for _ in range(5):
            with wire.connect() as client:
                client.send(post("limited.test", body))
                answer = client.response("POST")
                assert answer.status == 413
                assert answer.closes
                assert client.rest() == b""

    def test_a_bad_request_can_be_read_although_more_follows(self, wire: Serving) -> None:
        for _ in range(5):
            with wire.connect() as client:
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + payload(500_000))
                assert client.response().status == 400
                assert client.rest() == b""


class TestTimeouts:
    def test_a_head_that_takes_too_long_is_answered_408(self, wire: Serving) -> None:
        with wire.connect("impatient") as client:
            client.send(b"GET / HTTP/1.1\r\nHost: check.test\r\n")
            assert client.response().status == 408
            assert client.rest() == b""

    def test_a_head_that_drips_is_not_given_more_time(self, wire: Serving) -> None:
        with wire.connect("impatient", timeout=0.05) as client:

            def ended() -> bool:
                client.send(b"X")
                with contextlib.suppress(TimeoutError):
                    client.reader.fill()
                return bool(client.reader.buffer) or client.reader.ended

            client.send(b"GET / HTTP/1.1\r\nHost: check.test\r\nX-Slow: ")
            wait_until(ended, "lb gives up")
            assert client.reader.buffer[:12] == b"HTTP/1.1 408"

    def test_a_connection_that_says_nothing_ends(self, wire: Serving) -> None:
        with wire.connect("impatient") as client:
            assert client.rest()[:12] in (b"", b"HTTP/1.1 408")

    def test_an_idle_connection_ends_without_a_word(self, wire: Serving) -> None:
        with wire.connect("impatient") as client:
            assert client.ask(get("local.test")).status == 200
            assert client.rest() == b""

    def test_a_body_that_stands_still_is_given_up(self, wire: Serving) -> None:
        with wire.connect("impatient") as client:
            client.send(get("check.test", "/", "Content-Length: 10", method="POST") + b"12345")
            assert client.rest()[:12] in (b"", b"HTTP/1.1 408")
        assert not [item for item in wire.backends["check.test"].take() if item.complete]

    def test_a_client_that_does_not_read_is_given_up(self, wire: Serving) -> None:
        with wire.connect("impatient", receive_buffer=16_384) as client:
            client.send(get("check.test", f"/length/{LARGE}"))
            wire.lb.wait_log(listener="impatient", host="check.test", method="GET")
            with pytest.raises((Truncated, ConnectionResetError)):
                client.response()

    def test_a_response_that_stands_still_is_given_up(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("short-idle.test"))
            with pytest.raises((Truncated, ConnectionResetError)):
                client.response()

    def test_a_request_that_takes_too_long_altogether_is_given_up(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("short-total.test"))
            with pytest.raises((Truncated, ConnectionResetError)):
                client.response()

    def test_an_endpoint_that_cannot_be_connected_to_in_time_is_given_up(self, wire: Serving) -> None:
        with wire.connect() as client:
            assert client.ask(get("blackhole.test")).status in (502, 503, 504)
            assert client.ask(get("local.test")).status == 200

    def test_an_endpoint_that_cannot_be_connected_to_is_passed_over(self, wire: Serving) -> None:
        with wire.connect() as client:
            for _ in range(4):
                assert client.ask(post("half-blackhole.test", b"body")).status == 200

    def test_a_refused_connection_is_answered_at_once(self, wire: Serving) -> None:
        with wire.connect() as client:
            assert client.ask(get("refused.test")).status in (502, 503)
            assert client.ask(get("empty.test")).status == 503
            assert client.ask(get("nowhere.test")).status == 404
            assert client.ask(get("local.test")).status == 200


class TestLimits:
    def test_a_body_over_the_listeners_limit(self, wire: Serving) -> None:
        with wire.connect("small") as client:
            assert client.ask(post("check.test", payload(1_000))).body == digest(1_000)
            assert client.ask(post("check.test", payload(1_001))).status == 413
        assert len(wire.backends["check.test"].take()) == 1

    def test_a_chunked_body_over_the_limit(self, wire: Serving) -> None:
        with wire.connect("small") as client:
            request = get("check.test", "/", "Transfer-Encoding: chunked", method="POST")
            assert client.ask(request + chunked(payload(1_000))).body == digest(1_000)
            assert client.ask(request + chunked(payload(600), payload(600))).status == 413
        assert len([item for item in wire.backends["check.test"].take() if item.complete]) == 1

    def test_the_last_request_of_a_connection_is_told_so(self, wire: Serving) -> None:
        with wire.connect("small") as client:
            assert [client.ask(get("check.test")).closes for _ in range(3)] == [False, False, True]
            assert client.rest() == b""

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (get("check.test", "/" + "a" * 600), 414),
            (get("check.test", "/", "X-One: " + "a" * 2_100), 431),
            (get("check.test", "/", *(f"X-{index}: a" for index in range(30))), 431),
        ],
    )
    def test_heads_over_the_listeners_limits(self, data: bytes, status: int, wire: Serving) -> None:
        with wire.connect("small") as client:
            assert client.ask(data).status == status
        with wire.connect() as client:
            assert client.ask(data).status == 200

    @pytest.mark.parametrize(("listener", "limit"), [("few", 3), ("fair", 2)])
    def test_connections_over_the_limit_wait_or_are_refused(self, listener: str, limit: int, wire: Serving) -> None:
        clients = [wire.connect(listener) for _ in range(limit)]
        for client in clients:
            assert client.ask(get("local.test")).status == 200
        with wire.connect(listener, timeout=0.3) as over:
            over.send(get("local.test"))
            with contextlib.suppress(TimeoutError):
                assert over.rest()[:12] in (b"", b"HTTP/1.1 429", b"HTTP/1.1 503")
        for client in clients:
            client.close()

        def served() -> bool:
            with contextlib.suppress(ConnectionError, Truncated), wire.connect(listener) as again:
                return again.ask(get("local.test")).status == 200
            return False

        wait_until(served, "there is room again")

    def test_errors_are_json_for_those_who_ask(self, wire: Serving) -> None:
        with wire.connect() as client:
            for host, status in (("nowhere.test", 404), ("empty.test", 503)):
                answer = client.ask(get(host, "/", "Accept: application/json"))
                assert answer.status == status
                assert (answer.headers.get("content-type") or b"").startswith(
                    (b"application/json", b"application/problem+json")
                )
                assert json.loads(answer.body)
                plain = client.ask(get(host))
                assert not plain.body.startswith(b"{")
                assert plain.headers.get("x-request-id")


class TestTunnels:
    def test_bytes_flow_both_ways_after_101(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("switch.test", "/", *UPGRADE))
            answer = client.reader.response_head()
            assert answer.status == 101
            assert answer.headers.get("upgrade") == b"shout"
            assert answer.headers.tokens("connection") == {b"upgrade"}
            for size in (1, 1_000, 300_000):
                data = payload(size)
                sender = in_background(client, data)
                assert client.reader.take(size) == data.upper()
                sender.join(DEADLINE)

    def test_the_server_may_speak_first(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("switch.test", "/push", *UPGRADE))
            assert client.reader.response_head().status == 101
            assert client.reader.take(5) == b"hello"

    def test_bytes_sent_before_101_are_kept_for_the_tunnel(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("switch.test", "/", *UPGRADE) + b"early")
            assert client.reader.response_head().status == 101
            assert client.reader.take(5) == b"EARLY"

    def test_bytes_after_a_refused_upgrade_are_the_next_request(self, wire: Serving) -> None:
        """A proxy that opens the tunnel before 101 lets them through unchecked (CVE-2026-2833)."""
        smuggled = b"GET /admin/../a%00 HTTP/1.1\r\nHost: switch.test\r\n\r\n"
        with wire.connect() as client:
            client.send(get("switch.test", "/no", *UPGRADE) + smuggled)
            assert client.response().status == 200
            assert client.response().status == 400
        assert [request.target for request in wire.backends["switch.test"].requests()] == [b"/no"]

    def test_half_close_passes_through(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("switch.test", "/", *UPGRADE))
            assert client.reader.response_head().status == 101
            client.send(b"last words")
            client.finish()
            assert client.rest() == b"LAST WORDSbye"

    def test_the_end_of_the_server_ends_the_tunnel(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("switch.test", "/", *UPGRADE))
            assert client.reader.response_head().status == 101
            wire.backends["switch.test"].drop_connections()
            assert client.rest() in (b"", b"bye")

    def test_a_reset_of_the_client_ends_the_tunnel(self, wire: Serving) -> None:
        client = wire.connect()
        client.send(get("switch.test", "/", *UPGRADE))
        assert client.reader.response_head().status == 101
        client.reset()
        wait_until(lambda: not wire.backends["switch.test"].open, "the tunnel to the backend ends")

    def test_a_silent_tunnel_ends(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("short-tunnel.test", "/", *UPGRADE))
            assert client.reader.response_head().status == 101
            assert client.rest() in (b"", b"bye")

    def test_an_upgrade_with_a_body_keeps_the_body(self, wire: Serving) -> None:
        with wire.connect() as client:
            client.send(get("switch.test", "/", *UPGRADE, "Content-Length: 4", method="POST") + b"bodytail")
            head = client.reader.response_head()
            # A proxy may leave out Upgrade where it cannot be sure what belongs to the tunnel (RFC 9110 7.8).
            assert head.status in (101, 200)
        request = wire.backends["switch.test"].requests()[0]
        assert (request.body, body_framing(request.headers)) == (b"body", ("length", 4))
