"""TCP listeners that the cluster's objects ask for: Services of type LoadBalancer, and ingress-nginx's tcp-services.

Each object claims listeners; who gets a place that several claim is settled for all of them together: what serves
already first (native files, Ingresses), then the older object.
Sources: kubernetes/api core/v1/types.go (ServiceSpec); kubernetes/cloud-provider `service/helpers/helper.go` for source
ranges; ingress-nginx docs/user-guide/exposing-tcp-udp-services.md and `controller.go`, getStreamServices.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import msgspec

from lb.model.address import is_ip_address, is_network
from lb.model.listener import Listener
from lb.model.route import Forward, WeightedUpstream
from lb.model.stream import Stream, StreamOptions, StreamRoute
from lb.objects.core import ConfigMap, Service, ServicePort
from lb.objects.networking import ServiceBackendPort
from lb.objects.view import Stored
from lb.problems import Origin, Problem, Problems
from lb.translate.annotations import Values, read_annotations
from lb.translate.ingress import Directory
from lb.translate.options import Options
from lb.translate.precedence import Age, age_of
from lb.translate.services import Reference, missing_port, resolve_reference

LOAD_BALANCER_CLASS = "lb/lb"
"""`spec.loadBalancerClass` of the Services that are lb's."""

SOURCE_RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
"""The older way to say `spec.loadBalancerSourceRanges`, which wins over it."""

EVERYBODY = ("0.0.0.0/0", "::/0")

_ENTRY = re.compile(r"(?P<namespace>[^/:]+)/(?P<service>[^/:]+):(?P<port>[^:]+)(?P<proxy>(?::[^:]*){0,2})")


class StreamClaim(msgspec.Struct, frozen=True):
    """The listeners that one object wants."""

    age: Age
    listeners: tuple[Listener, ...] = ()
    references: tuple[Reference, ...] = ()
    """Service ports that they lead to."""
    problems: tuple[Problem, ...] = ()


def claim_service(stored: Stored, options: Options) -> StreamClaim | None:
    """What a Service wants, when it is a load balancer's and lb's."""
    service = cast(Service, stored.object)
    if service.spec.type != "LoadBalancer":
        return None
    values = read_annotations(stored, "Service", Problems())  # what is wrong with them is told of the upstream
    if not _is_ours(service, values, options):
        return None
    return _ServiceClaim(stored, service, values, options).make()


def _is_ours(service: Service, values: Values, options: Options) -> bool:
    """By its class; without one by its annotation, and without that by the operator's word for all of them."""
    wanted = service.spec.load_balancer_class
    if wanted:
        return wanted == LOAD_BALANCER_CLASS
    return bool(options.load_balancers if values.load_balancer is None else values.load_balancer)


class _ServiceClaim:
    """One Service; holds what all its ports share."""

    def __init__(self, stored: Stored, service: Service, values: Values, options: Options) -> None:
        self._stored = stored
        self._service = service
        self._name = f"{service.metadata.namespace}/{service.metadata.name}"
        self._problems = Problems()
        self._stream = msgspec.structs.replace(options.stream, **values.stream)
        self._addresses: Sequence[str] = values.addresses or ()

    def make(self) -> StreamClaim:
        addresses = self._listen_on()
        allow = self._source_ranges()
        ports = [(index, port) for index, port in enumerate(self._service.spec.ports) if self._is_tcp(index, port)]
        listeners: Iterable[Listener] = ()
        if allow is not None:
            options = msgspec.structs.replace(self._stream, allow=allow) if allow else self._stream
            listeners = (
                self._listener(index, port, address, options) for index, port in ports for address in addresses
            )
        metadata = self._service.metadata
        return StreamClaim(
            age_of(metadata),
            tuple(listeners),
            tuple(Reference(metadata.namespace, metadata.name, port.port, requests=False) for _, port in ports),
            tuple(self._problems),
        )

    def _listener(self, index: int, port: ServicePort, address: str, options: StreamOptions) -> Listener:
        upstream = f"{self._name}:{port.port}"
        return _tcp_listener(
            f"{upstream} {address}".rstrip(),
            port.port,
            address,
            upstream,
            self._stored,
            f"spec.ports[{index}]",
            options,
        )

    def _is_tcp(self, index: int, port: ServicePort) -> bool:
        if port.protocol == "TCP":
            return True
        self._problems.add(
            "LB4010",
            self._stored.origin,
            f"port {port.port} of Service {self._name} is {port.protocol}",
            why="nothing listens on it",
            fix="lb carries TCP; reach this port on the nodes",
            field=f"spec.ports[{index}].protocol",
        )
        return False

    def _listen_on(self) -> Sequence[str]:
        """Addresses; the empty one stands for all."""
        if self._addresses:
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
        good = []
        for one in map(str.strip, ranges):
            if is_network(one):
                good.append(one)
                continue
            self._problems.add(
                "LB4012",
                self._stored.origin,
                f"source range {one!r} of Service {self._name} is no network",
                why="clients from there are not let in",
                fix="write one such as 10.0.0.0/8 or fd00::/8",
                field=field,
            )
        return None if ranges and not good else tuple(good)


def claim_tcp_services(
    name: tuple[str, str], stored: Stored | None, options: Options, directory: Directory
) -> StreamClaim:
    """What the ConfigMap of this namespace and name wants. Its keys are ports, its values `NAMESPACE/SERVICE:PORT`."""
    problems = Problems()
    if stored is None:
        what = f"ConfigMap {'/'.join(name)} does not exist"
        fix = "check --tcp-services, and that the input holds ConfigMaps"
        problems.add("LB4013", Origin(), what, why="none of its ports is served", fix=fix)
        return StreamClaim(Age(True, "", *name), problems=tuple(problems))
    data = cast(ConfigMap, stored.object).data or {}
    read = (_read_entry(stored, key, data[key], options, directory, problems) for key in sorted(data))
    entries = [one for one in read if one is not None]
    return StreamClaim(
        age_of(stored.object.metadata),
        tuple(listener for listener, _ in entries),
        tuple(dict.fromkeys(reference for _, reference in entries)),
        tuple(problems),
    )


def _read_entry(
    stored: Stored, key: str, value: str, options: Options, directory: Directory, problems: Problems
) -> tuple[Listener, Reference] | None:
    field = f"data[{key}]"
    found = _ENTRY.fullmatch(value.strip())
    mistake = _mistake_of_entry(key, value, found)
    if mistake is not None or found is None:
        what, fix = mistake or ("", "")
        problems.add("LB4013", stored.origin, what, why="nothing listens there", fix=fix, field=field)
        return None
    namespace, service, port = found["namespace"], found["service"], found["port"]
    named = ServiceBackendPort(number=int(port)) if port.isdigit() else ServiceBackendPort(name=port)
    table = directory.table(namespace, service)
    from_clients, to_endpoints = _flags(found)
    reference = msgspec.structs.replace(
        resolve_reference(table, namespace, service, named),
        header="v1" if to_endpoints else "none",
        requests=False,
    )
    if reference.mistake:
        what, fix = f"Service {namespace}/{service} does not exist", "check namespace and name"
        if reference.mistake == "LB4002":
            what, fix = missing_port(reference, table)
        why = f"connections to port {key} are reset"
        problems.add(reference.mistake, stored.origin, what, why=why, fix=fix, field=field)
    name = f"{stored.object.metadata.namespace}/{stored.object.metadata.name}:{key}"
    stream = options.stream
    if from_clients:
        stream = msgspec.structs.replace(stream, proxy_protocol=EVERYBODY)
    return _tcp_listener(name, int(key), "", reference.upstream, stored, field, stream), reference


def _flags(found: re.Match[str]) -> tuple[bool, bool]:
    """Whether connections begin with a PROXY header, from clients and to endpoints (nginx sends version 1)."""
    flags = found["proxy"].upper().split(":")
    return flags[1:2] == ["PROXY"], flags[2:3] == ["PROXY"]


def _mistake_of_entry(key: str, value: str, found: re.Match[str] | None) -> tuple[str, str] | None:
    """(what is wrong, how to fix it)."""
    if not (key.isascii() and key.isdigit() and 0 < int(key) < 65_536):
        return f"key {key!r} is no port", "write a port from 1 to 65535 as the key"
    if found is None:
        return f"{value!r} is not like NAMESPACE/SERVICE:PORT", "write one such as shop/db:5432"
    return None


def _tcp_listener(
    name: str, port: int, address: str, upstream: str, stored: Stored, field: str, options: StreamOptions
) -> Listener:
    route = StreamRoute(name, Forward((WeightedUpstream(upstream),)), stored.origin, field)
    return Listener(name, port, address, "tcp", origin=stored.origin, stream=Stream(route, options))


def settle(
    claims: Iterable[StreamClaim], taken: Mapping[str, Listener]
) -> tuple[dict[str, Listener], tuple[Problem, ...]]:
    """The listeners of all claims that are to be had beside those that are `taken`, and what is said of the others."""
    won: dict[str, Listener] = {}
    held: dict[tuple[object, ...], Listener] = {}
    for one in taken.values():
        held |= dict.fromkeys(_places(one), one)
    names = dict(taken)
    problems = Problems()
    for listener in _oldest_first(claims):
        places = _places(listener)
        rival = names.get(listener.name) or next((held[place] for place in places if place in held), None)
        if rival is None:
            won[listener.name] = names[listener.name] = listener
            held |= dict.fromkeys(places, listener)
        else:
            problems.extend((_place_taken(listener, rival),))
    return won, tuple(problems)


def _oldest_first(claims: Iterable[StreamClaim]) -> Iterator[Listener]:
    # A Service and a ConfigMap may be of one age and name.
    for claim in sorted((one for one in claims if one.listeners), key=lambda one: (one.age, one.listeners[0].name)):
        yield from claim.listeners


_ALL = ("0.0.0.0", "::")  # noqa: S104  # compares, does not bind


def _places(listener: Listener) -> list[tuple[object, ...]]:
    """What nobody else can have beside it: its address and port.

    All addresses are a place of their own: who listens on one of them gets its connections, and who listens on all gets
    the others (the kernel takes the most specific socket; inet_hashtables.c, compute_score).
    """
    if listener.address and not is_ip_address(listener.address):
        return []
    addresses = (str(ipaddress.ip_address(listener.address)),) if listener.address else _ALL
    return [(address, listener.port) for address in addresses]


def _place_taken(loser: Listener, winner: Listener) -> Problem:
    whose = winner.origin.object or "lb's own"
    return Problem(
        "LB4011",
        loser.origin,
        f"listener {loser.name} on {loser.bind} meets listener {winner.name} on {winner.bind} ({whose})",
        why="native files and Ingresses go first, then the older object; this one does not listen there",
        fix="give one of them another port, or an address of its own (annotation lb/addresses)",
        field=loser.stream.route.field if loser.stream is not None else "",
    )
