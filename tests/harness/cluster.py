"""An export of a cluster that a running lb serves, and the objects in it."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.backend import BackendConnection, RawBackend
from tests.harness.client import RawClient, get
from tests.harness.ports import free_port
from tests.harness.process import LbProcess
from tests.harness.tcp import TcpServer, read_all

Object = dict[str, Any]


def service(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080, **spec.pop("port", {})}], **spec},
    }  # fmt: skip


def load_balancer(name: str, port: int, created: str = "2024-01-01T00:00:00Z", **spec: Any) -> Object:
    made = service(name, type="LoadBalancer", loadBalancerClass="lb/lb", port={"port": port}, **spec)
    made["metadata"]["creationTimestamp"] = created
    return made


def tcp_slice(name: str, *servers: TcpServer) -> Object:
    """One slice: the servers have one port and addresses of their own."""
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": f"{name}-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "http", "port": servers[0].port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [server.address], "conditions": {"ready": True}} for server in servers],
    }  # fmt: skip


def node(name: str, *addresses: str, ready: str = "True") -> Object:
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address} for address in addresses],
                   "conditions": [{"type": "Ready", "status": ready}]},
    }  # fmt: skip


class KubeProxy:
    """The health check node port of one Service on one node: 200 while there are local endpoints, else 503."""

    def __init__(self, address: str, port: int, endpoints: int = 1) -> None:
        self.endpoints = endpoints
        self._server = RawBackend(self._answer, address=address, port=port)

    def _answer(self, connection: BackendConnection) -> None:
        # kubernetes pkg/proxy/healthcheck/service_health.go, hcHandler.ServeHTTP
        while connection.read() is not None:
            status = b"200 OK" if self.endpoints else b"503 Service Unavailable"
            body = b'{"service":{"namespace":"shop","name":"db"},"localEndpoints":%d}' % self.endpoints
            connection.send(
                b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
                b"X-Load-Balancing-Endpoint-Weight: %d\r\nContent-Length: %d\r\n\r\n%b"
                % (status, self.endpoints, len(body), body)
            )

    def asked(self) -> set[tuple[bytes, bytes]]:
        """Methods and targets of what came since the last call."""
        return {(one.method, one.target) for one in self._server.requests()}

    def __enter__(self) -> KubeProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()


@dataclass
class Cluster:
    """An export that lb serves."""

    directory: Path
    objects: list[Object] = field(default_factory=list)
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    lb: LbProcess = field(init=False)

    @property
    def export(self) -> Path:
        return self.directory / "export.json"

    def write(self) -> None:
        half = self.directory / ".export.json.new"
        half.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": self.objects}))
        half.replace(self.export)

    def connect(self, **options: Any) -> RawClient:
        return RawClient(("127.0.0.1", self.port), **options)

    def ask(self, host: str, target: str = "/", **options: Any) -> tuple[int, bytes]:
        with self.connect(**options) as client:
            answer = client.ask(get(host, target))
            return answer.status, answer.body


@contextlib.contextmanager
def serving(directory: Path, objects: list[Object], *options: str) -> Iterator[Cluster]:
    directory.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(directory, objects, options)
    cluster.write()
    publish = ("--publish", f"80=127.0.0.1:{cluster.port}")
    with LbProcess([cluster.export], directory / "lb", *publish, *options) as cluster.lb:
        yield cluster


def reached(port: int, address: str = "127.0.0.1", source: str = "") -> str:
    """The name of the server behind a port."""
    place = (source, 0) if source else None
    with socket.create_connection((address, port), 10, source_address=place) as client:
        client.shutdown(socket.SHUT_WR)
        return read_all(client).decode()


def is_refused(port: int, **options: str) -> bool:
    try:
        return reached(port, **options) == ""
    except (ConnectionRefusedError, ConnectionResetError):
        return True
