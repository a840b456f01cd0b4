"""Nodes as targets: which nodes take requests on their node ports, and under which address.

Source: kubernetes/cloud-provider `controllers/service/controller.go`, which chooses the nodes of cloud load balancers.
One difference: that controller no longer looks at the Ready condition, because the cloud's own health checks do. Here a
node that is not Ready is a draining endpoint: it gets requests only while no Ready node can serve, so a cluster whose
control plane lost sight of all its nodes keeps being served.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple, cast

import msgspec

from lb.model.address import is_ip_address
from lb.model.health import HealthCheck
from lb.model.upstream import Endpoint
from lb.objects.core import Node
from lb.objects.view import Stored, View
from lb.problems import Origin, Problem
from lb.translate.endpoints import Backing, bad_address
from lb.translate.guard import guarded, stays_or_nothing
from lb.translate.options import Options

EXCLUSION_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
DELETION_TAINT = "ToBeDeletedByClusterAutoscaler"

_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))
"""What Go's strconv.ParseBool reads as false."""


class NodeTarget(NamedTuple):
    """A node that can take requests."""

    name: str
    addresses: dict[str, str]
    """Family -> address."""
    ready: bool
    origin: Origin


class NodeTargets(NamedTuple):
    """The nodes that can take requests, by name, and those that would but have no usable address."""

    targets: tuple[NodeTarget, ...]
    problems: tuple[Problem, ...]


def find_node_targets(view: View, options: Options) -> NodeTargets:
    """The nodes that may be targets."""
    targets: list[NodeTarget] = []
    problems: list[Problem] = []
    nodes = view.all("Node")
    for key in sorted(nodes):
        found = guarded(partial(_find, nodes[key], options), _nobody, nodes[key].origin, stays_or_nothing(False))
        targets.extend(found.targets)
        problems.extend(found.problems)
    return NodeTargets(tuple(targets), tuple(problems))


def _find(stored: Stored, options: Options) -> NodeTargets:
    """One node, if it may be a target."""
    node = cast(Node, stored.object)
    if not _may_be_target(node, options):
        return NodeTargets((), ())
    problems: list[Problem] = []
    addresses = _addresses(stored, options, problems)
    target = NodeTarget(node.metadata.name, addresses, _is_ready(node), stored.origin)
    return NodeTargets((target,) if addresses else (), tuple(problems))


def _nobody(fault: Problem) -> NodeTargets:
    return NodeTargets((), (fault,))


def _addresses(stored: Stored, options: Options, problems: list[Problem]) -> dict[str, str]:
    """The first usable address of each family that is of the wanted type."""
    addresses: dict[str, str] = {}
    for index, one in enumerate(cast(Node, stored.object).status.addresses):
        if one.type != options.node_address or not one.address:
            continue
        if is_ip_address(one.address):
            addresses.setdefault("IPv6" if ":" in one.address else "IPv4", one.address)
        else:
            problems.append(bad_address(stored, one.address, f"status.addresses[{index}].address"))
    return addresses


def node_endpoints(
    targets: Iterable[NodeTarget], node_port: int, families: Sequence[str], local: Iterable[Backing] | None
) -> tuple[Endpoint, ...]:
    """One endpoint for each node that has an address of one of the Service's families, the first of them if it can.

    kube-proxy takes connections to a node port in the families of its Service only, and hands them to endpoints of the
    same one. `local` are the Service's own endpoints when its externalTrafficPolicy is Local: nodes without any of them
    drop the traffic, so they are left out, and nodes where all of them are terminating are draining.
    """
    backings = list(local or ())
    ready = {backing.node for backing in backings if backing.readiness == "ready"}
    draining = {backing.node for backing in backings if backing.readiness == "draining"}
    endpoints = []
    for target in targets:
        address = next((target.addresses[family] for family in families if family in target.addresses), "")
        if address and (local is None or target.name in ready or target.name in draining):
            drains = not target.ready or (local is not None and target.name not in ready)
            endpoints.append(
                Endpoint(address, node_port, draining=drains, target=f"node/{target.name}", origin=target.origin)
            )
    return tuple(endpoints)


def ask_kube_proxy(port: int, default: HealthCheck) -> HealthCheck:
    """The check of a Service's healthCheckNodePort, with the times of the operator's default.

    kube-proxy answers 200 there while the node has ready endpoints of the Service, and else 503 (kubernetes
    `pkg/proxy/healthcheck/service_health.go`), over plain HTTP whatever the Service speaks. It answers on any path;
    /healthz is what cloud providers ask for (cloud-provider `service/helpers`, GetServiceHealthCheckPathPort).
    """
    return msgspec.structs.replace(
        default, type="http", port=port, path="/healthz", method="GET", host="", headers=(), statuses=(200,), body="",
        tls="off",
    )  # fmt: skip


def _may_be_target(node: Node, options: Options) -> bool:
    labels = node.metadata.labels or {}
    if node.metadata.deletion_timestamp or labels.get(EXCLUSION_LABEL, "false") not in _FALSE:
        return False
    if any(taint.key == DELETION_TAINT for taint in node.spec.taints or ()):
        return False
    return all(labels.get(name) == value for name, value in options.node_selector.items())


def _is_ready(node: Node) -> bool:
    """A node that says nothing about it (written by hand) counts as ready."""
    return all(condition.status == "True" for condition in node.status.conditions if condition.type == "Ready")
