"""Damaged sessions, a thousand of them: no crash, no hang, well-formed frames in answer, nothing broken at endpoints.

The seeds are fixed, so a failure names the bytes that caused it and comes again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.harness.backend import RawBackend
from tests.harness.client import RawClient, random_splits
from tests.harness.http2_backend import Http2Backend
from tests.harness.http2_client import (
    PREFACE,
    Http2Client,
    Part,
    data,
    frame_bytes,
    ping,
    reset,
    settings,
    window_update,
)
from tests.harness.native import Native
from tests.harness.serving import Serving, serving
from tests.wire.http2.request_cases import CASES

BATCHES = 20
PER_BATCH = 50
SPICES = (
    *(b"\0", b"\x01", b"\x04", b"\x05", b"\x7f", b"\x80", b"\x82", b"\xff", b"\x40", b"\x3f\xe1\x1f"),
    frame_bytes(0, 1, 1, b"GET /evil HTTP/1.1\r\nHost: a\r\n\r\n"),
    frame_bytes(1, 5, 1),
    frame_bytes(9, 4, 1),
    settings((4, 0)),
    settings((4, 0x7FFFFFFF)),
    window_update(0, 0x7FFFFFFF),
    window_update(1, 1),
    frame_bytes(7, 0, 0, bytes(8)),
)


@dataclass
class Wire:
    serving: Serving
    old: RawBackend
    new: Http2Backend


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    old = RawBackend()
    native = Native()
    native.serve("old.test", old)
    with Http2Backend() as new:
        native.serve("new.test", new.key, protocol="http2")
        with serving(tmp_path_factory.mktemp("http2-mutations"), native, {"old.test": old}) as started:
            yield Wire(started, old, new)


class Recorder(RawClient):
    """Keeps what an Http2Client says instead of sending it."""

    def __init__(self) -> None:
        self.said = bytearray()

    def send(self, data: object) -> None:
        assert not isinstance(data, bytes)
        for piece in data:  # type: ignore[attr-defined]
            self.said += piece


def session(chance: random.Random, host: str) -> bytes:
    """A client's whole session: requests, some of them from the table of cases, with other frames between."""
    recorder = Recorder()
    client = Http2Client(recorder)
    for stream in range(1, 2 * chance.randint(1, 4), 2):
        client.send(*request(chance, client, stream, host))
        if chance.random() < 0.3:
            client.send(chance.choice((ping(), settings((4, 70_000)), window_update(0, 9), reset(stream), b"")))
    return bytes(recorder.said)


def request(chance: random.Random, client: Http2Client, stream: int, host: str) -> list[Part]:
    case = chance.choice(CASES)
    fields = [
        (name, value.replace("wire.test", host) if isinstance(value, str) else value)
        for name, value in case.fields
        if len(value) < 500
    ]
    parts: list[Part] = [client.headers(stream, *fields[:30], end=case.data is None)]
    parts += [data(stream, payload, pad=chance.choice((None, None, 0, 5))) for payload in case.data or ()]
    if case.data is not None:
        parts.append(client.headers(stream, ("x-t", "1")) if chance.random() < 0.3 else data(stream, b"", "END_STREAM"))
    return parts


def damaged(stream: bytes, chance: random.Random) -> bytes:
    """A few bytes removed, doubled, swapped for others or put in between, and sometimes whole frames moved."""
    mutant = bytearray(stream)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(PREFACE), len(mutant) + 1)
        match chance.randrange(5):
            case 0:
                del mutant[place : place + chance.randint(1, 12)]
            case 1:
                mutant[place:place] = chance.choice(SPICES)
            case 2:
                mutant[place : place + 1] = chance.choice(SPICES)
            case 3:
                end = chance.randrange(place, len(mutant) + 1)
                mutant[place:place] = mutant[place : min(end, place + 50)]
            case _:
                mutant[place : place + 1] = bytes((chance.randrange(256),))
    return bytes(mutant)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_damaged_sessions(batch: int, wire: Wire) -> None:
    chance = random.Random(batch)
    for number in range(PER_BATCH):
        mutant = damaged(session(chance, chance.choice(("old.test", "new.test"))), chance)
        with wire.serving.connect() as raw:
            raw.send(random_splits(mutant, number) if number % 3 == 0 else mutant)
            raw.finish()
            check_frames(raw.rest(), mutant)
    wire.serving.lb.assert_healthy()
    wire.old.assert_clean()
    wire.new.assert_clean()
    for host in ("old.test", "new.test"):
        with Http2Client(wire.serving.connect()) as client:
            assert client.ask(host=host).status == 200


def check_frames(said: bytes, mutant: bytes) -> None:
    """Whole frames of known types, SETTINGS first; a reset may have cut off the last one."""
    at = 0
    while at + 9 <= len(said):
        length, kind = int.from_bytes(said[at : at + 3], "big"), said[at + 3]
        assert length <= 16_384, f"{said!r} to {mutant!r}"
        assert kind in (0, 1, 3, 4, 6, 7, 8), f"{said!r} to {mutant!r}"
        assert at or kind == 4, f"{said!r} to {mutant!r}"
        at += 9 + length
