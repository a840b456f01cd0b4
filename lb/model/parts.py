"""The named parts of a native file, and what a mistake in one of them costs: nothing of what served before.

A listener, a host, an upstream or a certificate with a mistake stays as it was, because a part that is half new would
serve something that nobody wrote. What is not known to be wanted away stays as well: where a section or the name of a
part cannot be understood, it may stand for any of those that are missing. Before anything has served there is nothing
to go back to, and a mistake costs only the thing that it stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from lb.model.config import Config
from lb.model.listener import Listener
from lb.model.route import Forward, VirtualHost
from lb.model.tls import Certificate
from lb.model.upstream import Upstream
from lb.model.values import ResultT, ValueReader
from lb.problems import Origin, Problem, Problems

Part = Listener | VirtualHost | Upstream | Certificate
PartT = TypeVar("PartT", Listener, VirtualHost, Upstream, Certificate)


def _never(place: str) -> bool:
    return False


class Reading(msgspec.Struct, frozen=True):
    """What one native file says."""

    config: Config = Config()
    problems: tuple[Problem, ...] = ()
    """LB5003, LB5004 and warnings."""
    flawed: frozenset[str] = frozenset()
    """Parts (`upstreams.web`) that serve with mistakes in them, because they never served without."""


class Before(msgspec.Struct, frozen=True):
    """What serves while a file is read again."""

    own: Reading = Reading()
    """What this file said."""
    everywhere: Config = Config()
    """What all files said."""
    flawed: frozenset[str] = frozenset()
    """Parts of all files that are nothing to go back to."""
    is_shared: Callable[[str], bool] = _never
    """Whether another file has a part of this place too, so that it has not moved from there."""


class PartReader(ValueReader):
    """Reads sections of named parts."""

    def __init__(self, origin: Origin, lines: Mapping[str, int], before: Before) -> None:
        super().__init__(origin, lines)
        self.flawed: set[str] = set()
        self._before = before
        self._stayed: list[Part] = []
        """Parts of before that serve on."""
        self._removes_nothing = False
        """Whether a section has a name that may stand for any other."""
        self._not_removed = 0
        """Parts that are missing and serve on."""

    def _apart(
        self, read: Callable[..., ResultT], path: str, *arguments: object
    ) -> tuple[ResultT | None, tuple[Problem, ...]]:
        """As `_attempt`, with the problems that come up on the way."""
        around, self.problems = self.problems, Problems()
        try:
            result = self._attempt(read, path, *arguments)
            return result, tuple(self.problems)
        finally:
            self.problems = around

    def _read_section(self, path: str, value: object, own: Mapping[str, object]) -> Mapping[str, Any] | None:
        """Its entries; None when it cannot be understood, so that all of it stays."""
        if value is None:
            return {}
        entries, problems = self._apart(self._mapping, path, value)
        if entries is None:
            problems = _because(problems, _nothing_removed(f"of `{path}`", len(own)))
        self.problems.extend(problems)
        return entries

    def _read_parts(
        self,
        path: str,
        value: object,
        read: Callable[[str, str, Any], PartT],
        own: Mapping[str, PartT],
        everywhere: Mapping[str, PartT],
    ) -> dict[str, PartT]:
        """A section. `own` are its parts as this file had them before, `everywhere` as all files had them."""
        entries = self._read_section(path, value, own)
        if entries is None:
            return self._stay_all(path, own)
        found: dict[str, PartT] = {}
        told: list[tuple[bool, tuple[Problem, ...]]] = []
        for name, content in entries.items():
            part, problems = self._read_part(
                f"{path}.{name}", name, content, read, (own.get(name), everywhere.get(name))
            )
            if part is not None:
                found[name] = part
            told.append((part is None, problems))
        missing = {name: part for name, part in own.items() if name not in entries}
        why = _nothing_removed(f"of `{path}`", len(missing))
        for is_lost, problems in told:
            self.problems.extend(_because(problems, why) if is_lost else problems)
        if self._removes_nothing or any(is_lost for is_lost, _ in told):
            found.update(self._stay_all(path, missing))
        return found

    def _read_part(
        self,
        place: str,
        name: str,
        content: object,
        read: Callable[[str, str, Any], PartT],
        before: tuple[PartT | None, PartT | None],
    ) -> tuple[PartT | None, tuple[Problem, ...]]:
        """What serves, and what is said of mistakes. `before`: the part as this file and as any file had it."""
        part, problems = self._apart(read, place, name, content)
        if all(problem.severity != "error" for problem in problems):
            return part, problems
        last, is_good = self._last(place, *before)
        if last is not None and (is_good or part is None):
            which = f"the last good version of `{place}`" if is_good else f"what `{place}` said before"
            return self._stay(place, last, is_good), _because(problems, f"{which} stays in use")
        self.flawed.add(place)
        return part, problems

    def _last(self, place: str, own: PartT | None, moved: PartT | None) -> tuple[PartT | None, bool]:
        """What served before, from this file or from one that does not have it any more, and whether it was good."""
        if own is not None:
            return own, place not in self._before.own.flawed
        if moved is None or self._before.is_shared(place):
            return None, True
        return moved, place not in self._before.flawed

    def _stay(self, place: str, part: PartT, is_good: bool) -> PartT:
        """Let a part of before serve on, as good or bad as it was."""
        self._stayed.append(part)
        if not is_good:
            self.flawed.add(place)
        return part

    def _stay_all(self, path: str, missing: Mapping[str, PartT]) -> dict[str, PartT]:
        self._not_removed += len(missing)
        flawed = self._before.own.flawed
        return {
            name: self._stay(f"{path}.{name}", part, f"{path}.{name}" not in flawed) for name, part in missing.items()
        }

    # -- What parts that stay need

    def _complete(self, config: Config, is_elsewhere: Callable[[str], bool]) -> Config:
        """With the upstreams and certificates that are gone from the files, where a part that stays names them."""
        own, everywhere = self._before.own.config, self._before.everywhere
        upstreams = dict(config.upstreams)
        for name in dict.fromkeys(name for part in self._stayed for name in _forwards(part)):
            place = f"upstreams.{name}"
            if name not in upstreams and not is_elsewhere(name):
                last, is_good = self._last(place, own.upstreams.get(name), everywhere.upstreams.get(name))
                if last is not None:
                    upstreams[name] = self._stay(place, last, is_good)
        certificates = dict(config.certificates)
        for name in dict.fromkeys(name for part in self._stayed for name in _certificates(part)):
            shown = own.certificates.get(name) or everywhere.certificates.get(name)
            if name not in certificates and shown is not None:
                certificates[name] = shown
        return Config(config.listeners, config.hosts, upstreams, certificates)


def tell_sections(problems: tuple[Problem, ...], not_removed: int) -> tuple[Problem, ...]:
    """Problems of unknown sections, with what they cost."""
    return _because(problems, _nothing_removed("that the file held", not_removed))


def _nothing_removed(which: str, count: int) -> str:
    """Empty when there was nothing to be removed."""
    parts = "1 part stays as it was" if count == 1 else f"{count} parts stay as they were"
    return f"until this is mended, nothing {which} is removed ({parts})" if count else ""


def _because(problems: tuple[Problem, ...], why: str) -> tuple[Problem, ...]:
    """Problems whose mistakes cost nothing but what `why` says."""
    if not why:
        return problems
    return tuple(msgspec.structs.replace(one, why=why) if one.severity == "error" else one for one in problems)


def _forwards(part: Part) -> Iterator[str]:
    """The upstreams that a part names."""
    if isinstance(part, VirtualHost):
        for route in part.routes:
            if isinstance(route.action, Forward):
                yield from (upstream.name for upstream in route.action.upstreams)
    elif isinstance(part, Listener):
        for carried in part.carried_routes:
            yield from (upstream.name for upstream in carried.forward.upstreams)


def _certificates(part: Part) -> Iterator[str]:
    """The certificates that a part names."""
    if isinstance(part, Listener) and part.tls is not None:
        for host in part.tls.hosts.values():
            yield from host.certificates
    elif isinstance(part, Upstream) and part.tls is not None and part.tls.certificate:
        yield part.tls.certificate
