"""A port that passes from one listener to another under load: who connects, or is connected, never notices."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.harness.certificates import Authority
from tests.harness.client import RawClient, get
from tests.harness.messages import Truncated
from tests.harness.native import Native, respond
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.tcp import TcpServer, echo
from tests.harness.udp import UdpServer, ask, named, udp_client
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


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["http", "https", "tcp", "tls"])
def test_a_listener_goes_and_comes_back_while_clients_keep_coming(tmp_path: Path, kind: str) -> None:
    """Whoever comes to its sockets after the table that has it no more is sent away, or refused; and lb serves on."""
    authority, port, behind = Authority(), free_port(), free_port()
    hosts = {"who.test": {"certificates": ["default"]}}
    native = Native()
    native.host("who.test", respond("who", 200, "here"))
    native.certificate("default", authority.issue("who.test"))
    native.upstream("behind", [f"127.0.0.1:{behind}"])
    if kind in ("https", "tls"):
        native.listen_tls("stays", behind, hosts)
    else:
        native.listen("stays", behind)
    if kind == "http":
        native.listen("comes", port)
    elif kind == "https":
        native.listen_tls("comes", port, hosts)
    elif kind == "tcp":
        native.carry("comes", port, "behind")
    else:
        native.carry_tls("comes", port, {"who.test": "behind"})
    comes = native.listeners["comes"]
    context = ssl.create_default_context(cadata=authority.pem)

    def ask_for(client: RawClient) -> bytes:
        if kind in ("https", "tls"):
            client.socket = context.wrap_socket(client.socket, server_hostname="who.test")
        return asked(client)

    with serving(tmp_path, native) as site:
        with Newcomers(port, ask_for) as newcomers:
            for _ in range(CHANGES // 3):
                del native.listeners["comes"]
                site.apply()
                wait_until(lambda: refused(("127.0.0.1", port)), "nobody listens there any more")
                before = len(newcomers.answers)
                native.listeners["comes"] = comes
                site.apply()
                wait_until(lambda: len(newcomers.answers) > before, "clients are answered again")  # noqa: B023
        assert set(newcomers.answers) == {b"here"}
        # Where no answer of HTTP is possible, or somebody else's has begun, a connection can only end.
        assert all(isinstance(error, OSError) or error.seen == b"" for error in newcomers.errors), newcomers.errors


def test_an_open_connection_stays_with_whom_its_place_belonged_to_last(tmp_path: Path) -> None:
    """Not with a listener that has got the name of the one it was accepted for."""
    native = Native()
    for name in ("public", "internal"):
        native.sets[name] = {"who.test": [respond(name, 200, name)]}
    native.listen("first", free_port())
    native.listeners["first"]["host_set"] = "public"
    with serving(tmp_path, native) as site, site.connect("first") as kept:
        place = site.address("first")
        assert asked(kept) == b"public"
        native.listeners["second"] = native.listeners.pop("first")
        native.listen("first", free_port())
        native.listeners["first"]["host_set"] = "internal"
        site.apply()
        assert asked(kept) == b"public"
        native.listeners["second"]["port"] = free_port()
        site.apply()
        wait_until(lambda: refused(place), "nobody listens there any more")
        assert asked(kept) == b"public"
        del native.listeners["second"]
        site.apply()
        assert is_let_go(kept)


def test_a_place_that_becomes_tcp_answers_no_more_http(tmp_path: Path) -> None:
    native = Native()
    native.host("who.test", respond("who", 200, "default"))
    native.sets["public"] = {"who.test": [respond("public", 200, "public")]}
    native.listen("web", free_port())
    native.listeners["web"]["host_set"] = "public"
    with TcpServer(echo) as server, serving(tmp_path, native) as site, site.connect("web") as kept:
        assert asked(kept) == b"public"
        port = site.address("web")[1]
        native.upstream("server", [server.key])
        native.listeners.clear()
        native.carry("bytes", port, "server")
        site.apply()
        assert is_let_go(kept)


@pytest.mark.parametrize("name", ["web", "other"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_a_place_that_begins_to_ask_for_certificates(tmp_path: Path, name: str, secure: bool) -> None:
    """Whoever came before shows one, or is not served."""
    authority, clients = Authority(), Authority("Clients")
    native = Native()
    native.host("who.test", respond("who", 200, "secret"))
    native.certificate("default", authority.issue("who.test"))
    port = free_port()
    if secure:
        native.listen_tls("web", port, {"who.test": {"certificates": ["default"]}})
    else:
        native.listen("web", port)
    required = {"certificates": ["default"], "clients": {"mode": "required", "ca": clients.pem}}
    with serving(tmp_path, native) as site, site.connect("web") as kept:
        if secure:
            context = ssl.create_default_context(cadata=authority.pem)
            kept.socket = context.wrap_socket(kept.socket, server_hostname="who.test")
        assert asked(kept) == b"secret"
        native.listeners.clear()
        native.listen_tls(name, port, {"who.test": required})
        site.apply()
        if secure:
            assert kept.ask(get("who.test")).status == 421
        else:
            assert is_let_go(kept)


def test_a_udp_listener_moves(tmp_path: Path) -> None:
    native = Native()
    with UdpServer(named("here")) as server:
        native.upstream("server", [server.key])
        native.carry_datagrams("dns", free_port(), "server")
        native.listen("http", free_port())
        with serving(tmp_path, native) as site:
            for _ in range(3):
                wait_until(lambda: heard(site.address("dns")) == b"herex", "it answers at its new port")
                native.listeners["dns"]["port"] = free_port()
                site.apply()


@pytest.mark.timeout(240)
def test_udp_sessions_outlive_the_name_of_their_listener(tmp_path: Path) -> None:
    """What a client sends arrives, from the very port that its session has had from the beginning."""
    port = free_port()
    native = Native()
    native.listen("http", free_port())
    with UdpServer(named("here")) as server:
        native.upstream("server", [server.key])
        native.carry_datagrams("name-0", port, "server")
        with serving(tmp_path, native) as site, udp_client(("127.0.0.1", port)) as kept:
            assert ask(kept, b"x") == b"herex"
            for number in range(1, 10):
                native.listeners[f"name-{number}"] = native.listeners.pop(f"name-{number - 1}")
                site.apply()
                assert ask(kept, b"x") == b"herex"
                assert heard(("127.0.0.1", port)) == b"herex"
            assert len(server.senders) == 10, "one session of who stayed, and nine of who came"
            assert site.lb.metric("lb_listener_connections_active", listener="name-0") == 1
            assert site.lb.metric("lb_listener_connections_total", listener="name-9") == 1
            del native.listeners["name-9"]
            site.apply()
            ended = site.lb.wait_log(reason="listener-removed")
            assert {record["listener"] for record in ended} == {f"name-{number}" for number in range(10)}


def test_a_udp_port_passes_to_another_service(tmp_path: Path) -> None:
    """New clients are the other one's at once, those that came before have its drain time."""
    port = free_port()
    native = Native()
    native.listen("http", free_port())
    with UdpServer(named("first")) as first, UdpServer(named("second")) as second:
        native.upstream("first", [first.key])
        native.upstream("second", [second.key])
        native.carry_datagrams("one", port, "first", drain_timeout="30s")
        with serving(tmp_path, native) as site, udp_client(("127.0.0.1", port)) as kept:
            assert ask(kept, b"x") == b"firstx"
            del native.listeners["one"]
            native.carry_datagrams("two", port, "second", drain_timeout="200ms")
            site.apply()
            assert heard(("127.0.0.1", port)) == b"secondx"
            assert ask(kept, b"x") == b"firstx"


def test_a_udp_listener_goes_and_comes_back_while_clients_keep_coming(tmp_path: Path) -> None:
    port, over = free_port(), threading.Event()
    native = Native()
    native.listen("http", free_port())

    def send_anew() -> None:
        while not over.wait(0.0005):
            with suppress(ConnectionRefusedError), udp_client(("127.0.0.1", port)) as client:
                client.send(b"x")

    with UdpServer(named("here")) as server:
        native.upstream("server", [server.key])
        native.carry_datagrams("comes", port, "server")
        comes = native.listeners["comes"]
        with serving(tmp_path, native) as site:
            senders = [threading.Thread(target=send_anew) for _ in range(2)]
            for sender in senders:
                sender.start()
            try:
                for _ in range(CHANGES // 3):
                    del native.listeners["comes"]
                    site.apply()
                    native.listeners["comes"] = comes
                    site.apply()
                    wait_until(lambda: heard(("127.0.0.1", port)) == b"herex", "it answers again")
            finally:
                over.set()
                for sender in senders:
                    sender.join()


def is_let_go(client: RawClient) -> bool:
    """Closed without an answer, as a connection that has been idle for too long: the request may be sent again."""
    with pytest.raises(Truncated) as ended:
        client.ask(get("who.test"))
    return ended.value.seen == b""


def heard(address: tuple[str, int]) -> bytes:
    with suppress(ConnectionRefusedError, TimeoutError), udp_client(address) as client:
        client.settimeout(1)  # what crosses a change may be lost: who asks asks again
        return ask(client, b"x")
    return b""


def refused(address: tuple[str, int]) -> bool:
    try:
        RawClient(address).close()
    except ConnectionRefusedError:
        return True
    return False


def asked_anew(site: Serving) -> bytes:
    with site.connect("goes") as client:
        return asked(client)
