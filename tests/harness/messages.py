"""A strict HTTP/1.1 reader, written for the tests and sharing nothing with lb.

It accepts only what RFC 9112 lets a *sender* produce. Whatever lb writes, to clients or to backends, must pass it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([!-~]+) HTTP/(1\.[01])")
_STATUS_LINE = re.compile(rb"HTTP/(1\.1) ([1-9][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
_HEADER_LINE = re.compile(rb"(" + TOKEN + rb"):[ \t]*((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*")
_CANONICAL_LENGTH = re.compile(rb"0|[1-9][0-9]*")
_CHUNK_LINE = re.compile(rb"[0-9A-Fa-f]{1,16}")

Header = tuple[bytes, bytes]


class Malformed(Exception):
    """Bytes that no sender may produce."""


class Truncated(Exception):
    """The peer ended in the middle of a message."""

    def __init__(self, seen: bytes) -> None:
        super().__init__(f"ended after {len(seen)} bytes: {seen[:200]!r}")
        self.seen = seen


class Headers(list[Header]):
    """Header lines in order."""

    def all(self, name: str) -> list[bytes]:
        wanted = name.lower().encode()
        return [value for key, value in self if key.lower() == wanted]

    def get(self, name: str) -> bytes | None:
        """The value of the only line with this name; Malformed when there are several."""
        values = self.all(name)
        if len(values) > 1:
            raise Malformed(f"{len(values)} lines of {name}")
        return values[0] if values else None

    def tokens(self, name: str) -> set[bytes]:
        """The comma-separated elements of all lines, in lower case."""
        return {token.strip().lower() for value in self.all(name) for token in value.split(b",") if token.strip()}


@dataclass
class Request:
    method: bytes
    target: bytes
    version: bytes
    headers: Headers
    body: bytes = b""
    trailers: Headers = field(default_factory=Headers)
    raw_head: bytes = b""


@dataclass
class Response:
    status: int
    reason: bytes
    headers: Headers
    body: bytes = b""
    trailers: Headers = field(default_factory=Headers)
    interim: list[Response] = field(default_factory=list)
    framing: str = "none"
    """`length`, `chunked`, `close` or `none` (no body by its nature)."""
    chunks: int = 0

    @property
    def closes(self) -> bool:
        """Whether the sender says that this is the connection's last response."""
        return self.framing == "close" or b"close" in self.headers.tokens("connection")


class Reader:
    """Reads messages from a source of bytes. `more` returns b"" at the end of the stream."""

    def __init__(self, more: Callable[[], bytes]) -> None:
        self._more = more
        self.buffer = bytearray()
        self.ended = False

    def fill(self) -> bool:
        """Read once more; False at the end of the stream."""
        if self.ended:
            return False
        data = self._more()
        if not data:
            self.ended = True
            return False
        self.buffer += data
        return True

    def take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self.fill():
                raise Truncated(bytes(self.buffer))
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def line(self) -> bytes:
        """A line without its CRLF."""
        return self._until(b"\r\n")[:-2]

    def _until(self, end: bytes) -> bytes:
        start = 0
        while True:
            found = self.buffer.find(end, start)
            if found >= 0:
                return self.take(found + len(end))
            start = max(0, len(self.buffer) - len(end) + 1)
            if not self.fill():
                raise Truncated(bytes(self.buffer))

    def head(self) -> bytes:
        """A whole head with its empty line."""
        return self._until(b"\r\n\r\n")

    def request_head(self) -> Request:
        raw = self.head()
        first, headers = _head_lines(raw)
        match = _REQUEST_LINE.fullmatch(first)
        if not match:
            raise Malformed(f"request line {first!r}")
        return Request(match[1], match[2], match[3], headers, raw_head=raw)

    def request_body(self, request: Request) -> None:
        framing, length = body_framing(request.headers)
        if framing == "chunked":
            request.body, request.trailers, _ = self.chunked()
        elif framing == "length":
            request.body = self.take(length)

    def response(self, method: bytes | str = b"GET") -> Response:
        """The final response to a request with this method, with the interim ones that came before it."""
        interim: list[Response] = []
        while True:
            response = self.response_head()
            if 100 <= response.status < 200 and response.status != 101:
                if body_framing(response.headers)[0] != "none":
                    raise Malformed(f"{response.status} with body framing")
                interim.append(response)
                continue
            response.interim = interim
            self.response_body(response, method)
            return response

    def response_head(self) -> Response:
        first, headers = _head_lines(self.head())
        match = _STATUS_LINE.fullmatch(first)
        if not match:
            raise Malformed(f"status line {first!r}")
        return Response(int(match[2]), match[3], headers)

    def response_body(self, response: Response, method: bytes | str) -> None:
        method = method.encode() if isinstance(method, str) else method
        framing, length = body_framing(response.headers)
        if response.status == 101 or (method == b"CONNECT" and response.status < 300):
            if framing != "none":
                raise Malformed(f"{response.status} with body framing")
            return
        if response.status == 204 and framing != "none":
            raise Malformed("204 with body framing (RFC 9110 8.6, RFC 9112 6.1)")
        if response.status == 304 and framing == "chunked":
            raise Malformed("304 with Transfer-Encoding")
        if method == b"HEAD" or response.status in (204, 304):
            return
        if framing == "chunked":
            response.body, response.trailers, response.chunks = self.chunked()
        elif framing == "length":
            response.body = self.take(length)
        else:
            while self.fill():
                pass
            response.body = bytes(self.buffer)
            self.buffer.clear()
            framing = "close"
        response.framing = framing

    def chunked(self) -> tuple[bytes, Headers, int]:
        body, count = bytearray(), 0
        while True:
            line = self.line()
            if not _CHUNK_LINE.fullmatch(line):
                raise Malformed(f"chunk size line {line!r}")
            size = int(line, 16)
            if size == 0:
                return bytes(body), self._trailers(), count
            body += self.take(size)
            count += 1
            if self.take(2) != b"\r\n":
                raise Malformed("chunk without CRLF at its end")

    def _trailers(self) -> Headers:
        trailers = Headers()
        while line := self.line():
            trailers.append(_header(line))
        return trailers


def _head_lines(raw: bytes) -> tuple[bytes, Headers]:
    text = raw.removesuffix(b"\r\n\r\n")
    lines = text.split(b"\r\n")
    return lines[0], Headers(_header(line) for line in lines[1:])


def _header(line: bytes) -> Header:
    match = _HEADER_LINE.fullmatch(line)
    if not match:
        raise Malformed(f"header line {line!r}")
    return match[1], match[2]


def body_framing(headers: Headers) -> tuple[str, int]:
    """(`none` | `length` | `chunked`, length). Malformed when a sender may not write it so."""
    lengths, codings = headers.all("content-length"), headers.all("transfer-encoding")
    if lengths and codings:
        raise Malformed("Content-Length and Transfer-Encoding")
    if len(lengths) > 1 or len(codings) > 1:
        raise Malformed("framing header given twice")
    if codings:
        if codings[0].lower() != b"chunked":
            raise Malformed(f"Transfer-Encoding {codings[0]!r}")
        return "chunked", 0
    if lengths:
        if not _CANONICAL_LENGTH.fullmatch(lengths[0]):
            raise Malformed(f"Content-Length {lengths[0]!r}")
        return "length", int(lengths[0])
    return "none", 0
