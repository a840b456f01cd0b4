"""How many checks are under way at once: those that are due start in order, a few in each turn of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

MOST = 1_024
"""Checks under way at the most. A check of an endpoint that does not answer is under way for its whole timeout."""
_DESCRIPTORS_SHARE = 16
_A_TURN = 16
"""Checks that start in one turn, so that thousands that are due at once do not keep the loop from all else."""


def most_at_once(descriptors: int) -> int:
    """How many checks may be under way in a process that may have so many descriptors."""
    return max(1, min(MOST, descriptors // _DESCRIPTORS_SHARE))


class Due(Protocol):
    """A check that wants to start."""

    is_closed: bool

    def begin(self) -> None:
        """Start. `Runner.release` follows when it has ended."""


class Runner:
    """Starts what is due."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Due] = deque()
        self._is_pumping = False
        self.running = 0

    def enqueue(self, due: Due, *, first: bool) -> None:
        """Start it when there is room; `first`: before all others, because nothing is known of its endpoint."""
        if first:
            self._waiting.appendleft(due)
        else:
            self._waiting.append(due)
        self._pump_soon()

    def release(self) -> None:
        """One has ended."""
        self.running -= 1
        self._pump_soon()

    def _pump_soon(self) -> None:
        if self._waiting and not self._is_pumping and self.running < self._limit:
            self._is_pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pumping = False
        for _ in range(_A_TURN):
            if not self._waiting or self.running >= self._limit:
                return
            due = self._waiting.popleft()
            if not due.is_closed:
                self.running += 1
                due.begin()
        self._pump_soon()
