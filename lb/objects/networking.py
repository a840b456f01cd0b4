"""networking.k8s.io/v1: Ingress and IngressClass. Source: kubernetes/api networking/v1/types.go."""

from __future__ import annotations

import msgspec

from lb.objects.core import PortOrNone
from lb.objects.meta import Object


class ServiceBackendPort(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A Service port by name or by number, never both."""

    name: str = ""
    number: PortOrNone = 0


class IngressServiceBackend(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    name: str
    port: ServiceBackendPort = ServiceBackendPort()


class TypedLocalObjectReference(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    kind: str
    name: str
    api_group: str | None = None


class IngressBackend(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Either a service or a resource."""

    service: IngressServiceBackend | None = None
    resource: TypedLocalObjectReference | None = None


class HTTPIngressPath(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    backend: IngressBackend
    path: str = ""
    path_type: str = ""
    """`Exact`, `Prefix` or `ImplementationSpecific`; anything else is a Problem of that path only."""


class HTTPIngressRuleValue(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    paths: tuple[HTTPIngressPath, ...] = ()


class IngressRule(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    host: str = ""
    http: HTTPIngressRuleValue | None = None


class IngressTLS(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    hosts: tuple[str, ...] = ()
    secret_name: str = ""


class IngressSpec(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    ingress_class_name: str | None = None
    default_backend: IngressBackend | None = None
    rules: tuple[IngressRule, ...] = ()
    tls: tuple[IngressTLS, ...] = ()


class Ingress(Object, frozen=True, omit_defaults=True, gc=False):
    spec: IngressSpec = IngressSpec()


class IngressClassSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    controller: str = ""


class IngressClass(Object, frozen=True, omit_defaults=True, gc=False):
    spec: IngressClassSpec = IngressClassSpec()
