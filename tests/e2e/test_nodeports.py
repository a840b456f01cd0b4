"""Services of type LoadBalancer in front of the node ports of a cluster whose hosts have addresses of their own: who is
let in, which nodes and pods are reached, and what becomes of connections when nodes and pods go.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.harness.client import RawClient
from tests.harness.cluster import KubeProxy
from tests.harness.netns import NFT, Host, require_hosts
from tests.harness.nodes import (
    LB,
    LB6,
    OTHER_LB,
    OTHER_LB6,
    Cluster,
    Node,
    Pod,
    Service,
    cluster_of,
    names_of,
    standing_in,
)
from tests.harness.payload import MEGABYTE, digest_of, payload
from tests.harness.tcp import TcpServer, ends_by_reset, read_all, read_exactly, reset
from tests.harness.waiting import wait_until

LB_SEEN_FROM_NODES = "10.3.0.1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_hosts()

    def serve_pod(pod: Pod, address: str) -> TcpServer:
        return TcpServer(greeting(pod), address=address, port=8_000)

    with cluster_of(tmp_path_factory.mktemp("cluster"), serve_pod) as made:
        yield made


@pytest.fixture(autouse=True)
def whole(cluster: Cluster) -> Iterator[None]:
    """Each test begins with all nodes, and no Service that it names; what was before is gone with its first one."""
    yield
    cluster.lb.assert_healthy()
    cluster.restore()


def greeting(pod: Pod) -> Callable[[socket.socket], None]:
    """Says its name and whom it sees, then sends back what comes."""

    def handle(connected: socket.socket) -> None:
        connected.sendall(f"{pod.name} {connected.getpeername()[0]}\n".encode())
        while data := connected.recv(65_536):
            connected.sendall(data)

    return handle


needs_rules = pytest.mark.skipif(NFT is None, reason="nftables is not installed")


@dataclass(frozen=True)
class Visit:
    """What one connection found."""

    pod: str
    seen: str
    """Who the pod thinks the client is."""
    port: int
    """Of the client."""


class Flow:
    """A connection to a pod that has greeted."""

    def __init__(self, host: Host, address: str, port: int, **options: Any) -> None:
        with host.entered():
            self.client = RawClient((address, port), **options)
        line = bytearray()
        while not line.endswith(b"\n"):
            line += read_exactly(self.client.socket, 1)
        pod, seen = line.decode().split()
        self.visit = Visit(pod, seen, self.client.socket.getsockname()[1])

    def exchange(self, data: bytes) -> None:
        """There and back."""
        sender = threading.Thread(target=self.client.send, args=(data,))
        sender.start()
        assert digest_of(read_exactly(self.client.socket, len(data))) == digest_of(data)
        sender.join()

    def end(self) -> None:
        """In order, from both sides."""
        self.client.finish()
        assert read_all(self.client.socket) == b""
        self.client.close()


def visit(host: Host, address: str, port: int, size: int = 1_000) -> Visit:
    flow = Flow(host, address, port)
    flow.exchange(payload(size))
    flow.end()
    return flow.visit


def visits(host: Host, address: str, port: int, count: int) -> list[Visit]:
    return [visit(host, address, port) for _ in range(count)]


def pods_of(found: list[Visit]) -> set[str]:
    return {one.pod for one in found}


def refused(host: Host, address: str, port: int) -> bool:
    """Whether nobody listens there."""
    with host.entered(), socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.settimeout(5)
        return probe.connect_ex((address, port)) != 0


_numbers = itertools.count()


def answers(host: Host, address: str, port: int) -> bool:
    """Whether a pod does. A socket that closes resets who is in its queue."""
    with contextlib.suppress(ConnectionError):
        return bool(visit(host, address, port))
    return False


def serve(cluster: Cluster, pods: list[Pod] | None = None, **fields: Any) -> Service:
    """A Service that lb serves from now on, with a name and ports of its own: who comes in the moment where one takes
    another's place is reset with the socket that closes."""
    number = next(_numbers)
    port = fields.pop("port", 5_000 + number)
    made = Service(f"db-{number}", port, 30_000 + number, cluster.pods if pods is None else pods, **fields)
    cluster.services[made.name] = made
    cluster.apply()
    return made


# ------------------------------------------------------------------------------------------------- policies and sources


@needs_rules
def test_connections_go_through_all_nodes_to_all_pods(cluster: Cluster) -> None:
    service = serve(cluster)
    found = visits(cluster.near, LB, service.port, 60)
    assert pods_of(found) == names_of(cluster.pods)
    assert LB_SEEN_FROM_NODES not in {one.seen for one in found}, "a node puts its own address there"
    records = cluster.lb.wait_log(60, upstream=service.upstream, reason="ok")
    shares = Counter(record["endpoint"] for record in records)
    assert set(shares) == {f"{node.addresses[0]}:{service.node_port}" for node in cluster.nodes}
    assert min(shares.values()) >= 18, "each thread takes them in turn"
    assert {record["client"] for record in records} == {"10.1.0.2"}


@needs_rules
def test_local_policy_asks_nodes_with_pods_only(cluster: Cluster) -> None:
    """The others say nothing, so that each connection to one would have to wait for a timeout."""
    first, second, third = cluster.nodes
    service = serve(cluster, pods=first.pods + second.pods, spec={"externalTrafficPolicy": "Local"})
    found = visits(cluster.near, LB, service.port, 30)
    assert pods_of(found) == names_of(first.pods + second.pods)
    assert {one.seen for one in found} == {LB_SEEN_FROM_NODES}, "nobody stands between lb and the pod"
    for pods in (third.pods, [first.pods[0], third.pods[1]]):
        service.pods = pods
        cluster.apply()
        assert pods_of(visits(cluster.near, LB, service.port, 12)) == names_of(pods)
    assert {record["attempts"] for record in cluster.lb.wait_log(54, upstream=service.upstream)} == {1}


@needs_rules
def test_a_node_says_itself_that_its_pods_are_gone(cluster: Cluster) -> None:
    """The export is behind: it shows pods on a node that has none and drops what comes. Flows stay where they are."""
    first, second, _ = cluster.nodes
    service = serve(
        cluster, first.pods + second.pods,
        annotations={"lb/health-check-interval": "100ms", "lb/health-check-fast-interval": "100ms"},
        spec={"externalTrafficPolicy": "Local", "healthCheckNodePort": 31_000},
    )  # fmt: skip
    key = f"{first.addresses[0]}:{service.node_port}"

    def is_healthy(wanted: int) -> bool:
        return cluster.lb.metric("lb_endpoint_healthy", upstream=service.upstream, endpoint=key) == wanted

    with contextlib.ExitStack() as stack:
        with first.host.entered():
            first_says = stack.enter_context(KubeProxy(first.addresses[0], 31_000))
        with second.host.entered():
            stack.enter_context(KubeProxy(second.addresses[0], 31_000))
        wait_until(lambda: is_healthy(1), "the node has been asked")
        flows = [Flow(cluster.near, LB, service.port) for _ in range(4)]
        assert pods_of([flow.visit for flow in flows]) & names_of(first.pods)
        service.known_pods, service.pods = service.pods, second.pods
        first_says.endpoints = 0
        cluster.proxy()
        wait_until(lambda: is_healthy(0), "the node has said so")
        assert pods_of(visits(cluster.near, LB, service.port, 12)) == names_of(second.pods)
        for flow in flows:
            flow.exchange(payload(100_000))
            flow.end()
        service.pods = service.known_pods
        first_says.endpoints = 2
        cluster.proxy()
        wait_until(lambda: is_healthy(1), "they are back")
        assert pods_of(visits(cluster.near, LB, service.port, 24)) == names_of(service.pods)
    assert {record["attempts"] for record in cluster.lb.wait_log(40, upstream=service.upstream)} == {1}


@needs_rules
def test_source_ranges_tell_networks_apart(cluster: Cluster) -> None:
    service = serve(cluster, spec={"loadBalancerSourceRanges": ["10.1.0.0/16", "fd00:2::/32"]})
    assert visit(cluster.near, LB, service.port)
    assert visit(cluster.far, "fd00:2::1", service.port)
    for host, address, client in ((cluster.far, "10.2.0.1", "10.2.0.2"), (cluster.near, LB6, "fd00:1::2")):
        with host.entered(), pytest.raises(ConnectionResetError), RawClient((address, service.port)) as stranger:
            read_exactly(stranger.socket, 1)
        assert cluster.lb.wait_log(1, reason="source-refused", client=client)[-1]["endpoint"] == ""


@needs_rules
def test_client_affinity_looks_at_addresses(cluster: Cluster) -> None:
    service = serve(cluster, spec={"sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local"},
                    pods=[node.pods[0] for node in cluster.nodes])  # fmt: skip
    for host, address in (
        (cluster.near, LB),
        (cluster.far, "10.2.0.1"),
        (cluster.near, LB6),
        (cluster.far, "fd00:2::1"),
    ):
        assert len(pods_of(visits(host, address, service.port, 5))) == 1


# ------------------------------------------------------------------------------------------------- addresses, families


@needs_rules
@pytest.mark.parametrize(("wanted", "other"), [(OTHER_LB, LB), (OTHER_LB6, LB6)])
def test_a_load_balancer_ip_is_one_of_several(cluster: Cluster, wanted: str, other: str) -> None:
    service = serve(cluster, spec={"loadBalancerIP": wanted})
    assert visit(cluster.near, wanted, service.port)
    assert refused(cluster.near, other, service.port)


@needs_rules
def test_a_load_balancer_moves_between_addresses(cluster: Cluster) -> None:
    """Who is connected stays, wherever it goes."""
    service = serve(cluster)
    flow = Flow(cluster.near, LB, service.port)
    for here, elsewhere in (({OTHER_LB}, {LB, LB6}), ({LB, LB6}, {OTHER_LB}), ({LB, OTHER_LB6}, {OTHER_LB, LB6})):
        service.annotations["lb/addresses"] = ",".join(sorted(here))
        cluster.apply()
        for address in here:
            wait_until(
                lambda where=address: answers(cluster.near, where, service.port), "it is served in its new place"
            )
        for address in elsewhere:
            wait_until(lambda where=address: refused(cluster.near, where, service.port), "the old place is closed")
    del service.annotations["lb/addresses"]
    cluster.apply()
    for address in (LB, LB6, OTHER_LB, OTHER_LB6):
        wait_until(lambda where=address: answers(cluster.near, where, service.port), "it is served everywhere")
    flow.exchange(payload(1_000))
    flow.end()


@needs_rules
def test_services_share_a_port_on_addresses_of_their_own(cluster: Cluster) -> None:
    first, second, _ = cluster.nodes
    one = serve(cluster, first.pods, port=443, annotations={"lb/addresses": f"{LB}, {LB6}"})
    other = serve(cluster, second.pods, port=443, annotations={"lb/addresses": f"{OTHER_LB}, {OTHER_LB6}"})
    assert one.port == other.port
    for address, node in ((LB, first), (LB6, first), (OTHER_LB, second), (OTHER_LB6, second)):
        assert pods_of(visits(cluster.near, address, one.port, 4)) <= names_of(node.pods)


@needs_rules
@pytest.mark.parametrize("nodes", ["IPv4", "IPv6"])
@pytest.mark.parametrize("client", ["IPv4", "IPv6"])
def test_each_family_reaches_nodes_of_each(cluster: Cluster, client: str, nodes: str) -> None:
    cluster.families = slice(0, 1) if nodes == "IPv4" else slice(1, 2)
    service = serve(cluster)
    found = visits(cluster.near, LB if client == "IPv4" else LB6, service.port, 6)
    assert {":" in one.seen for one in found} == {nodes == "IPv6"}


# ----------------------------------------------------------------------------------------------------------- lost nodes


@contextlib.contextmanager
def cable_pulled(cluster: Cluster, node: Node) -> Iterator[None]:
    cluster.lb_host.ip(f"link set dev {node.name} down")
    try:
        yield
    finally:
        cluster.lb_host.ip(f"link set dev {node.name} up")


@contextlib.contextmanager
def filtered(node: Node, verdict: str) -> Iterator[None]:
    """The node does this with whatever comes over the cable."""
    hook = "type filter hook prerouting priority -1"
    node.host.nft(f"table inet lost {{\nchain first {{\n{hook};\niifname eth0 meta l4proto tcp {verdict}\n}}\n}}")
    try:
        yield
    finally:
        node.host.nft("delete table inet lost")


@needs_rules
@pytest.mark.parametrize("how", ["cable", "drop", "reject with icmpx type host-unreachable", "reject with tcp reset"])
def test_a_node_that_is_lost_costs_no_connection(cluster: Cluster, how: str) -> None:
    first, *others = cluster.nodes
    pods = [pod for node in others for pod in node.pods]
    service = serve(cluster, pods=pods, annotations={"lb/connect-timeout": "150ms"})
    key = f"{first.addresses[0]}:{service.node_port}"
    with cable_pulled(cluster, first) if how == "cable" else filtered(first, how):
        found = visits(cluster.near, LB, service.port, 12)
        assert len(found) == 12
        records = cluster.lb.wait_log(12, upstream=service.upstream, reason="ok")
        assert key not in {record["endpoint"] for record in records}
        assert {record["attempts"] for record in records} == {1, 2}


@needs_rules
def test_flows_to_a_lost_node_end_by_their_own_time(cluster: Cluster) -> None:
    first = cluster.nodes[0]
    service = serve(cluster, pods=first.pods, annotations={"lb/tcp-idle-timeout": "400ms"},
                    spec={"externalTrafficPolicy": "Local"})  # fmt: skip
    flow = Flow(cluster.near, LB, service.port)
    with filtered(first, "drop"):
        flow.client.send(b"anybody?")
        assert ends_by_reset(flow.client.socket)
    cluster.lb.wait_log(1, upstream=service.upstream, client_port=flow.visit.port, reason="flow-timeout")


@needs_rules
def test_a_node_port_without_a_pod_refuses(cluster: Cluster) -> None:
    """What the export does not say yet: the pods are gone, and kube-proxy knows. Nobody else is there to be asked."""
    service = serve(cluster)
    kept, service.pods = service.pods, []
    cluster.proxy()
    with cluster.near.entered(), pytest.raises(ConnectionResetError), RawClient((LB, service.port)) as client:
        read_exactly(client.socket, 1)
    assert cluster.lb.wait_log(1, upstream=service.upstream)[-1]["reason"] == "connect-failed"
    service.pods = kept
    cluster.proxy()
    wait_until(lambda: cluster.lb.metric("lb_endpoint_up", upstream=service.upstream) == 3, "all are tried again")
    assert visit(cluster.near, LB, service.port)


# ------------------------------------------------------------------------------------------------------------ the bytes


@needs_rules
def test_ends_pass_through_a_node(cluster: Cluster) -> None:
    """Half-close by the client is in every visit; here are resets, and an end by the pod."""
    pod = cluster.nodes[0].pods[0]
    with pod.node.inside.entered(), TcpServer(address=pod.addresses[0], port=8_001) as server:
        service = serve(cluster, pods=[pod], target_port=8_001)
        for what in ("client resets", "pod resets", "pod ends"):
            with cluster.near.entered():
                client = RawClient((LB, service.port))
            with client, server.accept() as connected:
                client.send(b"hello")
                assert read_exactly(connected, 5) == b"hello"
                if what == "client resets":
                    client.reset()
                    assert ends_by_reset(connected)
                elif what == "pod resets":
                    connected.sendall(b"last words")
                    assert read_exactly(client.socket, 10) == b"last words"
                    reset(connected)
                    assert ends_by_reset(client.socket)
                else:
                    connected.sendall(payload(MEGABYTE))
                    connected.shutdown(socket.SHUT_WR)
                    assert read_all(client.socket) == payload(MEGABYTE)
                    client.send(b"still here")
                    client.finish()
                    assert read_all(connected) == b"still here"
        records = cluster.lb.wait_log(3, upstream=service.upstream)
        assert Counter(record["reason"] for record in records) == {"client-reset": 1, "upstream-reset": 1, "ok": 1}


@needs_rules
def test_paths_may_carry_smaller_packets_than_lb_sends(cluster: Cluster) -> None:
    """The nodes tell lb so when its first large segments come (ICMP, path MTU discovery); clients have another MTU."""
    node = cluster.nodes[0]
    service = serve(cluster, pods=node.pods, spec={"externalTrafficPolicy": "Local"})
    narrow = {node.host: ("pods", 1_300), node.inside: ("eth0", 1_300), cluster.near: ("eth0", 1_280)}
    try:
        for host, (device, size) in narrow.items():
            host.ip(f"link set dev {device} mtu {size}")
        for address in (LB, LB6):
            visit(cluster.near, address, service.port, 6 * MEGABYTE)
    finally:
        for host, (device, _) in narrow.items():
            host.ip(f"link set dev {device} mtu 1500")


@needs_rules
def test_nodes_and_pods_change_under_load(cluster: Cluster) -> None:
    """Connections of all lengths while the export and the nodes are written anew again and again: not one is lost, and
    each byte comes back.
    """
    chance = random.Random(20_260_601)
    service = serve(cluster)
    over = threading.Event()
    failures: list[BaseException] = []
    done: Counter[str] = Counter()

    def keep_visiting(seed: int) -> None:
        own = random.Random(seed)
        host, address = ((cluster.near, LB), (cluster.far, "10.2.0.1"), (cluster.near, LB6))[seed % 3]
        try:
            while not over.is_set():
                flow = Flow(host, address, service.port)
                for _ in range(own.choice((1, 1, 1, 20))):
                    flow.exchange(payload(own.choice((10, 1_000, 100_000, 700_000))))
                flow.end()
                done[flow.visit.pod] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=keep_visiting, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for number in range(15):
        service.pods = chance.sample(cluster.pods, chance.randint(1, 6))
        cluster.serving_nodes = chance.sample(cluster.nodes, 1 + number % 3)
        cluster.apply()
    service.pods = cluster.pods
    cluster.proxy()
    wait_until(lambda: failures or len(done) == len(cluster.pods), "every pod has had a visitor")
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    records = cluster.lb.wait_log(done.total(), upstream=service.upstream)
    assert Counter(record["reason"] for record in records) == {"ok": done.total()}


def test_node_ports_that_are_servers(cluster: Cluster) -> None:
    """What stands in for kube-proxy where there is no nftables."""
    service = serve(cluster, stand_in=True)
    with contextlib.ExitStack() as stack:
        for node in cluster.nodes:
            stack.enter_context(standing_in(service, node))
        assert pods_of(visits(cluster.near, LB, service.port, 18)) == names_of(cluster.pods)
