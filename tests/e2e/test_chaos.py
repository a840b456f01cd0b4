"""Everything at once: load of every kind, changes, dying endpoints and rude clients; at the end nothing is left behind.

What each of them must see is tested elsewhere. Here lb must live, answer, and come to rest.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.client import chunked, get, post
from tests.harness.messages import Malformed, Truncated
from tests.harness.native import Native, forward, respond
from tests.harness.payload import payload
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.waiting import wait_until

ROUNDS = 60
"""Changes of the configuration; the storm lasts as long as they take."""


def moody(connection: BackendConnection) -> None:
    """Mostly answers, of all sizes and framings; now and then late, wrong, cut short, or not at all."""
    chance = random.Random(connection.number)
    while (request := connection.read()) is not None:
        body = payload(chance.choice((0, 10, 5_000, 200_000)))
        if request.headers.all("upgrade"):
            connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello")
            connection.wait_for_end()
            return
        match chance.randrange(20):
            case 0:
                connection.reset()
                return
            case 1:
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", body)
                return
            case 2:
                connection.send(b"garbage\r\n\r\n")
            case 3:
                connection.send(b"HTTP/1.1 200 OK\r\n\r\n", body)
                return
            case 4:
                connection.send(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokPOISON")
            case 5 | 6 | 7 | 8:
                connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                connection.send(chunked(body) if body else chunked())
            case _:
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)


class Storm:
    """Threads that do what clients do, until they are told to stop."""

    def __init__(self, site: Serving) -> None:
        self.site = site
        self.over = threading.Event()
        self.seen: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self.kinds = (self.polite, self.pipelining, self.rude, self.uploading, self.half_closing, self.tunnelling)
        self.threads = [
            threading.Thread(target=self.repeat, args=(kind, seed)) for seed, kind in enumerate(self.kinds * 2)
        ]

    def repeat(self, kind: Callable[[random.Random], None], seed: int) -> None:
        chance = random.Random(seed)
        while not self.over.is_set():
            try:
                kind(chance)
                self.seen[kind.__name__] += 1
            except (Truncated, ConnectionError):
                self.seen[f"{kind.__name__} cut short"] += 1
            except (Malformed, AssertionError, TimeoutError) as error:
                self.errors.append(error)
                return

    def all_seen(self) -> bool:
        return bool(self.errors) or all(kind.__name__ in self.seen for kind in self.kinds)

    def polite(self, chance: random.Random) -> None:
        with self.site.connect() as client:
            for _ in range(chance.randint(1, 20)):
                if client.ask(get(chance.choice(("moody.test", "local.test")))).closes:
                    return

    def pipelining(self, chance: random.Random) -> None:
        count = chance.randint(2, 20)
        with self.site.connect() as client:
            client.send(get("moody.test") * count)
            for _ in range(count):
                if client.response().closes:
                    return

    def rude(self, chance: random.Random) -> None:
        client = self.site.connect()
        client.send(post("moody.test", payload(10_000))[: chance.randrange(10_100)])
        if chance.randrange(2):
            client.reset()
        client.close()

    def uploading(self, chance: random.Random) -> None:
        size = chance.choice((0, 100, 70_000, 500_000))
        with self.site.connect() as client:
            if chance.randrange(2):
                client.ask(post("moody.test", payload(size)))
            else:
                head = get("moody.test", "/", "Transfer-Encoding: chunked", method="POST")
                client.ask(head + (chunked(payload(size)) if size else chunked()))

    def half_closing(self, chance: random.Random) -> None:
        with self.site.connect() as client:
            client.send(get("moody.test"))
            client.finish()
            client.rest()

    def tunnelling(self, chance: random.Random) -> None:
        with self.site.connect() as client:
            client.send(get("moody.test", "/", "Connection: Upgrade", "Upgrade: x"))
            if client.reader.response_head().status == 101:
                client.send(payload(chance.randint(1, 50_000)))
                client.reader.take(5)

    def __enter__(self) -> Storm:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.timeout(300)
def test_everything_at_once(tmp_path: Path) -> None:
    backends = {name: RawBackend(moody) for name in "abc"}
    native = Native()
    # Shorter than the wait for rest: a reset of a client's may get lost (tests/harness/backend.py says how).
    native.listen("http", free_port(), head_timeout="10s", idle_timeout="10s", keepalive_timeout="10s")
    native.serve("moody.test", *backends.values(), max_connections=20, connect_timeout="1s")
    native.host("local.test", respond("local", 200, "from lb"))
    with serving(tmp_path, native, backends, threads=3) as site:
        chance = random.Random(7)
        with Storm(site) as storm:
            for number in range(ROUNDS):
                present = [backend for backend in backends.values() if chance.randrange(3)]
                balance = chance.choice(("round-robin", "least-connections"))
                native.upstream("moody.test", present, balance=balance, max_connections=chance.choice((0, 5, 50)))
                native.upstream(f"more-{number % 5}", present)
                native.host(f"more-{number % 5}.test", forward(f"more-{number}", f"more-{number % 5}"))
                native.host("generation.test", respond("generation", 200, str(number)))
                if number % 10 == 0:
                    chance.choice(list(backends.values())).drop_connections()
                site.apply()
                assert not storm.errors
            wait_until(storm.all_seen, "every kind of client comes to its end at least once")
        assert storm.errors == []
        site.lb.assert_healthy()
        native.upstream("moody.test", backends.values())
        site.apply()

        def served() -> bool:
            with contextlib.suppress(Truncated, ConnectionError), site.connect() as client:
                return client.ask(get("moody.test")).status == 200
            return False

        wait_until(served, "it serves")
        site.lb.assert_at_rest()
        for backend in backends.values():
            backend.assert_clean()
