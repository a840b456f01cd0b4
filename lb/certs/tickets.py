"""Keys of session tickets: made here and rotated, or given from outside so that several hosts share them.

A ticket is good for as long as its key is known. Three keys overlap, so that no client of the last day has to begin
anew when a key goes, and none lives longer than three rotations (RFC 5077 5.5; nginx and HAProxy advise the same).
Keys are never logged: who has one can read what was sent in the sessions that were resumed with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Protocol

ROTATE_SECONDS = 12 * 3600
KEPT = 3
KEY_BYTES = 80
SHORT_KEY_BYTES = 48
"""nginx's older form, for AES-128."""
MOST_KEYS = 8
"""As many as the engine takes."""

_NAME = 16


class TakesTicketKeys(Protocol):
    def set_ticket_keys(self, keys: Sequence[bytes]) -> None: ...


def read_keys(contents: Iterable[tuple[str, bytes]]) -> list[bytes]:
    """(where it is from, content) of each key as the engine takes them, the first one first. ValueError, without the
    content, when one is no key.

    nginx's `ssl_session_ticket_key`: 80 random bytes are a name of 16, an HMAC key of 32 and an AES-256 key of 32
    (ngx_event_openssl.c, ngx_ssl_session_ticket_keys); 48 bytes are a name, an AES-128 key and an HMAC key of 16 each.
    """
    keys = []
    for where, content in contents:
        if len(content) == KEY_BYTES:
            name, mac, cipher = content[:_NAME], content[_NAME:48], content[48:]
            keys.append(name + cipher + mac)
        elif len(content) == SHORT_KEY_BYTES:
            keys.append(content)
        else:
            raise ValueError(f"{where} has {len(content)} bytes: a ticket key has {KEY_BYTES} or {SHORT_KEY_BYTES}")
    if len(keys) > MOST_KEYS:
        raise ValueError(f"there are {len(keys)} ticket keys: at most {MOST_KEYS} are used")
    return keys


class TicketKeys:
    """The keys in use, the newest first."""

    def __init__(self, engine: TakesTicketKeys, rotate_seconds: float = ROTATE_SECONDS) -> None:
        self._engine = engine
        self._rotate_seconds = rotate_seconds
        self._keys: list[bytes] = []
        self._made_at = float("-inf")
        self.are_shared = False
        """Whether they come from outside: then whoever makes them rotates them."""

    def rotate(self, now: float) -> None:
        """Make a new key when it is time; `now` in seconds of a steady clock."""
        if self.are_shared or now - self._made_at < self._rotate_seconds:
            return
        self._made_at = now
        self._keys = [os.urandom(KEY_BYTES), *self._keys][:KEPT]
        self._engine.set_ticket_keys(self._keys)

    def share(self, keys: Sequence[bytes]) -> bool:
        """Use these from now on, as `read_keys` gives them. Returns whether they are others than before."""
        if not keys or (self.are_shared and self._keys == list(keys)):
            return False
        self.are_shared = True
        self._keys = list(keys)
        self._engine.set_ticket_keys(self._keys)
        return True
