"""PostgreSQL, Redis and dnsmasq from the distribution as endpoints, each with a directory and a port of its own.

They leave what the machine itself runs alone, and nothing of them is left behind.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.harness.certificates import Authority
from tests.harness.ports import free_port
from tests.harness.waiting import DEADLINE, wait_until

_PATH = os.pathsep.join(
    [
        os.environ.get("PATH", ""),
        "/usr/sbin",
        *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)),
    ]
)


def require_programs(*names: str) -> None:
    """Skip the test where one of these is not installed."""
    missing = [name for name in names if program(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def program(name: str) -> str | None:
    """Where it is; PostgreSQL's programs count, which are in no PATH on Debian."""
    return shutil.which(name, path=_PATH)


def run(*command: str, text: str = "", environment: dict[str, str] | None = None) -> str:
    """Output of a client; AssertionError with what it said when it fails."""
    done = subprocess.run(
        [program(command[0]) or command[0], *command[1:]], input=text, capture_output=True, text=True,
        env=os.environ | (environment or {}), timeout=DEADLINE * 2, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"{' '.join(command)[:500]}: {done.returncode}\n{done.stdout[-2_000:]}{done.stderr[-4_000:]}"
    )
    return done.stdout


@contextlib.contextmanager
def _running(
    command: Sequence[str], directory: Path, port: int, *, address: str = "127.0.0.1", user: str | None = None
) -> Iterator[None]:
    """A daemon in the foreground, from when its port takes connections; it ends with the block."""
    log = directory / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [program(command[0]) or command[0], *command[1:]], cwd=directory, user=user,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip

    def answers() -> bool:
        assert process.poll() is None, f"{command[0]} ended with {process.returncode}:\n{log.read_text()[-2_000:]}"
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((address, port), DEADLINE):
            return True
        return False

    try:
        wait_until(answers, f"{command[0]} listens")
        yield
    finally:
        process.send_signal(signal.SIGINT)  # PostgreSQL: at once, without waiting for clients; the others: in order
        try:
            process.wait(DEADLINE)
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _directory_of(user: str | None) -> Iterator[Path]:
    """One that another user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="lb-test-") as name:
        if user is not None:
            shutil.chown(name, user)
        yield Path(name)


@contextlib.contextmanager
def postgres(authority: Authority) -> Iterator[int]:
    """A database cluster with one superuser, `tester`, that trusts everybody and speaks TLS, too; its port."""
    require_programs("initdb", "postgres", "psql", "pgbench")
    user = _plain_user()
    port = free_port()
    with _directory_of(user) as directory:
        data = directory / "data"
        initdb = [program("initdb") or "", "-D", str(data), "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync"]
        done = subprocess.run(
            [*initdb, "--locale=C"], user=user, cwd=directory, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        pair = authority.issue("127.0.0.1", "localhost")
        (data / "server.crt").write_text(pair.chain)
        (data / "server.key").touch(0o600)
        (data / "server.key").write_text(pair.key)
        if user is not None:
            shutil.chown(data / "server.crt", user)
            shutil.chown(data / "server.key", user)
        settings = {
            "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "ssl": "on", "fsync": "off",
            "max_connections": 60, "shared_buffers": "16MB", "max_wal_senders": 0, "wal_level": "minimal",
            "autovacuum": "off", "jit": "off",
        }  # fmt: skip
        command = ["postgres", "-D", str(data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with _running(command, directory, port, user=user):
            yield port


def _plain_user() -> str | None:
    """Whom a daemon runs as that refuses to be root's: None for whoever runs the tests."""
    if os.getuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    return "nobody"


@contextlib.contextmanager
def redis(*options: str) -> Iterator[int]:
    """A Redis that keeps nothing on disk; its port."""
    require_programs("redis-server", "redis-cli", "redis-benchmark")
    port = free_port()
    with _directory_of(None) as directory:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with _running([*command, "--dir", str(directory), *options], directory, port):
            yield port


@contextlib.contextmanager
def dnsmasq(*records: str, address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A name server that knows these records and asks nobody; its port, for UDP and TCP. Records are options."""
    require_programs("dnsmasq", "dig")
    port = port or free_port()
    with _directory_of(None) as directory:
        command = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces",
                   f"--listen-address={address}", f"--port={port}", "--pid-file=", "--no-dhcp-interface=lo",
                   f"--user={pwd.getpwuid(os.getuid()).pw_name}", *records]  # fmt: skip
        with _running(command, directory, port, address=address):
            yield port
