"""curl, nghttp and h2load in front of endpoints that speak HTTP/1, plain and over TLS, also while tables change."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.backend import RawBackend, answering
from tests.harness.certificates import Authority
from tests.harness.client import get
from tests.harness.echo_server import EchoServer
from tests.harness.messages import Request
from tests.harness.native import Native, respond
from tests.harness.nginx import Nginx
from tests.harness.payload import digest, payload
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE, SANITIZED, wait_until

SIZE = 20_000_000
AUTHORITY = Authority()
SWAPS = 60
LISTENERS = ("http", "https")


def describe(request: Request) -> bytes:
    seen = {
        "method": request.method.decode(),
        "target": request.target.decode(),
        "headers": {name.decode().lower(): value.decode("latin-1") for name, value in request.headers},
        "digest": hashlib.sha256(request.body).hexdigest(),
    }
    body = json.dumps(seen).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head if request.method == b"HEAD" else head + body


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    directory = tmp_path_factory.mktemp("http2-clients")
    with Nginx(directory / "nginx") as nginx, EchoServer("a") as first, EchoServer("b") as second:
        (nginx.html / "large.bin").write_bytes(payload(SIZE))
        backends = {"api.test": RawBackend(answering(describe))}
        native = Native()
        native.certificate("pair", AUTHORITY.issue("api.test", "nginx.test", "127.0.0.1"))
        native.listen("http", free_port())
        native.listen_tls("https", free_port(), {"api.test": "pair", "nginx.test": "pair", "*": "pair"})
        native.serve("api.test", backends["api.test"])
        native.serve("nginx.test", nginx.key)
        native.serve("*", first.key, second.key)
        native.host("marker.test", respond("marker", 200, "0"))
        (directory / "ca.pem").write_text(AUTHORITY.pem)
        with serving(directory, native, backends) as started:
            yield started


@pytest.fixture(autouse=True)
def healthy(site: Serving) -> Iterator[None]:
    yield
    site.lb.assert_healthy()
    for backend in site.backends.values():
        backend.assert_clean()


def run(*command: str, stdin: bytes | None = None) -> bytes:
    result = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=DEADLINE * 4)
    assert result.returncode == 0, f"{command}: {result.returncode} {result.stderr.decode()[-2_000:]}"
    return result.stdout


def curl(site: Serving, listener: str, host: str, target: str, *options: str, stdin: bytes | None = None) -> bytes:
    scheme = listener
    how = (
        ["--http2-prior-knowledge"] if listener == "http" else ["--http2", "--cacert", str(site.path.parent / "ca.pem")]
    )
    to = "{}:{}".format(*site.address(listener))
    url = f"{scheme}://{host}{target}"
    return run(
        "curl", "-sS", "--max-time", str(int(DEADLINE)), "--connect-to", f"::{to}", *how, *options, url, stdin=stdin
    )


@pytest.mark.parametrize("listener", LISTENERS)
class TestCurl:
    def test_get(self, listener: str, site: Serving) -> None:
        text = curl(site, listener, "api.test", "/a?b", "-w", "\n%{http_version}")
        seen, version = text.decode().rsplit("\n", 1)
        assert version == "2"
        assert json.loads(seen)["target"] == "/a?b"
        assert json.loads(seen)["headers"]["x-forwarded-proto"] == listener

    def test_head(self, listener: str, site: Serving) -> None:
        answer = curl(site, listener, "nginx.test", "/large.bin", "-I").decode()
        assert answer.startswith("HTTP/2 200")
        assert f"content-length: {SIZE}" in answer

    def test_download(self, listener: str, site: Serving) -> None:
        body = curl(site, listener, "nginx.test", "/large.bin")
        assert hashlib.sha256(body).hexdigest().encode() == digest(SIZE)

    def test_upload(self, listener: str, site: Serving, tmp_path: Path) -> None:
        path = tmp_path / "upload"
        path.write_bytes(payload(3_000_000))
        seen = json.loads(curl(site, listener, "api.test", "/", "--data-binary", f"@{path}"))
        assert seen["digest"].encode() == digest(3_000_000)

    def test_upload_from_a_pipe(self, listener: str, site: Serving) -> None:
        seen = json.loads(curl(site, listener, "api.test", "/", "-T", "-", stdin=payload(500_000)))
        assert seen["digest"].encode() == digest(500_000)


def test_many_at_once_on_one_connection(site: Serving) -> None:
    """Only by ALPN: with prior knowledge curl 7.88 makes a mess of it, whoever serves."""
    options = ("-Z", "--parallel-max", "50", "-w", "%{num_connects}\n", "-o", "/dev/null")
    answer = curl(site, "https", "nginx.test", "/hello?[1-100]", *options).decode().split()
    assert len(answer) == 100
    assert sum(map(int, answer)) <= 2


def test_alpn_leaves_the_choice_to_the_client(site: Serving) -> None:
    ca = str(site.path.parent / "ca.pem")
    to = "{}:{}".format(*site.address("https"))
    options = ("--cacert", ca, "--connect-to", f"::{to}", "-w", "%{http_version}", "-o", "/dev/null")
    text = run("curl", "-sS", "--http1.1", *options, "https://api.test/")
    assert text == b"1.1"


@pytest.mark.parametrize("listener", LISTENERS)
def test_nghttp(listener: str, site: Serving) -> None:
    """Its own window sizes, padding, continuations and trailers."""
    url = "{}://{}:{}/".format(listener, *site.address(listener))
    options = ("--no-verify-peer", "-n", "-s", "-H", ":authority: api.test", "-b", "100", "-w", "12", "-W", "12")
    text = run("nghttp", *options, "--continuation", "--trailer", "x-t: 1", "-m", "30", "-d", "/etc/hostname", url)
    assert text.decode().count("200") >= 30


def h2load(site: Serving, listener: str, *options: str) -> dict[str, int]:
    """Requests by what became of them."""
    url = "{}://{}:{}/x".format(listener, *site.address(listener))
    text = run("h2load", *options, url).decode()
    found = re.search(r"requests: (.*)", text)
    assert found, text
    return {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", found[1])}


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("streams", [1, 100, 300])
def test_h2load_is_served(streams: int, listener: str, site: Serving) -> None:
    """300: more than are allowed at once, which h2load learns from the settings."""
    done = h2load(site, listener, "-n", "6000", "-c", "4", "-m", str(streams))
    assert (done["succeeded"], done["failed"], done["errored"]) == (6_000, 0, 0)


@pytest.mark.parametrize("listener", LISTENERS)
def test_swaps_under_load_lose_nothing(listener: str, site: Serving) -> None:
    results: list[dict[str, int]] = []
    count = 6_000 if SANITIZED else 40_000
    load = threading.Thread(
        target=lambda: results.append(h2load(site, listener, "-n", str(count), "-c", "8", "-m", "20"))
    )
    load.start()
    swaps = 0
    while load.is_alive() and swaps < SWAPS:
        swaps += 1
        site.native.host("marker.test", respond("marker", 200, f"{listener} {swaps}"))
        site.native.upstreams["*"]["balance"] = ["round-robin", "least-connections"][swaps % 2]
        site.native.write(site.path)
        site.lb.signal(signal.SIGHUP)
        wait_until(lambda: marker(site) == f"{listener} {swaps}", "the change serves")  # noqa: B023
    load.join(DEADLINE * 4)
    assert swaps > 1
    assert (results[0]["succeeded"], results[0]["failed"], results[0]["errored"]) == (count, 0, 0)


def marker(site: Serving) -> str:
    with site.connect() as client:
        return client.ask(get("marker.test")).body.decode()
