"""TLS by server name: passed through untouched or terminated, on ports of its own and beside hosts of HTTP."""

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

from tests.harness.certificates import Authority, Pair
from tests.harness.client import Address
from tests.harness.client_hello import (
    ALPN,
    DECODE_ERROR,
    NO_APPLICATION_PROTOCOL,
    SERVER_NAME,
    Alert,
    Hello,
    answer,
    record,
    say,
    server_name,
    vector,
)
from tests.harness.native import Native, respond
from tests.harness.payload import MEGABYTE, payload
from tests.harness.ports import free_port
from tests.harness.process import LbProcess
from tests.harness.serving import Serving, serving
from tests.harness.tcp import TcpServer, ends_by_reset, read_all, read_exactly
from tests.harness.tls_client import TlsClient, ask
from tests.harness.tls_updates import UpdatingClient
from tests.harness.waiting import DEADLINE, wait_until

UNRECOGNIZED_NAME = 112


class TlsEndpoint:
    """A TLS server with Python's `ssl`: says its name, sends back what comes to its end, and then its own end."""

    def __init__(self, directory: Path, name: str, pair: Pair, protocols: tuple[str, ...] = ()) -> None:
        self.name = name
        self.seen: list[tuple[str | None, str | None]] = []
        """Of each connection: server name and protocol."""
        self._asked: dict[int, str | None] = {}
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        path = directory / f"{name}.pem"
        path.write_text(pair.chain + pair.key)
        self._context.load_cert_chain(path)
        if protocols:
            self._context.set_alpn_protocols(list(protocols))
        self._context.sni_callback = self._note
        self.server = TcpServer(self._handle)

    @property
    def key(self) -> str:
        return self.server.key

    def _note(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        self._asked[id(connection)] = name

    def _handle(self, plain: socket.socket) -> None:
        # TLS 1.3's half-close: what the client has ended does not end what it gets.
        with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
            self.seen.append((self._asked.pop(id(connection), None), connection.selected_alpn_protocol()))
            connection.sendall(self.name.encode().ljust(16))
            while data := connection.recv(65_536):
                connection.sendall(data)
            with contextlib.suppress(OSError):
                connection.unwrap()


@dataclass
class World:
    """Everything the tests of this module share."""

    serving: Serving
    authority: Authority
    clients: Authority
    directory: Path
    endpoints: dict[str, TlsEndpoint]
    plain: TcpServer

    def connect(
        self, listener: str, name: str | None, *, protocols: tuple[str, ...] = (), **options: object
    ) -> ssl.SSLSocket:
        client = TlsClient(self.serving.address(listener), self.authority.pem, **options)  # type: ignore[arg-type]
        context = client.context(self.directory)
        context.check_hostname = False
        if protocols:
            context.set_alpn_protocols(list(protocols))
        plain = socket.create_connection(client.address, DEADLINE)
        try:
            return context.wrap_socket(plain, server_hostname=name)
        except BaseException:
            plain.close()
            raise

    def who(self, listener: str, name: str | None, protocols: tuple[str, ...] = ()) -> str:
        """Which endpoint answers, which must be whose certificate the client sees."""
        with self.connect(listener, name, protocols=protocols) as client:
            said = read_exactly(client, 16).decode().strip()
            assert subject(client) == said
            return said

    def record(self, **fields: object) -> dict[str, object]:
        return self.serving.lb.wait_log(1, **fields)[-1]


def subject(client: ssl.SSLSocket) -> str:
    shown = client.getpeercert()
    assert shown is not None
    return dict(part[0] for part in shown["subject"])["commonName"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("passthrough")
    authority, clients = Authority(), Authority("Clients")
    names = ("db", "wild", "deep", "other", "acme", "h2")
    endpoints = {
        name: TlsEndpoint(directory, name, authority.issue(f"{name}.internal", subject=name), _PROTOCOLS.get(name, ()))
        for name in names
    }
    plain = TcpServer()
    native = Native()
    for name, endpoint in endpoints.items():
        native.upstream(name, [endpoint.key])
    native.upstream("plain", [plain.key])
    native.upstream("gone", [f"127.0.0.1:{free_port()}"])
    native.upstream("to-tls", [endpoints["db"].key], tls={"server_name": "db.internal", "ca": authority.pem})
    native.upstream("to-other-name", [endpoints["db"].key], tls={"server_name": "x.internal", "ca": authority.pem})
    native.upstream("to-h2", [endpoints["h2"].key], tls={"server_name": "h2.internal", "ca": authority.pem})
    native.certificate("web", authority.issue("web.example.com", "*.term.example.com", subject="web"))
    by_protocol = [{"forward": "acme", "alpn": ["acme-tls/1", "acme-tls/2"]}, {"forward": "h2", "alpn": ["h2"]}]
    rest = {
        "db.example.com": "db",
        "*.example.com": "wild",
        "*.deep.example.com": "deep",
        "by-protocol.example.com": [*by_protocol, "other"],
        "only.example.com": by_protocol,
        "gone.example.com": "gone",
        "plain.example.com": "plain",
        "encrypted.example.com": "to-tls",
    }
    native.carry_tls("tls", free_port(), rest)
    native.carry_tls("all", free_port(), {"db.example.com": "db", "*": "other"})
    native.carry_tls("hasty", free_port(), {"db.example.com": "db"}, handshake_timeout="300ms")
    native.carry_tls("chosen", free_port(), {"*": "db"}, allow=["127.0.0.2"])
    native.carry_tls("proxied", free_port(), {"db.example.com": "db"}, proxy_protocol=["127.0.0.0/8"])
    terminated = {
        "*.term.example.com": {"forward": "plain", "mode": "terminate"},
        "h2.term.example.com": [{"forward": "to-h2", "mode": "terminate", "alpn": ["h2", "x"]}],
        "tls.term.example.com": {"forward": "to-tls", "mode": "terminate"},
        "wrong.term.example.com": {"forward": "to-other-name", "mode": "terminate"},
        "strict.term.example.com": {"forward": "plain", "mode": "terminate"},
        "db.example.com": "db",
    }
    asked = {"certificates": ["web"], "clients": {"mode": "required", "ca": clients.pem}}
    served = {"hosts": {"*": "web", "strict.term.example.com": asked}}
    native.carry_tls("mixed", free_port(), terminated, tls=served)
    native.listeners["everything"] = {
        "address": "127.0.0.1", "port": free_port(), "protocol": "tls", "stream": {"forward": "plain"}, "tls": served,
    }  # fmt: skip
    native.carry("re-encrypts", free_port(), "to-tls")
    native.carry("re-encrypts-nobody", free_port(), "to-other-name")
    native.listen_tls("https", free_port(), {"*": "web"})
    native.listeners["https"]["stream"] = {
        "names": {
            "db.example.com": "db",
            "*.shared.example.com": "wild",
            "deep.example.com": {"forward": "acme", "alpn": ["acme-tls/1"]},
            "same.example.com": "other",
        }
    }
    native.listen_tls("https-rest", free_port(), {"*": "web"})
    native.listeners["https-rest"]["host_set"] = "named"
    native.listeners["https-rest"]["stream"] = {"names": {"*": "other"}}
    native.listen_tls("https-alone", free_port(), {"*": "web"})
    for name in ("web.example.com", "exact.shared.example.com", "*.more.shared.example.com", "same.example.com"):
        native.host(name, respond(name, 200, f"http {name}"))
    native.host("deep.example.com", respond("deep.example.com", 200, "http deep"))
    native.host("*", respond("*", 200, "http *"))
    native.sets["named"] = {"web.example.com": [respond("named", 200, "http named")]}
    try:
        with serving(directory / "lb", native) as started:
            yield World(started, authority, clients, directory, endpoints, plain)
    finally:
        for endpoint in endpoints.values():
            endpoint.server.close()
        plain.close()


_PROTOCOLS = {"acme": ("acme-tls/1",), "h2": ("h2",)}


# --------------------------------------------------------------------------------------------------------- who gets it


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("db.example.com", "db"),
        ("DB.example.COM", "db"),
        ("a.example.com", "wild"),
        ("a.b.example.com", "wild"),
        ("a.deep.example.com", "deep"),
        ("a.b.deep.example.com", "deep"),
        ("deep.example.com", "wild"),
    ],
)
def test_the_most_specific_name_wins(world: World, name: str, expected: str) -> None:
    assert world.who("tls", name) == expected


def test_a_dot_at_the_end_is_none_of_the_name(world: World) -> None:
    """Python leaves it out, so it is said by hand; what the endpoint says of a hello with no key share is a retry."""
    heard = say(
        world.serving.address("tls"), Hello(b"db.example.com.", versions=(0x0304,), ciphers=(0x1301,)).records()
    )
    assert heard is not None
    assert not isinstance(heard, Alert)
    world.record(listener="tls", server_name="db.example.com", route="tls/db.example.com")


@pytest.mark.parametrize(("name", "expected"), [("db.example.com", "db"), ("a.test", "other"), (None, "other")])
def test_a_star_takes_all_others_and_those_without_a_name(world: World, name: str | None, expected: str) -> None:
    assert world.who("all", name) == expected


def test_an_address_is_no_name(world: World) -> None:
    assert world.who("all", "127.0.0.1") == "other"


@pytest.mark.parametrize("name", [b"example.com", b"a.test", b"", b"127.0.0.1"])
def test_a_name_that_nobody_takes_gets_an_alert(world: World, name: bytes) -> None:
    assert say(world.serving.address("tls"), Hello(name).records()) == Alert(2, UNRECOGNIZED_NAME)
    said = "" if name == b"127.0.0.1" else name.decode()
    world.record(listener="tls", reason="unrecognized-name", **({"server_name": said} if said else {}))


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        (("acme-tls/1",), "acme"),
        (("h2", "http/1.1"), "h2"),
        (("h2", "acme-tls/1"), "acme"),
        (("http/1.1",), "other"),
        ((), "other"),
    ],
)
def test_the_first_route_that_takes_what_is_offered_wins(world: World, offered: tuple[str, ...], expected: str) -> None:
    assert world.who("tls", "by-protocol.example.com", offered) == expected


def test_protocols_that_no_route_takes_get_an_alert(world: World) -> None:
    data = Hello(b"only.example.com", protocols=(b"http/1.1",)).records()
    assert say(world.serving.address("tls"), data) == Alert(2, NO_APPLICATION_PROTOCOL)
    world.record(listener="tls", reason="no-application-protocol", server_name="only.example.com", alpn="http/1.1")


def test_what_is_known_of_a_connection_is_logged_and_counted(world: World) -> None:
    lb = world.serving.lb
    before = lb.metric("lb_tls_passthrough_total")
    with world.connect("tls", "db.example.com", protocols=("h2", "x/1")) as client:
        port = client.getsockname()[1]
        read_exactly(client, 16)
    record = world.record(client_port=port)
    expected = {"server_name": "db.example.com", "alpn": "h2,x/1", "route": "tls/db.example.com", "upstream": "db"}
    assert {key: record[key] for key in expected} == expected
    assert record["reason"] in ("ok", "client-reset")  # Python closes on what it has not read
    assert not record["tls_version"]
    assert lb.metric("lb_tls_passthrough_total") == before + 1


def test_sources_that_are_not_let_in(world: World) -> None:
    with socket.create_connection(world.serving.address("chosen"), DEADLINE) as client:
        client.sendall(Hello(b"a.test").records())
        assert ends_by_reset(client)
    world.record(listener="chosen", reason="source-refused", server_name="a.test")


def test_openssl_on_both_sides(world: World, tmp_path: Path) -> None:
    pair = world.authority.issue("db.example.com", subject="openssl")
    (tmp_path / "pair.pem").write_text(pair.chain + pair.key)
    (tmp_path / "ca.pem").write_text(world.authority.pem)
    port = free_port()
    native = Native()
    native.upstream("server", [f"127.0.0.1:{port}"])
    native.carry_tls("tls", free_port(), {"db.example.com": "server"})
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", str(tmp_path / "pair.pem"), "-www"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: can_connect(("127.0.0.1", port)), "s_server listens")
            with serving(tmp_path / "lb", native) as site:
                host, listens = site.address("tls")
                done = subprocess.run(
                    ["openssl", "s_client", "-connect", f"{host}:{listens}", "-servername", "db.example.com",
                     "-CAfile", str(tmp_path / "ca.pem"), "-verify_return_error", "-verify_hostname", "db.example.com",
                     "-quiet"],
                    input=b"GET / HTTP/1.0\r\n\r\n", capture_output=True, timeout=DEADLINE, check=False,
                )  # fmt: skip
                assert b"HTTP/1.0 200 ok" in done.stdout, done.stderr
        finally:
            server.terminate()


def can_connect(address: Address) -> bool:
    try:
        socket.create_connection(address, DEADLINE).close()
    except ConnectionRefusedError:
        return False
    return True


# --------------------------------------------------------------------------------------------------------- the message


def test_a_hello_in_pieces_reaches_the_endpoint_untouched(world: World) -> None:
    """Whole bytes at both ends: by segments of one byte, and by records of seven."""
    data = Hello(b"plain.example.com", protocols=(b"h2",), more={21: bytes(300)}).records(7)
    with socket.create_connection(world.serving.address("tls"), DEADLINE) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            client.send(bytes([byte]))
        client.sendall(b"and what follows")
        with world.plain.accept() as peer:
            assert read_exactly(peer, len(data) + 16) == data + b"and what follows"
            peer.sendall(b"answer")
            assert read_exactly(client, 6) == b"answer"


def test_each_piece_wakes_once(world: World) -> None:
    """Waiting for the rest costs nothing: no event, no turn but those that the pieces make."""
    lb = world.serving.lb
    data = Hello(b"plain.example.com").records()
    with socket.create_connection(world.serving.address("tls"), DEADLINE) as client:
        client.sendall(data[:50])
        wait_until(lambda: lb.metric("lb_connections_active") >= 1, "it is let in")
        before = lb.metric("lb_reactor_events_total")
        for _ in range(20):
            lb.metric("lb_reactor_events_total")
        assert lb.metric("lb_reactor_events_total") - before <= 2
        client.sendall(data[50:])
        with world.plain.accept() as peer:
            assert read_exactly(peer, len(data)) == data


def test_the_largest_hello_and_one_that_is_larger(world: World) -> None:
    empty = len(Hello(b"plain.example.com", more={21: b""}).records())
    data = Hello(b"plain.example.com", more={21: bytes(16_384 - empty)}).records()
    with socket.create_connection(world.serving.address("tls"), DEADLINE) as client:
        client.sendall(data)
        with world.plain.accept() as peer:
            assert read_exactly(peer, 16_384) == data
    larger = Hello(b"plain.example.com", more={21: bytes(16_385 - empty)}).records()
    assert say(world.serving.address("tls"), larger) == Alert(2, DECODE_ERROR)
    world.record(listener="tls", reason="bad-client-hello")


BAD = {
    "garbage": b"\x00\x01\x02\x03" * 10,
    "an SSL 2 hello": b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + bytes(40),
    "another handshake message": record(22, b"\x02\x00\x00\x01\x00"),
    "a name with a blank": Hello(b"", more={SERVER_NAME: server_name(b"db example.com")}).records(),
    "a protocol that is none": Hello(b"db.example.com", more={ALPN: vector(b"\x00", 2)}).records(),
}


@pytest.mark.parametrize("which", list(BAD))
def test_what_is_no_hello_gets_an_alert(world: World, which: str) -> None:
    assert say(world.serving.address("tls"), BAD[which]) == Alert(2, DECODE_ERROR)


def test_plain_http_is_told_so_in_the_log(world: World) -> None:
    with socket.create_connection(world.serving.address("tls"), DEADLINE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: db.example.com\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""  # an end, and no reset
    world.record(listener="tls", reason="plain-http")


def test_a_hello_that_ends_in_the_middle(world: World) -> None:
    with socket.create_connection(world.serving.address("tls"), DEADLINE) as client:
        client.sendall(Hello(b"db.example.com").records()[:40])
        client.shutdown(socket.SHUT_WR)
        assert answer(client) == Alert(2, DECODE_ERROR)


def test_a_client_that_says_nothing_is_only_counted(world: World) -> None:
    lb = world.serving.lb

    def closed() -> float:
        return lb.metric("lb_exchange_end_total", reason="client-closed")

    before = closed()
    with socket.create_connection(world.serving.address("tls"), DEADLINE) as client:
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b""
    wait_until(lambda: closed() > before, "it is counted")


@pytest.mark.parametrize("said", [b"", Hello(b"db.example.com").records()[:60]])
def test_a_hello_that_does_not_come_in_time(world: World, said: bytes) -> None:
    lb = world.serving.lb
    before = lb.metric("lb_exchange_end_total", reason="tls-timeout")
    with socket.create_connection(world.serving.address("hasty"), DEADLINE) as client:
        port = client.getsockname()[1]
        client.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    wait_until(lambda: lb.metric("lb_exchange_end_total", reason="tls-timeout") > before, "it is counted")
    (record,) = lb.wait_log(1, listener="hasty", client="127.0.0.1", client_port=port)
    assert (record["reason"], record["status"]) == ("tls-timeout", 0)


def test_the_time_limit_ends_with_the_hello(world: World) -> None:
    with world.connect("hasty", "db.example.com") as client:
        read_exactly(client, 16)
        threading.Event().wait(0.6)
        client.sendall(b"still here")
        assert read_exactly(client, 10) == b"still here"


@pytest.mark.parametrize("pieces", [1, 2])
def test_behind_a_proxy_header(world: World, pieces: int) -> None:
    head = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"
    context = ssl.create_default_context(cadata=world.authority.pem)
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="db.example.com")
    with socket.create_connection(world.serving.address("proxied"), DEADLINE) as plain:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        if pieces == 1:
            plain.sendall(head + outgoing.read())
        else:
            plain.sendall(head)
            plain.sendall(outgoing.read())
        finish_handshake(client, incoming, outgoing, plain)
    world.record(listener="proxied", client="192.0.2.7", server_name="db.example.com", upstream="db")


def finish_handshake(
    client: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, plain: socket.socket
) -> None:
    while True:
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            plain.sendall(outgoing.read())
            incoming.write(plain.recv(65_536))
        else:
            plain.sendall(outgoing.read())
            return


# --------------------------------------------------------------------------------------------------------- the flow


def test_ends_and_bulk_pass_through(world: World) -> None:
    sent = payload(8 * MEGABYTE)
    with world.connect("tls", "db.example.com") as client:
        read_exactly(client, 16)
        got = b""
        # Pieces that fit into the buffers on the way: OpenSSL lets nobody read and write one connection at once.
        for start in range(0, len(sent), MEGABYTE // 2):
            piece = sent[start : start + MEGABYTE // 2]
            client.sendall(piece)
            got += read_exactly(client, len(piece))
        assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()
        client.unwrap()


def test_an_endpoint_that_is_not_there_resets(world: World) -> None:
    with pytest.raises((ConnectionResetError, ssl.SSLError)):
        world.connect("tls", "gone.example.com")
    world.record(listener="tls", server_name="gone.example.com", reason="connect-failed")


def test_tls_of_the_upstream_is_not_for_what_is_passed_through(world: World) -> None:
    """The same endpoints may serve HTTP that lb encrypts; who is passed through brings its own TLS."""
    assert world.who("tls", "encrypted.example.com") == "db"


def test_flows_go_on_without_their_route(tmp_path: Path, world: World) -> None:
    native = Native()
    native.upstream("db", [world.endpoints["db"].key])
    native.carry_tls("tls", free_port(), {"db.example.com": "db", "other.example.com": "db"})
    native.carry_tls("stays", free_port(), {"db.example.com": "db"})
    with serving(tmp_path / "lb", native) as site:
        own = World(site, world.authority, world.clients, world.directory, world.endpoints, world.plain)
        with own.connect("tls", "db.example.com") as first, own.connect("tls", "db.example.com") as second:
            read_exactly(first, 16)
            read_exactly(second, 16)
            del native.listeners["tls"]["stream"]["names"]["db.example.com"]
            site.apply()
            first.sendall(b"one")
            assert read_exactly(first, 3) == b"one"
            assert say(site.address("tls"), Hello(b"db.example.com").records()) == Alert(2, UNRECOGNIZED_NAME)
            assert own.who("tls", "other.example.com") == "db"
            address = site.address("tls")
            del native.listeners["tls"]
            site.apply()
            second.sendall(b"two")
            assert read_exactly(second, 3) == b"two"
            wait_until(lambda: not can_connect(address), "the listener is closed")


def test_swaps_under_load_cost_no_connection(tmp_path: Path, world: World) -> None:
    """Names move between endpoints and from passthrough to termination while clients come and go."""
    native = Native()
    native.upstream("db", [world.endpoints["db"].key])
    native.upstream("other", [world.endpoints["other"].key])
    native.upstream("again", [world.endpoints["db"].key], tls={"verify": False})
    native.certificate("web", world.authority.issue("db.example.com", subject="web"))
    native.carry_tls("tls", free_port(), {"db.example.com": "db"})
    ways: list[object] = ["db", "other", {"forward": "again", "mode": "terminate"}]
    failures: list[BaseException] = []
    served: set[tuple[str, str]] = set()
    done = threading.Event()
    with serving(tmp_path / "lb", native) as site:
        own = World(site, world.authority, world.clients, world.directory, world.endpoints, world.plain)

        def use() -> None:
            while not done.is_set():
                try:
                    with own.connect("tls", "db.example.com") as client:
                        said = read_exactly(client, 16).decode().strip()
                        served.add((subject(client), said))
                        client.sendall(b"x" * 5_000)
                        assert read_exactly(client, 5_000) == b"x" * 5_000
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(1, 13):
            way = ways[number % 3]
            native.listeners["tls"]["stream"]["names"]["db.example.com"] = way
            native.listeners["tls"].pop("tls", None)
            if not isinstance(way, str):
                native.listeners["tls"]["tls"] = {"hosts": {"*": "web"}}
            site.apply()
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert served <= {("db", "db"), ("other", "other"), ("web", "db")}


# --------------------------------------------------------------------------------------------------------- termination


def test_a_terminated_name_is_carried_in_the_clear(world: World) -> None:
    with world.connect("mixed", "a.term.example.com") as client:
        assert subject(client) == "web"
        assert client.selected_alpn_protocol() is None
        port = client.getsockname()[1]
        client.sendall(b"ask")
        with world.plain.accept() as peer:
            assert peer.recv(10) == b"ask"
            peer.sendall(b"answer")
            assert client.recv(10) == b"answer"
    record = world.record(client_port=port)
    assert record["server_name"] == "a.term.example.com"
    assert record["tls_version"] == "TLSv1.3"
    assert record["route"] == "mixed/*.term.example.com"


def test_names_of_one_listener_are_passed_through_and_terminated(world: World) -> None:
    assert world.who("mixed", "db.example.com") == "db"


def test_a_listener_without_names_terminates_all(world: World) -> None:
    for name in ("a.test", None):
        with world.connect("everything", name) as client, world.plain.accept() as peer:
            assert subject(client) == "web"
            client.sendall(b"ask")
            assert peer.recv(10) == b"ask"


def test_protocols_are_agreed_on_only_where_it_is_said(world: World) -> None:
    offered = ("x", "h2", "y")
    with world.connect("mixed", "a.term.example.com", protocols=offered) as client, world.plain.accept():
        assert client.selected_alpn_protocol() is None
    with world.connect("mixed", "h2.term.example.com", protocols=offered) as client:
        assert client.selected_alpn_protocol() == "h2"
        assert read_exactly(client, 16).strip() == b"h2"
    # The endpoint, which is spoken to over TLS again, hears of it.
    assert world.endpoints["h2"].seen[-1] == ("h2.internal", "h2")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_end_is_a_goodbye_and_a_goodbye_an_end(world: World, version: ssl.TLSVersion) -> None:
    with world.connect("mixed", "a.term.example.com", version=version) as client, world.plain.accept() as peer:
        client.sendall(b"all I have")
        peer.sendall(b"and I")
        peer.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"and I"  # without a goodbye Python would complain of an end that is none
        client.sendall(b", and more")
        assert read_exactly(peer, 20) == b"all I have, and more"
        client.unwrap()
        assert read_all(peer) == b""


def test_a_client_that_ends_first_still_gets_its_answer(world: World) -> None:
    """Python has no half-close of TLS, so its goodbye is made by hand."""
    context = ssl.create_default_context(cadata=world.authority.pem)
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="a.term.example.com")
    with socket.create_connection(world.serving.address("mixed"), DEADLINE) as plain:
        finish_handshake(client, incoming, outgoing, plain)
        client.write(b"question")
        with contextlib.suppress(ssl.SSLWantReadError):
            client.unwrap()
        plain.sendall(outgoing.read())
        with world.plain.accept() as peer:
            assert read_all(peer) == b"question"
            peer.sendall(payload(MEGABYTE))
            peer.shutdown(socket.SHUT_WR)
            # Encrypted, so only its amount is seen: OpenSSL reads nothing behind its own goodbye in Python.
            assert len(read_all(plain)) > MEGABYTE


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bulk_is_decrypted_and_encrypted(world: World, direction: str) -> None:
    sent = payload(8 * MEGABYTE)
    with world.connect("mixed", "a.term.example.com") as client, world.plain.accept() as peer:
        one, other = (client, peer) if direction == "up" else (peer, client)
        sender = threading.Thread(target=one.sendall, args=(sent,))
        sender.start()
        assert read_exactly(other, len(sent)) == sent
        sender.join()


def test_nobody_changes_keys_without_end(world: World) -> None:
    """Each change is work for lb, and no byte that counts against the client's turn: others would wait for its end."""
    with (
        socket.create_connection(world.serving.address("mixed"), DEADLINE) as plain,
        contextlib.closing(UpdatingClient(plain, b"a.term.example.com")) as client,
        world.plain.accept() as peer,
    ):
        plain.sendall(client.updates(200) + client.data(b"still here"))
        assert read_exactly(peer, 10) == b"still here"
        flood = client.updates(9_000)
        with world.serving.lb.stopped():
            plain.sendall(flood)
        assert ends_by_reset(peer)


def test_a_terminated_name_goes_to_tls_endpoints(world: World) -> None:
    with world.connect("mixed", "tls.term.example.com") as client:
        assert subject(client) == "web"
        assert read_exactly(client, 16).strip() == b"db"
    assert world.endpoints["db"].seen[-1] == ("db.internal", None)
    with world.connect("mixed", "wrong.term.example.com") as client:
        assert is_cut(client)
    world.record(listener="mixed", server_name="wrong.term.example.com", reason="upstream-tls-failed")


def is_cut(client: ssl.SSLSocket) -> bool:
    """Whether the connection beneath is reset: Python takes a reset behind session tickets for an end."""
    with socket.socket(fileno=client.detach()) as plain:
        plain.settimeout(DEADLINE)
        try:
            read_all(plain)
        except ConnectionResetError:
            return True
    return False


def test_client_certificates_are_asked_for_as_https_does(world: World) -> None:
    pair = world.clients.issue("somebody")
    with world.connect("mixed", "strict.term.example.com", certificate=pair) as client, world.plain.accept() as peer:
        port = client.getsockname()[1]
        client.sendall(b"ask")
        assert peer.recv(10) == b"ask"
    assert world.record(client_port=port)["client_verify"] == "SUCCESS"
    # With TLS 1.3 the client is done before the server has looked.
    with (
        pytest.raises((ssl.SSLError, ConnectionResetError)),
        world.connect("mixed", "strict.term.example.com") as client,
    ):
        client.recv(1)
    world.record(listener="mixed", reason="tls-handshake-failed", server_name="strict.term.example.com")


def test_what_fails_between_hello_and_handshake(world: World) -> None:
    """The table that the handshake holds is let go, whoever ends it."""
    address = world.serving.address("mixed")
    for _ in range(3):
        with socket.create_connection(address, DEADLINE) as client:
            client.sendall(Hello(b"a.term.example.com", versions=(0x0304,), ciphers=(0x1301,)).records())
            assert client.recv(100)
    assert isinstance(say(address, Hello(b"a.term.example.com", ciphers=(0x0001,)).records()), Alert)
    world.serving.native.upstream("unused", [])
    world.serving.apply()
    wait_until(lambda: world.serving.lb.metric("lb_tables_pinned") == 0, "no table is held")


# ------------------------------------------------------------------------------------------------ TCP to TLS endpoints


def test_tcp_is_encrypted_on_its_way(world: World) -> None:
    with world.serving.connect("re-encrypts") as client:
        assert read_exactly(client.socket, 16).strip() == b"db"
        client.send(b"ask")
        client.finish()
        assert read_all(client.socket) == b"ask"
    assert world.endpoints["db"].seen[-1] == ("db.internal", None)


def test_tcp_goes_to_no_endpoint_of_another_name(world: World) -> None:
    with contextlib.suppress(ConnectionResetError), world.serving.connect("re-encrypts-nobody") as client:
        assert ends_by_reset(client.socket)  # the reset may come before its connect has returned
    world.record(listener="re-encrypts-nobody", reason="upstream-tls-failed")


# -------------------------------------------------------------------------------------------------------- beside HTTP


@pytest.mark.parametrize(
    ("listener", "name", "expected"),
    [
        ("https", "db.example.com", "db"),
        ("https", "a.shared.example.com", "wild"),
        ("https", "same.example.com", "other"),
        ("https", "web.example.com", "http web.example.com"),
        ("https", "exact.shared.example.com", "http exact.shared.example.com"),
        ("https", "a.more.shared.example.com", "http *.more.shared.example.com"),
        ("https", "a.test", "http *"),
        ("https", "deep.example.com", "http deep"),
        ("https-rest", "web.example.com", "http named"),
        ("https-rest", "a.test", "other"),
        ("https-alone", "db.example.com", "http *"),
    ],
)
def test_the_more_specific_of_both_kinds_wins(world: World, listener: str, name: str, expected: str) -> None:
    if not expected.startswith("http"):
        assert world.who(listener, name) == expected
        return
    with world.connect(listener, name) as client:
        assert subject(client) == "web"
        assert ask(client, name).body == expected.encode()


def test_a_protocol_of_its_own_leaves_the_host_to_http(world: World) -> None:
    assert world.who("https", "deep.example.com", ("acme-tls/1",)) == "acme"


def test_http2_beside_names_that_are_passed_through(world: World) -> None:
    (world.directory / "ca.pem").write_text(world.authority.pem)
    host, port = world.serving.address("https")
    done = subprocess.run(
        ["curl", "--silent", "--http2", "--cacert", str(world.directory / "ca.pem"), "--write-out", " %{http_version}",
         "--resolve", f"web.example.com:{port}:{host}", f"https://web.example.com:{port}/"],
        capture_output=True, timeout=DEADLINE, check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip  # its environment is its own: the sanitizers' is for lb alone
    assert done.stdout == b"http web.example.com 2"


def test_clients_without_a_name_are_for_http(world: World) -> None:
    with world.connect("https", None) as client:
        assert ask(client, "web.example.com").body == b"http web.example.com"
    assert world.who("https-rest", None) == "other"


def test_openssl_answers_what_is_no_hello_there(world: World) -> None:
    with socket.create_connection(world.serving.address("https"), DEADLINE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 400 Bad Request")
    assert isinstance(say(world.serving.address("https"), BAD["another handshake message"]), Alert)


# ------------------------------------------------------------------------------------------------------------- Ingress

INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: db, namespace: shop, annotations: {{nginx.ingress.kubernetes.io/ssl-passthrough: "true"}}}}
spec:
  rules:
  - host: db.example.com
    http: {{paths: [{{path: /, pathType: Prefix, backend: {{service: {{name: db, port: {{number: 443}}}}}}}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: db, namespace: shop}}
spec: {{ports: [{{port: 443}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: db-1, namespace: shop, labels: {{kubernetes.io/service-name: db}}}}
addressType: IPv4
ports: [{{port: {port}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
"""


def test_an_ingress_whose_tls_is_passed_through(world: World, tmp_path: Path) -> None:
    """As ingress-nginx's own test has it: the endpoint's certificate for the host, 404 of lb's own for all else."""
    path = tmp_path / "ingress.yaml"
    path.write_text(INGRESS.format(port=world.endpoints["db"].server.port))
    address = ("127.0.0.1", free_port())
    publish = ("--publish", f"443=127.0.0.1:{address[1]}", "--publish", f"80=127.0.0.1:{free_port()}")
    with LbProcess([path], tmp_path / "lb", "--ssl-passthrough", *publish, threads=1) as lb:
        with connect_to(address, world.authority, "db.example.com") as client:
            assert subject(client) == "db"
            assert read_exactly(client, 16).strip() == b"db"
        record = lb.wait_log(1, server_name="db.example.com")[-1]
        assert (record["route"], record["upstream"]) == ("shop/db:0:0:tls", "shop/db:443")
        for name in ("other.example.com", None):
            with connect_to(address, None, name) as client:
                assert ask(client, "other.example.com").status == 404


def connect_to(address: Address, authority: Authority | None, name: str | None) -> ssl.SSLSocket:
    """Without an authority: whatever certificate is shown."""
    context = ssl.create_default_context(cadata=authority.pem if authority is not None else None)
    context.check_hostname = False
    if authority is None:
        context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(address, DEADLINE), server_hostname=name)
