"""Random objects of a small cluster, whose names often meet: for properties of translation."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lb.objects.core import (
    ConfigMap,
    EndpointAddress,
    EndpointPort,
    Endpoints,
    EndpointSubset,
    Node,
    NodeAddress,
    NodeCondition,
    NodeStatus,
    ObjectReference,
    Secret,
    Service,
    ServicePort,
    ServiceSpec,
)
from lb.objects.discovery import SERVICE_NAME_LABEL, EndpointConditions, EndpointSlice, SliceEndpoint, SlicePort
from lb.objects.meta import Key, Object, ObjectMeta
from lb.objects.networking import (
    HTTPIngressPath,
    HTTPIngressRuleValue,
    Ingress,
    IngressBackend,
    IngressClass,
    IngressClassSpec,
    IngressRule,
    IngressServiceBackend,
    IngressSpec,
    IngressTLS,
    ServiceBackendPort,
    TypedLocalObjectReference,
)
from lb.objects.view import NativeConfig, Resolution, Stored
from lb.problems import Origin
from tests.harness.certificates import Authority

NAMESPACES = st.sampled_from(["a", "b"])
SERVICES = st.sampled_from(["one", "two", "three"])
HOSTS = st.sampled_from(["", "x.example.com", "y.example.com", "*.example.com", "Bad_Host"])
PATHS = st.sampled_from(["/", "/foo", "/foo/", "/foo/bar", "/f", "/a//b", "bad", ""])
PATH_TYPES = st.sampled_from(["Exact", "Prefix", "ImplementationSpecific", "Odd"])
PORTS = st.sampled_from(
    [
        ServiceBackendPort(number=80),
        ServiceBackendPort(name="http"),
        ServiceBackendPort(number=81),
        ServiceBackendPort(number=8080),
        ServiceBackendPort(),
    ]
)
TIMES = st.sampled_from([None, "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"])


def stored(found: Object) -> Stored:
    """An object that comes from no file."""
    metadata = found.metadata
    return Stored(found, Origin(type(found).__name__, metadata.namespace, metadata.name))


def _annotations(**choices: list[str]) -> SearchStrategy[dict[str, str] | None]:
    named = {name.replace("__", "/"): st.sampled_from(values) for name, values in choices.items()}
    return st.none() | st.fixed_dictionaries({}, optional=named)


def _metas(names: SearchStrategy[str], **choices: list[str]) -> SearchStrategy[ObjectMeta]:
    return st.builds(
        ObjectMeta,
        name=names,
        namespace=NAMESPACES,
        annotations=_annotations(**choices),
        creation_timestamp=TIMES,
    )


BACKENDS: SearchStrategy[IngressBackend] = st.one_of(
    st.builds(lambda name, port: IngressBackend(IngressServiceBackend(name, port)), SERVICES, PORTS),
    st.builds(lambda name, port: IngressBackend(IngressServiceBackend(name, port)), SERVICES, PORTS),
    st.just(IngressBackend(resource=TypedLocalObjectReference("Bucket", "files"))),
    st.just(IngressBackend()),
)

RULES = st.builds(
    IngressRule,
    host=HOSTS,
    http=st.none()
    | st.builds(
        HTTPIngressRuleValue,
        st.lists(st.builds(HTTPIngressPath, BACKENDS, PATHS, PATH_TYPES), max_size=3).map(tuple),
    ),
)

INGRESSES = st.builds(
    Ingress,
    _metas(
        st.sampled_from(["red", "green", "blue"]),
        lb__balance=["round-robin", "least-connections", "best"],
        **{
            "lb__response-timeout": ["5s", "soon"],
            "kubernetes.io__ingress.class": ["lb", "other"],
            "lb__client-certificate": ["required", "optional", "off", "maybe"],
            "lb__client-ca": ["material", "configmap/material", "gone"],
            "nginx.ingress.kubernetes.io__ssl-passthrough": ["true", "false", "maybe"],
        },
    ),
    st.builds(
        IngressSpec,
        ingress_class_name=st.sampled_from([None, None, None, "lb", "other", "gone"]),
        default_backend=st.none() | BACKENDS,
        rules=st.lists(RULES, max_size=3).map(tuple),
        tls=st.sampled_from([(), (IngressTLS(),), (IngressTLS(secret_name="material"),)]),
    ),
)

CLASSES = st.builds(
    lambda name, controller, default: IngressClass(
        ObjectMeta(name, annotations={"ingressclass.kubernetes.io/is-default-class": default}),
        IngressClassSpec(controller),
    ),
    st.sampled_from(["lb", "other"]),
    st.sampled_from(["lb/ingress", "example.com/other"]),
    st.sampled_from(["true", "false"]),
)

SERVICE_PORTS = st.sampled_from(
    [
        (),
        (ServicePort(80),),
        (ServicePort(80, "http", target_port=8080, node_port=30080),),
        (ServicePort(80, "http", target_port="web"), ServicePort(81, "other", node_port=30081)),
        (ServicePort(80, "http", "UDP"),),
        (ServicePort(80, "http", node_port=30080), ServicePort(80, "http-udp", "UDP", node_port=30082)),
    ]
)

SERVICE_OBJECTS = st.builds(
    Service,
    _metas(
        SERVICES,
        lb__balance=["round-robin", "least-connections"],
        lb__targets=["endpoints", "nodeports", "moon"],
        **{
            "lb__connect-timeout": ["1s"],
            "lb__backend-tls": ["true", "false", "maybe"],
            "lb__backend-ca": ["material", "configmap/material", "gone"],
            "lb__backend-certificate": ["material", "gone"],
            "lb__backend-verify": ["false"],
            "lb__load-balancer": ["true", "false"],
            "lb__addresses": ["192.0.2.1", "192.0.2.1,192.0.2.2"],
        },
    ),
    st.builds(
        ServiceSpec,
        type=st.sampled_from(["ClusterIP", "NodePort", "ExternalName", "LoadBalancer", "LoadBalancer"]),
        load_balancer_class=st.sampled_from([None, "lb/lb", "example.com/other"]),
        load_balancer_source_ranges=st.sampled_from([None, ("10.0.0.0/8",), ("lan",)]),
        allocate_load_balancer_node_ports=st.sampled_from([None, False]),
        ports=SERVICE_PORTS,
        cluster_ip=st.sampled_from(["", "None", "10.96.0.1", "fd00::1"]),
        external_name=st.sampled_from(["", "api.example.net", "localhost", "192.0.2.1"]),
        external_traffic_policy=st.sampled_from(["Cluster", "Local"]),
        health_check_node_port=st.sampled_from([0, 31000]),
        ip_families=st.sampled_from([None, ("IPv4",), ("IPv6", "IPv4")]),
        publish_not_ready_addresses=st.booleans(),
        session_affinity=st.sampled_from(["None", "ClientIP"]),
    ),
)

CONDITIONS = st.builds(
    EndpointConditions,
    ready=st.sampled_from([None, True, False]),
    serving=st.sampled_from([None, True, False]),
    terminating=st.sampled_from([None, True, False]),
)
NODES = st.sampled_from(["node-1", "node-2"])


@st.composite
def _slices(draw: Any) -> EndpointSlice:
    family = draw(st.sampled_from(["IPv4", "IPv4", "IPv6", "FQDN"]))
    addresses = st.sampled_from(["fd00::1", "fd00::2"] if family == "IPv6" else ["10.0.0.1", "10.0.0.2", "web-3"])
    endpoints = st.builds(
        SliceEndpoint,
        addresses.map(lambda one: (one,)),
        CONDITIONS,
        node_name=st.none() | NODES,
        target_ref=st.sampled_from([None, ObjectReference("Pod", "web-1")]),
    )
    labels = draw(st.none() | SERVICES.map(lambda one: {SERVICE_NAME_LABEL: one}))
    return EndpointSlice(
        ObjectMeta(draw(st.sampled_from(["s1", "s2", "s3"])), draw(NAMESPACES), labels=labels),
        family,
        draw(st.lists(endpoints, max_size=3).map(tuple)),
        draw(
            st.sampled_from(
                [
                    (),
                    (SlicePort("http", 8080),),
                    (SlicePort("", 8081),),
                    (SlicePort("other", None),),
                    (SlicePort("", 8082, "UDP"),),
                ]
            )
        ),
    )


ENDPOINTS = st.builds(
    lambda name, namespace, ready, port: Endpoints(
        ObjectMeta(name, namespace),
        (EndpointSubset((EndpointAddress("10.1.0.1"),) if ready else (), (EndpointAddress("10.1.0.2"),), (port,)),),
    ),
    SERVICES,
    NAMESPACES,
    st.booleans(),
    st.sampled_from([EndpointPort(8080, "http"), EndpointPort(8081)]),
)

NODE_OBJECTS = st.builds(
    lambda name, labels, address, ready: Node(
        ObjectMeta(name, labels=labels),
        status=NodeStatus(
            (NodeAddress("InternalIP", address), NodeAddress("InternalIP", "fd00:1::1")),
            (NodeCondition("Ready", ready),),
        ),
    ),
    NODES,
    st.sampled_from([None, {"node.kubernetes.io/exclude-from-external-load-balancers": ""}]),
    st.sampled_from(["192.0.2.11", "192.0.2.12", "node-3"]),
    st.sampled_from(["True", "False"]),
)

TCP_SERVICES = st.builds(
    lambda namespace, time, data: ConfigMap(ObjectMeta("tcp", namespace, creation_timestamp=time), data),
    NAMESPACES,
    TIMES,
    st.dictionaries(
        st.sampled_from(["80", "81", "9000", "none"]),
        st.sampled_from(["a/one:80", "a/one:http", "b/two:81", "a/one:80:PROXY", "a/one:80::PROXY", "nonsense"]),
        max_size=3,
    ),
)

RESOLUTIONS = st.builds(
    Resolution,
    st.just(ObjectMeta("api.example.net")),
    st.sampled_from([(), ("198.51.100.1",), ("198.51.100.1", "198.51.100.2")]),
    st.sampled_from(["", "no such name"]),
)

_ROUTES = st.fixed_dictionaries(
    {"path": st.sampled_from(["/", "/foo"]), "forward": st.sampled_from(["own", "a/one:80", "a/two:81", "gone"])}
)

NATIVES = st.builds(
    lambda name, listeners, hosts, upstreams, typo: NativeConfig(
        ObjectMeta(name),
        {
            "apiVersion": "lb/v1",
            "kind": "Config",
            "listeners": listeners,
            "hosts": hosts,
            f"upstreams{typo}": upstreams,
        },
    ),
    st.sampled_from(["first.yaml", "second.yaml"]),
    st.sampled_from(
        [
            {},
            {"admin": {"port": 9000}},
            {"http": {"port": 8080, "host_set": "ingress"}},
            {"http": {"port": 8080, "hostset": "ingress"}},
            {"admin": {"port": "9000"}},
            {"db": {"port": 81, "protocol": "tcp", "stream": {"forward": {"a/one:80": 1, "gone": 1}}}},
        ]
    ),
    st.fixed_dictionaries(
        {},
        optional={
            host_set: st.dictionaries(
                st.sampled_from(["x.example.com", "z.example.com"]), st.lists(_ROUTES, max_size=2), max_size=2
            )
            for host_set in ("default", "ingress")
        },
    ),
    st.sampled_from(
        [
            {},
            {"own": ["10.9.0.1:80"]},
            {"own": ["10.9.0.1:80", "10.9.0.3"]},
            {"a/one:80": ["10.9.0.2:80"]},
            {"own": {"resolve": "api.example.net"}},
        ]
    ),
    st.sampled_from(["", "", "", "x"]),
)

_AUTHORITIES = [Authority(), Authority()]
_PAIRS = [authority.issue("x.example.com", "y.example.com") for authority in _AUTHORITIES]

# None of them is bad: what turns bad keeps what it had before, which a translation from nothing cannot know.
SECRETS = st.builds(
    lambda namespace, authority, pair: Secret(
        ObjectMeta("material", namespace),
        string_data={"ca.crt": authority.pem, "tls.crt": pair.chain, "tls.key": pair.key},
    ),
    NAMESPACES,
    st.sampled_from(_AUTHORITIES),
    st.sampled_from(_PAIRS),
)
CONFIG_MAPS = st.builds(
    lambda namespace, authority: ConfigMap(ObjectMeta("material", namespace), {"ca.crt": authority.pem}),
    NAMESPACES,
    st.sampled_from(_AUTHORITIES),
)

OBJECTS: SearchStrategy[Object] = st.one_of(
    INGRESSES, INGRESSES, INGRESSES, CLASSES, SERVICE_OBJECTS, SERVICE_OBJECTS, _slices(), _slices(),
    ENDPOINTS, NODE_OBJECTS, RESOLUTIONS, NATIVES, SECRETS, CONFIG_MAPS, TCP_SERVICES,
)  # fmt: skip


def key_of(found: Object) -> Key:
    """The key under which a store keeps the object."""
    return Key(type(found).__name__, found.metadata.namespace, found.metadata.name)
