"""Follows what is served: which endpoints are checked, and what the data plane and people get to know of it.

Endpoints of several upstreams that are checked alike are checked once. An endpoint that stays keeps its state, also
when its check changes: the old word stands until the new check has one. One that goes is checked no more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import structlog

from lb.health.probe import Probe, Watcher
from lb.health.runner import Runner
from lb.health.state import State
from lb.health.target import Target, target_of
from lb.health.tls import ClientPair
from lb.health.verdict import RESULTS, Verdict
from lb.model.address import address_mistake
from lb.model.config import Config
from lb.model.health import describe_check
from lb.model.tls import Certificate
from lb.model.upstream import Endpoint, Upstream

log = structlog.stdlib.get_logger(__name__)

SetHealth = Callable[[str, str, bool, bool], None]
"""Tells the data plane: upstream, endpoint, whether it is healthy (or not checked), whether the flows of one that has
just turned unhealthy are reset."""

DECIDED: tuple[State, ...] = ("healthy", "unhealthy")

_SKIPPED_LOG_S = 60.0
REASON_LOG_S = 60.0
"""No sooner is another reason why an endpoint is unhealthy worth a line."""


class EndpointHealth(msgspec.Struct, frozen=True):
    """What is known of an endpoint that is checked."""

    state: State
    since: float
    """When the state began, in seconds since the epoch."""
    check: str
    """`http GET /healthz every 5s`"""
    result: str
    """Of the last check; empty before the first one."""
    why: str
    """Why the last check failed; empty when it passed."""
    checked_at: float
    """When the last check ended, in seconds since the epoch; 0 before the first one."""
    took_ms: float

    def say(self) -> str:
        """`unhealthy for 12 s: status 503`; nothing when all is well."""
        if self.state == "healthy" and not self.why:
            return ""
        if self.state == "untested":
            return f"not checked yet{f': {self.why}' if self.why else ''}"
        if self.state == "healthy":
            return f"last check failed: {self.why}"
        seconds = max(0, round(time.time() - self.since))
        return f"unhealthy for {seconds} s: {self.why or 'passes again, but not often enough yet'}"


class HealthStats(msgspec.Struct, frozen=True):
    """Counts since start."""

    results: Mapping[str, int]
    """Checks by result."""
    running: int
    """Checks under way."""
    changes: Mapping[str, Mapping[str, int]]
    """Upstream -> `healthy` and `unhealthy` -> how often an endpoint came into that state."""


class Monitor:
    """The checks of everything that is served."""

    def __init__(self, set_health: SetHealth, limit: int) -> None:
        """At most `limit` checks are under way at once."""
        self._tell_data_plane = set_health
        self._runner = Runner(limit)
        self._config = Config()
        self._probes: dict[Target, Probe] = {}
        self._watched: dict[str, dict[str, Probe]] = {}
        self._results: Counter[str] = Counter()
        self._changes: dict[str, Counter[str]] = {}
        self._skipped_told = -_SKIPPED_LOG_S

    # -- What is checked

    def follow(self, config: Config) -> None:
        """Check exactly what this Config says, from now on."""
        before, self._config = self._config, config
        left: list[tuple[Watcher, Probe]] = []
        for name in self._watched.keys() - config.upstreams.keys():
            left += self._leave(name, ())
        for name, upstream in config.upstreams.items():
            certificate = _certificate_of(upstream, config)
            if before.upstreams.get(name) is upstream and _certificate_of(upstream, before) is certificate:
                continue
            left += self._follow_upstream(upstream, certificate)
        # Those who came are there by now: a probe that others still watch goes on.
        for watcher, probe in left:
            probe.watchers.pop(watcher, None)
            if not probe.watchers and self._probes.get(probe.target) is probe:
                del self._probes[probe.target]
                probe.close()

    def _follow_upstream(self, upstream: Upstream, certificate: Certificate | None) -> list[tuple[Watcher, Probe]]:
        """Watch its endpoints; what is watched no more. lb shows them the certificate."""
        name = upstream.name
        pair = ClientPair(certificate.chain, certificate.key) if certificate is not None else None
        wanted = {one.key: target_of(upstream, one, pair) for one in _checked_endpoints(upstream)}
        left = self._leave(name, wanted)
        served = {one.key for one in upstream.endpoints}
        for (_, key), _ in left:
            if key in served:
                self._set_health(name, key, True)
        if not wanted:
            return left
        watched = self._watched.setdefault(name, {})
        for key, target in wanted.items():
            probe = watched.get(key)
            if probe is None or probe.target != target:
                if probe is not None:
                    left.append(((name, key), probe))
                probe = watched[key] = self._watch((name, key), target, probe)
            # Also of those that stay: the data plane takes an endpoint that comes back for a good one, and one whose
            # TLS it refused comes back when that is mended.
            if probe.health.state != "untested":
                self._set_health(name, key, probe.health.state == "healthy")
        return left

    def _watch(self, watcher: Watcher, target: Target, before: Probe | None) -> Probe:
        """The probe of a target, made when there is none; `before` checked the same endpoint until now."""
        probe = self._probes.get(target)
        if probe is None:
            inherited: State = before.health.state if before is not None else "untested"
            probe = self._probes[target] = Probe(target, self._runner, self._report, inherited)
            if before is not None:
                probe.since, probe.last = before.since, before.last
                probe.told, probe.told_at = before.told, before.told_at
        probe.watchers[watcher] = None
        return probe

    def _leave(self, upstream: str, stay: Mapping[str, Target] | tuple[()]) -> list[tuple[Watcher, Probe]]:
        """Watch no endpoint of an upstream but those that stay."""
        watched = self._watched.get(upstream, {})
        left = [((upstream, key), watched.pop(key)) for key in [key for key in watched if key not in stay]]
        if not watched:
            self._watched.pop(upstream, None)
        if not stay:
            self._changes.pop(upstream, None)
        return left

    def close(self) -> None:
        """Check nothing any more."""
        self.follow(Config())

    # -- What is found

    def _set_health(self, upstream: str, key: str, healthy: bool) -> None:
        resets = not healthy and self._config.upstreams[upstream].health_check.open_flows == "reset"
        self._tell_data_plane(upstream, key, healthy, resets)

    def _report(self, probe: Probe, verdict: Verdict, before: State, seconds: float) -> None:
        self._results[verdict.result] += 1
        if not verdict.counts:
            self._tell_skipped(verdict)
        state = probe.health.state
        if state == before:
            self._tell_other_reason(probe, verdict)
            return
        for upstream, key in probe.watchers:
            self._set_health(upstream, key, state == "healthy")
            self._changes.setdefault(upstream, Counter())[state] += 1
        self._tell_flip(probe, verdict, before, seconds)
        if state == "unhealthy":
            for upstream in {upstream: None for upstream, _ in probe.watchers}:
                if all(one.health.state == "unhealthy" for one in self._watched[upstream].values()):
                    self._tell_all_fail(upstream)

    def _tell_flip(self, probe: Probe, verdict: Verdict, before: State, seconds: float) -> None:
        about = _about(probe)
        if probe.health.state == "unhealthy":
            probe.told, probe.told_at = verdict, time.monotonic()
            log.warning("endpoint is unhealthy", **about, result=verdict.result, why=verdict.text)
        elif before == "untested":
            log.debug("endpoint is healthy", **about)
        else:
            log.info("endpoint is healthy", **about, unhealthy_for_seconds=round(seconds, 1))

    def _tell_other_reason(self, probe: Probe, verdict: Verdict) -> None:
        """Who has mended the first one wants to know the next. What changes with every check must not fill the log."""
        if probe.health.state != "unhealthy" or verdict.passed or not verdict.counts or verdict == probe.told:
            return
        now = time.monotonic()
        if now - probe.told_at >= REASON_LOG_S:
            probe.told, probe.told_at = verdict, now
            log.warning(
                "endpoint is unhealthy for another reason", **_about(probe), result=verdict.result, why=verdict.text
            )

    def _tell_all_fail(self, upstream: str) -> None:
        serves = self._config.upstreams[upstream].health_check.when_all_fail == "serve"
        log.error(
            "all endpoints of an upstream are unhealthy",
            upstream=upstream,
            requests="are sent to them all the same" if serves else "are answered 503",
        )

    def _tell_skipped(self, verdict: Verdict) -> None:
        """Not a line for each: when it happens it happens to all."""
        now = time.monotonic()
        if now - self._skipped_told >= _SKIPPED_LOG_S:
            self._skipped_told = now
            log.error("health checks are skipped", why=verdict.text)

    # -- What is asked

    def states(self, upstream: str) -> dict[str, State]:
        """Endpoint -> state; those that are not checked are not there."""
        return {key: probe.health.state for key, probe in self._watched.get(upstream, {}).items()}

    def of(self, upstream: str) -> dict[str, EndpointHealth]:
        """Endpoint -> what is known of it; those that are not checked are not there."""
        return {key: _describe(probe) for key, probe in self._watched.get(upstream, {}).items()}

    def stats(self) -> HealthStats:
        return HealthStats(
            {result: self._results[result] for result in RESULTS},
            self._runner.running,
            {name: {state: counts[state] for state in DECIDED} for name, counts in self._changes.items()},
        )


def _checked_endpoints(upstream: Upstream) -> Iterator[Endpoint]:
    """Those that may get requests. Draining ones count only while nobody else can serve, as in lb/compile/table.py:
    what is about to stop fails its checks, which is no news."""
    if upstream.health_check.type == "off":
        return
    anybody = any(one.weight > 0 and not one.draining for one in upstream.endpoints)
    for one in upstream.endpoints:
        if not address_mistake(one.address) and not (one.draining and anybody):
            yield one


def _certificate_of(upstream: Upstream, config: Config) -> Certificate | None:
    """What lb shows to endpoints of an upstream."""
    return config.certificates.get(upstream.tls.certificate) if upstream.tls is not None else None


def _about(probe: Probe) -> dict[str, Any]:
    """Of whom a line is."""
    return {
        "endpoint": probe.target.key,
        "upstreams": sorted({upstream for upstream, _ in probe.watchers}),
        "check": describe_check(probe.target.check),
    }


def _describe(probe: Probe) -> EndpointHealth:
    last = probe.last
    return EndpointHealth(
        state=probe.health.state,
        since=probe.since,
        check=describe_check(probe.target.check),
        result=last.result if last is not None else "",
        why=last.text if last is not None and not last.passed else "",
        checked_at=probe.checked_at,
        took_ms=round(probe.took_ms, 1),
    )
