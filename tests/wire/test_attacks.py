"""Hostile peers and bad moments: unread answers, floods, half-closes, resets, and ends while something hangs on lb."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.backend import OK, BackendConnection, RawBackend, answering
from tests.harness.client import RawClient, get, post
from tests.harness.native import Native, respond
from tests.harness.payload import MEGABYTE
from tests.harness.ports import free_port
from tests.harness.process import ROOT, LbProcess
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE, wait_until

SMALL_BUFFER = 4_096
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"


def of_length(connection: BackendConnection) -> None:
    """`/N` is answered with N bytes."""
    while (request := connection.read()) is not None:
        size = int(request.target.rpartition(b"/")[2] or b"2")
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, b"x" * size)


@pytest.fixture(scope="module")
def lb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    backend = RawBackend(of_length)
    native = Native()
    native.listen("http", free_port())
    native.listen("short", free_port(), keepalive_timeout="500ms")
    native.serve("h", backend)
    native.host("own", respond("own", 200, "own"))
    with serving(tmp_path_factory.mktemp("attacks"), native, {"h": backend}) as running:
        yield running


def ended_unread(running: Serving, listener: str = "http") -> tuple[RawClient, int]:
    """A client that has read nothing of a response whose exchange has ended, and the response's length.

    Its last bytes wait in lb, for the length is just below what the sockets and lb hold together. The kernel alone
    knows how much that is, so it is looked for.
    """

    def ask(size: int) -> RawClient | None:
        client = running.connect(listener, receive_buffer=SMALL_BUFFER)
        client.send(get("h", f"/{size}"))
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            ended = [record for record in running.lb.log_records() if record["client_port"] == port_of(client)]
            if ended:
                return client
            time.sleep(0.02)
        client.reset()
        return None

    least, most = MEGABYTE // 2, 12 * MEGABYTE
    while most - least > 32_768:
        middle = (least + most) // 2
        tried = ask(middle)
        if tried is None:
            most = middle
        else:
            tried.reset()
            least = middle
    for size in range(least - 32_768, 0, -16_384):
        client = ask(size)
        if client is not None:
            return client, size
    raise AssertionError("no response ends without its reader")


def port_of(client: RawClient) -> int:
    return int(client.socket.getsockname()[1])


# ---------------------------------------------------------------------------------------------- unread answers


def test_an_unread_answer_does_not_hold_up_the_next(lb: Serving) -> None:
    client, size = ended_unread(lb)
    with client:
        assert len(client.response().body) == size
        assert client.ask(get("h", "/7")).body == b"x" * 7


def test_keep_alive_begins_when_the_last_byte_is_out(lb: Serving) -> None:
    """The listener's idle timeout holds for a client that does not read, not how long it may wait for a request."""
    client, size = ended_unread(lb, "short")
    with client:
        with lb.connect("short") as other:
            assert other.ask(get("own")).status == 200
            assert other.rest() == b""  # closed by its keep-alive timeout, which began later than the client's
        assert len(client.response().body) == size


def test_a_graceful_stop_keeps_what_was_not_read_yet(tmp_path: Path) -> None:
    backend = RawBackend(of_length)
    native = Native()
    native.listen("http", free_port())
    native.serve("h", backend)
    with serving(tmp_path, native, {"h": backend}) as running:
        client, size = ended_unread(running)
        with client:
            running.lb.signal(signal.SIGTERM)
            wait_until(lambda: "stopped listening" in running.lb.stderr, "lb drains")
            assert len(client.response().body) == size
            assert client.rest() == b""
        running.lb.assert_ends()


def test_pipelined_own_answers_do_not_hold_up_the_next_response(lb: Serving) -> None:
    count = 30_000
    with lb.connect(receive_buffer=SMALL_BUFFER) as client:
        sender = threading.Thread(target=client.send, args=(get("own") * count,))
        sender.start()
        sender.join(0.5)  # lb may stop reading; then it ends only once we read
        for _ in range(count):
            assert client.response().body == b"own"
        sender.join()
        assert client.ask(get("h", "/7")).body == b"x" * 7


def test_a_client_that_takes_no_answers_is_asked_no_more_questions(lb: Serving) -> None:
    before = lb.lb.rss_bytes()
    block = get("own") * 2_000
    sent = 0
    with lb.connect(receive_buffer=SMALL_BUFFER, timeout=1) as client, contextlib.suppress(TimeoutError):
        while sent < 60 * MEGABYTE:
            sent += client.socket.send(block)
    assert sent < 60 * MEGABYTE, f"{sent} bytes of requests taken, lb grew by {lb.lb.rss_bytes() - before}"


# ------------------------------------------------------------------------------------------------------ tunnels


@pytest.mark.parametrize("size", [10, 100_000])
def test_the_last_bytes_of_a_tunnel_come_with_their_end(tmp_path: Path, size: int) -> None:
    """The endpoint has half-closed; what the client then sends reaches it even when its FIN comes right behind."""
    received: list[bytes] = []
    over = threading.Event()

    def half_closing(connection: BackendConnection) -> None:
        connection.read()
        connection.send(SWITCHING)
        connection.socket.shutdown(socket.SHUT_WR)
        received.append(connection.wait_for_end())
        over.set()

    backend = RawBackend(half_closing)
    native = Native()
    native.serve("h", backend)
    with serving(tmp_path, native, {"h": backend}) as running, running.connect() as client:
        client.send(get("h", "/", "Connection: upgrade", "Upgrade: echo"))
        assert b" 101 " in client.rest()
        with running.lb.stopped():
            client.send(b"y" * size)
            client.finish()
        assert over.wait(DEADLINE)
        assert len(received[0]) == size


def reset_now(connected: socket.socket) -> None:
    """connect(AF_UNSPEC) sends an RST at once, even while another thread reads."""
    assert ctypes.CDLL(None).connect(connected.fileno(), bytes(16), 16) == 0


def test_a_tunnel_ends_with_its_client_however_much_the_endpoint_sends(tmp_path: Path) -> None:
    """The write that fails takes the reset off the socket; what reads as an end then is none."""
    over = threading.Event()
    ticks: list[int] = []

    def ticking(connection: BackendConnection) -> None:
        connection.read()
        connection.send(SWITCHING)
        with contextlib.suppress(OSError):
            while not over.wait(0.01):
                ticks.append(connection.socket.send(b"tick"))
        over.set()

    backend = RawBackend(ticking)
    native = Native()
    native.serve("h", backend)
    with serving(tmp_path, native, {"h": backend}, threads=1) as running:
        client = running.connect()
        client.send(get("h", "/", "Connection: upgrade", "Upgrade: echo"))
        wait_until(lambda: client.reader.fill() and b"tick" in client.reader.buffer, "the tunnel is open")
        with running.lb.stopped():
            before = len(ticks)
            wait_until(lambda: len(ticks) > before, "a tick waits for lb, which it will find before the reset")
            client.reset()
        try:
            assert over.wait(DEADLINE), "the endpoint is never told"
        finally:
            over.set()


@pytest.mark.parametrize("tunnel", [False, True], ids=["body", "tunnel"])
def test_a_reset_by_the_endpoint_never_passes_for_an_end(tmp_path: Path, tunnel: bool) -> None:
    held: list[socket.socket] = []
    over = threading.Event()

    def resetting(connection: BackendConnection) -> None:
        held.append(connection.socket)
        connection.read_head()
        connection.send(SWITCHING if tunnel else b"HTTP/1.1 200 OK\r\n\r\npart")
        connection.done()
        over.wait(DEADLINE)

    backend = RawBackend(resetting)
    native = Native()
    native.serve("h", backend)
    with serving(tmp_path, native, {"h": backend}, threads=1) as running, running.connect() as client:
        if tunnel:
            client.send(get("h", "/", "Connection: upgrade", "Upgrade: echo"))
        else:
            client.send(get("h", "/", "Content-Length: 1000000", method="POST") + b"x")
        wanted = b"\r\n\r\n" if tunnel else b"part"
        wait_until(lambda: client.reader.fill() and wanted in client.reader.buffer, "the response has begun")
        with running.lb.stopped():
            client.send(b"z" * 1_000)
            reset_now(held[-1])
        assert not client.rest().endswith(b"0\r\n\r\n")
        over.set()
        reasons = {record["reason"] for record in running.lb.wait_log(1)}
        assert not reasons & {"ok"}, reasons


@pytest.mark.parametrize(
    "lines",
    [
        ("Upgrade: foo, h2c",),
        ("Upgrade: ,h2c",),
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("Upgrade: h2c", "Upgrade: websocket"),
    ],
)
def test_http2_by_upgrade_is_never_passed_on(lb: Serving, lines: tuple[str, ...]) -> None:
    backend = lb.backends["h"]
    with lb.connect() as client:
        request = get("h", "/", "Connection: upgrade, http2-settings", "HTTP2-Settings: AAMAAABk", *lines)
        assert client.ask(request).status == 200
    head = backend.received[-1].request.raw_head.lower()
    assert b"h2c" not in head
    assert (b"\r\nupgrade:" in head) == (b"\r\nconnection: upgrade" in head)


# --------------------------------------------------------------------------------------------------- endpoints


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_a_kept_connection_that_has_just_ended_takes_no_post(tmp_path: Path, reset: bool) -> None:
    held: list[socket.socket] = []

    def holding(connection: BackendConnection) -> None:
        held.append(connection.socket)
        answering(OK)(connection)

    backend = RawBackend(holding)
    native = Native()
    native.serve("h", backend)
    with serving(tmp_path, native, {"h": backend}, threads=1) as running, running.connect() as client:
        assert client.ask(get("h")).status == 200
        wait_until(lambda: running.lb.metric("lb_upstream_connections_idle"), "the connection is kept")
        with running.lb.stopped():
            client.send(post("h", b"abc"))
            if reset:
                reset_now(held[-1])
            else:
                held[-1].shutdown(socket.SHUT_WR)
        assert client.response("POST").status == 200


def test_an_endpoint_that_does_not_answer_a_connect_rests(tmp_path: Path) -> None:
    """A node that has gone sends no RST: its connects time out."""
    backend = RawBackend()
    native = Native()
    native.listen("http", free_port())
    with socket.socket() as silent, contextlib.ExitStack() as fillers:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(4):  # its accept queue is full: the kernel drops what comes
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        native.serve("h", backend, f"127.0.0.1:{silent.getsockname()[1]}", connect_timeout="100ms")
        with serving(tmp_path, native, {"h": backend}, threads=1) as running:
            for _ in range(12):
                with running.connect() as client:
                    assert client.ask(get("h")).status == 200
            states = {one["state"] for one in running.lb.get("/v1/upstreams/h")["endpoints"]}
            assert "ejected" in states


# ------------------------------------------------------------------------------------------------- lb's own end


def test_a_drain_leaves_systemds_socket_alone(tmp_path: Path) -> None:
    """systemd keeps its end open: clients that come while lb drains must not reach what lb has freed."""
    go = threading.Event()

    def slow(connection: BackendConnection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        assert go.wait(DEADLINE)
        connection.send(b"cd")

    backend = RawBackend(slow)
    native = Native()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        native.listen("http", address[1])
        native.serve("h", backend)
        path = tmp_path / "lb.yaml"
        native.write(path)
        lb = LbProcess.__new__(LbProcess)
        lb.directory, lb.admin_socket, lb.stderr_path = tmp_path, tmp_path / "admin.sock", tmp_path / "stderr.log"
        started = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
            " os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
        )
        command = ["-m", "lb", "run", str(path), "--admin-socket", str(lb.admin_socket)]
        with lb.stderr_path.open("ab") as stderr:
            lb.process = subprocess.Popen(
                [sys.executable, "-c", started, str(listening.fileno()), *command, "--threads", "2"],
                cwd=ROOT, env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"},
                pass_fds=[listening.fileno()], stdout=stderr, stderr=stderr,
            )  # fmt: skip
        try:
            lb.wait_ready()
            with RawClient(address) as client, contextlib.ExitStack() as late:
                client.send(get("h"))
                wait_until(lambda: client.reader.fill() and b"ab" in client.reader.buffer, "half the answer")
                lb.signal(signal.SIGTERM)
                wait_until(lambda: "stopped listening" in lb.stderr, "lb drains")
                turns = lb.metric("lb_reactor_turns_total")
                for _ in range(5):
                    late.enter_context(socket.create_connection(address))
                for _ in range(50):
                    assert lb.admin("/livez")[0] == 200
                assert lb.metric("lb_reactor_turns_total") - turns < 1_000, "the reactors spin"
                go.set()
                assert client.response().body == b"abcd"
            lb.assert_ends()
        finally:
            go.set()
            if lb.process.poll() is None:
                lb.kill()
            backend.close()


def test_a_stop_does_not_wait_for_who_reads_the_access_log(tmp_path: Path) -> None:
    native = Native()
    native.listen("http", free_port())
    native.host("own", respond("own", 200, "own"))
    pipe, end = os.pipe()
    try:
        native.write(tmp_path / "lb.yaml")
        options = ("--access-log", f"/proc/{os.getpid()}/fd/{end}")
        with LbProcess([tmp_path / "lb.yaml"], tmp_path / "lb", *options) as lb:
            with RawClient(("127.0.0.1", native.listeners["http"]["port"])) as client:
                client.send(get("own") * 2_000)
                for _ in range(2_000):
                    assert client.response().status == 200
            lb.stop()
    finally:
        os.close(pipe)
        os.close(end)
