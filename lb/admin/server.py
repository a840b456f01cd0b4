"""Serves the admin API on a Unix socket and, when asked for, on TCP, in the daemon's own event loop.

Owns the sockets and their file modes. uvicorn speaks HTTP (h11); signals stay with the application.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lb.admin.api import make_app
from lb.admin.daemon import Daemon
from lb.settings import Admin, default_admin_socket, parse_bind
from lb.sockets import bind_unix, remove_stale_socket

log = structlog.stdlib.get_logger(__name__)

BACKLOG = 128


class AdminServer:
    """The admin API's servers."""

    def __init__(self, daemon: Daemon, settings: Admin) -> None:
        self._daemon = daemon
        self._settings = settings
        self.path = settings.socket or default_admin_socket()
        self.address = ""
        """TCP address it really has, when it has one."""
        self._identity: tuple[int, int] | None = None
        self._running: list[tuple[_Server, asyncio.Task[None]]] = []

    async def start(self) -> None:
        """OSError when a socket cannot be opened."""
        self._start(self._open_unix(), make_app(self._daemon, may_change=True))
        if self._settings.address:
            opened = self._open_tcp()
            self.address = "{}:{}".format(*opened.getsockname())
            self._start(opened, make_app(self._daemon, may_change=False))
        log.info("admin API", socket=self.path, address=self.address or None)

    async def stop(self) -> None:
        """Answer what is under way, then close."""
        for server, _ in self._running:
            server.stop()
        await asyncio.gather(*(task for _, task in self._running))
        self._running.clear()
        self._remove_socket()

    def _remove_socket(self) -> None:
        """Only when it is still ours: a successor may already have replaced it."""
        with suppress(FileNotFoundError):
            if self._identity == _identity(self.path):
                Path(self.path).unlink()

    def _start(self, opened: socket.socket, app: Starlette) -> None:
        config = uvicorn.Config(
            _dated(app),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
            limit_concurrency=256,
        )
        server = _Server(config)
        self._running.append((server, asyncio.create_task(server.serve([opened]))))

    def _open_unix(self) -> socket.socket:
        directory = Path(self.path).parent
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        if directory.stat().st_uid not in (0, os.getuid()):
            # In /tmp somebody else may have made the directory first.
            raise PermissionError(f"{directory} belongs to another user")
        remove_stale_socket(self.path)
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        bind_unix(opened, self.path, int(self._settings.socket_mode, 8))
        opened.listen(BACKLOG)  # from here on clients wait instead of being refused
        self._identity = _identity(self.path)
        return opened

    def _open_tcp(self) -> socket.socket:
        bind = parse_bind(self._settings.address)
        family = socket.AF_INET6 if ":" in bind.address else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((bind.address, bind.port))
        return opened


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Answer what is under way, then end."""
        self.should_exit = True
        self._stopped.set()

    async def main_loop(self) -> None:
        """Sleep until told to stop. uvicorn's own looks ten times a second, mostly to keep the date for its answers."""
        await self._stopped.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The application handles signals."""
        yield


def _dated(app: ASGIApp) -> ASGIApp:
    """`app` with the date in its answers. Source: RFC 9110 section 6.6.1."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                date = formatdate(usegmt=True).encode()
                message = {**message, "headers": [(b"date", date), *message.get("headers", ())]}
            await send(message)

        await app(scope, receive, send_dated)

    return answer


def _identity(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_dev, status.st_ino
