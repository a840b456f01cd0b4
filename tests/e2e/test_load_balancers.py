"""Services of type LoadBalancer and ingress-nginx's ConfigMaps, served: places, targets, nodes' word, both families."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.harness.cluster import (
    KubeProxy,
    Object,
    is_refused,
    load_balancer,
    node,
    reached,
    service,
    serving,
    tcp_slice,
)
from tests.harness.ports import free_port
from tests.harness.tcp import TcpServer, named, read_all, read_exactly
from tests.harness.udp import UdpServer, udp_socket
from tests.harness.waiting import wait_until


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
        TcpServer(named("a"), address="127.0.0.11", port=shared) as a,
        TcpServer(named("b"), address="127.0.0.12", port=shared) as b,
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
    with TcpServer(named("a")) as a:
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


FAST = ("lb/health-check-interval", "200ms"), ("lb/health-check-fast-interval", "100ms")


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[int, int]]:
    """(node port, health check node port) of two nodes, 127.0.0.21 and 127.0.0.22, whose servers say `a` and `b`."""
    node_port, health_port = free_port(), free_port()
    with (
        TcpServer(named("a"), address="127.0.0.21", port=node_port),
        TcpServer(named("b"), address="127.0.0.22", port=node_port),
    ):
        yield node_port, health_port


def seen(port: int, **options: str) -> set[str]:
    return {reached(port, **options) for _ in range(8)}


def reached_if_any(port: int, address: str) -> str:
    """Whose listener closes meanwhile resets what waits there."""
    with contextlib.suppress(ConnectionResetError):
        return reached(port, address)
    return ""


def test_a_node_without_endpoints_says_so_itself(tmp_path: Path) -> None:
    """externalTrafficPolicy Local: the export is older than what kube-proxy says, and flows outlive the flip."""
    port = free_port()
    with two_nodes() as (node_port, health_port):
        balanced = load_balancer("db", port, externalTrafficPolicy="Local", healthCheckNodePort=health_port)
        balanced["spec"]["ports"][0]["nodePort"] = node_port
        balanced["metadata"]["annotations"] = dict(FAST)
        objects = [balanced, node("a", "127.0.0.21"), node("b", "127.0.0.22")]
        with (
            KubeProxy("127.0.0.21", health_port) as a,
            KubeProxy("127.0.0.22", health_port, endpoints=0) as b,
            serving(tmp_path, objects, "--targets", "nodeports") as cluster,
        ):
            wait_until(lambda: seen(port) == {"a"}, "the node that answers 503 gets nothing")
            assert a.asked() == b.asked() == {(b"GET", b"/healthz")}
            with socket.create_connection(("127.0.0.1", port), 10) as held:
                assert read_exactly(held, 1) == b"a"
                b.endpoints = 2
                wait_until(lambda: seen(port) == {"a", "b"}, "both have endpoints")
                a.endpoints = 0
                wait_until(lambda: seen(port) == {"b"}, "the pod has moved")
                held.sendall(b"still here")
                assert read_exactly(held, 10) == b"still here"
            said = cluster.lb.ctl("upstreams", f"shop/db:{port}")
            assert f"http GET /healthz on port {health_port}" in said
            assert "status 503" in said


def test_a_service_of_both_families(tmp_path: Path) -> None:
    """Clients of either family reach targets of the Service's own."""
    four, six, both = free_port(), free_port(), free_port()
    node_port = free_port()
    with (
        TcpServer(named("4"), address="127.0.0.21", port=node_port),
        TcpServer(named("6"), address="::1", port=node_port),
    ):
        objects: list[Object] = [node("n", "127.0.0.21", "::1")]
        for name, port, families in (
            ("four", four, ["IPv4"]), ("six", six, ["IPv6"]), ("both", both, ["IPv6", "IPv4"]),
        ):  # fmt: skip
            made = load_balancer(name, port, ipFamilies=families)
            made["spec"]["ports"][0]["nodePort"] = node_port
            objects.append(made)
        with serving(tmp_path, objects, "--targets", "nodeports") as cluster:
            assert [seen(port) for port in (four, six, both)] == [{"4"}, {"6"}, {"6"}]
            assert [seen(port, address="::1") for port in (four, six, both)] == [{"4"}, {"6"}, {"6"}]
            cluster.objects[0] = node("n", "127.0.0.21")
            cluster.write()
            wait_until(lambda: reached(both) == "4", "the node has lost one of its addresses")
            assert is_refused(six)


def test_all_addresses_and_one_of_them_on_one_port(tmp_path: Path) -> None:
    port = free_port()
    with TcpServer(named("a"), address="127.0.0.11") as a, TcpServer(named("b"), address="127.0.0.12") as b:
        one = load_balancer("one", port)
        one["metadata"]["annotations"] = {"lb/addresses": "127.0.0.31"}
        objects = [load_balancer("every", port), one, tcp_slice("every", a), tcp_slice("one", b)]
        with serving(tmp_path, objects) as cluster:
            assert seen(port) == {"a"}
            assert seen(port, address="127.0.0.31") == {"b"}
            cluster.objects.remove(one)
            cluster.write()
            wait_until(lambda: reached_if_any(port, "127.0.0.31") == "a", "the one for all takes over")
            cluster.objects.append(one)
            cluster.write()
            wait_until(lambda: reached_if_any(port, "127.0.0.31") == "b", "and gives it back")
            assert seen(port) == {"a"}


def test_proxy_flags_of_tcp_services(tmp_path: Path) -> None:
    """One Service port behind two listeners: who wants the header gets it, and the other one does not."""
    plain, announced, both_ways = free_port(), free_port(), free_port()
    with TcpServer() as server:
        config_map: Object = {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tcp", "namespace": "ingress-nginx"},
            "data": {str(plain): "shop/db:5432", str(announced): "shop/db:5432::PROXY",
                     str(both_ways): "shop/db:5432:PROXY:PROXY"},
        }  # fmt: skip
        objects = [config_map, service("db", port={"port": 5432}), tcp_slice("db", server)]

        def first_line(port: int, begin: bytes, source: str = "127.0.0.7") -> bytes:
            with socket.create_connection(("127.0.0.1", port), 10, source_address=(source, 0)) as client:
                client.sendall(begin + b"hello\n")
                client.shutdown(socket.SHUT_WR)
                with server.accept() as accepted:
                    return read_all(accepted)

        with serving(tmp_path, objects, "--tcp-services", "ingress-nginx/tcp"):
            assert first_line(plain, b"") == b"hello\n"
            header, _, rest = first_line(announced, b"").partition(b"\r\n")
            assert header.startswith(b"PROXY TCP4 127.0.0.7 127.0.0.1 ")
            assert header.endswith(b" %d" % announced)
            assert rest == b"hello\n"
            header, _, rest = first_line(both_ways, b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 5432\r\n").partition(b"\r\n")
            assert (header.split()[:3], header.split()[4]) == ([b"PROXY", b"TCP4", b"192.0.2.7"], b"4711")
            assert rest == b"hello\n"


def test_what_is_told_of_load_balancers(tmp_path: Path) -> None:
    """Where lb listens for a Service, to whom it sends, and why not."""
    port, taken, idle = free_port(), free_port(), free_port()
    not_asked = load_balancer("not-asked", idle)
    del not_asked["spec"]["loadBalancerClass"]
    objects = [
        load_balancer("db", port), load_balancer("late", port, created="2025-01-01T00:00:00Z"),
        load_balancer("idle", idle), load_balancer("taken", taken), not_asked,
    ]  # fmt: skip
    with (
        TcpServer(named("a")) as a,
        TcpServer(address="127.0.0.1", port=taken),
        serving(tmp_path, [*objects, tcp_slice("db", a), tcp_slice("taken", a)]) as cluster,
    ):
        told = {one["object"]: one for one in cluster.lb.get("/v1/load-balancers")}
        assert list(told) == [f"Service shop/{name}" for name in ("db", "idle", "late", "not-asked", "taken")]
        (carried,) = told["Service shop/db"]["ports"]
        assert (carried["listener"]["open"], carried["listener"]["port"]) == (True, port)
        (upstream,) = carried["upstreams"]
        assert (upstream["name"], upstream["endpoints_ready"], upstream["endpoints"]) == (f"shop/db:{port}", 1, 1)
        assert told["Service shop/idle"]["ports"][0]["upstreams"][0]["unavailable"].endswith("no ready endpoint")
        assert [told[f"Service shop/{name}"]["ports"][0]["listener"]["address"] for name in ("db", "taken")] == [
            f"*:{port}", f"*:{taken}"
        ]  # fmt: skip
        assert "listens there" in told["Service shop/taken"]["ports"][0]["listener"]["problem"]
        assert {name: [one["code"] for one in about["problems"]] for name, about in told.items()} == {
            "Service shop/db": [], "Service shop/idle": ["LB4003"], "Service shop/late": ["LB4011"],
            "Service shop/not-asked": ["LB2005"], "Service shop/taken": [],
        }  # fmt: skip
        lines = cluster.lb.ctl("load-balancers").splitlines()
        assert any(line.split()[1] == "shop/db" and "1/1" in line for line in lines[1:])
        assert any("shop/late" in line and "LB4011" in line for line in lines)
        (alone,) = [line for line in lines if "shop/idle" in line.split()[:2]]
        assert f"*:{idle}" in alone
        assert "warning[LB4003]: Service shop/idle has no ready endpoint" in alone
        alone = cluster.lb.ctl("load-balancers", "shop/late")
        assert "shop/db" in alone
        assert "fix: give one of them another port" in alone


def asked(port: int, address: str = "127.0.0.1") -> str:
    """What answers a datagram; empty when nobody does for a while."""
    with udp_socket("::1" if ":" in address else "127.0.0.1") as client:
        client.settimeout(0.5)
        client.connect((address, port))
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            client.send(b"who?")
            return client.recv(100).decode()
        return ""


def test_tcp_and_udp_of_one_number(tmp_path: Path) -> None:
    """A Service of both, on node ports of both families; its UDP port comes and goes by itself."""
    port, tcp, udp = free_port(), free_port(), free_port()
    with (
        TcpServer(named("tcp"), address="127.0.0.21", port=tcp),
        UdpServer(lambda _: [b"udp"], address="127.0.0.21", port=udp),
        UdpServer(lambda _: [b"udp6"], address="::1", port=udp),
    ):
        both = load_balancer("dns", port)
        both["spec"]["ports"] = [
            {"name": "dns", "port": port, "nodePort": tcp},
            {"name": "dns-udp", "port": port, "nodePort": udp, "protocol": "UDP"},
        ]
        both["metadata"]["annotations"] = {"lb/udp-responses": "1"}
        objects = [both, node("n", "127.0.0.21", "::1")]
        with serving(tmp_path, objects, "--targets", "nodeports") as cluster:
            assert reached(port) == "tcp"
            assert [asked(port), asked(port, "::1")] == ["udp", "udp"]
            (record, *_) = cluster.lb.wait_log(2, listener=f"shop/dns:{port}/udp")
            assert (record["upstream"], record["endpoint"]) == (f"shop/dns:{port}/udp", f"127.0.0.21:{udp}")
            both["spec"]["ipFamilies"] = ["IPv6"]
            cluster.write()
            wait_until(lambda: asked(port) == "udp6", "the Service is for IPv6 now")
            both["spec"]["ipFamilies"] = ["IPv4"]
            both["spec"]["ports"].pop()
            cluster.write()
            wait_until(lambda: asked(port) == "", "nobody listens for datagrams")
            assert reached(port) == "tcp"


def test_datagrams_for_all_addresses_and_one_of_them(tmp_path: Path) -> None:
    port, target = free_port(), free_port()
    with (
        UdpServer(lambda _: [b"a"], address="127.0.0.11", port=target),
        UdpServer(lambda _: [b"b"], address="127.0.0.12", port=target),
    ):
        objects: list[Object] = []
        for name, address in (("every", "127.0.0.11"), ("one", "127.0.0.12")):
            made = load_balancer(name, port)
            made["spec"]["ports"][0] |= {"protocol": "UDP"}
            slices = {
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
                "ports": [{"name": "http", "port": target, "protocol": "UDP"}],
                "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            }  # fmt: skip
            objects += [made, slices]
        objects[2]["metadata"]["annotations"] = {"metallb.io/loadBalancerIPs": "127.0.0.31"}
        with serving(tmp_path, objects) as cluster:
            assert [asked(port), asked(port, "127.0.0.31")] == ["a", "b"]
            assert f"127.0.0.31:{port}/udp" in cluster.lb.ctl("load-balancers", "shop/one")


def test_udp_services_of_ingress_nginx(tmp_path: Path) -> None:
    port = free_port()
    with TcpServer(named("tcp")) as tcp, UdpServer(lambda data: [b"re: " + data], port=tcp.port):
        data = {str(port): "shop/dns:dns"}
        maps: list[Object] = [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "nginx"}, "data": data}
            for name in ("tcp", "udp")
        ]
        ports = [{"name": "dns", "port": 53, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]
        slices = tcp_slice("dns", tcp)
        slices["ports"] = [{"name": "dns", "port": tcp.port, "protocol": one["protocol"]} for one in ports]
        made = service("dns")
        made["spec"]["ports"] = ports
        options = ("--tcp-services", "nginx/tcp", "--udp-services", "nginx/udp")
        with serving(tmp_path, [*maps, made, slices], *options) as cluster:
            assert asked(port) == "re: who?"
            assert reached(port) == "tcp"
            del data[str(port)]
            cluster.write()
            wait_until(lambda: asked(port) == "", "neither of them is served")
            assert is_refused(port)
