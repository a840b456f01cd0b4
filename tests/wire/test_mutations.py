"""Damaged requests and responses, thousands of them: no crash, no hang, and no broken invariant at the backend.

The seeds are fixed, so a failure names the bytes that caused it and comes again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.client import get
from tests.harness.native import Native
from tests.harness.serving import Serving, serving
from tests.wire import request_cases, response_cases

SPICES = (
    *(b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"1", b"f", b"\xff"),
    *(b"%", b"..", b"//", b"#", b"?", b"HTTP/1.0", b"0\r\n\r\n"),
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: x\r\n",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
)
BATCHES = 20
PER_BATCH = 50


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A few bytes removed, doubled, swapped for others or put in between."""
    mutant = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(mutant) + 1)
        match chance.randrange(4):
            case 0:
                del mutant[place : place + chance.randint(1, 4)]
            case 1:
                mutant[place:place] = chance.choice(SPICES)
            case 2:
                mutant[place : place + 1] = chance.choice(SPICES)
            case _:
                end = chance.randrange(place, len(mutant) + 1)
                mutant[place:place] = mutant[place : min(end, place + 50)]
    return bytes(mutant)


class Saboteur:
    """Answers `/bad` with the bytes it was given last, and everything else well."""

    def __init__(self) -> None:
        self.reply = b""

    def __call__(self, connection: BackendConnection) -> None:
        while (request := connection.read()) is not None:
            token = request.headers.get("x-token")
            if request.target == b"/bad":
                connection.send(self.reply)
                return
            body = token or b"ok"
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    backends = {"wire.test": RawBackend(Saboteur())}
    native = Native()
    native.serve("wire.test", backends["wire.test"])
    native.serve("*", backends["wire.test"])
    with serving(tmp_path_factory.mktemp("mutations"), native, backends) as started:
        yield started


def assert_sound(wire: Serving, token: int) -> None:
    wire.lb.assert_healthy()
    wire.backends["wire.test"].assert_clean()
    with wire.connect() as client:
        answer = client.ask(get("wire.test", "/", f"X-Token: {token}"))
        assert (answer.status, answer.body) == (200, str(token).encode())


@pytest.mark.parametrize("batch", range(BATCHES))
def test_damaged_requests(batch: int, wire: Serving) -> None:
    chance = random.Random(batch)
    small = [case.raw for case in request_cases.CASES if len(case.raw) < 1_000]
    for number in range(PER_BATCH):
        data = damaged(chance.choice(small), chance) + damaged(chance.choice(small), chance)
        with wire.connect() as client:
            client.send(data)
            client.finish()
            seen = client.rest()
        assert seen == b"" or seen.startswith(b"HTTP/1.1 "), f"{number}: {data!r} gave {seen!r}"
    assert_sound(wire, batch)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_damaged_responses(batch: int, wire: Serving) -> None:
    chance = random.Random(1_000 + batch)
    script = wire.backends["wire.test"].script
    assert isinstance(script, Saboteur)
    small = [case.reply for case in response_cases.CASES if 0 < len(case.reply) < 1_000]
    for number in range(PER_BATCH):
        script.reply = damaged(chance.choice(small), chance)
        method = chance.choice(("GET", "GET", "HEAD"))
        with wire.connect() as client:
            client.send(get("wire.test", "/bad", method=method))
            client.finish()
            seen = client.rest()
        assert seen.startswith(b"HTTP/1.1 "), f"{number}: {script.reply!r} gave {seen!r}"
    assert_sound(wire, batch)
