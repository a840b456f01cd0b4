"""Real clients through lb to real servers: curl, wrk, aiohttp, h11, websockets, and nginx behind it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import h11
import pytest
import websockets.exceptions
import websockets.sync.client

from tests.harness.backend import RawBackend, answering
from tests.harness.client import get
from tests.harness.invariants import Rules
from tests.harness.messages import Request
from tests.harness.native import Native, respond
from tests.harness.nginx import Nginx
from tests.harness.payload import digest, payload
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE, wait_until
from tests.harness.websocket_server import WebsocketServer

SIZE = 20_000_000


def describe(request: Request) -> bytes:
    """What the backend saw, as JSON."""
    seen = {
        "method": request.method.decode(),
        "target": request.target.decode(),
        "headers": {name.decode().lower(): value.decode("latin-1") for name, value in request.headers},
        "length": len(request.body),
        "digest": hashlib.sha256(request.body).hexdigest(),
    }
    body = json.dumps(seen).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head if request.method == b"HEAD" else head + body


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    directory = tmp_path_factory.mktemp("clients")
    with (
        Nginx(directory / "nginx") as nginx,
        Nginx(directory / "impatient", keepalive_requests=3) as impatient,
        WebsocketServer() as chat,
    ):
        (nginx.html / "large.bin").write_bytes(payload(SIZE))
        (nginx.html / "page.html").write_text("<p>hello</p>\n" * 500)
        backends = {"api.test": RawBackend(answering(describe))}
        native = Native()
        native.listen("http", free_port())
        native.listen("six", free_port(), address="::1")
        native.listen("local", 0, address=f"unix:{directory}/lb.sock")
        native.serve("api.test", backends["api.test"])
        backends["socket.test"] = RawBackend(answering(describe), rules=Rules(unix_clients=True))
        native.serve("socket.test", backends["socket.test"])
        native.serve("nginx.test", nginx.key)
        native.serve("impatient.test", impatient.key)
        native.serve("chat.test", chat.key)
        native.host("local.test", respond("local", 200, "from lb\n"))
        with serving(directory, native, backends) as started:
            yield started


@pytest.fixture(autouse=True)
def healthy(site: Serving) -> Iterator[None]:
    yield
    site.lb.assert_healthy()
    for backend in site.backends.values():
        backend.assert_clean()


def curl(
    site: Serving, target: str, *options: str, stdin: bytes | None = None, to: str = ""
) -> subprocess.CompletedProcess[bytes]:
    """curl with names that lead to lb, or to the address `to`; AssertionError when it fails."""
    to = to or "{}:{}".format(*site.address())
    result = subprocess.run(
        ["curl", "-sS", "--max-time", str(int(DEADLINE)), "--connect-to", f"::{to}", *options, target],
        input=stdin, capture_output=True, check=False, timeout=DEADLINE * 2,
    )  # fmt: skip
    assert result.returncode == 0, f"curl: {result.returncode} {result.stderr.decode()}"
    return result


class TestCurl:
    def test_get(self, site: Serving) -> None:
        seen = json.loads(curl(site, "http://api.test/a/b?c=d").stdout)
        assert (seen["method"], seen["target"]) == ("GET", "/a/b?c=d")
        assert seen["headers"]["user-agent"].startswith("curl/")
        assert seen["headers"]["x-forwarded-for"] == "127.0.0.1"

    def test_http_1_0(self, site: Serving) -> None:
        assert json.loads(curl(site, "http://api.test/", "--http1.0").stdout)["method"] == "GET"

    def test_head(self, site: Serving) -> None:
        answer = curl(site, "http://nginx.test/large.bin", "-I").stdout.decode()
        assert answer.startswith("HTTP/1.1 200")
        assert f"content-length: {SIZE}" in answer.lower()

    def test_upload_of_a_file(self, site: Serving, tmp_path: Path) -> None:
        path = tmp_path / "upload"
        path.write_bytes(payload(3_000_000))
        seen = json.loads(curl(site, "http://api.test/", "--data-binary", f"@{path}").stdout)
        assert seen["digest"].encode() == digest(3_000_000)

    def test_upload_that_waits_for_100_continue(self, site: Serving, tmp_path: Path) -> None:
        path = tmp_path / "upload"
        path.write_bytes(payload(3_000_000))
        options = ("-T", str(path), "-H", "Expect: 100-continue", "--expect100-timeout", "0.2")
        seen = json.loads(curl(site, "http://api.test/", *options).stdout)
        assert (seen["method"], seen["digest"].encode()) == ("PUT", digest(3_000_000))

    def test_upload_in_chunks_from_a_pipe(self, site: Serving) -> None:
        seen = json.loads(curl(site, "http://api.test/", "-T", "-", stdin=payload(500_000)).stdout)
        assert seen["digest"].encode() == digest(500_000)

    def test_download(self, site: Serving) -> None:
        body = curl(site, "http://nginx.test/large.bin").stdout
        assert hashlib.sha256(body).hexdigest().encode() == digest(SIZE)

    def test_many_urls_on_one_connection(self, site: Serving) -> None:
        options = ("-w", "%{num_connects}\n", "-o", "/dev/null")
        answer = curl(site, "http://nginx.test/hello?[1-20]", *options).stdout.decode().split()
        assert answer[0] == "1"
        assert set(answer[1:]) == {"0"}

    def test_a_redirect_is_followed(self, site: Serving) -> None:
        assert curl(site, "http://nginx.test/moved", "-L").stdout == b"hello from nginx\n"

    def test_over_ipv6(self, site: Serving) -> None:
        port = site.address("six")[1]
        assert curl(site, "http://local.test/", to=f"[::1]:{port}").stdout == b"from lb\n"

    def test_over_a_unix_socket(self, site: Serving) -> None:
        path = str(site.native.listeners["local"]["address"]).removeprefix("unix:")
        assert curl(site, "http://local.test/", "--unix-socket", path).stdout == b"from lb\n"
        seen = json.loads(curl(site, "http://socket.test/", "--unix-socket", path).stdout)
        assert seen["target"] == "/"

    def test_an_unknown_host_is_not_found(self, site: Serving) -> None:
        assert curl(site, "http://else.test/", "-w", "%{http_code}", "-o", "/dev/null").stdout == b"404"


def test_wrk_sees_no_error(site: Serving) -> None:
    host, port = site.address()
    before = site.lb.metric("lb_listener_requests_total", listener="http")
    command = ["wrk", "-t1", "-c32", "-d2s", "-H", "Host: nginx.test", f"http://{host}:{port}/hello"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE * 2).stdout
    assert "Non-2xx" not in output, output
    assert "Socket errors" not in output, output
    requests = int(re.search(r"(\d+) requests in", output)[1])  # type: ignore[index]
    assert requests > 0
    assert site.lb.metric("lb_listener_requests_total", listener="http") >= before + requests


class TestNginxBehind:
    def test_not_modified(self, site: Serving) -> None:
        with site.connect() as client:
            first = client.ask(get("nginx.test", "/page.html"))
            etag = (first.headers.get("etag") or b"").decode()
            again = client.ask(get("nginx.test", "/page.html", f"If-None-Match: {etag}"))
            assert (again.status, again.body) == (304, b"")
            assert client.ask(get("nginx.test", "/hello")).body == b"hello from nginx\n"

    def test_ranges(self, site: Serving) -> None:
        with site.connect() as client:
            answer = client.ask(get("nginx.test", "/large.bin", "Range: bytes=1000-1999"))
            assert (answer.status, answer.body) == (206, payload(2_000)[1_000:])
            assert client.ask(get("nginx.test", "/large.bin", "Range: bytes=99999999-")).status == 416

    def test_compressed_chunks(self, site: Serving) -> None:
        with site.connect() as client:
            answer = client.ask(get("nginx.test", "/gzip/page.html", "Accept-Encoding: gzip"))
        assert answer.headers.get("content-encoding") == b"gzip"
        assert gzip.decompress(answer.body) == b"<p>hello</p>\n" * 500

    def test_no_content(self, site: Serving) -> None:
        with site.connect() as client:
            assert client.ask(get("nginx.test", "/nothing")).status == 204
            assert client.ask(get("nginx.test", "/hello")).status == 200

    def test_a_server_that_drops_the_connection(self, site: Serving) -> None:
        with site.connect() as client:
            assert client.ask(get("nginx.test", "/drop")).status == 502
            assert client.ask(get("nginx.test", "/hello")).status == 200

    def test_a_server_that_closes_after_three_requests(self, site: Serving) -> None:
        with site.connect() as client:
            for _ in range(100):
                assert client.ask(get("impatient.test", "/hello")).status == 200


async def test_aiohttp(site: Serving) -> None:
    host, port = site.address()
    base = f"http://{host}:{port}"

    async def body() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield payload(10_000)

    async with aiohttp.ClientSession(base, headers={"Host": "api.test"}) as session:

        async def one(number: int) -> None:
            async with session.get(f"/item/{number}", params={"q": "a b"}) as answer:
                assert (await answer.json())["target"] == f"/item/{number}?q=a+b"

        await asyncio.gather(*(one(number) for number in range(200)))
        async with session.post("/", json={"a": 1}) as answer:
            assert (await answer.json())["length"] == 8
        async with session.post("/", data=body()) as answer:
            assert (await answer.json())["digest"] == hashlib.sha256(payload(10_000) * 50).hexdigest()
        form = aiohttp.FormData({"field": "value"})
        form.add_field("file", payload(100_000), filename="x.bin")
        async with session.post("/form", data=form) as answer:
            assert (await answer.json())["headers"]["content-type"].startswith("multipart/form-data")
    async with (
        aiohttp.ClientSession(base, headers={"Host": "nginx.test"}) as session,
        session.get("/large.bin") as answer,
    ):
        assert hashlib.sha256(await answer.read()).hexdigest().encode() == digest(SIZE)


def test_h11_agrees_with_every_byte(site: Serving) -> None:
    connection = h11.Connection(h11.CLIENT)
    with socket.create_connection(site.address(), timeout=DEADLINE) as raw:
        for number in range(5):
            request = h11.Request(
                method="POST", target=f"/{number}", headers=[("Host", "api.test"), ("Transfer-Encoding", "chunked")]
            )
            for event in (request, h11.Data(data=b"one"), h11.Data(data=b"two"), h11.EndOfMessage()):
                raw.sendall(connection.send(event) or b"")
            events: list[h11.Event] = []
            while not events or not isinstance(events[-1], h11.EndOfMessage):
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(raw.recv(65_536))
                else:
                    assert isinstance(event, h11.Event)
                    events.append(event)
            assert isinstance(events[0], h11.Response)
            assert events[0].status_code == 200
            connection.start_next_cycle()


class TestWebsockets:
    def connect(self, site: Serving, **options: object) -> websockets.sync.client.ClientConnection:
        raw = socket.create_connection(site.address(), timeout=DEADLINE)
        return websockets.sync.client.connect("ws://chat.test/", sock=raw, max_size=None, **options)

    def test_messages_come_back(self, site: Serving) -> None:
        with self.connect(site) as chat:
            for message in ("hello", "ü" * 1_000, b"\0\xff" * 1_000, ""):
                chat.send(message)
                assert chat.recv(DEADLINE) == message

    def test_large_messages_come_back(self, site: Serving) -> None:
        with self.connect(site, compression=None) as chat:
            chat.send(payload(8_000_000))
            assert chat.recv(DEADLINE) == payload(8_000_000)

    def test_ping_is_answered(self, site: Serving) -> None:
        with self.connect(site) as chat:
            assert chat.ping().wait(DEADLINE)

    def test_close_codes_pass_in_both_directions(self, site: Serving) -> None:
        with self.connect(site) as chat:
            chat.send("close 4001")
            with pytest.raises(websockets.exceptions.ConnectionClosed):
                chat.recv(DEADLINE)
            assert chat.close_code == 4_001

    def test_many_at_once(self, site: Serving) -> None:
        with contextlib.ExitStack() as stack:
            chats = [stack.enter_context(self.connect(site)) for _ in range(50)]
            for number, chat in enumerate(chats):
                chat.send(f"{number}")
            for number, chat in enumerate(chats):
                assert chat.recv(DEADLINE) == f"{number}"
        wait_until(lambda: site.lb.get("/v1/status")["exchanges"] == 0, "the tunnels end", interval=0.05)
