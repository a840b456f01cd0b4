"""One target that is checked again and again: when the next check is, and what the results so far say."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import cached_property

from lb.health.attempt import Attempt
from lb.health.runner import Runner
from lb.health.state import Health, State
from lb.health.talk import Question
from lb.health.target import Target
from lb.health.tls import TlsClient, TlsStream
from lb.health.verdict import Verdict, printable

Watcher = tuple[str, str]
"""(upstream, endpoint key)"""

_JITTER = 0.1
_random = random.Random()  # noqa: S311  # spreads load, guards nothing


class Probe:
    """A target, whoever watches it, and its state.

    After each result `report` is told of it, with the state before it and how long that lasted, in seconds.
    """

    def __init__(
        self, target: Target, runner: Runner, report: Callable[[Probe, Verdict, State, float], None], inherited: State
    ) -> None:
        self.target = target
        self.watchers: dict[Watcher, None] = {}
        self.health = Health(inherited)
        self.since = time.time()
        """When the state began, in seconds since the epoch."""
        self.last: Verdict | None = None
        self.told: Verdict | None = None
        """Why it is unhealthy, as the log has it."""
        self.told_at = 0.0
        """time.monotonic()"""
        self.checked_at = 0.0
        self.took_ms = 0.0
        self.is_closed = False
        self._runner = runner
        self._report = report
        self._attempt: Attempt | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._began = 0.0
        self._is_spread = False
        runner.enqueue(self, first=True)

    def close(self) -> None:
        """Check no more."""
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
            self._runner.release()

    def begin(self) -> None:
        """Check now. Whatever goes wrong, the place in the runner is given back and the next check comes."""
        self._timer = None
        self._began = time.monotonic()
        try:
            tls = self._tls.open() if self._tls is not None else None
        except Exception as error:
            self._take(Verdict("skipped", printable(f"the TLS settings cannot be used: {error}")))
            return
        try:
            self._start(tls)
        except Exception as error:
            if self._attempt is not None:
                self._attempt.cancel()
            self._take(Verdict("skipped", printable(f"the check cannot be made: {type(error).__name__}: {error}")))

    def _start(self, tls: TlsStream | None) -> None:
        talk = self._question.open() if self._question is not None else None
        timeout_s = self.target.check.timeout_ms / 1000
        address, preamble = self.target.socket_address, self.target.preamble
        self._attempt = Attempt(asyncio.get_running_loop(), address, preamble, talk, tls, timeout_s, self._take)
        self._attempt.start()

    # Made when they are first needed: thousands of probes may come at once.

    @cached_property
    def _question(self) -> Question | None:
        return self.target.question()

    @cached_property
    def _tls(self) -> TlsClient | None:
        """OSError and ValueError for settings that Python's ssl refuses."""
        return TlsClient(self.target.tls) if self.target.tls is not None else None

    def _take(self, verdict: Verdict) -> None:
        self._attempt = None
        self._runner.release()
        before, began = self.health.state, self.since
        self.last = verdict
        if verdict.counts:
            check = self.target.check
            self.took_ms = (time.monotonic() - self._began) * 1000
            self.checked_at = time.time()
            if self.health.take(passed=verdict.passed, rise=check.rise, fall=check.fall):
                self.since = self.checked_at
        self._wait(self._pause_s(verdict))
        self._report(self, verdict, before, self.since - began)

    def _wait(self, pause_s: float) -> None:
        delay_s = max(0.0, self._began + pause_s - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_due)

    def _on_due(self) -> None:
        self._runner.enqueue(self, first=False)

    def _pause_s(self, verdict: Verdict) -> float:
        """From one start to the next. The first pause may end anywhere in it: what began together goes apart."""
        check = self.target.check
        pace = self.health.pace if verdict.counts else "fast"
        pause_ms = {"fast": min(check.fast_interval_ms, check.interval_ms), "down": check.down_interval_ms}.get(pace, 0)
        pause_s = (pause_ms or check.interval_ms) / 1000
        if pace != "fast" and not self._is_spread:
            self._is_spread = True
            return pause_s * _random.random()
        return pause_s * _random.uniform(1 - _JITTER, 1 + _JITTER)
