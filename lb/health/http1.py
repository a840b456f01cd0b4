"""A check over HTTP/1.1, by h11."""

from __future__ import annotations

import h11

from lb.health.expected import Answer, Expected
from lb.health.talk import CLOSED, Asked, own_headers
from lb.health.verdict import Verdict, printable
from lb.model.health import HealthCheck

_END = h11.EndOfMessage()
_BEGINNING = b"HTTP/"


class Http1Question:
    """A request."""

    def __init__(self, check: HealthCheck, asked: Asked) -> None:
        self._expected = Expected(check)
        headers = [("Host", asked.host), *own_headers(check), ("Connection", "close")]
        self._request = h11.Request(method=check.method, target=check.path, headers=headers)

    def open(self) -> Http1Talk:
        return Http1Talk(self._request, Answer(self._expected))


class Http1Talk:
    """One request and its response."""

    __slots__ = ("_answer", "_connection", "_first", "_request")

    def __init__(self, request: h11.Request, answer: Answer) -> None:
        self._connection = h11.Connection(h11.CLIENT)
        self._request = request
        self._answer = answer
        self._first = b""

    def begin(self) -> bytes:
        return (self._connection.send(self._request) or b"") + (self._connection.send(_END) or b"")

    def receive(self, data: bytes) -> Verdict | None:
        if len(self._first) < len(_BEGINNING):
            self._first += data[: len(_BEGINNING) - len(self._first)]
            if not _BEGINNING.startswith(self._first):  # h11 would wait for a whole head of something else
                return Verdict("bad-response", "no HTTP/1.1")
        try:
            self._connection.receive_data(data)
            return self._read()
        except h11.RemoteProtocolError as error:
            return Verdict("bad-response", printable(f"no HTTP/1.1: {error}"))

    def take_output(self) -> bytes:
        return b""

    def end(self) -> Verdict:
        if self._connection.their_state is h11.SEND_RESPONSE:
            return CLOSED
        return self.receive(b"") or CLOSED

    def _read(self) -> Verdict | None:
        verdict = None
        while verdict is None:
            event = self._connection.next_event()
            if isinstance(event, h11.Response):
                verdict = self._answer.take_status(event.status_code)
            elif isinstance(event, h11.Data):
                verdict = self._answer.take_body(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                verdict = self._answer.end()
            elif not isinstance(event, h11.InformationalResponse):
                break  # it needs more, or has been closed
        return verdict
