"""The load side: the backend, wrk, our own client, and single requests. All of it runs on the load CPU."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.build import BENCH, BIN
from bench.machine import LOAD_CPU, run_on

BODY_BYTES = {"128": 128, "128-close": 128, "16k": 16 << 10, "1m": 1 << 20}


class LoadFailed(Exception):
    """The answers were not all right, so the figure means nothing."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""


def free_port() -> int:
    """A TCP port that nobody uses now. Below the range of ephemeral ports, from which connections would take it."""
    for port in range(18_000, 30_000):
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


def fetch(port: int, host: str, path: str, timeout: float = 10) -> Answer:
    """One GET on its own connection; status 0 when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except (OSError, http.client.HTTPException):
        return Answer(0)
    finally:
        connection.close()


def start_on_load_cpu(command: list[str | Path], **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(command, text=True, preexec_fn=lambda: run_on(LOAD_CPU), **options)  # type: ignore[call-overload,no-any-return]


@contextmanager
def backend() -> Iterator[tuple[int, int]]:
    """(port, pid) of a running backend."""
    port = free_port()
    process = start_on_load_cpu([BIN / "backend", str(port)])
    try:
        while not fetch(port, "backend", "/128").status:
            if process.poll() is not None:
                raise RuntimeError("the backend does not start")
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


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
    process = start_on_load_cpu(command, stdout=subprocess.PIPE, env={**os.environ, "TARGETS": str(load.targets)})
    output = process.communicate()[0]
    totals = json.loads(output.splitlines()[-1])
    failures = {kind: totals[kind] for kind in ("connect", "read", "write", "status", "timeout") if totals[kind]}
    if process.returncode or failures or not totals["requests"]:
        raise LoadFailed(f"wrk against port {port}: {failures or output}")
    if totals["bytes"] < totals["requests"] * load.body_bytes:
        raise LoadFailed(f"wrk against port {port}: {totals['bytes']} bytes for {totals['requests']} answers")
    return int(totals["requests"])


class Client:
    """A running client.c."""

    def __init__(self, mode: str, port: int, *arguments: object) -> None:
        command: list[str | Path] = [BIN / "client", mode, str(port), *map(str, arguments)]
        self._process = start_on_load_cpu(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

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

    def finish(self) -> None:
        """Let it end by itself: `idle` holds its connections until its stdin ends."""
        assert self._process.stdin
        self._process.stdin.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
