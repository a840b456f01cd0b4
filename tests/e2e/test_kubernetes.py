"""Exports of a cluster, served: endpoints, node ports, external names, affinity, changes of slices."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.backend import RawBackend, answering
from tests.harness.client import get
from tests.harness.cluster import Object, node, service, serving
from tests.harness.waiting import wait_until


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


def endpoint_slice(name: str, *backends: RawBackend) -> Object:
    """One slice a port, as the ports of these backends differ: the first one names it."""
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": f"{name}-{backends[0].port}", "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "http", "port": backends[0].port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [backend.address], "conditions": {"ready": True}} for backend in backends],
    }  # fmt: skip


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
        objects = [
            ingress("web", "shop.example.com", ("/", "web")),
            service("web", type="NodePort", port={"nodePort": one.port}),
            node("one", "127.0.0.1"), node("two", "127.0.0.2"), node("three", "127.0.0.3", ready="False"),
        ]  # fmt: skip
        with serving(tmp_path, objects, "--targets", "nodeports") as cluster, cluster.connect() as client:
            seen = Counter(client.ask(get("shop.example.com")).body for _ in range(20))
            assert set(seen) == {b"one", b"two"}
            cluster.objects[3] = node("two", "127.0.0.2", ready="Unknown")
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
