"""Waiting for conditions, with deadlines that only a hang reaches. Owns the one scale for slow builds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

SANITIZED = os.environ.get("LB_TEST_SANITIZE") == "1"
"""lb was built with LB_SANITIZE=1: slower, bigger, and its reports must be looked for."""

DEADLINE = 60.0 if SANITIZED else 25.0
"""Seconds after which whatever a test waits for has hung. Never a statement about speed."""


def wait_until(
    condition: Callable[[], Result], what: str, timeout: float = DEADLINE, interval: float = 0.005
) -> Result:
    """The first truthy result of `condition`; AssertionError naming `what` when `timeout` seconds pass without one."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s in vain: {what} (last: {result!r})"
        time.sleep(interval)
        interval = min(interval * 1.3, 0.1)
