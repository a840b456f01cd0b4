"""Connections that leave with the client's address, between hosts of their own: what servers see, and what fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.client import RawClient, get
from tests.harness.native import Native
from tests.harness.netns import NFT, Host, link, require_hosts
from tests.harness.ports import free_port
from tests.harness.process import LbProcess
from tests.harness.proxy_header import v2
from tests.harness.tcp import TcpServer, echo, ends_by_reset, read_exactly
from tests.harness.udp import UdpServer, udp_client

CLIENT, CLIENT6, SECOND = "10.71.1.2", "fd71:1::2", "10.71.1.3"
LB, LB6 = "10.71.1.1", "fd71:1::1"
SERVER, SERVER6 = "10.71.2.2", "fd71:2::2"
TABLE = "108"
DIVERT = """
table inet lb {
  chain divert {
    type filter hook prerouting priority mangle; policy accept;
    meta l4proto { tcp, udp } socket transparent 1 meta mark set 0x6c62 accept
  }
}
"""


def say_who(connected: socket.socket) -> None:
    """Tells the client what it is seen as, then sends back what comes."""
    address, port = connected.getpeername()[:2]
    connected.sendall(f"{address} {port}\n".encode())
    echo(connected)


def answer_who(connected: socket.socket) -> None:
    """The same in HTTP."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        more = connected.recv(65_536)
        if not more:
            return
        data += more
    body = connected.getpeername()[0].encode()
    connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    answer_who(connected)


def divert(lb: Host) -> None:
    """What comes for clients from the servers' side is for lb (docs/operations.md); without nftables by its device."""
    rule = f"rule add iif back lookup {TABLE}"
    if NFT is not None:
        with contextlib.suppress(AssertionError):  # a kernel without nft_socket
            lb.nft(DIVERT)
            rule = f"rule add fwmark 0x6c62 lookup {TABLE}"
    lb.ip(rule, f"route add local 0.0.0.0/0 dev lo table {TABLE}")
    lb.run("ip", "-6", *rule.split())
    lb.run("ip", "-6", *f"route add local ::/0 dev lo table {TABLE}".split())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require_hosts()
    with contextlib.ExitStack() as stack:
        yield Site(stack, tmp_path_factory.mktemp("transparency"))


class Site:
    """A client, lb and a server, each a host; the server knows no way to the client but through lb."""

    def __init__(self, stack: contextlib.ExitStack, directory: Path) -> None:
        self.client, self.host, self.server = (stack.enter_context(Host(name)) for name in ("client", "lb", "server"))
        clients = [f"{CLIENT}/24", f"{SECOND}/24", f"{CLIENT6}/64"]
        link(self.host, "front", [f"{LB}/24", f"{LB6}/64"], self.client, "eth0", clients)
        servers = [f"{SERVER}/24", f"{SERVER6}/64"]
        link(self.host, "back", ["10.71.2.1/24", "fd71:2::1/64"], self.server, "eth0", servers)
        self.server.ip("route add default via 10.71.2.1", "route add default via fd71:2::1")
        divert(self.host)
        with self.server.entered():
            keys = [
                stack.enter_context(TcpServer(handle, address=address)).key
                for handle in (say_who, answer_who)
                for address in (SERVER, SERVER6)
            ]
        native = Native()
        for name, endpoints in {"ipv4": keys[:1], "ipv6": keys[1:2], "both": keys[:2], "http": keys[2:]}.items():
            native.upstream(name, endpoints, transparent=True)
            if name != "http":
                native.carry(name, free_port(), name, proxy_protocol=[f"{SECOND}/32"])
                native.listeners[name]["address"] = ""
        for name, endpoint in {"mostly-ipv4": keys[1], "mostly-ipv6": keys[0]}.items():
            others = SERVER if name == "mostly-ipv4" else f"[{SERVER6}]"
            native.upstream(name, [*(f"{others}:{port}" for port in range(1, 9)), endpoint], transparent=True)
            native.carry(name, free_port(), name)
            native.listeners[name]["address"] = ""
        native.listen("http", free_port(), address="")
        native.host("shop.test", {"path": "/", "forward": "http"})
        native.host("few.test", {"path": "/", "forward": "http-mostly-ipv4"})
        native.upstream("http-mostly-ipv4", [*(f"{SERVER}:{port}" for port in range(1, 9)), keys[3]], transparent=True)
        with self.server.entered():
            self.udp = {address: UdpServer(address=address) for address in (SERVER, SERVER6)}
        stack.callback(self.close)
        others = [f"{SERVER}:{port}" for port in range(1, 9)]
        for name, endpoints in {
            "udp-ipv4": [self.udp[SERVER].key],
            "udp-ipv6": [self.udp[SERVER6].key],
            "udp-mostly-ipv4": [*others, self.udp[SERVER6].key],
        }.items():
            native.upstream(name, endpoints, transparent=True)
            native.carry_datagrams(name, free_port(), name, address="", idle_timeout="500ms")
        self.native = native
        native.write(directory / "lb.yaml")
        with self.host.entered():
            self.lb = stack.enter_context(LbProcess([directory / "lb.yaml"], directory / "lb"))

    def close(self) -> None:
        with self.server.entered():
            for one in self.udp.values():
                one.close()

    @contextlib.contextmanager
    def talk(self, listener: str, source: str) -> Iterator[socket.socket]:
        port = self.native.listeners[listener]["port"]
        with contextlib.ExitStack() as stack:
            with self.client.entered():
                made = stack.enter_context(udp_client((LB6 if ":" in source else LB, port), source))
            yield made

    def connect(self, listener: str, source: str) -> RawClient:
        port = self.native.listeners[listener]["port"]
        with self.client.entered():
            return RawClient((LB6 if ":" in source else LB, port), source=source)


def read_line(connected: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += read_exactly(connected, 1)
    return line.decode().strip()


@pytest.mark.parametrize(("listener", "source"), [("ipv4", CLIENT), ("ipv6", CLIENT6)])
def test_a_server_sees_the_client(site: Site, listener: str, source: str) -> None:
    for _ in range(3):
        with site.connect(listener, source) as client:
            assert read_line(client.socket) == f"{source} {client.socket.getsockname()[1]}"
            client.send(b"hello" * 10_000)
            assert read_exactly(client.socket, 50_000) == b"hello" * 10_000


@pytest.mark.parametrize("source", [CLIENT, CLIENT6])
def test_the_endpoint_is_of_the_clients_family(site: Site, source: str) -> None:
    for _ in range(4):
        with site.connect("both", source) as client:
            assert read_line(client.socket).split()[0] == source


@pytest.mark.parametrize(("listener", "source"), [("mostly-ipv4", CLIENT6), ("mostly-ipv6", CLIENT)])
def test_endpoints_of_the_other_family_are_no_attempts(site: Site, listener: str, source: str) -> None:
    """There are more of them than may be tried, and each is as good as not there."""
    for _ in range(4):
        with site.connect(listener, source) as client:
            assert read_line(client.socket).split()[0] == source
    records = site.lb.wait_log(4, listener=listener, client=source)
    assert {(one["reason"], one["attempts"]) for one in records} <= {("ok", 1), ("client-reset", 1)}


def test_endpoints_of_the_other_family_are_no_attempts_of_requests(site: Site) -> None:
    with site.connect("http", CLIENT6) as client:
        for _ in range(4):
            assert client.ask(get("few.test")).body == CLIENT6.encode()
    assert {one["attempts"] for one in site.lb.wait_log(4, host="few.test")} == {1}


@pytest.mark.parametrize(("listener", "source"), [("ipv4", CLIENT6), ("ipv6", CLIENT)])
def test_no_endpoint_of_its_family(site: Site, listener: str, source: str) -> None:
    with contextlib.suppress(ConnectionResetError), site.connect(listener, source) as client:
        assert ends_by_reset(client.socket)
    site.lb.wait_log(1, listener=listener, client=source, reason="no-client-address")


def test_requests_have_connections_of_their_client(site: Site) -> None:
    """Also when one client sends several in a row: its port leads to the endpoint already, or did a moment ago."""
    for source in (CLIENT, CLIENT6, SECOND):
        with site.connect("http", source) as client:
            for _ in range(4):
                assert client.ask(get("shop.test")).body == source.encode()


@pytest.mark.parametrize(
    ("listener", "source", "address"), [("udp-ipv4", CLIENT, SERVER), ("udp-ipv6", CLIENT6, SERVER6)]
)
def test_a_udp_server_sees_the_client(site: Site, listener: str, source: str, address: str) -> None:
    server = site.udp[address]
    with site.talk(listener, source) as client, site.talk(listener, source) as other:
        for number, one in enumerate((client, other, client)):
            one.send(b"%d" % number)
            assert server.receive() == (b"%d" % number, (source, one.getsockname()[1]))
            server.send(b"answer", (source, one.getsockname()[1]))
            assert one.recv(100) == b"answer"


def test_udp_endpoints_of_the_other_family_are_no_attempts(site: Site) -> None:
    server = site.udp[SERVER6]
    for _ in range(4):
        with site.talk("udp-mostly-ipv4", CLIENT6) as client:
            client.send(b"hello")
            assert server.receive() == (b"hello", (CLIENT6, client.getsockname()[1]))
    assert {one["attempts"] for one in site.lb.wait_log(4, listener="udp-mostly-ipv4")} == {1}


def test_a_udp_endpoint_of_the_other_family(site: Site) -> None:
    with site.talk("udp-ipv4", CLIENT6) as client:
        client.send(b"hello")
        site.lb.wait_log(1, listener="udp-ipv4", client=CLIENT6, reason="no-client-address")


def test_the_client_of_a_proxy_is_shown(site: Site) -> None:
    """An address that no device has, neither here nor there."""
    with site.connect("ipv4", SECOND) as client:
        client.send(v2("192.0.2.9", 4711))
        assert read_line(client.socket) == "192.0.2.9 4711"


@pytest.mark.parametrize(
    "shown", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "127.0.0.1", "::", "::1", "ff02::1", "fe80::1"]
)
def test_what_no_connection_can_come_from(site: Site, shown: str) -> None:
    """A socket with the address of nobody or of a group leaves with lb's own, which says something else to a server;
    that loopback leads nowhere is not the endpoint's fault; and an address of one link is none beyond it.
    """
    listener = "ipv6" if ":" in shown else "ipv4"
    for _ in range(3):
        with contextlib.suppress(ConnectionResetError), site.connect(listener, SECOND) as client:
            client.send(v2(shown, 4711))
            assert ends_by_reset(client.socket)
    told = site.lb.wait_log(3, listener=listener, client=shown)
    assert {one["reason"] for one in told} == {"no-client-address"}


def test_all_of_it_was_clean(site: Site) -> None:
    site.lb.assert_healthy()
    site.lb.assert_at_rest()
    assert not [one for one in site.lb.get("/v1/problems")["items"] if one["code"] == "LB6010"]


def test_without_the_privilege_nothing_leaves(tmp_path: Path) -> None:
    setpriv = shutil.which("setpriv")
    through: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if setpriv is None:
            pytest.skip("setpriv (util-linux) is not installed, and root has the privilege")
        through = (setpriv, "--bounding-set", "-net_raw,-net_admin")
    native = Native()
    with TcpServer(echo) as server:
        native.upstream("server", [server.key], transparent=True)
        native.carry("tcp", free_port(), "server")
        native.listen("http", free_port())
        native.host("shop.test", {"path": "/", "forward": "server"})
        native.write(tmp_path / "lb.yaml")
        with LbProcess([tmp_path / "lb.yaml"], tmp_path / "lb", through=through) as lb:
            (problem,) = [one for one in lb.get("/v1/problems")["items"] if one["code"] == "LB6010"]
            assert "CAP_NET_RAW" in problem["fix"]
            with (
                contextlib.suppress(ConnectionResetError),
                RawClient(("127.0.0.1", native.listeners["tcp"]["port"]), source="127.0.0.9") as client,
            ):
                assert ends_by_reset(client.socket)
            with RawClient(("127.0.0.1", native.listeners["http"]["port"])) as client:
                assert client.ask(get("shop.test")).status == 502
            assert len(lb.wait_log(2, reason="transparency-refused")) == 2
            assert server.connections == 0
