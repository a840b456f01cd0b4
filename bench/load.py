"""The load side: the backend, wrk, our own client, and single requests. All of it runs on the load CPU."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.build import BENCH, BIN
from bench.certificate import Certificate
from bench.machine import LOAD_CPU, run_on

GRPC_FIELDS = ("content-type: application/grpc", "te: trailers")
GRPC_BYTES = 123
"""Of the answer's message, without its prefix."""
HANG_SECONDS = 60
"""No load runs that long."""
BODY_BYTES = {"128": 128, "128-close": 128, "16k": 16 << 10, "1m": 1 << 20}


class LoadFailed(Exception):
    """The answers were not all right, so the figure means nothing."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""


def free_port() -> int:
    """A TCP port that nobody uses now. Below the range of ephemeral ports, from which connections would take it.

    Another run at the same time looks elsewhere first: a port that is given is not in use at once.
    """
    first = os.getpid() % 100 * 100
    for port in (18_000 + (first + offset) % 12_000 for offset in range(12_000)):
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError("no free port")


_given: set[int] = set()


def is_open(port: int, address: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def fetch(
    port: int, host: str, path: str, certificate: Certificate | None = None, server_name: str | None = None
) -> Answer:
    """One GET on its own connection; status 0 when there is no answer.

    With a certificate by TLS, and only from who can show it for `server_name` (default: `host`)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.connect()
        if certificate:
            connection.sock = certificate.context.wrap_socket(connection.sock, server_hostname=server_name or host)
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except (OSError, http.client.HTTPException):
        return Answer(0)
    finally:
        connection.close()


def start_on_load_cpu(command: list[str | Path], **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(command, text=True, preexec_fn=lambda: run_on(LOAD_CPU), **options)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True)
class Reply:
    """Of a gRPC call."""

    status: str
    """grpc-status, from the trailers; empty when there is none."""
    message: bytes


def frame(message: bytes) -> bytes:
    """A gRPC message with its prefix (gRPC over HTTP/2, Length-Prefixed-Message)."""
    return b"\0" + len(message).to_bytes(4) + message


def call(port: int, host: str, path: str, certificate: Certificate, message: bytes) -> Reply:
    """One unary call, by curl."""
    command: list[str | Path] = [
        *("curl", "--silent", "--http2", "--max-time", "10", "--cacert", certificate.chain, "--dump-header", "-"),
        *("--connect-to", f"::127.0.0.1:{port}", "--data-binary", "@-", f"https://{host}{path}"),
        *(part for field in GRPC_FIELDS for part in ("--header", field)),
    ]
    output = subprocess.run(command, input=frame(message), capture_output=True, check=False).stdout
    body = output.partition(b"\r\n\r\n")[2]
    size = int.from_bytes(body[1:5])
    status = re.search(rb"^grpc-status: (\d+)", body[5 + size :], re.MULTILINE)
    return Reply(status[1].decode() if status else "", body[5 : 5 + size])


def echoes(port: int, kind: socket.SocketKind) -> bool:
    """Whether stream_backend.c or datagram_backend.c answers, itself or through others."""
    message = b"e, is anybody there?"
    try:
        with socket.socket(type=kind) as client:
            client.settimeout(5 if kind == socket.SOCK_STREAM else 0.1)
            client.connect(("127.0.0.1", port))
            client.sendall(message)
            return client.recv(len(message), socket.MSG_WAITALL) == message
    except OSError:
        return False


@contextmanager
def backend(program: str = "backend", ready: Callable[[int], bool] = is_open) -> Iterator[tuple[int, int]]:
    """(port, pid) of a running backend."""
    port = free_port()
    process = start_on_load_cpu([BIN / program, str(port)])
    try:
        while not ready(port):
            if process.poll() is not None:
                raise RuntimeError(f"{program} does not start")
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def tls_backend(directory: Path, certificate: Certificate, addresses: Iterable[str]) -> Iterator[tuple[int, int]]:
    """(port, pid) of an nginx that ends TLS on these addresses, answers 128 bytes and closes when it is asked to."""
    home, port = directory / "tls-backend", free_port()
    home.mkdir()
    listen = " ".join(f"listen {address}:{port} ssl backlog=4096;" for address in addresses)
    files = {"dir": home, "chain": certificate.chain, "key": certificate.key}
    text = _TLS_BACKEND % {**files, "listen": listen, "body": "x" * 128}
    (home / "nginx.conf").write_text(text)
    process = start_on_load_cpu(["nginx", "-p", home, "-c", home / "nginx.conf", "-e", "stderr"])
    try:
        while not is_open(port, next(iter(addresses))):
            if process.poll() is not None:
                raise RuntimeError("the TLS backend does not start")
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


_TLS_BACKEND = """\
daemon off;
pid %(dir)s/pid;
worker_processes 1;
events { worker_connections 8192; }
http {
    access_log off;
    client_body_temp_path %(dir)s/body;
    proxy_temp_path %(dir)s/proxy;
    fastcgi_temp_path %(dir)s/fastcgi;
    uwsgi_temp_path %(dir)s/uwsgi;
    scgi_temp_path %(dir)s/scgi;
    ssl_certificate %(chain)s;
    ssl_certificate_key %(key)s;
    ssl_protocols TLSv1.3;
    server { %(listen)s return 200 "%(body)s"; }
}
"""


@contextmanager
def targets_file(targets: Iterable[tuple[str, str]]) -> Iterator[Path]:
    """(host, path) pairs as wrk.lua and client.c read them."""
    with tempfile.NamedTemporaryFile("w", prefix="bench-targets-") as file:
        file.writelines(f"{host} {path}\n" for host, path in targets)
        file.flush()
        yield Path(file.name)


@dataclass(frozen=True)
class Load:
    """What wrk is to do."""

    targets: Path
    connections: int = 64
    close: bool = False
    """A new connection for each request, by `Connection: close`."""
    body_bytes: int = 128


def run_load(command: list[str | Path], **options: object) -> tuple[int, str]:
    """(exit status, output) of a load generator. Raises LoadFailed when it hangs."""
    process = start_on_load_cpu(command, stdout=subprocess.PIPE, **options)
    try:
        output: str = process.communicate(timeout=HANG_SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise LoadFailed(f"{command[0]} does not end: {' '.join(map(str, command))}") from None
    return process.returncode, output


def run_wrk(load: Load, port: int, seconds: float) -> int:
    """Number of completed requests. Raises LoadFailed unless every one was answered with 200 and the whole body."""
    command: list[str | Path] = [
        "wrk",
        "-t1",
        f"-c{load.connections}",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "5s",
    ]
    if load.close:
        command += ["-H", "Connection: close"]
    command += ["-s", BENCH / "wrk.lua", f"http://127.0.0.1:{port}/"]
    status, output = run_load(command, env={**os.environ, "TARGETS": str(load.targets)})
    totals = json.loads(output.splitlines()[-1])
    failures = {kind: totals[kind] for kind in ("connect", "read", "write", "status", "timeout") if totals[kind]}
    if status or failures or not totals["requests"]:
        raise LoadFailed(f"wrk against port {port}: {failures or output}")
    if totals["bytes"] < totals["requests"] * load.body_bytes:
        raise LoadFailed(f"wrk against port {port}: {totals['bytes']} bytes for {totals['requests']} answers")
    return int(totals["requests"])


CIPHER, GROUP = "TLS_AES_128_GCM_SHA256", "X25519"
"""Of every TLS connection; client.c has them built in."""


@dataclass(frozen=True)
class Streams:
    """What h2load is to do: HTTP/2 over TLS."""

    url: str
    connections: int = 16
    streams: int = 32
    body_bytes: int = 128
    call: Path | None = None
    """Post this file as a gRPC call."""


def run_h2load(load: Streams, port: int, requests: int) -> float:
    """Seconds for that many requests. Raises LoadFailed unless every one was answered with 2xx and the whole body."""
    posted = ["-d", load.call, *(f"-H{field}" for field in GRPC_FIELDS)] if load.call else []
    command: list[str | Path] = [
        *("h2load", f"-n{requests}", f"-c{load.connections}", f"-m{load.streams}", "-t1"),
        *(f"--tls13-ciphers={CIPHER}", f"--groups={GROUP}", "--npn-list=h2", "-N10", *posted),
        *(f"--connect-to=127.0.0.1:{port}", load.url),
    ]
    status, output = run_load(command, stderr=subprocess.STDOUT)
    seconds = re.search(r"^finished in ([\d.]+)(us|ms|s),", output, re.MULTILINE)
    body = re.search(r"\((\d+)\) data$", output, re.MULTILINE)
    wanted = (
        f"{requests} succeeded, 0 failed, 0 errored, 0 timeout",
        f"Cipher: {CIPHER}\n",
        f"Server Temp Key: {GROUP} ",
        "Application protocol: h2\n",
    )
    missing = [text.strip() for text in wanted if text not in output]
    if status or missing or not seconds or not body or int(body[1]) < requests * load.body_bytes:
        raise LoadFailed(f"h2load against port {port}: without {missing}:\n{output[-1500:]}")
    return float(seconds[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[seconds[2]]


class LoadProgram:
    """A running load generator of ours, which reports in JSON objects.

    With `opens` it reports first that its connections are open, and waits then. `idle`: it runs only while nobody else
    wants its CPU.
    """

    def __init__(self, command: list[str | Path], *, opens: bool, idle: bool = False) -> None:
        self._opens = opens
        self._process = start_on_load_cpu(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if idle:
            os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))

    def read_line(self) -> dict[str, float]:
        """The next JSON object that it writes."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise LoadFailed(f"the client ended with {self._process.wait()}")
        values: dict[str, float] = json.loads(line)
        return values

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def begin(self) -> None:
        """Let it go on with what comes after opening."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def finish(self) -> None:
        """Let it end by itself: `idle` holds its connections until its stdin ends."""
        assert self._process.stdin
        self._process.stdin.close()

    def __enter__(self) -> Self:
        if self._opens:
            self.read_line()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


class Client(LoadProgram):
    """client.c. `how`: plain, tls, full or resumed."""

    def __init__(self, mode: str, port: int, *arguments: object, how: str = "plain", idle: bool = False) -> None:
        super().__init__([BIN / "client", mode, str(port), *map(str, arguments), how], opens=mode == "load", idle=idle)


class StreamClient(LoadProgram):
    """stream_client.c. `mode`: exchange, connect, down, up or idle."""

    def __init__(self, mode: str, port: int, connections: int, *seconds: float) -> None:
        command: list[str | Path] = [BIN / "stream_client", mode, str(port), str(connections), *map(str, seconds)]
        super().__init__(command, opens=True)


class DatagramClient(LoadProgram):
    """datagram_client.c. `mode`: busy or once."""

    def __init__(self, mode: str, port: int, sessions: int, seconds: float) -> None:
        command: list[str | Path] = [BIN / "datagram_client", mode, str(port), str(sessions), str(seconds)]
        super().__init__(command, opens=True)
