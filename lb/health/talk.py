"""What a check says to an endpoint and what it makes of the answer, without any socket: the interface of the codecs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from lb import __version__
from lb.health.verdict import Verdict
from lb.model.health import HealthCheck, header_lines

USER_AGENT = f"lb-health-check/{__version__}"


class Asked(NamedTuple):
    """Where a request goes."""

    host: str
    """Host or :authority."""
    is_tls: bool


class Talk(Protocol):
    """One request and its response."""

    def begin(self) -> bytes:
        """What to send first."""

    def receive(self, data: bytes) -> Verdict | None:
        """Take what came; a verdict when there is one."""

    def take_output(self) -> bytes:
        """What is to be sent after `receive`."""

    def end(self) -> Verdict:
        """The endpoint has closed."""


class Question(Protocol):
    """What is asked again and again."""

    def open(self) -> Talk:
        """A talk on a new connection."""


CLOSED = Verdict("closed", "the endpoint closed the connection before it answered")


def own_headers(check: HealthCheck) -> Iterator[tuple[str, str]]:
    """The check's own header lines, and lb's name when they say no other."""
    lines = list(header_lines(check))
    if all(name.lower() != "user-agent" for name, _ in lines):
        yield "User-Agent", USER_AGENT
    yield from lines
