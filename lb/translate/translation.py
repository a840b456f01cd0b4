"""From all objects to one Config: assembles what the dialects make, and redoes only what a change touches.

The line, and what each step depends on:

    IngressClasses, options      -> Classes       which Ingresses are ours
    Ingress, Classes, port tables -> IngressPart  its claims on hosts, the Service ports it refers to
    claims of a host             -> VirtualHost   order and conflicts
    Service, slices, Nodes, Resolutions, who refers to it -> ServicePart  its upstreams
    native files, port tables    -> NativePart    goes before all of the above
    Services, tcp-/udp-services  -> StreamClaim   TCP and UDP listeners that they want
    all of them                  -> Config, problems

Every step keeps its results, by key, in the Translation. A change makes the results stale that depend on it; a new
result that equals the old one *is* the old one, so that identity says what changed. The first translation is the same
work with everything stale, so an incremental result equals a full one. Nothing in a Translation is changed after it is
made: the next one copies the dictionaries that it changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from typing import TypeVar, cast

import msgspec

from lb.model.config import Config
from lb.model.listener import Listener, Transport
from lb.model.route import Forward, Respond, Route, VirtualHost
from lb.model.stream import NameRoute
from lb.model.tls import Certificate, ListenerTls, TlsHost
from lb.model.upstream import Balance, Upstream
from lb.objects.discovery import SERVICE_NAME_LABEL
from lb.objects.networking import Ingress
from lb.objects.view import Changes, Stored, View
from lb.problems import Origin, Problem, Problems
from lb.translate.classes import Classes, everything_is_served, read_classes, why_not_ours
from lb.translate.groups import Group, Groups
from lb.translate.guard import guarded, stays_or_nothing
from lb.translate.ingress import Directory, IngressPart, foreign_ingress, translate_ingress
from lb.translate.load_balancers import StreamClaim, claim_service, claim_stream_services, settle
from lb.translate.material import Material, MaterialName, Parts
from lb.translate.native import NativePart, clash, keep, keep_equal_parts, missing_upstream, translate_native
from lb.translate.nodes import NodeTargets, find_node_targets
from lb.translate.options import Options
from lb.translate.passthrough import assemble_names as assemble_passthrough
from lb.translate.passthrough import with_names
from lb.translate.precedence import Age, Claim, age_of, assemble_host
from lb.translate.services import (
    Reference,
    ServicePart,
    Wanted,
    read_port_table,
    service_of_before,
    translate_service,
)
from lb.translate.tls import TlsClaim, assemble_names, is_strict, redirect_stays, send_to_https

__all__ = ["HOST_SET", "LISTENER", "Options", "Translation", "translate"]

LISTENER = "http"
"""Name of the listener that serves Ingresses, unless a native file defines one for their host set."""
TLS_LISTENER = "https"
"""The one that serves them by TLS; there is one when an Ingress has a TLS section."""
HOST_SET = "ingress"

_Name = tuple[str, str]
"""(namespace, name)"""

_GENERAL, _NATIVE, _INGRESS, _HOST, _TLS, _SECRET, _SERVICE, _NODES, _AUTHORITIES, _STREAM, _STREAMS = range(11)

_Host = tuple[VirtualHost | None, tuple[NameRoute, ...], tuple[Problem, ...]]
"""A host, where its TLS connections go that are passed through, and what is wrong with it."""

_ValueT = TypeVar("_ValueT")
_PartT = TypeVar("_PartT", IngressPart, StreamClaim)
_KeyT = TypeVar("_KeyT")


class _State(msgspec.Struct, frozen=True):
    """Results of all steps, kept for the next translation."""

    options: Options
    classes: Classes
    ingresses: dict[_Name, IngressPart]
    claims: dict[str, tuple[Claim, ...]]
    """By hostname, oldest first."""
    hosts: dict[str, VirtualHost]
    names: dict[str, tuple[NameRoute, ...]]
    """Where TLS connections go that are passed through, by hostname."""
    users: dict[_Name, tuple[_Name, ...]]
    """Service -> the Ingresses that refer to it."""
    services: dict[_Name, ServicePart]
    upstreams: dict[str, Upstream]
    """Of Services."""
    slice_owners: dict[_Name, str]
    """EndpointSlice -> name of its Service."""
    native: NativePart
    tls_claims: dict[_Name, tuple[TlsClaim, ...]]
    """By Ingress, of those that have any."""
    material: Parts
    """Secrets and ConfigMaps that TLS claims and Services name."""
    shown: dict[str, Certificate]
    """To endpoints, by name."""
    tls_hosts: dict[str, TlsHost]
    certificates: dict[str, Certificate]
    streams: dict[_Name, StreamClaim]
    """By Service, and by the ConfigMaps of tcp-services and udp-services under `configmap/tcp/NAMESPACE`."""
    problems: Groups


class Translation(msgspec.Struct, frozen=True):
    """What the objects mean."""

    config: Config
    problems: tuple[Problem, ...]
    _state: _State


def translate(view: View, options: Options, changes: Changes, previous: Translation | None) -> Translation:
    """The model of everything in `view`.

    `changes` are what differs from the view that `previous` was made of; without a previous translation, or with other
    options, everything is translated. Parts that come out equal to `previous` are the same objects.
    """
    return _Build(view, options, changes, previous).run()


_NO_STATE = _State(
    Options(),
    Classes(False, frozenset(), frozenset(), ()),
    {},
    {},
    {},
    {},
    {},
    {},
    {},
    {},
    NativePart(),
    {},
    {},
    {},
    {},
    {},
    {},
    Groups(),
)


class _Build:
    """One translation under way: the old results, and those that replace them."""

    def __init__(self, view: View, options: Options, changes: Changes, previous: Translation | None) -> None:
        self._view = view
        self._options = options
        self._previous = previous
        self._old = previous._state if previous is not None else _NO_STATE
        self._fresh = previous is None or changes.everything or options != self._old.options
        self._changed: defaultdict[str, set[_Name]] = defaultdict(set)
        for key in chain(changes.changed, changes.removed):
            self._changed[key.kind].add((key.namespace, key.name))
        self._directory = Directory(view)
        self._problems: dict[Group, tuple[Problem, ...]] = {}
        """Of the groups that have others than before."""
        self._rewanted: dict[_Name, None] = {}
        """Services that something else refers to than before, or otherwise."""
        self._material = Material(view, self._old.material, self._stale_material())
        self._users_of_material_changed = self._fresh

    def run(self) -> Translation:
        old = self._old
        classes = read_classes(self._view, self._options) if self._is_stale("IngressClass") else old.classes
        native = self._translate_native()
        streams = self._translate_streams()
        moved_ports = self._services_with_other_ports()
        updates = self._translate_ingresses(classes, moved_ports)
        ingresses = _patch(old.ingresses, updates)
        claims, hosts, names = self._assemble_hosts(updates)
        tls_claims = self._follow_claims(updates)
        tls_hosts, certificates = self._assemble_tls(tls_claims)
        users = self._find_users(updates)
        slice_owners, stale = self._follow_slices()
        services, upstreams = self._translate_services(users, ingresses, native, streams, stale)
        self._check_nodes(services)
        material, shown = self._keep_material(tls_claims, services)
        config = self._assemble_config(hosts, names, upstreams, native, streams, tls_hosts, certificates, shown)
        self._set_problems((_GENERAL, "", ""), self._general_problems(classes, ingresses))
        problems = old.problems.patch(self._problems)
        state = _State(
            self._options,
            classes,
            ingresses,
            claims,
            hosts,
            names,
            users,
            services,
            upstreams,
            slice_owners,
            native,
            tls_claims,
            material,
            shown,
            tls_hosts,
            certificates,
            streams,
            problems,
        )
        if self._previous is not None and problems is old.problems:
            return Translation(config, self._previous.problems, state)
        return Translation(config, problems.flat(), state)

    # -- Native files

    def _translate_native(self) -> NativePart:
        old = self._old.native
        services = _services(old.references)
        if not (
            self._is_stale("NativeConfig")
            or not self._changed["Service"].isdisjoint(services)
            or not {("", name) for name in old.resolves}.isdisjoint(self._changed["Resolution"])
        ):
            return old
        native = translate_native(self._view, self._directory, old, self._options)
        if native == old:
            return old
        self._rewanted.update(_services(native.references))
        self._rewanted.update(services)
        return msgspec.structs.replace(native, config=keep_equal_parts(native.config, old.config))

    # -- TCP and UDP

    def _translate_streams(self) -> dict[_Name, StreamClaim]:
        """The listeners that Services of type LoadBalancer, tcp-services and udp-services want."""
        old = self._old.streams
        services = self._view.all("Service")
        updates = {
            name: self._claim(name, partial(claim_service, services[name], self._options), services[name])
            if name in services
            else None
            for name in (chain(services, _of_services(old)) if self._fresh else self._changed["Service"])
        }
        updates |= {one: None for one in old if one[0].startswith(_CONFIG_MAP) and self._fresh}
        updates |= self._translate_stream_services()
        changed = {name: claim for name, claim in updates.items() if claim != old.get(name)}
        for name, claim in changed.items():
            self._set_problems((_STREAM, *name), claim.problems if claim is not None else ())
            for one in (claim, old.get(name)):
                self._rewanted.update(_services(one.references) if one is not None else {})
        return _patch(old, changed)

    def _translate_stream_services(self) -> dict[_Name, StreamClaim]:
        """What the ConfigMaps of ports want, when something has changed."""
        claims: dict[_Name, StreamClaim] = {}
        if not (self._is_stale("ConfigMap") or self._changed["Service"]):
            return claims
        told = Problems()  # one ConfigMap may be named for both
        named: tuple[tuple[Transport, str], ...] = (
            ("tcp", self._options.tcp_services),
            ("udp", self._options.udp_services),
        )
        for transport, full_name in named:
            namespace, _, name = full_name.partition("/")
            if name:
                stored = self._view.get("ConfigMap", namespace, name)
                key = (f"{_CONFIG_MAP}{transport}/{namespace}", name)
                make = partial(
                    claim_stream_services, (namespace, name), stored, self._options, self._directory, transport
                )
                claim = cast(StreamClaim, self._claim(key, make, stored))
                new = tuple(one for one in claim.problems if one not in set(told))
                told.extend(new)
                claims[key] = msgspec.structs.replace(claim, problems=new)
        return claims

    def _claim(self, key: _Name, make: Callable[[], StreamClaim | None], stored: Stored | None) -> StreamClaim | None:
        """What an object wants; when lb fails on it, what it wanted before."""
        before = self._old.streams.get(key) if stored is not None else None
        nothing = StreamClaim(Age(True, "", *key) if stored is None else age_of(stored.object.metadata))
        return guarded(
            make,
            partial(_with_fault, before or nothing),
            _origin_of(stored),
            stays_or_nothing(before is not None and bool(before.listeners)),
        )

    # -- Ingresses and hosts

    def _services_with_other_ports(self) -> set[_Name]:
        """Changed Services whose references must be resolved again."""
        changed = self._changed["Service"] & self._old.services.keys()
        return {name for name in changed if self._directory.table(*name) != self._old.services[name].table}

    def _stale_ingresses(self, classes: Classes, moved_ports: Iterable[_Name]) -> Iterable[_Name]:
        if self._fresh or classes != self._old.classes:
            return chain(self._view.all("Ingress"), self._old.ingresses.keys() - self._view.all("Ingress").keys())
        return self._changed["Ingress"].union(*(self._old.users.get(service, ()) for service in moved_ports))

    def _translate_ingresses(self, classes: Classes, moved_ports: Iterable[_Name]) -> dict[_Name, IngressPart | None]:
        """The Ingresses that differ from before; None for those that are gone."""
        updates: dict[_Name, IngressPart | None] = {}
        old = self._old.ingresses
        stored = self._view.all("Ingress")
        for name in self._stale_ingresses(classes, moved_ports):
            one = stored.get(name)
            part: IngressPart | None = None
            if one is not None:
                before = old.get(name)
                part = guarded(
                    partial(self._translate_ingress, classes, one),
                    partial(_with_fault, before or IngressPart(age_of(one.object.metadata))),
                    one.origin,
                    stays_or_nothing(before is not None and bool(before.claims)),
                )
            if part == old.get(name):
                continue
            updates[name] = part
            self._set_problems((_INGRESS, *name), part.problems if part is not None else ())
        return updates

    def _translate_ingress(self, classes: Classes, stored: Stored) -> IngressPart:
        foreign = why_not_ours(classes, cast(Ingress, stored.object), stored.origin)
        if foreign is not None:
            return foreign_ingress(stored, foreign)
        return translate_ingress(stored, self._options, self._directory)

    def _assemble_hosts(
        self, updates: Mapping[_Name, IngressPart | None]
    ) -> tuple[dict[str, tuple[Claim, ...]], dict[str, VirtualHost], dict[str, tuple[NameRoute, ...]]]:
        old_claims, old_hosts = self._old.claims, self._old.hosts
        dropped, added = self._changed_claims(updates)
        claims: dict[str, tuple[Claim, ...] | None] = {}
        hosts: dict[str, VirtualHost | None] = {}
        names: dict[str, tuple[NameRoute, ...] | None] = {}
        for hostname in dict.fromkeys(chain(dropped, added)):
            current = added.get(hostname, [])
            known = old_claims.get(hostname)
            if known is not None:
                gone = dropped.get(hostname, _NOBODY)
                current = [one for one in known if (one.age.namespace, one.age.name) not in gone] + current
            if len(current) > 1:
                current.sort(key=_age)
            claims[hostname] = tuple(current) or None
            host, passed, problems = guarded(
                partial(_assemble_host, hostname, current),
                partial(self._host_of_before, hostname, current),
                _newest(current),
                "the rules of its Ingresses that were served before and are still there are served",
                f"host {hostname}",
            )
            self._set_problems((_HOST, "", hostname), problems)
            if passed != self._old.names.get(hostname, ()):
                names[hostname] = passed or None
            if host != old_hosts.get(hostname):
                hosts[hostname] = host
        return _patch(old_claims, claims), _patch(old_hosts, hosts), _patch(self._old.names, names)

    def _host_of_before(self, hostname: str, claims: Sequence[Claim], fault: Problem) -> _Host:
        """What was served of a host that cannot be assembled, but for what has been taken away since: an upstream that
        no rule names any more is gone.
        """
        names = {(claim.age.namespace, claim.age.name) for claim in claims}
        led_to = {one for claim in claims for route in _all_routes(claim) for one in _upstreams(route.action)}

        def still(route: Route | NameRoute) -> bool:
            action = route.action if isinstance(route, Route) else route.forward
            return (route.origin.namespace, route.origin.name) in names and led_to.issuperset(_upstreams(action))

        host = self._old.hosts.get(hostname)
        routes = tuple(filter(still, host.routes)) if host is not None else ()
        passed = tuple(filter(still, self._old.names.get(hostname, ())))
        kept = msgspec.structs.replace(host, routes=routes) if host is not None and routes else None
        return kept, passed, (fault,)

    def _changed_claims(
        self, updates: Mapping[_Name, IngressPart | None]
    ) -> tuple[dict[str, set[_Name]], dict[str, list[Claim]]]:
        """Hostname -> the Ingresses whose old claim is gone, and the new claims."""
        dropped: dict[str, set[_Name]] = {}
        added: dict[str, list[Claim]] = {}
        for name, part in updates.items():
            new = part.claims if part is not None else ()
            before = self._old.ingresses.get(name)
            if before is not None and before.claims:
                kept = {claim.hostname: claim for claim in new}
                known = {claim.hostname: claim for claim in before.claims}
                for hostname, claim in known.items():
                    if kept.get(hostname) != claim:
                        dropped.setdefault(hostname, set()).add(name)
                new = tuple(claim for claim in new if known.get(claim.hostname) != claim)
            for claim in new:
                added.setdefault(claim.hostname, []).append(claim)
        return dropped, added

    # -- TLS

    def _follow_claims(self, updates: Mapping[_Name, IngressPart | None]) -> dict[_Name, tuple[TlsClaim, ...]]:
        """The names that Ingresses want to be served by TLS."""
        old = self._old
        changed = {
            name: (part.tls or None) if part is not None else None
            for name, part in updates.items()
            if (part is not None and part.tls) or name in old.tls_claims
        }
        self._users_of_material_changed |= bool(changed)
        return _patch(old.tls_claims, changed)

    def _assemble_tls(
        self, claims: dict[_Name, tuple[TlsClaim, ...]]
    ) -> tuple[dict[str, TlsHost], dict[str, Certificate]]:
        old = self._old
        if claims is old.tls_claims and not self._stale_material() and not self._fresh:
            return old.tls_hosts, old.certificates
        hosts, certificates, problems = assemble_names(chain.from_iterable(claims.values()), self._material)
        self._set_problems((_TLS, "", ""), problems)
        return (
            old.tls_hosts if hosts == old.tls_hosts else hosts,
            old.certificates if certificates == old.certificates else certificates,
        )

    def _stale_material(self) -> set[MaterialName]:
        """What was read from Secrets and ConfigMaps that may say something else now."""
        if self._fresh:
            return set(self._old.material)
        if not self._old.material or not (self._changed["Secret"] or self._changed["ConfigMap"]):
            return set()
        return {name for name in self._old.material if (name.namespace, name.name) in self._changed[name.kind]}

    def _keep_material(
        self, claims: Mapping[_Name, tuple[TlsClaim, ...]], services: Mapping[_Name, ServicePart]
    ) -> tuple[Parts, dict[str, Certificate]]:
        """What was read of Secrets and ConfigMaps that somebody still names, and the certificates for endpoints."""
        shown = self._old.shown
        wanted = None
        if self._users_of_material_changed:
            users = [part.tls for part in services.values() if part.tls.uses]
            wanted = chain(_named_by(claims), chain.from_iterable(tls.uses for tls in users))
            new = {tls.certificate.name: tls.certificate for tls in users if tls.certificate is not None}
            shown = shown if new == shown else new
        parts = self._material.parts(wanted)
        for name, part in self._material.changed():
            group = _SECRET if name.use == "certificate" else _AUTHORITIES
            problem = part.problem if part is not None else None
            self._set_problems((group, name.namespace, f"{name.kind}/{name.name}"), (problem,) if problem else ())
        return parts, shown

    # -- Services and upstreams

    def _find_users(self, updates: Mapping[_Name, IngressPart | None]) -> dict[_Name, tuple[_Name, ...]]:
        """Service -> the Ingresses that refer to it."""
        dropped: dict[_Name, set[_Name]] = {}
        added: dict[_Name, list[_Name]] = {}
        for name, part in updates.items():
            before = self._old.ingresses.get(name)
            old = _services(before.references) if before is not None else {}
            new = _services(part.references) if part is not None else {}
            self._rewanted.update(old)
            self._rewanted.update(new)
            for service in old:
                if service not in new:
                    dropped.setdefault(service, set()).add(name)
            for service in new:
                if service not in old:
                    added.setdefault(service, []).append(name)
        users: dict[_Name, tuple[_Name, ...] | None] = {}
        for service in dict.fromkeys(chain(dropped, added)):
            gone = dropped.get(service, _NOBODY)
            kept = [name for name in self._old.users.get(service, ()) if name not in gone]
            users[service] = (*kept, *added.get(service, ())) or None
        return _patch(self._old.users, users)

    def _follow_slices(self) -> tuple[dict[_Name, str], set[_Name]]:
        """EndpointSlice -> Service, and the Services whose slices changed."""
        slices = self._view.all("EndpointSlice")
        names = slices.keys() | self._old.slice_owners.keys() if self._fresh else self._changed["EndpointSlice"]
        owners: dict[_Name, str | None] = {}
        stale: set[_Name] = set()
        for name in names:
            old = self._old.slice_owners.get(name)
            stored = slices.get(name)
            owner = (stored.object.metadata.labels or {}).get(SERVICE_NAME_LABEL) if stored is not None else None
            stale.update((name[0], one) for one in (old, owner) if one)
            if owner != old:
                owners[name] = owner
        return _patch(self._old.slice_owners, owners), stale

    def _stale_services(
        self, users: Mapping[_Name, object], references: tuple[Reference, ...], stale: set[_Name]
    ) -> Iterable[_Name]:
        old = self._old.services
        if self._fresh:
            return dict.fromkeys(chain(users, _services(references), old))
        stale = (stale | self._changed["Service"] | self._changed["Endpoints"]) & old.keys()
        material = self._stale_material()
        if material:
            stale |= {name for name, part in old.items() if not material.isdisjoint(part.tls.uses)}
        if self._changed["Node"]:
            stale |= {name for name, part in old.items() if part.uses_nodes}
        if self._changed["Resolution"]:
            stale |= {name for name, part in old.items() if ("", part.resolve) in self._changed["Resolution"]}
        return dict.fromkeys(chain(stale, self._rewanted))

    def _translate_services(
        self,
        users: Mapping[_Name, tuple[_Name, ...]],
        ingresses: Mapping[_Name, IngressPart],
        native: NativePart,
        streams: Mapping[_Name, StreamClaim],
        stale: set[_Name],
    ) -> tuple[dict[_Name, ServicePart], dict[str, Upstream]]:
        old = self._old.services
        # Whatever else than an Ingress refers to a Service wants nothing of it but a port.
        references = (*native.references, *chain.from_iterable(one.references for one in streams.values()))
        by_service: defaultdict[_Name, list[Reference]] = defaultdict(list)
        for reference in references:
            by_service[reference.namespace, reference.service].append(reference)
        services: dict[_Name, ServicePart | None] = {}
        upstreams: dict[str, Upstream | None] = {}
        for name in self._stale_services(users, references, stale):
            before = old.get(name)
            if before is None or self._fresh or name in self._rewanted:
                wanted = self._want(name, users.get(name, ()), ingresses, by_service.get(name, ()))
            else:
                wanted = before.wanted
            part: ServicePart | None = None
            if wanted.uses:
                part = self._translate_service(name, wanted, before)
            if part == before:
                continue
            if any(one is not None and one.tls.uses for one in (part, before)):
                self._users_of_material_changed = True
            services[name] = part
            self._set_problems((_SERVICE, *name), part.problems if part is not None else ())
            for upstream in before.upstreams if before is not None else ():
                upstreams[upstream.name] = None
            for upstream in part.upstreams if part is not None else ():
                known = self._old.upstreams.get(upstream.name)
                upstreams[upstream.name] = known if known == upstream else upstream
        return _patch(old, services), _patch(self._old.upstreams, upstreams)

    def _translate_service(self, name: _Name, wanted: Wanted, before: ServicePart | None) -> ServicePart:
        stored = self._view.get("Service", *name)
        before = before if stored is not None else None
        stays = before is not None and any(one.endpoints for one in before.upstreams)
        nodes = self._nodes  # what is wrong with them is no fault of the Service
        return guarded(
            partial(translate_service, self._view, self._options, nodes, self._material, *name, wanted),
            partial(service_of_before, before, read_port_table(stored), *name, wanted),
            _origin_of(stored),
            stays_or_nothing(stays) if stays else "requests and connections to it are turned away; all else is served",
        )

    def _check_nodes(self, services: Mapping[_Name, ServicePart]) -> None:
        """What is wrong with Nodes matters while some Service has them as targets."""
        if services is self._old.services and not self._is_stale("Node"):
            return
        uses_nodes = any(part.uses_nodes for part in services.values())
        self._set_problems((_NODES, "", ""), self._nodes.problems if uses_nodes else ())

    @cached_property
    def _nodes(self) -> NodeTargets:
        return find_node_targets(self._view, self._options)

    def _want(
        self,
        service: _Name,
        users: Iterable[_Name],
        ingresses: Mapping[_Name, IngressPart],
        others: Sequence[Reference],
    ) -> Wanted:
        uses = {reference.use for reference in others}
        requests = {reference.use for reference in others if reference.requests}
        asked: list[tuple[Age, int | str, Balance]] = []
        for user in users:
            part = ingresses[user]
            for reference in part.references:
                if reference.service == service[1] and reference.namespace == service[0]:
                    requests.add(reference.use)
                    if part.balance is not None:
                        asked.append((part.age, reference.port, part.balance))
        balances: dict[int | str, Balance] = {}
        problems = Problems()
        for age, port, balance in sorted(asked, key=lambda one: one[0]) if asked else ():
            if balances.setdefault(port, balance) != balance:
                problems.extend((self._contradiction(service, port, balances[port], age),))
        ordered = sorted(uses | requests, key=lambda use: (str(use.port), use.transport, use.header))
        return Wanted(tuple(ordered), frozenset(requests), balances, tuple(problems))

    def _contradiction(self, service: _Name, port: int | str, balance: Balance, loser: Age) -> Problem:
        stored = self._view.get("Ingress", loser.namespace, loser.name)
        return Problem(
            "LB5006",
            stored.origin if stored is not None else Origin(),
            f"lb/balance differs from that of an older Ingress that uses Service {service[0]}/{service[1]}:{port}",
            why=f"one Service port has one way of balancing; {balance} is used",
            fix="set lb/balance on the Service",
            field="metadata.annotations[lb/balance]",
        )

    # -- The whole

    def _assemble_config(
        self,
        hosts: dict[str, VirtualHost],
        names: dict[str, tuple[NameRoute, ...]],
        upstreams: dict[str, Upstream],
        native: NativePart,
        streams: dict[_Name, StreamClaim],
        tls_hosts: dict[str, TlsHost],
        certificates: dict[str, Certificate],
        shown: dict[str, Certificate],
    ) -> Config:
        old = self._old
        same = hosts is old.hosts and upstreams is old.upstreams and native is old.native and streams is old.streams
        same = (
            same
            and names is old.names
            and tls_hosts is old.tls_hosts
            and certificates is old.certificates
            and shown is old.shown
        )
        if self._previous is not None and same and self._options == old.options:
            return self._previous.config
        problems = Problems(native.problems)
        listeners = self._listeners(hosts, names, tls_hosts, native, streams, problems)
        host_sets = dict(native.config.hosts)
        if hosts or any(one.host_set == HOST_SET for one in listeners.values()):
            host_sets[HOST_SET] = self._with_native_hosts(self._guard(hosts, tls_hosts, problems), native, problems)
        all_upstreams = self._with_native_upstreams(upstreams, native, problems)
        self._set_problems((_NATIVE, "", ""), tuple(problems))
        return Config(listeners, host_sets, all_upstreams, {**shown, **certificates, **native.config.certificates})

    def _listeners(
        self,
        hosts: Mapping[str, VirtualHost],
        names: dict[str, tuple[NameRoute, ...]],
        tls_hosts: dict[str, TlsHost],
        native: NativePart,
        streams: Mapping[_Name, StreamClaim],
        problems: Problems,
    ) -> dict[str, Listener]:
        listeners = self._http_listeners(
            hosts, names, tls_hosts, native, problems, alone=not any(claim.listeners for claim in streams.values())
        )
        carrying, disputes = settle(streams.values(), listeners)
        self._set_problems((_STREAMS, "", ""), disputes)
        return {**listeners, **carrying} if carrying else listeners

    def _http_listeners(
        self,
        hosts: Mapping[str, VirtualHost],
        names: dict[str, tuple[NameRoute, ...]],
        tls_hosts: dict[str, TlsHost],
        native: NativePart,
        problems: Problems,
        *,
        alone: bool,
    ) -> dict[str, Listener]:
        """Ingresses bring their own listener, unless a native file defines one for them. Where there are none, native
        files and others that bring listeners do not need it."""
        listeners = native.config.listeners
        if any(one.host_set == HOST_SET for one in listeners.values()) or (not hosts and (listeners or not alone)):
            return {
                name: with_names(one, names) if one.host_set == HOST_SET else one for name, one in listeners.items()
            }
        wanted = [Listener(LISTENER, self._options.port, host_set=HOST_SET, http=self._options.http)]
        if tls_hosts or names:
            https = Listener(
                TLS_LISTENER,
                self._options.https_port,
                protocol="https",
                host_set=HOST_SET,
                http=self._options.http,
                tls=ListenerTls(tls_hosts, self._options.tls_policy, self._options.hsts),
            )
            wanted.append(with_names(https, names, self._options.stream))
        own = {}
        for one in wanted:
            # Two listeners on one port would share its connections at random.
            rivals = (
                other
                for other in listeners.values()
                if other.name == one.name or (other.port, other.transport) == (one.port, one.transport)
            )
            rival = next(rivals, None)
            if rival is not None:
                problems.extend((_no_listener(one, rival),))
            else:
                own[one.name] = one
        return {**own, **listeners}

    def _guard(
        self, hosts: dict[str, VirtualHost], tls_hosts: Mapping[str, TlsHost], problems: Problems
    ) -> dict[str, VirtualHost]:
        """Hosts that require certificates of their clients send all plain HTTP to https, the routes of other Ingresses
        as well.
        """
        strict = {name for name, one in tls_hosts.items() if is_strict(one.clients)}
        names = [name for name in strict if name in hosts]
        if any(name.startswith("*.") for name in strict):
            names += [name for name in hosts if name not in tls_hosts and f"*.{name.partition('.')[2]}" in strict]
        before = self._previous.config.hosts.get(HOST_SET, {}) if self._previous is not None else {}
        guarded = {}
        for name in sorted(names):
            host = hosts[name]
            for route in host.routes:
                if route.options.https_redirect == 0:
                    problems.extend((redirect_stays(route.origin),))
            routes = tuple(route if route.options.https_redirect else send_to_https(route) for route in host.routes)
            if routes != host.routes:
                guarded[name] = keep(msgspec.structs.replace(host, routes=routes), before.get(name))
        return {**hosts, **guarded} if guarded else hosts

    def _with_native_hosts(
        self, hosts: dict[str, VirtualHost], native: NativePart, problems: Problems
    ) -> dict[str, VirtualHost]:
        own = native.config.hosts.get(HOST_SET)
        if not own:
            return hosts
        for hostname in sorted(hosts.keys() & own.keys()):
            winner = own[hostname].routes[0].origin if own[hostname].routes else Origin()
            for loser in dict.fromkeys(route.origin for route in hosts[hostname].routes):
                problems.extend((clash(f"host {hostname}", loser, winner, "" if winner.file else "a native file"),))
        return {**hosts, **own}

    def _with_native_upstreams(
        self, upstreams: dict[str, Upstream], native: NativePart, problems: Problems
    ) -> dict[str, Upstream]:
        before = self._previous.config.upstreams if self._previous is not None else {}
        own = dict(native.config.upstreams)
        for name in sorted(upstreams.keys() & own.keys()):
            problems.extend((clash(f"upstream {name}", upstreams[name].origin, own[name].origin),))
        for name, route in native.dangling.items():
            if name not in upstreams:
                own[name] = keep(missing_upstream(name, route, self._options), before.get(name))
        return {**upstreams, **own} if own else upstreams

    # -- Problems

    def _general_problems(self, classes: Classes, ingresses: Mapping[_Name, IngressPart]) -> tuple[Problem, ...]:
        if classes.everything and ingresses:
            return (everything_is_served(), *classes.problems)
        return classes.problems

    def _set_problems(self, group: Group, problems: tuple[Problem, ...]) -> None:
        if (problems or self._old.problems.keys) and problems != self._old.problems.get(group):
            self._problems[group] = problems

    # -- What is stale

    def _is_stale(self, kind: str) -> bool:
        return self._fresh or bool(self._changed[kind])


_CONFIG_MAP = "configmap/"
"""Begins the namespace of what is no Service among the claims of listeners; no namespace has a slash."""


def _of_services(claims: Iterable[_Name]) -> Iterable[_Name]:
    return (name for name in claims if not name[0].startswith(_CONFIG_MAP))


_NOBODY: frozenset[_Name] = frozenset()


def _with_fault(part: _PartT, fault: Problem) -> _PartT:
    """A part of before, with the one problem that its object has now."""
    return msgspec.structs.replace(part, problems=(fault,))


def _origin_of(stored: Stored | None) -> Origin:
    return stored.origin if stored is not None else Origin()


def _assemble_host(hostname: str, claims: Sequence[Claim]) -> _Host:
    host, problems = assemble_host(hostname, claims) if claims else (None, ())
    passed, more = assemble_passthrough(hostname, claims)
    return host, passed, (*problems, *more)


def _newest(claims: Sequence[Claim]) -> Origin:
    """The youngest Ingress of a host: what works without it probably fails because of it."""
    routes = (route for claim in reversed(claims) for route in _all_routes(claim))
    return next((route.origin for route in routes), Origin())


def _all_routes(claim: Claim) -> tuple[Route, ...]:
    return claim.routes if claim.default is None else (*claim.routes, claim.default)


def _upstreams(action: Forward | Respond) -> list[str]:
    return [upstream.name for upstream in action.upstreams] if isinstance(action, Forward) else []


def _age(claim: Claim) -> Age:
    return claim.age


def _named_by(claims: Mapping[_Name, tuple[TlsClaim, ...]]) -> Iterable[MaterialName]:
    for claim in chain.from_iterable(claims.values()):
        if claim.secret is not None:
            yield MaterialName("certificate", "Secret", *claim.secret)
        if claim.clients is not None and claim.clients.authorities is not None:
            yield claim.clients.authorities


def _services(references: tuple[Reference, ...]) -> dict[_Name, None]:
    """The Services referred to, in the order of the references."""
    if len(references) == 1:  # nearly always
        return {(references[0].namespace, references[0].service): None}
    return dict.fromkeys((reference.namespace, reference.service) for reference in references)


def _patch(old: dict[_KeyT, _ValueT], updates: Mapping[_KeyT, _ValueT | None]) -> dict[_KeyT, _ValueT]:
    """`old` with `updates`, where None removes; `old` itself when there are none."""
    if not updates:
        return old
    new = dict(old)
    for key, value in updates.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = value
    return new


def _no_listener(own: Listener, rival: Listener) -> Problem:
    what = f"listener {rival.name} on port {rival.port} takes name or port of the listener for Ingresses"
    return Problem(
        "LB5005",
        rival.origin,
        f"{what} ({own.name}, port {own.port})",
        why="no listener serves the Ingresses",
        fix=f"give one listener `host_set: {HOST_SET}`, or rename this one and move it to another port",
    )
