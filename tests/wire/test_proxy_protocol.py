"""The PROXY protocol: headers of every kind from those who are believed, and headers that lb sends itself."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness.backend import RawBackend
from tests.harness.certificates import Authority
from tests.harness.client import RawClient, bytewise, get, whole
from tests.harness.native import Native
from tests.harness.ports import free_port
from tests.harness.proxy_header import SIGNATURE, checked, framed, receive, ssl_value, tlv, v1, v2
from tests.harness.serving import Serving, serving
from tests.harness.tcp import TcpServer, echo, ends_by_reset, read_all, read_exactly
from tests.harness.waiting import wait_until

PROXY = "127.0.0.7"
"""The address that is believed."""


GOOD = {
    "v1": (v1(), "192.0.2.1", 4711),
    "v1 IPv6": (v1("2001:db8::1", kind="TCP6", local="2001:db8::2"), "2001:db8::1", 4711),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", PROXY, None),
    "v1 unknown with addresses": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", PROXY, None),
    "v1 longest": (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", PROXY, None),
    "v2": (v2(), "192.0.2.1", 4711),
    "v2 IPv6": (v2("2001:db8::1"), "2001:db8::1", 4711),
    "v2 mapped": (v2("::ffff:192.0.2.9"), "192.0.2.9", 4711),
    "v2 local": (v2(command=0x20), PROXY, None),
    "v2 unspecified": (framed(b"", kind=0), PROXY, None),
    "v2 unix": (framed(b"\0" * 216, kind=0x31), PROXY, None),
    "v2 with values": (v2(rest=tlv(1, b"h2") + tlv(2, b"shop.test") + tlv(4, b"")), "192.0.2.1", 4711),
    "v2 with a checksum": (checked(v2(rest=tlv(1, b"h2"))), "192.0.2.1", 4711),
    "v2 with SSL": (v2(rest=ssl_value(tlv(0x21, b"TLSv1.3"), tlv(0x22, b"me"))), "192.0.2.1", 4711),
    "v2 unspecified with values": (framed(tlv(2, b"shop.test"), kind=0), PROXY, None),
    "v2 unix with values": (framed(b"\0" * 216 + tlv(2, b"shop.test"), kind=0x31), PROXY, None),
    "v2 local with anything": (framed(b"anything", command=0x20, kind=0x99), PROXY, None),
    "v2 largest": (v2(rest=tlv(4, b"\0" * (4096 - 16 - 12 - 3))), "192.0.2.1", 4711),
}
BAD = {
    "nothing like it": b"hello world, this is no header",
    "HTTP": get("shop.test"),
    "v1 without end": b"PROXY TCP4 " + b"1" * 200,
    "v1 lone LF": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
    "v1 other protocol": b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 IPv6 as IPv4": v1("2001:db8::1"),
    "v1 IPv4 as IPv6": v1(kind="TCP6"),
    "v1 name": v1("shop.test"),
    "v1 port too large": v1(port=65_536),
    "v1 port with zero": b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
    "v1 port missing": b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
    "v1 two spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 trailing": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
    "v1 lower case": b"proxy TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "v1 unknown without space": b"PROXY UNKNOWNX\r\n",
    "v1 nothing": b"PROXY \r\n",
    "v2 version": framed(b"\0" * 12, command=0x11),
    "v2 command": framed(b"\0" * 12, command=0x22),
    "v2 datagram": framed(b"\0" * 12, kind=0x12),
    "v2 family": framed(b"\0" * 12, kind=0x41),
    "v2 short": framed(b"\0" * 11),
    "v2 IPv6 short": framed(b"\0" * 35, kind=0x21),
    "v2 torn value": v2(rest=b"\1\0\x09abc"),
    "v2 two bytes behind": v2(rest=b"\1\0"),
    "v2 wrong checksum": v2(rest=tlv(3, b"abcd")),
    "v2 short checksum": v2(rest=tlv(3, b"abc")),
    "v2 two checksums": checked(checked(v2())),
    "v2 half of SSL": v2(rest=tlv(0x20, b"\0" * 4)),
    "v2 torn inside of SSL": v2(rest=ssl_value(b"\x21\0\x09abc")),
    "v2 long id": v2(rest=tlv(5, b"x" * 129)),
    "v2 unspecified, not values": framed(b"\0" * 4 + b"x", kind=0),
    "v2 too large": v2(rest=tlv(4, b"\0" * 4096)),
    "v2 signature": SIGNATURE[:-1] + b"X" + b"\x21\x11\0\x0c" + b"\0" * 12,
}


@pytest.fixture(scope="module")
def server() -> Iterator[TcpServer]:
    with TcpServer() as started:
        yield started


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, server: TcpServer, authority: Authority) -> Iterator[Serving]:
    native = Native()
    with ExitStack() as stack:
        web = stack.enter_context(RawBackend())
        echoing = stack.enter_context(TcpServer(echo))
        native.listen("http", free_port(), proxy_protocol=[f"{PROXY}/32"], head_timeout="300ms")
        native.certificate("shop", authority.issue("shop.test"))
        native.listen_tls("https", free_port(), {"shop.test": ["shop"]}, http={"proxy_protocol": [f"{PROXY}/32"]})
        native.serve("shop.test", web)
        native.upstream("server", [server.key])
        native.upstream("echo", [echoing.key])
        native.carry("tcp", free_port(), "server", proxy_protocol=[PROXY])
        native.carry("chosen", free_port(), "echo", proxy_protocol=[PROXY], allow=["192.0.2.0/24", "127.0.0.1"])
        native.carry("few-each", free_port(), "echo", proxy_protocol=[PROXY], max_connections_per_client=1)
        for version in ("v1", "v2"):
            native.upstream(f"to-{version}", [server.key], proxy_protocol=version)
            native.carry(f"to-{version}", free_port(), f"to-{version}", proxy_protocol=[PROXY])
            native.upstream(f"http-{version}", [server.key], proxy_protocol=version)
            native.host(f"{version}.test", {"path": "/", "forward": f"http-{version}"})
        with serving(tmp_path_factory.mktemp("proxy"), native) as started:
            yield started


def from_proxy(site: Serving, listener: str = "tcp") -> RawClient:
    return site.connect(listener, source=PROXY)


# -------------------------------------------------------------------------------------------------------- from proxies


@pytest.mark.parametrize("pieces", [whole, bytewise], ids=["whole", "bytewise"])
@pytest.mark.parametrize("name", GOOD)
def test_a_header_says_who_the_client_is(site: Serving, server: TcpServer, name: str, pieces: object) -> None:
    header, address, port = GOOD[name]
    with from_proxy(site) as client:
        own = client.socket.getsockname()[1]
        client.send(pieces(header))  # type: ignore[operator]
        client.send(b"hello")
        with server.accept() as peer:
            assert read_exactly(peer, 5) == b"hello"
            client.finish()
            assert read_all(peer) == b""
    (record,) = site.lb.wait_log(1, listener="tcp", client=address, client_port=port or own)[-1:]
    assert (record["bytes_in"], record["reason"]) == (5, "ok")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_header_ends_the_connection(site: Serving, name: str) -> None:
    before = site.lb.metric("lb_exchange_end_total", reason="bad-proxy-header")
    with from_proxy(site) as client:
        port = client.socket.getsockname()[1]
        client.send(BAD[name])
        client.finish()
        assert client.rest() == b""
    wait_until(
        lambda: site.lb.metric("lb_exchange_end_total", reason="bad-proxy-header") == before + 1, "it is counted"
    )
    (record,) = site.lb.wait_log(1, listener="tcp", client=PROXY, client_port=port)
    assert (record["reason"], record["status"], record["duration"]) == ("bad-proxy-header", 0, 0)


def test_who_says_nothing_is_only_counted(site: Serving) -> None:
    """A check of the port, which would come every second."""
    before = site.lb.metric("lb_exchange_end_total", reason="bad-proxy-header")
    with from_proxy(site) as client:
        port = client.socket.getsockname()[1]
        client.finish()
        assert client.rest() == b""
    wait_until(
        lambda: site.lb.metric("lb_exchange_end_total", reason="bad-proxy-header") == before + 1, "it is counted"
    )
    with from_proxy(site) as client:
        other = client.socket.getsockname()[1]
        client.send(b"nonsense")
        client.rest()
    site.lb.wait_log(1, client_port=other)
    assert not [record for record in site.lb.log_records() if record["client_port"] == port]


def test_a_header_that_is_cut_off_is_bad(site: Serving) -> None:
    for header in (v1(), v2()):
        for end in range(1, len(header), 5):
            with from_proxy(site) as client:
                client.send(header[:end])
                client.finish()
                assert client.rest() == b""


def test_random_headers_do_no_harm(site: Serving) -> None:
    draw = random.Random(7)
    headers = [header for header, *_ in GOOD.values()]
    for _ in range(150):
        data = bytearray(draw.choice(headers))
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        with from_proxy(site, "chosen") as client:
            client.send(bytes(data))
            client.finish()
            client.rest()
    site.lb.assert_healthy()


def test_a_header_that_does_not_come_is_not_waited_for(site: Serving) -> None:
    with from_proxy(site, "http") as client:
        port = client.socket.getsockname()[1]
        client.send(b"PROXY TC")
        assert client.rest() == b""
    site.lb.wait_log(1, listener="http", client=PROXY, client_port=port, reason="proxy-header-timeout")
    wait_until(lambda: site.lb.metric("lb_exchange_end_total", reason="proxy-header-timeout") > 0, "it is counted")


def test_http_behind_a_header(site: Serving) -> None:
    with from_proxy(site, "http") as client:
        client.send(v2("192.0.2.77", 99) + get("shop.test"))
        assert client.response().status == 200
        assert client.ask(get("shop.test", "/again")).status == 200
    for record in site.lb.wait_log(2, listener="http", client="192.0.2.77"):
        assert record["client_port"] == 99


def test_tls_behind_a_header(site: Serving, authority: Authority) -> None:
    with from_proxy(site, "https") as client:
        client.send(v1("192.0.2.78"))
        context = ssl.create_default_context(cadata=authority.pem)
        with context.wrap_socket(client.socket, server_hostname="shop.test") as secure:
            secure.sendall(get("shop.test"))
            assert secure.recv(1000).startswith(b"HTTP/1.1 200")
    site.lb.wait_log(1, listener="https", client="192.0.2.78")


def test_a_client_behind_a_unix_socket_is_no_proxy(tmp_path: Path) -> None:
    """Who comes by a Unix socket is trusted; whom a header names instead is not."""
    native = Native()
    address = f"unix:{tmp_path}/lb.sock"
    native.listeners["local"] = {"address": address, "http": {"proxy_protocol": ["::/0"]}}
    with ExitStack() as stack:
        native.serve("shop.test", stack.enter_context(RawBackend()))
        started = stack.enter_context(serving(tmp_path, native))
        for header, client in ((v1("192.0.2.5"), "192.0.2.5"), (b"PROXY UNKNOWN\r\n", "198.51.100.1")):
            with socket.socket(socket.AF_UNIX) as plain:
                plain.connect(f"{tmp_path}/lb.sock")
                plain.sendall(header + get("shop.test", "/", "X-Forwarded-For: 198.51.100.1"))
                assert plain.recv(1000).startswith(b"HTTP/1.1 200")
            started.lb.wait_log(1, listener="local", client=client)


def test_nobody_else_is_believed(site: Serving, server: TcpServer) -> None:
    """What looks like a header is the client's own bytes."""
    with site.connect("tcp", source="127.0.0.8") as client, server.accept() as peer:
        client.send(v1())
        assert read_exactly(peer, len(v1())) == v1()
    with site.connect("http", source="127.0.0.8") as client:
        client.send(v1() + get("shop.test"))
        assert client.response().status == 400
    with site.connect("http", source="127.0.0.8") as client:
        assert client.ask(get("shop.test")).status == 200


def test_the_client_behind_the_proxy_is_who_may_come_in(site: Serving) -> None:
    with from_proxy(site, "chosen") as client:
        client.send(v1("192.0.2.200") + b"hello")
        assert read_exactly(client.socket, 5) == b"hello"
    with from_proxy(site, "chosen") as client:
        client.send(v1("198.51.100.1") + b"hello")
        assert ends_by_reset(client.socket)
    site.lb.wait_log(1, listener="chosen", reason="source-refused", client="198.51.100.1")


def test_limits_count_clients_and_not_proxies(site: Serving) -> None:
    with from_proxy(site, "few-each") as one, from_proxy(site, "few-each") as other:
        for number, client in enumerate((one, other)):
            client.send(v1(f"192.0.2.{number}") + b"hello")
            assert read_exactly(client.socket, 5) == b"hello"
        with from_proxy(site, "few-each") as third:
            third.send(v1("192.0.2.1") + b"hello")
            assert third.rest() == b""
    (record,) = site.lb.wait_log(1, listener="few-each", reason="too-many-from-client")
    assert (record["client"], record["client_port"], record["proxy"]) == ("192.0.2.1", 4711, PROXY)


# -------------------------------------------------------------------------------------------------------- to endpoints


def read_header(peer: socket.socket) -> tuple[str, int, str, int]:
    """(client, its port, address and port that it connected to) of the header a connection begins with."""
    header = receive(peer)
    assert header.client is not None
    assert header.target is not None
    assert header.values == []
    return *header.client, *header.target


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_flow_begins_with_a_header(site: Serving, server: TcpServer, version: str) -> None:
    listener = f"to-{version}"
    with site.connect(listener, source="127.0.0.9") as client, server.accept() as peer:
        own, port = client.socket.getsockname()[1], site.address(listener)[1]
        assert read_header(peer) == ("127.0.0.9", own, "127.0.0.1", port)
        peer.sendall(b"welcome")
        assert read_exactly(client.socket, 7) == b"welcome"
        client.send(b"hello")
        assert read_exactly(peer, 5) == b"hello"


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_what_a_proxy_said_is_passed_on(site: Serving, server: TcpServer, version: str, address: str) -> None:
    with from_proxy(site, f"to-{version}") as client:
        client.send(v2(address) + b"hello")
        with server.accept() as peer:
            client_address, client_port, _, _ = read_header(peer)
            assert (client_address, client_port) == (address, 4711)
            assert read_exactly(peer, 5) == b"hello"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_request_has_a_connection_of_its_own(site: Serving, server: TcpServer, version: str) -> None:
    """Kept, it would tell the endpoint that the next client is this one."""
    for number in (5, 6):
        with site.connect("http", source=f"127.0.0.{number}") as client:
            client.send(get(f"{version}.test"))
            with server.accept() as peer:
                assert read_header(peer)[0] == f"127.0.0.{number}"
                assert peer.recv(4).startswith(b"GET ")
                while not peer.recv(65_536).endswith(b"\r\n\r\n"):
                    pass
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                assert client.response().body == b"ok"
                assert peer.recv(1) == b""


def test_one_lb_tells_another(tmp_path: Path) -> None:
    native = Native()
    behind = free_port()
    with TcpServer(echo) as server:
        native.upstream("server", [server.key])
        native.upstream("behind", [f"127.0.0.1:{behind}"], proxy_protocol="v2")
        native.carry("behind", behind, "server", proxy_protocol=["127.0.0.0/8"])
        native.carry("front", free_port(), "behind")
        with serving(tmp_path, native) as site:
            with site.connect("front", source="127.0.0.33") as client:
                client.send(b"hello")
                assert read_exactly(client.socket, 5) == b"hello"
            for listener in ("front", "behind"):
                site.lb.wait_log(1, listener=listener, client="127.0.0.33")


def test_one_lb_checks_another(tmp_path: Path) -> None:
    native = Native()
    behind = free_port()
    native.listen("behind", behind, proxy_protocol=["127.0.0.0/8"])
    # It serves no host: the answer is 404.
    check = {"type": "http", "statuses": [404], "interval": "100ms"}
    for version in ("v1", "v2", "none"):
        native.upstream(version, [f"127.0.0.1:{behind}"], proxy_protocol=version, health_check=check)
    with serving(tmp_path, native) as site:

        def results() -> dict[str, str]:
            return {
                name: site.lb.get(f"/v1/upstreams/{name}")["endpoints"][0]["health"]["result"]
                for name in native.upstreams
            }

        wait_until(lambda: all(results().values()), "all have been checked")
        assert results() == {"v1": "passed", "v2": "passed", "none": "closed"}
