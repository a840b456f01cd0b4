"""Native files: the model as the operator wrote it, merged over all files.

Native files come before every other dialect: they are the operator's own word on this host. A native route may also
name the upstream of a Service (`shop/web:80`), whether an Ingress uses it or not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache, partial
from posixpath import normpath
from typing import TypeVar, cast

import msgspec

from lb.model.config import Config
from lb.model.defaults import Defaults
from lb.model.listener import Listener
from lb.model.route import Forward, Route, VirtualHost
from lb.model.stream import StreamRoute
from lb.model.text import Before, Reading, names_of_upstreams, places_of, read_content
from lb.model.tls import Certificate
from lb.model.upstream import Upstream
from lb.objects.view import NativeConfig, Stored, View
from lb.problems import Origin, Problem, Problems
from lb.translate.guard import guarded, stays_or_nothing
from lb.translate.ingress import Directory
from lb.translate.options import Options
from lb.translate.places import Places, place_taken
from lb.translate.precedence import shadow_problem
from lb.translate.services import MISSING_SERVICE, Reference, missing_port, resolved_endpoints
from lb.translate.shadow import shadowed_routes

_SERVICE_UPSTREAM = re.compile(r"(?P<namespace>[^/:]+)/(?P<service>[^/:]+):(?P<port>[0-9]{1,5})(?P<udp>/udp)?")

_DEFAULT_PORT = 80
"""Of a native upstream with `resolve` whose endpoints say no port."""


_ValueT = TypeVar("_ValueT")


class NativePart(msgspec.Struct, frozen=True):
    """What the native files say together."""

    config: Config = Config()
    references: tuple[Reference, ...] = ()
    """Service ports whose upstreams routes name."""
    dangling: dict[str, Route | StreamRoute] = {}
    """Upstream names that neither a native file nor a Service explains -> the first route that has it (LB5004)."""
    resolves: tuple[str, ...] = ()
    """External names whose Resolutions were used."""
    problems: tuple[Problem, ...] = ()
    readings: dict[str, Reading] = {}
    """By file: what its parts go back to when there are mistakes in them."""


def translate_native(view: View, directory: Directory, before: NativePart, options: Options) -> NativePart:
    """All native files, in the order of their names. Parts with mistakes stay as they were `before`; what they do not
    say is as the options' defaults.
    """
    stored = view.all("NativeConfig")
    if not stored:
        return NativePart()
    merge = _Merge()
    readings = _read_all(stored, before, options)
    merge.problems.extend(_idle_settings(stored, options.settings_file))
    for reading in readings.values():
        merge.problems.extend(reading.problems)
        merge.add(reading.config)
    for hosts in merge.hosts.values():
        for hostname, host in hosts.items():
            for loser, winner in shadowed_routes(host.routes):
                merge.problems.extend((shadow_problem(hostname, loser, winner),))
    upstreams = {name: _resolve(view, upstream) for name, upstream in merge.upstreams.items()}
    references, dangling = _classify(merge, directory)
    return NativePart(
        Config(merge.listeners, merge.hosts, upstreams, merge.certificates),
        references,
        dangling,
        tuple(upstream.resolve for upstream in upstreams.values() if upstream.resolve),
        tuple(merge.problems),
        readings,
    )


def _read_all(stored: Mapping[tuple[str, str], Stored], before: NativePart, defaults: Defaults) -> dict[str, Reading]:
    """By file."""
    nothing = Reading()
    last = {name: before.readings.get(name, nothing) for _, name in sorted(stored)}
    natives = {name: cast(NativeConfig, stored["", name].object) for name in last}
    defined = {one for name, native in natives.items() for one in names_of_upstreams(native.content, last[name].config)}
    flawed = frozenset().union(*(reading.flawed for reading in before.readings.values()))

    def is_elsewhere(name: str) -> bool:
        return name in defined or _SERVICE_UPSTREAM.fullmatch(name) is not None

    @cache
    def places() -> Counter[str]:
        return Counter(place for native in natives.values() for place in places_of(native.content))

    def is_shared(place: str) -> bool:
        return places()[place] > 1

    readings = {}
    for name, native in natives.items():
        origin = stored["", name].origin
        own = last[name]
        known = Before(own, before.config, flawed, is_shared)
        reading = guarded(
            partial(read_content, native.content, origin, native.lines, is_elsewhere, known, defaults),
            partial(_unread, own),
            origin,
            stays_or_nothing(own.config != nothing.config),
        )
        readings[name] = msgspec.structs.replace(reading, config=keep_equal_parts(reading.config, own.config))
    return readings


def _idle_settings(stored: Mapping[tuple[str, str], Stored], settings_file: str) -> Iterator[Problem]:
    """Settings that nobody reads, though whoever wrote them counts on them."""
    read = normpath(settings_file) if settings_file else ""
    for (_, name), one in sorted(stored.items()):
        native = cast(NativeConfig, one.object)
        if native.content.get("settings") and normpath(name) != read:
            line = native.lines.get("settings", 0)
            yield Problem(
                "LB5015",
                msgspec.structs.replace(one.origin, line=line, column=0) if line else one.origin,
                f"the settings in {name} have no effect",
                why=f"the settings of {settings_file} count" if settings_file else "no file is named by -c",
                fix=f"name the file by -c, as in `lb run -c {name}`, or take the section out",
                field="settings",
            )


def _unread(last: Reading, fault: Problem) -> Reading:
    return msgspec.structs.replace(last, problems=(fault,))


def keep_equal_parts(new: Config, old: Config) -> Config:
    """`new`, with the hosts and upstreams of `old` that are equal."""
    hosts = {
        host_set: {name: keep(host, old.hosts.get(host_set, {}).get(name)) for name, host in hosts.items()}
        for host_set, hosts in new.hosts.items()
    }
    upstreams = {name: keep(upstream, old.upstreams.get(name)) for name, upstream in new.upstreams.items()}
    certificates = {name: keep(one, old.certificates.get(name)) for name, one in new.certificates.items()}
    return Config(new.listeners, hosts, upstreams, certificates)


def keep(new: _ValueT, old: _ValueT | None) -> _ValueT:
    """The old one where they are equal."""
    return old if old is not None and old == new else new


def missing_upstream(name: str, route: Route | StreamRoute, defaults: Defaults) -> Upstream:
    """What stands for an upstream that nothing defines, so that its requests are answered 503 with a reason."""
    return Upstream(
        name,
        defaults.balance,
        options=defaults.upstream,
        unavailable=f"there is no upstream {name}",
        origin=route.origin,
    )


def clash(what: str, loser: Origin, winner: Origin, winner_text: str = "") -> Problem:
    """The problem that a name is taken (LB5005)."""
    return Problem(
        "LB5005",
        loser,
        f"{what} is already defined by {winner_text or winner.place or winner.object}",
        why="the first definition counts; this one is ignored",
        fix="rename or remove one of the two",
    )


class _Merge:
    """The native files read so far."""

    def __init__(self) -> None:
        self.problems = Problems()
        self.listeners: dict[str, Listener] = {}
        self.hosts: dict[str, dict[str, VirtualHost]] = {}
        self.upstreams: dict[str, Upstream] = {}
        self.certificates: dict[str, Certificate] = {}
        self._routes: dict[str, Route] = {}
        self._places = Places()

    def add(self, config: Config) -> None:
        for name, listener in config.listeners.items():
            self._add_listener(name, listener)
        for name, certificate in config.certificates.items():
            first = self.certificates.setdefault(name, certificate)
            self._check(f"certificate {name}", certificate.origin, first.origin, is_new=first is certificate)
        for name, upstream in config.upstreams.items():
            known = self.upstreams.setdefault(name, upstream)
            self._check(f"upstream {name}", upstream.origin, known.origin, is_new=known is upstream)
        for host_set, hosts in config.hosts.items():
            merged = self.hosts.setdefault(host_set, {})
            for hostname, host in hosts.items():
                if hostname in merged:
                    self._report_host(host_set, merged[hostname], host)
                else:
                    merged[hostname] = self._with_new_names(host)

    def _add_listener(self, name: str, listener: Listener) -> None:
        if name in self.listeners:
            self.problems.extend((clash(f"listener {name}", listener.origin, self.listeners[name].origin),))
            return
        rival = self._places.holder(listener)
        if rival is None:
            self.listeners[name] = listener
            self._places.take(listener)
        else:
            self.problems.extend((place_taken(listener, rival),))

    def _check(self, what: str, loser: Origin, winner: Origin, *, is_new: bool) -> None:
        if not is_new:
            self.problems.extend((clash(what, loser, winner),))

    def _report_host(self, host_set: str, winner: VirtualHost, loser: VirtualHost) -> None:
        winner_origin = winner.routes[0].origin if winner.routes else Origin()
        loser_origin = loser.routes[0].origin if loser.routes else Origin()
        what = f"host {loser.hostname} of host set {host_set}"
        self.problems.extend((clash(what, loser_origin, winner_origin, "" if winner.routes else "another file"),))

    def _with_new_names(self, host: VirtualHost) -> VirtualHost:
        """The host without routes whose name another file has taken: names key logs and metrics."""
        kept: list[Route] = []
        for route in host.routes:
            winner = self._routes.setdefault(route.name, route)
            self._check(f"route {route.name}", route.origin, winner.origin, is_new=winner is route)
            if winner is route:
                kept.append(route)
        return host if len(kept) == len(host.routes) else msgspec.structs.replace(host, routes=tuple(kept))


def _resolve(view: View, upstream: Upstream) -> Upstream:
    """An upstream with `resolve` gets the addresses of that name; what the file lists serves until they are known."""
    if not upstream.resolve:
        return upstream
    port = upstream.endpoints[0].port if upstream.endpoints else _DEFAULT_PORT
    endpoints, _ = resolved_endpoints(view, upstream.resolve, port, upstream.origin)
    return msgspec.structs.replace(upstream, endpoints=endpoints, unavailable="") if endpoints else upstream


def _classify(merge: _Merge, directory: Directory) -> tuple[tuple[Reference, ...], dict[str, Route | StreamRoute]]:
    """Names that routes forward to and no native file defines: (Service ports, the rest)."""
    references: dict[Reference, None] = {}
    dangling: dict[str, Route | StreamRoute] = {}
    seen: set[str] = set()
    for name, route in _all_forwards(merge):
        if name in merge.upstreams or name in seen:
            continue
        seen.add(name)
        found = _SERVICE_UPSTREAM.fullmatch(name)
        if found is None:
            dangling[name] = route
            continue
        reference = _refer(
            directory,
            Reference(
                found["namespace"],
                found["service"],
                int(found["port"]),
                transport="udp" if found["udp"] else "tcp",
                requests=isinstance(route, Route),
            ),
        )
        references[reference] = None
        if reference.mistake:
            merge.problems.extend((_bad_reference(directory, reference, route),))
    return tuple(references), dangling


def _all_forwards(merge: _Merge) -> Iterator[tuple[str, Route | StreamRoute]]:
    yield from _forwards(merge.hosts)
    yield from _stream_forwards(merge.listeners)


def _forwards(hosts: Mapping[str, Mapping[str, VirtualHost]]) -> Iterator[tuple[str, Route]]:
    for host_set in hosts.values():
        for host in host_set.values():
            for route in host.routes:
                if isinstance(route.action, Forward):
                    for upstream in route.action.upstreams:
                        yield upstream.name, route


def _stream_forwards(listeners: Mapping[str, Listener]) -> Iterator[tuple[str, StreamRoute]]:
    for listener in listeners.values():
        for route in listener.carried_routes:
            for upstream in route.forward.upstreams:
                yield upstream.name, route


def _refer(directory: Directory, reference: Reference) -> Reference:
    """The reference with what is wrong with it."""
    table = directory.table(reference.namespace, reference.service)
    if not table.exists:
        return msgspec.structs.replace(reference, mistake="LB4001")
    known = any(one.port == reference.port and one.protocol == reference.transport.upper() for one in table.ports)
    return (
        reference
        if known or (table.external and not table.ports)
        else msgspec.structs.replace(reference, mistake="LB4002")
    )


def _bad_reference(directory: Directory, reference: Reference, route: Route | StreamRoute) -> Problem:
    if reference.mistake == "LB4001":
        what, fix = f"Service {reference.namespace}/{reference.service} does not exist", MISSING_SERVICE
    else:
        what, fix = missing_port(reference, directory.table(reference.namespace, reference.service))
    lost = (
        "connections of route {} are reset"
        if isinstance(route, StreamRoute)
        else "requests for route {} are answered 503"
    )
    why = lost.format(route.name)
    return Problem(reference.mistake, route.origin, what, why=why, fix=fix)
