"""A backend that records exactly the bytes lb sends and answers exactly the bytes its script says."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.harness.invariants import STRICT, Rules, violations
from tests.harness.messages import Malformed, Reader, Request, Truncated
from tests.harness.waiting import DEADLINE, wait_until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Received:
    """A request as it came, whole or not."""

    request: Request
    connection: int
    """Number of the connection it came on, counted from 0."""
    complete: bool = False


class BackendConnection:
    """lb's end of one connection, as a script sees it."""

    def __init__(self, backend: RawBackend, connected: socket.socket, number: int) -> None:
        self.backend = backend
        self.socket = connected
        self.number = number
        self.reading = False
        """A request has begun here and is not read to its end."""
        self.reader = Reader(self._more)

    def _more(self) -> bytes:
        try:
            return self.socket.recv(262_144)
        except ConnectionResetError:
            return b""

    def read_head(self) -> Received | None:
        """The next request's head; None when lb closed between requests."""
        if not self.reader.buffer and not self.reader.fill():
            return None
        self.reading = True
        try:
            request = self.reader.request_head()
        except (Malformed, Truncated) as error:
            self._broken(error)
            return None
        received = Received(request, self.number)
        with self.backend.lock:
            self.backend.received.append(received)
        return received

    def read_body(self, received: Received) -> bool:
        """The rest of the request; False when lb ended in the middle, as it must when the client's body is broken."""
        try:
            self.reader.request_body(received.request)
        except Truncated:
            self.done()
            return False
        except Malformed as error:
            self._broken(error)
            return False
        found = violations(received.request, self.backend.rules)
        with self.backend.lock:
            received.complete = True
            self.backend.violations += [f"{problem} in {received.request.raw_head!r}" for problem in found]
        self.done()
        return True

    def read(self) -> Request | None:
        """The next whole request; None when there is none."""
        received = self.read_head()
        if received is None or not self.read_body(received):
            return None
        return received.request

    def _broken(self, error: Exception) -> None:
        with self.backend.lock:
            self.backend.violations.append(f"{type(error).__name__}: {error}")
        self.done()

    def done(self) -> None:
        """The request that was begun is over, as far as this script goes."""
        self.reading = False

    def __str__(self) -> str:
        with contextlib.suppress(OSError):
            info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 56)
            state, silent_ms = info[0], int.from_bytes(info[52:56], sys.byteorder)
            peer = self.socket.getpeername()
            kept = len(self.reader.buffer)
            return f"#{self.number} from {peer}: TCP state {state}, silent for {silent_ms} ms, {kept} bytes kept"
        return f"#{self.number}: closed"

    def send(self, *parts: bytes) -> None:
        """Send; a peer that has gone is not the script's business."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                self.socket.sendall(part)

    def trickle(self, data: bytes, pause: float = 0.0005) -> None:
        """Send byte by byte, each in its own segment."""
        for index in range(len(data)):
            self.send(data[index : index + 1])
            time.sleep(pause)

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def wait_for_end(self) -> bytes:
        """What lb still sends until it closes."""
        data = b""
        with contextlib.suppress(TimeoutError):
            while more := self._more():
                data += more
        return data


Script = Callable[[BackendConnection], None]
Answer = Callable[[Request], bytes | Iterable[bytes]]


def answer_ok(connection: BackendConnection) -> None:
    """200 to whatever comes, for as long as it comes."""
    while connection.read() is not None:
        connection.send(OK)


def answering(answer: Answer | bytes, *, close: bool = False) -> Script:
    """The same bytes, or what `answer` makes of the request, for every request."""

    def script(connection: BackendConnection) -> None:
        while (request := connection.read()) is not None:
            reply = answer(request) if callable(answer) else answer
            connection.send(*((reply,) if isinstance(reply, bytes) else reply))
            if close:
                return

    return script


def notice_vanished_peers(connected: socket.socket) -> None:
    """Have the kernel ask now and then whether the other end is still there.

    Among a hundred thousand connections Linux (6.18) loses one: its listening socket answers a reset to what belongs to
    a connection that it has just accepted (tcp_send_reset with state=TCP_LISTEN and reason=TCP_FLAGS in a trace). lb's
    end is gone then, and this one would wait for ever.
    """
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)


def _listen(address: str, port: int) -> socket.socket:
    if address.startswith("unix:"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address.removeprefix("unix:"))
    else:
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
    listener.listen(512)
    return listener


class RawBackend:
    """A listening socket with one thread a connection. The script runs once for each connection, which ends with it."""

    def __init__(
        self, script: Script = answer_ok, *, address: str = "127.0.0.1", port: int = 0, rules: Rules = STRICT
    ) -> None:
        self.script = script
        self.rules = rules
        self.lock = threading.Lock()
        self.received: list[Received] = []
        self.violations: list[str] = []
        self.connections = 0
        self.open: set[BackendConnection] = set()
        self._listener = _listen(address, port)
        self.address = address
        self.port: int = 0 if address.startswith("unix:") else self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name=f"backend {self.port}", daemon=True)
        self._thread.start()

    @property
    def key(self) -> str:
        if self.address.startswith("unix:"):
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            connected.settimeout(DEADLINE * 2)
            if connected.family != socket.AF_UNIX:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                notice_vanished_peers(connected)
            with self.lock:
                connection = BackendConnection(self, connected, self.connections)
                self.connections += 1
                self.open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: BackendConnection) -> None:
        try:
            with contextlib.suppress(OSError):
                self.script(connection)
        finally:
            with contextlib.suppress(OSError):
                connection.socket.close()
            with self.lock:
                self.open.discard(connection)

    def settle(self) -> None:
        """Wait until no request is half-read: all that lb sent so far has been seen."""
        try:
            wait_until(lambda: not self._half_read(), f"requests to the backend at {self.key} end", interval=0.001)
        except AssertionError as error:
            left = "\n".join(str(connection) for connection in self._half_read())
            raise AssertionError(f"{error}\n{left}") from None

    def _half_read(self) -> list[BackendConnection]:
        with self.lock:
            return [connection for connection in self.open if connection.reading]

    def take(self) -> list[Received]:
        """What came since the last call, complete or not."""
        self.settle()
        with self.lock:
            received, self.received = self.received, []
        return received

    def requests(self) -> list[Request]:
        """The complete requests that came since the last call."""
        return [received.request for received in self.take() if received.complete]

    def assert_clean(self) -> None:
        """Nothing that came broke an invariant; forgets what did."""
        self.settle()
        with self.lock:
            found, self.violations = self.violations, []
        assert not found, "lb sent the backend what no proxy may send:\n" + "\n".join(found)

    def drop_connections(self) -> None:
        """Close every open connection now."""
        with self.lock:
            connections = list(self.open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: not self.open.intersection(connections), "backend connections end")

    def stop_listening(self) -> None:
        """Refuse new connections; those that exist go on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE)

    def close(self) -> None:
        """Stop listening and close every connection."""
        self.stop_listening()
        with self.lock:
            connections = list(self.open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> RawBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
