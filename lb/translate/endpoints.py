"""The addresses behind a Service port: EndpointSlices, or the older Endpoints, as a list of endpoints.

Source: kubernetes/api discovery/v1/types.go; kube-proxy for what terminating endpoints are good for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, cast

from lb.model.address import is_ip_address
from lb.model.upstream import Endpoint
from lb.objects.core import EndpointAddress, Endpoints, EndpointSubset, ObjectReference, Service, ServicePort
from lb.objects.discovery import EndpointSlice, SliceEndpoint, SlicePort
from lb.objects.view import Stored, View
from lb.problems import Problem, Problems

Readiness = Literal["ready", "draining", "unready"]


class Backing(NamedTuple):
    """An address that a Service port has, whether it may serve or not, and the node it runs on."""

    endpoint: Endpoint
    readiness: Readiness
    node: str


def find_backings(view: View, stored: Stored, port: ServicePort, problems: Problems) -> list[Backing]:
    """Every address behind a Service port, each once.

    Addresses are of one family: a pod with an IPv4 and an IPv6 address is one server, and would get twice its share.
    That is the Service's primary family, and its other one, if it has two, when the first has nobody who can serve. A
    terminating endpoint that still serves is `draining`: it gets requests while nobody is ready, as with kube-proxy.
    What is no IP address is left out, with a problem (LB4008).
    """
    service = cast(Service, stored.object)
    namespace, name = service.metadata.namespace, service.metadata.name
    slices = view.slices_of(namespace, name)
    if not slices:
        endpoints = view.get("Endpoints", namespace, name)
        return _merge(_from_endpoints(endpoints, service, port, problems)) if endpoints is not None else []
    problems.extend(_unusable_slice(one) for one in slices if _family(one) not in FAMILIES)
    by_family = [
        _merge(
            backing for one in slices if _family(one) == family for backing in _from_slice(one, service, port, problems)
        )
        for family in families_of(service)
    ]
    return next((backings for backings in by_family if _can_serve(backings)), by_family[0])


def families_of(service: Service) -> tuple[str, ...]:
    """The address families that a Service is for, the primary one first.

    The API server fills in `ipFamilies`, by `ipFamilyPolicy` and what the cluster has; whoever writes a Service by hand
    and says nothing is served by either family, first by that of the clusterIP. (Kubernetes: dual-stack Services.)
    """
    said = tuple(family for family in service.spec.ip_families or () if family in FAMILIES)
    if said:
        return said
    return ("IPv6", "IPv4") if ":" in service.spec.cluster_ip else FAMILIES


def knows_endpoints(view: View, service: Service) -> bool:
    """Whether the input says anything of the addresses behind a Service, be it that there are none."""
    namespace, name = service.metadata.namespace, service.metadata.name
    return bool(view.slices_of(namespace, name)) or view.get("Endpoints", namespace, name) is not None


def slice_app_protocols(view: View, service: Service, port: ServicePort) -> list[str]:
    """What the slices' ports for a Service port say of its protocol, each once."""
    said = []
    for stored in view.slices_of(service.metadata.namespace, service.metadata.name):
        found = _find_slice_port(cast(EndpointSlice, stored.object), port)
        if found is not None and found.app_protocol:
            said.append(found.app_protocol)
    return list(dict.fromkeys(said))


def ports_instead(view: View, service: Service, port: ServicePort) -> list[str]:
    """The ports of slices with addresses, such as `db (TCP)`, if none of them has this one: a name is misspelt."""
    stored = view.slices_of(service.metadata.namespace, service.metadata.name)
    slices = [one for one in (cast(EndpointSlice, each.object) for each in stored) if one.endpoints]
    if any(_find_slice_port(one, port) is not None for one in slices):
        return []
    others = (other for one in slices for other in one.ports or ())
    return list(dict.fromkeys(f"{other.name or other.port} ({other.protocol or 'TCP'})" for other in others))


def usable(backings: Iterable[Backing]) -> tuple[Endpoint, ...]:
    """The endpoints that may get requests; terminating ones are marked as draining."""
    return tuple(backing.endpoint for backing in backings if backing.readiness != "unready")


def _can_serve(backings: Sequence[Backing]) -> bool:
    return any(backing.readiness != "unready" for backing in backings)


def _family(stored: Stored) -> str:
    return cast(EndpointSlice, stored.object).address_type


FAMILIES = ("IPv4", "IPv6")
"""`addressType` of the slices whose addresses can be connected to."""

_PREFERENCE: dict[Readiness, int] = {"ready": 0, "draining": 1, "unready": 2}


def _merge(backings: Iterable[Backing]) -> list[Backing]:
    """Each address once. While an endpoint moves between slices it stands in both, and the better word counts."""
    merged: dict[tuple[str, int], Backing] = {}
    for backing in backings:
        key = (backing.endpoint.address, backing.endpoint.port)
        known = merged.get(key)
        if known is None or _PREFERENCE[backing.readiness] < _PREFERENCE[known.readiness]:
            merged[key] = backing
    return list(merged.values())


def _from_slice(stored: Stored, service: Service, port: ServicePort, problems: Problems) -> Iterator[Backing]:
    one = cast(EndpointSlice, stored.object)
    number = _slice_port(one, port)
    if number is None:
        return
    for index, endpoint in enumerate(one.endpoints or ()):
        if not endpoint.addresses:
            continue
        # "Consumers should only use the first address" (discovery/v1, Endpoint.addresses).
        address = endpoint.addresses[0]
        if not is_ip_address(address):
            problems.extend((bad_address(stored, address, f"endpoints[{index}].addresses[0]"),))
            continue
        readiness = _readiness(endpoint, service)
        yield Backing(
            Endpoint(
                address,
                number,
                draining=readiness == "draining",
                target=_target(endpoint.target_ref),
                origin=stored.origin,
            ),
            readiness,
            endpoint.node_name or "",
        )


def _slice_port(one: EndpointSlice, port: ServicePort) -> int | None:
    """The slice's port for a Service port: by name.

    Two allowances of ingress-nginx (`internal/ingress/controller/endpointslices.go`), which slices written by hand rely
    on: a Service port without a name takes the slice's only port whatever its name, and a slice without ports takes a
    numeric targetPort.
    """
    found = _find_slice_port(one, port)
    if found is not None:
        return found.port or _numeric_target(port)
    return None if one.ports else _numeric_target(port)


def _find_slice_port(one: EndpointSlice, port: ServicePort) -> SlicePort | None:
    ports = [candidate for candidate in one.ports or () if (candidate.protocol or "TCP") == port.protocol]
    named = next((candidate for candidate in ports if (candidate.name or "") == port.name), None)
    return ports[0] if named is None and not port.name and len(ports) == 1 else named


def _numeric_target(port: ServicePort) -> int | None:
    if port.target_port is None:
        return port.port
    return port.target_port if isinstance(port.target_port, int) else None


def _readiness(endpoint: SliceEndpoint, service: Service) -> Readiness:
    """Missing conditions mean ready, serving, not terminating."""
    conditions = endpoint.conditions
    if conditions.ready is not False or service.spec.publish_not_ready_addresses:
        return "ready"
    if conditions.terminating and conditions.serving is not False:
        return "draining"
    return "unready"


def _target(reference: ObjectReference | None) -> str:
    return f"{reference.kind.lower()}/{reference.name}" if reference is not None and reference.name else ""


def _from_endpoints(stored: Stored, service: Service, port: ServicePort, problems: Problems) -> Iterator[Backing]:
    for place, subset in enumerate(cast(Endpoints, stored.object).subsets):
        number = _subset_port(subset, port)
        if number is None:
            continue
        unready: Readiness = "ready" if service.spec.publish_not_ready_addresses else "unready"
        groups: tuple[tuple[str, Sequence[EndpointAddress], Readiness], ...] = (
            ("addresses", subset.addresses, "ready"),
            ("notReadyAddresses", subset.not_ready_addresses, unready),
        )
        for name, addresses, readiness in groups:
            for index, address in enumerate(addresses):
                if is_ip_address(address.ip):
                    yield _from_address(address, number, readiness, stored)
                else:
                    problems.extend((bad_address(stored, address.ip, f"subsets[{place}].{name}[{index}].ip"),))


def _subset_port(subset: EndpointSubset, port: ServicePort) -> int | None:
    ports = [candidate for candidate in subset.ports if candidate.protocol == port.protocol]
    named = next((candidate.port for candidate in ports if candidate.name == port.name), None)
    if named is None and not port.name and len(ports) == 1:
        return ports[0].port
    return named


def _from_address(address: EndpointAddress, port: int, readiness: Readiness, stored: Stored) -> Backing:
    endpoint = Endpoint(address.ip, port, target=_target(address.target_ref), origin=stored.origin)
    return Backing(endpoint, readiness, address.node_name or "")


def bad_address(stored: Stored, address: str, field: str) -> Problem:
    """The problem with an address that is none (LB4008)."""
    return Problem(
        "LB4008",
        stored.origin,
        f"{address!r} is no IP address",
        why="it gets no requests; other addresses are served",
        fix="write an IPv4 or IPv6 address, without a zone such as %eth0",
        field=field,
    )


def _unusable_slice(stored: Stored) -> Problem:
    return Problem(
        "LB4008",
        stored.origin,
        f"addresses of type {_family(stored)} are no IP addresses",
        why="the slice's endpoints get no requests; those of other slices are served",
        fix="use a Service of type ExternalName for a name",
        field="addressType",
    )
