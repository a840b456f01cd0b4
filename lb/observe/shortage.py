"""Says when clients have to wait because descriptors or memory are short, and when no longer.

The counter of it rises with every attempt; an operator wants one line at the beginning, which says what to do, and one
at the end.
"""

from __future__ import annotations

import structlog

QUIET_SECONDS = 10
"""So long nobody had to wait: it is over."""

_log = structlog.stdlib.get_logger(__name__)


class Shortage:
    """Follows how often accepting has stopped."""

    def __init__(self) -> None:
        self._pauses = 0
        self._since: float | None = None
        self._last = 0.0

    def look(self, pauses: int, descriptors: int, now: float) -> None:
        """`pauses` so far, `descriptors` in use; `now` in seconds of a steady clock. Call it about once a second."""
        if pauses != self._pauses:
            self._pauses, self._last = pauses, now
            if self._since is None:
                self._since = now
                _log.warning(
                    "new clients have to wait: descriptors or memory are short",
                    descriptors=descriptors,
                    fix="raise the limit of open files (LimitNOFILE of the unit), or limit clients: "
                    "`max_connections_per_client` of listeners, `limits.max_connections`",
                )
        elif self._since is not None and now - self._last >= QUIET_SECONDS:
            _log.info("new clients are let in again", after_seconds=round(self._last - self._since))
            self._since = None
