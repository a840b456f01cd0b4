"""Thousands of connections at once: descriptors for them, and a server for all of them in one thread."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import threading
from collections.abc import Iterator


class EchoLoop:
    """Sends back what comes, on thousands of connections in one thread. `addresses` are what it listens on."""

    def __init__(self, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._over = False
        self._listeners = []
        for number in range(count):
            listener = socket.create_server((f"127.0.0.{101 + number}", 0), backlog=4_096)
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
            self._listeners.append(listener)
        self.addresses = ["{}:{}".format(*listener.getsockname()) for listener in self._listeners]
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(0.1):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready in self._listeners:
                    self._accept(ready)
                else:
                    self._echo(ready)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                connected, _ = listener.accept()
                connected.setblocking(False)
                self._selector.register(connected, selectors.EVENT_READ)

    def _echo(self, connected: socket.socket) -> None:
        with contextlib.suppress(ConnectionResetError):
            if data := connected.recv(65_536):
                connected.sendall(data)
                return
        self._selector.unregister(connected)
        connected.close()

    def __enter__(self) -> EchoLoop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()


@contextlib.contextmanager
def descriptors(wanted: int) -> Iterator[int]:
    """As many as that, or as many as this user may have; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, PermissionError):  # what root may
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    try:
        yield resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        with contextlib.suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
