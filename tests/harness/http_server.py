"""An HTTP server whose handlers do not see which protocol they speak: HTTP/1.1 by h11, HTTP/2 by h2, plain or TLS.

Which one it is, a client says by its first bytes or by ALPN. The server runs in a thread of its own; handlers are
coroutines, one for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h11

from tests.harness.certificates import Pair
from tests.harness.messages import Headers
from tests.harness.waiting import DEADLINE, wait_until

Fields = Iterable[tuple[bytes, bytes]]
Handler = Callable[["Call"], Awaitable[None]]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"


class Cancelled(Exception):
    """The client has given the request up, or its connection has ended."""


class Call:
    """One request as a handler sees it, and what it answers."""

    def __init__(self, connection: _Connection, stream_id: int, method: bytes, target: bytes, headers: Headers) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.method = method
        self.target = target
        self.headers = headers
        self.trailers = Headers()
        """Known once the body has been read to its end."""
        self.protocol = b""
        """`websocket` when that is asked for, by Upgrade or by extended CONNECT."""
        self.cancelled: int | None = None
        """Why the client gave up: an HTTP/2 error code, or 0 for the end of its connection."""
        self.waits_for_continue = False
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self._changed = asyncio.Event()

    @property
    def version(self) -> str:
        return self.connection.version

    # What the connection tells

    def feed(self, data: bytes) -> None:
        self._pieces.append(data)
        self._changed.set()

    def feed_end(self, trailers: Fields = ()) -> None:
        self.trailers = Headers(trailers)
        self._ended = True
        self._changed.set()

    def cancel(self, code: int) -> None:
        if self.cancelled is None:
            self.cancelled = code
        self._changed.set()

    def changed(self) -> None:
        """There may be room to send."""
        self._changed.set()

    def begin_tunnel(self) -> None:
        """More comes, although the request was complete."""
        self._ended = False

    @property
    def at_end(self) -> bool:
        """Whether all of the body, or of the tunnel, has come."""
        return self._ended

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that the connection tells. Cancelled when the client gives up first."""
        while not condition():
            if self.cancelled is not None:
                raise Cancelled(self.cancelled)
            self._changed.clear()
            async with asyncio.timeout(DEADLINE):
                await self._changed.wait()

    # What a handler does

    async def read(self) -> bytes:
        """The next piece of the body; empty at its end."""
        await self.until(lambda: self._pieces or self._ended)
        if not self._pieces:
            return b""
        data = self._pieces.popleft()
        self.connection.taken(self, len(data))
        return data

    async def body(self) -> bytes:
        """All of it that has not been read."""
        pieces = []
        while data := await self.read():
            pieces.append(data)
        return b"".join(pieces)

    async def until_cancelled(self) -> int:
        """Wait for the client to give up; the code."""
        with contextlib.suppress(Cancelled):
            await self.until(lambda: False)
        assert self.cancelled is not None
        return self.cancelled

    def inform(self, status: int, headers: Fields = ()) -> None:
        """An interim response."""
        self.connection.send_head(self, status, headers, end=False)

    def respond(self, status: int, headers: Fields = (), *, end: bool = False) -> None:
        """The response's head. `end`: there is nothing behind it."""
        self.connection.send_head(self, status, headers, end=end)

    async def send(self, data: bytes) -> None:
        """A piece of the body, as fast as the client takes it."""
        await self.connection.send_data(self, data)

    def end(self, trailers: Fields = ()) -> None:
        self.connection.send_end(self, trailers)

    def accept(self, headers: Fields = ()) -> None:
        """Agree to the upgrade; what is read and sent from now on is the tunnel's."""
        self.connection.accept(self, headers)

    def reset(self, code: int = h2.errors.ErrorCodes.INTERNAL_ERROR) -> None:
        """Cut the response off: the stream, or with HTTP/1 the connection."""
        self.connection.reset(self, code)

    async def answer(self, status: int, body: bytes = b"", headers: Fields = (), trailers: Fields = ()) -> None:
        """A whole response with its length, or chunked when there are trailers."""
        trailers = list(trailers)
        length = [] if trailers else [(b"content-length", b"%d" % len(body))]
        self.respond(status, [*headers, *length])
        if body and self.method != b"HEAD":
            await self.send(body)
        self.end(trailers)


class _Connection(ABC):
    """What both protocols have in common."""

    version = ""

    def __init__(self, server: HttpServer, transport: asyncio.Transport) -> None:
        self.server = server
        self.transport = transport
        self.calls: dict[int, Call] = {}
        self.count = 0
        """Requests so far."""
        self.ended = False
        self.writable = asyncio.Event()
        self.writable.set()

    def begin(self, call: Call) -> None:
        self.calls[call.stream_id] = call
        self.count += 1
        self.server.begin(call)

    def over(self) -> None:
        """The connection has ended."""
        self.ended = True
        for call in list(self.calls.values()):
            call.cancel(0)

    def abort(self) -> None:
        """End the connection with RST."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    @abstractmethod
    def receive(self, data: bytes) -> None: ...

    @abstractmethod
    def taken(self, call: Call, size: int) -> None: ...

    @abstractmethod
    def send_head(self, call: Call, status: int, headers: Fields, *, end: bool) -> None: ...

    @abstractmethod
    async def send_data(self, call: Call, data: bytes) -> None: ...

    @abstractmethod
    def send_end(self, call: Call, trailers: Fields) -> None: ...

    @abstractmethod
    def accept(self, call: Call, headers: Fields) -> None: ...

    @abstractmethod
    def reset(self, call: Call, code: int) -> None: ...


class _Http1(_Connection):
    version = "1.1"

    def __init__(self, server: HttpServer, transport: asyncio.Transport) -> None:
        super().__init__(server, transport)
        self.machine = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        self.tunnel = False

    def receive(self, data: bytes) -> None:
        if self.tunnel:
            self.calls[0].feed(data) if data else self.calls[0].feed_end()
            return
        self.machine.receive_data(data)
        self._take()

    def _take(self) -> None:
        while not self.tunnel:
            event = self.machine.next_event()
            if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return
            self._take_one(event)

    def _take_one(self, event: object) -> None:
        if isinstance(event, h11.Request):
            call = Call(self, 0, event.method, event.target, Headers(event.headers.raw_items()))
            if b"upgrade" in call.headers.tokens("connection"):
                call.protocol = call.headers.get("upgrade") or b""
            call.waits_for_continue = self.machine.they_are_waiting_for_100_continue
            self.begin(call)
        elif isinstance(event, h11.Data):
            self.calls[0].feed(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            self.calls[0].feed_end(event.headers.raw_items())

    def taken(self, call: Call, size: int) -> None:
        """Without flow control the socket itself is all there is."""

    def _send(self, event: h11.Event) -> None:
        if not self.ended:
            data = self.machine.send(event)
            if data:
                self.transport.write(data)

    def send_head(self, call: Call, status: int, headers: Fields, *, end: bool) -> None:
        if status < 200:
            self._send(h11.InformationalResponse(status_code=status, headers=list(headers)))
            return
        length = [(b"content-length", b"0")] if end and status not in (204, 304) and call.method != b"HEAD" else []
        self._send(h11.Response(status_code=status, headers=[*headers, *length]))
        if end:
            self.send_end(call, ())

    async def send_data(self, call: Call, data: bytes) -> None:
        for start in range(0, len(data), 65_536):
            await self.writable.wait()
            if call.cancelled is not None:
                raise Cancelled(call.cancelled)
            piece = data[start : start + 65_536]
            if self.tunnel:
                self.transport.write(piece)
            else:
                self._send(h11.Data(data=piece))

    def send_end(self, call: Call, trailers: Fields) -> None:
        if self.tunnel:
            if self.transport.can_write_eof() and not call.at_end:
                self.transport.write_eof()
            else:
                self.transport.close()
            return
        self._send(h11.EndOfMessage(headers=list(trailers)))
        if self.machine.our_state is h11.DONE and self.machine.their_state is h11.DONE:
            self.machine.start_next_cycle()
            self._take()
        elif self.machine.our_state in (h11.MUST_CLOSE, h11.DONE):
            self.transport.close()

    def accept(self, call: Call, headers: Fields) -> None:
        agreed = [(b"upgrade", call.protocol), (b"connection", b"upgrade")]
        self._send(h11.InformationalResponse(status_code=101, headers=[*agreed, *headers]))
        self.tunnel = True
        call.begin_tunnel()
        early = self.machine.trailing_data[0]
        if early:
            call.feed(early)

    def reset(self, call: Call, code: int) -> None:
        self.abort()


class Http2Connection(_Connection):
    """HTTP/2, with what only that has."""

    version = "2"

    def __init__(self, server: HttpServer, transport: asyncio.Transport) -> None:
        super().__init__(server, transport)
        config = h2.config.H2Configuration(
            client_side=False, header_encoding=False, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.machine = h2.connection.H2Connection(config)
        self.machine.local_settings = h2.settings.Settings(client=False, initial_values=dict(server.settings))
        self.pongs = 0
        """Answers to `ping` so far."""
        self.machine.initiate_connection()
        self.machine.increment_flow_control_window(1 << 30)  # handlers read in any order; each stream's window holds
        self.flush()

    def flush(self) -> None:
        data = self.machine.data_to_send()
        if data and not self.ended:
            self.transport.write(data)

    def receive(self, data: bytes) -> None:
        if not data:
            return
        try:
            events = self.machine.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self.server.complaints.append(repr(error))
            self.flush()
            self.transport.close()
            return
        for event in events:
            self._take(event)
        self.flush()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._begin(event)
        elif isinstance(event, h2.events.DataReceived):
            assert event.data is not None
            if (call := self.calls.get(event.stream_id)) is None:
                self.machine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                return
            padding = event.flow_controlled_length - len(event.data)
            if padding:
                self.machine.acknowledge_received_data(padding, event.stream_id)
            if event.data:
                call.feed(event.data)
        elif isinstance(event, h2.events.TrailersReceived):
            if (call := self.calls.get(event.stream_id)) is not None:
                call.trailers = Headers(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            if (call := self.calls.get(event.stream_id)) is not None:
                call.feed_end(call.trailers)
        elif isinstance(event, h2.events.StreamReset):
            if (call := self.calls.get(event.stream_id)) is not None:
                call.cancel(int(event.error_code or 0))
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.server.goaways.append(int(event.error_code or 0))
        elif isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1
        else:
            for call in self.calls.values():
                call.changed()

    def _begin(self, event: h2.events.RequestReceived) -> None:
        pseudo: dict[bytes, bytes] = {}
        fields = Headers()
        for name, value in event.headers:
            name, value = bytes(name), bytes(value)
            if name.startswith(b":"):
                pseudo[name] = value
            else:
                fields.append((name, value))
        fields.insert(0, (b"host", pseudo.get(b":authority", b"")))
        call = Call(self, event.stream_id, pseudo[b":method"], pseudo.get(b":path", b""), fields)
        call.protocol = pseudo.get(b":protocol", b"")
        call.waits_for_continue = fields.get("expect") == b"100-continue"
        self.begin(call)

    def taken(self, call: Call, size: int) -> None:
        if self.ended:
            return
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self.machine.acknowledge_received_data(size, call.stream_id)
        self.flush()

    def _check(self, call: Call) -> None:
        if call.cancelled is not None:
            raise Cancelled(call.cancelled)

    def send_head(self, call: Call, status: int, headers: Fields, *, end: bool) -> None:
        self._check(call)
        fields = [(b":status", b"%d" % status), *((name.lower(), value) for name, value in headers)]
        self.machine.send_headers(call.stream_id, fields, end_stream=end)
        self.flush()

    async def send_data(self, call: Call, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._check(call)
            await call.until(
                lambda: call.cancelled is not None or self.machine.local_flow_control_window(call.stream_id) > 0
            )
            await self.writable.wait()
            self._check(call)
            room = min(self.machine.local_flow_control_window(call.stream_id), self.machine.max_outbound_frame_size)
            self.machine.send_data(call.stream_id, bytes(rest[:room]))
            rest = rest[room:]
            self.flush()

    def send_end(self, call: Call, trailers: Fields) -> None:
        self._check(call)
        trailers = [(name.lower(), value) for name, value in trailers]
        if trailers:
            self.machine.send_headers(call.stream_id, trailers, end_stream=True)
        else:
            self.machine.end_stream(call.stream_id)
        self.flush()

    def accept(self, call: Call, headers: Fields) -> None:
        self.send_head(call, 200, headers, end=False)

    def reset(self, call: Call, code: int) -> None:
        self.machine.reset_stream(call.stream_id, code)
        self.flush()

    # For tests of HTTP/2 itself

    def ping(self) -> None:
        self.machine.ping(bytes(8))
        self.flush()

    def change(self, settings: Mapping[h2.settings.SettingCodes, int]) -> None:
        """Send SETTINGS."""
        self.machine.update_settings(dict(settings))
        self.flush()

    def go_away(self, last_stream_id: int, code: int = 0, *, close: bool = False) -> None:
        """Send GOAWAY; streams above the last are forgotten."""
        for stream_id in [one for one in self.calls if one > last_stream_id]:
            self.calls.pop(stream_id).cancel(0)
        # By hand: the library takes a GOAWAY of its own for the end of the connection.
        payload = last_stream_id.to_bytes(4, "big") + code.to_bytes(4, "big")
        self.transport.write(b"\0\0\x08\x07\0\0\0\0\0" + payload)
        if close:
            self.transport.close()


class _Protocol(asyncio.Protocol):
    """Finds out what a connection speaks."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.connection: _Connection | None = None
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.accepted += 1
        secured = transport.get_extra_info("ssl_object")
        if secured is not None:
            self._open(h2_spoken=secured.selected_alpn_protocol() == "h2")

    def _open(self, *, h2_spoken: bool) -> None:
        self.connection = (Http2Connection if h2_spoken else _Http1)(self.server, self.transport)
        self.server.connections.append(self.connection)

    def data_received(self, data: bytes) -> None:
        if self.connection is None:
            self.buffer += data
            if self.buffer == _PREFACE[: len(self.buffer)] and len(self.buffer) < len(_PREFACE):
                return
            self._open(h2_spoken=self.buffer.startswith(_PREFACE))
            data = self.buffer
        assert self.connection is not None
        try:
            self.connection.receive(data)
        except h11.RemoteProtocolError as error:
            self.server.complaints.append(repr(error))
            self.transport.close()

    def eof_received(self) -> bool:
        if isinstance(self.connection, _Http1):
            if not self.connection.tunnel:
                with contextlib.suppress(h11.RemoteProtocolError):
                    self.connection.receive(b"")
                return False
            self.connection.receive(b"")
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self.connection is not None:
            self.connection.over()
            self.connection.writable.set()

    def pause_writing(self) -> None:
        if self.connection is not None:
            self.connection.writable.clear()

    def resume_writing(self) -> None:
        if self.connection is not None:
            self.connection.writable.set()


class HttpServer:
    """Serves from construction to close.

    `alpn`: what it agrees on when it has a certificate. `settings`: of HTTP/2, on every connection from its begin.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        pair: Pair | None = None,
        directory: Path | None = None,
        alpn: Sequence[str] = ("h2", "http/1.1"),
        settings: Mapping[h2.settings.SettingCodes, int] | None = None,
    ) -> None:
        self.handler = handler
        self.settings = {h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 1, **(settings or {})}
        self.accepted = 0
        self.connections: list[_Connection] = []
        self.calls: list[Call] = []
        self.failures: list[str] = []
        """What handlers raised, other than that their client was gone."""
        self.complaints: list[str] = []
        """What no client may send."""
        self.goaways: list[int] = []
        """Error codes of the GOAWAY frames that came."""
        self._context: ssl.SSLContext | None = None
        if pair is not None:
            assert directory is not None
            path = directory / f"server-{id(self)}.pem"
            path.write_text(pair.chain + pair.key)
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(path)
            if alpn:
                self._context.set_alpn_protocols(list(alpn))
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self.run(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        return await self._loop.create_server(lambda: _Protocol(self), "127.0.0.1", 0, ssl=self._context, backlog=512)

    def agree_on(self, *alpn: str) -> None:
        """On connections from now on."""
        assert self._context is not None
        self._context.set_alpn_protocols(alpn)

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def open(self) -> list[_Connection]:
        return [one for one in self.connections if not one.ended]

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the server's thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE)

    def do(self, action: Callable[[], Any]) -> Any:
        """Call something on the server's thread; connections and calls are touched there only."""

        async def done() -> Any:
            return action()

        return self.run(done())

    def begin(self, call: Call) -> None:
        self.calls.append(call)
        task = self._loop.create_task(self._handle(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, call: Call) -> None:
        try:
            await self.handler(call)
        except Cancelled:
            pass
        except Exception as error:
            self.failures.append(f"{call.method!r} {call.target!r}: {error!r}")
            call.reset()

    def wait_calls(self, count: int) -> list[Call]:
        """Wait until so many requests have come."""
        wait_until(lambda: len(self.calls) >= count, f"{count} requests, not {len(self.calls)}")
        return self.calls

    def assert_clean(self) -> None:
        """No handler failed, and nothing came that may not come."""
        found = self.failures + self.complaints
        assert not found, "\n".join(found)

    def close(self) -> None:
        if self._loop.is_closed():
            return

        async def end() -> None:
            self._server.close()
            for connection in self.open:
                connection.transport.abort()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    def __enter__(self) -> HttpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
