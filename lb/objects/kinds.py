"""Which kinds lb reads, by apiVersion and kind, and how each is decoded.

The one list of them. Kinds that are not here are counted by their name, never decoded.
"""

from __future__ import annotations

from typing import NamedTuple

from lb.objects.core import ConfigMap, Endpoints, Namespace, Node, Secret, Service
from lb.objects.discovery import EndpointSlice
from lb.objects.meta import Object
from lb.objects.networking import Ingress, IngressClass

NATIVE_API_VERSION = "lb/v1"
NATIVE_KIND = "Config"


class Kind(NamedTuple):
    type: type[Object]
    namespaced: bool
    keeps: frozenset[str]
    """What lb uses of the metadata's texts. The others are dropped: they cost memory, and a change of them (a leader
    election's heartbeat) would count as a change of the object."""


_BOTH = frozenset(("labels", "annotations"))
_LABELS = frozenset(("labels",))
_ANNOTATIONS = frozenset(("annotations",))
_NEITHER: frozenset[str] = frozenset()

KINDS: dict[tuple[str, str], Kind] = {
    ("v1", "ConfigMap"): Kind(ConfigMap, True, _NEITHER),
    ("v1", "Endpoints"): Kind(Endpoints, True, _NEITHER),
    ("v1", "Namespace"): Kind(Namespace, False, _BOTH),
    ("v1", "Node"): Kind(Node, False, _LABELS),
    ("v1", "Secret"): Kind(Secret, True, _NEITHER),
    ("v1", "Service"): Kind(Service, True, _ANNOTATIONS),
    ("discovery.k8s.io/v1", "EndpointSlice"): Kind(EndpointSlice, True, _LABELS),
    ("networking.k8s.io/v1", "Ingress"): Kind(Ingress, True, _ANNOTATIONS),
    ("networking.k8s.io/v1", "IngressClass"): Kind(IngressClass, False, _ANNOTATIONS),
}

SUPERSEDED: dict[tuple[str, str], str] = {
    ("extensions/v1beta1", "Ingress"): "networking.k8s.io/v1",
    ("networking.k8s.io/v1beta1", "Ingress"): "networking.k8s.io/v1",
    ("networking.k8s.io/v1beta1", "IngressClass"): "networking.k8s.io/v1",
    ("discovery.k8s.io/v1beta1", "EndpointSlice"): "discovery.k8s.io/v1",
}
"""Forms that Kubernetes served once (removed in 1.22 and 1.25), and the apiVersion that replaced each."""

KNOWN_NAMES = frozenset(kind for _, kind in KINDS)
"""Other API groups use the same names (`Service` of serving.knative.dev): such kinds are counted with their group."""


def name_unknown(api_version: str, kind: str) -> str:
    """What an unknown kind is counted as: its name, with the apiVersion where the name alone would mislead."""
    return f"{kind} ({api_version})" if kind in KNOWN_NAMES else kind
