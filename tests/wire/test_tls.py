"""TLS on both sides of a running lb: certificates by name, resumption, client certificates, endpoints, bad bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.harness.certificates import Authority, Pair
from tests.harness.messages import Reader, Response, Truncated
from tests.harness.native import Native, forward, respond
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.tcp import ends_by_reset
from tests.harness.tls_client import TlsClient, ask
from tests.harness.tls_server import BULK, TlsServer

NAMES = {
    "first-of-two": ["api.internal", "other.internal"],
    "an-address-or-a-name": ["127.0.0.1", "other.internal"],
    "second": ["other.internal", "127.0.0.2", "::1", "API.internal"],
    "neither": ["other.internal", "127.0.0.2"],
    "part-of-a-name": ["internal", "pi.internal", "api.internal.example.com", "127.0.0"],
}
"""Of which the certificate for api.internal and 127.0.0.1 must have one."""
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@dataclass
class World:
    """Everything the tests of this module share."""

    serving: Serving
    authority: Authority
    clients: Authority
    revoked: Pair
    directory: Path
    resuming: TlsServer
    alpn: TlsServer

    def client(self, name: str = "shop.example.com", **options: object) -> TlsClient:
        return TlsClient(self.serving.address("https"), self.authority.pem, name, **options)  # type: ignore[arg-type]

    def subject(self, name: str, version: ssl.TLSVersion | None = None) -> str:
        """Common name of the certificate that lb shows for a name."""
        client = self.client(name, version=version, check_name=False)
        with client.connect() as connected:
            shown = connected.getpeercert()
            assert shown is not None
            return dict(part[0] for part in shown["subject"])["commonName"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("tls")
    authority, clients = Authority(), Authority("Clients")
    intermediate = Authority("Intermediate", authority)
    native = Native()
    native.certificate("shop", intermediate.issue("shop.example.com", subject="shop-ec"))
    native.certificate("shop-rsa", authority.issue("shop.example.com", kind="RSA", subject="shop-rsa"))
    native.certificate("wild", authority.issue("*.wild.example.com", subject="wild"))
    native.certificate("default", authority.issue("default.example.com", subject="default"))
    native.certificate("lb", clients.issue("lb.example.com"))
    revoked = clients.issue("revoked.example.com")
    asked = {
        "required": {"mode": "required", "ca": clients.pem, "crl": clients.revoke(revoked)},
        "optional": {"mode": "optional", "ca": clients.pem, "forward": ["xfcc", "ssl-client"]},
        "unverified": {"mode": "unverified", "forward": ["ssl-client"]},
    }
    hosts: dict[str, object] = {"shop.example.com": ["shop", "shop-rsa"], "*.wild.example.com": "wild", "*": "default"}
    for mode, clients_asked in asked.items():
        hosts[f"{mode}.example.com"] = {"certificates": ["default"], "clients": clients_asked}
    native.listen_tls("https", free_port(), hosts, hsts="max-age=60", http={"head_timeout": "2s"})
    native.listen("http", free_port())
    endpoint = TlsServer(directory, authority.issue("api.internal", "127.0.0.1"))
    resuming = TlsServer(directory, authority.issue("api.internal"))
    strict = TlsServer(directory, authority.issue("api.internal"), clients)
    alpn = TlsServer(directory, authority.issue("api.internal"))
    tls = {"ca": authority.pem, "server_name": "api.internal"}
    native.upstream("alpn", [alpn.key], tls=tls)
    native.carry("carried", free_port(), "alpn")
    native.upstream("api", [endpoint.key], tls=tls)
    native.upstream("resuming", [resuming.key], tls=tls, max_requests_per_connection=1)
    native.upstream("wrong-name", [endpoint.key], tls={**tls, "server_name": "other.internal"})
    native.upstream("wrong-ca", [endpoint.key], tls={"ca": clients.pem, "server_name": "api.internal"})
    native.upstream("any", [endpoint.key], tls={"verify": False})
    native.upstream("by-address", [endpoint.key], tls={"ca": authority.pem, "names": ["127.0.0.1"]})
    for name, names in NAMES.items():
        native.upstream(name, [endpoint.key], tls={"ca": authority.pem, "names": names})
    native.upstream("strict", [strict.key], tls={**tls, "certificate": "lb"})
    native.upstream("strict-without", [strict.key], tls=tls)
    native.upstream("strict-carried", [strict.key], tls=tls)
    native.carry("to-strict", free_port(), "strict-carried")
    routes = [forward(name, name, path=f"/{name}") for name in native.upstreams]
    everything = [*routes, forward("bulk", "api", path="/bulk"), forward("rest", "api")]
    everything.insert(0, respond("local", 200, "ok\n", path="/local"))
    native.host("*", *everything)
    native.host("redirected.example.com", {**respond("redirected", 200, "secure\n"), "https_redirect": 308})
    with serving(directory, native) as running:
        yield World(running, authority, clients, revoked, directory, resuming, alpn)
    for server in (endpoint, strict, resuming, alpn):
        server.shutdown()


# ------------------------------------------------------------------------------------------------------- certificates


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("shop.example.com", "shop-ec"),
        ("SHOP.example.com", "shop-ec"),
        ("a.wild.example.com", "wild"),
        ("a.b.wild.example.com", "default"),
        ("wild.example.com", "default"),
        ("nobody.example.com", "default"),
    ],
)
def test_name_chooses_certificate(world: World, version: ssl.TLSVersion, name: str, subject: str) -> None:
    assert world.subject(name, version) == subject


def test_client_without_elliptic_curves_gets_rsa(world: World) -> None:
    client = world.client(version=ssl.TLSVersion.TLSv1_2)
    context = client.context()
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
    with client.connect(context) as connected:
        assert dict(part[0] for part in connected.getpeercert()["subject"])["commonName"] == "shop-rsa"  # type: ignore[index]
        assert ask(connected, "shop.example.com").status == 200


def test_client_that_says_no_name_gets_the_default(world: World) -> None:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{world.serving.address('https')[1]}", "-noservername"],
        input=b"",
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert b"subject=CN = default" in done.stdout.replace(b"CN=", b"CN = ")


def test_old_versions_and_renegotiation_are_refused(world: World) -> None:
    port = world.serving.address("https")[1]
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}"]
    old = subprocess.run([*command, "-tls1_1"], input=b"", capture_output=True, timeout=30, check=False)
    assert b"Cipher is (NONE)" in old.stdout
    again = subprocess.run([*command, "-tls1_2"], input=b"R\n", capture_output=True, timeout=30, check=False)
    assert b"no renegotiation" in again.stderr or b"handshake failure" in again.stderr


# --------------------------------------------------------------------------------------------------------- resumption


@pytest.mark.parametrize("version", VERSIONS)
def test_sessions_are_resumed_with_the_same_policy_only(world: World, version: ssl.TLSVersion) -> None:
    client = world.client(version=version)
    context = client.context()
    with client.connect(context) as first:
        assert ask(first, "shop.example.com").status == 200
        assert not first.session_reused
        client.session = first.session
    with client.connect(context) as second:
        assert ask(second, "shop.example.com").status == 200
        assert second.session_reused
    # CVE-2025-23419: a session made where no certificate was asked for must not open a name that asks for one.
    client.name = "required.example.com"
    context.check_hostname = False
    with pytest.raises((ssl.SSLError, ConnectionError)), client.connect(context) as crossing:
        ask(crossing, "required.example.com")


@pytest.mark.parametrize("version", VERSIONS)
def test_each_connection_is_resumed_with_the_ticket_of_the_one_before(world: World, version: ssl.TLSVersion) -> None:
    """A TLS 1.3 ticket is for one connection (RFC 8446 C.4), so a resumed one has to bring the next."""
    client = world.client(version=version)
    context = client.context()
    tickets = set()
    for count in range(4):
        with client.connect(context) as connection:
            assert ask(connection, "shop.example.com").status == 200
            assert connection.session_reused == (count > 0)
            assert connection.session is not None
            client.session = connection.session
            tickets.add(connection.session.id if version == ssl.TLSVersion.TLSv1_3 else count)
    assert len(tickets) == 4


# ------------------------------------------------------------------------------------------------ client certificates


def test_required_certificate(world: World) -> None:
    good = world.clients.issue("someone.example.com")
    client = world.client("required.example.com", certificate=good, check_name=False)
    with client.connect(directory=world.directory) as connected:
        assert ask(connected, "required.example.com").status == 200


@pytest.mark.parametrize("which", ["none", "stranger", "revoked", "expired"])
def test_required_certificate_that_is_not_good(world: World, which: str) -> None:
    pairs = {
        "none": None,
        "stranger": Authority("Stranger").issue("someone.example.com"),
        "revoked": world.revoked,
        "expired": world.clients.issue("late.example.com", days=-1),
    }
    client = world.client("required.example.com", certificate=pairs[which], check_name=False)
    with pytest.raises(ssl.SSLError), client.connect(directory=world.directory) as connected:
        ask(connected, "required.example.com")
    said = {
        "none": "peer did not return a certificate",
        "stranger": "unable to get local issuer certificate",
        "revoked": "certificate revoked",
        "expired": "certificate has expired",
    }
    (record, *_) = world.serving.lb.wait_log(
        reason="tls-handshake-failed", server_name="required.example.com", tls_error=said[which]
    )
    assert (record["listener"], record["client"], record["status"]) == ("https", "127.0.0.1", 0)


def test_a_client_that_is_refused_gets_the_alert_whatever_it_sends(world: World) -> None:
    """With TLS 1.3 it may speak right behind its handshake: what nobody reads must not reset the connection."""
    client = world.client("required.example.com", version=ssl.TLSVersion.TLSv1_3, check_name=False)
    context = client.context()
    for _ in range(20):
        with client.connect(context) as connected, pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            ask(connected, "required.example.com", body=b"x" * 50_000)


def test_a_client_that_refuses_us_is_counted_and_in_the_log(world: World) -> None:
    failed = "lb_listener_tls_handshakes_failed_total"
    before = world.serving.lb.metric(failed, listener="https")
    context = ssl.create_default_context(cadata=world.clients.pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        world.client().connect(context)
    records = world.serving.lb.wait_log(reason="tls-handshake-failed", server_name="shop.example.com")
    assert any(record["tls_error"].endswith("alert unknown ca") for record in records)
    assert world.serving.lb.metric(failed, listener="https") == before + 1


def test_endpoint_is_told_of_the_certificate_and_never_by_the_client(world: World) -> None:
    pair = world.clients.issue("me.example.com", subject='me, "you"', uris=("spiffe://shop/web",))
    lies = "ssl-client-verify: SUCCESS\r\nX-Forwarded-Client-Cert: Hash=0\r\nssl_client_verify: SUCCESS\r\n"
    client = world.client("optional.example.com", certificate=pair, check_name=False)
    with client.connect(directory=world.directory) as connected:
        told = ask(connected, "optional.example.com", headers=lies).body.decode()
    assert told.count("ssl-client-verify: SUCCESS\n") == 1
    assert 'ssl-client-subject-dn: CN=me\\, \\"you\\"\n' in told
    assert "ssl-client-issuer-dn: CN=Clients\n" in told
    assert "ssl-client-san: DNS:me.example.com,URI:spiffe://shop/web\n" in told
    assert "ssl-client-cert: -----BEGIN%20CERTIFICATE-----%0A" in told
    (xfcc,) = [line for line in told.splitlines() if line.startswith("x-forwarded-client-cert: ")]
    assert ";DNS=me.example.com;URI=spiffe://shop/web" in xfcc
    der = ssl.PEM_cert_to_DER_cert(pair.chain)
    assert f"Hash={hashlib.sha256(der).hexdigest()};" in xfcc
    anonymous = world.client("optional.example.com", check_name=False)
    with anonymous.connect() as connected:
        told = ask(connected, "optional.example.com", headers=lies).body.decode()
    assert "ssl-client-verify: NONE\n" in told
    assert "SUCCESS" not in told
    assert "x-forwarded-client-cert" not in told


def test_unverified_certificate_is_handed_on(world: World) -> None:
    pair = Authority("Stranger").issue("someone.example.com")
    client = world.client("unverified.example.com", certificate=pair, check_name=False)
    with client.connect(directory=world.directory) as connected:
        told = ask(connected, "unverified.example.com").body.decode()
    assert "ssl-client-verify: FAILED:" in told
    assert "ssl-client-subject-dn: CN=someone.example.com\n" in told


@pytest.mark.parametrize("letter", ["x", '"', "ü", "\n"])
def test_huge_certificate_costs_nobody_anything(world: World, letter: str) -> None:
    """Whoever signs it himself may write into it what he likes; what is logged of it is cut."""
    names = tuple(f"{number}.{'x' * 50}.example.com" for number in range(150))
    pair = Authority("Stranger").issue(*names, subject="huge", street=letter * 15_000)
    client = world.client("unverified.example.com", certificate=pair, check_name=False)
    for _ in range(3):
        with client.connect(directory=world.directory) as connected:
            assert ask(connected, "unverified.example.com", "/local").status == 200
    records = world.serving.lb.wait_log(3, server_name="unverified.example.com", target="/local")
    assert all(0 < len(record["client_subject"]) <= 8_192 for record in records)
    assert all(0 < len(record["client_san"]) <= 8_192 for record in records)


def test_client_certificate_in_the_log(world: World) -> None:
    pair = world.clients.issue("logged.example.com", uris=("spiffe://shop/logged",))
    with world.client("optional.example.com", certificate=pair, check_name=False).connect(
        directory=world.directory
    ) as connected:
        assert ask(connected, "optional.example.com", "/local").status == 200
    (record,) = world.serving.lb.wait_log(client_subject="CN=logged.example.com")
    leaf = x509.load_pem_x509_certificate(pair.chain.encode())
    assert record["client_verify"] == "SUCCESS"
    assert record["client_san"] == "DNS:logged.example.com,URI:spiffe://shop/logged"
    assert int(record["client_serial"], 16) == leaf.serial_number
    assert record["client_fingerprint"] == leaf.fingerprint(hashes.SHA256()).hex()


def test_host_of_another_policy_is_misdirected(world: World) -> None:
    with world.client().connect() as connected:
        assert ask(connected, "required.example.com").status == 421
        assert ask(connected, "other.example.com").status == 200


# ------------------------------------------------------------------------------------------------------------ headers


def test_hsts_forwarded_headers_and_redirect(world: World) -> None:
    with world.client().connect() as connected:
        answer = ask(connected, "shop.example.com")
        assert answer.headers.get("Strict-Transport-Security") == b"max-age=60"
        assert b"x-forwarded-proto: https\n" in answer.body
        assert f"x-forwarded-port: {world.serving.address('https')[1]}\n".encode() in answer.body
        assert ask(connected, "redirected.example.com").body == b"secure\n"
    with world.serving.connect("http") as plain:
        plain.send(b"GET /a?b=c HTTP/1.1\r\nHost: redirected.example.com:81\r\n\r\n")
        answer = plain.response()
    assert answer.status == 308
    port = world.serving.address("https")[1]
    assert answer.headers.get("Location") == f"https://redirected.example.com:{port}/a?b=c".encode()
    assert answer.headers.get("Strict-Transport-Security") is None


# ----------------------------------------------------------------------------------------------------------- endpoints


@pytest.mark.parametrize(
    "name", ["api", "any", "by-address", "strict", "first-of-two", "an-address-or-a-name", "second"]
)
def test_endpoint_over_tls(world: World, name: str) -> None:
    with world.client().connect() as connected:
        for _ in range(3):
            assert ask(connected, "shop.example.com", f"/{name}").status == 200


@pytest.mark.parametrize("name", ["wrong-name", "wrong-ca", "strict-without", "neither", "part-of-a-name"])
def test_endpoint_that_is_not_trusted(world: World, name: str) -> None:
    with world.client().connect() as connected:
        answer = ask(connected, "shop.example.com", f"/{name}")
    assert answer.status == 502
    assert b"upstream-tls-failed" in answer.body


def test_operators_see_why_an_endpoint_is_not_trusted(world: World) -> None:
    with world.client().connect() as connected:
        for name, why in (
            ("wrong-name", "hostname mismatch"),
            ("wrong-ca", "unable to get local issuer certificate"),
            ("strict-without", "certificate required"),
        ):
            assert ask(connected, "shop.example.com", f"/{name}").status == 502
            assert why in world.serving.lb.ctl("upstreams", name).lower()
        assert ask(connected, "shop.example.com", "/api").status == 200
    (endpoint,) = world.serving.lb.get("/v1/upstreams/api")["endpoints"]
    assert endpoint["tls_error"] == ""


def test_an_endpoint_that_closes_without_a_goodbye(world: World) -> None:
    """It has closed, and not reset, whatever TLS wants to be said before (RFC 8446 6.1)."""
    with world.client().connect() as connected:
        answer = ask(connected, "shop.example.com", "/api?close", body=b"once")
        assert answer.status == 502
        assert b"upstream-closed" in answer.body


def test_operators_see_why_an_endpoint_takes_no_bytes(world: World) -> None:
    """TCP that goes on by TLS is reset when the endpoint refuses lb after the handshake, as it does with TLS 1.3."""
    # The reset may be there before connecting is looked at.
    with (
        contextlib.suppress(ConnectionResetError),
        socket.create_connection(world.serving.address("to-strict"), 20) as client,
    ):
        assert ends_by_reset(client)
    assert "certificate required" in world.serving.lb.ctl("upstreams", "strict-carried").lower()


def test_bytes_that_are_only_carried_offer_no_protocol(world: World) -> None:
    """What they are nobody knows (RFC 7301)."""
    with socket.create_connection(world.serving.address("carried"), 20) as client:
        client.sendall(b"GET /?carried HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    with world.client().connect() as connected:
        assert ask(connected, "shop.example.com", "/alpn?asked").status == 200
    assert world.alpn.protocols == [("/?carried", None), ("/alpn?asked", "http/1.1")]


def test_sessions_with_endpoints_are_resumed(world: World) -> None:
    """Each reactor keeps the newest; a client's connection stays on one."""
    with world.client().connect() as connected:
        for _ in range(4):
            assert ask(connected, "shop.example.com", "/resuming").status == 200
    assert world.resuming.resumed[1:] == [True] * 3


def test_large_bodies_both_ways(world: World) -> None:
    body = os.urandom(3 << 20)
    with world.client().connect() as connected:
        assert ask(connected, "shop.example.com", body=body).body == hashlib.sha256(body).hexdigest().encode()
        assert ask(connected, "shop.example.com", "/bulk").body == BULK


def test_slow_reader_gets_all_and_holds_nobody_up(world: World) -> None:
    with world.client().connect() as slow, world.client().connect() as quick:
        slow.sendall(b"GET /bulk HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
        for _ in range(20):
            assert ask(quick, "shop.example.com").status == 200
        received = b""
        while len(received) < len(BULK):
            piece = slow.recv(10_000)
            assert piece
            received += piece
        assert received.endswith(BULK[-1000:])


# ----------------------------------------------------------------------------------------------------------- bad bytes


class Recorder:
    """TLS without a socket, so that a test sees and changes the records."""

    def __init__(self, world: World) -> None:
        client = world.client()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client.context().wrap_bio(self.incoming, self.outgoing, server_hostname=client.name)
        self.socket = socket.create_connection(client.address, 20)

    def flush(self, piece: int = 1 << 20) -> None:
        data = self.outgoing.read()
        for at in range(0, len(data), piece):
            self.socket.sendall(data[at : at + piece])

    def handshake(self, piece: int = 1 << 20) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.flush(piece)
                self.incoming.write(self.socket.recv(65_536))
        self.flush(piece)

    def read(self, size: int = 65_536) -> bytes:
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                data = self.socket.recv(65_536)
                if not data:
                    return b""
                self.incoming.write(data)

    def ask(self, piece: int = 1 << 20) -> Response:
        self.tls.write(b"GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
        self.flush(piece)
        return self.response()

    def response(self) -> Response:
        return Reader(self.read).response()


def test_records_byte_by_byte(world: World) -> None:
    client = Recorder(world)
    with client.socket:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.handshake(piece=1)
        for _ in range(2):
            assert client.ask(piece=1).status == 200


def test_request_in_the_same_packet_as_the_handshakes_end(world: World) -> None:
    client = Recorder(world)
    while True:
        try:
            client.tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            client.flush()
            client.incoming.write(client.socket.recv(65_536))
    with client.socket:
        assert client.ask().status == 200


def test_damaged_record_ends_the_connection(world: World) -> None:
    client = Recorder(world)
    client.handshake()
    client.tls.write(b"GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
    record = bytearray(client.outgoing.read())
    record[-1] ^= 1
    client.socket.sendall(record)
    with client.socket, pytest.raises((Truncated, ConnectionError, ssl.SSLError)):
        client.response()


def test_damaged_record_behind_a_good_one_ends_the_connection(world: World) -> None:
    """In the same packet: nobody waits for a time-out."""
    client = Recorder(world)
    client.handshake()
    client.tls.write(b"GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
    good = client.outgoing.read()
    client.tls.write(b"GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
    bad = bytearray(client.outgoing.read())
    bad[-1] ^= 1
    client.socket.settimeout(5)
    with client.socket:
        client.socket.sendall(good + bad)
        with contextlib.suppress(ConnectionError):
            while client.socket.recv(65_536):
                pass


@pytest.mark.parametrize("size", [1, 5, 6, 100])
def test_garbage_instead_of_a_handshake(world: World, size: int) -> None:
    with socket.create_connection(world.serving.address("https"), 20) as client:
        client.sendall(b"\x16\x03\x01" + b"\xff" * size)
        client.shutdown(socket.SHUT_WR)
        while client.recv(1000):
            pass


def test_plain_http_is_told_so(world: World) -> None:
    with socket.create_connection(world.serving.address("https"), 20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
        received = b""
        while piece := client.recv(1000):
            received += piece
    assert received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"plain HTTP" in received
    world.serving.lb.wait_log(reason="plain-http", status=400, listener="https", client="127.0.0.1")


def test_handshake_that_never_ends_is_ended(world: World) -> None:
    with socket.create_connection(world.serving.address("https"), 20) as client:
        client.sendall(b"\x16\x03\x01\x02\x00")
        assert client.recv(1000) == b""


# -------------------------------------------------------------------------------------------------------------- changes


def test_certificate_changes_under_load_without_a_failed_handshake(world: World) -> None:
    """New handshakes get the new certificate, connections that are there go on, nobody is refused."""
    stop = threading.Event()
    failures: list[str] = []
    seen: set[str] = set()

    def handshake_again_and_again() -> None:
        while not stop.is_set():
            try:
                seen.add(world.subject("swap.wild.example.com"))
            except (OSError, AssertionError) as error:
                failures.append(repr(error))

    with world.client().connect() as kept:
        workers = [threading.Thread(target=handshake_again_and_again) for _ in range(4)]
        for worker in workers:
            worker.start()
        for number in range(5):
            pair = world.authority.issue("*.wild.example.com", subject=f"wild-{number}")
            world.serving.native.certificate("wild", pair)
            world.serving.apply()
            assert world.subject("swap.wild.example.com") == f"wild-{number}"
            assert ask(kept, "shop.example.com").status == 200
        stop.set()
        for worker in workers:
            worker.join()
    assert not failures
    assert len(seen) >= 3


def test_hundred_handshakes_at_once(world: World) -> None:
    client = world.client()
    context = client.context()
    plain = [socket.create_connection(client.address, 20) for _ in range(100)]
    done: list[int] = []

    def one(connected: socket.socket) -> None:
        with context.wrap_socket(connected, server_hostname=client.name) as wrapped:
            done.append(ask(wrapped, "shop.example.com").status)

    workers = [threading.Thread(target=one, args=(connected,)) for connected in plain]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert done == [200] * 100
