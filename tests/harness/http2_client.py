"""An HTTP/2 client that sends exactly the frames it is told, and holds lb to RFC 9113 in everything that it reads.

Whatever lb writes must pass `_check`: windows, stream states, header blocks, lengths. It shares nothing with lb but the
RFC; hpack and hyperframe do the encoding.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.harness.client import RawClient, whole
from tests.harness.messages import Headers, Truncated

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 16_384
WINDOW = 65_535
"""Windows before anybody says otherwise (RFC 9113 6.9.2)."""

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = 9, 10, 11

_CONNECTION_SPECIFIC = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te"}

Part = Frame | bytes
Field = tuple[str | bytes, str | bytes]


class Violation(AssertionError):
    """lb sent what no server may send."""


@dataclass
class Stream:
    """What has come on one stream."""

    id: int
    method: bytes = b"GET"
    status: int = 0
    headers: Headers = field(default_factory=Headers)
    interim: list[tuple[int, Headers]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    trailers: Headers = field(default_factory=Headers)
    ended: bool = False
    """END_STREAM has come."""
    reset: int | None = None
    """Error code of the RST_STREAM that has come."""
    window: int = WINDOW
    """What lb may still send on it."""
    room: int = WINDOW
    """What may still be sent to lb."""
    aborted: bool = False
    """We have sent RST_STREAM, so what still comes was on its way."""

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None


def frame_bytes(kind: int, flags: int, stream: int, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """Any frame, right or wrong; `length` lies about the payload's."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def data(stream: int, payload: bytes = b"", *flags: str, pad: int | None = None) -> DataFrame:
    frame = DataFrame(stream, payload, flags=[*flags, *(["PADDED"] if pad is not None else [])])
    frame.pad_length = pad or 0
    return frame


def reset(stream: int, code: int = CANCEL) -> RstStreamFrame:
    return RstStreamFrame(stream, code)


def window_update(stream: int, increment: int) -> bytes:
    """Also those that are wrong: hyperframe would refuse to write them."""
    return frame_bytes(WindowUpdateFrame.type, 0, stream, increment.to_bytes(4, "big"))


def settings(*values: tuple[int, int]) -> bytes:
    """In this order, repetitions included."""
    payload = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in values)
    return frame_bytes(SettingsFrame.type, 0, 0, payload)


def ping(opaque: bytes = bytes(8), *, ack: bool = False) -> PingFrame:
    return PingFrame(0, opaque, flags=["ACK"] if ack else [])


def priority(stream: int, depends_on: int = 0, weight: int = 255, *, exclusive: bool = False) -> bytes:
    """A PRIORITY frame, which RFC 9113 5.3 has made obsolete."""
    payload = (depends_on | (0x80000000 if exclusive else 0)).to_bytes(4, "big") + bytes((weight,))
    return frame_bytes(2, 0, stream, payload)


def goaway(last: int = 0, code: int = NO_ERROR, text: bytes = b"") -> GoAwayFrame:
    return GoAwayFrame(0, last_stream_id=last, error_code=code, additional_data=text)


class Http2Client:
    """Speaks on a connection that is there. The preface is sent at once unless `preface` is empty.

    `announce` are the first SETTINGS. lb's SETTINGS and PINGs are acknowledged, and windows given back as data comes,
    unless that is switched off.
    """

    def __init__(
        self,
        raw: RawClient,
        *,
        announce: Sequence[tuple[int, int]] = (),
        preface: bytes = PREFACE,
        cut: Callable[[bytes], Iterable[bytes]] = whole,
        credit: bool = True,
        acknowledge: bool = True,
    ) -> None:
        self.raw = raw
        self.cut = cut
        self.credit = credit
        self.acknowledge = acknowledge
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder(max_header_list_size=1 << 20)
        self.streams: dict[int, Stream] = {}
        self.settings: dict[int, int] = {}
        """What lb has announced."""
        self.window = WINDOW
        """What lb may still send on the whole connection."""
        self.room = WINDOW
        self.frames: list[Frame] = []
        """All that has come."""
        self.goaways: list[GoAwayFrame] = []
        self.closed = False
        self._next = 1
        self._methods: dict[int, bytes] = {}
        self._initial_window = WINDOW
        self._unconfirmed: list[int | None] = []
        """INITIAL_WINDOW_SIZE of our SETTINGS that lb has not acknowledged; None: not among them."""
        self._block: tuple[HeadersFrame, bytearray] | None = None
        if preface:
            self.send(preface, settings(*announce))

    # -------------------------------------------------------------------------------------------------------- sending

    def send(self, *parts: Part) -> None:
        """All in one go, cut as the client was told."""
        joined = b"".join(part if isinstance(part, bytes) else part.serialize() for part in parts)
        for kind, flags, stream, payload in _walk(joined):
            self._note_sent(kind, flags, stream, payload)
        self.raw.send(self.cut(joined))

    def _note_sent(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HeadersFrame.type and stream % 2 and stream not in self.streams:
            room = self.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, WINDOW)
            method = self._methods.get(stream, b"GET")
            self.streams[stream] = Stream(stream, method, window=self._largest_initial_window(), room=room)
            self._next = max(self._next, stream + 2)
        elif kind == RstStreamFrame.type and stream in self.streams:
            self.streams[stream].aborted = True
        elif kind == DataFrame.type:
            self.room -= len(payload)
            if stream in self.streams:
                self.streams[stream].room -= len(payload)
        elif kind == WindowUpdateFrame.type and len(payload) == 4:
            increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
            if stream == 0:
                self.window += increment
            elif stream in self.streams:
                self.streams[stream].window += increment
        elif kind == SettingsFrame.type and not flags & 1:
            self._note_settings(payload)

    def _note_settings(self, payload: bytes) -> None:
        size = None
        for at in range(0, len(payload) - 5, 6):
            if int.from_bytes(payload[at : at + 2], "big") == SettingsFrame.INITIAL_WINDOW_SIZE:
                size = int.from_bytes(payload[at + 2 : at + 6], "big")
        # What grows may be used as soon as it is sent; what shrinks holds when lb has acknowledged it (RFC 9113 6.5.3).
        before = self._largest_initial_window()
        self._unconfirmed.append(size)
        self._move_windows(self._largest_initial_window() - before)

    def _largest_initial_window(self) -> int:
        return max([self._initial_window, *(size for size in self._unconfirmed if size is not None)])

    def _move_windows(self, difference: int) -> None:
        for stream in self.streams.values():
            stream.window += difference

    def block(self, *fields: Field) -> bytes:
        """A header block, in the order given."""
        return self.encoder.encode([(_bytes(name), _bytes(value)) for name, value in fields])

    def headers(self, stream: int, *fields: Field, end: bool = True, end_headers: bool = True) -> HeadersFrame:
        for name, value in fields:
            if _bytes(name) == b":method":
                self._methods.setdefault(stream, _bytes(value))
        flags = [name for name, wanted in (("END_STREAM", end), ("END_HEADERS", end_headers)) if wanted]
        return HeadersFrame(stream, self.block(*fields), flags=flags)

    def long_headers(self, stream: int, *fields: Field, size: int = 16_000, end: bool = True) -> list[Part]:
        """A head in HEADERS and as many CONTINUATION as pieces of this size make."""
        whole = self.headers(stream, *fields, end=end, end_headers=False)
        block = whole.data
        whole.data = block[:size]
        rest = [ContinuationFrame(stream, block[start : start + size]) for start in range(size, len(block), size)]
        [whole, *rest][-1].flags.add("END_HEADERS")
        return [whole, *rest]

    def request(
        self,
        target: str = "/",
        *fields: Field,
        method: str = "GET",
        host: str = "wire.test",
        scheme: str = "http",
        body: bytes | None = None,
        trailers: Sequence[Field] = (),
        end: bool = True,
        stream: int | None = None,
    ) -> int:
        """Send a well-formed request, its whole body in frames of the largest size; its stream."""
        number = self._next if stream is None else stream
        pseudo = request_fields(target, method=method, host=host, scheme=scheme)
        last = body is None and not trailers
        parts: list[Part] = [self.headers(number, *pseudo, *fields, end=end and last)]
        for start in range(0, len(body or b""), FRAME_BYTES):
            piece = (body or b"")[start : start + FRAME_BYTES]
            ends = end and not trailers and start + FRAME_BYTES >= len(body or b"")
            parts.append(data(number, piece, *(["END_STREAM"] if ends else [])))
        if body == b"" and end and not trailers:
            parts.append(data(number, b"", "END_STREAM"))
        if trailers:
            parts.append(self.headers(number, *trailers))
        self.send(*parts)
        return number

    def upload(self, stream: int, pieces: Iterable[bytes | memoryview], *, end: bool = True) -> None:
        """Send a body as fast as lb's windows allow."""
        for piece in pieces:
            left = memoryview(piece)
            while left:
                room = min(self.room, self.streams[stream].room, FRAME_BYTES, len(left))
                if room <= 0:
                    assert self.receive() is not None, f"lb closed while stream {stream} waited for window"
                    assert self.streams[stream].reset is None, f"lb reset stream {stream}"
                    continue
                self.send(data(stream, bytes(left[:room])))
                left = left[room:]
        if end:
            self.send(data(stream, b"", "END_STREAM"))

    # -------------------------------------------------------------------------------------------------------- reading

    def receive(self) -> Frame | None:
        """The next frame, checked and accounted for; None at the end of the connection."""
        if self.closed:
            return None
        try:
            if not self.raw.reader.buffer and not self.raw.reader.fill():
                self.closed = True
                return None
            frame, length = Frame.parse_frame_header(memoryview(self.raw.reader.take(9)))
            payload = self.raw.reader.take(length)
        except (ConnectionResetError, ssl.SSLEOFError):
            self.closed = True
            return None
        except Truncated as error:
            raise Violation(f"the connection ended inside a frame: {error}") from None
        if length > FRAME_BYTES:
            raise Violation(f"a frame of {length} bytes")
        if isinstance(frame, ExtensionFrame):
            raise Violation(f"a frame of unknown type {frame.type}")
        frame.parse_body(memoryview(payload))
        self.frames.append(frame)
        self._check(frame, length)
        return frame

    def _check(self, frame: Frame, length: int) -> None:
        if len(self.frames) == 1 and not (isinstance(frame, SettingsFrame) and "ACK" not in frame.flags):
            raise Violation(f"the first frame is {frame} (RFC 9113 3.4)")
        if any(goaway.error_code for goaway in self.goaways):
            raise Violation(f"{frame} after a GOAWAY that ends the connection")
        if (self._block is not None) != isinstance(frame, ContinuationFrame):
            raise Violation(f"{frame} inside, or CONTINUATION outside of a header block (RFC 9113 6.10)")
        match frame:
            case HeadersFrame() | ContinuationFrame():
                self._check_block(frame)
            case DataFrame():
                self._check_data(frame, length)
            case RstStreamFrame():
                stream = self._stream(frame)
                if stream.ended and frame.error_code != NO_ERROR and not stream.aborted:
                    raise Violation(f"{frame} after END_STREAM")
                stream.reset = frame.error_code
            case WindowUpdateFrame():
                self._check_window_update(frame)
            case SettingsFrame():
                self._check_settings(frame)
            case PingFrame():
                if "ACK" not in frame.flags and self.acknowledge:
                    self.send(ping(frame.opaque_data, ack=True))
            case GoAwayFrame():
                if self.goaways and frame.last_stream_id > self.goaways[-1].last_stream_id:
                    raise Violation("the last stream of a GOAWAY has grown (RFC 9113 6.8)")
                self.goaways.append(frame)
            case _:
                raise Violation(f"{frame} is no frame that lb has to send")

    def _stream(self, frame: Frame) -> Stream:
        stream = self.streams.get(frame.stream_id)
        if stream is None:
            raise Violation(f"{frame} on a stream that is idle")
        if stream.reset is not None or (stream.ended and not isinstance(frame, RstStreamFrame | WindowUpdateFrame)):
            raise Violation(f"{frame} on a stream that is closed")
        return stream

    def _check_block(self, frame: HeadersFrame | ContinuationFrame) -> None:
        if isinstance(frame, HeadersFrame):
            self._stream(frame)
            self._block = (frame, bytearray(frame.data))
        assert self._block is not None
        first, text = self._block
        if isinstance(frame, ContinuationFrame):
            if frame.stream_id != first.stream_id:
                raise Violation("CONTINUATION of another stream")
            text += frame.data
        if "END_HEADERS" in frame.flags:
            self._block = None
            stream = self.streams[first.stream_id]
            fields = Headers((name, value) for name, value in self.decoder.decode(bytes(text), raw=True))
            check_fields(stream, fields, ends="END_STREAM" in first.flags)
            if "END_STREAM" in first.flags:
                self._end(stream)

    def _check_data(self, frame: DataFrame, length: int) -> None:
        stream = self._stream(frame)
        if not stream.status:
            raise Violation("DATA before the response's head")
        self.window -= length
        stream.window -= length
        if self.window < 0 or stream.window < 0 < length:
            raise Violation(f"{frame} exceeds a window: {self.window} of the connection, {stream.window} of the stream")
        stream.body += frame.data
        if "END_STREAM" in frame.flags:
            self._end(stream)
        if self.credit and length:
            updates = [window_update(0, length)]
            if not stream.over:
                updates.append(window_update(stream.id, length))
            self.send(*updates)

    def _end(self, stream: Stream) -> None:
        stream.ended = True
        length = stream.headers.get("content-length")
        if stream.method == b"HEAD" or stream.status in (204, 304):
            if stream.body:
                raise Violation(f"{len(stream.body)} bytes of a response that has no body")
        elif length is not None and int(length) != len(stream.body) and stream.headers.get("x-wrong-length") is None:
            raise Violation(f"content-length {length!r} and {len(stream.body)} bytes (RFC 9113 8.1.1)")

    def _check_window_update(self, frame: WindowUpdateFrame) -> None:
        if frame.stream_id == 0:
            self.room += frame.window_increment
            return
        stream = self._stream(frame)
        stream.room += frame.window_increment

    def _check_settings(self, frame: SettingsFrame) -> None:
        if "ACK" in frame.flags:
            if not self._unconfirmed:
                raise Violation("an acknowledgement of SETTINGS that were not sent")
            before = self._largest_initial_window()
            size = self._unconfirmed.pop(0)
            self._initial_window = self._initial_window if size is None else size
            self._move_windows(self._largest_initial_window() - before)
            return
        grown = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, WINDOW) - self.settings.get(
            SettingsFrame.INITIAL_WINDOW_SIZE, WINDOW
        )
        for stream in self.streams.values():
            stream.room += grown
        self.settings.update(frame.settings)
        if self.acknowledge:
            self.send(frame_bytes(SettingsFrame.type, 1, 0))

    # -------------------------------------------------------------------------------------------------------- waiting

    def until(self, wanted: Callable[[Frame], bool], what: str) -> Frame:
        """The next frame that is wanted; AssertionError when the connection ends before it."""
        while (frame := self.receive()) is not None:
            if wanted(frame):
                return frame
        raise AssertionError(f"the connection ended before {what}; the last frames were {self.frames[-5:]}")

    def handshake(self) -> None:
        """Both sides know each other's settings."""
        self.until(
            lambda frame: isinstance(frame, SettingsFrame) and "ACK" in frame.flags, "SETTINGS were acknowledged"
        )

    def settle(self, opaque: bytes = b"settled?") -> None:
        """lb has handled all that was sent before, and what it said to that has been read."""
        self.send(ping(opaque))
        self.until(
            lambda frame: isinstance(frame, PingFrame) and "ACK" in frame.flags and frame.opaque_data == opaque,
            "a PING was answered",
        )

    def response(self, stream: int) -> Stream:
        """The whole response; AssertionError when the stream was reset, or the connection ended, before its end."""
        while not (found := self.streams[stream]).over:
            assert self.receive() is not None, f"the connection ended before stream {stream} did: {self.frames[-5:]}"
        assert found.ended, f"stream {stream} was reset with {found.reset}"
        return found

    def ask(self, target: str = "/", *fields: Field, **options: object) -> Stream:
        """A request and its response."""
        return self.response(self.request(target, *fields, **options))  # type: ignore[arg-type]

    def reset_of(self, stream: int) -> int:
        """The error code with which lb ends the stream."""
        while self.streams[stream].reset is None:
            assert self.receive() is not None, f"the connection ended before stream {stream} was reset"
        return self.streams[stream].reset or 0

    def end(self) -> int | None:
        """Read to the connection's end; the error code of the last GOAWAY, or None when there was none."""
        while self.receive() is not None:
            pass
        return self.goaways[-1].error_code if self.goaways else None

    def close(self) -> None:
        self.raw.close()

    def __enter__(self) -> Http2Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def request_fields(
    target: str = "/", *, method: str = "GET", host: str = "wire.test", scheme: str = "http"
) -> list[Field]:
    """The pseudo-header fields of a request."""
    return [(":method", method), (":scheme", scheme), (":path", target), (":authority", host)]


def without(fields: Iterable[Field], *names: str) -> list[Field]:
    return [item for item in fields if item[0] not in names]


def replaced(fields: Iterable[Field], changes: Mapping[str, str | bytes]) -> list[Field]:
    return [(name, changes.get(str(name), value)) for name, value in fields]


def check_fields(stream: Stream, fields: Headers, *, ends: bool) -> None:
    """What RFC 9113 8.2 and 8.3.2 ask of the field sections of a response; they are added to the stream."""
    statuses = [value for name, value in fields if name == b":status"]
    regular = Headers(item for item in fields if not item[0].startswith(b":"))
    if [name for name, _ in fields if name.startswith(b":")] != [b":status"] * len(statuses) or (
        statuses and fields[0][0] != b":status"
    ):
        raise Violation(f"pseudo-header fields {fields}")
    for name, value in regular:
        if name != name.lower() or not name or name in _CONNECTION_SPECIFIC:
            raise Violation(f"field {name!r} in a response")
        if value.strip(b" \t") != value or any(byte < 32 and byte != 9 for byte in value) or b"\x7f" in value:
            raise Violation(f"value {value!r} of {name!r}")
    if stream.status:
        if statuses or not ends:
            raise Violation(f"trailers {fields} with a status, or not at the end")
        stream.trailers = regular
        return
    if len(statuses) != 1 or len(statuses[0]) != 3:
        raise Violation(f"status {statuses}")
    if int(statuses[0]) < 200:
        if ends or int(statuses[0]) == 101:
            raise Violation(f"{statuses[0]!r} with END_STREAM, or 101 (RFC 9113 8.6)")
        stream.interim.append((int(statuses[0]), regular))
        return
    stream.status = int(statuses[0])
    stream.headers = regular


def _walk(stream: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of the frames in what is sent; what is none ends it."""
    at = len(PREFACE) if stream.startswith(PREFACE) else 0
    while at + 9 <= len(stream):
        length = int.from_bytes(stream[at : at + 3], "big")
        number = int.from_bytes(stream[at + 5 : at + 9], "big") & 0x7FFFFFFF
        yield stream[at + 3], stream[at + 4], number, stream[at + 9 : at + 9 + length]
        at += 9 + length


def _bytes(text: str | bytes) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else text
