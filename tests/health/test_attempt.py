"""One check of a real server: what it finds, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from lb.health import attempt
from lb.health.attempt import Attempt
from lb.health.talk import CLOSED, Talk
from lb.health.target import target_of
from lb.health.tls import ClientPair, TlsClient
from lb.health.verdict import PASSED, RESULTS, Verdict
from lb.model.health import HealthCheck
from lb.model.tls import UpstreamTls
from lb.model.upstream import Endpoint, ProxyProtocol, Upstream, split_key
from tests.harness.certificates import Authority, Pair
from tests.harness.ports import free_port
from tests.harness.waiting import DEADLINE, wait_until
from tests.health.servers import GrpcHealth, Script, http2, saying, server_tls, serving, silent

PATIENT = int(DEADLINE * 1000)
HTTP = HealthCheck("http", path="/healthz", timeout_ms=PATIENT)
HTTP2 = HealthCheck("http2", timeout_ms=PATIENT)
GRPC = HealthCheck("grpc", timeout_ms=PATIENT)
TCP = HealthCheck("tcp", timeout_ms=PATIENT)
TLS = HealthCheck("tls", timeout_ms=PATIENT)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nall ok"


def verdict_of(
    check: HealthCheck,
    key: str,
    tls: UpstreamTls | None = None,
    pair: Pair | None = None,
    meanwhile: Callable[[], None] = lambda: None,
    proxy_protocol: ProxyProtocol = "none",
) -> Verdict:
    """What the check of an endpoint finds, in the event loop that the daemon uses. Leaves no descriptor behind."""
    upstream = Upstream("u", tls=tls, health_check=check, proxy_protocol=proxy_protocol)
    endpoint = Endpoint(*split_key(key))
    target = target_of(upstream, endpoint, ClientPair(pair.chain, pair.key) if pair is not None else None)

    async def run() -> Verdict:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Verdict] = loop.create_future()
        question = target.question()
        attempt = Attempt(
            loop,
            target.socket_address,
            target.preamble,
            question.open() if question is not None else None,
            TlsClient(target.tls).open() if target.tls is not None else None,
            check.timeout_ms / 1000,
            done.set_result,
        )
        attempt.start()
        assert not done.done(), "never from within start"
        meanwhile()
        verdict = await done
        assert is_closed(attempt)
        return verdict

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        verdict = runner.run(run())
    assert verdict.result in RESULTS
    assert verdict.text.isprintable()
    return verdict


def is_closed(attempt: Attempt) -> bool:
    return attempt._fd == -1 and attempt._socket.fileno() == -1


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def leaf(authority: Authority) -> Pair:
    return authority.issue("shop.test", "10.0.0.1")


# -- TCP


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_connecting_is_enough_for_tcp(address: str) -> None:
    with serving(silent, address=address) as key:
        assert verdict_of(TCP, key) == PASSED


def test_a_unix_socket(tmp_path: Path) -> None:
    with serving(saying(OK), address=f"unix:{tmp_path}/a.sock") as key:
        assert verdict_of(TCP, key) == PASSED
        assert verdict_of(HTTP, key) == PASSED
    assert verdict_of(TCP, f"unix:{tmp_path}/none.sock") == Verdict("refused", "no such file or directory")


def test_nobody_listens() -> None:
    assert verdict_of(HTTP, f"127.0.0.1:{free_port()}") == Verdict("refused", "connection refused")


def test_there_is_no_way_there() -> None:
    # 255.255.255.255 is no address of a host, and the kernel says so at once.
    assert verdict_of(TCP, "255.255.255.255:80").result == "unreachable"


@pytest.fixture
def deaf() -> Iterator[str]:
    """A listener whose backlog is full: what comes is not answered, not even by the kernel."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_an_address_that_does_not_answer(deaf: str) -> None:
    check = HealthCheck("tcp", timeout_ms=150)
    assert verdict_of(check, deaf) == Verdict("timeout", "connecting took longer than 0.15 s")


def test_a_server_that_does_not_answer(authority: Authority) -> None:
    with serving(silent) as key:
        plain = HealthCheck("http", timeout_ms=100)
        assert verdict_of(plain, key) == Verdict("timeout", "the answer took longer than 0.1 s")
        tls = UpstreamTls("shop.test", ca=authority.pem)
        assert verdict_of(plain, key, tls) == Verdict("timeout", "the TLS handshake took longer than 0.1 s")


def test_a_loop_that_stands_still_is_not_the_endpoints_fault() -> None:
    """The deadline passes while nobody looks at sockets; the answer is there."""
    with serving(saying(OK)) as key:
        check = HealthCheck("http", timeout_ms=150)
        assert verdict_of(check, key, meanwhile=lambda: time.sleep(0.15 + attempt.STALL_S * 1.5)) == PASSED


def test_without_descriptors_nothing_is_said_of_the_endpoint() -> None:
    with serving(silent) as key:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        upstream = Upstream("u", health_check=TCP)
        target = target_of(upstream, Endpoint(*split_key(key)), None)
        held: list[int] = []

        async def run() -> Verdict:
            loop = asyncio.get_running_loop()
            done: asyncio.Future[Verdict] = loop.create_future()
            resource.setrlimit(resource.RLIMIT_NOFILE, (sum(1 for _ in Path("/proc/self/fd").iterdir()) + 20, hard))
            try:
                with contextlib.suppress(OSError):
                    while True:
                        held.append(os.dup(0))
                Attempt(loop, target.socket_address, b"", None, None, 5, done.set_result).start()
            finally:
                for descriptor in held:
                    os.close(descriptor)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            return await done

        assert asyncio.run(run()) == Verdict("skipped", "too many open files")


def test_a_check_that_is_cancelled_says_nothing_and_leaves_nothing() -> None:
    with serving(silent) as key:
        address, port = split_key(key)
        said: list[Verdict] = []

        async def run() -> None:
            loop = asyncio.get_running_loop()
            for _ in range(3):
                one = Attempt(loop, (address, port), b"", None, None, 0.05, said.append)
                one.start()
                one.cancel()
                one.cancel()
                assert is_closed(one)
            await asyncio.sleep(0.1)

        asyncio.run(run())
        assert said == []


# -- HTTP


@pytest.mark.parametrize(
    ("script", "check", "verdict"),
    [
        (saying(OK), HTTP, PASSED),
        (saying(b"HTTP/1.0 200 OK\r\n\r\nall ok"), HealthCheck("http", body="ok"), PASSED),
        (saying(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"), HTTP, Verdict("wrong-status", "status 503")),
        (
            saying(OK),
            HealthCheck("http", body="fine"),
            Verdict("wrong-body", "the text that should be in the body is not there"),
        ),
        (saying(b"SSH-2.0-x\r\n"), HTTP, Verdict("bad-response", "no HTTP/1.1")),
        (
            saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            HTTP2,
            Verdict("bad-response", "no HTTP/2: it does not begin with SETTINGS"),
        ),
        (saying(b""), HTTP2, CLOSED),
        (saying(b""), HTTP, CLOSED),
        (saying(b"HTTP/1.1 200 OK\r\nX-A"), HTTP, CLOSED),
        (http2(200), HTTP2, PASSED),
        (http2(503), HTTP2, Verdict("wrong-status", "status 503")),
        (http2(200, b"all ok"), HealthCheck("http2", body="ok"), PASSED),
    ],
)  # fmt: skip
def test_http(script: Script, check: HealthCheck, verdict: Verdict) -> None:
    with serving(script) as key:
        assert verdict_of(check, key) == verdict


def test_a_reset() -> None:
    def reset(accepted: socket.socket) -> None:
        accepted.recv(1)
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with serving(reset) as key:
        assert verdict_of(HTTP, key) == Verdict("closed", "connection reset by peer")


def test_an_endless_answer_is_none() -> None:
    def talk(accepted: socket.socket) -> None:
        accepted.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            accepted.sendall(b"x" * 65_536)

    def interim(accepted: socket.socket) -> None:
        while True:
            accepted.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1_000)

    with serving(talk) as key:
        assert verdict_of(HealthCheck("http", body="ok", timeout_ms=PATIENT), key).result == "wrong-body"
    with serving(interim) as key:
        assert verdict_of(HTTP, key) == Verdict("bad-response", f"no answer in {attempt.MOST_BYTES} bytes")


class Recorder:
    """A talk that asks something and finds no verdict."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def begin(self) -> bytes:
        return b"?"

    def receive(self, data: bytes) -> Verdict | None:
        self.sizes.append(len(data))
        return None

    def take_output(self) -> bytes:
        return b""

    def end(self) -> Verdict:
        return Verdict("closed")


def attempted(key: str, talk: Talk) -> Verdict:
    """What an attempt with this talk ends with."""

    async def run() -> Verdict:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Verdict] = loop.create_future()
        one = Attempt(loop, split_key(key), b"", talk, None, DEADLINE, done.set_result)
        one.start()
        verdict = await done
        assert is_closed(one)
        return verdict

    return asyncio.run(run())


def test_no_answer_keeps_the_loop_for_long() -> None:
    """What is read in one turn is little, because it may be thousands of frames or chunks."""
    talk = Recorder()
    with serving(saying(b"x" * 1_000_000)) as key:
        verdict = attempted(key, talk)
    assert verdict == Verdict("bad-response", f"no answer in {attempt.MOST_BYTES} bytes")
    assert max(talk.sizes) <= attempt.READ_BYTES
    assert attempt.MOST_BYTES < sum(talk.sizes) <= attempt.MOST_BYTES + attempt.READ_BYTES


@pytest.mark.parametrize("step", ["begin", "receive", "end"])
def test_what_no_codec_foresaw_ends_the_attempt(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("\x1b[31m" + "long " * 1_000)

    talk = Recorder()
    monkeypatch.setattr(talk, step, fail)
    with serving(saying(b"answer")) as key:
        verdict = attempted(key, talk)
    assert verdict.result == "bad-response"
    assert verdict.text.startswith("RuntimeError: ?[31mlong")
    assert len(verdict.text) <= 200
    assert verdict.text.isprintable()


def test_the_host_is_the_endpoints_address_unless_another_one_is_given() -> None:
    asked: list[bytes] = []

    def script(accepted: socket.socket) -> None:
        asked.append(accepted.recv(65_536))
        accepted.sendall(OK)

    with serving(script) as key:
        verdict_of(HTTP, key)
        verdict_of(HealthCheck("http", host="shop.test", timeout_ms=PATIENT), key)
        port = split_key(key)[1]
        verdict_of(HealthCheck("http", port=port, timeout_ms=PATIENT), "127.0.0.1:1")
    hosts = [next(line for line in one.split(b"\r\n") if line.startswith(b"Host: ")) for one in asked]
    assert hosts == [f"Host: {key}".encode(), b"Host: shop.test", f"Host: {key}".encode()]


# -- Behind a PROXY header


@pytest.mark.parametrize(
    ("version", "header"),
    [("v1", b"PROXY UNKNOWN\r\n"), ("v2", b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"), ("none", b"")],
)
def test_a_check_begins_with_the_header_that_the_endpoint_expects(
    version: ProxyProtocol, header: bytes, leaf: Pair, authority: Authority
) -> None:
    began: list[bytes] = []
    context = server_tls(leaf)

    def begin(accepted: socket.socket) -> None:
        began.append(accepted.recv(len(header), socket.MSG_WAITALL) if header else b"")

    def plain(accepted: socket.socket) -> None:
        begin(accepted)
        if accepted.recv(4) == b"GET ":
            accepted.sendall(OK)

    def secure(accepted: socket.socket) -> None:
        begin(accepted)
        with context.wrap_socket(accepted, server_side=True) as tls:
            if tls.recv(4) == b"GET ":
                tls.sendall(OK)

    with serving(plain) as key:
        assert verdict_of(HTTP, key, proxy_protocol=version) == PASSED
        assert verdict_of(TCP, key, proxy_protocol=version) == PASSED
        wait_until(lambda: len(began) == 2, "both have begun")
    with serving(secure) as key:
        settings = UpstreamTls("shop.test", ca=authority.pem)
        assert verdict_of(HTTP, key, settings, proxy_protocol=version) == PASSED
        assert verdict_of(TLS, key, settings, proxy_protocol=version) == PASSED
    assert began == [header] * 4


def test_a_check_on_a_port_of_its_own_has_no_header() -> None:
    began: list[bytes] = []

    def script(accepted: socket.socket) -> None:
        began.append(accepted.recv(4))
        accepted.sendall(OK)

    with serving(script) as key:
        check = HealthCheck("http", port=split_key(key)[1], timeout_ms=PATIENT)
        assert verdict_of(check, "127.0.0.1:1", proxy_protocol="v2") == PASSED
    assert began == [b"GET "]


# -- gRPC


def test_grpcs_own_health_service(leaf: Pair, authority: Authority) -> None:
    with GrpcHealth() as plain, GrpcHealth(leaf) as secure:
        tls = UpstreamTls("shop.test", ca=authority.pem)
        for server, settings in ((plain, None), (secure, tls)):
            key = f"127.0.0.1:{server.port}"
            assert verdict_of(GRPC, key, settings) == PASSED
            of_shop = HealthCheck("grpc", service="shop.v1", timeout_ms=PATIENT)
            unknown = verdict_of(of_shop, key, settings)
            assert unknown == Verdict("not-serving", "grpc-status 5 NOT_FOUND")
            server.set("shop.v1", "NOT_SERVING")
            assert verdict_of(of_shop, key, settings) == Verdict("not-serving", "NOT_SERVING")
            server.set("shop.v1", "SERVING")
            assert verdict_of(of_shop, key, settings) == PASSED


def test_a_server_that_is_no_grpc() -> None:
    with serving(http2(404)) as key:
        assert verdict_of(GRPC, key) == Verdict("wrong-status", "status 404, and no gRPC")


# -- TLS


@pytest.fixture(scope="module")
def secure(leaf: Pair) -> Iterator[str]:
    """HTTP/1.1 over TLS as `shop.test`."""
    with serving(saying(OK), server_tls(leaf, "http/1.1")) as key:
        yield key


def test_tls_as_the_upstream_says(secure: str, authority: Authority) -> None:
    ours = UpstreamTls("shop.test", ca=authority.pem)
    assert verdict_of(HTTP, secure, ours) == PASSED
    assert verdict_of(TLS, secure, ours) == PASSED
    assert verdict_of(TCP, secure, ours) == PASSED
    assert verdict_of(HTTP, secure, UpstreamTls(verify=False)) == PASSED


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"server_name": "other.test"}, "Hostname mismatch"),
        ({"server_name": "shop.test", "ca": "stranger"}, "unable to get local issuer certificate"),
        ({"server_name": "shop.test", "names": ("a.test", "b.test")}, "the certificate is for shop.test"),
        ({"server_name": "10.0.0.2"}, "IP address mismatch"),
    ],
)
def test_whom_nobody_should_trust(secure: str, authority: Authority, settings: dict[str, str], text: str) -> None:
    ca = Authority("Stranger").pem if settings.pop("ca", "") else authority.pem
    verdict = verdict_of(HTTP, secure, UpstreamTls(ca=ca, **settings))  # type: ignore[arg-type]
    assert verdict.result == "tls-failed"
    assert text in verdict.text


@pytest.mark.parametrize(
    "settings",
    [
        {"server_name": "x.test", "names": ("other.test", "shop.test")},
        {"names": ("shop.test",)},
        {"server_name": "10.0.0.1"},
    ],
)
def test_other_names_than_the_one_that_is_sent(secure: str, authority: Authority, settings: dict[str, str]) -> None:
    assert verdict_of(HTTP, secure, UpstreamTls(ca=authority.pem, **settings)) == PASSED  # type: ignore[arg-type]


def test_a_common_name_is_no_name(authority: Authority) -> None:
    """As in the data plane, which would refuse the connection."""
    settings = UpstreamTls("shop.test", ca=authority.pem)
    for names in ((), ("10.0.0.1",)):
        with serving(silent, server_tls(authority.issue(*names, subject="shop.test"))) as key:
            verdict = verdict_of(TLS, key, settings)
            assert verdict.result == "tls-failed"
            assert "ostname mismatch" in verdict.text


def test_the_systems_authorities_are_asked_when_none_are_given(secure: str) -> None:
    assert verdict_of(HTTP, secure, UpstreamTls("shop.test")).result == "tls-failed"


def test_a_revoked_certificate(secure: str, authority: Authority, leaf: Pair) -> None:
    other = authority.issue("else.test")
    for revoked, result in ((leaf, "tls-failed"), (other, "passed")):
        settings = UpstreamTls("shop.test", ca=authority.pem, crl=authority.revoke(revoked))
        assert verdict_of(TLS, secure, settings).result == result


def test_an_expired_certificate(authority: Authority) -> None:
    with serving(silent, server_tls(authority.issue("shop.test", days=-3))) as key:
        verdict = verdict_of(TLS, key, UpstreamTls("shop.test", ca=authority.pem))
        assert verdict == Verdict("tls-failed", "the certificate is not trusted: certificate has expired")


def test_tls_of_the_check_is_another_matter_than_that_of_requests(secure: str) -> None:
    """Endpoints whose health is told on a port without TLS, and the other way round."""
    with serving(saying(OK)) as plain:
        off = HealthCheck("http", tls="off", timeout_ms=PATIENT)
        assert verdict_of(off, plain, UpstreamTls("shop.test")) == PASSED
    unverified = HealthCheck("http", tls="unverified", timeout_ms=PATIENT)
    assert verdict_of(unverified, secure) == PASSED
    assert verdict_of(HealthCheck("tls", tls="unverified", timeout_ms=PATIENT), secure) == PASSED


def test_no_tls_where_it_should_be(authority: Authority) -> None:
    with serving(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as key:
        verdict = verdict_of(TLS, key, UpstreamTls("shop.test", ca=authority.pem))
        assert verdict.result == "tls-failed"
    with serving(saying(b"")) as key:
        verdict = verdict_of(TLS, key, UpstreamTls("shop.test", ca=authority.pem))
        assert verdict == Verdict("tls-failed", "the endpoint closed during the handshake")


def test_http2_must_be_agreed_on(secure: str, leaf: Pair, authority: Authority) -> None:
    settings = UpstreamTls("shop.test", ca=authority.pem)
    verdict = verdict_of(HTTP2, secure, settings)
    assert verdict == Verdict("tls-failed", "the endpoint does not speak HTTP/2 (ALPN)")
    with serving(http2(200), server_tls(leaf, "h2")) as key:
        assert verdict_of(HTTP2, key, settings) == PASSED


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_certificate_that_lb_shows(authority: Authority, leaf: Pair, version: ssl.TLSVersion) -> None:
    clients = Authority("Clients")
    context = server_tls(leaf, clients_of=clients)
    context.minimum_version = context.maximum_version = version
    settings = UpstreamTls("shop.test", ca=authority.pem, certificate="me")
    with serving(saying(OK), context) as key:
        assert verdict_of(HTTP, key, settings, clients.issue("lb.test")) == PASSED
        verdict = verdict_of(HTTP, key, settings)
        assert verdict.result in ("tls-failed", "closed"), "in TLS 1.3 the alert may be lost in a reset"


def test_the_handshake_of_a_tls_check_is_whole(leaf: Pair, authority: Authority) -> None:
    """Servers log broken handshakes: a check must not fill their logs."""
    ended: list[str] = []
    context = server_tls(leaf)

    def script(accepted: socket.socket) -> None:
        tls = context.wrap_socket(accepted, server_side=True)
        ended.append("shaken")
        tls.close()

    with serving(script) as key:
        assert verdict_of(TLS, key, UpstreamTls("shop.test", ca=authority.pem)) == PASSED
        wait_until(lambda: ended, "the server's end of the handshake")


def test_openssls_own_server(tmp_path: Path, leaf: Pair, authority: Authority) -> None:
    (tmp_path / "chain.pem").write_text(leaf.chain)
    (tmp_path / "key.pem").write_text(leaf.key)
    port = free_port()
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-quiet", "-tls1_3"]
    command += ["-cert", str(tmp_path / "chain.pem"), "-key", str(tmp_path / "key.pem")]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings, key = UpstreamTls("shop.test", ca=authority.pem), f"127.0.0.1:{port}"
    try:
        wait_until(lambda: verdict_of(TLS, key, settings).passed, "openssl s_server", interval=0.02)
        page = HealthCheck("http", body="s_server", timeout_ms=PATIENT)
        assert verdict_of(page, key, settings) == PASSED
    finally:
        server.kill()
        server.wait()
