"""What lb agrees to in TLS, and how it refuses the rest: whole sets of ciphers and groups, message by message.

In the way of tlsfuzzer and sslyze: crafted first messages, and what the server's answer says.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lb._fastpath.credentials import known_groups
from lb.model.tls import GROUPS as NAMES_OF_GROUPS
from tests.harness.certificates import Authority, Pair
from tests.harness.client import Address
from tests.harness.client_hello import (
    ALPN,
    DECODE_ERROR,
    EARLY_DATA,
    FALLBACK_SCSV,
    GROUPS,
    HANDSHAKE_FAILURE,
    HEARTBEAT,
    INAPPROPRIATE_FALLBACK,
    NO_APPLICATION_PROTOCOL,
    PROTOCOL_VERSION,
    RECORD_OVERFLOW,
    RENEGOTIATION,
    RENEGOTIATION_SCSV,
    SERVER_NAME,
    SSL_3_0,
    SUPPORTED_GROUPS,
    TLS_1_0,
    TLS_1_1,
    TLS_1_2,
    TLS_1_3,
    UNEXPECTED_MESSAGE,
    Alert,
    Hello,
    ServerHello,
    answer,
    record,
    say,
    server_name,
    vector,
)
from tests.harness.native import Native, forward, respond
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.tls_client import TlsClient, ask
from tests.harness.waiting import SANITIZED, wait_until

POLICIES = ("modern", "intermediate", "old")
SUITES_1_3 = [0x1301, 0x1302, 0x1303]
AEAD = [0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8]
"""ECDHE with ECDSA and RSA: AES-128-GCM, AES-256-GCM, ChaCha20."""
OLD = [0xC023, 0xC027, 0xC009, 0xC013, 0xC024, 0xC028, 0xC00A, 0xC014, 0x9C, 0x9D, 0x3C, 0x3D, 0x2F, 0x35]
EVERYTHING = [*range(0x0001, 0x00C7), *range(0xC001, 0xC0B4), *range(0xCCA8, 0xCCAF), *range(0xD001, 0xD006)]
"""Every suite of TLS 1.2 and older that was ever registered."""


@dataclass
class World:
    serving: Serving
    authority: Authority
    clients: Authority
    directory: Path

    def address(self, policy: str = "intermediate") -> Address:
        return self.serving.address(policy)

    def say(self, hello: Hello, policy: str = "intermediate") -> ServerHello | Alert | None:
        return say(self.address(policy), hello.records())

    def hello(self, hello: Hello, policy: str = "intermediate") -> ServerHello:
        said = self.say(hello, policy)
        assert isinstance(said, ServerHello), said
        return said

    def count(self, reason: str) -> float:
        return self.serving.lb.metric("lb_exchange_end_total", reason=reason)

    def client(self, name: str = "shop.example.com", policy: str = "intermediate", **options: object) -> TlsClient:
        return TlsClient(self.address(policy), self.authority.pem, name, check_name=False, **options)  # type: ignore[arg-type]


class Closing(threading.Thread):
    """An endpoint that answers over TLS without a length, and closes with or without a goodbye."""

    def __init__(self, directory: Path, pair: Pair) -> None:
        super().__init__(daemon=True)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (directory / "closing.pem").write_text(pair.chain + pair.key)
        self._context.load_cert_chain(directory / "closing.pem")
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.key = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        while True:
            plain, _ = self._listening.accept()
            with plain, self._context.wrap_socket(plain, server_side=True) as client:
                path = client.recv(65_536).split()[1]
                client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")
                if path == b"/closing/whole":
                    client.unwrap()
                client.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("conformance")
    authority, clients = Authority(), Authority("Clients")
    native = Native()
    native.certificate("ec", authority.issue("shop.example.com", subject="ec"))
    native.certificate("rsa", authority.issue("shop.example.com", kind="RSA", subject="rsa"))
    native.certificate("default", authority.issue("default.example.com", subject="default"))
    hosts: dict[str, object] = {"shop.example.com": ["ec", "rsa"], "*": "default"}
    for depth in (0, 1):
        asked = {"mode": "required", "ca": clients.pem, "depth": depth}
        hosts[f"depth-{depth}.example.com"] = {"certificates": ["default"], "clients": asked}
    for policy in POLICIES:
        native.listen_tls(policy, free_port(), hosts, policy=policy, http={"head_timeout": "2s"})
    closing = Closing(directory, authority.issue("closing.internal"))
    native.upstream("closing", [closing.key], tls={"ca": authority.pem, "server_name": "closing.internal"})
    native.host("*", forward("closing", "closing", path="/closing"), respond("rest", 200, "ok\n"))
    with serving(directory, native) as running:
        yield World(running, authority, clients, directory)


# ---------------------------------------------------------------------------------------- versions, ciphers, groups


@pytest.mark.parametrize("policy", POLICIES)
def test_ciphers_of_tls_1_2_are_exactly_those_of_the_policy(world: World, policy: str) -> None:
    expected = {"modern": [], "intermediate": AEAD, "old": [*AEAD, *OLD]}[policy]
    agreed: list[int] = []
    while True:
        said = world.say(Hello(ciphers=[one for one in EVERYTHING if one not in agreed]), policy)
        if not isinstance(said, ServerHello):
            break
        assert said.version == TLS_1_2
        agreed.append(said.cipher)
    assert said == Alert(2, PROTOCOL_VERSION if policy == "modern" else HANDSHAKE_FAILURE)
    assert agreed == expected, "and in the server's order"


@pytest.mark.parametrize("policy", POLICIES)
def test_suites_of_tls_1_3(world: World, policy: str) -> None:
    for suite in SUITES_1_3:
        assert world.hello(Hello(versions=(TLS_1_3,), ciphers=[suite], groups=[29]), policy).cipher == suite
    said = world.say(Hello(versions=(TLS_1_3,), ciphers=[0x1304, 0x1305]), policy)
    assert said == Alert(2, HANDSHAKE_FAILURE), "CCM was not asked for"


@pytest.mark.parametrize("policy", POLICIES)
def test_groups_are_asked_for_in_the_order_of_the_policy(world: World, policy: str) -> None:
    agreed: list[int] = []
    while True:
        left = [group for group in GROUPS if group not in agreed]
        said = world.say(Hello(versions=(TLS_1_3,), ciphers=SUITES_1_3, groups=left), policy)
        if not isinstance(said, ServerHello):
            break
        assert said.is_retry
        agreed.append(said.group)
    numbers = {"X25519MLKEM768": 0x11EC, "X25519": 29, "P-256": 23, "P-384": 24}
    assert agreed == [numbers[name] for name in known_groups(NAMES_OF_GROUPS).split(":")]
    assert said == Alert(2, HANDSHAKE_FAILURE)


@pytest.mark.parametrize("version", [SSL_3_0, TLS_1_0, TLS_1_1])
@pytest.mark.parametrize("policy", POLICIES)
def test_old_versions_are_refused(world: World, policy: str, version: int) -> None:
    # Of SSL 3.0 OpenSSL says that nothing is common.
    refusals = [Alert(2, PROTOCOL_VERSION), *([Alert(2, HANDSHAKE_FAILURE)] if version == SSL_3_0 else [])]
    assert world.say(Hello(legacy=version, ciphers=EVERYTHING), policy) in refusals
    assert world.say(Hello(versions=(version,), ciphers=EVERYTHING), policy) in refusals


def test_the_highest_version_in_common_is_taken(world: World) -> None:
    everything = [*SUITES_1_3, *AEAD]
    both = Hello(versions=(TLS_1_0, 0x0399, TLS_1_2, TLS_1_3), ciphers=everything)
    assert world.hello(both).version == TLS_1_3
    assert world.hello(Hello(versions=(0x0399, TLS_1_2), ciphers=everything)).version == TLS_1_2
    assert world.hello(Hello(legacy=0x0399, ciphers=everything)).version == TLS_1_2


def test_a_fallback_that_was_not_needed_is_refused(world: World) -> None:
    """RFC 7507: somebody on the way has made the client believe that lb speaks no TLS 1.3."""
    said = world.say(Hello(ciphers=[*AEAD, FALLBACK_SCSV]))
    assert said == Alert(2, INAPPROPRIATE_FALLBACK)


def test_signatures_with_sha_1_are_not_made(world: World) -> None:
    for policy in ("intermediate", "old"):
        said = world.say(Hello(ciphers=AEAD, signatures=[0x0203, 0x0201]), policy)
        assert said == Alert(2, HANDSHAKE_FAILURE)


def test_rsa_for_those_who_understand_nothing_else(world: World) -> None:
    assert world.hello(Hello(ciphers=[0xC02F, 0xC030])).cipher == 0xC02F
    assert world.hello(Hello(ciphers=AEAD)).cipher == 0xC02B, "else ECDSA"


# ---------------------------------------------------------------------------------------------------------- extensions


def test_no_compression(world: World) -> None:
    assert world.hello(Hello(compressions=b"\x01\x00")).compression == 0
    said = world.say(Hello(compressions=b"\x01"))
    assert isinstance(said, Alert)
    assert said.level == 2


def test_secure_renegotiation_is_announced(world: World) -> None:
    """RFC 5746 3.6; that none is done is shown in test_tls.py."""
    assert world.hello(Hello(more={RENEGOTIATION: b"\x00"})).extensions[RENEGOTIATION] == b"\x00"
    said = world.hello(Hello(ciphers=[*AEAD, RENEGOTIATION_SCSV]))
    assert said.extensions[RENEGOTIATION] == b"\x00"
    lie = world.say(Hello(more={RENEGOTIATION: vector(b"0123456789ab", 1)}))
    assert isinstance(lie, Alert), "no handshake came before this one"


def test_no_heartbeat(world: World) -> None:
    assert HEARTBEAT not in world.hello(Hello(more={HEARTBEAT: b"\x01"})).extensions


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((b"http/1.1", b"h2"), b"h2"),
        ((b"http/1.1",), b"http/1.1"),
        ((b"http/1.0", b"http/1.1"), b"http/1.1"),
        ((b"acme-tls/1", b"h2"), b"h2"),
        ((), b""),
    ],
)
def test_protocols(world: World, offered: tuple[bytes, ...], chosen: bytes) -> None:
    extensions = world.hello(Hello(protocols=offered)).extensions
    assert extensions.get(ALPN, b"") == (vector(vector(chosen, 1), 2) if chosen else b"")


@pytest.mark.parametrize("offered", [(b"spdy/3",), (b"http/1.0",), (b"H2",), (b"h2c",), (b"imap", b"x" * 255)])
def test_no_protocol_in_common(world: World, offered: tuple[bytes, ...]) -> None:
    assert world.say(Hello(protocols=offered)) == Alert(2, NO_APPLICATION_PROTOCOL)


def test_http2_is_not_spoken_with_ciphers_that_it_forbids(world: World) -> None:
    """RFC 9113 9.2.2: a client would have to break off."""
    for cipher in OLD:
        said = world.hello(Hello(ciphers=[cipher], protocols=(b"h2", b"http/1.1")), "old")
        assert said.extensions[ALPN] == vector(vector(b"http/1.1", 1), 2), hex(cipher)
    assert world.say(Hello(ciphers=OLD, protocols=(b"h2",)), "old") == Alert(2, NO_APPLICATION_PROTOCOL)
    said = world.hello(Hello(ciphers=AEAD, protocols=(b"h2", b"http/1.1")), "old")
    assert said.extensions[ALPN] == vector(vector(b"h2", 1), 2)


@pytest.mark.parametrize(
    "extension",
    [
        server_name(b"shop.example.com\x00.evil.example"),
        server_name(b"*.example.com"),
        server_name(b"shop_example.com/../x"),
        server_name(b"x" * 300),
        server_name("münchen.example".encode()),
        server_name(b"127.0.0.1"),
        vector(b"\x01" + vector(b"shop.example.com", 2), 2),
    ],
)
def test_names_that_are_none_get_the_default_or_are_refused(world: World, extension: bytes) -> None:
    """Never the certificate of another name: the default one has no RSA key, which `shop` has."""
    said = world.say(Hello(name=b"", ciphers=[0xC02F], more={SERVER_NAME: extension}))
    assert isinstance(said, Alert)
    assert not isinstance(world.say(Hello(name=b"shop.example.com", ciphers=[0xC02F])), Alert)


@pytest.mark.parametrize("kind", [SERVER_NAME, SUPPORTED_GROUPS, ALPN])
@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff\xff", b"\x00\x05\x00", b"\x00\x00"])
def test_broken_extensions_are_refused(world: World, kind: int, content: bytes) -> None:
    said = world.say(Hello(name=b"", more={kind: content}))
    assert isinstance(said, Alert)
    assert said.level == 2


def test_early_data_is_refused(world: World, tmp_path: Path) -> None:
    """A ticket that allows none; and who sends some all the same is asked to begin anew."""
    address = world.address()
    session, early = tmp_path / "session.pem", tmp_path / "early"
    early.write_bytes(b"GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{address[1]}", "-servername", "shop.example.com"]
    request = b"GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n"

    def run(*options: str) -> str:
        done = subprocess.run(
            [*command, "-tls1_3", "-ign_eof", *options], input=request, capture_output=True, timeout=30, check=False
        )
        return done.stdout.decode(errors="replace")

    assert "Max Early Data: 0" in run("-sess_out", str(session))
    again = run("-sess_in", str(session), "-early_data", str(early))
    assert "Early data was not sent" in again or "Early data was rejected" in again
    assert "Reused" in again
    said = world.say(Hello(versions=(TLS_1_3,), ciphers=SUITES_1_3, groups=[29], more={EARLY_DATA: b""}))
    assert isinstance(said, Alert) or (said is not None and said.is_retry and EARLY_DATA not in said.extensions)


# ------------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 100])
def test_a_hello_in_many_records(world: World, piece: int) -> None:
    said = say(world.address(), Hello().records(piece))
    assert isinstance(said, ServerHello)


def test_oversized_record(world: World) -> None:
    said = say(world.address(), b"\x16\x03\x01" + (16_384 + 257).to_bytes(2) + b"\x01" * 20_000)
    assert said == Alert(2, RECORD_OVERFLOW)


def test_oversized_message(world: World) -> None:
    """A ClientHello of 16 MiB by what it says: nobody waits for all of it."""
    said = say(world.address(), record(22, b"\x01\xff\xff\xff" + b"\x00" * 1000))
    assert isinstance(said, Alert)


@pytest.mark.parametrize(
    ("data", "numbers"),
    [
        (record(23, b"application data"), (UNEXPECTED_MESSAGE,)),
        (record(21, b"\x02\x28"), ()),
        (record(22, b"\x02\x00\x00\x04abcd"), (UNEXPECTED_MESSAGE,)),
        (record(22, b"\x01\x00\x00\x02ab"), (DECODE_ERROR,)),
        (record(24, b"\x01\x40\x00"), (UNEXPECTED_MESSAGE,)),
        (record(20, b"\x01"), (UNEXPECTED_MESSAGE,)),
        (bytes.fromhex("802e0100020015000000100100800200800300800400800500800600400700c0") + b"\x00" * 16, ()),
        (b"\x00" * 200, ()),
        (b"\xff" * 200, ()),
        (b"SSH-2.0-OpenSSH_9.2\r\n" + b"x" * 40, ()),
    ],
)
def test_other_messages_first(world: World, data: bytes, numbers: tuple[int, ...]) -> None:
    """An alert or a close, and the reason in the counters."""
    reasons = ("tls-handshake-failed", "plain-http")
    before = sum(map(world.count, reasons))
    said = None
    with socket.create_connection(world.address(), 20) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while piece := client.recv(1_000):
            received += piece
    if received[:1] == b"\x15":
        said = received[6]
    assert said in numbers or not numbers
    wait_until(lambda: sum(map(world.count, reasons)) > before, "it is counted")


# --------------------------------------------------------------------------------------------- stalls and broken ends


def test_handshakes_that_stand_still_time_out(world: World) -> None:
    """Wherever they stand: before the first byte, in the middle of the first message, after the server's."""
    before = world.count("tls-timeout")
    whole = Hello().records()
    stalled = [b"", b"\x16", whole[:50], whole, Hello().records(1)[:-6]]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(world.address(), 20)) for _ in stalled]
        for client, sent in zip(clients, stalled, strict=True):
            client.sendall(sent)
        for client in clients:
            while client.recv(65_536):
                pass
    wait_until(lambda: world.count("tls-timeout") >= before + len(stalled), "the reason")


@pytest.mark.parametrize("sent", [b"", b"\x16\x03", Hello().records()])
@pytest.mark.parametrize("way", ["half-closed", "reset"])
def test_a_client_that_leaves_during_the_handshake(world: World, sent: bytes, way: str) -> None:
    before = world.count("tls-handshake-failed")
    with socket.create_connection(world.address(), 20) as client:
        client.sendall(sent)
        if way == "half-closed":
            client.shutdown(socket.SHUT_WR)
            while client.recv(65_536):
                pass
        else:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    wait_until(lambda: world.count("tls-handshake-failed") > before, "the reason")


@pytest.mark.parametrize("way", ["goodbye", "half-closed", "closed"])
def test_ends_of_an_idle_connection_cost_nothing(world: World, way: str) -> None:
    connected = world.client().connect()
    assert ask(connected, "shop.example.com").status == 200
    if way == "goodbye":
        connected.unwrap()
    elif way == "half-closed":
        connected.shutdown(socket.SHUT_WR)
    connected.close()
    wait_until(lambda: not world.serving.lb.metric("lb_connections_active"), "the connection is gone")


def test_a_goodbye_behind_a_request_still_gets_the_answer(world: World) -> None:
    """close_notify closes one direction only (RFC 8446 6.1)."""
    client = world.client()
    context = client.context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=client.name)
    with socket.create_connection(client.address, 20) as plain:
        _until(tls.do_handshake, plain, incoming, outgoing)
        tls.write(b"GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()
        plain.sendall(outgoing.read())
        received = b""
        while piece := plain.recv(65_536):
            received += piece
        incoming.write(received)
        assert tls.read(1_000).startswith(b"HTTP/1.1 200 OK\r\n")


def _until(step: Callable[[], None], plain: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
    while True:
        try:
            step()
            break
        except ssl.SSLWantReadError:
            plain.sendall(outgoing.read())
            incoming.write(plain.recv(65_536))
    plain.sendall(outgoing.read())


def test_a_body_without_length_must_end_with_a_goodbye(world: World) -> None:
    """Otherwise whoever cuts the connection decides where it ends (RFC 8446 6.1, RFC 9112 9.8)."""
    with world.client().connect() as connected:
        assert ask(connected, "shop.example.com", "/closing/whole").body == b"all of it"
    with world.client().connect() as connected:
        connected.sendall(b"GET /closing/cut HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")
        received = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while piece := connected.recv(65_536):
                received += piece
    assert not received.endswith(b"0\r\n\r\n"), "it must not look whole"
    world.serving.lb.wait_log(target="/closing/cut", reason="upstream-truncated")


# ------------------------------------------------------------------------------------------------- client certificates


@pytest.mark.parametrize(("depth", "gets_in"), [(0, False), (1, True)])
def test_depth(world: World, depth: int, gets_in: bool) -> None:
    pair = Authority("Intermediate", world.clients).issue("someone.example.com")
    name = f"depth-{depth}.example.com"
    client = world.client(name, certificate=pair)
    if gets_in:
        with client.connect(directory=world.directory) as connected:
            assert ask(connected, name).status == 200
        return
    with pytest.raises((ssl.SSLError, ConnectionError)), client.connect(directory=world.directory) as connected:
        ask(connected, name)


# ------------------------------------------------------------------------------------------------------------- storms


def test_a_storm_of_handshakes_is_served_and_established_connections_go_on(world: World) -> None:
    """First messages all at once, so that most have to wait for their turn; then thousands one after the other."""
    lb = world.serving.lb
    before = lb.metrics()
    with contextlib.ExitStack() as stack:
        established = [stack.enter_context(world.client().connect()) for _ in range(4)]
        waiting = [stack.enter_context(socket.create_connection(world.address(), 20)) for _ in range(300)]
        hello = Hello().records()
        for client in waiting:
            client.sendall(hello)
        for connected in established:
            assert ask(connected, "shop.example.com", "/closing/whole").body == b"all of it", "an endpoint goes first"
            assert ask(connected, "shop.example.com").status == 200
        for client in waiting:
            assert isinstance(answer(client), ServerHello), "who waits is not forgotten"
    assert lb.metric("lb_tls_handshakes_deferred_total") > before["lb_tls_handshakes_deferred_total"]
    over = threading.Event()
    failures: list[BaseException] = []
    done: list[int] = []

    def handshakes() -> None:
        client = world.client()
        context = client.context()
        try:
            for _ in range(150):
                with client.connect(context) as connected:
                    done.append(ask(connected, "shop.example.com").status)
        except BaseException as error:
            failures.append(error)

    def requests() -> None:
        try:
            with world.client().connect() as connected:
                while not over.is_set():
                    assert ask(connected, "shop.example.com").status == 200
        except BaseException as error:
            failures.append(error)

    storm = [threading.Thread(target=handshakes) for _ in range(8)]
    others = [threading.Thread(target=requests) for _ in range(2)]
    for thread in (*storm, *others):
        thread.start()
    for thread in storm:
        thread.join()
    over.set()
    for thread in others:
        thread.join()
    assert not failures
    assert done == [200] * 1_200
    assert lb.metric("lb_tls_handshakes_total") >= before["lb_tls_handshakes_total"] + 1_200


def test_waiting_for_clients_costs_no_turns(world: World) -> None:
    """A handshake that cannot go on is not tried again and again: the loop sleeps."""
    lb = world.serving.lb
    timeouts = world.count("tls-timeout")
    turns = lb.metric("lb_reactor_turns_total")
    with contextlib.ExitStack() as stack:
        for number in range(60):
            client = stack.enter_context(socket.create_connection(world.address(), 20))
            client.sendall(Hello().records()[: number * 5])
        wait_until(lambda: world.count("tls-timeout") >= timeouts + 60, "all have timed out")
    assert lb.metric("lb_reactor_turns_total") - turns < 2_000


@pytest.mark.skipif(SANITIZED, reason="the sanitizers keep what is freed")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_idle_connections_hold_no_buffers(world: World, version: ssl.TLSVersion) -> None:
    """Less than a record each, all in all: what OpenSSL needs to go on, and nothing of what has passed."""
    client = world.client(version=version)
    context = client.context()
    lb = world.serving.lb
    with contextlib.ExitStack() as stack:

        def connect(count: int) -> None:
            for _ in range(count):
                connected = stack.enter_context(client.connect(context))
                assert ask(connected, "shop.example.com").status == 200

        connect(50)  # what a first connection brings is no part of it
        before = lb.rss_bytes()
        connect(300)
        assert (lb.rss_bytes() - before) / 300 < 15_000
