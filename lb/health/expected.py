"""Whether a response of HTTP, of either version, is the one that is wanted: its status, and a text in its body."""

from __future__ import annotations

from lb.health.verdict import PASSED, Verdict
from lb.model.health import HealthCheck, status_ranges

BODY_BYTES = 65_536
"""How much of a body is looked at."""


class Expected:
    """What responses must be."""

    def __init__(self, check: HealthCheck) -> None:
        self.ranges = status_ranges(check)
        self.body = check.body.encode()


class Answer:
    """One response. Each step gives a verdict as soon as there is one."""

    __slots__ = ("_body", "_expected")

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._body = bytearray()

    def take_status(self, status: int) -> Verdict | None:
        if not any(status in one for one in self._expected.ranges):
            return Verdict("wrong-status", f"status {status}")
        return None if self._expected.body else PASSED

    def take_body(self, data: bytes) -> Verdict | None:
        wanted = self._expected.body
        # Where a text that ends in `data` begins at the earliest: an endpoint may send one byte at a time.
        start = max(0, len(self._body) - len(wanted) + 1)
        self._body += data[: BODY_BYTES - len(self._body)]
        if self._body.find(wanted, start) >= 0:
            return PASSED
        return self.end() if len(self._body) == BODY_BYTES else None

    def end(self) -> Verdict:
        """The response is complete, or enough of it."""
        return Verdict("wrong-body", "the text that should be in the body is not there")
