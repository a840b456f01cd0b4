"""Steady load on keep-alive connections that remembers everything which went wrong."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Callable

from tests.harness.client import Address
from tests.harness.waiting import DEADLINE, wait_until


class Load:
    """`connections` clients that ask one request after the other until they are stopped.

    `request` makes the next request of a running number. A connection that lb closes is counted and replaced.
    """

    def __init__(
        self, address: Address, request: Callable[[int], bytes] | bytes, *, connections: int = 16, pause: float = 0.0
    ) -> None:
        self.address = address
        self.request = request if callable(request) else lambda _: request
        self.connections = connections
        self.pause = pause
        self.statuses: Counter[int] = Counter()
        self.backends: Counter[str] = Counter()
        self.closed = 0
        """Connections that ended although nobody said that they would."""
        self.failures: list[str] = []
        """Requests without an answer of status 200."""
        self.answered: list[int] = []
        """Numbers of the requests with status 200; kept only while `remember`."""
        self.remember = False
        self._numbers = itertools.count()
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @property
    def succeeded(self) -> int:
        return self.statuses[200]

    def start(self) -> Load:
        self._thread.start()
        self.wait_for_progress()
        return self

    def wait_for_progress(self, count: int = 50) -> None:
        """Until so many more requests have been answered."""
        goal = self.statuses.total() + count
        wait_until(lambda: self.statuses.total() >= goal or len(self.failures) > 1_000, "the load makes progress")

    def stop(self) -> None:
        self._stopping = True
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "requests hang"

    def assert_perfect(self) -> None:
        """Every request was answered with 200, on the connection it began with."""
        assert not self.failures, f"{len(self.failures)} of {self.statuses.total()} failed: {self.failures[:10]}"
        assert self.closed == 0, f"{self.closed} keep-alive connections closed"
        assert self.succeeded > 0

    def __enter__(self) -> Load:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self.connections)))

    async def _client(self) -> None:
        while not self._stopping:
            try:
                reader, writer = await asyncio.open_connection(*self.address)
            except OSError as error:
                self.failures.append(f"connect: {error!r}")
                await asyncio.sleep(0.01)
                continue
            try:
                await self._converse(reader, writer)
            finally:
                writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self._stopping:
            number = next(self._numbers)
            try:
                writer.write(self.request(number))
                async with asyncio.timeout(DEADLINE):
                    closes = await self._answer(reader, number)
            except (OSError, EOFError, TimeoutError) as error:
                self.closed += 1
                self.failures.append(f"{number}: {error!r}")
                return
            if closes:
                self.closed += 1
                return
            if self.pause:
                await asyncio.sleep(self.pause)

    async def _answer(self, reader: asyncio.StreamReader, number: int) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        await reader.readexactly(int(fields["content-length"]))
        status = int(first.split(" ")[1])
        self.statuses[status] += 1
        if status != 200:
            self.failures.append(f"{number}: {first}")
        elif self.remember:
            self.answered.append(number)
        if "x-backend" in fields:
            self.backends[fields["x-backend"]] += 1
        return fields.get("connection", "").lower() == "close"
