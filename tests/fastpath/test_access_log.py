"""The writer of the access log: no record is lost, whatever was written before it, and however soon it comes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb._fastpath.engine import LOG_FIELDS, Engine
from lb.compile.table import Compiler
from lb.model.config import Config
from lb.model.listener import Listener
from lb.observe.access import compile_format
from tests.harness.tcp import read_all

PROGRAM = compile_format("%{target}", LOG_FIELDS)


class Site:
    """An engine that answers 404, and a file for its records."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("wb")
        self.file = file
        self.engine = Engine(threads=1)
        self.engine.start()
        listener = Listener("http", 80)
        self.engine.publish(Compiler(self.engine).compile(Config(listeners={"http": listener}), 1))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            self.address = listening.getsockname()
            self.engine.open_listener("http", [listening.fileno()])

    def log(self, wanted: bool) -> None:
        self.engine.open_log(self._file.fileno(), PROGRAM if wanted else [])

    def ask(self, path: str) -> None:
        with socket.create_connection(self.address) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n".encode())
            assert read_all(client).startswith(b"HTTP/1.1 404 ")

    def logged(self) -> list[str]:
        self.engine.flush_log()
        return self.file.read_text().splitlines()

    def close(self) -> None:
        self.engine.stop()
        self._file.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "access.log")
    yield site
    site.close()


def test_the_first_record_is_written(site: Site) -> None:
    site.log(True)
    site.ask("/first")
    assert site.logged() == ["/first"]


def test_the_first_record_after_a_time_without_is_written(site: Site) -> None:
    site.log(True)
    site.ask("/before")
    assert site.logged() == ["/before"]
    site.log(False)
    site.ask("/unlogged")
    assert site.logged() == ["/before"]
    site.log(True)
    site.ask("/after")
    assert site.logged() == ["/before", "/after"]
