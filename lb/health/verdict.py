"""How a check can end: the one list. Metric label, log field and documentation come from it."""

from __future__ import annotations

from typing import NamedTuple

RESULTS = {
    "passed": "the endpoint answered as it should",
    "refused": "the endpoint refused the connection, or its Unix socket does not exist",
    "unreachable": "the connection could not be made for another reason, such as no route to the host",
    "timeout": "no answer in `timeout`",
    "tls-failed": "the TLS handshake failed: nobody to trust, another name, nothing in common",
    "closed": "the endpoint closed or reset the connection, or the stream, before it answered",
    "bad-response": "what came is no response of the protocol, or none in the first 128 KiB",
    "wrong-status": "a status that is not among `statuses`",
    "wrong-body": "the text `body` is not in the response",
    "not-serving": "the gRPC service says that it does not serve, or is not known",
    "skipped": "lb could not check, for want of descriptors, ports, memory or time: says nothing of the endpoint",
}
"""Name -> meaning. All but the first and the last are failures."""


class Verdict(NamedTuple):
    """What came of one check."""

    result: str
    """A key of RESULTS."""
    text: str = ""
    """Why, for people: `status 503`. Printable, whatever the endpoint sent."""

    @property
    def passed(self) -> bool:
        return self.result == "passed"

    @property
    def counts(self) -> bool:
        """Whether it says something of the endpoint."""
        return self.result != "skipped"


PASSED = Verdict("passed")

_LONGEST = 200


def printable(text: str) -> str:
    """What an endpoint sent, or what a library says of it, fit for a log and a terminal."""
    return "".join(one if one.isprintable() else "?" for one in text[:_LONGEST])
