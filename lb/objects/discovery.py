"""discovery.k8s.io/v1: EndpointSlice. Source: kubernetes/api discovery/v1/types.go."""

from __future__ import annotations

import msgspec

from lb.objects.core import ObjectReference, PortOrNone
from lb.objects.meta import Object

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
"""Ties a slice to its Service."""


class EndpointConditions(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Missing means ready, serving and not terminating."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    addresses: tuple[str, ...]
    """Only the first one is meaningful."""
    conditions: EndpointConditions = EndpointConditions()
    node_name: str | None = None
    zone: str | None = None
    target_ref: ObjectReference | None = None


class SlicePort(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    name: str | None = ""
    port: PortOrNone | None = None
    protocol: str | None = "TCP"
    app_protocol: str | None = None


class EndpointSlice(Object, frozen=True, rename="camel", omit_defaults=True, gc=False):
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[SlicePort, ...] = ()
