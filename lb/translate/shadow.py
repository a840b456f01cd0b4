"""Routes that can never match, because an earlier one of the same host takes all their requests.

Only single earlier routes are looked at, not unions of several: what is said here is true, but it is not everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lb.model.route import HeaderMatch, Match, QueryMatch, Route

_Conditions = tuple[tuple[str, ...], tuple[HeaderMatch, ...], tuple[QueryMatch, ...]]

_NO_CONDITIONS: _Conditions = ((), (), ())


def shadowed_routes(routes: Sequence[Route]) -> Iterator[tuple[Route, Route]]:
    """(route, the earlier one that takes all its requests), for routes in rank order.

    Cost per route: a few dictionary look-ups and one for each length of string prefix that is not longer than its path.
    """
    seen: dict[_Conditions, _Paths] = {}
    for route in routes:
        conditions = (route.match.methods, route.match.headers, route.match.query)
        paths = seen.setdefault(conditions, _Paths())
        cover = paths.covering(route.match)
        if cover is None and conditions != _NO_CONDITIONS and _NO_CONDITIONS in seen:
            cover = seen[_NO_CONDITIONS].covering(route.match)
        if cover is not None:
            yield route, cover
        else:
            paths.add(route)


class _Paths:
    """Path conditions seen so far, of routes whose other conditions are the same."""

    def __init__(self) -> None:
        self._exact: dict[str, Route] = {}
        self._prefix: dict[str, Route] = {}
        """By value without the trailing slash, which does not count."""
        self._string: dict[str, Route] = {}
        self._string_lengths: set[int] = set()
        self._shortest_prefix = 1 << 30

    def add(self, route: Route) -> None:
        path = route.match.path
        if path.kind == "exact":
            self._exact[path.value] = route
        elif path.kind == "prefix":
            base = path.value.removesuffix("/")
            self._prefix[base] = route
            self._shortest_prefix = min(self._shortest_prefix, len(base))
        else:
            self._string[path.value] = route
            self._string_lengths.add(len(path.value))

    def covering(self, match: Match) -> Route | None:
        """A route that takes every path that `match` takes."""
        kind, value = match.path.kind, match.path.value
        if kind == "exact" and value in self._exact:
            return self._exact[value]
        return self._covering_prefix(kind, value) or self._covering_string(kind, value)

    def _covering_prefix(self, kind: str, value: str) -> Route | None:
        # A string prefix takes `/foobar` too, so only what ends in a slash stays within elements.
        base = value.removesuffix("/") if kind != "string-prefix" else value[: value.rfind("/")]
        while len(base) >= self._shortest_prefix:
            if base in self._prefix:
                return self._prefix[base]
            if not base:
                return None
            base = base[: base.rfind("/")]
        return None

    def _covering_string(self, kind: str, value: str) -> Route | None:
        # A prefix `/foo/` also takes `/foo`.
        shortest = value.removesuffix("/") if kind == "prefix" else value
        for length in self._string_lengths:
            # Every path begins with "/", so the string prefix "/" takes all of them.
            if length <= max(len(shortest), 1) and value[:length] in self._string:
                return self._string[value[:length]]
        return None
