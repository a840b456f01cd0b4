"""A cluster's nodes as hosts of their own, with pods behind them and node ports in front, as kube-proxy makes them.

    near  10.1.0.2 ──┐                ┌── node 1  10.3.0.11 ── pods 10.4.1.2, 10.4.1.3
                     ├── lb ── switch ┼── node 2  10.3.0.12 ── pods 10.4.2.2, 10.4.2.3
    far   10.2.0.2 ──┘                └── node 3  10.3.0.13 ── pods 10.4.3.2, 10.4.3.3

Clients know the way to lb only, pods that to their node: whatever arrives has gone through lb and a node port. The IPv6
addresses are made alike: fd00:3::11 is node 1.

Node ports are nftables rules, as kube-proxy writes them (kubernetes `pkg/proxy/nftables/proxier.go`): with the policy
Cluster a node takes any pod and puts its own address in the client's place, with Local it takes its own pods and leaves
the client's address alone. Pods have their turn, where kube-proxy draws lots, so that no test depends on luck. Without
nftables a server stands in, which knows only the policy Cluster.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.cluster import Object
from tests.harness.cluster import node as node_object
from tests.harness.netns import NFT, Host, bridge, link
from tests.harness.process import LbProcess
from tests.harness.tcp import TcpServer

NAMESPACE = "shop"
PODS_PER_NODE = 2


def both(network: str, host: int) -> list[str]:
    """`3`, 11: 10.3.0.11 and fd00:3::11. `4.1`, 2: 10.4.1.2 and fd00:4:1::2."""
    padded = network if "." in network else f"{network}.0"
    return [f"10.{padded}.{host}", f"fd00:{network.replace('.', ':')}::{host}"]


def with_prefix(addresses: Sequence[str]) -> list[str]:
    return [f"{one}/64" if ":" in one else f"{one}/24" for one in addresses]


LB, LB6 = both("1", 1)
OTHER_LB, OTHER_LB6 = both("1", 9)
"""Addresses of lb, as `near` knows them."""


@dataclass(frozen=True)
class Pod:
    name: str
    node: Node
    addresses: list[str]
    """IPv4, IPv6."""


class Node:
    """A node and the namespace of its pods."""

    def __init__(self, number: int) -> None:
        self.name = f"node-{number}"
        self.number = number
        self.addresses = both("3", 10 + number)
        self.network = f"4.{number}"
        self.host = Host(self.name)
        self.inside = Host(f"pods of {self.name}")
        self.pods = [Pod(f"pod-{number}{letter}", self, both(self.network, 2 + index))
                     for index, letter in zip(range(PODS_PER_NODE), "ab", strict=True)]  # fmt: skip
        self.host.set(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        addresses = [address for pod in self.pods for address in pod.addresses]
        link(self.host, "pods", with_prefix(both(self.network, 1)), self.inside, "eth0", with_prefix(addresses))
        self.inside.ip(*(f"route add default via {address}" for address in both(self.network, 1)))

    def close(self) -> None:
        self.host.close()
        self.inside.close()


@dataclass
class Service:
    """A Service of type LoadBalancer, the pods behind it, and its node port."""

    name: str
    port: int
    node_port: int
    pods: list[Pod]
    protocol: str = "TCP"
    target_port: int = 8_000
    """Where its pods listen."""
    annotations: dict[str, str] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    """What else stands in its spec."""
    known_pods: list[Pod] | None = None
    """What the export says of its pods; `pods` when it is not behind."""
    stand_in: bool = NFT is None
    """Node ports are servers, and no rules."""

    @property
    def local(self) -> bool:
        return self.spec.get("externalTrafficPolicy") == "Local"

    @property
    def upstream(self) -> str:
        return f"{NAMESPACE}/{self.name}:{self.port}" + ("/udp" if self.protocol == "UDP" else "")

    def objects(self) -> list[Object]:
        metadata = {"name": self.name, "namespace": NAMESPACE, "annotations": self.annotations}
        port = {"name": "main", "port": self.port, "protocol": self.protocol,
                "targetPort": self.target_port, "nodePort": self.node_port}  # fmt: skip
        made: list[Object] = [
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata,
             "spec": {"type": "LoadBalancer", "ports": [port], **self.spec}}
        ]  # fmt: skip
        return made + [self._slice(index, family) for index, family in enumerate(("IPv4", "IPv6"))]

    def _slice(self, index: int, family: str) -> Object:
        return {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": f"{self.name}-{family.lower()}", "namespace": NAMESPACE,
                         "labels": {"kubernetes.io/service-name": self.name}},
            "ports": [{"name": "main", "port": self.target_port, "protocol": self.protocol}],
            "endpoints": [{"addresses": [pod.addresses[index]], "nodeName": pod.node.name,
                           "conditions": {"ready": True}, "targetRef": {"kind": "Pod", "name": pod.name}}
                          for pod in (self.pods if self.known_pods is None else self.known_pods)],
        }  # fmt: skip

    def rules(self, node: Node) -> tuple[list[str], list[str]]:
        """What a node does with its node port: rules that send it to pods, and a rule for when there is none."""
        pods = [pod for pod in self.pods if not self.local or pod.node is node]
        which = f"{self.protocol.lower()} dport {self.node_port}"
        if not pods:
            # kube-proxy refuses for a Service without endpoints, and says nothing where others have them.
            refuse = "drop" if self.pods else "reject with icmpx type port-unreachable"
            return [], [f"{which} {refuse}"]
        mark = "" if self.local else "meta mark set 0x4000 "
        to_pods = []
        for index, (version, family) in enumerate((("ipv4", "ip"), ("ipv6", "ip6"))):
            for left in range(len(pods), 0, -1):
                address = pods[left - 1].addresses[index]
                target = f"[{address}]" if ":" in address else address
                choice = f"numgen inc mod {left} 0 " if left > 1 else ""
                to_pods.append(
                    f"meta nfproto {version} {which} {choice}{mark}dnat {family} to {target}:{self.target_port}"
                )
        return to_pods, []


class Cluster:
    """The hosts of the picture, and an lb that serves `services` on the node ports."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        self._stack = contextlib.ExitStack()
        self.directory = directory
        self.services: dict[str, Service] = {}
        self.families = slice(0, 2)
        """Which addresses the Node objects have: of both IPv4 and IPv6."""
        with self._stack:
            self.near = self._stack.enter_context(Host("near"))
            self.far = self._stack.enter_context(Host("far"))
            self.lb_host = self._stack.enter_context(Host("lb"))
            self.nodes: list[Node] = []
            for number in range(1, count + 1):
                self.nodes.append(Node(number))
                self._stack.callback(self.nodes[-1].close)
            self._connect()
            self._closing = self._stack.pop_all()
        self.serving_nodes = list(self.nodes)
        self.lb: LbProcess

    def _connect(self) -> None:
        for network, client in (("1", self.near), ("2", self.far)):
            inside = with_prefix([*both(network, 1), *both(network, 9)])
            link(self.lb_host, client.name, inside, client, "eth0", with_prefix(both(network, 2)))
            client.ip(*(f"route add default via {address}" for address in both(network, 1)))
        bridge(self.lb_host, "switch", with_prefix(both("3", 1)))
        for node in self.nodes:
            link(self.lb_host, node.name, [], node.host, "eth0", with_prefix(node.addresses))
            self.lb_host.ip(f"link set dev {node.name} master switch")
            for other in self.nodes:
                if other is not node:
                    networks = with_prefix(both(other.network, 0))
                    node.host.ip(
                        *(f"route add {to} via {by}" for to, by in zip(networks, other.addresses, strict=True))
                    )

    def restore(self) -> None:
        """All nodes again, with both families, and no Service."""
        self.services.clear()
        self.serving_nodes = list(self.nodes)
        self.families = slice(0, 2)

    @property
    def pods(self) -> list[Pod]:
        """The first pods of all nodes, then the second ones."""
        return [node.pods[index] for index in range(PODS_PER_NODE) for node in self.nodes]

    @property
    def export(self) -> Path:
        return self.directory / "export.json"

    def proxy(self) -> None:
        """Make the node ports what the services say, as kube-proxy does some time after each change."""
        for node in self.nodes:
            to_pods, without = [], []
            for service in self.services.values():
                if not service.stand_in:
                    more, rest = service.rules(node)
                    to_pods += more
                    without += rest
            if NFT is not None:
                node.host.nft(_TABLE.format(to_pods="\n".join(to_pods), without="\n".join(without)))

    def write(self) -> None:
        objects = [node_object(one.name, *one.addresses[self.families]) for one in self.serving_nodes]
        objects += [one for service in self.services.values() for one in service.objects()]
        half = self.directory / ".export.json.new"
        half.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        half.replace(self.export)

    def apply(self) -> int:
        """Everything follows the services: the nodes, the export, and lb; its new generation."""
        self.proxy()
        before = self.lb.generation
        self.write()
        return self.lb.wait_generation_after(before)

    def start(self, *options: str) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.proxy()
        self.write()
        chosen = ("--load-balancers", "--targets", "nodeports", *options)
        with self.lb_host.entered():
            self.lb = LbProcess([self.export], self.directory / "lb", *chosen)
        self._closing.push(self.lb)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing.__exit__(*error)


@contextlib.contextmanager
def cluster_of(directory: Path, serve: Callable[[Pod, str], AbstractContextManager[object]]) -> Iterator[Cluster]:
    """A cluster with what `serve` makes of each pod and each of its addresses. In the end lb has nothing left."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(Cluster(directory))
        for pod in made.pods:
            with pod.node.inside.entered():
                for address in pod.addresses:
                    stack.enter_context(serve(pod, address))
        made.start()
        yield made
        made.services.clear()
        made.apply()
        made.lb.assert_at_rest()


def names_of(pods: list[Pod]) -> set[str]:
    return {pod.name for pod in pods}


_TABLE = """
table inet kube_proxy
delete table inet kube_proxy
table inet kube_proxy {{
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        {to_pods}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        meta mark 0x4000 masquerade
    }}
    chain input {{
        type filter hook input priority filter;
        {without}
    }}
}}
"""


@contextlib.contextmanager
def standing_in(service: Service, node: Node) -> Iterator[None]:
    """A server on a node that passes a Service's node port on to its pods, in turn."""
    lock, turn = threading.Lock(), 0

    def next_pod() -> Pod:
        nonlocal turn
        with lock:
            turn += 1
            return service.pods[turn % len(service.pods)]

    def relay(client: socket.socket) -> None:
        with node.host.entered():
            pod = socket.create_connection((next_pod().addresses[0], service.target_port))
        with pod:
            back = threading.Thread(target=_pass_on, args=(pod, client))
            back.start()
            _pass_on(client, pod)
            back.join()

    with node.host.entered():
        server = TcpServer(relay, address=node.addresses[0], port=service.node_port)
    with server:
        yield


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    """All bytes, and the end behind them."""
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
