"""Whether an endpoint is healthy, out of one check after another: rise and fall. Pure; knows nothing of time.

The states are HAProxy's (configuration manual, `rise`, `fall`, `init-state up`): the first check decides alone, which
is also what Envoy and AWS's load balancers do with a first success.
"""

from __future__ import annotations

from typing import Literal

State = Literal["untested", "healthy", "unhealthy"]
Pace = Literal["normal", "fast", "down"]


class Health:
    """One endpoint under one check."""

    __slots__ = ("_against", "_is_new", "state")

    def __init__(self, inherited: State = "untested") -> None:
        """`inherited` is what another check of the same endpoint said: it stands until the first result."""
        self.state: State = inherited
        self._is_new = True
        self._against = 0

    def take(self, *, passed: bool, rise: int, fall: int) -> bool:
        """Take a result; whether it changed the state."""
        says: State = "healthy" if passed else "unhealthy"
        if says == self.state:
            self._is_new = False
            self._against = 0
            return False
        self._against += 1
        if not self._is_new and self._against < (rise if passed else fall):
            return False
        self.state = says
        self._is_new = False
        self._against = 0
        return True

    @property
    def pace(self) -> Pace:
        """How soon the next check is wanted."""
        if self._against:
            return "fast"
        return "down" if self.state == "unhealthy" else "normal"
