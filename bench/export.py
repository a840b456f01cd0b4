"""A cluster's routing objects, made up: as the JSON that `kubectl get -o json` writes, and as the plain list of routes
from which the peers' configurations are made. The same numbers always give the same cluster.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from bench.certificate import Certificate

NAMESPACES_MOST = 100
PATHS = ("/", "/api", "/shop", "/static/v2")


@dataclass(frozen=True)
class Service:
    namespace: str
    name: str
    endpoints: tuple[str, ...]

    @property
    def upstream(self) -> str:
        """A name that is unique in the cluster and legal in every peer's configuration."""
        return f"{self.namespace}.{self.name}"


@dataclass(frozen=True)
class Route:
    """One Ingress with one rule."""

    name: str
    host: str
    path: str
    """An element-wise prefix."""
    service: Service

    def target(self, answer: str) -> str:
        """A path under this route, whose last segment tells the backend what to answer."""
        return f"{self.path.rstrip('/')}/{answer}"


@dataclass(frozen=True)
class Cluster:
    services: tuple[Service, ...]
    routes: tuple[Route, ...]
    port: int
    """Of every endpoint."""
    certificate: Certificate | None = None
    """All hosts are served by TLS with it; None: by plain HTTP."""
    grpc: bool = False
    """The endpoints speak HTTP/2 without TLS."""

    @cached_property
    def namespaces(self) -> dict[str, tuple[list[Route], list[Service]]]:
        found: dict[str, tuple[list[Route], list[Service]]] = {}
        for service in self.services:
            found.setdefault(service.namespace, ([], []))[1].append(service)
        for route in self.routes:
            found[route.service.namespace][0].append(route)
        return found

    def with_path(self, index: int, path: str) -> Cluster:
        """One Ingress changed."""
        route = replace(self.routes[index], path=path)
        return replace(self, routes=(*self.routes[:index], route, *self.routes[index + 1 :]))

    def with_endpoints(self, index: int, addresses: tuple[str, ...]) -> Cluster:
        """One EndpointSlice changed."""
        service = replace(self.services[index], endpoints=addresses)
        return replace(self, services=(*self.services[:index], service, *self.services[index + 1 :]))


def make_cluster(routes: int, services: int, endpoints: int, port: int) -> Cluster:
    """`endpoints` addresses for each service, each address used once."""
    names = tuple(
        Service(
            namespace=f"team-{number % NAMESPACES_MOST:02d}",
            name=f"web-{number:05d}",
            endpoints=tuple(_address(number * endpoints + offset) for offset in range(endpoints)),
        )
        for number in range(services)
    )
    return Cluster(names, tuple(_route(number, names[number % services]) for number in range(routes)), port)


def _address(number: int) -> str:
    number += 1 << 16  # from 127.1.0.0 on: every address of 127.0.0.0/8 is this machine
    return f"127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _route(number: int, service: Service) -> Route:
    host = f"app-{number:06d}.{service.namespace}.example.com"
    return Route(f"app-{number:06d}", host, PATHS[number // 7 % len(PATHS)], service)


def certificate_names(cluster: Cluster) -> list[str]:
    """What a certificate for all hosts of the cluster is for."""
    return [f"*.{namespace}.example.com" for namespace in cluster.namespaces]


def write_directory(cluster: Cluster, directory: Path) -> None:
    """One file a namespace, as a script around kubectl makes them, and one for what has no namespace."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cluster.json").write_text(_list([_CLASS]))
    for namespace in cluster.namespaces:
        (directory / f"{namespace}.json").write_text(namespace_text(cluster, namespace))


def namespace_text(cluster: Cluster, namespace: str) -> str:
    """What write_directory puts into the namespace's file."""
    return _list(_objects(cluster, namespace))


def write_single(cluster: Cluster, file: Path) -> None:
    """`kubectl get -A -o json`: everything in one file."""

    def everything() -> Iterator[str]:
        yield _CLASS
        for namespace in cluster.namespaces:
            yield from _objects(cluster, namespace)

    file.write_text(_list(everything()))


def write_native(cluster: Cluster, file: Path) -> None:
    """The same routes as a native file of lb, by TLS."""
    assert cluster.certificate
    certificate = {"cert_file": str(cluster.certificate.chain), "key_file": str(cluster.certificate.key)}
    hosts: dict[str, list[dict[str, str]]] = {}
    for route in cluster.routes:
        hosts.setdefault(route.host, []).append({"path": route.path, "forward": route.service.upstream})
    upstreams = {
        service.upstream: {
            "protocol": "http2" if cluster.grpc else "http1",
            "endpoints": [f"{address}:{cluster.port}" for address in service.endpoints],
        }
        for service in cluster.services
    }
    config = {
        "apiVersion": "lb/v1",
        "kind": "Config",
        "certificates": {"bench": certificate},
        "listeners": {"https": {"port": 443, "protocol": "https", "tls": {"hosts": {"*": "bench"}}}},
        "hosts": {"default": hosts},
        "upstreams": upstreams,
    }
    file.write_text(json.dumps(config, indent=4))


def _objects(cluster: Cluster, namespace: str) -> Iterator[str]:
    routes, services = cluster.namespaces[namespace]
    for service in services:
        yield _SERVICE % {"name": service.name, "namespace": namespace, "uid": _uid(1, service.name)}
        yield _slice(service, cluster.port)
    if cluster.certificate:
        files = cluster.certificate.chain, cluster.certificate.key
        chain, key = (b64encode(file.read_bytes()).decode() for file in files)
        yield _SECRET % {"namespace": namespace, "uid": _uid(4, "tls-0"), "chain": chain, "key": key}
    for route in routes:
        yield _INGRESS % {
            "name": route.name,
            "namespace": namespace,
            "uid": _uid(2, route.name),
            "host": route.host,
            "path": route.path,
            "service": route.service.name,
            "tls": _TLS % route.host if cluster.certificate else "",
        }


def _uid(kind: int, name: str) -> str:
    return f"00000000-0000-400{kind}-8000-{int(name.rpartition('-')[2]):012d}"


def _slice(service: Service, port: int) -> str:
    endpoints = ",".join(
        _ENDPOINT % {"address": address, "pod": f"{service.name}-{number}", "namespace": service.namespace}
        for number, address in enumerate(service.endpoints)
    )
    uid = _uid(3, service.name)
    return _SLICE % {
        "name": service.name,
        "namespace": service.namespace,
        "uid": uid,
        "port": port,
        "endpoints": endpoints,
    }


def _list(items: Iterable[str]) -> str:
    head = '{\n    "apiVersion": "v1",\n    "items": ['
    return (
        head
        + ",".join(items)
        + '\n    ],\n    "kind": "List",\n    "metadata": {\n        "resourceVersion": ""\n    }\n}\n'
    )


_CLASS = """
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IngressClass",
            "metadata": {
                "creationTimestamp": "2024-01-01T00:00:00Z",
                "generation": 1,
                "name": "lb",
                "resourceVersion": "1000",
                "uid": "00000000-0000-4000-8000-000000000000"
            },
            "spec": {
                "controller": "lb/ingress"
            }
        }"""

_INGRESS = """
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {
                "annotations": {
                    "meta.helm.sh/release-name": "%(name)s",
                    "meta.helm.sh/release-namespace": "%(namespace)s"
                },
                "creationTimestamp": "2024-01-01T00:00:00Z",
                "generation": 1,
                "labels": {
                    "app.kubernetes.io/instance": "%(name)s",
                    "app.kubernetes.io/managed-by": "Helm",
                    "app.kubernetes.io/name": "web"
                },
                "name": "%(name)s",
                "namespace": "%(namespace)s",
                "resourceVersion": "123456",
                "uid": "%(uid)s"
            },
            "spec": {
                "ingressClassName": "lb",
                "rules": [
                    {
                        "host": "%(host)s",
                        "http": {
                            "paths": [
                                {
                                    "backend": {
                                        "service": {
                                            "name": "%(service)s",
                                            "port": {
                                                "name": "http"
                                            }
                                        }
                                    },
                                    "path": "%(path)s",
                                    "pathType": "Prefix"
                                }
                            ]
                        }
                    }
                ]%(tls)s
            },
            "status": {
                "loadBalancer": {
                    "ingress": [
                        {
                            "ip": "203.0.113.10"
                        }
                    ]
                }
            }
        }"""

_TLS = """,
                "tls": [
                    {
                        "hosts": [
                            "%s"
                        ],
                        "secretName": "tls"
                    }
                ]"""

_SECRET = """
        {
            "apiVersion": "v1",
            "data": {
                "tls.crt": "%(chain)s",
                "tls.key": "%(key)s"
            },
            "kind": "Secret",
            "metadata": {
                "creationTimestamp": "2024-01-01T00:00:00Z",
                "name": "tls",
                "namespace": "%(namespace)s",
                "resourceVersion": "123456",
                "uid": "%(uid)s"
            },
            "type": "kubernetes.io/tls"
        }"""

_SERVICE = """
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "creationTimestamp": "2024-01-01T00:00:00Z",
                "labels": {
                    "app.kubernetes.io/name": "%(name)s"
                },
                "name": "%(name)s",
                "namespace": "%(namespace)s",
                "resourceVersion": "123456",
                "uid": "%(uid)s"
            },
            "spec": {
                "clusterIP": "10.96.0.10",
                "clusterIPs": [
                    "10.96.0.10"
                ],
                "internalTrafficPolicy": "Cluster",
                "ipFamilies": [
                    "IPv4"
                ],
                "ipFamilyPolicy": "SingleStack",
                "ports": [
                    {
                        "name": "http",
                        "port": 80,
                        "protocol": "TCP",
                        "targetPort": 8080
                    }
                ],
                "selector": {
                    "app.kubernetes.io/name": "%(name)s"
                },
                "sessionAffinity": "None",
                "type": "ClusterIP"
            },
            "status": {
                "loadBalancer": {}
            }
        }"""

_SLICE = """
        {
            "addressType": "IPv4",
            "apiVersion": "discovery.k8s.io/v1",
            "endpoints": [%(endpoints)s
            ],
            "kind": "EndpointSlice",
            "metadata": {
                "creationTimestamp": "2024-01-01T00:00:00Z",
                "generateName": "%(name)s-",
                "generation": 1,
                "labels": {
                    "app.kubernetes.io/name": "%(name)s",
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    "kubernetes.io/service-name": "%(name)s"
                },
                "name": "%(name)s-x2v9q",
                "namespace": "%(namespace)s",
                "resourceVersion": "123456",
                "uid": "%(uid)s"
            },
            "ports": [
                {
                    "name": "http",
                    "port": %(port)d,
                    "protocol": "TCP"
                }
            ]
        }"""

_ENDPOINT = """
                {
                    "addresses": [
                        "%(address)s"
                    ],
                    "conditions": {
                        "ready": true,
                        "serving": true,
                        "terminating": false
                    },
                    "nodeName": "worker-1",
                    "targetRef": {
                        "kind": "Pod",
                        "name": "%(pod)s",
                        "namespace": "%(namespace)s",
                        "uid": "00000000-0000-4000-8000-000000000000"
                    }
                }"""
