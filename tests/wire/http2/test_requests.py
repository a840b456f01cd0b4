"""Requests over HTTP/2: what is malformed, what is refused, and what arrives at HTTP/1 and HTTP/2 endpoints.

Every case goes to both, in one piece and byte by byte. The cases stand in request_cases.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.harness.backend import RawBackend
from tests.harness.client import bytewise, whole
from tests.harness.http2_backend import Http2Backend
from tests.harness.http2_client import PROTOCOL_ERROR, Field, Http2Client, Part, Stream, data, request_fields
from tests.harness.messages import Headers
from tests.harness.native import Native
from tests.harness.serving import Serving, serving
from tests.wire.http2.request_cases import CASES, HOST_BYTES, MALFORMED, Case


@dataclass
class Wire:
    serving: Serving
    old: RawBackend
    new: Http2Backend


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    old = RawBackend()
    native = Native()
    native.serve("wire.test", old)
    with Http2Backend() as new:
        native.serve("new2.test", new.key, protocol="http2")
        with serving(tmp_path_factory.mktemp("http2-requests"), native, {"wire.test": old}) as started:
            yield Wire(started, old, new)


numbers = itertools.count()


def send(case: Case, client: Http2Client, host: bytes, mark: str) -> int:
    """The case's request on the client's next stream, marked in a field of its own."""
    stream = max(client.streams, default=-1) + 2
    payloads = list(case.data or ())
    fields = [*named(case.fields, host), ("x-mark", mark)]
    parts: list[Part] = [client.headers(stream, *fields, end=case.data is None)]
    for number, payload in enumerate(payloads, 1):
        ends = number == len(payloads) and not case.trailers
        parts.append(data(stream, payload, *(["END_STREAM"] if ends else [])))
    if case.trailers:
        parts.append(client.headers(stream, *named(case.trailers, host)))
    client.send(*parts)
    return stream


def named(fields: tuple[Field, ...], host: bytes) -> list[Field]:
    """The fields with the host's name in place of the one that the cases have."""
    return [(name, rename(value, host)) for name, value in fields]


def rename(value: str | bytes, host: bytes) -> bytes:
    text = value.encode("latin-1") if isinstance(value, str) else value
    return text.replace(HOST_BYTES, host).replace(HOST_BYTES.upper(), host.upper())


@dataclass
class Arrived:
    """The one request that an endpoint saw, whichever protocol it speaks."""

    method: bytes
    target: bytes
    host: bytes
    headers: Headers
    body: bytes
    trailers: Headers
    complete: bool


def arrivals(wire: Wire, host: bytes, mark: str) -> list[Arrived]:
    """What came with this mark, or with none, as an endpoint sees it to which something else was made of it."""
    if host == HOST_BYTES:
        found = [
            Arrived(r.method, r.target, r.headers.get("host") or b"", r.headers, r.body, r.trailers, item.complete)
            for item in wire.old.take()
            for r in [item.request]
        ]
    else:
        found = [
            Arrived(r.method, r.path, r.authority, r.headers, bytes(r.body), r.trailers, r.complete)
            for r in wire.new.take()
        ]
    return [request for request in found if request.headers.all("x-mark") in ([], [mark.encode()])]


def outcome(client: Http2Client, stream: int) -> Stream:
    while not (found := client.streams[stream]).over:
        assert client.receive() is not None, f"the connection ended: {client.frames[-3:]}"
    return found


@pytest.mark.parametrize("how", ["whole", "byte by byte"])
@pytest.mark.parametrize("host", [HOST_BYTES, b"new2.test"], ids=["to HTTP/1", "to HTTP/2"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_request(case: Case, host: bytes, how: str, wire: Wire) -> None:
    mark = f"case-{next(numbers)}"
    with Http2Client(wire.serving.connect(), cut=bytewise if how == "byte by byte" else whole) as client:
        stream = outcome(client, send(case, client, host, mark))
        if case.status == MALFORMED:
            early = case.begins and stream.status == 200  # the endpoint had all that it was promised
            assert early or (stream.status, stream.reset) == (0, PROTOCOL_ERROR)
        else:
            assert (stream.status, stream.reset) in ((case.status, None), (case.status, 0))
        check_arrived(case, host, arrivals(wire, host, mark))
        # Only the stream was lost; what comes next is not mistaken for a part of it.
        assert client.ask("/next", ("x-mark", mark), host=host.decode()).status == 200
    assert [request.target for request in arrivals(wire, host, mark) if request.target != b"/case"] == [b"/next"]
    wire.serving.lb.assert_healthy()
    wire.old.assert_clean()
    wire.new.assert_clean()


def check_arrived(case: Case, host: bytes, came: list[Arrived]) -> None:
    if case.status != 200 and not case.begins:
        assert came == []
        return
    if case.status != 200:
        promised = {int(value) for name, value in case.fields if name == "content-length"}
        sent = b"".join(case.data or ())
        for request in came:
            assert sent.startswith(request.body)
            assert not request.complete or {len(request.body)} == promised
        return
    assert len(came) == 1
    request = came[0]
    assert request.complete
    fields = dict(named(case.fields, host))
    assert request.method == (case.method or str(dict(case.fields)[":method"]).encode())
    assert request.target == case.target.replace(HOST_BYTES, host)
    assert request.host.lower() == fields.get(":authority", fields.get("host", b"")).lower()
    assert request.body == b"".join(case.data or ())
    for name, value in case.has.items():
        assert request.headers.all(name) == [value], f"{name} in {request.headers}"
    for name in case.lacks:
        assert not request.headers.all(name), f"{name} in {request.headers}"
    assert {name.decode().lower(): value for name, value in request.trailers} == case.arrived_trailers


@pytest.mark.parametrize(
    ("fields", "trailers", "reason"),
    [
        (request_fields("relative"), (), "bad-header"),  # nghttp2 finds it
        ([*request_fields(), ("te", "gzip")], (), "bad-header"),
        ([*request_fields(), ("x-a", "\x01")], (), "bad-header"),  # lb finds it
        (request_fields(method="POST"), [("connection", "close")], "bad-header"),
        (request_fields(method="POST"), [("x-a", "\x01")], "bad-header"),
        ([*request_fields(method="POST"), ("content-length", "9")], [("x-a", "b")], "bad-framing"),
    ],
)
def test_what_is_malformed_is_counted_and_logged(
    fields: list[Field], trailers: list[Field], reason: str, wire: Wire
) -> None:
    lb = wire.serving.lb
    before = lb.metric("lb_exchange_end_total", reason=reason)
    with Http2Client(wire.serving.connect()) as client:
        client.send(client.headers(1, *fields, end=not trailers))
        if trailers:
            client.send(client.headers(1, *trailers))
        assert client.reset_of(1) == PROTOCOL_ERROR
        record = lb.wait_log(1, client_port=client.raw.socket.getsockname()[1])[0]
    assert (record["reason"], record["status"], record["protocol"]) == (reason, 0, "HTTP/2.0")
    assert lb.metric("lb_exchange_end_total", reason=reason) == before + 1


def test_what_each_head_had_is_counted_for_itself(wire: Wire) -> None:
    """Heads that come in one segment are not mistaken for each other."""
    with Http2Client(wire.serving.connect()) as client:
        frames = [client.headers(1, *request_fields("/large"), ("x-a", "\xfe" * 500))]
        frames.append(client.headers(3, *request_fields("/small")))
        client.send(*frames)
        client.response(1)
        client.response(3)
        records = wire.serving.lb.wait_log(2, client_port=client.raw.socket.getsockname()[1])
    sizes = {record["target"]: record["bytes_in"] for record in records}
    assert sizes == {target: len(frame.serialize()) for target, frame in zip(("/large", "/small"), frames, strict=True)}
