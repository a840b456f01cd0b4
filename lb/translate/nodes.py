"""Nodes as targets: which nodes take requests on their node ports, and under which address.

Source: kubernetes/cloud-provider `controllers/service/controller.go`, which chooses the nodes of cloud load balancers.
One difference: that controller no longer looks at the Ready condition, because the cloud's own health checks do. Here a
node that is not Ready is a draining endpoint: it gets requests only while no Ready node can serve, so a cluster whose
control plane lost sight of all its nodes keeps being served.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

from lb.model.address import is_ip_address
from lb.model.upstream import Endpoint
from lb.objects.core import Node
from lb.objects.view import Stored, View
from lb.problems import Origin, Problem
from lb.translate.endpoints import Backing, bad_address
from lb.translate.options import Options

EXCLUSION_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
DELETION_TAINT = "ToBeDeletedByClusterAutoscaler"

_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))
"""What Go's strconv.ParseBool reads as false."""


class NodeTarget(NamedTuple):
    """A node that can take requests."""

    name: str
    address: str
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
        node = cast(Node, nodes[key].object)
        if not _may_be_target(node, options):
            continue
        address = _address(nodes[key], options, problems)
        if address:
            targets.append(NodeTarget(node.metadata.name, address, _is_ready(node), nodes[key].origin))
    return NodeTargets(tuple(targets), tuple(problems))


def _address(stored: Stored, options: Options, problems: list[Problem]) -> str:
    """The first usable address of the wanted type; empty when there is none."""
    for index, one in enumerate(cast(Node, stored.object).status.addresses):
        if one.type == options.node_address and one.address:
            if is_ip_address(one.address):
                return one.address
            problems.append(bad_address(stored, one.address, f"status.addresses[{index}].address"))
    return ""


def node_endpoints(
    targets: Sequence[NodeTarget], node_port: int, local: Iterable[Backing] | None
) -> tuple[Endpoint, ...]:
    """One endpoint for each node.

    `local` are the Service's own endpoints when its externalTrafficPolicy is Local: nodes without any of them drop the
    traffic, so they are left out, and nodes where all of them are terminating are draining.
    """
    if local is None:
        return tuple(_endpoint(target, node_port, draining=not target.ready) for target in targets)
    backings = list(local)
    ready = {backing.node for backing in backings if backing.readiness == "ready"}
    draining = {backing.node for backing in backings if backing.readiness == "draining"}
    return tuple(
        _endpoint(target, node_port, draining=not target.ready or target.name not in ready)
        for target in targets
        if target.name in ready or target.name in draining
    )


def _endpoint(target: NodeTarget, node_port: int, *, draining: bool) -> Endpoint:
    return Endpoint(target.address, node_port, draining=draining, target=f"node/{target.name}", origin=target.origin)


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
