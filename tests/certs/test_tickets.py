"""Session ticket keys: rotated here, or given from outside."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from lb.certs.tickets import KEPT, KEY_BYTES, MOST_KEYS, TicketKeys, read_keys


class Engine:
    def __init__(self) -> None:
        self.given: list[list[bytes]] = []

    def set_ticket_keys(self, keys: Sequence[bytes]) -> None:
        self.given.append(list(keys))


def test_keys_overlap_and_end() -> None:
    engine = Engine()
    tickets = TicketKeys(engine, rotate_seconds=100)
    for now in range(0, 500, 10):
        tickets.rotate(now)
    assert len(engine.given) == 5
    firsts = [keys[0] for keys in engine.given]
    assert len(set(firsts)) == 5
    assert engine.given[-1] == firsts[:1:-1]
    assert all(len(keys) <= KEPT and all(len(key) == KEY_BYTES for key in keys) for keys in engine.given)


def test_shared_keys_are_not_rotated_here() -> None:
    engine = Engine()
    tickets = TicketKeys(engine)
    tickets.rotate(0)
    keys = read_keys([("a", os.urandom(80)), ("b", os.urandom(80))])
    assert tickets.share(keys)
    assert not tickets.share(keys)
    tickets.rotate(1e9)
    assert engine.given[1:] == [keys]
    assert tickets.share(keys[::-1])
    assert not tickets.share([])
    assert engine.given[2:] == [keys[::-1]]


def test_forms_of_keys() -> None:
    """nginx: name, HMAC key, AES key; the engine: name, AES key, HMAC key."""
    name, mac, cipher = b"n" * 16, b"m" * 32, b"c" * 32
    assert read_keys([("a", name + mac + cipher)]) == [name + cipher + mac]
    short = name + b"c" * 16 + b"m" * 16
    assert read_keys([("a", short)]) == [short], "of the short form nginx has the same order as the engine"


@pytest.mark.parametrize("content", [b"", b"x" * 79, b"x" * 81, b"x" * 64])
def test_what_is_no_key_is_told_without_it(content: bytes) -> None:
    with pytest.raises(ValueError, match=f"current.key has {len(content)} bytes") as caught:
        read_keys([("current.key", content)])
    assert "xxxx" not in str(caught.value)


def test_too_many_keys() -> None:
    with pytest.raises(ValueError, match="at most"):
        read_keys([(str(number), os.urandom(80)) for number in range(MOST_KEYS + 1)])
