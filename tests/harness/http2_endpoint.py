"""An HTTP/2 endpoint that sends exactly the frames it is told, right or wrong, on lb's connections to it.

It is a script for a RawBackend; hpack and hyperframe do the encoding. Servers that keep to the rules: http_server.py.
"""

from __future__ import annotations

from collections.abc import Callable

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.harness.backend import BackendConnection
from tests.harness.http2_client import PREFACE, Part, data, settings
from tests.harness.messages import Headers


class Ended(Exception):
    """lb has closed the connection."""


class Asked:
    """A request of which the head has come."""

    def __init__(self, stream: int, fields: Headers, *, ended: bool) -> None:
        self.stream = stream
        self.fields = fields
        self.ended = ended

    @property
    def path(self) -> str:
        return (self.fields.get(":path") or b"").decode()


def last(stream: int, payload: bytes = b"") -> DataFrame:
    """DATA that ends its stream."""
    return data(stream, payload, "END_STREAM")


class FrameConnection:
    """lb's connection, frame by frame. The preface is read and SETTINGS are sent at once.

    SETTINGS and PINGs of lb's are answered while something is waited for.
    """

    def __init__(self, connection: BackendConnection, *announce: tuple[int, int]) -> None:
        self.raw = connection
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder(max_header_list_size=1 << 20)
        self.frames: list[Frame] = []
        """All that has come."""
        self.requests: dict[int, Asked] = {}
        self.ended = False
        if self.raw.reader.take(len(PREFACE)) != PREFACE:
            raise AssertionError("no preface")
        self.send(settings(*announce))

    def send(self, *parts: Part) -> None:
        """All in one go; whether lb is still there is not our business."""
        self.raw.send(b"".join(part if isinstance(part, bytes) else part.serialize() for part in parts))

    def head(
        self, stream: int, *fields: tuple[str | bytes, str | bytes], end: bool = False, end_headers: bool = True
    ) -> HeadersFrame:
        """Encoded in the order given, whatever it is."""
        flags = [name for name, wanted in (("END_STREAM", end), ("END_HEADERS", end_headers)) if wanted]
        return HeadersFrame(stream, self.encoder.encode(list(fields)), flags=flags)

    def answer(self, stream: int, body: bytes = b"ok", status: int = 200) -> None:
        self.send(self.head(stream, (":status", str(status))), last(stream, body))

    def next(self) -> Frame:
        """The next frame. Ended."""
        if not self.raw.reader.buffer and not self.raw.reader.fill():
            self.ended = True
            raise Ended
        frame, length = Frame.parse_frame_header(memoryview(self.raw.reader.take(9)))
        frame.parse_body(memoryview(self.raw.reader.take(length)))
        self.frames.append(frame)
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.send(SettingsFrame(0, flags=["ACK"]))
        elif isinstance(frame, PingFrame) and "ACK" not in frame.flags:
            self.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
        elif isinstance(frame, HeadersFrame):
            self._note(frame)
        return frame

    def _note(self, frame: HeadersFrame) -> None:
        block = bytes(frame.data)
        flags = frame.flags
        while "END_HEADERS" not in flags:
            more = self.next()
            assert isinstance(more, ContinuationFrame)
            block += more.data
            flags = more.flags
        fields = Headers((bytes(name), bytes(value)) for name, value in self.decoder.decode(block, raw=True))
        self.requests[frame.stream_id] = Asked(frame.stream_id, fields, ended="END_STREAM" in frame.flags)

    def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """The next frame that is wanted. Ended."""
        while not wanted(frame := self.next()):
            pass
        return frame

    def request(self) -> Asked:
        """The next request's head. Ended."""
        return self.requests[self.until(lambda frame: isinstance(frame, HeadersFrame)).stream_id]

    def open_window(self, stream: int, size: int) -> None:
        self.send(WindowUpdateFrame(stream, window_increment=size), WindowUpdateFrame(0, window_increment=size))
