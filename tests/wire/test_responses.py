"""Responses as raw bytes: a backend that may be hostile, and clients that must never suffer from it.

Every case runs in one piece and byte by byte, for an HTTP/1.1 and an HTTP/1.0 client. After it, the next requests must
get their own answers, from the same upstream: a token that only the backend can echo proves that nothing is mixed up.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from tests.harness.backend import OK, BackendConnection, RawBackend
from tests.harness.client import RawClient, get, post
from tests.harness.messages import Response, Truncated
from tests.harness.native import Native
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE, wait_until
from tests.wire.response_cases import CASES, TRUNCATED, Case

HOST = "hostile.test"
_tokens = itertools.count(1)


def hostile(connection: BackendConnection) -> None:
    """Answers `/case/INDEX/HOW` with the case's bytes and `/echo` with the token it was given."""
    while (request := connection.read()) is not None:
        token = request.headers.get("x-token")
        if token is not None:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(token), token))
            continue
        _, _, index, how = request.target.decode().split("/")
        case = CASES[int(index)]
        if how == "bytewise" and len(case.reply) < 1_000 and not case.spills:
            connection.trickle(case.reply, 0.0002)
        else:
            connection.send(case.reply)
        if case.then == "close":
            return
        if case.then == "reset":
            connection.reset()
            return


def stale(connection: BackendConnection) -> None:
    """Serves one request and ends without a byte when a second one comes on the same connection."""
    if connection.read() is not None:
        connection.send(OK)
        connection.read()


def mute(connection: BackendConnection) -> None:
    """Reads and never answers."""
    connection.read()
    connection.wait_for_end()


class Idler:
    """A backend that, once it is told, sends bytes nobody asked for on its idle connection."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.go, self.done = threading.Event(), threading.Event()

    def __call__(self, connection: BackendConnection) -> None:
        if connection.number:
            while connection.read() is not None:
                connection.send(OK)
            return
        connection.read()
        connection.send(OK)
        assert self.go.wait(DEADLINE)
        connection.send(self.data)
        self.done.set()
        if not self.data:
            return
        while connection.read() is not None:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale")


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    talkative = Idler(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    leaving = Idler(b"")
    backends = {
        HOST: RawBackend(hostile),
        "stale.test": RawBackend(stale),
        "talkative.test": RawBackend(talkative),
        "leaving.test": RawBackend(leaving),
        "mute.test": RawBackend(mute),
    }
    native = Native()
    for host, backend in backends.items():
        native.serve(host, backend, route={"response_timeout": "400ms"} if host == "mute.test" else None)
    with serving(tmp_path_factory.mktemp("responses"), native, backends) as started:
        yield started


@pytest.fixture(autouse=True)
def invariants_hold(wire: Serving) -> Iterator[None]:
    for backend in wire.backends.values():
        backend.take()
    yield
    wire.lb.assert_healthy()
    for backend in wire.backends.values():
        backend.assert_clean()


def echo(client: RawClient) -> None:
    """A request gets its own answer."""
    token = b"token-%d" % next(_tokens)
    answer = client.ask(get(HOST, "/echo", f"X-Token: {token.decode()}"))
    assert (answer.status, answer.body) == (200, token), "an answer that belongs to another request"


def read_answer(client: RawClient, case: Case, version: str) -> Response | None:
    """None for an answer that breaks off."""
    try:
        answer = client.response(case.method)
    except (Truncated, ConnectionResetError):
        return None
    if answer.framing == "close" and TRUNCATED in case.statuses:
        # HTTP/1.0 has no other way to say that a body without a length breaks off; HTTP/1.1 has.
        assert version == "HTTP/1.0", f"a body that breaks off looks whole: {answer}"
        return None
    return answer


def check_answer(case: Case, answer: Response, version: str) -> None:
    headers = answer.headers
    if case.body is not None:
        assert answer.body == case.body
    for name, values in case.has.items():
        assert headers.all(name) == values
    for name in case.lacks:
        assert not headers.all(name)
    assert not headers.tokens("connection") - {b"close", b"keep-alive"}
    if version == "HTTP/1.0":
        assert answer.interim == []
        assert not headers.all("transfer-encoding")
        return
    seen = [item.status for item in answer.interim if item.status != 100]
    assert not case.interim or tuple(seen) == case.interim
    for name, value in case.trailers.items():
        assert answer.trailers.get(name) == value


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("how", ["whole", "bytewise"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_response(case: Case, how: str, version: str, wire: Serving) -> None:
    keep = ["Connection: keep-alive"] if version == "HTTP/1.0" else []
    request = get(HOST, f"/case/{CASES.index(case)}/{how}", *case.lines, *keep, method=case.method, version=version)
    with wire.connect() as client:
        client.send(request)
        answer = read_answer(client, case, version)
        status = answer.status if answer else TRUNCATED
        assert status in case.statuses
        if answer is not None and status != 502:
            check_answer(case, answer, version)
        taken = wire.backends[HOST].take()
        # A broken answer to GET on a connection that was reused may be tried once more on a fresh one.
        assert 1 <= len(taken) <= 2
        if answer is None:
            client.rest()
        elif answer.closes:
            assert client.rest() == b""
        else:
            echo(client)
            following = wire.backends[HOST].take()[0].connection
            if case.reused is not None:
                assert (following == taken[-1].connection) == case.reused
    for _ in range(2):
        with wire.connect() as another:
            echo(another)


def test_a_get_on_a_stale_connection_is_tried_again(wire: Serving) -> None:
    with wire.connect() as client:
        for _ in range(10):
            assert client.ask(get("stale.test")).status == 200


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_post_on_a_stale_connection_is_not_sent_twice(method: str, wire: Serving) -> None:
    with wire.connect() as client:
        assert client.ask(get("stale.test")).status == 200
        wire.backends["stale.test"].take()
        answer = client.ask(post("stale.test", b"pay once", "/pay", method=method))
        received = wire.backends["stale.test"].take()
    # A fresh connection gets it through; the stale one must not be followed by another try.
    assert len(received) == 1
    assert received[0].request.body == b"pay once"
    assert answer.status in (200, 502)


def test_a_body_that_is_streaming_is_not_sent_twice(wire: Serving) -> None:
    with wire.connect() as client:
        assert client.ask(get("stale.test")).status == 200
        wire.backends["stale.test"].take()
        client.send(get("stale.test", "/put", "Content-Length: 10", method="PUT") + b"01234")
        client.send(b"56789")
        assert client.response().status in (200, 502)
    complete = [item for item in wire.backends["stale.test"].take() if item.complete]
    assert all(item.request.body == b"0123456789" for item in complete)


def test_bytes_on_an_idle_connection_never_answer_a_request(wire: Serving) -> None:
    backend = wire.backends["talkative.test"]
    with wire.connect() as client:
        assert client.ask(get("talkative.test")).status == 200
        script = backend.script
        assert isinstance(script, Idler)
        script.go.set()
        assert script.done.wait(DEADLINE)
        answer = client.ask(get("talkative.test"))
    assert (answer.status, answer.body) == (200, b"ok")


def test_a_connection_that_ends_while_idle_is_not_used(wire: Serving) -> None:
    backend = wire.backends["leaving.test"]
    with wire.connect() as client:
        assert client.ask(get("leaving.test")).status == 200
        script = backend.script
        assert isinstance(script, Idler)
        script.go.set()
        wait_until(lambda: not backend.open, "the idle connection is gone")
        # POST, because nothing else would show that it went out on the dead connection.
        assert client.ask(post("leaving.test", b"body")).status == 200
    assert len(backend.take()) == 2


def test_a_backend_that_never_answers_is_given_up(wire: Serving) -> None:
    with wire.connect() as client:
        assert client.ask(get("mute.test")).status == 504
        echo(client)
    record = wire.lb.wait_log(status=504)[0]
    assert record["upstream"] == "mute.test"


def test_a_backend_is_told_when_the_client_has_gone(wire: Serving) -> None:
    backend = wire.backends["mute.test"]
    with wire.connect() as client:
        client.send(get("mute.test"))
        wait_until(lambda: backend.received, "the request arrives")
        client.reset()
    wait_until(lambda: not backend.open, "lb closes the connection to the backend")
