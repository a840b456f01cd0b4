"""Problems by what they are about, in order: changing a few of them costs little, even among 100,000."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from itertools import chain

import msgspec

from lb.problems import Problem

Group = tuple[int, str, str]
"""What a problem is about: the kind of thing, then its name. Groups are listed in this order."""


class Groups(msgspec.Struct, frozen=True):
    """Groups that have problems, sorted. Never changed once made."""

    keys: list[Group] = []
    problems: list[tuple[Problem, ...]] = []
    """In the order of `keys`."""

    def get(self, group: Group) -> tuple[Problem, ...]:
        """The problems of a group; empty when it has none."""
        index = bisect_left(self.keys, group)
        return self.problems[index] if index < len(self.keys) and self.keys[index] == group else ()

    def patch(self, updates: Mapping[Group, tuple[Problem, ...]]) -> Groups:
        """With other problems for some groups; `self` when there are no updates."""
        if not updates:
            return self
        if len(updates) * 16 > len(self.keys):  # then sorting is cheaper than so many insertions
            merged = {**dict(zip(self.keys, self.problems, strict=True)), **updates}
            keys = sorted(group for group, problems in merged.items() if problems)
            return Groups(keys, [merged[group] for group in keys])
        patched = Groups(list(self.keys), list(self.problems))
        for group, problems in updates.items():
            patched._set(group, problems)
        return patched

    def flat(self) -> tuple[Problem, ...]:
        """All problems in order."""
        return tuple(chain.from_iterable(self.problems))

    def _set(self, group: Group, problems: tuple[Problem, ...]) -> None:
        index = bisect_left(self.keys, group)
        known = index < len(self.keys) and self.keys[index] == group
        if known and problems:
            self.problems[index] = problems
        elif known:
            del self.keys[index], self.problems[index]
        elif problems:
            self.keys.insert(index, group)
            self.problems.insert(index, problems)
