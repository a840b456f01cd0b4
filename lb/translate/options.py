"""What the operator decides about translation, as opposed to what the objects say."""

from __future__ import annotations

from typing import Literal

import msgspec

from lb.model.defaults import Defaults
from lb.model.health import HealthCheck
from lb.model.tls import TlsPolicy

Targets = Literal["endpoints", "nodeports"]
NodeAddressType = Literal["InternalIP", "ExternalIP"]


class Options(Defaults, frozen=True):
    """Settings of translation, and the defaults that native parts have as well. Annotations on objects override those
    that name a default.
    """

    classes: tuple[str, ...] = ()
    """Names of Ingress classes to serve besides those whose controller is lb's, as field or as annotation."""
    take_over: tuple[str, ...] = ()
    """Controllers whose Ingress classes are served as if they were lb's, such as `k8s.io/ingress-nginx`, and
    `loadBalancerClass`es, such as `service.k8s.aws/nlb`."""
    targets: Targets = "endpoints"
    """Send requests to pod addresses, or to node addresses and node ports. `lb/targets` on a Service overrides it."""
    node_selector: dict[str, str] = msgspec.field(default_factory=dict)
    """Labels that a node must have to be a target."""
    node_address: NodeAddressType = "InternalIP"
    """Which address of a node is the target."""
    port: int = 80
    """Port of the listener that serves Ingresses."""
    https_port: int = 443
    """Port where those with TLS are served."""
    tls_policy: TlsPolicy = "intermediate"
    """Versions and ciphers there."""
    hsts: str = ""
    """Strict-Transport-Security there."""
    load_balancers: bool = False
    """Serve every Service of type LoadBalancer that has no class. `lb/load-balancer` on a Service overrides it."""
    tcp_services: str = ""
    """NAMESPACE/NAME of a ConfigMap that maps TCP ports to Services, as ingress-nginx reads it."""
    udp_services: str = ""
    """The same for UDP ports."""
    ssl_passthrough: bool = False
    """Whether ingress-nginx's annotation of this name counts."""
    health_check: HealthCheck = HealthCheck()
    """Of Services. Native upstreams say themselves how they are checked."""
    settings_file: str = ""
    """The native file whose settings count; empty: none."""
