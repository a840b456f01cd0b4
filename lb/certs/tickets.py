"""Keys of session tickets: made here, rotated, and the same for all reactors.

A ticket is good for as long as its key is known. Three keys overlap, so that no client of the last day has to begin
anew when a key goes, and none lives longer than three rotations (RFC 5077 5.5; nginx and HAProxy advise the same).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

ROTATE_SECONDS = 12 * 3600
KEPT = 3
KEY_BYTES = 80


class TakesTicketKeys(Protocol):
    def set_ticket_keys(self, keys: Sequence[bytes]) -> None: ...


class TicketKeys:
    """The keys in use, the newest first."""

    def __init__(self, engine: TakesTicketKeys) -> None:
        self._engine = engine
        self._keys: list[bytes] = []
        self._made_at = float("-inf")

    def rotate(self, now: float) -> None:
        """Make a new key when it is time; `now` in seconds of a steady clock."""
        if now - self._made_at < ROTATE_SECONDS:
            return
        self._made_at = now
        self._keys = [os.urandom(KEY_BYTES), *self._keys][:KEPT]
        self._engine.set_ticket_keys(self._keys)
