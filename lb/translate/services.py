"""Services as upstreams: one for each port that something refers to, named `namespace/name:port`.

The port in the name is the Service's port *number*, also where it was referred to by name: every port has a number, and
both kinds of reference must give the same upstream. What cannot be resolved keeps the port as it was written. A UDP
port's upstream ends in `/udp`, because TCP may have the same number, and one that somebody wants to begin with a PROXY
header whatever the Service says ends in ` proxy v1`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple, cast

import msgspec

from lb.model.address import is_ip_address
from lb.model.health import HealthCheck, is_used, mistakes
from lb.model.listener import Transport
from lb.model.upstream import Balance, Endpoint, Protocol, ProxyProtocol, ProxyValue, Upstream, spoken_for
from lb.objects.core import Service, ServicePort
from lb.objects.networking import ServiceBackendPort
from lb.objects.view import Resolution, Stored, View
from lb.problems import Origin, Problem, Problems
from lb.translate.annotations import field_of, report_health_mistake, report_health_unused
from lb.translate.backend_tls import BackendTls, read_backend_tls
from lb.translate.endpoints import (
    Backing,
    families_of,
    find_backings,
    knows_endpoints,
    ports_instead,
    slice_app_protocols,
    usable,
)
from lb.translate.material import Material
from lb.translate.nodes import NodeTargets, ask_kube_proxy, node_endpoints
from lb.translate.options import Options
from lb.translate.protocols import read_app_protocol
from lb.translate.vendors import read_service

MISSING_SERVICE = "check namespace and name, and whether LB1003 or LB1010 leaves the Service out"
"""How to fix it that a Service does not exist."""
_MAX_AFFINITY_SECONDS = 86_400
"""`k8s.io/kubernetes/pkg/apis/core/validation`, ValidateClientIPAffinityConfig."""
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class PortTable(msgspec.Struct, frozen=True):
    """What references to a Service depend on. When it stays, no Ingress needs to be looked at again."""

    exists: bool = False
    external: bool = False
    ports: tuple[ServicePort, ...] = ()


class Reference(msgspec.Struct, frozen=True, gc=False):
    """A Service port that something refers to."""

    namespace: str
    service: str
    port: int | str
    """The Service port's number; as it was written when there is no such port."""
    mistake: str = ""
    """Problem code when it cannot be resolved."""
    transport: Transport = "tcp"
    header: ProxyProtocol = "none"
    """The PROXY header that connections are to begin with, over what the Service says."""
    requests: bool = True
    """Whether HTTP is spoken to it, or bytes are carried as they come."""

    @property
    def use(self) -> PortUse:
        return PortUse(self.port, self.transport, self.header)

    @property
    def upstream(self) -> str:
        return self.use.upstream(self.namespace, self.service)


class PortUse(NamedTuple):
    """A Service port as one upstream has it."""

    port: int | str
    transport: Transport = "tcp"
    header: ProxyProtocol = "none"

    def upstream(self, namespace: str, service: str) -> str:
        """Its name."""
        name = f"{namespace}/{service}:{self.port}"
        if self.transport == "udp":
            return f"{name}/udp"
        return name if self.header == "none" else f"{name} proxy {self.header}"


class Wanted(msgspec.Struct, frozen=True):
    """What the objects that refer to a Service want of it."""

    uses: tuple[PortUse, ...] = ()
    """Sorted by text."""
    requests: frozenset[PortUse] = frozenset()
    """Those of them to which HTTP is spoken."""
    balances: dict[int | str, Balance] = {}
    """Port -> what the oldest Ingress with `lb/balance` says."""
    problems: tuple[Problem, ...] = ()


class ServicePart(msgspec.Struct, frozen=True):
    """A Service's share of the model."""

    table: PortTable
    wanted: Wanted
    upstreams: tuple[Upstream, ...]
    problems: tuple[Problem, ...]
    uses_nodes: bool = False
    resolve: str = ""
    """External name whose Resolution the upstreams depend on."""
    tls: BackendTls = BackendTls()


def read_port_table(stored: Stored | None) -> PortTable:
    if stored is None:
        return PortTable()
    spec = cast(Service, stored.object).spec
    return PortTable(True, spec.type == "ExternalName", spec.ports)


def resolve_reference(
    table: PortTable, namespace: str, service: str, port: ServiceBackendPort, transport: Transport = "tcp"
) -> Reference:
    """Which port of the Service is meant.

    Besides name and number of a Service port, a targetPort is taken where nothing else fits, as in ingress-nginx
    (`internal/ingress/controller/controller.go`, serviceEndpoints). An ExternalName Service needs no ports.
    """
    written: int | str = port.name or port.number
    if not table.exists:
        return Reference(namespace, service, written, "LB4001", transport)
    found = find_port(table.ports, written, transport)
    if found is not None:
        return Reference(namespace, service, found.port, "", transport)
    if table.external and not table.ports and isinstance(written, int):
        return Reference(namespace, service, written, "", transport)
    return Reference(namespace, service, written, "LB4002", transport)


def find_port(ports: Sequence[ServicePort], written: int | str, transport: Transport = "tcp") -> ServicePort | None:
    """The port with this number or name, or else with this targetPort."""
    candidates = [port for port in ports if port.protocol == transport.upper()]
    for port in candidates:
        if port.port == written or (port.name and port.name == written):
            return port
    return next((port for port in candidates if port.target_port == written), None)


def translate_service(
    view: View,
    options: Options,
    nodes: NodeTargets,
    material: Material,
    namespace: str,
    name: str,
    wanted: Wanted,
) -> ServicePart:
    """The upstreams of all wanted ports of a Service, whether it exists or not."""
    stored = view.get("Service", namespace, name)
    table = read_port_table(stored)
    if stored is None:
        why = f"Service {namespace}/{name} does not exist"
        missing = (Upstream(use.upstream(namespace, name), unavailable=why) for use in wanted.uses)
        return ServicePart(table, wanted, tuple(missing), wanted.problems)
    return _ServiceTranslation(view, options, nodes, material, stored, table, wanted).translate()


def service_of_before(
    before: ServicePart | None, table: PortTable, namespace: str, name: str, wanted: Wanted, fault: Problem
) -> ServicePart:
    """Upstreams for all wanted ports of a Service that cannot be translated: those of before, where there are any."""
    known = {one.name: one for one in before.upstreams} if before is not None else {}
    names = [use.upstream(namespace, name) for use in wanted.uses]
    upstreams = tuple(known.get(one) or Upstream(one, unavailable=fault.what, origin=fault.origin) for one in names)
    if before is None:
        return ServicePart(table, wanted, upstreams, (fault,))
    return msgspec.structs.replace(before, table=table, wanted=wanted, upstreams=upstreams, problems=(fault,))


def missing_port(reference: Reference, table: PortTable) -> tuple[str, str]:
    """(what is wrong, how to fix it) with a reference to a port that does not exist."""
    ports = [port for port in table.ports if port.protocol == reference.transport.upper()]
    known = ", ".join(f"{port.port} ({port.name})" if port.name else str(port.port) for port in ports)
    what = (
        f"Service {reference.namespace}/{reference.service} has no {reference.transport.upper()} port {reference.port}"
    )
    return what, f"its ports are: {known}" if known else f"it has no {reference.transport.upper()} ports"


class _ServiceTranslation:
    """One Service that exists; holds what all its ports share."""

    def __init__(
        self,
        view: View,
        options: Options,
        nodes: NodeTargets,
        material: Material,
        stored: Stored,
        table: PortTable,
        wanted: Wanted,
    ) -> None:
        self._view = view
        self._options = options
        self._nodes = nodes
        self._stored = stored
        self._service = cast(Service, stored.object)
        self._table = table
        self._wanted = wanted
        self._problems = Problems(wanted.problems)
        self._values, _ = read_service(stored, self._service, options, self._problems)
        self._targets = self._values.targets or options.targets
        mistake = self._values.mistakes.get("tls", "")
        self._tls = read_backend_tls(stored, self._values.tls, mistake, material, self._problems)
        self._uses_nodes = self._targets == "nodeports" and not table.external
        self._health_check = self._read_health_check()
        self._sticky = self._service.spec.session_affinity == "ClientIP"
        self._affinity_timeout_ms = self._read_affinity_timeout()
        self._resolve = ""
        self._name = f"{self._service.metadata.namespace}/{self._service.metadata.name}"

    def translate(self) -> ServicePart:
        upstreams = tuple(self._translate_port(use) for use in self._wanted.uses)
        return ServicePart(
            self._table, self._wanted, upstreams, tuple(self._problems), self._uses_nodes, self._resolve, self._tls
        )

    def _translate_port(self, use: PortUse) -> Upstream:
        wanted = use.port
        port = find_port(self._table.ports, wanted, use.transport) if isinstance(wanted, int) else None
        resolve = ""
        if self._table.external:
            endpoints, why, resolve = self._external_endpoints(use, port)
        elif port is None:
            # The Problem is said where the reference stands.
            endpoints, why = (), f"Service {self._name} has no {use.transport.upper()} port {wanted}"
        elif self._uses_nodes:
            endpoints, why = self._node_endpoints(port)
        else:
            endpoints, why = self._pod_endpoints(port)
        is_tcp = use.transport == "tcp"  # datagrams go as they come: no TLS, no header
        if self._tls.why and is_tcp:
            endpoints, why = (), self._tls.why
        said: tuple[ProxyProtocol, tuple[ProxyValue, ...]] = self._values.proxy_protocol or ("none", ())
        header: ProxyProtocol = "none"
        if is_tcp:
            header = use.header if use.header != "none" else said[0]
        transparent = bool(self._values.transparent)
        for part in ("proxy_protocol", "transparent") if is_tcp else ("transparent",):
            if part in self._values.mistakes:
                endpoints, why = (), self._values.mistakes[part]
        options = self._options.upstream
        if self._values.upstream:
            options = msgspec.structs.replace(options, **self._values.upstream)
        if self._affinity_timeout_ms:
            options = msgspec.structs.replace(options, affinity_timeout_ms=self._affinity_timeout_ms)
        return Upstream(
            use.upstream(self._service.metadata.namespace, self._service.metadata.name),
            self._values.balance or self._wanted.balances.get(wanted) or self._options.balance,
            endpoints,
            "client-ip" if self._sticky else "none",
            options,
            "" if endpoints else why,
            resolve,
            self._stored.origin,
            self._tls.tls if is_tcp else None,
            # Bytes that are carried speak for themselves, whatever the appProtocol is.
            protocol=(
                self._spoken(self._protocol(port), header, transparent) if use in self._wanted.requests else "http1"
            ),
            health_check=self._check_of(use),
            proxy_protocol=header,
            proxy_values=said[1] if header == said[0] else (),
            transparent=transparent,
        )

    def _check_of(self, use: PortUse) -> HealthCheck:
        """Checks are made over TCP: of a UDP port only with a port of their own."""
        if use.transport == "tcp" or self._health_check.port:
            return self._health_check
        if self._values.health and all(one.transport == "udp" for one in self._wanted.uses):
            self._add(
                "LB5002",
                "health checks are made over TCP, and the Service has UDP ports only",
                "its endpoints are not checked",
                "name a port that tells how they are, with lb/health-check-port",
                field_of("health", "type"),
            )
        return HealthCheck()

    def _read_affinity_timeout(self) -> int:
        """Of sessionAffinityConfig, in milliseconds; 0 when it says nothing that can be used."""
        config = self._service.spec.session_affinity_config
        seconds = config.client_ip.timeout_seconds if config is not None and config.client_ip is not None else None
        if seconds is None or not self._sticky:
            return 0
        if not 1 <= seconds <= _MAX_AFFINITY_SECONDS:
            self._add(
                "LB4014",
                f"timeoutSeconds is {seconds}",
                "clients are kept as long as the default says",
                f"write 1 to {_MAX_AFFINITY_SECONDS}",
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            )
            return 0
        return seconds * 1_000

    def _spoken(self, protocol: Protocol, proxy_protocol: ProxyProtocol, transparent: bool) -> Protocol:
        spoken = spoken_for(protocol, proxy_protocol, transparent=transparent)
        if protocol == "http2" and spoken != protocol:
            place = field_of("transparent" if transparent else "proxy_protocol", "")
            annotation = place.partition("[")[2].removesuffix("]")
            self._add(
                "LB5013",
                f"{annotation} and HTTP/2 exclude each other",
                "a connection is for one client then, so requests go to the endpoints with HTTP/1.1",
                f"take {annotation} away, or what asks for HTTP/2 (lb/backend-protocol, appProtocol)",
                place,
            )
        return spoken

    def _protocol(self, port: ServicePort | None) -> Protocol:
        annotated = cast("Protocol | None", self._values.protocol)
        if port is None:
            return annotated or "http1"
        name, said = read_app_protocol(port.app_protocol, *slice_app_protocols(self._view, self._service, port))
        decided = self._tls.tls is not None or self._tls.why or "enabled" in self._values.tls
        if said.tls and not decided:
            self._add(
                "LB4009",
                f"port {port.port} of Service {self._name} has appProtocol {name}, which is TLS",
                "its endpoints are spoken to without TLS: whom to trust is not said",
                "set lb/backend-tls, and lb/backend-ca if the endpoints' certificates are not signed by the system's "
                "authorities",
                f"spec.ports[{self._service.spec.ports.index(port)}].appProtocol",
            )
        return annotated or said.protocol

    def _read_health_check(self) -> HealthCheck:
        """What the annotations say over the operator's default, or over what kube-proxy is asked; no check when that
        cannot be used."""
        said = self._values.health
        check = self._options.health_check
        if self._asks_kube_proxy and "type" not in said:
            check = ask_kube_proxy(self._service.spec.health_check_node_port, check)
        if self._values.borrowed and check.type == "off":
            check = msgspec.structs.replace(check, type="tcp")  # as NLB, which checks whenever nobody says how
        check = msgspec.structs.replace(check, type=said.get("type", check.type))
        # What other load balancers are told of checks of another type is of no interest to anybody.
        said = {name: value for name, value in said.items() if self._is_own(name) or is_used(name, check)}
        check = msgspec.structs.replace(check, **said)
        if "health" in self._values.mistakes:
            return HealthCheck()
        if check.type != "off":
            found = list(mistakes(check, has_tls=self._tls.tls is not None or bool(self._tls.why)))
            for field, mistake in found:
                report_health_mistake(self._stored, field, mistake, self._problems)
            if found:
                return HealthCheck()
        for field in said:
            if field != "type" and self._is_own(field) and (check.type == "off" or not is_used(field, check)):
                report_health_unused(self._stored, field, check.type, self._problems)
        return check if check.type != "off" else HealthCheck()

    def _is_own(self, field: str) -> bool:
        """Whether lb's own annotations say it, and no other load balancer's."""
        return field not in self._values.borrowed

    @property
    def _asks_kube_proxy(self) -> bool:
        """Whether a port of the nodes says which of them have endpoints of the Service."""
        spec = self._service.spec
        is_local = spec.type == "LoadBalancer" and spec.external_traffic_policy == "Local"
        return self._uses_nodes and is_local and 0 < spec.health_check_node_port < 65_536

    def _pod_endpoints(self, port: ServicePort) -> tuple[tuple[Endpoint, ...], str]:
        backings = find_backings(self._view, self._stored, port, self._problems)
        endpoints = usable(backings)
        self._check_readiness(backings, port)
        return endpoints, self._nobody_ready

    @property
    def _lost(self) -> str:
        """What becomes of those who want a Service without endpoints."""
        if self._wanted.requests:
            return "requests are answered 503"
        fates = {"tcp": "connections are reset", "udp": "datagrams are dropped"}
        return ", ".join(fates[one] for one in sorted({use.transport for use in self._wanted.uses}))

    @property
    def _nobody_ready(self) -> str:
        return f"Service {self._name} has no ready endpoint"

    def _check_readiness(self, backings: Sequence[Backing], port: ServicePort) -> None:
        if any(backing.readiness == "ready" for backing in backings):
            return
        if usable(backings):
            why, fix = "its terminating endpoints get the requests", ""
        elif backings:
            count = "1 endpoint is" if len(backings) == 1 else f"{len(backings)} endpoints are"
            why, fix = f"{self._lost}; {count} not ready", "look at the pods' readiness"
        elif others := ports_instead(self._view, self._service, port):
            wanted = f"{port.name or 'one without a name'} ({port.protocol})"
            why = f"{self._lost}; its EndpointSlices have addresses for port {', '.join(others)}, not for {wanted}"
            fix = "name the port in the Service as in its EndpointSlices, with the same protocol"
        else:
            why = f"{self._lost}; the input has no EndpointSlice with an address for it"
            fix = "check the Service's selector, and that the input holds EndpointSlices (or Endpoints)"
        self._add("LB4003", self._nobody_ready, why, fix)

    def _node_endpoints(self, port: ServicePort) -> tuple[tuple[Endpoint, ...], str]:
        if not port.node_port and self._service.spec.allocate_load_balancer_node_ports is False:
            return self._pod_endpoints(port)
        if not port.node_port:
            what = f"port {port.port} of Service {self._name} has no nodePort"
            self._add(
                "LB4006",
                what,
                f"{self._lost}: its targets are node ports",
                "make the Service's type NodePort or LoadBalancer, or set the annotation lb/targets: endpoints",
            )
            return (), what
        local = None
        if self._service.spec.external_traffic_policy == "Local" and not self._only_kube_proxy_knows:
            local = find_backings(self._view, self._stored, port, self._problems)
            self._check_readiness(local, port)
            if not usable(local):
                return (), self._nobody_ready
        families = families_of(self._service)
        endpoints = node_endpoints(self._nodes.targets, port.node_port, families, local)
        what = f"no node can serve as target for Service {self._name}"
        if not endpoints:
            family = f" of family {families[0]}" if len(families) == 1 else ""
            self._add(
                "LB4007",
                what,
                self._lost,
                f"the input needs Nodes with an {self._options.node_address}{family} that are neither excluded nor "
                "unselected"
                + (", and have endpoints of the Service (externalTrafficPolicy: Local)" if local is not None else ""),
            )
        return endpoints, what

    @property
    def _only_kube_proxy_knows(self) -> bool:
        """Whether the nodes' own word is all there is: an input without EndpointSlices says nothing of the Service's
        endpoints, and all nodes are asked, as by a cloud's load balancer."""
        asked = self._asks_kube_proxy and self._health_check.port == self._service.spec.health_check_node_port
        return asked and self._health_check.type != "off" and not knows_endpoints(self._view, self._service)

    def _external_endpoints(self, use: PortUse, port: ServicePort | None) -> tuple[tuple[Endpoint, ...], str, str]:
        """(endpoints, why there are none, the name to resolve)."""
        number = self._external_port(use.port, port)
        name = self._service.spec.external_name
        if number is None:
            return (), f"Service {self._name} has no {use.transport.upper()} port {use.port}", ""
        mistake = _external_name_mistake(name)
        if mistake:
            what = f"externalName {name!r} of Service {self._name} {mistake}"
            fix = "write a DNS name or an address"
            self._add("LB4004", what, self._lost, fix, "spec.externalName")
            return (), what, ""
        if _parse_address(name) is not None:
            return (Endpoint(name, number, target=f"external/{name}", origin=self._stored.origin),), "", ""
        self._resolve = name
        endpoints, why = resolved_endpoints(self._view, name, number, self._stored.origin)
        if why.startswith("name "):
            self._add("LB4005", why, self._lost, "check the name and the resolver", "spec.externalName")
        return endpoints, why, name

    def _external_port(self, wanted: int | str, port: ServicePort | None) -> int | None:
        if port is not None:
            return port.target_port if isinstance(port.target_port, int) else port.port
        return wanted if isinstance(wanted, int) and not self._table.ports else None

    def _add(self, code: str, what: str, why: str, fix: str, field: str = "") -> None:
        self._problems.add(code, self._stored.origin, what, why=why, fix=fix, field=field)


def resolved_endpoints(view: View, name: str, port: int, origin: Origin) -> tuple[tuple[Endpoint, ...], str]:
    """The endpoints of an external name, and why there are none (`name …` when resolving it failed)."""
    stored = view.get("Resolution", "", name)
    if stored is None:
        return (), f"external name {name} is not resolved yet"
    resolution = cast(Resolution, stored.object)
    endpoints = tuple(
        Endpoint(address, port, target=f"external/{name}", origin=origin)
        for address in dict.fromkeys(resolution.addresses)
        if is_ip_address(address)
    )
    why = f"name {name} cannot be resolved" + (f": {resolution.error}" if resolution.error else "")
    return endpoints, "" if endpoints else why


def _external_name_mistake(name: str) -> str:
    """What is wrong with an external name: loopback would reach lb's own host (ingress-nginx refuses it as well)."""
    address = _parse_address(name)
    bare = name.removesuffix(".").lower()
    if address is not None:
        if not is_ip_address(name):
            return "is an address with a zone"
        return "is a loopback address" if address.is_loopback or address.is_unspecified else ""
    if bare == "localhost" or bare.endswith(".localhost"):
        return "is a loopback name"
    if len(bare) > 253 or _DNS_1123.fullmatch(bare) is None:
        return "is neither a DNS name nor an address"
    return ""


def _parse_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
