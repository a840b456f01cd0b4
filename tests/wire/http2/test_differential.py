"""hyper-h2 as the oracle: what it refuses, lb refuses, and what both take arrives as the oracle has read it.

In field sections lb may be stricter, since what it takes may go on as HTTP/1. In sequences of frames both must agree.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from hyperframe.frame import RstStreamFrame
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.harness.backend import RawBackend
from tests.harness.client import random_splits
from tests.harness.http2_backend import Exchange, Http2Backend, answer_ok
from tests.harness.http2_client import (
    NO_ERROR,
    PREFACE,
    Field,
    Http2Client,
    Part,
    data,
    frame_bytes,
    ping,
    priority,
    request_fields,
    reset,
    window_update,
)
from tests.harness.http2_client import settings as settings_frame
from tests.harness.messages import Headers
from tests.harness.native import Native
from tests.harness.serving import Serving, serving

numbers = itertools.count()


@dataclass
class Wire:
    serving: Serving
    old: RawBackend
    new: Http2Backend
    silent: Http2Backend


def say_nothing(exchange: Exchange) -> None:
    exchange.read()


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    old = RawBackend()
    native = Native()
    native.serve("old.test", old)
    with Http2Backend(answer_ok) as new, Http2Backend(say_nothing) as silent:
        native.serve("new.test", new.key, protocol="http2")
        native.serve("silent.test", silent.key, protocol="http2")
        with serving(tmp_path_factory.mktemp("differential"), native, {"old.test": old}) as started:
            yield Wire(started, old, new, silent)


# ------------------------------------------------------------------------------------------------------------- oracle


@dataclass
class Read:
    """What hyper-h2 makes of the bytes of a client that is never answered."""

    refused: bool = False
    requests: dict[int, Message] = field(default_factory=dict)


@dataclass
class Message:
    fields: Headers
    body: bytearray = field(default_factory=bytearray)
    trailers: Headers = field(default_factory=Headers)
    complete: bool = False


def oracle(stream: bytes) -> Read:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    connection.initiate_connection()
    connection.data_to_send()
    read = Read()
    try:
        # Frame by frame: what comes before an error has been read.
        for frame in frames_of(stream):
            # hyper-h2 takes these (RFC 9113 6.4).
            read.refused = read.refused or (frame[3] == RstStreamFrame.type and is_idle(connection, frame))
            for event in connection.receive_data(frame):
                note(read, event)
    except h2.exceptions.ProtocolError:
        read.refused = True
    read.refused = read.refused or any(
        frame[3] == RstStreamFrame.type for frame in frames_of(connection.data_to_send(), preface=b"")
    )
    return read


def is_idle(connection: h2.connection.H2Connection, frame: bytes) -> bool:
    return int.from_bytes(frame[5:9], "big") > connection.highest_inbound_stream_id


def note(read: Read, event: h2.events.Event) -> None:
    match event:
        case h2.events.RequestReceived():
            read.requests[event.stream_id] = Message(Headers(tuple(item) for item in event.headers))
        case h2.events.DataReceived():
            read.requests[event.stream_id].body += event.data
        case h2.events.TrailersReceived():
            read.requests[event.stream_id].trailers = Headers(tuple(item) for item in event.headers)
        case h2.events.StreamEnded():
            read.requests[event.stream_id].complete = True


def frames_of(stream: bytes, preface: bytes = PREFACE) -> Iterator[bytes]:
    at = len(preface)
    if preface:
        yield stream[:at]
    while at < len(stream):
        end = at + 9 + int.from_bytes(stream[at : at + 3], "big")
        yield stream[at:end]
        at = end


def to_send(client: Http2Client, parts: list[Part]) -> bytes:
    """What `parts` are on the wire, behind the preface that the client has sent."""
    joined = b"".join(part if isinstance(part, bytes) else part.serialize() for part in parts)
    return PREFACE + settings_frame() + joined


# ----------------------------------------------------------------------------------------------------- field sections

byte = st.sampled_from([bytes((value,)) for value in (*b'\0\t\n\r !":;,/@[\\aAzZ09-_~', 0x7F, 0x80, 0xFF)])
junk = st.lists(byte, max_size=6).map(b"".join)


def mostly(good: st.SearchStrategy[bytes], bad: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(good, good, good, good, bad)


def values(*texts: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(texts)


PSEUDO: dict[bytes, st.SearchStrategy[bytes]] = {
    b":method": mostly(values(b"GET", b"POST", b"PUT", b"PURGE"), st.one_of(junk, values(b"CONNECT", b"G T", b"get"))),
    b":scheme": mostly(values(b"http", b"https"), st.one_of(junk, values(b"ftp", b"HTTP"))),
    b":path": mostly(
        values(b"/", b"/a/b?c=d", b"/a%20b"), st.one_of(junk.map(b"/".__add__), values(b"*", b"a", b"/../b"))
    ),
    b":authority": mostly(values(b"HOST", b"HOST:80"), st.one_of(junk, values(b"u@HOST", b"HOST:x", b"other.test"))),
    b":protocol": values(b"websocket", b"x"),
    b":status": values(b"200"),
    b":junk": junk,
}
REGULAR: dict[bytes, st.SearchStrategy[bytes]] = {
    b"x-a": mostly(values(b"1", b"", b"a b", b"\xc3\xa4"), st.one_of(junk, values(b"a\r\nx-evil: 1", b" a"))),
    b"x-b": values(b"2"),
    b"accept": values(b"*/*"),
    b"cookie": mostly(values(b"a=b", b"c=d; e=f"), values(b"g=h\n", b" i", b"\xff")),
    b"content-length": mostly(values(b"0", b"5"), values(b"4", b"6", b"+5", b"5, 5", b"05", b"", b"-1")),
    b"te": values(b"trailers", b"gzip", b"trailers, gzip", b"Trailers"),
    b"host": mostly(values(b"HOST"), st.one_of(junk, values(b"other.test", b"u@HOST"))),
    b"expect": values(b"100-continue"),
    b"connection": values(b"close", b""),
    b"transfer-encoding": values(b"chunked", b"identity"),
    b"upgrade": values(b"websocket"),
    b"X-Upper": values(b"1"),
}
NAMED = {**PSEUDO, **REGULAR}


def fields_named(names: st.SearchStrategy[bytes]) -> st.SearchStrategy[tuple[bytes, bytes]]:
    return names.flatmap(lambda name: st.tuples(st.just(name), NAMED[name]))


harmless = fields_named(st.sampled_from([b"x-a", b"x-b", b"accept", b"cookie"]))
any_field = st.one_of(
    harmless, harmless, harmless, fields_named(st.sampled_from(list(REGULAR))), st.tuples(junk, st.just(b"1"))
)


@st.composite
def sections(draw: st.DrawFn) -> list[tuple[bytes, bytes]]:
    """Field sections of requests, most of which are nearly right."""
    pseudo = [(name, draw(PSEUDO[name])) for name in (b":method", b":scheme", b":path", b":authority")]
    regular = draw(st.lists(any_field, max_size=5))
    fields = [*pseudo, *regular]
    match draw(st.integers(0, 9)):
        case 0:
            del fields[draw(st.integers(0, 3))]
        case 1:
            fields.insert(draw(st.integers(0, len(fields))), draw(fields_named(st.sampled_from(list(PSEUDO)))))
        case 2:
            fields = draw(st.permutations(fields))
    return fields


bodies = st.one_of(st.none(), st.lists(st.sampled_from([b"hello", b"he", b"llo", b""]), min_size=1, max_size=3))
trailer_sections = st.one_of(st.just([]), st.lists(any_field, min_size=1, max_size=3))


@settings(max_examples=300)
@given(section=sections(), body=bodies, trailers=trailer_sections, host=st.sampled_from([b"old.test", b"new.test"]))
@example(section=[], body=None, trailers=[], host=b"old.test")
def test_field_sections(
    section: list[tuple[bytes, bytes]],
    body: list[bytes] | None,
    trailers: list[tuple[bytes, bytes]],
    host: bytes,
    wire: Wire,
) -> None:
    mark = b"%d" % next(numbers)
    fields = [(name, value.replace(b"HOST", host)) for name, value in section]
    with Http2Client(wire.serving.connect()) as client:
        parts = request_parts(client, [*fields, (b"x-mark", mark)], body, trailers)
        read = oracle(to_send(client, parts))
        client.send(*parts)
        stream = client.streams[1]
        while not stream.over and client.receive() is not None:
            pass
    if read.refused:
        assert stream.status != 200 or stream.reset not in (None, NO_ERROR) or late(read, fields), (
            fields,
            body,
            trailers,
        )
    if stream.status == 200 and not read.refused:
        compare(read.requests[1], arrived(wire, host, mark))
    wire.serving.lb.assert_healthy()
    wire.old.assert_clean()
    wire.new.assert_clean()


def late(read: Read, fields: list[tuple[bytes, bytes]]) -> bool:
    """Wrong only behind all that content-length had promised: an endpoint may have answered by then."""
    return 1 in read.requests and any(name == b"content-length" for name, _ in fields)


def request_parts(
    client: Http2Client, fields: list[Field], body: list[bytes] | None, trailers: list[Field]
) -> list[Part]:
    parts: list[Part] = [client.headers(1, *fields, end=body is None and not trailers)]
    for number, payload in enumerate(body or [], 1):
        ends = number == len(body or []) and not trailers
        parts.append(data(1, payload, *(["END_STREAM"] if ends else [])))
    if trailers:
        parts.append(client.headers(1, *trailers))
    return parts


def arrived(wire: Wire, host: bytes, mark: bytes) -> Message:
    """The request with this mark, as an endpoint saw it."""
    if host == b"old.test":
        found = [item for item in wire.old.take() if item.request.headers.get("x-mark") == mark]
        request = found[0].request
        pseudo = [(b":method", request.method), (b":authority", request.headers.get("host") or b"")]
        fields = Headers([*pseudo, *((name.lower(), value) for name, value in request.headers)])
        trailers = Headers((name.lower(), value) for name, value in request.trailers)
        return Message(fields, bytearray(request.body), trailers, found[0].complete)
    taken = [item for item in wire.new.take() if item.headers.get("x-mark") == mark]
    return Message(taken[0].fields, taken[0].body, taken[0].trailers, taken[0].complete)


def compare(sent: Message, came: Message) -> None:
    assert came.complete
    assert came.body == sent.body
    assert came.fields.get(":method") == sent.fields.get(":method")
    authority = sent.fields.get(":authority") or sent.fields.get("host")
    assert came.fields.get(":authority") == authority
    for name in ("x-a", "x-b", "accept"):
        assert came.fields.all(name) == sent.fields.all(name)
    crumbs = [crumb for crumb in sent.fields.all("cookie") if crumb]
    assert (came.fields.get("cookie") or b"") == b"; ".join(crumbs)
    for name in ("x-a", "x-b"):
        assert came.trailers.all(name) == sent.trailers.all(name)


# ------------------------------------------------------------------------------------------------- sequences of frames

Move = Callable[[Http2Client], Part]
streams = st.sampled_from([1, 3, 5])


def head(stream: int, end: bool) -> Move:
    return lambda client: client.headers(stream, *request_fields(method="POST", host="silent.test"), end=end)


def trailing(stream: int) -> Move:
    return lambda client: client.headers(stream, ("x-t", "1"))


def fixed(part: Part) -> Move:
    return lambda _: part


usual = st.one_of(
    st.builds(head, streams, st.booleans()),
    st.builds(
        lambda stream, end: fixed(data(stream, b"abc", *(["END_STREAM"] if end else []))), streams, st.booleans()
    ),
    st.builds(trailing, streams),
    st.builds(lambda stream: fixed(reset(stream)), streams),
    st.builds(lambda stream, size: fixed(window_update(stream, size)), st.sampled_from([0, 1, 3]), st.integers(1, 99)),
    st.builds(lambda stream: fixed(priority(stream, 0)), streams),
    st.just(fixed(ping(b"12345678"))),
    st.builds(lambda key, value: fixed(settings_frame((key, value))), st.sampled_from([3, 4, 5, 6]), st.just(16_384)),
    st.just(fixed(frame_bytes(0x16, 0, 1, b"abc"))),
)
odd = st.one_of(
    st.builds(head, st.sampled_from([2, 4]), st.booleans()),
    st.just(fixed(window_update(0, 0))),
    st.just(fixed(window_update(0, (1 << 31) - 1))),
    st.builds(lambda stream: fixed(frame_bytes(9, 4, stream, b"\x82")), streams),
    st.just(fixed(frame_bytes(4, 0, 0, bytes(5)))),
    st.just(fixed(frame_bytes(4, 0, 1, b""))),
    st.just(fixed(frame_bytes(6, 0, 0, bytes(7)))),
    st.just(fixed(frame_bytes(3, 0, 1, bytes(3)))),
    st.just(fixed(frame_bytes(8, 0, 0, bytes(3)))),
    st.just(fixed(frame_bytes(0, 0, 0, b"abc"))),
    st.just(fixed(frame_bytes(0, 8, 1, b"\x09abc"))),
    st.just(fixed(settings_frame((4, 1 << 31)))),
    st.just(fixed(settings_frame((2, 2)))),
    st.just(fixed(settings_frame((5, 100)))),
)
scripts = st.lists(st.one_of(usual, usual, usual, usual, odd), min_size=1, max_size=10)


@settings(max_examples=300)
@given(script=scripts, seed=st.one_of(st.none(), st.integers(0, 1 << 16)))
def test_sequences_of_frames(script: list[Move], seed: int | None, wire: Wire) -> None:
    """Endpoints are silent, so that nothing depends on who is faster."""
    client = Http2Client(wire.serving.connect(), credit=False)
    with client:
        client.handshake()
        parts = [move(client) for move in script]
        read = oracle(to_send(client, parts))
        if seed is not None:
            client.cut = lambda stream: random_splits(stream, seed, pieces=12)
        client.send(*parts)
        lived = still_there(client)
        resets = [stream.reset for stream in client.streams.values() if stream.reset not in (None, NO_ERROR)]
    assert (bool(resets) or not lived) == read.refused, client.frames[-4:]
    wire.serving.lb.assert_healthy()
    wire.silent.assert_clean()


def still_there(client: Http2Client) -> bool:
    """Two PINGs: what the first one has overtaken comes before the answer to the second one."""
    client.cut = lambda stream: iter((stream,))
    answers = 0
    for opaque in (b"answer 1", b"answer 2"):
        client.send(ping(opaque))
        while (frame := client.receive()) is not None:
            if frame.type == 6 and getattr(frame, "opaque_data", b"") == opaque:
                answers += 1
                break
    return answers == 2
