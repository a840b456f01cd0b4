"""Requests as raw bytes: what lb rejects, what it makes canonical, and what reaches the backend.

Every case runs whole, byte by byte, and as the second request of a pipelined packet. Whatever reaches a backend
must pass harness/invariants.py. The cases stand in request_cases.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.backend import RawBackend
from tests.harness.client import RawClient, bytewise, chunked, get, random_splits, whole
from tests.harness.invariants import Rules
from tests.harness.messages import Request, Response
from tests.harness.native import Native
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.wire.request_cases import CASES, GOOD, NO_ANSWER, Case, head, in_chunks, sized, to


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    backends = {
        "wire": RawBackend(),
        "star": RawBackend(),
        "loose": RawBackend(rules=Rules(escaped_slashes=True, double_slashes=True)),
    }
    native = Native()
    native.listen("http", free_port())
    native.listen("strict", free_port(), bare_lf="reject")
    native.listen("loose", free_port(), escaped_slashes="keep", merge_slashes=False, absolute_form_mismatch="accept")
    native.listen("trusted", free_port(), trusted_proxies=["127.0.0.0/8"], forwarded_header=True)
    native.serve("wire.test", backends["wire"])
    native.serve("*", backends["star"])
    native.serve("loose.test", backends["loose"])
    with serving(tmp_path_factory.mktemp("requests"), native, backends) as started:
        yield started


@pytest.fixture(autouse=True)
def invariants_hold(wire: Serving) -> Iterator[None]:
    """lb lives, and nothing that reached a backend broke a rule."""
    for backend in wire.backends.values():
        backend.take()
    yield
    wire.lb.assert_healthy()
    for backend in wire.backends.values():
        backend.assert_clean()


def read_answer(client: RawClient, method: bytes) -> Response | None:
    """The answer, or None when the connection ended without a byte of one."""
    try:
        if not client.reader.buffer and not client.reader.fill():
            return None
    except ConnectionResetError:
        return None
    return client.response(method)


def check_connection(case: Case, client: RawClient, answer: Response | None) -> None:
    """The connection ends or stays usable, as the answer says and the case expects."""
    if answer is None:
        return
    if case.closes is not None and answer.status in case.statuses:
        assert answer.closes == case.closes, f"Connection: {answer.headers.all('connection')} with {answer.status}"
    if answer.closes:
        assert client.rest() == b"", "bytes after the last answer"
        return
    client.send(GOOD)
    again = client.response()
    assert again.status == 200, "the request after it is not understood"


def check_forwarded(case: Case, request: Request) -> None:
    """What reached the backend is what the case says."""
    headers = request.headers
    assert request.method == case.method
    if case.target is not None:
        assert request.target == case.target
    if case.body is not None:
        assert request.body == case.body
    for name, value in case.has.items():
        assert len(headers.all(name)) == 1, f"{name} in {headers}"
        assert value is None or headers.get(name) == value, f"{name} in {headers}"
    for name in case.lacks:
        assert not headers.all(name), f"{name} in {headers}"
    if case.listener != "trusted":
        assert headers.get("x-forwarded-for") == b"127.0.0.1"
        assert headers.get("x-forwarded-proto") == b"http"
        assert (headers.get("x-forwarded-host") or b"") == headers.get("host")
        assert headers.get("x-real-ip") == b"127.0.0.1"


def run(case: Case, wire: Serving, how: str) -> None:
    with wire.connect(case.listener) as client:
        if how == "pipelined":
            client.send(GOOD + case.raw)
            assert client.response().status == 200, "the request before it"
        else:
            client.send(bytewise(case.raw) if how == "byte by byte" else whole(case.raw))
        answer = read_answer(client, case.method)
        assert (answer.status if answer else NO_ANSWER) in case.statuses
        taken = [request for request in wire.backends[case.backend].requests() if request.target != b"/good"]
        check_connection(case, client, answer)
    if answer is not None and answer.status == 200:
        assert len(taken) == 1, f"{len(taken)} requests at the backend"
        check_forwarded(case, taken[0])
        return
    assert taken == [], "a refused request reached the backend whole"
    if answer is not None:
        assert answer.headers.get("x-request-id"), "lb's own answers carry X-Request-ID"


@pytest.mark.parametrize("how", ["whole", "byte by byte", "pipelined"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_request(case: Case, how: str, wire: Serving) -> None:
    run(case, wire, how)


@pytest.mark.parametrize("how", ["whole", "byte by byte", "pipelined"])
def test_options_star_is_answered_by_lb(how: str, wire: Serving) -> None:
    raw = to(b"*", b"OPTIONS")
    with wire.connect() as client:
        if how == "pipelined":
            client.send(GOOD + raw)
            assert client.response().status == 200
        else:
            client.send(bytewise(raw) if how == "byte by byte" else raw)
        answer = client.response("OPTIONS")
        assert answer.status in (200, 204)
        assert answer.body == b""
        assert client.ask(GOOD).status == 200
    assert {request.target for request in wire.backends["wire"].requests()} == {b"/good"}


@pytest.mark.parametrize("seed", range(40))
def test_random_splits_change_nothing(seed: int, wire: Serving) -> None:
    """Three requests with bodies in one stream, cut at random places."""
    stream = (
        head(b"X-One: 1")
        + sized(b"11", body=b"hello world")
        + in_chunks(b'5;ext="a"\r\nhello\r\n6\r\n world\r\n0\r\nX-Trailer: t\r\n\r\n')
        + to(b"/last?q")
    )
    with wire.connect() as client:
        client.send(random_splits(stream, seed, pieces=3 + seed % 12))
        assert [client.response().status for _ in range(4)] == [200] * 4
    received = wire.backends["wire"].requests()
    assert [request.body for request in received] == [b"", b"hello world", b"hello world", b""]
    assert received[3].target == b"/last?q"


def test_a_request_hidden_in_a_body_stays_a_body(wire: Serving) -> None:
    hidden = get("wire.test", "/hidden")
    with wire.connect() as client:
        assert client.ask(sized(str(len(hidden)).encode(), body=hidden)).status == 200
        assert client.ask(in_chunks(chunked(hidden))).status == 200
        assert client.ask(GOOD).status == 200
    assert [request.target for request in wire.backends["wire"].requests()] == [b"/case", b"/case", b"/good"]


def test_descriptors_do_not_leak_over_refused_requests(wire: Serving) -> None:
    cases = [case for case in CASES if case.statuses != (200,)]
    with wire.connect() as client:
        client.ask(GOOD)
    before = wire.lb.sockets()
    for case in cases:
        run(case, wire, "whole")
    # Idle upstream connections may have been added, one a thread and backend at most.
    assert wire.lb.sockets() <= before + 2 * len(wire.backends) + 2
