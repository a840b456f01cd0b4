"""A port that passes from one listener to another under load: who connects, or is connected, never notices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.client import RawClient, get
from tests.harness.messages import Truncated
from tests.harness.native import Native, respond
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.tcp import TcpServer, echo
from tests.harness.waiting import wait_until

CHANGES = 30


class Newcomers:
    """Threads that connect anew for every question; what went wrong is kept."""

    def __init__(self, port: int, ask: Callable[[RawClient], bytes], count: int = 4) -> None:
        self.port = port
        self.ask = ask
        self.answers: list[bytes] = []
        self.errors: list[Exception] = []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        while not self.over.wait(0.001):  # not so many that the kernel's own mistakes show (tests/harness/backend.py)
            try:
                with RawClient(("127.0.0.1", self.port)) as client:
                    self.answers.append(self.ask(client))
            except (OSError, Truncated, AssertionError) as error:
                self.errors.append(error)

    def __enter__(self) -> Newcomers:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Until so many more have been answered, or one has not."""
        goal = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= goal or self.errors, "clients are answered")

    def assert_perfect(self) -> None:
        assert not self.errors, f"{len(self.errors)} of {len(self.answers)} failed: {self.errors[:3]}"


def asked(client: RawClient) -> bytes:
    answer = client.ask(get("who.test"))
    assert answer.status == 200, answer
    return answer.body


@pytest.mark.timeout(240)
def test_a_listener_is_renamed(tmp_path: Path) -> None:
    port = free_port()
    native = Native()
    native.host("who.test", respond("who", 200, "here"))
    native.listen("name-0", port)
    with serving(tmp_path, native) as site, RawClient(("127.0.0.1", port)) as kept:
        with Newcomers(port, asked) as newcomers:
            for number in range(1, CHANGES):
                native.listeners[f"name-{number}"] = native.listeners.pop(f"name-{number - 1}")
                site.apply()
                assert asked(kept) == b"here"
                newcomers.wait_for(5)
        newcomers.assert_perfect()
        last = f"name-{CHANGES - 1}"
        record = site.lb.wait_log(listener=last)[-1]
        assert record["status"] == 200
        assert site.lb.metric("lb_listener_connections_active", listener="name-0") == 1, "who came then counts there"
        assert [item["name"] for item in site.lb.get("/v1/listeners")] == [last]


@pytest.mark.timeout(240)
def test_two_listeners_swap_their_ports(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    native = Native()
    for index, name in enumerate(("one", "two")):
        native.sets[name] = {"who.test": [respond(f"who-{name}", 200, name)]}
        native.listen(name, ports[index])
        native.listeners[name]["host_set"] = name
    with serving(tmp_path, native) as site, RawClient(("127.0.0.1", ports[0])) as kept:
        for number in range(CHANGES):
            here, there = ("one", "two") if number % 2 == 0 else ("two", "one")
            with Newcomers(ports[0], asked) as newcomers:
                newcomers.wait_for(5)
                native.listeners[here]["port"], native.listeners[there]["port"] = ports[1], ports[0]
                site.apply()
                assert asked(kept) == there.encode(), "a port's rules are those of who has it"
                before = len(newcomers.answers)
                newcomers.wait_for(5)
            newcomers.assert_perfect()
            assert set(newcomers.answers[: newcomers.answers.index(there.encode())]) == {here.encode()}
            assert set(newcomers.answers[before + len(newcomers.threads) :]) == {there.encode()}


@pytest.mark.timeout(240)
def test_a_tcp_port_passes_to_another_service(tmp_path: Path) -> None:
    port = free_port()

    def told(client: RawClient) -> bytes:
        client.send(b"hello")
        answer = client.reader.take(5)
        assert answer == b"hello", answer
        return answer

    with TcpServer(echo) as first, TcpServer(echo) as second:
        native = Native()
        native.upstream("first", [first.key])
        native.upstream("second", [second.key])
        native.carry("name-0", port, "first")
        with serving(tmp_path, native) as site, RawClient(("127.0.0.1", port)) as kept:
            told(kept)
            with Newcomers(port, told) as newcomers:
                for number in range(1, CHANGES):
                    del native.listeners[f"name-{number - 1}"]
                    native.carry(f"name-{number}", port, ("first", "second")[number % 2])
                    site.apply()
                    told(kept)
                    newcomers.wait_for(5)
            newcomers.assert_perfect()


def test_a_listener_that_only_goes_takes_nobody_with_it(tmp_path: Path) -> None:
    """Its port belongs to nobody then: new clients are refused by the kernel, old ones are served to their end."""
    native = Native()
    native.host("who.test", respond("who", 200, "here"))
    native.listen("stays", free_port())
    native.listen("goes", free_port())
    with serving(tmp_path, native) as site:
        gone = site.address("goes")
        with RawClient(gone) as kept:
            assert asked(kept) == b"here"
            native.listeners["goes"]["port"] = free_port()
            site.apply()
            wait_until(lambda: refused(gone), "nobody listens there any more")
            assert asked(kept) == b"here"
            assert asked_anew(site) == b"here"


def refused(address: tuple[str, int]) -> bool:
    try:
        RawClient(address).close()
    except ConnectionRefusedError:
        return True
    return False


def asked_anew(site: Serving) -> bytes:
    with site.connect("goes") as client:
        return asked(client)
