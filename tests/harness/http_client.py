"""A client that asks the same by HTTP/1.1 (h11) and by HTTP/2 (h2), plain or over TLS, one step at a time."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h11

from tests.harness.client import Address
from tests.harness.messages import Headers
from tests.harness.waiting import DEADLINE

Fields = Iterable[tuple[bytes, bytes]]


class Reset(Exception):
    """The exchange was cut off: by RST_STREAM with a code, or (None) with its connection."""

    def __init__(self, code: int | None) -> None:
        super().__init__("connection cut" if code is None else f"RST_STREAM {h2.errors.ErrorCodes(code).name}")
        self.code = code


@dataclass
class Answer:
    """A response, as far as it has come."""

    status: int = 0
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""
    trailers: Headers = field(default_factory=Headers)
    interim: list[tuple[int, Headers]] = field(default_factory=list)


class Exchange:
    """A request under way."""

    def __init__(self, client: HttpClient, stream_id: int, method: str) -> None:
        self.client = client
        self.stream_id = stream_id
        self.method = method
        self.answer = Answer()
        self.ended = False
        self.reset: Reset | None = None
        self.waiting: deque[bytes] = deque()

    # What the client does

    def send(self, data: bytes) -> None:
        """A piece of the body, as fast as lb takes it."""
        self.client.send_data(self, data)

    def end(self, trailers: Fields = ()) -> None:
        """The request is complete."""
        self.client.send_end(self, trailers)

    def cancel(self) -> None:
        """Give it up: RST_STREAM with CANCEL, or RST of the connection."""
        self.client.cancel(self)

    def head(self) -> Answer:
        """Wait for the response's head. Reset."""
        self._until(lambda: self.answer.status)
        return self.answer

    def poll(self) -> None:
        """Take note of what has come, without waiting for it."""
        while select.select([self.client.socket], [], [], 0)[0] and not self.client.ended:
            self.client.pump()

    def interim(self, count: int = 1) -> list[tuple[int, Headers]]:
        """Wait for so many interim responses. Reset."""
        self._until(lambda: len(self.answer.interim) >= count)
        return self.answer.interim

    def read(self) -> bytes:
        """The next piece of the body, which opens the window again; empty at its end. Reset."""
        self._until(lambda: self.waiting or self.ended)
        if not self.waiting:
            return b""
        data = self.waiting.popleft()
        self.client.taken(self, len(data))
        return data

    def rest(self) -> Answer:
        """The whole response. Reset."""
        pieces = []
        while data := self.read():
            pieces.append(data)
        self.answer.body += b"".join(pieces)
        return self.answer

    def _until(self, condition: object) -> None:
        while not condition():  # type: ignore[operator]
            if self.reset is not None:
                raise self.reset
            self.client.pump()


class HttpClient:
    """One connection to lb. Requests of HTTP/1.1 go one after the other, those of HTTP/2 at the same time."""

    def __init__(
        self,
        address: Address,
        version: str = "2",
        *,
        ca: str | None = None,
        name: str = "lb.test",
        settings: Mapping[h2.settings.SettingCodes, int] | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self.version = version
        self.secure = ca is not None
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE)
        try:
            self.socket.connect(address)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if ca is not None:
                context = ssl.create_default_context(cadata=ca)
                context.set_alpn_protocols(["h2"] if version == "2" else ["http/1.1"])
                self.socket = context.wrap_socket(self.socket, server_hostname=name)
                assert self.socket.selected_alpn_protocol() == ("h2" if version == "2" else "http/1.1")
        except BaseException:
            self.socket.close()
            raise
        self.exchanges: dict[int, Exchange] = {}
        self.goaways: list[h2.events.ConnectionTerminated] = []
        self.ended = False
        self.tunnel = False
        self.h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        config = h2.config.H2Configuration(
            client_side=True, header_encoding=False, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        if version == "2":
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=dict(settings or {}))
            self.h2.initiate_connection()
            self.h2.increment_flow_control_window(1 << 30)  # streams are read in any order; their own windows hold
            self._flush()

    # Requests

    def ask(
        self,
        host: str,
        target: str = "/",
        method: str = "GET",
        headers: Fields = (),
        body: bytes | None = None,
        trailers: Fields = (),
    ) -> Answer:
        """One request and its whole response. With trailers the body is chunked."""
        length = [(b"content-length", b"%d" % len(body))] if body is not None and not trailers else []
        exchange = self.start(host, target, method, [*headers, *length], end=body is None)
        if body is not None:
            with contextlib.suppress(Reset):  # an early answer
                exchange.send(body)
                exchange.end(trailers)
        return exchange.rest()

    def start(
        self, host: str, target: str = "/", method: str = "GET", headers: Fields = (), *, end: bool = True
    ) -> Exchange:
        """Send a head; the body follows unless `end`."""
        headers = list(headers)
        if self.version == "2":
            return self._start_h2(host, target, method, headers, end=end)
        if self.h11.our_state is h11.DONE:
            self.h11.start_next_cycle()
        if not end and not any(name.lower() == b"content-length" for name, _ in headers):
            headers.append((b"transfer-encoding", b"chunked"))
        exchange = Exchange(self, 0, method)
        self.exchanges[0] = exchange
        request = h11.Request(method=method, target=target, headers=[(b"host", host.encode()), *headers])
        self._write(self.h11.send(request))
        if end:
            self.send_end(exchange, ())
        return exchange

    def _start_h2(
        self, host: str, target: str, method: str, headers: list[tuple[bytes, bytes]], *, end: bool, protocol: str = ""
    ) -> Exchange:
        stream_id = self.h2.get_next_available_stream_id()
        exchange = Exchange(self, stream_id, method)
        self.exchanges[stream_id] = exchange
        pseudo = {":method": method, ":scheme": "https" if self.secure else "http", ":authority": host, ":path": target}
        if protocol:
            pseudo[":protocol"] = protocol
        fields = [(name.encode(), value.encode()) for name, value in pseudo.items()]
        fields += [(name.lower(), value) for name, value in headers]
        self.h2.send_headers(stream_id, fields, end_stream=end)
        self._flush()
        return exchange

    def websocket(self, host: str, target: str = "/", headers: Fields = ()) -> Exchange:
        """Ask for a websocket: Upgrade, or extended CONNECT. Once the head is there, the body is the tunnel."""
        fields = [(b"sec-websocket-version", b"13"), *headers]
        if self.version == "2":
            while not self.h2.remote_settings.enable_connect_protocol:
                self.pump()
            return self._start_h2(host, target, "CONNECT", fields, end=False, protocol="websocket")
        asked = [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
        return self.start(host, target, "GET", [*asked, (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="), *fields])

    # Bytes

    def _write(self, data: bytes | None) -> None:
        if data:
            try:
                self.socket.sendall(data)
            except OSError:
                self._over()

    def _flush(self) -> None:
        self._write(self.h2.data_to_send())

    def pump(self) -> None:
        """Wait for bytes, and take note of what they say."""
        if self.ended:
            raise Reset(None)
        try:
            data = self.socket.recv(262_144)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLError):
            self._over()
            return
        if self.version == "2":
            if not data:
                self._over()
                return
            for event in self.h2.receive_data(data):
                self._take(event)
            self._flush()
        elif self.tunnel:
            self._feed_tunnel(data)
        else:
            self._receive_h1(data)

    def _over(self) -> None:
        self.ended = True
        for exchange in self.exchanges.values():
            if not exchange.ended and exchange.reset is None:
                exchange.reset = Reset(None)

    def _feed_tunnel(self, data: bytes) -> None:
        if data:
            self.exchanges[0].waiting.append(data)
        else:
            self.exchanges[0].ended = True

    def _receive_h1(self, data: bytes) -> None:
        try:
            self.h11.receive_data(data)
            self._take_h1()
        except h11.RemoteProtocolError:
            self._over()
        if not data:
            self._over()

    def _take_h1(self) -> None:
        exchange = self.exchanges.get(0)
        while not self.tunnel:
            event = self.h11.next_event()
            if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed) or exchange is None:
                return
            if isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    self.tunnel = True
                    exchange.answer.status, exchange.answer.headers = 101, Headers(event.headers)
                    self._feed_tunnel(self.h11.trailing_data[0]) if self.h11.trailing_data[0] else None
                    return
                exchange.answer.interim.append((event.status_code, Headers(event.headers)))
            elif isinstance(event, h11.Response):
                exchange.answer.status, exchange.answer.headers = event.status_code, Headers(event.headers)
            elif isinstance(event, h11.Data):
                exchange.waiting.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                exchange.answer.trailers = Headers(event.headers)
                exchange.ended = True

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaways.append(event)
            return
        exchange = self.exchanges.get(getattr(event, "stream_id", 0) or 0)
        if exchange is None:
            return
        answer = exchange.answer
        if isinstance(event, h2.events.InformationalResponseReceived):
            status, headers = _split(event.headers)
            answer.interim.append((status, headers))
        elif isinstance(event, h2.events.ResponseReceived):
            answer.status, answer.headers = _split(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            assert event.data is not None
            padding = event.flow_controlled_length - len(event.data)
            if padding:
                self.h2.acknowledge_received_data(padding, event.stream_id)
            if event.data:
                exchange.waiting.append(event.data)
        elif isinstance(event, h2.events.TrailersReceived):
            answer.trailers = Headers((bytes(name), bytes(value)) for name, value in event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            exchange.ended = True
        elif isinstance(event, h2.events.StreamReset):
            exchange.reset = Reset(int(event.error_code or 0))

    def ping(self) -> None:
        self.h2.ping(bytes(8))
        self._flush()

    # What exchanges do

    def send_data(self, exchange: Exchange, data: bytes) -> None:
        if self.version != "2":
            self._write(data if self.tunnel else self.h11.send(h11.Data(data=data)))
            return
        rest = memoryview(data)
        while rest:
            if exchange.reset is not None:
                raise exchange.reset
            try:
                room = min(self.h2.local_flow_control_window(exchange.stream_id), self.h2.max_outbound_frame_size)
                self.h2.send_data(exchange.stream_id, bytes(rest[:room])) if room > 0 else self.pump()
            except h2.exceptions.StreamClosedError:
                self.pump()
                continue
            rest = rest[max(room, 0) :]
            self._flush()

    def send_end(self, exchange: Exchange, trailers: Fields) -> None:
        if self.version != "2":
            if self.tunnel:
                self.socket.shutdown(socket.SHUT_WR)
            else:
                self._write(self.h11.send(h11.EndOfMessage(headers=list(trailers))))
            return
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            if trailers:
                self.h2.send_headers(exchange.stream_id, list(trailers), end_stream=True)
            else:
                self.h2.end_stream(exchange.stream_id)
        self._flush()

    def cancel(self, exchange: Exchange) -> None:
        if self.version == "2":
            self.h2.reset_stream(exchange.stream_id, h2.errors.ErrorCodes.CANCEL)
            self._flush()
            return
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        self.ended = True

    def taken(self, exchange: Exchange, size: int) -> None:
        if self.version == "2":
            with contextlib.suppress(h2.exceptions.StreamClosedError):
                self.h2.acknowledge_received_data(size, exchange.stream_id)
            self._flush()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _split(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, Headers]:
    fields = Headers((bytes(name), bytes(value)) for name, value in headers)
    (_, status), *rest = fields
    return int(status), Headers(rest)
