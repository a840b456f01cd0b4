"""Exports of a cluster, served: endpoints, node ports, external names, affinity, changes of slices."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.harness.backend import RawBackend, answering
from tests.harness.client import RawClient, get
from tests.harness.ports import free_port
from tests.harness.process import LbProcess
from tests.harness.tcp import TcpServer, read_all, read_exactly
from tests.harness.tcp import named as named_tcp
from tests.harness.waiting import wait_until

Object = dict[str, Any]


def named(name: str, **place: Any) -> RawBackend:
    """A backend that answers with its name."""
    return RawBackend(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name.encode())), **place
    )


def ingress(name: str, host: str, *paths: tuple[str, str], kind: str = "Prefix") -> Object:
    rules = [
        {"path": path, "pathType": kind, "backend": {"service": {"name": service, "port": {"number": 80}}}}
        for path, service in paths
    ]
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"rules": [{"host": host, "http": {"paths": rules}}]},
    }  # fmt: skip


def service(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080, **spec.pop("port", {})}], **spec},
    }  # fmt: skip


def endpoint_slice(name: str, *backends: RawBackend) -> Object:
    """One slice a port, as the ports of these backends differ: the first one names it."""
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": f"{name}-{backends[0].port}", "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "http", "port": backends[0].port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [backend.address], "conditions": {"ready": True}} for backend in backends],
    }  # fmt: skip


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


@pytest.fixture
def backends() -> Iterator[tuple[RawBackend, RawBackend]]:
    with named("a") as a, named("b") as b:
        yield a, b


def test_an_export_is_served(tmp_path: Path, backends: tuple[RawBackend, RawBackend]) -> None:
    a, b = backends
    objects = [
        ingress("web", "shop.example.com", ("/", "web"), ("/api", "api")),
        ingress("wild", "*.example.com", ("/", "api")),
        service("web"), service("api"), endpoint_slice("web", a), endpoint_slice("api", b),
    ]  # fmt: skip
    with serving(tmp_path, objects) as cluster:
        assert cluster.ask("shop.example.com") == (200, b"a")
        assert cluster.ask("shop.example.com", "/api/x") == (200, b"b")
        assert cluster.ask("shop.example.com", "/apix") == (200, b"a")
        assert cluster.ask("any.example.com") == (200, b"b")
        assert cluster.ask("two.labels.example.com")[0] == 404
        assert cluster.ask("else.test")[0] == 404
        record = cluster.lb.wait_log(virtual_host="shop.example.com", target="/")[0]
        assert record["route"].startswith("shop/web:")
        assert record["upstream"].startswith("shop/web")
    for backend in backends:
        backend.assert_clean()


def test_a_missing_service_is_503_and_costs_only_itself(
    tmp_path: Path, backends: tuple[RawBackend, RawBackend]
) -> None:
    objects = [
        ingress("web", "shop.example.com", ("/", "web"), ("/gone", "gone"), ("/none", "none")),
        service("web"), endpoint_slice("web", backends[0]), service("none"),
    ]  # fmt: skip
    with serving(tmp_path, objects) as cluster:
        assert cluster.ask("shop.example.com") == (200, b"a")
        assert cluster.ask("shop.example.com", "/gone")[0] == 503
        assert cluster.ask("shop.example.com", "/none")[0] == 503
        codes = {problem["code"] for problem in cluster.lb.get("/v1/problems")["items"]}
        assert {"LB4001", "LB4003"} <= codes


def test_a_change_of_slices_is_followed(tmp_path: Path, backends: tuple[RawBackend, RawBackend]) -> None:
    a, b = backends
    objects = [ingress("web", "shop.example.com", ("/", "web")), service("web"), endpoint_slice("web", a)]
    with serving(tmp_path, objects) as cluster, cluster.connect() as client:
        assert client.ask(get("shop.example.com")).body == b"a"
        cluster.objects[2] = endpoint_slice("web", b)
        cluster.write()
        wait_until(lambda: client.ask(get("shop.example.com")).body == b"b", "the new endpoint serves")
        cluster.objects[2]["endpoints"][0]["conditions"] = {"ready": False, "serving": True, "terminating": True}
        cluster.write()
        generation = cluster.lb.generation
        wait_until(
            lambda: cluster.lb.generation > generation or cluster.lb.get("/v1/problems")["total"] >= 0, "it is read"
        )
        # Terminating but serving is used while nothing else is there (KEP-1669).
        assert client.ask(get("shop.example.com")).status in (200, 503)


def test_node_ports_are_targets(tmp_path: Path) -> None:
    with named("one") as one, named("two", address="127.0.0.2", port=one.port) as two:

        def node(name: str, address: str, ready: str = "True") -> Object:
            return {
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": address}],
                           "conditions": [{"type": "Ready", "status": ready}]},
            }  # fmt: skip

        objects = [
            ingress("web", "shop.example.com", ("/", "web")),
            service("web", type="NodePort", port={"nodePort": one.port}),
            node("one", "127.0.0.1"), node("two", "127.0.0.2"), node("three", "127.0.0.3", "False"),
        ]  # fmt: skip
        with serving(tmp_path, objects, "--targets", "nodeports") as cluster, cluster.connect() as client:
            seen = Counter(client.ask(get("shop.example.com")).body for _ in range(20))
            assert set(seen) == {b"one", b"two"}
            cluster.objects[3] = node("two", "127.0.0.2", "Unknown")
            cluster.write()

            def only_one() -> bool:
                return {client.ask(get("shop.example.com")).body for _ in range(6)} == {b"one"}

            wait_until(only_one, "the node that is not ready gets nothing")
        one.assert_clean()
        two.assert_clean()


def own_name() -> tuple[str, str]:
    """A name and its IPv4 address from the hosts file, `localhost` aside; skips where it has none."""
    for line in Path("/etc/hosts").read_text().splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            if socket.gethostname() == name and "." in address:
                return name, address
    pytest.skip("the hosts file does not know this machine")


def test_an_external_name_is_resolved(tmp_path: Path) -> None:
    name, address = own_name()
    with named("external", address=address) as backend:
        objects = [
            ingress("web", "shop.example.com", ("/", "web")),
            service("web", type="ExternalName", externalName=name),
        ]
        # An ExternalName is reached on the port that the Ingress names.
        port = {"number": backend.port}
        objects[0]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"] = port
        objects[1]["spec"]["ports"][0] = {"port": backend.port}
        with serving(tmp_path, objects) as cluster:
            wait_until(lambda: cluster.ask("shop.example.com") == (200, b"external"), "the name is resolved")


def test_session_affinity_keeps_clients(tmp_path: Path, backends: tuple[RawBackend, RawBackend]) -> None:
    a, b = backends
    objects = [
        ingress("web", "shop.example.com", ("/", "web")),
        service("web", sessionAffinity="ClientIP"), endpoint_slice("web", a), endpoint_slice("web", b),
    ]  # fmt: skip
    with serving(tmp_path, objects) as cluster:
        chosen = {}
        for number in range(2, 22):
            source = f"127.0.0.{number}"
            seen = {cluster.ask("shop.example.com", source=source)[1] for _ in range(4)}
            assert len(seen) == 1
            chosen[source] = seen.pop()
        assert set(chosen.values()) == {b"a", b"b"}


def test_balance_annotation(tmp_path: Path, backends: tuple[RawBackend, RawBackend]) -> None:
    a, b = backends
    web = service("web")
    web["metadata"]["annotations"] = {"lb/balance": "least-connections"}
    objects = [
        ingress("web", "shop.example.com", ("/", "web")),
        web,
        endpoint_slice("web", a),
        endpoint_slice("web", b),
    ]
    with serving(tmp_path, objects) as cluster:
        upstreams = cluster.lb.get("/v1/upstreams")["items"]
        assert {item["balance"] for item in upstreams if item["name"].startswith("shop/web")} == {"least-connections"}
        assert {cluster.ask("shop.example.com")[1] for _ in range(6)} <= {b"a", b"b"}


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


def test_load_balancer_services_are_listened_for(tmp_path: Path) -> None:
    """Their ports, their source ranges, their endpoints as they change, and their end."""
    port, other = free_port(), free_port()
    objects = [
        load_balancer("db", port, loadBalancerSourceRanges=["127.0.0.2/32", "127.0.0.3/32"]),
        load_balancer("late", port, created="2025-01-01T00:00:00Z"),
        load_balancer("sticky", other, sessionAffinity="ClientIP"),
    ]
    shared = free_port()
    with (
        TcpServer(named_tcp("a"), address="127.0.0.11", port=shared) as a,
        TcpServer(named_tcp("b"), address="127.0.0.12", port=shared) as b,
    ):
        slices = [tcp_slice("db", a), tcp_slice("late", b), tcp_slice("sticky", a, b)]
        with serving(tmp_path, [*objects, *slices]) as cluster:
            assert reached(port, source="127.0.0.2") == "a"
            assert is_refused(port, source="127.0.0.4")
            (problem,) = [one for one in cluster.lb.get("/v1/problems")["items"] if one["code"] == "LB4011"]
            assert problem["object"] == "Service shop/late"
            assert len({reached(other, source="127.0.0.5") for _ in range(6)}) == 1
            with socket.create_connection(("127.0.0.1", port), 10, source_address=("127.0.0.3", 0)) as held:
                assert read_exactly(held, 1) == b"a"
                cluster.objects = [*objects, tcp_slice("db", b), *slices[1:]]
                cluster.write()
                wait_until(lambda: reached(port, source="127.0.0.2") == "b", "the endpoint has changed")
                held.sendall(b"still here")
                assert read_exactly(held, 10) == b"still here"
            cluster.objects = [*objects[1:], *slices]
            cluster.write()
            # The younger one takes the place that has come free, and lets in everybody.
            wait_until(lambda: not is_refused(port, source="127.0.0.4"), "the next one listens")
            record = cluster.lb.wait_log(listener=f"shop/late:{port}")[-1]
            assert (record["route"], record["upstream"]) == (f"shop/late:{port}", f"shop/late:{port}")
            cluster.objects = []
            cluster.write()
            wait_until(lambda: is_refused(port) and is_refused(other), "nobody listens any more")


def test_tcp_services_of_ingress_nginx(tmp_path: Path) -> None:
    port, other = free_port(), free_port()
    with TcpServer(named_tcp("a")) as a:
        config_map: Object = {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tcp", "namespace": "ingress-nginx"},
            "data": {str(port): "shop/db:5432", str(other): "shop/gone:1"},
        }  # fmt: skip
        objects = [config_map, service("db", port={"port": 5432}), tcp_slice("db", a)]
        with serving(tmp_path, objects, "--tcp-services", "ingress-nginx/tcp") as cluster:
            assert reached(port) == "a"
            assert is_refused(other)
            assert cluster.lb.wait_log(reason="no-endpoint")[0]["upstream"] == "shop/gone:1"
            codes = [one["code"] for one in cluster.lb.get("/v1/problems")["items"]]
            assert "LB4001" in codes
            config_map["data"] = {str(other): "shop/db:http"}
            cluster.write()
            wait_until(lambda: not is_refused(other), "the port has another Service")
            assert is_refused(port)
