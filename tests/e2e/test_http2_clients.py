"""HTTP/2 with real clients and servers: curl, nghttp and h2load through lb, to nginx that speaks HTTP/2 itself."""

from __future__ import annotations

import hashlib
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.certificates import Authority
from tests.harness.native import Native, respond
from tests.harness.nginx import Nginx
from tests.harness.payload import digest, payload
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE

SIZE = 10_000_000
HOST = "nginx.test"


@dataclass
class Site:
    serving: Serving
    ca: Path

    def url(self, path: str, *, secure: bool = False, host: str = HOST) -> str:
        return f"{'https' if secure else 'http'}://{host}:{self.port(secure=secure)}{path}"

    def port(self, *, secure: bool) -> int:
        return self.serving.address("https" if secure else "http")[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("http2")
    authority = Authority()
    ca = directory / "ca.pem"
    ca.write_text(authority.pem)
    with (
        Nginx(directory / "nginx", http2=True) as nginx,
        Nginx(directory / "impatient", keepalive_requests=30, http2=True) as impatient,
    ):
        (nginx.html / "large.bin").write_bytes(payload(SIZE))
        native = Native()
        native.certificate("lb", authority.issue(HOST, "impatient.test"))
        native.listen("http", free_port())
        native.listen_tls("https", free_port(), {"*": "lb"})
        native.serve(HOST, nginx.key, protocol="http2")
        native.serve("impatient.test", impatient.key, protocol="http2")
        with serving(directory, native) as running:
            yield Site(running, ca)


@pytest.fixture(autouse=True)
def healthy(site: Site) -> Iterator[None]:
    yield
    site.serving.lb.assert_healthy()


def run(*command: str) -> bytes:
    """Standard output; AssertionError when it fails."""
    done = subprocess.run(command, capture_output=True, check=False, timeout=DEADLINE * 2)
    assert done.returncode == 0, f"{command}: {done.returncode} {done.stderr.decode()}"
    return done.stdout


CURL = {"h1": ["--http1.1"], "h2c": ["--http2-prior-knowledge"], "h1-tls": ["--http1.1"], "h2-tls": ["--http2"]}


@pytest.fixture(params=CURL)
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def curl(site: Site, how: str, path: str, *options: str) -> bytes:
    secure = how.endswith("tls")
    to = f"::127.0.0.1:{site.port(secure=secure)}"
    trust = ["--cacert", str(site.ca)]
    return run("curl", "-sS", *CURL[how], *trust, "--connect-to", to, *options, site.url(path, secure=secure))


def test_curl_downloads(site: Site, how: str) -> None:
    assert curl(site, how, "/hello") == b"hello from nginx\n"
    assert hashlib.sha256(curl(site, how, "/large.bin")).hexdigest().encode() == digest(SIZE)
    head = curl(site, how, "/large.bin", "-I").decode().lower()
    assert head.startswith("http/1.1 200" if how.startswith("h1") else "http/2 200")
    assert f"content-length: {SIZE}" in head
    part = curl(site, how, "/large.bin", "-r", "1000-1999")
    assert part == payload(SIZE)[1000:2000]


def test_curl_and_conditions(site: Site, how: str) -> None:
    tag = re.search(r"(?im)^etag: (.+?)\r?$", curl(site, how, "/large.bin", "-I").decode())
    assert tag is not None
    out = curl(site, how, "/large.bin", "-w", "%{http_code}", "-H", f"If-None-Match: {tag[1]}")
    assert out == b"304"
    assert curl(site, how, "/nothing", "-w", "%{http_code}") == b"204"
    assert b"302" in curl(site, how, "/moved", "-i").split(b"\r\n")[0]


def test_nghttp_gets_many_at_once(site: Site) -> None:
    urls = [site.url(f"/hello?{number}", host="127.0.0.1") for number in range(20)]
    out = run("nghttp", "-H", f":authority: {HOST}", *urls)
    assert out == b"hello from nginx\n" * 20


def load(site: Site, host: str, path: str, requests: int, *, secure: bool) -> str:
    """h2load with eight connections of ten streams; AssertionError unless every answer is a 200."""
    url = site.url(path, secure=secure, host="127.0.0.1")
    command = ["h2load", "-n", str(requests), "-c", "8", "-m", "10", "-H", f":authority: {host}", url]
    told = run(*command).decode()
    bad = [record for record in site.serving.lb.log_records() if record["status"] != 200]
    assert f"{requests} succeeded, 0 failed, 0 errored, 0 timeout" in told, f"{told}\n{bad[:5]}"
    assert f"status codes: {requests} 2xx" in told, told
    return told


@pytest.mark.parametrize("secure", [False, True])
def test_load_while_the_configuration_changes(site: Site, secure: bool) -> None:
    stop = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        while not stop.is_set():
            site.serving.native.host("other.test", respond("other", 200, f"{swaps}"))
            site.serving.apply()
            swaps += 1

    worker = threading.Thread(target=swap)
    worker.start()
    try:
        while swaps < 5:
            load(site, HOST, "/hello", 2_000, secure=secure)
    finally:
        stop.set()
        worker.join(DEADLINE)


def test_load_on_a_server_that_says_goaway_again_and_again(site: Site) -> None:
    """nginx ends each connection after thirty requests, however many are under way."""
    before = site.serving.lb.metric("lb_upstream_connects_total", upstream="impatient.test")
    load(site, "impatient.test", "/hello", 3_000, secure=False)
    assert site.serving.lb.metric("lb_upstream_connects_total", upstream="impatient.test") - before >= 100
