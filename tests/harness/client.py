"""A client that sends exactly the bytes it is told, in the pieces it is told, and reads answers strictly."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Iterable, Iterator

from tests.harness.messages import Reader, Response
from tests.harness.waiting import DEADLINE

Address = tuple[str, int]


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def bytewise(data: bytes) -> Iterator[bytes]:
    """One byte at a time; what is longer than two kilobytes goes in odd pieces so that it ends this week."""
    if len(data) <= 2_048:
        for index in range(len(data)):
            yield data[index : index + 1]
        return
    yield from (data[start : start + 997] for start in range(0, len(data), 997))


def random_splits(data: bytes, seed: int, pieces: int = 6) -> Iterator[bytes]:
    cuts = sorted(random.Random(seed).randrange(len(data) + 1) for _ in range(pieces - 1))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if start < end:
            yield data[start:end]


class RawClient:
    """One TCP connection to lb."""

    def __init__(
        self,
        address: Address | str,
        *,
        timeout: float = DEADLINE,
        receive_buffer: int | None = None,
        source: str | None = None,
    ) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
        else:
            self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
            if receive_buffer is not None:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source is not None:
                self.socket.bind((source, 0))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(address)
        except BaseException:
            self.socket.close()
            raise
        self.reader = Reader(self._more)
        self.send_failed = False
        """The peer closed while we were sending, which it may after an early answer."""

    def _more(self) -> bytes:
        return self.socket.recv(262_144)

    def send(self, data: bytes | Iterable[bytes]) -> None:
        """Send all of it; when the peer closes meanwhile, stop and remember it."""
        for piece in (data,) if isinstance(data, bytes) else data:
            try:
                self.socket.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                self.send_failed = True
                return

    def response(self, method: bytes | str = b"GET") -> Response:
        return self.reader.response(method)

    def ask(self, data: bytes, method: bytes | str | None = None) -> Response:
        """Send a request and read its answer; the method is read off the request line."""
        self.send(data)
        return self.response(method if method is not None else data.split(b" ", 1)[0])

    def finish(self) -> None:
        """Half-close: no more bytes from us. The peer may have reset the connection meanwhile."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def rest(self) -> bytes:
        """Everything up to the end of the stream, where a reset counts as the end."""
        with contextlib.suppress(ConnectionResetError):
            while self.reader.fill():
                pass
        data = bytes(self.reader.buffer)
        self.reader.buffer.clear()
        return data

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def get(host: str, target: str = "/", *lines: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    """A well-formed request without a body."""
    head = [f"{method} {target} {version}", f"Host: {host}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1")


def post(host: str, body: bytes, target: str = "/", *lines: str, method: str = "POST") -> bytes:
    """A well-formed request with a body and its length."""
    return get(host, target, f"Content-Length: {len(body)}", *lines, method=method) + body


def chunked(*chunks: bytes, trailers: Iterable[str] = ()) -> bytes:
    """A chunked body."""
    parts = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
    return b"".join(parts) + b"0\r\n" + b"".join(line.encode() + b"\r\n" for line in trailers) + b"\r\n"
