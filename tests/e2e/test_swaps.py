"""Changes under load: 200 of them, and nobody notices."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
from collections.abc import Iterator

import pytest
import websockets.sync.client

from tests.harness.client import get
from tests.harness.echo_server import EchoServer
from tests.harness.load import Load
from tests.harness.native import Native, forward, respond
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.waiting import DEADLINE, SANITIZED, wait_until
from tests.harness.websocket_server import WebsocketServer

SWAPS = 200


@pytest.fixture(scope="module")
def servers() -> Iterator[list[EchoServer]]:
    with EchoServer("a") as a, EchoServer("b") as b, EchoServer("c") as c:
        yield [a, b, c]


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory, servers: list[EchoServer]) -> Iterator[Serving]:
    native = Native()
    native.serve("shop.test", *(server.key for server in servers))
    native.host("marker.test", respond("marker", 200, "0"))
    with serving(tmp_path_factory.mktemp("swaps"), native) as started:
        yield started


def change(site: Serving, number: int, servers: list[EchoServer]) -> None:
    """Another table: routes come and go, weights and policies change, endpoints move."""
    native = site.native
    native.host("marker.test", respond("marker", 200, str(number)))
    native.serve(f"extra-{number % 7}.test", servers[number % 3].key)
    native.hosts.pop(f"extra-{(number + 3) % 7}.test", None)
    targets = [{"address": server.key, "weight": 1 + (number + index) % 4} for index, server in enumerate(servers)]
    native.upstream("shop.test", targets, balance=["round-robin", "least-connections"][number % 2])
    routes = [forward(f"shop-{number}-{index}", "shop.test", path=f"/part-{index}") for index in range(number % 5)]
    native.host("shop.test", *routes, forward("shop.test", "shop.test"))


def marker(site: Serving) -> int:
    with site.connect() as client:
        return int(client.ask(get("marker.test")).body)


@pytest.mark.timeout(300)
def test_swaps_under_load_fail_nothing_and_close_nothing(site: Serving, servers: list[EchoServer]) -> None:
    with WebsocketServer() as chat_server, contextlib.ExitStack() as stack:
        site.native.serve("chat.test", chat_server.key)
        site.apply()
        chats = []
        for _ in range(20):
            raw = socket.create_connection(site.address(), timeout=DEADLINE)
            chats.append(stack.enter_context(websockets.sync.client.connect("ws://chat.test/", sock=raw)))
        first = site.lb.generation
        with Load(site.address(), lambda n: get("shop.test", f"/part-{n % 6}/x"), connections=16, pause=0.002) as load:
            for number in range(1, SWAPS + 1):
                change(site, number, servers)
                site.native.write(site.path)
                if number % 2:
                    site.lb.signal(signal.SIGHUP)
                wait_until(lambda wanted=number: marker(site) == wanted, f"change {number} serves", interval=0.002)
                if number % 20 == 0:
                    for chat in chats:
                        chat.send(str(number))
                        assert chat.recv(DEADLINE) == str(number)
        load.assert_perfect()
        assert site.lb.generation >= first + SWAPS
        for chat in chats:
            chat.send("still here")
            assert chat.recv(DEADLINE) == "still here"
    wait_until(lambda: site.lb.metric("lb_tables_pinned") == 0, "old tables are freed", interval=0.05)


def test_a_tunnel_pins_its_table_and_nothing_else_does(site: Serving, servers: list[EchoServer]) -> None:
    """Endpoints that a change removes finish what they carry."""
    with WebsocketServer() as chat_server:
        site.native.serve("chat.test", chat_server.key)
        site.apply()
        raw = socket.create_connection(site.address(), timeout=DEADLINE)
        with websockets.sync.client.connect("ws://chat.test/", sock=raw) as chat:
            del site.native.hosts["chat.test"]
            del site.native.upstreams["chat.test"]
            site.apply()
            chat.send("alive")
            assert chat.recv(DEADLINE) == "alive"
            with site.connect() as client:
                assert client.ask(get("chat.test")).status == 404


def test_a_request_under_way_ends_on_the_table_it_began_with(site: Serving, servers: list[EchoServer]) -> None:
    with site.connect() as client:
        client.send(get("shop.test", "/slow/700"))
        wait_until(lambda: site.lb.get("/v1/status")["exchanges"] == 1, "the request is under way")
        site.native.host("shop.test", respond("gone", 410, "gone"))
        site.apply()
        assert client.response().status == 200
        assert client.ask(get("shop.test")).status == 410


def test_endpoints_come_and_go_under_load(site: Serving, servers: list[EchoServer]) -> None:
    with Load(site.address(), get("shop.test"), connections=16, pause=0.002) as load:
        for number in range(30):
            present = [server.key for index, server in enumerate(servers) if (number + index) % 3]
            site.native.upstream("shop.test", present)
            site.apply()
        load.wait_for_progress()
    load.assert_perfect()
    assert set(load.backends) == {"a", "b", "c"}


def test_a_removed_endpoint_gets_nothing_more(site: Serving, servers: list[EchoServer]) -> None:
    with Load(site.address(), get("shop.test"), connections=8, pause=0.002) as load:
        site.native.upstream("shop.test", [server.key for server in servers[:2]])
        site.apply()
        # What began before the swap may still be under way.
        load.wait_for_progress(100)
        before = load.backends["c"]
        load.wait_for_progress(300)
        assert load.backends["c"] == before
    load.assert_perfect()


def test_a_broken_file_changes_nothing(site: Serving, servers: list[EchoServer]) -> None:
    refused = "apiVersion: lb/v1\nkind: Config\nlisteners: {http: {port: [\n"
    with Load(site.address(), get("shop.test"), connections=4, pause=0.002) as load:
        good = site.path.read_text()
        site.path.write_text(refused)
        wait_until(lambda: site.lb.get("/v1/problems")["total"] > 0, "the problem is told", interval=0.05)
        load.wait_for_progress(100)
        site.path.write_text(good)
        wait_until(lambda: site.lb.get("/v1/problems")["total"] == 0, "the problem is gone", interval=0.05)
        load.wait_for_progress(100)
    load.assert_perfect()


@pytest.mark.parametrize(
    ("good", "typo", "code"),
    [
        ("kind: Config", "kind: Configs", "LB1003"),
        ("listeners:", "listener:", "LB5003"),
        ("hosts:", "host:", "LB5003"),
        ("hosts:\n  default:", "hosts: [default]\nsettings:\n  default:", "LB5003"),
        ("  default:\n    shop.test:", "  default:\n    Shop.test:", "LB5003"),
        ("upstreams:", "upstraems:", "LB5003"),
        ("address: 127.0.0.1\n", "address: localhost\n", "LB5003"),
        ("path: /\n", "path: 7\n", "LB5003"),
        ("      forward:\n        shop.test: 1", "      forward:\n        shop.tset: 1", "LB5004"),
        ("    endpoints:", "    endpoint:", "LB5003"),
    ],
)
def test_a_mistake_in_the_file_costs_no_request(
    site: Serving, servers: list[EchoServer], good: str, typo: str, code: str
) -> None:
    """What served goes on, is told as such, and follows the file again once it is mended."""
    text = site.path.read_text()
    assert good in text
    with Load(site.address(), get("shop.test"), connections=4, pause=0.002) as load:
        site.path.write_text(text.replace(good, typo, 1))
        wait_until(lambda: site.lb.get("/v1/problems")["total"] > 0, "the problem is told", interval=0.05)
        # That settings in a file of objects are not read is a warning besides.
        (problem,) = [one for one in site.lb.get("/v1/problems")["items"] if one["severity"] == "error"]
        assert problem["code"] == code
        assert problem["place"].startswith(f"{site.path}:")
        assert "stay" in problem["why"]
        load.wait_for_progress(100)
        site.native.host("marker.test", respond("marker", 200, "1"))
        site.native.write(site.path)
        wait_until(lambda: marker(site) == 1, "what is mended serves", interval=0.05)
        assert site.lb.get("/v1/problems")["total"] == 0
        load.wait_for_progress(100)
    load.assert_perfect()


def test_all_else_in_a_file_with_a_mistake_takes_effect(site: Serving) -> None:
    site.native.host("marker.test", respond("marker", 200, "2"))
    text = site.native.text()
    site.path.write_text(text.replace("    endpoints:", "    endpoint:", 1))
    wait_until(lambda: marker(site) == 2, "the host that changed serves", interval=0.05)
    with site.connect() as client:
        assert client.ask(get("shop.test")).status == 200
    # What goes away on purpose goes, while the mistake is still there.
    del site.native.hosts["marker.test"]
    site.path.write_text(site.native.text().replace("    endpoints:", "    endpoint:", 1))

    def status() -> int:
        with site.connect() as client:
            return client.ask(get("marker.test")).status

    wait_until(lambda: status() == 404, "the host is removed", interval=0.05)


def test_listeners_come_and_go(site: Serving, servers: list[EchoServer]) -> None:
    with Load(site.address(), get("shop.test"), connections=4, pause=0.002) as load:
        site.native.listen("second", free_port())
        site.apply()
        client = site.connect("second")
        assert client.ask(get("shop.test")).status == 200
        del site.native.listeners["second"]
        site.apply()
        # The connection goes on, or was told to end; new ones are refused.
        client.close()
        load.wait_for_progress()
    load.assert_perfect()


def test_a_change_costs_no_memory(site: Serving, servers: list[EchoServer]) -> None:
    numbers = itertools.count(1_000)

    def swap(count: int) -> None:
        for number in itertools.islice(numbers, count):
            change(site, number, servers)
            generation = site.lb.generation
            site.native.write(site.path)
            site.lb.signal(signal.SIGHUP)
            site.lb.wait_generation_after(generation)
        wait_until(lambda: site.lb.metric("lb_tables_pinned") == 0, "old tables are freed", interval=0.05)

    swap(20)
    before, descriptors = site.lb.rss_bytes(), site.lb.fd_count()
    swap(40)
    if not SANITIZED:
        assert site.lb.rss_bytes() - before < 8_000_000
    assert site.lb.fd_count() <= descriptors + 2
