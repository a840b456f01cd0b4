"""TCP and UDP listeners that the cluster's objects ask for: Services of type LoadBalancer, and ingress-nginx's
tcp-services and udp-services.

Each object claims listeners; who gets a place that several claim is settled for all of them together: what serves
already first (native files, Ingresses), then the older object.
Sources: kubernetes/api core/v1/types.go (ServiceSpec); kubernetes/cloud-provider `service/helpers/helper.go` for source
ranges; ingress-nginx docs/user-guide/exposing-tcp-udp-services.md and `controller.go`, getStreamServices.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import msgspec

from lb.model.address import is_ip_address, is_network
from lb.model.datagram import Datagram, DatagramOptions
from lb.model.listener import Listener, Transport
from lb.model.route import Forward, WeightedUpstream
from lb.model.stream import Stream, StreamOptions, StreamRoute
from lb.objects.core import ConfigMap, Service
from lb.objects.networking import ServiceBackendPort
from lb.objects.view import Stored
from lb.problems import Origin, Problem, Problems
from lb.translate.annotations import Values, field_of
from lb.translate.ingress import Directory
from lb.translate.known import Place, external_addresses, known_elsewhere, taken_from_all
from lb.translate.options import Options
from lb.translate.places import Places, place_taken
from lb.translate.precedence import Age, age_of
from lb.translate.services import MISSING_SERVICE, Reference, missing_port, resolve_reference
from lb.translate.vendors import SOURCE_RANGES, left_to_others, read_service

_TRANSPORTS: dict[str, Transport] = {"TCP": "tcp", "UDP": "udp"}
"""Those `protocol`s of a Service port that lb carries."""

MOST_LISTENERS = 1_024
"""Of all these objects together: each costs a socket for each thread, and the data plane has room for 4,096, with those
that are over and still have connections."""

EVERYBODY = ("0.0.0.0/0", "::/0")

_OWN_ADDRESSES = field_of("addresses", "").partition("[")[2].removesuffix("]")
"""lb's own annotation that says where to listen."""

_NUMBER = re.compile(r"[0-9]{1,5}")
"""That may be a port. (`isdigit` is true of digits that `int` cannot read.)"""
_ENTRY = re.compile(r"(?P<namespace>[^/:]+)/(?P<service>[^/:]+):(?P<port>[^:]+)(?P<proxy>(?::[^:]*){0,2})")


class StreamClaim(msgspec.Struct, frozen=True):
    """The listeners that one object wants."""

    age: Age
    listeners: tuple[Listener, ...] = ()
    references: tuple[Reference, ...] = ()
    """Service ports that they lead to."""
    problems: tuple[Problem, ...] = ()
    advertised: tuple[str, ...] = ()
    """Addresses at which clients know it: from the load balancer before lb, and as `externalIPs`."""
    is_decided: bool = False
    """Whether lb's own annotation says where to listen."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it wants to listen; the empty one stands for all."""
        return tuple(dict.fromkeys(one.address for one in self.listeners))


_WORDS: dict[str, tuple[tuple[str, ...], str]] = {
    "type": (("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"), "lb does not listen for it"),
    "sessionAffinity": (("None", "ClientIP"), "no client is kept on its endpoint"),
    "externalTrafficPolicy": (("Cluster", "Local"), "it is taken for Cluster"),
}
"""Fields of a Service's spec that hold one of a few words, and what becomes of another one."""


def _refused_words(stored: Stored, service: Service) -> Iterator[Problem]:
    """What the API server would not have let into an export (LB4016)."""
    spec = service.spec
    written = {
        "type": spec.type,
        "sessionAffinity": spec.session_affinity,
        "externalTrafficPolicy": spec.external_traffic_policy,
    }
    for field, (words, why) in _WORDS.items():
        word = written[field]
        if not word or word in words:
            continue
        near = next((one for one in words if one.lower() == word.lower()), "")
        near = near or "".join(difflib.get_close_matches(word, words, n=1))
        name = f"{service.metadata.namespace}/{service.metadata.name}"
        what = f"Service {name} has {field} {word!r}, which Kubernetes does not know"
        fix = f"did you mean {near}?" if near else f"write {', '.join(words[:-1])} or {words[-1]}"
        yield Problem("LB4016", stored.origin, what, why, fix, f"spec.{field}")


def claim_service(stored: Stored, options: Options) -> StreamClaim | None:
    """What a Service of type LoadBalancer wants, if it is lb's."""
    service = cast(Service, stored.object)
    refused = tuple(_refused_words(stored, service))
    if service.spec.type != "LoadBalancer":
        return StreamClaim(age_of(service.metadata), problems=refused) if refused else None
    mistakes = Problems()  # told of the upstream, if there is one
    values, served = read_service(stored, service, options, mistakes)
    if not served:
        unread = [one for one in mistakes if one.field == field_of("load_balancer", "")]
        return StreamClaim(
            age_of(service.metadata), problems=(left_to_others(stored, service, values), *unread, *refused)
        )
    return _ServiceClaim(stored, service, values, options, refused).make()


class _ServiceClaim:
    """One Service; holds what all its ports share."""

    def __init__(
        self, stored: Stored, service: Service, values: Values, options: Options, refused: Iterable[Problem]
    ) -> None:
        self._stored = stored
        self._service = service
        self._name = f"{service.metadata.namespace}/{service.metadata.name}"
        self._problems = Problems(refused)
        self._carrying = Carrying(
            msgspec.structs.replace(options.stream, **values.stream),
            msgspec.structs.replace(options.datagram, **values.datagram),
        )
        self._addresses: Sequence[str] | None = values.addresses
        self._is_decided = bool((service.metadata.annotations or {}).get(_OWN_ADDRESSES, "").strip())

    def make(self) -> StreamClaim:
        addresses = self._listen_on()
        self._check_external(addresses)
        allow = self._source_ranges()
        self._check_for_ports()
        references = {f"spec.ports[{index}]": self._refer(index) for index in range(len(self._service.spec.ports))}
        listeners: list[Listener] = []
        if allow is not None:
            carrying = self._carrying.only_from(allow) if allow else self._carrying
            listeners = [
                carrying.listener(
                    f"{one.upstream} {address}".rstrip(), int(one.port), address, one, self._stored, field
                )
                for field, one in references.items()
                if one is not None
                for address in addresses
            ]
        return StreamClaim(
            age_of(self._service.metadata),
            tuple(listeners),
            tuple(one for one in references.values() if one is not None),
            tuple(self._problems),
            self._advertised(),
            self._is_decided,
        )

    def _check_for_ports(self) -> None:
        if not self._service.spec.ports:
            self._problems.add(
                "LB4016",
                self._stored.origin,
                f"Service {self._name} of type LoadBalancer has no ports",
                why="nothing listens for it",
                fix="write them, such as `ports: [{port: 5432}]`",
                field="spec.ports",
            )

    def _advertised(self) -> tuple[str, ...]:
        status = self._service.status
        told = status.load_balancer.ingress if status is not None and status.load_balancer is not None else None
        return _addresses((*(one.ip or "" for one in told or ()), *(self._service.spec.external_ips or ())))

    def _check_external(self, addresses: Sequence[str]) -> None:
        """kube-proxy sends on what comes to a node for one of `externalIPs` (kubernetes/api, ServiceSpec); a load
        balancer before the nodes is not asked for it, and this host may not have the address."""
        if self._is_decided or "" in addresses:
            return
        heard = _addresses(addresses)
        unheard = [one for one in _addresses(self._service.spec.external_ips or ()) if one not in heard]
        if unheard and heard:
            self._problems.extend((external_addresses(self._stored.origin, unheard, heard),))

    def _refer(self, index: int) -> Reference | None:
        """To a port of the Service itself, if lb can carry what comes there."""
        port, metadata = self._service.spec.ports[index], self._service.metadata
        transport = _TRANSPORTS.get(port.protocol)
        if transport is not None:
            return Reference(metadata.namespace, metadata.name, port.port, transport=transport, requests=False)
        meant = port.protocol.upper() if port.protocol.upper() in _TRANSPORTS else ""
        self._problems.add(
            "LB4010",
            self._stored.origin,
            f"port {port.port} of Service {self._name} is {port.protocol}",
            why="nothing listens on it",
            fix=f"did you mean {meant}?" if meant else "lb carries TCP and UDP; reach this port on the nodes",
            field=f"spec.ports[{index}].protocol",
        )
        return None

    def _listen_on(self) -> Sequence[str]:
        """Addresses; the empty one stands for all."""
        if self._addresses is not None:
            return self._addresses
        wanted = self._service.spec.load_balancer_ip
        if not wanted:
            return ("",)
        if is_network(wanted) and "/" not in wanted:
            return (wanted,)
        self._problems.add(
            "LB4008",
            self._stored.origin,
            f"loadBalancerIP {wanted!r} of Service {self._name} is no IP address",
            why="nothing listens for it",
            fix="write an IPv4 or IPv6 address of this host",
            field="spec.loadBalancerIP",
        )
        return ()

    def _source_ranges(self) -> tuple[str, ...] | None:
        """Who is let in, everybody when it is empty; None when some should be and nobody is understood."""
        field = "spec.loadBalancerSourceRanges"
        ranges = tuple(self._service.spec.load_balancer_source_ranges or ())
        if not ranges:
            written = (self._service.metadata.annotations or {}).get(SOURCE_RANGES, "")
            field, ranges = f"metadata.annotations[{SOURCE_RANGES}]", tuple(filter(None, written.split(",")))
        entries = [one.strip() for one in ranges]
        good = [one for one in entries if is_network(one)]
        why = "clients from there are not let in" if good else "nobody would be let in: nothing listens for the Service"
        for one in entries:
            if is_network(one):
                continue
            self._problems.add(
                "LB4012",
                self._stored.origin,
                f"source range {one!r} of Service {self._name} is no network",
                why=why,
                fix="write one such as 10.0.0.0/8 or fd00::/8",
                field=field,
            )
        return None if ranges and not good else tuple(good)


def _addresses(texts: Iterable[str]) -> tuple[str, ...]:
    """Those that are addresses, in one form, each once."""
    return tuple(dict.fromkeys(str(ipaddress.ip_address(one)) for one in texts if is_ip_address(one)))


class Carrying(NamedTuple):
    """How listeners carry what comes."""

    stream: StreamOptions
    datagram: DatagramOptions

    def only_from(self, allow: tuple[str, ...]) -> Carrying:
        """For clients of these networks only."""
        return Carrying(
            msgspec.structs.replace(self.stream, allow=allow), msgspec.structs.replace(self.datagram, allow=allow)
        )

    def listener(
        self, name: str, port: int, address: str, reference: Reference, stored: Stored, field: str
    ) -> Listener:
        route = StreamRoute(name, Forward((WeightedUpstream(reference.upstream),)), stored.origin, field)
        if reference.transport == "udp":
            datagram = Datagram(route, self.datagram)
            return Listener(name, port, address, "udp", origin=stored.origin, datagram=datagram)
        return Listener(name, port, address, "tcp", origin=stored.origin, stream=Stream(route, self.stream))


def claim_stream_services(
    name: tuple[str, str], stored: Stored | None, options: Options, directory: Directory, transport: Transport
) -> StreamClaim:
    """What the ConfigMap of this namespace and name wants. Its keys are ports, its values `NAMESPACE/SERVICE:PORT`."""
    problems = Problems()
    if stored is None:
        what = f"ConfigMap {'/'.join(name)} does not exist"
        fix = f"check --{transport}-services, and that the input holds ConfigMaps"
        problems.add("LB4013", Origin(), what, why="none of its ports is served", fix=fix)
        return StreamClaim(Age(True, "", *name), problems=tuple(problems))
    data = cast(ConfigMap, stored.object).data or {}
    read = (_read_entry(stored, key, data[key], options, directory, transport, problems) for key in sorted(data))
    entries = [one for one in read if one is not None]
    return StreamClaim(
        age_of(stored.object.metadata),
        tuple(listener for listener, _ in entries),
        tuple(dict.fromkeys(reference for _, reference in entries)),
        tuple(problems),
    )


def _read_entry(
    stored: Stored,
    key: str,
    value: str,
    options: Options,
    directory: Directory,
    transport: Transport,
    problems: Problems,
) -> tuple[Listener, Reference] | None:
    field = f"data[{key}]"
    found = _ENTRY.fullmatch(value.strip())
    mistake = _mistake_of_entry(key, value, found, transport)
    if mistake is not None or found is None:
        what, why, fix = mistake or ("", "", "")
        problems.add("LB4013", stored.origin, what, why=why, fix=fix, field=field)
        return None
    namespace, service, port = found["namespace"], found["service"], found["port"]
    named = ServiceBackendPort(number=int(port)) if _NUMBER.fullmatch(port) else ServiceBackendPort(name=port)
    table = directory.table(namespace, service)
    from_clients, to_endpoints = _flags(found)
    if ignored := _ignored_flags(value, found, transport):
        what, why, fix = ignored
        problems.add("LB4013", stored.origin, what, why=why, fix=fix, field=field)
    if transport == "udp":
        from_clients = to_endpoints = False
    reference = msgspec.structs.replace(
        resolve_reference(table, namespace, service, named, transport),
        header="v1" if to_endpoints else "none",
        requests=False,
    )
    if reference.mistake:
        what, fix = f"Service {namespace}/{service} does not exist", MISSING_SERVICE
        if reference.mistake == "LB4002":
            what, fix = missing_port(reference, table)
        why = f"connections to port {key} are reset" if transport == "tcp" else f"datagrams to port {key} are dropped"
        problems.add(reference.mistake, stored.origin, what, why=why, fix=fix, field=field)
    name = f"{stored.object.metadata.namespace}/{stored.object.metadata.name}:{key}"
    stream = options.stream
    if from_clients:
        stream = msgspec.structs.replace(stream, proxy_protocol=EVERYBODY)
    carrying = Carrying(stream, options.datagram)
    name = name if transport == "tcp" else f"{name}/udp"
    return carrying.listener(name, int(key), "", reference, stored, field), reference


def _flags(found: re.Match[str]) -> tuple[bool, bool]:
    """Whether connections begin with a PROXY header, from clients and to endpoints (nginx sends version 1)."""
    flags = found["proxy"].upper().split(":")
    return flags[1:2] == ["PROXY"], flags[2:3] == ["PROXY"]


def _ignored_flags(value: str, found: re.Match[str], transport: Transport) -> tuple[str, str, str] | None:
    """(what, why, fix) where a PROXY does nothing, as in ingress-nginx, which is silent about it."""
    if not found["proxy"].strip(":") or transport == "tcp":
        return None
    what = f"{value!r} asks for the PROXY protocol, which is for TCP"
    return what, "datagrams are carried without it", f"write {_without_flags(found)}"


def _without_flags(found: re.Match[str]) -> str:
    return f"{found['namespace']}/{found['service']}:{found['port']}"


def _mistake_of_entry(
    key: str, value: str, found: re.Match[str] | None, transport: Transport
) -> tuple[str, str, str] | None:
    """(what is wrong, what follows, how to fix it)."""
    why = "nothing listens there"
    if not (_NUMBER.fullmatch(key) and 0 < int(key) < 65_536):
        return f"key {key!r} is no port", why, "write a port from 1 to 65535 as the key"
    if found is None:
        return f"{value!r} is not like NAMESPACE/SERVICE:PORT", why, "write one such as shop/db:5432"
    unknown = [word for word in found["proxy"].split(":") if word and word.upper() != "PROXY"]
    if not unknown:
        return None
    what = f"{value!r} has {unknown[0]!r} behind its port, where only PROXY is known"
    plain = _without_flags(found)
    if transport == "udp":
        return what, why, f"write {plain}"
    # ingress-nginx serves it as if the word were not there.
    why = f"{why}: an endpoint that waits for a PROXY header would take the client's first bytes for one"
    return what, why, f"write PROXY, or {plain} for no header"


def settle(
    claims: Iterable[StreamClaim], taken: Mapping[str, Listener]
) -> tuple[dict[str, Listener], tuple[Problem, ...]]:
    """The listeners of all claims that are to be had beside those that are `taken`, and what is said of the others."""
    won: dict[str, tuple[Listener, StreamClaim]] = {}
    places = Places()
    for one in taken.values():
        places.take(one)
    names = dict(taken)
    over: dict[Origin, Listener] = {}
    shared: dict[tuple[Origin, str, str], tuple[Place, list[str]]] = {}
    problems = Problems()
    for listener, claim in _oldest_first(claims):
        rival = names.get(listener.name) or places.holder(listener)
        if rival is not None:
            problems.extend((place_taken(listener, rival, _fix_of_place(listener, rival, claim.advertised)),))
        elif len(won) >= MOST_LISTENERS:
            over.setdefault(listener.origin, listener)
        else:
            holder = places.holder_of_rest(listener)
            if holder is not None and _is_known_at(holder, listener, won):
                place = Place(listener, holder, claim.is_decided, claim.addresses)
                field = next((route.field for route in listener.carried_routes), "")
                shared.setdefault((listener.origin, field, holder.name), (place, []))[1].append(listener.address)
            names[listener.name] = listener
            won[listener.name] = listener, claim
            places.take(listener)
    problems.extend(map(_too_many, over.values()))
    problems.extend(taken_from_all(place, addresses) for place, addresses in shared.values())
    everywhere = {
        listener.origin: claim.advertised
        for listener, claim in won.values()
        if claim.advertised and not listener.address
    }
    note = known_elsewhere(list(everywhere.items()))
    problems.extend(() if note is None else (note,))
    return {name: listener for name, (listener, _) in won.items()}, tuple(problems)


def _is_known_at(holder: Listener, taker: Listener, won: Mapping[str, tuple[Listener, StreamClaim]]) -> bool:
    """Whether clients may look for the holder at the address that another object takes."""
    if holder.origin == taker.origin:
        return False
    _, claim = won.get(holder.name, (None, None))
    known = claim.advertised if claim is not None else ()
    return not known or str(ipaddress.ip_address(taker.address)) in known


def _oldest_first(claims: Iterable[StreamClaim]) -> Iterator[tuple[Listener, StreamClaim]]:
    # A Service and a ConfigMap may be of one age and name.
    for claim in sorted((one for one in claims if one.listeners), key=lambda one: (one.age, one.listeners[0].name)):
        yield from ((listener, claim) for listener in claim.listeners)


def _fix_of_place(loser: Listener, winner: Listener, advertised: Sequence[str]) -> str:
    service = next((one.origin for one in (loser, winner) if one.origin.kind == "Service"), None)
    if service is not None and "ConfigMap" in (loser.origin.kind, winner.origin.kind):
        whose = f"{service.namespace}/{service.name}"
        return (
            f'if Service {whose} is the one that brings these ports to ingress-nginx, lb/load-balancer: "false" on it '
            "leaves them to the ConfigMap; else give one of them another port, or the Service lb/addresses of its own"
        )
    fix = ""
    if advertised and not loser.address:
        addresses = ", ".join(advertised)
        fix = (
            f'lb/addresses: "{addresses}" has it listen where its clients know it, once this host '
            "has these addresses; or give one of them another port"
        )
    if service is loser.origin and not winner.origin.object:
        own = 'if the Service is that of the controller whose Ingresses lb serves, lb/load-balancer: "false" on it'
        return f"{own}; else {fix or 'give it another port, or addresses of its own with lb/addresses'}"
    return fix


def _too_many(first: Listener) -> Problem:
    return Problem(
        "LB4015",
        first.origin,
        f"listener {first.name} would be one of more than {MOST_LISTENERS:,}",
        why="the older objects go first; neither it nor what comes behind it in this object is listened for",
        fix="take ports, addresses or older objects away, or serve some of them by another lb",
        field=next((route.field for route in first.carried_routes), ""),
    )
