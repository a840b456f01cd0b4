"""The protocols of sd_notify and sd_listen_fds, against a real socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.systemd import Notifier, take_listening_sockets


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def test_messages(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environment)
    assert notifier.watchdog_seconds == 3
    assert not environment, "children must not speak for us"

    notifier.ready("serving")
    assert manager.recv(1024) == b"READY=1\nSTATUS=serving"
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    reloading, stamp = manager.recv(1024).decode().split("\n")
    assert reloading == "RELOADING=1"
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    notifier.status("two\nlines")
    assert manager.recv(1024) == b"STATUS=two lines"
    notifier.stopping("draining")
    assert manager.recv(1024) == b"STOPPING=1\nSTATUS=draining"
    notifier.extend_timeout(35)
    assert manager.recv(1024) == b"EXTEND_TIMEOUT_USEC=35000000"
    notifier.watchdog()
    assert manager.recv(1024) == b"WATCHDOG=1"


def test_an_abstract_socket() -> None:
    name = f"lb-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(20)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).watchdog()
        assert listening.recv(1024) == b"WATCHDOG=1"


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).ready("serving")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("serving")
    assert Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_seconds == 0


def test_sockets_for_another_process_are_not_taken() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    assert take_listening_sockets(environment) == []
    assert not environment


def test_sockets_are_taken_by_name() -> None:
    """In a process of its own, because the descriptors begin at 3."""
    program = """
import os, socket, sys
from lb.systemd import take_listening_sockets
environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http"}
for name, taken in take_listening_sockets(environment):
    print(name, taken.getsockname()[1], taken.getblocking(), os.get_inheritable(taken.fileno()))
"""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        # dup2 to 3 and 4 through high numbers, so that neither overwrites the other.
        spares = [os.dup2(opened.fileno(), 200 + index) for index, opened in enumerate((first, second))]
        script = f"exec 3<&{spares[0]} 4<&{spares[1]}; exec {sys.executable} -c '{program}'"
        output = subprocess.run(
            ["bash", "-c", script], pass_fds=spares, capture_output=True, text=True, check=True
        ).stdout
        for spare in spares:
            os.close(spare)
        ports = [opened.getsockname()[1] for opened in (first, second)]
    assert output.splitlines() == [f"http {ports[0]} False False", f"unknown {ports[1]} False False"]
