"""Plain UDP: endpoints that answer as a test says, and clients whose datagrams a test counts."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator

from tests.harness.waiting import DEADLINE, wait_until

Answer = Callable[[bytes], Iterable[bytes]]
ROOM = 4 << 20
"""Receive buffer of a test's sockets, as far as net.core.rmem_max lets it be."""

UDP_SEGMENT = 103
UDP_GRO = 104
"""Source: linux/udp.h; the socket module has them from Python 3.13 on."""


def udp_socket(address: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """Bound, with a timeout and a large buffer."""
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
    made.bind((address, port))
    made.settimeout(DEADLINE)
    return made


def begin_sessions(client: socket.socket, port: int, count: int, begun: Callable[[], int]) -> None:
    """Each address of lb that is asked makes a session of its own. No faster than they begin: `begun` counts them."""
    for number in range(count):
        client.sendto(b"x", (f"127.1.{number // 250}.{number % 250 + 1}", port))
        if number % 100 == 99:
            wait_until(lambda sent=number + 1: begun() == sent, "they have begun")  # type: ignore[misc]


class UdpServer:
    """An endpoint. Each datagram is answered by what `answer` makes of it, or waits for `receive`."""

    def __init__(self, answer: Answer | None = None, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self._answer = answer
        self._socket = udp_socket(address, port)
        self._received: queue.Queue[tuple[bytes, tuple[str, int]]] = queue.Queue()
        self.address = address
        self.port: int = self._socket.getsockname()[1]
        self.datagrams = 0
        self.senders: set[tuple[str, int]] = set()
        self._open = True
        self._thread = threading.Thread(target=self._run, name=f"udp server {self.port}", daemon=True)
        self._thread.start()

    @property
    def key(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def receive(self, timeout: float = DEADLINE) -> tuple[bytes, tuple[str, int]]:
        """The next datagram, and who sent it."""
        return self._received.get(timeout=timeout)

    def send(self, data: bytes, to: tuple[str, int]) -> None:
        self._socket.sendto(data, to)

    def send_train(self, data: bytes, piece: int, to: tuple[str, int]) -> None:
        """As many datagrams as `data` has pieces, with one system call."""
        self._socket.sendmsg([data], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", piece))], 0, to)

    def _run(self) -> None:
        while self._open:
            try:
                data, sender = self._socket.recvfrom(70_000)
            except TimeoutError:
                continue
            except OSError:
                return
            if not self._open:
                return
            self.datagrams += 1
            self.senders.add(sender[:2])
            if self._answer is None:
                self._received.put((data, sender[:2]))
                continue
            for one in self._answer(data):
                with contextlib.suppress(OSError):
                    self._socket.sendto(one, sender)

    def close(self) -> None:
        """From now on its host answers with ICMP that nobody is there."""
        self._open = False
        with contextlib.suppress(OSError):  # from itself: it may stand in another network namespace than who closes it
            self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(DEADLINE)
        self._socket.close()

    def __enter__(self) -> UdpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def echo(data: bytes) -> Iterable[bytes]:
    return (data,)


def named(name: str) -> Answer:
    """Says its name before what came."""
    return lambda data: (name.encode() + data,)


@contextlib.contextmanager
def udp_client(to: tuple[str, int], address: str = "") -> Iterator[socket.socket]:
    """Connected, so that only answers from the very address that was asked come in."""
    with udp_socket(address or ("::1" if ":" in to[0] else "127.0.0.1")) as client:
        client.connect(to)
        yield client


def ask(client: socket.socket, data: bytes) -> bytes:
    client.send(data)
    return client.recv(70_000)


def hears_nothing(client: socket.socket, seconds: float = 0.2) -> bool:
    """Whether nothing comes for a moment. For what must not come; what must come is waited for otherwise."""
    client.settimeout(seconds)
    try:
        client.recv(70_000)
    except TimeoutError:
        return True
    finally:
        client.settimeout(DEADLINE)
    return False
