"""An HTTP/2 backend on hyper-h2: records what lb sends and answers what its script says.

hyper-h2 validates all that comes in; what it refuses is a violation, as is what `_violations` finds.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from tests.harness.messages import Header, Headers
from tests.harness.waiting import DEADLINE, wait_until

_HOP_BY_HOP = ("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings")
_ONCE = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip", "x-request-id")
_TRAILERS = ("content-length", "host", "authorization", "x-forwarded-for", "te")


@dataclass
class Http2Request:
    """A request as far as it has come."""

    fields: Headers
    """All of its head, pseudo-header fields too."""
    connection: int
    stream: int
    body: bytearray = field(default_factory=bytearray)
    trailers: Headers = field(default_factory=Headers)
    complete: bool = False
    reset: int | None = None
    """lb has given it up, with this error code."""

    def __getattr__(self, name: str) -> bytes:
        """method, path, scheme, authority and protocol."""
        if name not in ("method", "path", "scheme", "authority", "protocol"):
            raise AttributeError(name)
        return self.fields.get(f":{name}") or b""

    @property
    def headers(self) -> Headers:
        return Headers(item for item in self.fields if not item[0].startswith(b":"))


class Exchange:
    """One stream as its script sees it. Whatever blocks ends with the stream."""

    def __init__(self, connection: _Connection, request: Http2Request) -> None:
        self.request = request
        self._connection = connection

    def read(self) -> bool:
        """Wait for the whole request; False when it does not come."""
        return self._connection.wait(lambda: self.request.complete or self.over) and self.request.complete

    def read_body(self, size: int) -> bool:
        """Wait until so many bytes of the body have come; False when they do not."""
        request = self.request
        self._connection.wait(lambda: len(request.body) >= size or request.complete or self.over)
        return len(request.body) >= size

    def wait_for_end(self) -> None:
        """Until lb gives it up."""
        self._connection.wait(lambda: self.over)

    @property
    def over(self) -> bool:
        return self.request.reset is not None or self._connection.ended

    def head(self, status: int, *fields: Header, end: bool = False) -> None:
        with self._connection.speaking(self.request) as h2:
            h2.send_headers(self.request.stream, [(b":status", b"%d" % status), *fields], end_stream=end)

    def data(self, payload: bytes | memoryview = b"", *, end: bool = False) -> None:
        """As fast as lb's windows allow."""
        left = memoryview(payload)
        while True:
            with self._connection.speaking(self.request) as h2:
                if self.over:
                    return
                room = min(h2.local_flow_control_window(self.request.stream), h2.max_outbound_frame_size)
                if room > 0 or not left:
                    piece, left = left[: max(room, 0)], left[max(room, 0) :]
                    h2.send_data(self.request.stream, bytes(piece), end_stream=end and not left)
                    if not left:
                        return
                    continue
            if not self._connection.wait_for_window(self):
                return

    def trailers(self, *fields: Header) -> None:
        with self._connection.speaking(self.request) as h2:
            h2.send_headers(self.request.stream, list(fields), end_stream=True)

    def respond(self, status: int = 200, *fields: Header, body: bytes = b"ok", trailers: Sequence[Header] = ()) -> None:
        self.head(status, *fields, end=not body and not trailers)
        if body:
            self.data(body, end=not trailers)
        if trailers:
            self.trailers(*trailers)

    def reset(self, code: int = h2.errors.ErrorCodes.INTERNAL_ERROR) -> None:
        with self._connection.speaking(self.request) as h2:
            h2.reset_stream(self.request.stream, code)

    def away(self, last: int | None = None) -> None:
        """GOAWAY on its connection, which goes on with the streams up to `last`."""
        with self._connection.speaking(self.request) as h2:
            # hyper-h2 would take it for the end of everything.
            frame = h2.GoAwayFrame(0, last_stream_id=self.request.stream if last is None else last)  # type: ignore[attr-defined]
            h2._prepare_for_sending([frame])


Script = Callable[[Exchange], None]


def answer_ok(exchange: Exchange) -> None:
    if exchange.read():
        exchange.respond()


class _Connection:
    def __init__(self, backend: Http2Backend, connected: socket.socket, number: int) -> None:
        self.backend = backend
        self.socket = connected
        self.number = number
        self.ended = False
        self.requests: dict[int, Http2Request] = {}
        self._changed = threading.Condition()
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None, validate_outbound_headers=False)
        )

    @contextlib.contextmanager
    def speaking(self, request: Http2Request) -> Iterator[h2.connection.H2Connection]:
        """hyper-h2 to say something with; a stream that is gone takes nothing any more."""
        with self._changed, contextlib.suppress(OSError):
            try:
                yield self._h2
                self._flush()
            except h2.exceptions.ProtocolError:
                if request.reset is None and not self.ended:
                    raise

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self.socket.sendall(data)

    def wait(self, condition: Callable[[], bool]) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, DEADLINE * 2)

    def wait_for_window(self, exchange: Exchange) -> bool:
        stream = exchange.request.stream

        def open_or_over() -> bool:
            return exchange.over or self._h2.local_flow_control_window(stream) > 0

        with self._changed:
            return self._changed.wait_for(open_or_over, DEADLINE * 2) and not exchange.over

    def serve(self) -> None:
        try:
            with self._changed:
                for code, value in self.backend.settings.items():
                    self._h2.local_settings[code] = value
                self._h2.local_settings.acknowledge()
                self._h2.initiate_connection()
                self._flush()
            while data := self.socket.recv(262_144):
                with self._changed:
                    events = self._h2.receive_data(data)
                    for event in events:
                        self._handle(event)
                    self._flush()
                    self._changed.notify_all()
        except h2.exceptions.ProtocolError as error:
            self.backend.blame(f"{type(error).__name__}: {error}")
            with contextlib.suppress(OSError):
                self._flush()
        except OSError:
            pass
        finally:
            with self._changed:
                self.ended = True
                self._changed.notify_all()

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                request = Http2Request(Headers(tuple(item) for item in event.headers), self.number, event.stream_id)
                self.requests[event.stream_id] = request
                self.backend.begin(request)
                script = self.backend.script
                threading.Thread(target=script, args=(Exchange(self, request),), daemon=True).start()
            case h2.events.DataReceived():
                self.requests[event.stream_id].body += event.data
                if not self.backend.greedy:
                    return
                if event.flow_controlled_length:
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.TrailersReceived():
                self.requests[event.stream_id].trailers = Headers(tuple(item) for item in event.headers)
            case h2.events.StreamEnded():
                self.requests[event.stream_id].complete = True
                self.backend.end(self.requests[event.stream_id])
            case h2.events.StreamReset() if event.stream_id in self.requests:
                self.requests[event.stream_id].reset = int(event.error_code)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class Http2Backend:
    """A listening socket; the script runs in a thread of its own for each stream.

    `greedy` off: no window is given back. `tls`: speaks TLS, with ALPN as the context has it.
    """

    def __init__(
        self,
        script: Script = answer_ok,
        *,
        settings: dict[h2.settings.SettingCodes | int, int] | None = None,
        greedy: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script = script
        self.settings = settings or {}
        self.greedy = greedy
        self.tls = tls
        self.lock = threading.Lock()
        self.received: list[Http2Request] = []
        self.violations: list[str] = []
        self.connections: list[_Connection] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connected,), daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            if self.tls is not None:
                connected = self.tls.wrap_socket(connected, server_side=True)
            with self.lock:
                connection = _Connection(self, connected, len(self.connections))
                self.connections.append(connection)
            connection.serve()
        connected.close()

    def begin(self, request: Http2Request) -> None:
        with self.lock:
            self.received.append(request)
            self.violations += _violations(request)

    def end(self, request: Http2Request) -> None:
        for name in _TRAILERS:
            if request.trailers.all(name):
                self.blame(f"trailer {name}")

    def blame(self, problem: str) -> None:
        with self.lock:
            self.violations.append(problem)

    def take(self) -> list[Http2Request]:
        """What came since the last call, complete or not."""
        with self.lock:
            received, self.received = self.received, []
        return received

    def assert_clean(self) -> None:
        """Nothing that came broke a rule; forgets what did."""
        with self.lock:
            found, self.violations = self.violations, []
        assert not found, "lb sent the backend what no proxy may send:\n" + "\n".join(found)

    def wait_for(self, count: int = 1) -> list[Http2Request]:
        """So many requests, whole."""

        def whole() -> list[Http2Request]:
            with self.lock:
                found = [request for request in self.received if request.complete]
            return found if len(found) >= count else []

        return wait_until(whole, f"{count} requests at the HTTP/2 backend", interval=0.001)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE)
        with self.lock:
            connections = list(self.connections)
        for connection in connections:
            connection.close()

    def __enter__(self) -> Http2Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _violations(request: Http2Request) -> list[str]:
    """What hyper-h2 lets pass, and no proxy may send."""
    found = [f"hop-by-hop field {name}" for name in _HOP_BY_HOP if request.headers.all(name)]
    found += [f"{len(request.headers.all(name))} of {name}" for name in _ONCE if len(request.headers.all(name)) != 1]
    if request.headers.tokens("te") - {b"trailers"}:
        found.append(f"te {request.headers.all('te')}")
    if len(request.headers.all("cookie")) > 1:
        found.append("cookie crumbs that were not put together")
    if not request.path.startswith(b"/") and request.method != b"CONNECT":
        found.append(f"path {request.path!r}")
    if request.headers.all("host"):
        found.append("host next to :authority")
    return found
