"""What headers of version 2 of the PROXY protocol tell besides addresses: kept, passed on, and told by lb itself; with
HAProxy and nginx at the other end.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.harness.certificates import Authority
from tests.harness.client import RawClient, get
from tests.harness.haproxy import HAPROXY, HaProxy
from tests.harness.native import Native
from tests.harness.nginx import Nginx
from tests.harness.ports import free_port
from tests.harness.proxy_header import (
    ALPN,
    AUTHORITY,
    CRC32C,
    NOOP,
    SSL,
    SSL_CIPHER,
    SSL_CN,
    SSL_VERSION,
    UNIQUE_ID,
    Header,
    checked,
    framed,
    receive,
    split_values,
    ssl_value,
    tlv,
    v1,
    v2,
)
from tests.harness.serving import Serving, serving
from tests.harness.tcp import TcpServer, read_exactly

PROXY = "127.0.0.7"
TOLD = ["alpn", "authority", "ssl", "unique-id", "crc32c"]

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed")


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
    proxies = {"proxy_protocol": [PROXY]}
    native.upstream("v1", [server.key], proxy_protocol="v1")
    native.upstream("plain", [server.key], proxy_protocol="v2")
    native.upstream("all", [server.key], proxy_protocol="v2", proxy_values=TOLD)
    for name in native.upstreams:
        native.carry(f"tcp-{name}", free_port(), name, **proxies)
        native.host(f"{name}.test", {"path": "/", "forward": name})
    native.listen("http", free_port(), **proxies)
    native.certificate("site", authority.issue("all.test", "plain.test"))
    clients = {"mode": "optional", "ca": authority.pem}
    hosts = {name: {"certificates": ["site"], "clients": clients} for name in ("all.test", "plain.test")}
    native.listen_tls("https", free_port(), hosts, http=proxies)
    with serving(tmp_path_factory.mktemp("values"), native) as started:
        yield started


@contextmanager
def flow(site: Serving, server: TcpServer, listener: str, header: bytes) -> Iterator[Header]:
    """What the endpoint is told of a flow that begins with a header."""
    with site.connect(listener, source=PROXY) as client:
        client.send(header + b"hello")
        with server.accept() as peer:
            told = receive(peer)
            assert read_exactly(peer, 5) == b"hello"
            yield told


def exchange(client: RawClient | ssl.SSLSocket, server: TcpServer, host: str) -> Header:
    """What the endpoint is told of a request's client."""
    (client.send if isinstance(client, RawClient) else client.sendall)(get(host))
    with server.accept() as peer:
        told = receive(peer)
        while not peer.recv(65_536).endswith(b"\r\n\r\n"):
            pass
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        return told


# ------------------------------------------------------------------------------------------------------ what was kept


def test_values_are_passed_on(site: Serving, server: TcpServer) -> None:
    kept = [(0xE7, b"x" * 300), (ALPN, b"h2"), (AUTHORITY, b"shop.test"), (0xEA, b"\1vpce-1"), (0xE7, b"")]
    rest = tlv(NOOP, b"\0" * 5) + b"".join(tlv(*one) for one in kept)
    with flow(site, server, "tcp-plain", checked(v2(rest=rest))) as told:
        assert told.values == kept
        assert told.client == ("192.0.2.1", 4711)


def test_the_largest_header_is_passed_on(site: Serving, server: TcpServer) -> None:
    value = (0xE0, bytes(range(256)) * 15 + b"x" * (4096 - 16 - 12 - 3 - 3840))
    with flow(site, server, "tcp-v1", v2(rest=tlv(*value))) as told:
        assert told.values == []
    with flow(site, server, "tcp-all", v2(rest=tlv(*value))) as told:
        assert [kind for kind, _ in told.values] == [UNIQUE_ID, CRC32C]  # there is no room for both
    value = (0xE0, value[1][:-200])
    with flow(site, server, "tcp-all", v2(rest=tlv(*value))) as told:
        assert told.values[1] == value


@pytest.mark.parametrize("listener", ["tcp-v1", "tcp-plain", "tcp-all"])
@pytest.mark.parametrize("client", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_first_destination_is_told(
    site: Serving, server: TcpServer, listener: str, client: str, version: str
) -> None:
    """The one that the client has asked for, and not where the proxy has found lb."""
    target = "2001:db8::2" if ":" in client else "192.0.2.2"
    header = v2(client) if version == "v2" else v1(client, kind="TCP6" if ":" in client else "TCP4", local=target)
    with flow(site, server, listener, header) as told:
        assert (told.client, told.target) == ((client, 4711), (target, 443))


def test_http_tells_what_was_said_of_the_connection(site: Serving, server: TcpServer) -> None:
    with site.connect("http", source=PROXY) as client:
        client.send(v2(rest=tlv(AUTHORITY, b"x.test")))
        for _ in range(2):
            told = exchange(client, server, "plain.test")
            assert (told.client, told.target) == (("192.0.2.1", 4711), ("192.0.2.2", 443))
            assert told.values == [(AUTHORITY, b"x.test")]
            assert client.response().body == b"ok"


@pytest.mark.parametrize(
    ("header", "values"),
    [
        (v2(command=0x20, rest=tlv(AUTHORITY, b"x.test")), []),
        (framed(b"", kind=0), []),
        (framed(tlv(AUTHORITY, b"x.test"), kind=0), [(AUTHORITY, b"x.test")]),
        (framed(b"\0" * 216 + tlv(AUTHORITY, b"x.test"), kind=0x31), [(AUTHORITY, b"x.test")]),
    ],
    ids=["local", "unspecified", "unspecified with values", "unix"],
)
def test_without_an_address_the_proxy_is_the_client(
    site: Serving, server: TcpServer, header: bytes, values: list[tuple[int, bytes]]
) -> None:
    with flow(site, server, "tcp-plain", header) as told:
        assert told.client is not None
        assert told.client[0] == PROXY
        assert told.target == site.address("tcp-plain")
        assert told.values == values


def test_of_a_unix_socket_values_are_told_without_addresses(tmp_path: Path, server: TcpServer) -> None:
    native = Native()
    native.upstream("server", [server.key], proxy_protocol="v2", proxy_values=["unique-id"])
    native.carry("local", 0, "server")
    native.listeners["local"]["address"] = f"unix:{tmp_path}/lb.sock"
    with serving(tmp_path, native), socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/lb.sock")
        with server.accept() as peer:
            told = receive(peer)
            assert (told.client, [kind for kind, _ in told.values]) == (None, [UNIQUE_ID])


def test_the_log_says_what_a_header_says(site: Serving, server: TcpServer) -> None:
    inner = tlv(SSL_VERSION, b"TLSv1.3"), tlv(SSL_CN, b"someone"), tlv(SSL_CIPHER, b"TLS_X")
    rest = tlv(AUTHORITY, b"shop.test") + tlv(UNIQUE_ID, b"id-77\n") + ssl_value(*inner)
    expected = {
        "proxy": PROXY,
        "proxy_unique_id": "id-77\n",
        "server_name": "shop.test",
        "tls_version": "TLSv1.3",
        "tls_cipher": "TLS_X",
        "client_subject": "someone",
    }
    with flow(site, server, "tcp-plain", v2("192.0.2.41", rest=rest)):
        pass
    (record,) = site.lb.wait_log(1, listener="tcp-plain", client="192.0.2.41")
    assert {name: record[name] for name in expected} == expected
    with site.connect("http", source=PROXY) as client:
        client.send(v2("192.0.2.42", rest=rest))
        exchange(client, server, "plain.test")
    (record,) = site.lb.wait_log(1, listener="http", client="192.0.2.42")
    assert {name: record[name] for name in expected} == expected


# ----------------------------------------------------------------------------------------------------- what lb tells


def test_a_flow_has_an_id_in_header_and_log(site: Serving, server: TcpServer) -> None:
    with site.connect("tcp-all", source="127.0.0.11"), server.accept() as peer:
        told = receive(peer)
    assert [kind for kind, _ in told.values] == [UNIQUE_ID, CRC32C]
    (record,) = site.lb.wait_log(1, listener="tcp-all", client="127.0.0.11")
    assert record["request_id"] == (told.value(UNIQUE_ID) or b"").decode()
    assert len(record["request_id"]) == 32
    assert (record["proxy"], record["proxy_unique_id"]) == ("", "")


def test_an_id_that_a_proxy_gave_stays(site: Serving, server: TcpServer) -> None:
    with flow(site, server, "tcp-all", v2("192.0.2.12", rest=tlv(UNIQUE_ID, b"given"))) as told:
        assert told.value(UNIQUE_ID) == b"given"
        assert [kind for kind, _ in told.values].count(UNIQUE_ID) == 1
    (record,) = site.lb.wait_log(1, listener="tcp-all", client="192.0.2.12")
    assert (record["proxy_unique_id"], record["request_id"]) == ("given", "")


def secure(client: RawClient, authority: Authority, name: str, tmp_path: Path, holder: str = "") -> ssl.SSLSocket:
    context = ssl.create_default_context(cadata=authority.pem)
    context.set_alpn_protocols(["http/1.1"])
    if holder:
        pair = authority.issue("client.test", subject=holder)
        (tmp_path / "client.pem").write_text(pair.chain + pair.key)
        context.load_cert_chain(tmp_path / "client.pem")
    return context.wrap_socket(client.socket, server_hostname=name)


@pytest.mark.parametrize("holder", ["", "Jürgen"])
def test_the_clients_tls_is_told(
    site: Serving, server: TcpServer, authority: Authority, tmp_path: Path, holder: str
) -> None:
    # What the proxy says of TLS is of another connection than the one that lb has seen: lb's own words win.
    other = tlv(ALPN, b"h2") + tlv(AUTHORITY, b"other.test") + ssl_value(tlv(SSL_VERSION, b"SSLv3")) + tlv(0xE0, b"x")
    with site.connect("https", source=PROXY) as client:
        client.send(v2(rest=other))
        with secure(client, authority, "all.test", tmp_path, holder) as secured:
            told = exchange(secured, server, "all.test")
            cipher, version, _ = secured.cipher() or ("", "", 0)
    assert [kind for kind, _ in told.values] == [ALPN, AUTHORITY, SSL, UNIQUE_ID, 0xE0, CRC32C]
    assert told.value(ALPN) == b"http/1.1"
    assert told.value(AUTHORITY) == b"all.test"
    client_bits, verify = struct.unpack("!BI", (told.value(SSL) or b"")[:5])
    inner = dict(split_values((told.value(SSL) or b"")[5:]))
    assert (client_bits, verify == 0) == ((7, True) if holder else (1, False))
    assert inner[SSL_VERSION] == version.encode()
    assert inner[SSL_CIPHER] == cipher.encode()
    assert inner.get(SSL_CN, b"") == holder.encode()
    records = site.lb.wait_log(1, listener="https", request_id=(told.value(UNIQUE_ID) or b"").decode())
    assert records[0]["server_name"] == "all.test"


def test_the_name_in_tls_that_is_carried_is_told(server: TcpServer, authority: Authority, tmp_path: Path) -> None:
    native = Native()
    native.upstream("server", [server.key], proxy_protocol="v2", proxy_values=["authority"])
    native.listeners["tls"] = {
        "address": "127.0.0.1", "port": free_port(), "protocol": "tls",
        "stream": {"names": {"*.passed.test": {"forward": "server"}}},
    }  # fmt: skip
    with serving(tmp_path, native) as site, site.connect("tls") as client:
        context = ssl.create_default_context(cadata=authority.pem)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            context.wrap_bio(incoming, outgoing, server_hostname="api.passed.test").do_handshake()
        hello = outgoing.read()
        client.send(hello)
        with server.accept() as peer:
            assert receive(peer).values == [(AUTHORITY, b"api.passed.test")]
            assert read_exactly(peer, len(hello)) == hello


def test_without_own_values_those_of_the_proxy_go_on(
    site: Serving, server: TcpServer, authority: Authority, tmp_path: Path
) -> None:
    with site.connect("https", source=PROXY) as client:
        client.send(v2(rest=tlv(AUTHORITY, b"other.test")))
        with secure(client, authority, "plain.test", tmp_path) as secured:
            assert exchange(secured, server, "plain.test").values == [(AUTHORITY, b"other.test")]


# --------------------------------------------------------------------------------------------------- real counterparts


@needs_haproxy
def test_haproxy_sends(site: Serving, server: TcpServer, authority: Authority, tmp_path: Path) -> None:
    port = free_port()
    pair = authority.issue("front.test")
    (tmp_path / "front.pem").write_text(pair.chain + pair.key)
    (tmp_path / "ca.pem").write_text(authority.pem)
    lb_port = site.address("tcp-plain")[1]
    sections = f"""
listen front
    bind 127.0.0.1:{port} ssl crt {tmp_path}/front.pem alpn http/1.1 ca-file {tmp_path}/ca.pem verify optional
    unique-id-format front-%pid
    tcp-request inspect-delay 5s
    source {PROXY}
    server lb 127.0.0.1:{lb_port} send-proxy-v2-ssl-cn proxy-v2-options crc32c,authority,unique-id,cert-key,cert-sig
"""
    with ExitStack() as stack:
        stack.enter_context(HaProxy(tmp_path / "haproxy", sections, port))
        client = stack.enter_context(RawClient(("127.0.0.1", port), source="127.0.0.44"))
        own = client.socket.getsockname()
        secured = stack.enter_context(secure(client, authority, "front.test", tmp_path, "someone"))
        secured.sendall(b"hello")
        with server.accept() as peer:
            told = receive(peer)
            assert read_exactly(peer, 5) == b"hello"
        assert (told.client, told.target) == (own, ("127.0.0.1", port))
        kinds = [kind for kind, _ in told.values]
        assert {AUTHORITY, SSL, UNIQUE_ID} <= set(kinds)
        assert CRC32C not in kinds
        assert told.value(AUTHORITY) == b"front.test"
        inner = dict(split_values((told.value(SSL) or b"")[5:]))
        assert inner[SSL_CN] == b"someone"
    (record,) = site.lb.wait_log(1, listener="tcp-plain", client="127.0.0.44")
    assert (record["server_name"], record["client_subject"], record["proxy"]) == ("front.test", "someone", PROXY)
    assert record["tls_version"].startswith("TLSv1.")


@needs_haproxy
def test_haproxy_receives(tmp_path: Path, authority: Authority) -> None:
    port = free_port()
    sections = f"""
listen behind
    mode http
    bind 127.0.0.1:{port} accept-proxy
    http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst] %[dst_port] \
%[fc_pp_authority] %[fc_pp_unique_id] %[fc_rcvd_proxy]"
"""
    native = Native()
    native.upstream("behind", [f"127.0.0.1:{port}"], proxy_protocol="v2", proxy_values=TOLD)
    native.certificate("site", authority.issue("all.test"))
    native.listen_tls("https", free_port(), {"all.test": ["site"]})
    native.host("all.test", {"path": "/", "forward": "behind"})
    with HaProxy(tmp_path / "haproxy", sections, port), serving(tmp_path, native) as site:
        with site.connect("https", source="127.0.0.45") as client:
            own = client.socket.getsockname()
            with secure(client, authority, "all.test", tmp_path) as secured:
                secured.sendall(get("all.test"))
                answer = secured.recv(10_000).decode()
        (record,) = site.lb.wait_log(1, listener="https", client="127.0.0.45")
        lb_port = site.address("https")[1]
        expected = f"{own[0]} {own[1]} 127.0.0.1 {lb_port} all.test {record['request_id']} 1"
        assert answer.startswith("HTTP/1.1 200")
        assert answer.endswith(expected)


def test_nginx_receives(tmp_path: Path, authority: Authority) -> None:
    port = free_port()
    more = f"""
    server {{
        listen 127.0.0.1:{port} proxy_protocol;
        location / {{ return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr"; }}
    }}"""
    native = Native()
    native.upstream("behind", [f"127.0.0.1:{port}"], proxy_protocol="v2", proxy_values=TOLD)
    native.listen("http", free_port(), proxy_protocol=[PROXY])
    native.host("shop.test", {"path": "/", "forward": "behind"})
    with Nginx(tmp_path / "nginx", more=more), serving(tmp_path, native) as site:
        with site.connect("http", source=PROXY) as client:
            client.send(checked(v2(rest=tlv(AUTHORITY, b"x.test") + tlv(0xE0, b"y" * 900))))
            assert client.ask(get("shop.test")).body == b"192.0.2.1 4711 192.0.2.2"
        with site.connect("http", source="127.0.0.46") as client:
            assert client.ask(get("shop.test")).body.startswith(b"127.0.0.46 ")
