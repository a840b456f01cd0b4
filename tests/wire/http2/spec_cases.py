"""The cases of h2spec 2.6 (github.com/summerwind/h2spec, MIT), with its numbers: frames, and what has to come of them.

h2spec was written for RFC 7540. Where RFC 9113 says otherwise, the case has what RFC 9113 wants, and `rfc9113` why.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, RstStreamFrame

from tests.harness.http2_client import (
    COMPRESSION_ERROR,
    FLOW_CONTROL_ERROR,
    FRAME_BYTES,
    FRAME_SIZE_ERROR,
    NO_ERROR,
    PREFACE,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
    Field,
    Http2Client,
    Part,
    data,
    frame_bytes,
    goaway,
    ping,
    priority,
    request_fields,
    reset,
    settings,
    window_update,
    without,
)

Step = Part | Callable[[Http2Client], Part | None]
"""Bytes to send, what makes them, or what waits for something."""
Check = Callable[[Http2Client], None]

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ENABLE_PUSH, MAX_CONCURRENT, INITIAL_WINDOW, MAX_FRAME = 2, 3, 4, 5
BODY = b"at least five bytes"
"""Of every response."""


@dataclass(frozen=True)
class Case:
    id: str
    what: str
    steps: tuple[Step, ...]
    check: Check
    handshake: bool = True
    rfc9113: str = ""


# --------------------------------------------------------------------------------------------------------------- steps


def get(stream: int = 1, *more: Field, method: str = "GET", end: bool = True, end_headers: bool = True) -> Step:
    """A request's head."""

    def step(client: Http2Client) -> Part:
        fields = [*request_fields(method=method), *more]
        return client.headers(stream, *fields, end=end, end_headers=end_headers)

    return step


def post(stream: int = 1, *more: Field, end: bool = False, end_headers: bool = True) -> Step:
    return get(stream, *more, method="POST", end=end, end_headers=end_headers)


def raw_head(*fields: Field, stream: int = 1, end: bool = True) -> Step:
    """A head of exactly these fields."""
    return lambda client: client.headers(stream, *fields, end=end)


def coded(tail: bytes = b"", head: bytes = b"") -> Step:
    """A request whose header block has these bytes at its end or at its beginning."""

    def step(client: Http2Client) -> Part:
        return HeadersFrame(1, head + client.block(*request_fields()) + tail, flags=["END_STREAM", "END_HEADERS"])

    return step


def in_pieces(*cuts: int) -> Step:
    """A request whose header block is cut at these places."""

    def step(client: Http2Client) -> Part:
        block = client.block(*request_fields())
        places = [0, *cuts, len(block)]
        pieces = [block[start:end] for start, end in itertools.pairwise(places)]
        parts: list[Frame] = [HeadersFrame(1, pieces[0], flags=["END_STREAM"])]
        parts += [ContinuationFrame(1, piece) for piece in pieces[1:]]
        parts[-1].flags.add("END_HEADERS")
        return b"".join(part.serialize() for part in parts)

    return step


def with_priority(depends_on: int, pad: int | None = None) -> Step:
    """A request whose HEADERS say what it depends on (obsolete), or are padded."""

    def step(client: Http2Client) -> Part:
        frame = client.headers(1, *request_fields())
        frame.flags.add("PRIORITY")
        frame.depends_on = depends_on
        frame.stream_weight = 255
        return frame

    return step


def padded(client: Http2Client) -> Part:
    frame = client.headers(1, *request_fields())
    frame.flags.add("PADDED")
    frame.pad_length = 8
    return frame


def badly_padded(client: Http2Client) -> Part:
    block = client.block(*request_fields())
    return frame_bytes(HEADERS, 0xD, 1, bytes((len(block) + 2,)) + block)


def more(stream: int = 1, *, end: bool = True) -> Step:
    """CONTINUATION with a long field."""
    return lambda client: frame_bytes(CONTINUATION, 4 if end else 0, stream, client.block(("x-dummy0", "x" * 4_000)))


def pushing(client: Http2Client) -> Part:
    return frame_bytes(PUSH_PROMISE, 4, 1, (3).to_bytes(4, "big") + client.block(*request_fields()))


def too_many(client: Http2Client) -> Part:
    """One request more than may be under way."""
    return b"".join(
        client.headers(stream, *request_fields()).serialize()
        for stream in range(1, 2 * client.settings[MAX_CONCURRENT] + 2, 2)
    )


def larger_table(client: Http2Client) -> Part:
    """A dynamic table size update to one byte more than lb's decoder has (RFC 7541 6.3)."""
    left = client.settings.get(1, 4096) + 1 - 31
    update = bytearray((0x3F,))
    while left >= 128:
        update.append(0x80 | left & 0x7F)
        left >>= 7
    update.append(left)
    return HeadersFrame(1, bytes(update) + client.block(*request_fields()), flags=["END_STREAM", "END_HEADERS"])


def ended(client: Http2Client) -> None:
    client.response(1)


def some_data(client: Http2Client) -> None:
    client.until(lambda frame: isinstance(frame, DataFrame), "DATA came")


def acknowledged(client: Http2Client) -> None:
    client.handshake()


# -------------------------------------------------------------------------------------------------------------- checks


def pong(client: Http2Client) -> None:
    client.settle()


def pong_or_end(client: Http2Client) -> None:
    """After a GOAWAY of the client."""
    client.send(ping())
    while (frame := client.receive()) is not None and frame.type != PING:
        pass
    assert not client.goaways or client.goaways[-1].error_code == NO_ERROR


def answered(client: Http2Client) -> None:
    assert client.response(1).status == 200


def one_byte(client: Http2Client) -> None:
    frame = client.until(lambda frame: isinstance(frame, DataFrame), "DATA came")
    assert isinstance(frame, DataFrame)
    assert len(frame.data) == 1


def closed(client: Http2Client) -> None:
    while client.receive() is not None:
        pass


def hung_up(client: Http2Client) -> None:
    """Whatever was said, of whichever protocol."""
    client.raw.rest()


def connection_error(*codes: int) -> Check:
    def check(client: Http2Client) -> None:
        assert client.end() in codes

    return check


def stream_error(*codes: int) -> Check:
    """Of the stream, or of the whole connection (RFC 9113 5.4.2)."""

    def check(client: Http2Client) -> None:
        while (frame := client.receive()) is not None:
            if isinstance(frame, RstStreamFrame) and frame.error_code in codes:
                return
        assert client.goaways, f"no error of {codes}: {client.frames[-5:]}"
        assert client.goaways[-1].error_code in codes

    return check


def reset_with(code: int) -> Check:
    def check(client: Http2Client) -> None:
        assert client.reset_of(1) == code

    return check


def acknowledges(client: Http2Client) -> None:
    client.handshake()


# --------------------------------------------------------------------------------------------------------------- cases

UNKNOWN = frame_bytes(0x16, 0, 0, bytes(8))
H2SPEC = ping(b"h2spec\0\0")
PLAIN = request_fields()


def literal(first: str) -> tuple[bytes, ...]:
    """user-agent: h2spec or x-test: h2spec as a literal of the kind that begins with this byte."""
    return tuple(
        bytes.fromhex(first + text)
        for text in (
            "0a757365722d6167656e74 06683273706563",
            "87b505b161cc5a93 849c48aca4",
            "06782d74657374 06683273706563",
            "85f2b24a84ff 849c48aca4",
        )
    )


def literals(number: int, first: str, kind: str) -> list[Case]:
    spellings = ("indexed name", "indexed name, Huffman", "new name", "new name, Huffman")
    return [
        Case(f"generic/5/{number + index}", f"literal {kind}: {spelling}", (coded(rep),), answered)
        for index, (rep, spelling) in enumerate(zip(literal(first), spellings, strict=True))
    ]


GENERIC = [
    Case("generic/1/1", "the preface", (PREFACE, settings()), acknowledges, handshake=False),
    Case("generic/2/1", "PRIORITY on an idle stream", (priority(1),), pong),
    Case(
        "generic/2/2",
        "WINDOW_UPDATE on a half-closed stream",
        (settings((INITIAL_WINDOW, 0)), get(), window_update(1, 1)),
        some_data,
    ),
    Case(
        "generic/2/3",
        "PRIORITY on a half-closed stream",
        (settings((INITIAL_WINDOW, 0)), get(), priority(1), window_update(1, 1)),
        some_data,
    ),
    Case("generic/2/4", "RST_STREAM on a half-closed stream", (get(), reset(1)), pong),
    Case("generic/2/5", "PRIORITY on a closed stream", (get(), ended, priority(1)), pong),
    Case("generic/3.1/1", "DATA", (post(), data(1, b"test", "END_STREAM")), answered),
    Case("generic/3.1/2", "several DATA", (post(), data(1, b"test"), data(1, b"test", "END_STREAM")), answered),
    Case("generic/3.1/3", "padded DATA", (post(), data(1, b"test", "END_STREAM", pad=5)), answered),
    Case("generic/3.2/1", "HEADERS", (get(),), answered),
    Case("generic/3.2/2", "padded HEADERS", (padded,), answered),
    Case("generic/3.2/3", "HEADERS with priority", (with_priority(0),), answered),
    Case("generic/3.3/1", "PRIORITY 1", (priority(1, weight=0), get()), answered),
    Case("generic/3.3/2", "PRIORITY 256", (priority(1), get()), answered),
    Case("generic/3.3/3", "PRIORITY with a dependency", (priority(3, 1, 0), get()), answered),
    Case("generic/3.3/4", "PRIORITY, exclusive", (priority(1, 0, 0, exclusive=True), get()), answered),
    Case("generic/3.3/5", "PRIORITY for a higher stream than HEADERS", (priority(3), get()), answered),
    Case("generic/3.4/1", "RST_STREAM", (get(end=False), reset(1)), pong),
    Case(
        "generic/3.5/1",
        "SETTINGS",
        (settings((1, 4096), (ENABLE_PUSH, 1), (3, 100), (INITIAL_WINDOW, 65_535), (MAX_FRAME, 16_384), (6, 100)),),
        acknowledges,
    ),
    Case("generic/3.7/1", "PING", (), pong),
    Case("generic/3.8/1", "GOAWAY", (goaway(text=b"h2spec"),), pong_or_end),
    Case("generic/3.9/1", "WINDOW_UPDATE on the connection", (window_update(0, 1),), pong),
    Case("generic/3.9/2", "WINDOW_UPDATE on a stream", (get(), window_update(1, 1)), answered),
    Case("generic/3.10/1", "CONTINUATION", (in_pieces(5),), answered),
    Case("generic/3.10/2", "several CONTINUATION", (in_pieces(5, 10),), answered),
    Case("generic/4/1", "GET", (get(),), answered),
    Case("generic/4/2", "HEAD", (get(method="HEAD"),), answered),
    Case("generic/4/3", "POST", (post(), data(1, b"test", "END_STREAM")), answered),
    Case(
        "generic/4/4",
        "POST with trailers",
        (post(1, ("trailer", "x-test")), data(1, b"test"), raw_head(("x-test", "ok"))),
        answered,
    ),
    Case("generic/5/1", "an indexed field", (coded(b"\xba"),), answered),
    *literals(2, "40", "with incremental indexing"),
    *literals(6, "00", "without indexing"),
    *literals(10, "10", "never indexed"),
    Case("generic/5/14", "a dynamic table size update", (coded(head=b"\x3f\x61"),), answered),
    Case("generic/5/15", "two dynamic table size updates", (coded(head=b"\x3f\x61\x3f\xe1\x1f"),), answered),
]

CONNECTION = [
    Case("http2/3.5/1", "the preface is answered with SETTINGS", (PREFACE, settings()), acknowledges, handshake=False),
    Case(
        "http2/3.5/2",
        "no preface",
        (b"INVALID CONNECTION PREFACE\r\n\r\n",),
        hung_up,
        handshake=False,
        rfc9113="3.3: on a port that speaks both it is a bad request of HTTP/1, which is answered with 400 and closed.",
    ),
    Case("http2/4.1/1", "a frame of unknown type", (UNKNOWN,), pong),
    Case("http2/4.1/2", "an undefined flag", (frame_bytes(PING, 0x16, 0, bytes(8)),), pong),
    Case("http2/4.1/3", "the reserved bit", (frame_bytes(PING, 0x16, 0x80000000, bytes(8)),), pong),
    Case("http2/4.2/1", "DATA of 2^14 bytes", (post(), data(1, bytes(FRAME_BYTES), "END_STREAM")), answered),
    Case(
        "http2/4.2/2",
        "DATA of more",
        (post(), data(1, bytes(FRAME_BYTES + 1), "END_STREAM")),
        stream_error(FRAME_SIZE_ERROR),
    ),
    Case(
        "http2/4.2/3",
        "HEADERS of more",
        (get(1, *((f"x-dummy{index}", "~" * 4_000) for index in range(5))),),
        connection_error(FRAME_SIZE_ERROR),
    ),
    Case(
        "http2/4.3/1",
        "a header block that cannot be decoded",
        (frame_bytes(HEADERS, 5, 1, b"\x40"),),
        connection_error(COMPRESSION_ERROR),
    ),
    Case(
        "http2/4.3/2",
        "PRIORITY inside a header block",
        (get(end=False, end_headers=False), priority(1), more()),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "http2/4.3/3",
        "HEADERS of another stream inside a header block",
        (get(end=False, end_headers=False), get(3), more()),
        connection_error(PROTOCOL_ERROR),
    ),
]

STREAMS = [
    Case("http2/5.1/1", "idle: DATA", (data(1, b"test", "END_STREAM"),), connection_error(PROTOCOL_ERROR)),
    Case("http2/5.1/2", "idle: RST_STREAM", (reset(1),), connection_error(PROTOCOL_ERROR)),
    Case("http2/5.1/3", "idle: WINDOW_UPDATE", (window_update(1, 100),), connection_error(PROTOCOL_ERROR)),
    Case("http2/5.1/4", "idle: CONTINUATION", (more(),), connection_error(PROTOCOL_ERROR)),
    Case("http2/5.1/5", "half closed: DATA", (get(), data(1, b"test", "END_STREAM")), stream_error(STREAM_CLOSED)),
    Case("http2/5.1/6", "half closed: HEADERS", (get(), get()), stream_error(STREAM_CLOSED)),
    Case("http2/5.1/7", "half closed: CONTINUATION", (get(), more()), stream_error(STREAM_CLOSED, PROTOCOL_ERROR)),
    Case(
        "http2/5.1/8",
        "reset: DATA",
        (get(end=False), reset(1), data(1, b"test", "END_STREAM")),
        stream_error(STREAM_CLOSED),
    ),
    Case("http2/5.1/9", "reset: HEADERS", (get(end=False), reset(1), get()), stream_error(STREAM_CLOSED)),
    Case(
        "http2/5.1/10",
        "reset: CONTINUATION",
        (get(end=False), reset(1), more()),
        stream_error(STREAM_CLOSED, PROTOCOL_ERROR),
    ),
    Case("http2/5.1/11", "closed: DATA", (get(), ended, data(1, b"test", "END_STREAM")), stream_error(STREAM_CLOSED)),
    Case("http2/5.1/12", "closed: HEADERS", (get(), ended, get()), connection_error(STREAM_CLOSED)),
    Case(
        "http2/5.1/13",
        "closed: CONTINUATION",
        (get(), ended, more()),
        connection_error(STREAM_CLOSED, PROTOCOL_ERROR),
    ),
    Case("http2/5.1.1/1", "an even stream", (get(2),), connection_error(PROTOCOL_ERROR)),
    Case(
        "http2/5.1.1/2",
        "a smaller stream than before",
        (get(5), get(3)),
        connection_error(PROTOCOL_ERROR, STREAM_CLOSED),
        rfc9113="5.1.1: the higher stream has closed the lower one, and 5.1 wants STREAM_CLOSED for what comes on it.",
    ),
    Case(
        "http2/5.1.2/1",
        "more streams than are allowed",
        (settings((INITIAL_WINDOW, 0)), too_many),
        stream_error(PROTOCOL_ERROR, REFUSED_STREAM),
    ),
    Case("http2/5.3.1/1", "HEADERS that depend on themselves", (with_priority(1),), stream_error(PROTOCOL_ERROR)),
    Case(
        "http2/5.3.1/2",
        "PRIORITY of a stream that depends on itself",
        (priority(1, 1),),
        pong,
        rfc9113="5.3.1 has no dependencies any more: PRIORITY is read and forgotten. h2spec wants a stream error.",
    ),
    Case("http2/5.4.1/1", "a PING on a stream ends the connection", (frame_bytes(PING, 0, 3, bytes(8)),), closed),
    Case(
        "http2/5.4.1/2",
        "a PING on a stream is answered with GOAWAY",
        (frame_bytes(PING, 0, 3, bytes(8)),),
        connection_error(PROTOCOL_ERROR),
    ),
    Case("http2/5.5/1", "an extension frame", (UNKNOWN,), pong),
    Case(
        "http2/5.5/2",
        "an extension frame inside a header block",
        (get(end_headers=False), UNKNOWN),
        connection_error(PROTOCOL_ERROR),
    ),
]

FRAMES = [
    Case("http2/6.1/1", "DATA on stream 0", (data(1, b"test").serialize()[:8] + b"\0test",), connection_error(1)),
    Case("http2/6.1/2", "DATA after END_STREAM", (post(end=True), data(1, b"test")), stream_error(STREAM_CLOSED)),
    Case(
        "http2/6.1/3",
        "DATA with more padding than payload",
        (post(1, ("content-length", "4")), frame_bytes(DATA, 9, 1, b"\x06Test")),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "http2/6.2/1",
        "HEADERS, then PRIORITY before END_HEADERS",
        (get(end=False, end_headers=False), priority(1), more()),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "http2/6.2/2",
        "HEADERS, then another stream's before END_HEADERS",
        (get(end=False, end_headers=False), get(3), more()),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "http2/6.2/3",
        "HEADERS on stream 0",
        (lambda client: frame_bytes(HEADERS, 5, 0, client.block(*PLAIN)),),
        connection_error(PROTOCOL_ERROR),
    ),
    Case("http2/6.2/4", "HEADERS with more padding than payload", (badly_padded,), stream_error(PROTOCOL_ERROR)),
    Case("http2/6.3/1", "PRIORITY on stream 0", (priority(0),), connection_error(PROTOCOL_ERROR)),
    Case(
        "http2/6.3/2",
        "PRIORITY of 4 bytes",
        (get(), frame_bytes(PRIORITY, 0, 1, b"\x80\0\0\x01")),
        stream_error(FRAME_SIZE_ERROR),
    ),
    Case("http2/6.4/1", "RST_STREAM on stream 0", (frame_bytes(RST_STREAM, 0, 0, b"\0\0\0\x08"),), connection_error(1)),
    Case("http2/6.4/2", "RST_STREAM on an idle stream", (reset(1),), connection_error(PROTOCOL_ERROR)),
    Case(
        "http2/6.4/3",
        "RST_STREAM of 3 bytes",
        (get(), frame_bytes(RST_STREAM, 0, 1, bytes(3))),
        stream_error(FRAME_SIZE_ERROR),
    ),
    Case("http2/6.5/1", "SETTINGS ACK that is not empty", (frame_bytes(SETTINGS, 1, 0, b"\0"),), connection_error(6)),
    Case(
        "http2/6.5/2",
        "SETTINGS on a stream",
        (frame_bytes(SETTINGS, 0, 1, b"\0\x03\0\0\0\x64"),),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "http2/6.5/3",
        "SETTINGS of 3 bytes",
        (frame_bytes(SETTINGS, 0, 0, b"\0\x03\0"),),
        stream_error(PROTOCOL_ERROR, FRAME_SIZE_ERROR),
    ),
    Case("http2/6.5.2/1", "ENABLE_PUSH 2", (settings((ENABLE_PUSH, 2)),), connection_error(PROTOCOL_ERROR)),
    Case(
        "http2/6.5.2/2",
        "INITIAL_WINDOW_SIZE 2^31",
        (settings((INITIAL_WINDOW, 1 << 31)),),
        connection_error(FLOW_CONTROL_ERROR),
    ),
    Case("http2/6.5.2/3", "MAX_FRAME_SIZE 2^14 - 1", (settings((MAX_FRAME, 16_383)),), connection_error(1)),
    Case("http2/6.5.2/4", "MAX_FRAME_SIZE 2^24", (settings((MAX_FRAME, 1 << 24)),), connection_error(1)),
    Case("http2/6.5.2/5", "an unknown setting", (settings((0xFF, 1)),), pong),
    Case(
        "http2/6.5.3/1",
        "INITIAL_WINDOW_SIZE twice: the last one holds",
        (settings((INITIAL_WINDOW, 100), (INITIAL_WINDOW, 1)), acknowledged, get()),
        one_byte,
    ),
    Case("http2/6.5.3/2", "SETTINGS are acknowledged", (settings((ENABLE_PUSH, 0)),), acknowledges),
    Case("http2/6.7/1", "PING", (), pong),
    Case("http2/6.7/2", "PING with ACK is not answered", (ping(b"invalid\0", ack=True),), pong),
    Case("http2/6.7/3", "PING on a stream", (frame_bytes(PING, 0, 1, bytes(8)),), connection_error(1)),
    Case("http2/6.7/4", "PING of 6 bytes", (frame_bytes(PING, 0, 0, bytes(6)),), connection_error(6)),
    Case("http2/6.8/1", "GOAWAY on a stream", (frame_bytes(GOAWAY, 0, 1, bytes(8)),), connection_error(1)),
    Case("http2/6.9/1", "WINDOW_UPDATE of 0", (window_update(0, 0),), connection_error(PROTOCOL_ERROR)),
    Case(
        "http2/6.9/2",
        "WINDOW_UPDATE of 0 on a stream",
        (get(end=False), window_update(1, 0)),
        stream_error(PROTOCOL_ERROR),
    ),
    Case(
        "http2/6.9/3", "WINDOW_UPDATE of 3 bytes", (frame_bytes(WINDOW_UPDATE, 0, 0, b"\0\0\1"),), connection_error(6)
    ),
    Case("http2/6.9.1/1", "a window of 1", (settings((INITIAL_WINDOW, 1)), acknowledged, get()), one_byte),
    Case(
        "http2/6.9.1/2",
        "the connection's window over 2^31 - 1",
        (window_update(0, (1 << 31) - 1), window_update(0, (1 << 31) - 1)),
        connection_error(FLOW_CONTROL_ERROR),
    ),
    Case(
        "http2/6.9.1/3",
        "a stream's window over 2^31 - 1",
        (post(), window_update(1, (1 << 31) - 1), window_update(1, (1 << 31) - 1)),
        reset_with(FLOW_CONTROL_ERROR),
    ),
    Case(
        "http2/6.9.2/1",
        "INITIAL_WINDOW_SIZE grows after HEADERS",
        (settings((INITIAL_WINDOW, 0)), acknowledged, get(), settings((INITIAL_WINDOW, 1)), acknowledged),
        one_byte,
    ),
    Case(
        "http2/6.9.2/2",
        "a window below zero",
        (
            *(settings((INITIAL_WINDOW, 3)), acknowledged, get(), some_data),
            *(settings((INITIAL_WINDOW, 2)), acknowledged, window_update(1, 2)),
        ),
        one_byte,
    ),
    Case(
        "http2/6.9.2/3",
        "INITIAL_WINDOW_SIZE over the largest window",
        (settings((INITIAL_WINDOW, 1 << 31)),),
        connection_error(FLOW_CONTROL_ERROR),
    ),
    Case("http2/6.10/1", "two CONTINUATION", (get(end_headers=False), more(end=False), more()), answered),
    Case(
        "http2/6.10/2",
        "CONTINUATION, then DATA",
        (post(end_headers=False), more(end=False), data(1, b"test", "END_STREAM")),
        connection_error(PROTOCOL_ERROR),
    ),
    Case("http2/6.10/3", "CONTINUATION on stream 0", (get(end_headers=False), more(0)), connection_error(1)),
    Case("http2/6.10/4", "CONTINUATION after END_HEADERS", (get(), more()), connection_error(PROTOCOL_ERROR)),
    Case(
        "http2/6.10/5",
        "CONTINUATION after a CONTINUATION with END_HEADERS",
        (get(end_headers=False), more(), more()),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "http2/6.10/6",
        "CONTINUATION after DATA",
        (post(end_headers=False), data(1, b"test", "END_STREAM"), more(end=False), more(0)),
        connection_error(PROTOCOL_ERROR),
    ),
    Case("http2/7/1", "GOAWAY with an unknown code", (goaway(code=0xFF),), pong_or_end),
    Case("http2/7/2", "RST_STREAM with an unknown code", (post(), reset(1, 0xFF)), pong),
]

malformed = stream_error(PROTOCOL_ERROR)


def too_long(client: Http2Client) -> None:
    """The endpoint has a whole request before the byte too many comes, and may have answered by then (RFC 9113 8.1)."""
    stream_error(PROTOCOL_ERROR, NO_ERROR)(client)
    answered = any("END_STREAM" in frame.flags for frame in client.frames)
    assert client.goaways or answered == (client.frames[-1].error_code == NO_ERROR)


MESSAGES = [
    Case(
        "http2/8.1/1",
        "trailers without END_STREAM",
        (post(), data(1, b"test"), raw_head(("x-test", "ok"), end=False)),
        malformed,
    ),
    Case("http2/8.1.2/1", "a name in upper case", (get(1, ("X-TEST", "ok")),), malformed),
    Case("http2/8.1.2.1/1", "an unknown pseudo-header field", (raw_head(*PLAIN, (":test", "ok")),), malformed),
    Case("http2/8.1.2.1/2", "a response's pseudo-header field", (raw_head(*PLAIN, (":status", "200")),), malformed),
    Case(
        "http2/8.1.2.1/3",
        "a pseudo-header field in trailers",
        (post(), data(1, b"test"), raw_head((":method", "POST"))),
        malformed,
    ),
    Case("http2/8.1.2.1/4", "a pseudo-header field after others", (raw_head(("x-test", "ok"), *PLAIN),), malformed),
    Case("http2/8.1.2.2/1", "connection", (get(1, ("connection", "keep-alive")),), malformed),
    Case("http2/8.1.2.2/2", "te: trailers, deflate", (get(1, ("te", "trailers, deflate")),), malformed),
    Case("http2/8.1.2.3/1", ":path empty", (raw_head(*without(PLAIN, ":path"), (":path", "")),), malformed),
    *(
        Case(f"http2/8.1.2.3/{number}", f"no {name}", (raw_head(*without(PLAIN, name)),), malformed)
        for number, name in ((2, ":method"), (3, ":scheme"), (4, ":path"))
    ),
    *(
        Case(f"http2/8.1.2.3/{number}", f"two {PLAIN[index][0]}", (raw_head(*PLAIN, PLAIN[index]),), malformed)
        for number, index in ((5, 0), (6, 1), (7, 2))
    ),
    Case(
        "http2/8.1.2.6/1",
        "content-length less than DATA",
        (post(1, ("content-length", "1")), data(1, b"test", "END_STREAM")),
        too_long,
    ),
    Case(
        "http2/8.1.2.6/2",
        "content-length less than several DATA",
        (post(1, ("content-length", "1")), data(1, b"test"), data(1, b"test", "END_STREAM")),
        too_long,
    ),
    Case("http2/8.2/1", "PUSH_PROMISE", (pushing,), connection_error(PROTOCOL_ERROR)),
]

undecodable = connection_error(COMPRESSION_ERROR)

HPACK = [
    Case("hpack/2.3.3/1", "an index beyond both tables", (coded(b"\xc6"),), undecodable),
    Case("hpack/2.3.3/2", "a literal's name beyond both tables", (coded(b"\x7f\x07\x00"),), undecodable),
    Case("hpack/4.2/1", "a table size update at the end of a block", (coded(b"\x21"),), undecodable),
    Case(
        "hpack/5.2/1",
        "Huffman padding of more than 7 bits",
        (coded(bytes.fromhex("0085f2b24a84ff8449509fff")),),
        undecodable,
    ),
    Case("hpack/5.2/2", "Huffman padding of zeros", (coded(bytes.fromhex("0085f2b24a84ff83495090")),), undecodable),
    Case("hpack/5.2/3", "the EOS symbol", (coded(bytes.fromhex("0085f2b24a87fffffffd25427f")),), undecodable),
    Case("hpack/6.1/1", "index 0", (coded(b"\x80"),), undecodable),
    Case("hpack/6.3/1", "a table size update over the limit", (larger_table,), undecodable),
]

CASES = [*GENERIC, *CONNECTION, *STREAMS, *FRAMES, *MESSAGES, *HPACK]
