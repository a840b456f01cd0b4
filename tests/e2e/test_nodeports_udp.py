"""UDP ports of Services of type LoadBalancer in front of node ports, with hosts that have addresses of their own: names
that are resolved, answers that come from where was asked, and what becomes of sessions when nodes and pods go.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.cluster import KubeProxy
from tests.harness.daemons import dnsmasq, require_programs
from tests.harness.netns import NFT, Host, require_hosts
from tests.harness.nodes import LB, LB6, OTHER_LB, OTHER_LB6, Cluster, Pod, Service, cluster_of, names_of
from tests.harness.udp import UdpServer, hears_nothing
from tests.harness.waiting import wait_until

pytestmark = pytest.mark.skipif(NFT is None, reason="nftables is not installed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_hosts()

    def serve_pod(pod: Pod, address: str) -> UdpServer:
        return UdpServer(signed_by(pod), address=address, port=8_000)

    with cluster_of(tmp_path_factory.mktemp("cluster"), serve_pod) as made:
        yield made


@pytest.fixture(autouse=True)
def whole(cluster: Cluster) -> Iterator[None]:
    """Each test begins with all nodes, and no Service that it names."""
    yield
    cluster.lb.assert_healthy()
    cluster.restore()


def signed_by(pod: Pod) -> Any:
    return lambda data: (f"{pod.name} ".encode() + data,)


_numbers = itertools.count()


def serve(cluster: Cluster, pods: list[Pod] | None = None, **fields: Any) -> Service:
    """A Service that lb serves from now on, with a name and ports of its own."""
    number = next(_numbers)
    port = fields.pop("port", 6_000 + number)
    fields.setdefault("protocol", "UDP")
    made = Service(f"names-{number}", port, 30_500 + number, cluster.pods if pods is None else pods, **fields)
    cluster.services[made.name] = made
    cluster.apply()
    return made


class Client:
    """A socket that hears only whom it asks."""

    def __init__(self, host: Host, address: str, port: int, source: str = "") -> None:
        with host.entered():
            self.socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        if source:
            self.socket.bind((source, 0))
        self.socket.connect((address, port))
        self.asked = 0

    def ask(self, *, patience: float = 5) -> str:
        """The pod that has answered the next question; empty when nobody has, or the host says that nobody is there."""
        self.asked += 1
        question = b"question %d" % self.asked
        self.socket.settimeout(patience)
        try:
            self.socket.send(question)
            while True:
                pod, _, text = self.socket.recv(2_000).partition(b" ")
                if text == question:
                    return pod.decode()
        except (TimeoutError, ConnectionRefusedError):
            return ""

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def clients(count: int, host: Host, address: str, port: int) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Client(host, address, port)) for _ in range(count)]


def node_of(pod: str) -> str:
    """`pod-1a` is on `node-1`."""
    return f"node-{pod[4:-1]}"


# --------------------------------------------------------------------------------------------------- addresses, policy


def test_answers_come_from_the_address_that_was_asked(cluster: Cluster) -> None:
    """lb listens on all of its addresses with one socket."""
    service = serve(cluster)
    for address in (LB, OTHER_LB, LB6, OTHER_LB6):
        with Client(cluster.near, address, service.port) as client:
            assert client.ask() in names_of(cluster.pods)
    with Client(cluster.far, "10.2.0.9", service.port) as client:
        assert client.ask() in names_of(cluster.pods)


def test_sessions_go_to_all_nodes_and_stay(cluster: Cluster) -> None:
    service = serve(cluster)
    with clients(24, cluster.near, LB, service.port) as all_of_them:
        first = [client.ask() for client in all_of_them]
        assert set(first) == names_of(cluster.pods)
        for _ in range(3):
            assert [client.ask() for client in all_of_them] == first


def test_source_ranges_and_local_policy(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    spec = {"loadBalancerSourceRanges": ["10.1.0.0/16"], "externalTrafficPolicy": "Local"}
    service = serve(cluster, node.pods, spec=spec)
    with clients(8, cluster.near, LB, service.port) as all_of_them:
        assert {client.ask() for client in all_of_them} == names_of(node.pods)
    with Client(cluster.far, "10.2.0.1", service.port) as stranger:
        stranger.socket.send(b"anybody?")
        assert hears_nothing(stranger.socket)
    listener = f"shop/{service.name}:{service.port}/udp"
    refused = cluster.lb.metric("lb_listener_datagrams_dropped_total", listener=listener, reason="source-refused")
    assert refused == 1


# ----------------------------------------------------------------------------------------------------------------- DNS


def test_names_are_resolved_by_dig(cluster: Cluster, tmp_path: Path) -> None:
    """One address and port for UDP and TCP; an answer that is too long for UDP is asked for again over TCP."""
    require_programs("dnsmasq", "dig")
    records = [f"--address=/host-{number}.lb.test/192.0.2.{number}" for number in range(1, 60)]
    records += [f"--txt-record=long.lb.test,{letter * 250}" for letter in "abcdefgh"]
    with contextlib.ExitStack() as stack:
        pods = [node.pods[0] for node in cluster.nodes]
        for pod in pods:
            own = f"--txt-record=who.lb.test,{pod.name}"
            with pod.node.inside.entered():
                stack.enter_context(dnsmasq(*records, own, address=pod.addresses[0], port=53))
        for protocol in ("UDP", "TCP"):
            annotations = {"lb/udp-responses": "1"} if protocol == "UDP" else {}
            serve(cluster, pods, port=53, protocol=protocol, target_port=53, annotations=annotations)
        asked = tmp_path / "names"
        asked.write_text("".join(f"host-{number}.lb.test\n" for number in range(1, 60)))
        expected = [f"192.0.2.{number}" for number in range(1, 60)]
        for address in (LB, LB6):
            for how in ("+notcp", "+tcp"):
                told = cluster.near.run("dig", f"@{address}", how, "+short", "+tries=3", "+time=2", "-f", str(asked))
                assert told.split() == expected, (address, how)
        who = Counter(cluster.near.run("dig", f"@{LB}", "+short", "who.lb.test", "TXT").strip() for _ in range(9))
        assert set(who) == {f'"{pod.name}"' for pod in pods}, "each question is a session of its own"
        long = cluster.near.run("dig", f"@{LB}", "+short", "+bufsize=512", "long.lb.test", "TXT").splitlines()
        assert sorted(long) == [f'"{letter * 250}"' for letter in "abcdefgh"]
        wait_until(lambda: cluster.lb.metric("lb_connections_active") == 0, "an answer ends its session")


# --------------------------------------------------------------------------------------------------- changes and losses


def test_sessions_stay_when_other_nodes_go(cluster: Cluster) -> None:
    """As those of QUIC must: a datagram that came to another pod would be nobody's."""
    service = serve(cluster, annotations={"lb/balance": "maglev", "lb/hash-key": "source-port"})
    first, *others = cluster.nodes
    with clients(30, cluster.near, LB, service.port) as all_of_them:
        before = {client: client.ask() for client in all_of_them}
        staying = {client for client, pod in before.items() if pod}
        assert len(staying) == 30
        for nodes in (others, [first, *others], [first, others[0]], cluster.nodes):
            cluster.serving_nodes = nodes
            cluster.apply()
            assert {client: client.ask() for client in all_of_them} == before, "sessions have their time to drain"


def test_a_client_that_was_silent_finds_its_node_again(cluster: Cluster) -> None:
    """By its hash, when its session has ended; and only those of a node that has gone move."""
    service = serve(
        cluster, [node.pods[0] for node in cluster.nodes], spec={"externalTrafficPolicy": "Local"},
        annotations={"lb/balance": "maglev", "lb/hash-key": "source-port", "lb/udp-responses": "1"},
    )  # fmt: skip
    with clients(40, cluster.near, LB, service.port) as all_of_them:
        before = [client.ask() for client in all_of_them]
        assert [client.ask() for client in all_of_them] == before
        assert set(before) == names_of(service.pods)
        gone = service.pods[0]
        service.pods = service.pods[1:]
        cluster.apply()
        after = [client.ask() for client in all_of_them]
        assert gone.name not in after
        kept = [(old, new) for old, new in zip(before, after, strict=True) if old != gone.name]
        moved = sum(old != new for old, new in kept)
        assert moved <= len(kept) // 4, "Maglev moves few of those that need not"


def test_a_node_that_refuses_costs_no_datagram(cluster: Cluster) -> None:
    """Its ICMP message comes back for the first datagram of a session, which is sent to another node then."""
    first, *others = cluster.nodes
    service = serve(cluster, [pod for node in others for pod in node.pods])
    first.host.nft(
        "table inet lost {\nchain first {\ntype filter hook prerouting priority -1;\n"
        f"udp dport {service.node_port} reject with icmpx type port-unreachable\n}}\n}}"
    )
    try:
        with clients(12, cluster.near, LB, service.port) as all_of_them:
            assert {client.ask() for client in all_of_them} <= names_of(service.pods)
    finally:
        first.host.nft("delete table inet lost")


def test_sessions_leave_a_node_that_says_it_has_no_pods(cluster: Cluster) -> None:
    """Its node port drops what comes: nobody tells a client of UDP, which goes on asking."""
    first, second, _ = cluster.nodes
    service = serve(
        cluster, [first.pods[0], second.pods[0]],
        annotations={"lb/health-check-interval": "100ms", "lb/health-check-fast-interval": "100ms"},
        spec={"externalTrafficPolicy": "Local", "healthCheckNodePort": 31_500},
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        with first.host.entered():
            first_says = stack.enter_context(KubeProxy(first.addresses[0], 31_500))
        with second.host.entered():
            stack.enter_context(KubeProxy(second.addresses[0], 31_500))
        for node in (first, second):  # who has not been asked yet gets nothing while the other one is healthy
            key = f"{node.addresses[0]}:{service.node_port}"
            wait_until(
                lambda key=key: cluster.lb.metric("lb_endpoint_healthy", upstream=service.upstream, endpoint=key) == 1,
                f"{node.name} has been asked",
            )
        all_of_them = stack.enter_context(clients(12, cluster.near, LB, service.port))
        before = [client.ask() for client in all_of_them]
        assert {node_of(pod) for pod in before} == {first.name, second.name}
        service.known_pods, service.pods = service.pods, [second.pods[0]]
        first_says.endpoints = 0
        cluster.proxy()
        for client, pod in zip(all_of_them, before, strict=True):
            wait_until(lambda who=client: who.ask(patience=0.2) == second.pods[0].name, f"{pod} is left")


# ----------------------------------------------------------------------------------------------------------- exhaustion


def test_many_sources_are_bounded_and_spare_who_is_known(cluster: Cluster) -> None:
    """A client's network sends from thousands of addresses, most of which are nobody's and never answer."""
    service = serve(cluster)
    cluster.near.ip("route add local 10.9.0.0/16 dev lo")
    cluster.lb_host.ip("route add 10.9.0.0/16 via 10.1.0.2")
    listener = f"shop/{service.name}:{service.port}/udp"
    with Client(cluster.near, LB, service.port) as known:
        pod = known.ask()
        with cluster.near.entered():
            for number in range(20_000):
                source = f"10.9.{number >> 8 & 255}.{number & 255}"
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                    one.bind((source, 0))
                    one.sendto(b"flood", (LB, service.port))
                if number % 4_000 == 0:
                    assert known.ask() == pod
        assert known.ask() == pod
        active = cluster.lb.metric("lb_listener_connections_active", listener=listener)
        assert active <= 16_384
        assert cluster.lb.metric("lb_listener_sessions_evicted_total", listener=listener) + active >= 10_000
