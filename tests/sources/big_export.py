"""A realistic cluster export of any size: what `kubectl get ingress,service,endpointslice -A -o json` prints.

Deterministic for a given size. Used by the tests, and by hand: `big_export.py 100000 >export.json`.
"""

from __future__ import annotations

import json
import random
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import yaml

Json = dict[str, Any]


def items(ingresses: int, services: int | None = None, endpoints_per_service: int = 3) -> Iterator[Json]:
    """Ingresses, Services and EndpointSlices, one IngressClass and three Namespaces, as the API server prints them."""
    services = max(1, ingresses // 10) if services is None else services
    chance = random.Random(7)
    yield {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": _metadata(chance, "", "nginx", {"app.kubernetes.io/name": "ingress-nginx"}, None),
        "spec": {"controller": "k8s.io/ingress-nginx"},
    }
    for name in ("default", "shop", "kube-system"):
        metadata = _metadata(chance, "", name, {"kubernetes.io/metadata.name": name}, None)
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata, "status": {"phase": "Active"}}
    for number in range(ingresses):
        yield ingress(chance, number, number % services)
    for number in range(services):
        yield service(chance, number)
        yield endpoint_slice(chance, number, endpoints_per_service)


def namespace_of(service_number: int) -> str:
    return f"team-{service_number % 200:03d}"


def ingress(chance: random.Random, number: int, service_number: int) -> Json:
    name = f"web-{number:06d}"
    host = f"{name}.apps.example.com"
    backend = {"service": {"name": f"svc-{service_number:05d}", "port": {"number": 80}}}
    annotations = {
        "nginx.ingress.kubernetes.io/proxy-body-size": "8m",
        "kubectl.kubernetes.io/last-applied-configuration": json.dumps(
            {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name}, "spec": {"h": host}}
        ),
    }
    paths = [{"backend": backend, "path": "/", "pathType": "Prefix"}]
    if number % 4 == 0:
        paths.append({"backend": backend, "path": f"/api/v{number % 3}", "pathType": "Exact"})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": _metadata(
            chance,
            namespace_of(service_number),
            name,
            {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm"},
            annotations,
        ),
        "spec": {"ingressClassName": "nginx", "rules": [{"host": host, "http": {"paths": paths}}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}]}},
    }


def service(chance: random.Random, number: int) -> Json:
    name = f"svc-{number:05d}"
    address = f"10.96.{number // 250 % 250}.{number % 250 + 1}"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(chance, namespace_of(number), name, {"app": name}, None),
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "selector": {"app": name},
            "sessionAffinity": "None",
            "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(chance: random.Random, number: int, endpoints: int) -> Json:
    service_name, namespace = f"svc-{number:05d}", namespace_of(number)
    return {
        "addressType": "IPv4",
        "apiVersion": "discovery.k8s.io/v1",
        "endpoints": [
            {
                "addresses": [f"10.{1 + pod % 200}.{number // 250 % 250}.{number % 250 + 1}"],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"worker-{(number + pod) % 50}",
                "targetRef": {
                    "kind": "Pod",
                    "name": f"{service_name}-7f9c-{pod}",
                    "namespace": namespace,
                    "uid": _uid(chance),
                },
                "zone": f"zone-{(number + pod) % 3}",
            }
            for pod in range(endpoints)
        ],
        "kind": "EndpointSlice",
        "metadata": _metadata(
            chance,
            namespace,
            f"{service_name}-x{number:04d}",
            {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service_name,
            },
            None,
        ),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def export_json(ingresses: int, services: int | None = None, indent: int | None = 4) -> bytes:
    """The export as `kubectl get -o json` writes it."""
    content = {
        "apiVersion": "v1",
        "items": list(items(ingresses, services)),
        "kind": "List",
        "metadata": {"resourceVersion": ""},
    }
    return json.dumps(content, indent=indent).encode() + b"\n"


def export_yaml(ingresses: int, services: int | None = None) -> bytes:
    """The export as `kubectl get -o yaml` writes it."""
    content = {
        "apiVersion": "v1",
        "items": list(items(ingresses, services)),
        "kind": "List",
        "metadata": {"resourceVersion": ""},
    }
    return yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=True).encode()


def _uid(chance: random.Random) -> str:
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


def _metadata(
    chance: random.Random, namespace: str, name: str, labels: dict[str, str], annotations: dict[str, str] | None
) -> Json:
    day = f"2025-{chance.randint(1, 12):02d}-{chance.randint(1, 28):02d}"
    metadata: Json = {
        "creationTimestamp": f"{day}T08:{chance.randint(0, 59):02d}:00Z",
        "generation": 1,
        "labels": labels,
        "name": name,
        "resourceVersion": str(chance.randint(10**6, 10**8)),
        "uid": _uid(chance),
    }
    if annotations:
        metadata["annotations"] = annotations
    if namespace:
        metadata["namespace"] = namespace
    return dict(sorted(metadata.items()))


if __name__ == "__main__":
    sys.stdout.buffer.write(export_json(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
