"""Tells of endpoints that balancing passes over because connections to them fail: once when one is ejected, and once
when it is back.

Reactors eject by themselves and tell nobody. They count, and whoever looks at that count once a second need not look at
all endpoints.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from lb._fastpath.engine import Engine

log = structlog.stdlib.get_logger(__name__)

MOST_TOLD = 20
"""How many are told of one by one at a time: when a network is gone, thousands may go at once."""


class Ejections:
    """What has been told of."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changes = engine.ejection_changes()
        self._told: set[tuple[str, str]] = set()

    def look(self) -> None:
        """Tell what has changed since the last look."""
        changes = self._engine.ejection_changes()
        if changes == self._changes:
            return
        self._changes = changes
        ejected = self._engine.ejected()
        begun = [one for one in ejected if one not in self._told]
        for upstream, endpoint in begun[:MOST_TOLD]:
            left_ms, failures, why = ejected[upstream, endpoint]
            log.warning(
                "endpoint is ejected: connections to it fail",
                upstream=upstream,
                endpoint=endpoint,
                why=why,
                failed_in_row=failures,
                seconds_left=ceil(left_ms / 1000),
            )
        _tell_rest("more endpoints are ejected", begun)
        back = self._those_there(sorted(self._told - ejected.keys()))
        for upstream, endpoint in back[:MOST_TOLD]:
            log.info("endpoint is no longer ejected: it serves again", upstream=upstream, endpoint=endpoint)
        _tell_rest("more endpoints are no longer ejected", back)
        self._told = set(ejected)

    def _those_there(self, endpoints: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """One that is removed while it is ejected is not back."""
        upstreams = {upstream for upstream, _ in endpoints}
        there = {(name, one["key"]) for name in upstreams for one in self._engine.endpoint_stats(name)}
        return [one for one in endpoints if one in there]


def _tell_rest(what: str, all_of_them: list[tuple[str, str]]) -> None:
    if (more := len(all_of_them) - MOST_TOLD) > 0:
        log.warning(f"{more} {what}: `lb ctl upstreams` shows where")
