"""v1: Service, Endpoints, Secret, ConfigMap, Node, Namespace. Source: kubernetes/api core/v1/types.go."""

from __future__ import annotations

from typing import Annotated

import msgspec

from lb.objects.meta import Object

Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
PortOrNone = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
"""0 is how Go says that there is none."""


class ServicePort(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    port: Port
    name: str = ""
    protocol: str = "TCP"
    target_port: PortOrNone | str | None = None
    node_port: PortOrNone = 0
    app_protocol: str | None = None


class ClientIPConfig(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    timeout_seconds: int | None = None


class SessionAffinityConfig(
    msgspec.Struct, frozen=True, rename={"client_ip": "clientIP"}, omit_defaults=True, gc=False
):
    client_ip: ClientIPConfig | None = None


class ServiceSpec(
    msgspec.Struct,
    frozen=True,
    omit_defaults=True,
    gc=False,
    rename={
        "cluster_ip": "clusterIP",
        "ip_families": "ipFamilies",
        "external_ips": "externalIPs",
        "external_name": "externalName",
        "external_traffic_policy": "externalTrafficPolicy",
        "publish_not_ready_addresses": "publishNotReadyAddresses",
        "session_affinity": "sessionAffinity",
        "session_affinity_config": "sessionAffinityConfig",
        "health_check_node_port": "healthCheckNodePort",
        "load_balancer_class": "loadBalancerClass",
        "load_balancer_ip": "loadBalancerIP",
        "load_balancer_source_ranges": "loadBalancerSourceRanges",
        "allocate_load_balancer_node_ports": "allocateLoadBalancerNodePorts",
    },
):
    type: str = "ClusterIP"
    ports: tuple[ServicePort, ...] = ()
    selector: dict[str, str] | None = None
    cluster_ip: str = ""
    ip_families: tuple[str, ...] | None = None
    """The primary one first."""
    external_ips: tuple[str, ...] | None = None
    external_name: str = ""
    external_traffic_policy: str = "Cluster"
    publish_not_ready_addresses: bool = False
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    health_check_node_port: PortOrNone = 0
    load_balancer_class: str | None = None
    load_balancer_ip: str = ""
    load_balancer_source_ranges: tuple[str, ...] | None = None
    allocate_load_balancer_node_ports: bool | None = None


class LoadBalancerIngress(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    ip: str | None = None


class LoadBalancerStatus(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    ingress: tuple[LoadBalancerIngress, ...] | None = None


class ServiceStatus(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    load_balancer: LoadBalancerStatus | None = None


class Service(Object, frozen=True, omit_defaults=True, gc=False):
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus | None = None
    """What the load balancer before lb has said: never where lb listens."""


class ObjectReference(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    kind: str = ""
    name: str = ""


class EndpointAddress(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    ip: str
    node_name: str | None = None
    target_ref: ObjectReference | None = None


class EndpointPort(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    port: Port
    name: str = ""
    protocol: str = "TCP"


class EndpointSubset(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    addresses: tuple[EndpointAddress, ...] = ()
    not_ready_addresses: tuple[EndpointAddress, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class Endpoints(Object, frozen=True, omit_defaults=True, gc=False):
    """The legacy form; ignored for a Service that has EndpointSlices."""

    subsets: tuple[EndpointSubset, ...] = ()


class Secret(Object, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """`data` values stay base64 until used; they never appear in logs, dumps or `repr`."""

    type: str = "Opaque"
    data: dict[str, str] | None = None
    string_data: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"Secret({self.metadata.namespace}/{self.metadata.name}, {len(self.data or ())} keys)"


class ConfigMap(Object, frozen=True, omit_defaults=True, gc=False):
    data: dict[str, str] | None = None


class NodeAddress(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    type: str
    address: str


class NodeCondition(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    type: str
    status: str


class NodeStatus(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    addresses: tuple[NodeAddress, ...] = ()
    conditions: tuple[NodeCondition, ...] = ()


class Taint(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    key: str
    effect: str = ""


class NodeSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False


class Node(Object, frozen=True, omit_defaults=True, gc=False):
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class Namespace(Object, frozen=True, omit_defaults=True, gc=False):
    pass
