"""Which fields the kinds that lb reads have, and fields that look like misspelt ones.

Owns the tables of legal names, as deep as lb reads, and the list of those fields without which an object would let in
more than it says. The structs hold only what lb uses, so a name that they lack says nothing: an export is full of
them. The API server refuses unknown fields (kubectl validates strictly) or drops them; files have nobody to do that.

Sources: kubernetes/api core/v1, discovery/v1 and networking/v1, types.go, up to 1.34, with the fields that earlier
versions had under the same apiVersion. Names that are near to no legal one are nobody's mistake: a later version may
have added them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple, cast

import msgspec

Shape = Mapping[str, "Shape | list[Shape] | None"]
"""The legal fields of a map; None stands for what nobody looks into, a list for a list of such maps."""

MOST_STRAYS = 5
"""Told of one object: who got one indentation wrong need not read of twenty fields."""

_MOST_UNKNOWN = 50
"""Looked at in one object: what is hostile must not cost more than its length."""

_LONGEST_NAME = 60
_SHORTEST_PART = 6
_NOTHING: Mapping[str, str] = MappingProxyType({})


def _leaves(names: str) -> dict[str, Shape | list[Shape] | None]:
    return dict.fromkeys(names.split())


def _object(names: str = "", **below: Shape | list[Shape] | None) -> dict[str, Shape | list[Shape] | None]:
    return _leaves("apiVersion kind " + names) | {"metadata": _METADATA} | below


_METADATA: Shape = _leaves(
    "name generateName namespace selfLink uid resourceVersion generation creationTimestamp deletionTimestamp "
    "deletionGracePeriodSeconds labels annotations ownerReferences finalizers managedFields clusterName initializers"
)
_SERVICE_PORT: Shape = _leaves("name protocol appProtocol port targetPort nodePort")
_SERVICE_SPEC: Shape = _leaves(
    "selector clusterIP clusterIPs type externalIPs sessionAffinity loadBalancerIP loadBalancerSourceRanges "
    "externalName externalTrafficPolicy internalTrafficPolicy healthCheckNodePort publishNotReadyAddresses ipFamily "
    "ipFamilies ipFamilyPolicy allocateLoadBalancerNodePorts loadBalancerClass trafficDistribution topologyKeys"
) | {"ports": [_SERVICE_PORT], "sessionAffinityConfig": {"clientIP": _leaves("timeoutSeconds")}}

_BACKEND: Shape = {
    "service": {"name": None, "port": _leaves("name number")},
    "resource": _leaves("apiGroup kind name"),
}
_INGRESS_SPEC: Shape = {
    "ingressClassName": None,
    "defaultBackend": _BACKEND,
    "tls": [_leaves("hosts secretName")],
    "rules": [{"host": None, "http": {"paths": [{"path": None, "pathType": None, "backend": _BACKEND}]}}],
}

_SLICE_ENDPOINT: Shape = _leaves("addresses hostname targetRef deprecatedTopology nodeName zone hints") | {
    "conditions": _leaves("ready serving terminating")
}
_ENDPOINT_PORT: Shape = _leaves("name port protocol appProtocol")
_ADDRESS: Shape = _leaves("ip hostname nodeName targetRef")

_NODE_SPEC: Shape = _leaves("podCIDR podCIDRs providerID unschedulable configSource externalID") | {
    "taints": [_leaves("key value effect timeAdded")]
}
_NODE_STATUS: Shape = _leaves(
    "capacity allocatable phase daemonEndpoints nodeInfo images volumesInUse volumesAttached config runtimeHandlers "
    "features declaredFeatures"
) | {
    "addresses": [_leaves("type address")],
    "conditions": [_leaves("type status lastHeartbeatTime lastTransitionTime reason message")],
}

SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "ConfigMap": _object("immutable data binaryData"),
        "Endpoints": _object(
            subsets=[{"addresses": [_ADDRESS], "notReadyAddresses": [_ADDRESS], "ports": [_ENDPOINT_PORT]}]
        ),
        "EndpointSlice": _object("addressType", endpoints=[_SLICE_ENDPOINT], ports=[_ENDPOINT_PORT]),
        "Ingress": _object("status", spec=_INGRESS_SPEC),
        "IngressClass": _object(spec=_leaves("controller parameters")),
        "Namespace": _object("spec status"),
        "Node": _object(spec=_NODE_SPEC, status=_NODE_STATUS),
        "Secret": _object("immutable data stringData type"),
        "Service": _object("status", spec=_SERVICE_SPEC),
    }
)
"""By kind: all that lb.objects.kinds lists."""

_ACCESS_LISTS = "annotations may say who is let in: without them it would be open to everybody"

NARROWING: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "Service": {
            "spec.loadBalancerSourceRanges": "the Service would be open to everybody",
            "spec.loadBalancerIP": "the Service would be open on all addresses of this host",
            "spec.loadBalancerClass": "the Service would be open here, and may be for another load balancer",
            "metadata.annotations": _ACCESS_LISTS,
        },
        "Ingress": {
            "spec.ingressClassName": "the Ingress would be served here, and may be for another controller",
            "spec.tls": "the Ingress would be served without TLS",
            "spec.rules[].host": "the Ingress would serve every host",
            "spec.rules[].http.paths[].path": "the Ingress would serve every path of the host",
            "metadata.annotations": _ACCESS_LISTS,
        },
    }
)
"""Fields that hold access back, and what happens without each: an object that has one of them misspelt is not served.
Of Services only those of type LoadBalancer are meant.

Not among them is what only fails closed (`type`, `rules`, `backend`, `pathType`), and what goes wrong within the
cluster (`externalTrafficPolicy`, `conditions`).
"""


_OLDER = MappingProxyType({"serviceName": "service.name", "servicePort": "service.port.number"})
"""Fields of extensions/v1beta1 that `service` replaced."""

_ELSEWHERE = MappingProxyType(
    {
        **dict.fromkeys(("hostname", "hostnames", "domain", "fqdn", "servername", "virtualhost"), "host"),
        **dict.fromkeys(("pathprefix", "prefix", "uri", "url"), "path"),
        **dict.fromkeys(("sourcerange", "allowedsourceranges"), "loadBalancerSourceRanges"),
        "class": "ingressClassName",
    }
)
"""What these fields are called in the Gateway API, Istio, Traefik, charts and everyday words, folded."""


class Stray(NamedTuple):
    """A field that the kind does not have, and the one that is probably meant."""

    path: tuple[str | int, ...]
    meant: str
    """A name, or the path from the top when it belongs elsewhere."""
    danger: str
    """What happens without the field that is meant, if that must not be."""


class Checker:
    """Tells, at the cost of one scan, that a JSON text has no field that its kind does not have."""

    __slots__ = ("_decode",)

    def __init__(self, kind: str) -> None:
        self._decode = msgspec.json.Decoder(_strict(SHAPES[kind], kind)).decode

    def has_unknown(self, data: bytes) -> bool:
        """Whether find_strays should look. It may also be so for a text whose types are wrong."""
        try:
            self._decode(data)
        except msgspec.ValidationError:
            return True
        return False


def _strict(shape: Shape, name: str) -> type[msgspec.Struct]:
    """A struct that takes these fields and no others; what is below leaves is stepped over, not decoded."""
    attributes = {key: f"{key}_" for key in shape}  # `from_` may be an attribute, `from` may not
    return msgspec.defstruct(
        name,
        [(attributes[key], _strict_type(below, f"{name}_{key}"), None) for key, below in shape.items()],
        rename={attribute: key for key, attribute in attributes.items()},
        forbid_unknown_fields=True,
        gc=False,
    )


def _strict_type(below: Shape | list[Shape] | None, name: str) -> object:
    if below is None:
        return msgspec.Raw
    if isinstance(below, list):
        return list[_strict(below[0], name)] | None  # type: ignore[misc]
    return _strict(below, name) | None


def find_strays(kind: str, content: Mapping[str, object]) -> list[Stray]:
    """Unknown fields of an object that are near to legal ones, those that are dangerous first."""
    found: list[Stray] = []
    for number, (path, shape, holder) in enumerate(_unknown(SHAPES[kind], content, ())):
        if number == _MOST_UNKNOWN:
            break
        stray = _judge(kind, path, shape, holder, content)
        if stray is not None:
            found.append(stray)
    found.sort(key=lambda one: not one.danger)
    return found[:MOST_STRAYS]


_Path = tuple[str | int, ...]


def _unknown(
    shape: Shape, holder: Mapping[str, object], path: _Path
) -> Iterator[tuple[_Path, Shape, Mapping[str, object]]]:
    """(path, what its map may have, its map) of every unknown field that says something."""
    for name, value in holder.items():
        if name not in shape:
            if value is not None:
                yield (*path, name), shape, holder
            continue
        below = shape[name]
        if isinstance(below, list):
            for index, item in enumerate(value if isinstance(value, list) else ()):
                if isinstance(item, dict):
                    yield from _unknown(below[0], item, (*path, name, index))
        elif below is not None and isinstance(value, dict):
            yield from _unknown(below, value, (*path, name))


def _judge(
    kind: str, path: _Path, shape: Shape, holder: Mapping[str, object], content: Mapping[str, object]
) -> Stray | None:
    name = cast(str, path[-1])
    narrowing = NARROWING.get(kind, _NOTHING) if _lets_in(kind, content) else _NOTHING
    here = "".join("[]" if isinstance(part, int) else f".{part}" for part in path[:-1])[1:]
    for field, danger in narrowing.items():
        is_beside = "[]" in field and field.rpartition(".")[0] == here  # its name alone says it all
        if not is_beside and _is_misplaced(path, field, content):
            return Stray(path, field, danger)
    meant = nearest(name, tuple(shape))
    if not meant or holder.get(meant) is not None:
        return None  # what is meant is said: this is something else
    return Stray(path, _OLDER.get(name, meant), narrowing.get(f"{here}.{meant}".lstrip("."), ""))


def _lets_in(kind: str, content: Mapping[str, object]) -> bool:
    """Whether lb may listen for the object. To other Services only routes lead, which have their own say."""
    spec = content.get("spec")
    return kind != "Service" or (isinstance(spec, dict) and spec.get("type") == "LoadBalancer")


def _is_misplaced(path: _Path, field: str, content: Mapping[str, object]) -> bool:
    """Whether this is a field of another map (a wrong indentation), which does not have it."""
    *way, last = field.split(".")
    if _folded(cast(str, path[-1])) != _folded(last):
        return False
    return any(not isinstance(one, dict) or one.get(last) is None for one in _rightful(way, path, content))


def _rightful(way: Sequence[str], path: _Path, holder: object) -> Iterator[object]:
    """Where the field belongs: of lists the item that it stands in, or else all of them."""
    if not way:
        yield holder
        return
    name = way[0].removesuffix("[]")
    below = holder.get(name) if isinstance(holder, dict) else None
    is_inside = path[:1] == (name,)
    if name == way[0]:
        yield from _rightful(way[1:], path[1:] if is_inside else (), below)
        return
    for index, item in enumerate(below if isinstance(below, list) else ()):
        if not is_inside or path[1] == index:
            yield from _rightful(way[1:], path[2:] if is_inside else (), item)


@lru_cache(4096)
def nearest(name: str, legal: tuple[str, ...]) -> str:
    """The legal field that a misspelt name is for, empty when it is like none."""
    if len(name) > _LONGEST_NAME:
        return ""
    folded = _folded(name)
    if (meant := _ELSEWHERE.get(folded)) in legal:
        return meant
    ranked = [(_distance_of(folded, _folded(one)), one) for one in legal]
    near = [(distance, one) for distance, one in ranked if distance is not None]
    return min(near)[1] if near else ""


def _folded(name: str) -> str:
    """Without what only style decides: `load_balancer-IP` is `loadbalancerip`."""
    return name.replace("_", "").replace("-", "").lower()


def _distance_of(name: str, legal: str) -> int | None:
    """How far a folded name is from a legal one; None when it is no misspelling of it."""
    length = min(len(name), len(legal))
    allowed = 2 if length > 4 else int(length > 2)
    if abs(len(name) - len(legal)) <= allowed and (distance := _edits(name, legal)) <= allowed:
        return distance
    is_part = legal.endswith(name) or legal.startswith(name) or name.startswith(legal)
    # `className`, `sourceRanges`, `serviceName`: said in part, or as an older API said it.
    return 3 if is_part and length >= _SHORTEST_PART and 2 * length >= max(len(name), len(legal)) else None


def _edits(one: str, other: str) -> int:
    """Letters to insert, remove, change or swap with their neighbours (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for line, letter in enumerate(one, 1):
        older, before = before, row
        row = [line]
        for column, wanted in enumerate(other, 1):
            cost = min(before[column] + 1, row[-1] + 1, before[column - 1] + (letter != wanted))
            if line > 1 and column > 1 and letter == other[column - 2] and one[line - 2] == wanted:
                cost = min(cost, older[column - 2] + 1)
            row.append(cost)
    return row[-1]
