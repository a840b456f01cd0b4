"""A check over HTTP/2, by h2: one stream on a connection of its own. What comes in it is judged by subclasses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from lb.health.expected import Answer, Expected
from lb.health.talk import CLOSED, Asked, own_headers
from lb.health.verdict import Verdict, printable
from lb.model.health import HealthCheck

Headers = list[tuple[str, str]]

_CONFIG = h2.config.H2Configuration(client_side=True, header_encoding=None)
_HEADER_BYTES = 16_384
_SETTINGS = 4


class Http2Stream(ABC):
    """One request and its response, as a stream."""

    def __init__(self, headers: Headers, body: bytes = b"") -> None:
        self._connection = h2.connection.H2Connection(_CONFIG)
        self._headers = headers
        self._body = body
        self._first = b""

    def begin(self) -> bytes:
        connection = self._connection
        codes = h2.settings.SettingCodes
        connection.local_settings = h2.settings.Settings(
            client=True, initial_values={codes.ENABLE_PUSH: 0, codes.MAX_HEADER_LIST_SIZE: _HEADER_BYTES}
        )
        connection.initiate_connection()
        stream = connection.get_next_available_stream_id()
        connection.send_headers(stream, self._headers, end_stream=not self._body)
        if self._body:
            connection.send_data(stream, self._body, end_stream=True)
        return self.take_output()

    def receive(self, data: bytes) -> Verdict | None:
        if len(self._first) < 4:
            self._first += data[: 4 - len(self._first)]
            if self._first[3:] not in (b"", bytes([_SETTINGS])):  # h2 would wait for a whole frame of something else
                return Verdict("bad-response", "no HTTP/2: it does not begin with SETTINGS")
        try:
            events = self._connection.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            return Verdict("bad-response", printable(f"no HTTP/2: {error or type(error).__name__}"))
        for event in events:
            verdict = self._take(event)
            if verdict is not None:
                return verdict
        return None

    def take_output(self) -> bytes:
        return self._connection.data_to_send()

    def end(self) -> Verdict:
        return CLOSED

    def _take(self, event: h2.events.Event) -> Verdict | None:
        if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
            lines = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers or ())
            return self.take_headers(dict(lines))
        if isinstance(event, h2.events.DataReceived):
            self._connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            return self.take_data(event.data or b"")
        if isinstance(event, h2.events.StreamEnded):
            return self.take_end()
        if isinstance(event, h2.events.StreamReset):
            return Verdict("closed", f"the endpoint reset the stream: {_error_name(event.error_code)}")
        if isinstance(event, h2.events.ConnectionTerminated):
            return Verdict("closed", f"the endpoint sent GOAWAY: {_error_name(event.error_code)}")
        return None

    @abstractmethod
    def take_headers(self, headers: dict[str, str]) -> Verdict | None:
        """The response's head, or its trailers."""

    @abstractmethod
    def take_data(self, data: bytes) -> Verdict | None:
        """A part of the body."""

    @abstractmethod
    def take_end(self) -> Verdict:
        """The response is complete."""


class Http2Question:
    """A request of HTTP."""

    def __init__(self, check: HealthCheck, asked: Asked) -> None:
        self._expected = Expected(check)
        self._headers = request_headers(check.method, check.path, asked, own_headers(check))

    def open(self) -> Http2Talk:
        return Http2Talk(self._headers, Answer(self._expected))


class Http2Talk(Http2Stream):
    """A request of HTTP and its response."""

    def __init__(self, headers: Headers, answer: Answer) -> None:
        super().__init__(headers)
        self._answer = answer

    def take_headers(self, headers: dict[str, str]) -> Verdict | None:
        return self._answer.take_status(status_of(headers)) if ":status" in headers else None

    def take_data(self, data: bytes) -> Verdict | None:
        return self._answer.take_body(data)

    def take_end(self) -> Verdict:
        return self._answer.end()


def request_headers(method: str, path: str, asked: Asked, own: Iterable[tuple[str, str]]) -> Headers:
    """A header block."""
    scheme = "https" if asked.is_tls else "http"
    pseudo = [(":method", method), (":scheme", scheme), (":authority", asked.host), (":path", path)]
    return pseudo + [(name.lower(), value) for name, value in own]


def status_of(headers: dict[str, str]) -> int:
    """0 for what is none."""
    text = headers.get(":status", "")
    return int(text) if len(text) == 3 and text.isascii() and text.isdigit() else 0


def _error_name(code: h2.errors.ErrorCodes | int | None) -> str:
    return code.name if isinstance(code, h2.errors.ErrorCodes) else f"code {code}"
