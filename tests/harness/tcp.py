"""Plain TCP: servers whose connections a test holds in its hands, and an address where nobody answers."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.harness.payload import payload
from tests.harness.waiting import DEADLINE

Handler = Callable[[socket.socket], None]


class TcpServer:
    """A listening socket. Each connection goes to `handle` in a thread of its own, or waits for `accept`."""

    def __init__(self, handle: Handler | None = None, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self._handle = handle
        self._accepted: queue.Queue[socket.socket] = queue.Queue()
        self._listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((address, port))
        self._listener.listen(1_024)
        self.address = address
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._thread = threading.Thread(target=self._run, name=f"tcp server {self.port}", daemon=True)
        self._thread.start()

    @property
    def key(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def accept(self) -> socket.socket:
        """The next connection that lb has made."""
        return self._accepted.get(timeout=DEADLINE)

    def _run(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            connected.settimeout(DEADLINE)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            if self._handle is None:
                self._accepted.put(connected)
            else:
                threading.Thread(target=self._serve, args=(connected,), daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        assert self._handle is not None
        with contextlib.suppress(OSError), connected:
            self._handle(connected)

    def close(self) -> None:
        """Stop listening. Connections go on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE)

    def __enter__(self) -> TcpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def echo(connected: socket.socket) -> None:
    """Send back what comes, to the end."""
    while data := connected.recv(65_536):
        connected.sendall(data)


def named(name: str) -> Handler:
    """Says its name first, then sends back what comes."""

    def handle(connected: socket.socket) -> None:
        connected.sendall(name.encode())
        echo(connected)

    return handle


def read_all(connected: socket.socket) -> bytes:
    """Everything to the end; ConnectionResetError when there is none."""
    parts = []
    while data := connected.recv(1 << 20):
        parts.append(data)
    return b"".join(parts)


def read_exactly(connected: socket.socket, size: int) -> bytes:
    """So many bytes; AssertionError when the end comes before."""
    data = bytearray()
    while len(data) < size:
        more = connected.recv(size - len(data))
        assert more, f"the end after {len(data)} of {size} bytes"
        data += more
    return bytes(data)


def ends_by_reset(connected: socket.socket) -> bool:
    """Whether what comes next is a reset, and neither an end nor bytes."""
    try:
        assert connected.recv(1) == b""
    except ConnectionResetError:
        return True
    return False


def sending_fails(sender: socket.socket) -> bool:
    """Whether the peer turns out to be gone, sooner or later."""
    try:
        while True:
            sender.sendall(payload(65_536))
    except (ConnectionResetError, BrokenPipeError):
        return True


def listens_on(port: int) -> bool:
    """Whether somebody on this machine listens on an IPv4 port. Connecting would tell as well, and be counted."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(columns[1].endswith(f":{port:04X}") and columns[3] == "0A" for columns in map(str.split, lines))


def unread_bytes(connected: socket.socket) -> int:
    """What the other end of an IPv4 connection on this machine has in its receive queue; 0 when it is gone.

    Source: proc_net_tcp: sl local_address rem_address st tx_queue:rx_queue.
    """
    ports = f":{connected.getpeername()[1]:04X}", f":{connected.getsockname()[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[1].endswith(ports[0]) and columns[2].endswith(ports[1]):
            return int(columns[4].partition(":")[2], 16)
    return 0


def reset(connected: socket.socket) -> None:
    """Close with RST."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connected.close()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """An address whose accept queue is full: SYNs vanish there."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"
