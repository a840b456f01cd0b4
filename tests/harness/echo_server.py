"""A small HTTP/1.1 server as a process of its own, so that it can be killed and paused.

`python -m tests.harness.echo_server NAME PORT [JOURNAL]`. Every answer has the server's name in X-Backend. `/slow/MS`
waits that long. The X-Id of every request that was read to its end is appended to the journal before it is answered.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from tests.harness.ports import free_port
from tests.harness.waiting import DEADLINE

ROOT = Path(__file__).resolve().parents[2]


class _Server(asyncio.Protocol):
    def __init__(self, name: str, journal: int | None) -> None:
        self.name = name
        self.journal = journal
        self.buffer = b""
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._next()

    def _next(self) -> None:
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        if self.busy or not end:
            return
        first, *lines = head.split(b"\r\n")
        fields = {key.lower(): value.strip() for key, _, value in (line.partition(b":") for line in lines)}
        length = int(fields.get(b"content-length", b"0"))
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        self.busy = True
        if self.journal is not None and b"x-id" in fields:
            os.write(self.journal, fields[b"x-id"] + b"\n")
        method, target, _ = first.split(b" ")
        delay = int(target.rpartition(b"/")[2]) / 1_000 if target.startswith(b"/slow/") else 0.0
        if delay:
            asyncio.get_running_loop().call_later(delay, self._answer, method)
        else:
            self._answer(method)

    def _answer(self, method: bytes) -> None:
        body = self.name.encode()
        head = b"HTTP/1.1 200 OK\r\nX-Backend: %b\r\nContent-Length: %d\r\n\r\n" % (body, len(body))
        self.transport.write(head if method == b"HEAD" else head + body)
        self.busy = False
        self._next()


async def _serve(name: str, port: int, journal: str | None) -> None:
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if journal else None
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Server(name, descriptor), "127.0.0.1", port, backlog=1_024)
    print("ready", flush=True)
    await server.serve_forever()


class EchoServer:
    """The server as a child process."""

    def __init__(self, name: str, journal: Path | None = None) -> None:
        self.name = name
        self.port = free_port()
        self.journal = journal
        self.start()

    @property
    def key(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, also again on the same port."""
        command = [sys.executable, "-m", "tests.harness.echo_server", self.name, str(self.port)]
        self.process = subprocess.Popen(
            [*command, *([str(self.journal)] if self.journal else [])], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)

    def __enter__(self) -> EchoServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None))
