"""TLS with `tls.kernel` on. The kernel encrypts what is sent; where it cannot, lb says so, and all is as it was.

Which of both is tested is up to the machine: `modprobe tls` makes it the first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.harness.certificates import Authority
from tests.harness.http_client import HttpClient
from tests.harness.messages import Reader, Response
from tests.harness.native import Native, forward, respond
from tests.harness.ports import free_port
from tests.harness.process import ROOT
from tests.harness.serving import Serving, serving
from tests.harness.tls_client import TlsClient, ask
from tests.harness.tls_server import BULK, TlsServer

HOST = "shop.example.com"
TCP_ULP = 31


def _offered() -> bool:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except OSError as error:
            return error.errno == errno.ENOTCONN
    return True


OFFERED = _offered()


@dataclass
class World:
    """An lb that shall have the kernel encrypt, between TLS clients and a TLS endpoint."""

    serving: Serving
    authority: Authority

    def client(self, **options: object) -> TlsClient:
        return TlsClient(self.serving.address("https"), self.authority.pem, HOST, **options)  # type: ignore[arg-type]

    def http(self, version: str, **options: object) -> HttpClient:
        address = self.serving.address("https")
        return HttpClient(address, version, ca=self.authority.pem, name=HOST, **options)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def taken_over(self, connections: int) -> Iterator[None]:
        """So many connections are the kernel's in the meantime, or none where it has no TLS."""
        before = self.serving.lb.metric("lb_tls_kernel_total")
        yield
        assert self.serving.lb.metric("lb_tls_kernel_total") - before == (connections if OFFERED else 0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("kernel")
    authority = Authority()
    native = Native()
    native.certificate("shop", authority.issue(HOST))
    native.listen_tls("https", free_port(), {"*": "shop"}, policy="old")
    endpoint = TlsServer(directory, authority.issue("api.internal"))
    tls = {"ca": authority.pem, "server_name": "api.internal"}
    native.upstream("api", [endpoint.key], tls=tls)
    native.upstream("once", [endpoint.key], tls=tls, max_requests_per_connection=1)
    local = respond("local", 200, "ok\n", path="/local")
    native.host("*", local, forward("once", "once", path="/once"), forward("api", "api"))
    settings = directory / "settings.yaml"
    settings.write_text("apiVersion: lb/v1\nkind: Config\nsettings: {tls: {kernel: true}}\n")
    with serving(directory, native, None, "--config", str(settings)) as running:
        yield World(running, authority)
    endpoint.shutdown()


def whole(client: ssl.SSLSocket) -> bytes:
    """All that comes until the goodbye; ssl.SSLEOFError when the connection ends without one."""
    pieces = []
    while piece := client.recv(8_192):
        pieces.append(piece)
    return b"".join(pieces)


# ---------------------------------------------------------------------------------------------------------- who does it


def test_it_is_said_who_encrypts(world: World) -> None:
    lb = world.serving.lb
    lines = [json.loads(line) for line in lb.stderr.splitlines() if "tls.kernel" in line]
    shown = subprocess.run(
        [sys.executable, "-m", "lb", "ctl", "--socket", str(lb.admin_socket), "status"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if OFFERED:
        assert not lines
        assert lb.get("/v1/status")["tls_kernel"] == "on"
        assert "kernel TLS  on\n" in shown
        return
    (line,) = lines
    assert line["level"] == "warning"
    assert line["event"] == "`tls.kernel` has no effect: OpenSSL encrypts everything"
    assert line["why"] in shown
    assert "modprobe tls" in line["fix"]


@pytest.mark.parametrize(
    ("version", "ciphers", "able"),
    [
        (ssl.TLSVersion.TLSv1_3, "", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-GCM-SHA256", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-GCM-SHA384", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-CHACHA20-POLY1305", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256", False),
    ],
)
def test_versions_and_ciphers(world: World, version: ssl.TLSVersion, ciphers: str, *, able: bool) -> None:
    """What the kernel does not know stays with OpenSSL."""
    client = world.client(version=version)
    context = client.context()
    if ciphers:
        context.set_ciphers(ciphers)
    with world.taken_over(1 if able else 0), client.connect(context) as connected:
        for _ in range(3):
            assert ask(connected, HOST, "/local").body == b"ok\n"


def test_connections_to_endpoints(world: World) -> None:
    with world.client().connect() as connected, world.taken_over(3):
        for _ in range(3):
            body = os.urandom(1 << 20)
            digest = hashlib.sha256(body).hexdigest().encode()
            assert ask(connected, HOST, "/once", body=body).body == digest


# -------------------------------------------------------------------------------------------------------------- traffic


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_large_bodies_both_ways(world: World, version: str) -> None:
    body = os.urandom(3 << 20)
    client = world.http(version)
    with client.socket:
        for _ in range(2):
            answer = client.ask(HOST, "/", "POST", body=body)
            assert answer.body == hashlib.sha256(body).hexdigest().encode()
            assert client.ask(HOST, "/bulk").body == BULK


def test_many_small_responses(world: World) -> None:
    request = b"GET /local HTTP/1.1\r\nHost: shop.example.com\r\n\r\n"
    with world.client().connect() as connected:
        for _ in range(20):
            connected.sendall(request * 50)
            reader = Reader(lambda: connected.recv(65_536))
            assert [reader.response().body for _ in range(50)] == [b"ok\n"] * 50
    client = world.http("2")
    with client.socket:
        for _ in range(5):
            exchanges = [client.start(HOST, "/local") for _ in range(90)]
            assert {exchange.rest().body for exchange in exchanges} == {b"ok\n"}


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_slow_reader_gets_all(world: World, version: str) -> None:
    client = world.http(version, receive_buffer=4_096)
    with client.socket:
        exchange = client.start(HOST, "/bulk")
        assert exchange.head().status == 200
        assert ask_elsewhere(world).status == 200
        assert exchange.rest().body == BULK


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("buffer", [4_096, 65_536, 1 << 20])
def test_slow_reader_gets_all_and_a_goodbye_before_the_end(world: World, version: ssl.TLSVersion, buffer: int) -> None:
    """The kernel drops what it has encrypted and TCP had no room for, when the socket is closed too early."""
    client = world.client(version=version)
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        plain.settimeout(20)
        plain.connect(client.address)
        context = client.context()
        with context.wrap_socket(plain, server_hostname=HOST, suppress_ragged_eofs=False) as connected:
            connected.sendall(b"GET /bulk HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n")
            assert ask_elsewhere(world).status == 200
            assert whole(connected).endswith(b"\r\n\r\n" + BULK)


def test_goodbye_after_a_short_response(world: World) -> None:
    client = world.client()
    with (
        socket.create_connection(client.address, 20) as plain,
        client.context().wrap_socket(plain, server_hostname=HOST, suppress_ragged_eofs=False) as connected,
    ):
        connected.sendall(b"GET /local HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n")
        assert whole(connected).endswith(b"\r\n\r\nok\n")


def ask_elsewhere(world: World) -> Response:
    with world.client().connect() as connected:
        return ask(connected, HOST)


# ---------------------------------------------------------------------------------------------- what TLS says by itself


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed_and_tickets_renewed(world: World, version: ssl.TLSVersion) -> None:
    client = world.client(version=version)
    context = client.context()
    for number in range(4):
        with world.taken_over(1), client.connect(context) as connected:
            assert connected.session_reused == (number > 0)
            assert ask(connected, HOST, "/local").body == b"ok\n"
            client.session = connected.session


@pytest.mark.parametrize("wanted", [False, True])
def test_new_keys(world: World, *, wanted: bool) -> None:
    """A client's own new keys are no matter. When it wants some of lb, too (RFC 8446 4.6.3), which the kernel cannot be
    given, the connection ends rather than going on with the old ones."""
    address = f"127.0.0.1:{world.serving.address('https')[1]}"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["openssl", "s_client", "-connect", address, "-tls1_3"], bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe
    ) as peer:
        assert peer.stdin is not None
        assert peer.stdout is not None
        assert peer.stderr is not None
        peer.stdin.write(b"K\n" if wanted else b"k\n")
        assert any(line == b"KEYUPDATE\n" for line in iter(peer.stderr.readline, b""))
        with contextlib.suppress(BrokenPipeError):  # lb has ended it already
            peer.stdin.write(b"GET /local HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n")
        answer = peer.stdout.read()
    assert (b"HTTP/1.1 200 OK" in answer) == (not (wanted and OFFERED))
