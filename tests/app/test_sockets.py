"""Listening sockets: real ones, on loopback addresses and Unix paths."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lb.model.listener import Listener, ListenerProtocol, Transport
from lb.problems import Origin
from lb.settings import Bind
from lb.sockets import Listeners, find_holder, open_sockets
from tests.harness.descriptors import no_descriptors
from tests.harness.ports import free_port


class Accepting:
    """Keeps duplicates of what it is given, as the engine does."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[str, list[socket.socket]]] = {}
        self.calls: list[str] = []

    @property
    def open(self) -> dict[str, list[socket.socket]]:
        """By the name of the listener that they were opened for."""
        return dict(self.places.values())

    def open_listener(self, name: str, sockets: list[int], place: str) -> None:
        assert place not in self.places
        self.calls.append(f"open {place}")
        self.places[place] = name, [socket.socket(fileno=os.dup(descriptor)) for descriptor in sockets]

    def pass_listener(self, place: str, name: str) -> None:
        self.calls.append(f"pass {place} to {name}")
        self.places[place] = name, self.places[place][1]

    def close_listener(self, place: str) -> None:
        self.calls.append(f"close {place}")
        for opened in self.places.pop(place)[1]:
            opened.close()


@pytest.fixture
def engine() -> Iterator[Accepting]:
    engine = Accepting()
    yield engine
    for place in list(engine.places):
        engine.close_listener(place)


def names(**listeners: Listener) -> dict[str, Listener]:
    return listeners


def udp(name: str, port: int, address: str = "127.0.0.1") -> Listener:
    return Listener(name, port, address, "udp")


def test_one_socket_a_thread_on_one_port(engine: Accepting) -> None:
    listeners = Listeners(engine, 3, {})
    listeners.sync(names(web=Listener("web", free_port(), "127.0.0.1")))
    assert len(engine.open["web"]) == 3
    assert len({opened.getsockname() for opened in engine.open["web"]}) == 1
    for opened in engine.open["web"]:
        assert not os.get_blocking(opened.fileno())
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert listeners.opened["web"].address == "127.0.0.1:{}".format(engine.open["web"][0].getsockname()[1])
    assert not listeners.problems


def test_a_published_port_binds_elsewhere(engine: Accepting) -> None:
    listeners = Listeners(engine, 2, {(80, "tcp"): Bind("127.0.0.1", 0)})
    listeners.sync(names(web=Listener("web", 80), other=Listener("other", port := free_port(), "127.0.0.1")))
    assert engine.open["web"][0].getsockname()[1] not in (0, 80)
    assert listeners.opened["web"].address.startswith("127.0.0.1:")
    assert engine.open["other"][0].getsockname() == ("127.0.0.1", port)


def test_no_address_means_both_families(engine: Accepting) -> None:
    port = free_port()
    Listeners(engine, 1, {}).sync(names(web=Listener("web", port)))
    socket.create_connection(("127.0.0.1", port), 20).close()
    if engine.open["web"][0].family == socket.AF_INET6:
        socket.create_connection(("::1", port), 20).close()


def test_without_ipv6_only_ipv4_is_bound(engine: Accepting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lb.sockets._has_ipv6", lambda: False)
    Listeners(engine, 1, {}).sync(names(web=Listener("web", free_port())))
    assert engine.open["web"][0].family == socket.AF_INET


def test_a_taken_port_is_a_problem_that_says_who_has_it_and_the_others_serve(engine: Accepting) -> None:
    with socket.socket() as holder:
        # Even one that would share its port.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", free_port()))
        holder.listen()
        port = holder.getsockname()[1]
        listeners = Listeners(engine, 1, {})
        wanted = names(bad=Listener("bad", port, "127.0.0.1"), good=Listener("good", free_port(), "127.0.0.1"))
        listeners.sync(wanted)
        (problem,) = listeners.problems
        assert problem.code == "LB6001"
        assert f"127.0.0.1:{port}" in problem.what
        assert "listens there" in problem.why
        assert f"--publish {port}=" in problem.fix
        assert list(listeners.opened) == ["good"]
    listeners.sync(wanted)  # the port is free now
    assert sorted(listeners.opened) == ["bad", "good"]
    assert not listeners.problems


HOLDER = """
import socket, sys
kind, address, port, only_six = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as held:
    if family == socket.AF_INET6:
        held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_six))
    held.bind((address, int(port)))
    if kind == "tcp":
        held.listen()
    print(flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(transport: Transport, address: str, port: int, *, only_six: bool = False) -> Iterator[str]:
    """One that has the port on this address; how it is named."""
    command = [sys.executable, "-c", HOLDER, transport, address, str(port), str(int(only_six))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline()
        yield f"{Path(f'/proc/{process.pid}/comm').read_text().strip()} (pid {process.pid})"
        process.stdin.close()


OURS = "another listener of lb"


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_who_has_the_port_on_another_address_is_not_accused(transport: Transport) -> None:
    """Neither of two processes with one port: each is told for the addresses that it has."""
    port = free_port()
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as ours, another_process(transport, "127.0.0.2", port) as other:
        ours.bind(("127.0.0.3", port))
        if transport == "tcp":
            ours.listen()
        assert find_holder(Bind("127.0.0.2", port, transport)) == other
        assert find_holder(Bind("127.0.0.3", port, transport)) == OURS
        assert find_holder(Bind("127.0.0.4", port, transport)) == ""
        assert find_holder(Bind("::1", port, transport)) == ""
        assert find_holder(Bind("::", port, transport)) == "", "alone, it is for IPv6 only"
        assert find_holder(Bind("0.0.0.0", port, transport)) in (other, OURS)
        assert find_holder(Bind("", port, transport)) in (other, OURS)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_who_has_all_addresses_is_named_for_each(transport: Transport) -> None:
    port = free_port()
    with another_process(transport, "0.0.0.0", port) as other:
        assert find_holder(Bind("127.0.0.2", port, transport)) == other
        assert find_holder(Bind("::1", port, transport)) == ""
    with another_process(transport, "::", port) as other:  # both families
        assert find_holder(Bind("127.0.0.2", port, transport)) == other
        assert find_holder(Bind("::1", port, transport)) == other
        assert find_holder(Bind("", port, transport)) == other
    with another_process(transport, "::ffff:127.0.0.2", port) as other:  # an address of IPv4
        assert find_holder(Bind("127.0.0.2", port, transport)) == other
        assert find_holder(Bind("127.0.0.3", port, transport)) == ""
        assert find_holder(Bind("::1", port, transport)) == ""


def test_who_has_the_family_is_named_rather_than_who_may_have_both() -> None:
    """Whether a socket on :: is for IPv6 only, the kernel's table does not say."""
    port = free_port()
    with another_process("tcp", "::", port, only_six=True), socket.create_server(("127.0.0.2", port)):
        assert find_holder(Bind("127.0.0.2", port)) == OURS


@pytest.mark.parametrize("first", ["", "127.0.0.2"])
def test_all_addresses_and_one_of_them(engine: Accepting, first: str) -> None:
    """Whoever comes first; the one address gets its own connections."""
    port = free_port()
    every, one = Listener("every", port), Listener("one", port, "127.0.0.2")
    listeners = Listeners(engine, 2, {})
    for name in ("every", "one") if first == "" else ("one", "every"):
        listeners.sync({"every": every, "one": one} if listeners.opened else {name: {"every": every, "one": one}[name]})
    assert listeners.problems == ()
    for address, name in (("127.0.0.1", "every"), ("127.0.0.2", "one")) * 5:
        with socket.create_connection((address, port), 20) as client:
            accepted = next(taken for taken in map(accept, engine.open[name]) if taken is not None)
            assert accepted.getpeername()[1] == client.getsockname()[1]
            accepted.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "unix:{directory}/web.sock"])
def test_who_has_no_descriptors_for_a_listener_is_told_to_raise_the_limit(
    engine: Accepting, tmp_path: Path, address: str
) -> None:
    listeners = Listeners(engine, 1, {})
    wanted = names(web=Listener("web", free_port(), address.format(directory=tmp_path)))
    with no_descriptors():
        listeners.sync(wanted)
    (problem,) = listeners.problems
    assert problem.code == "LB6001"
    assert problem.fix.startswith("raise the limit of open files")
    listeners.retry(wanted)
    assert not listeners.problems


def test_all_addresses_become_one(engine: Accepting) -> None:
    port = free_port()
    listeners = Listeners(engine, 1, {})
    listeners.sync(names(web=Listener("web", port)))
    slow_to_close = [socket.socket(fileno=os.dup(one.fileno())) for one in engine.open["web"]]
    listeners.sync(names(web=Listener("web", port, "127.0.0.2")))
    assert listeners.problems == ()
    for one in slow_to_close:
        one.close()


def accept(listening: socket.socket) -> socket.socket | None:
    try:
        return listening.accept()[0]
    except BlockingIOError:
        return None


def test_what_opens_does_so_before_anything_closes(engine: Accepting) -> None:
    """Who connects to the address that both have never finds it closed."""
    listeners = Listeners(engine, 1, {})
    port = free_port()
    all_addresses, one = str(Bind("", port)), str(Bind("127.0.0.1", port))
    listeners.sync(names(web=Listener("web", port)))
    listeners.sync(names(web=Listener("web", port, "127.0.0.1")))
    listeners.sync(names(web=Listener("web", port)))
    assert engine.calls == [
        *(f"open {all_addresses}", f"open {one}", f"close {all_addresses}"),
        *(f"open {all_addresses}", f"close {one}"),
    ]
    assert list(listeners.opened) == ["web"]
    assert not listeners.problems


def test_a_port_is_free_whose_holder_has_moved_on(engine: Accepting) -> None:
    """It still has its sockets there when the next one opens, although its name stands for another place already."""
    listeners = Listeners(engine, 1, {})
    first, second = free_port(), free_port()
    listeners.sync(names(a=Listener("a", first)))
    listeners.sync(names(a=Listener("a", second), b=Listener("b", first, "127.0.0.1")))
    assert listeners.problems == ()
    assert sorted(listeners.opened) == sorted(engine.open) == ["a", "b"]


def test_an_address_that_is_not_here_is_told(engine: Accepting) -> None:
    listeners = Listeners(engine, 1, {})
    listeners.sync(names(web=Listener("web", free_port(), "192.0.2.1")))
    assert listeners.problems[0].why == "this host does not have the address 192.0.2.1"


SERVICE = Origin("Service", "shop", "db")


def test_who_listens_for_a_service_is_told_how_services_say_it(engine: Accepting) -> None:
    """--publish is for a port, wherever it is; a Service has addresses of its own."""
    with socket.create_server(("127.0.0.1", 0)) as rival:
        port = rival.getsockname()[1]
        wanted = names(
            taken=Listener("taken", port, "127.0.0.1", "tcp", origin=SERVICE),
            away=Listener("away", port, "192.0.2.1", "tcp", origin=SERVICE),
        )
        listeners = Listeners(engine, 1, {})
        listeners.sync(wanted)
        taken, away = (listeners.closed[name].fix for name in ("taken", "away"))
        assert taken == "stop it, or name other addresses of this host in lb/addresses of Service shop/db"
        assert away == "bring the address to this host, or correct Service shop/db (lb/addresses, loadBalancerIP)"
        published = Listeners(engine, 1, {(port, "tcp"): Bind("127.0.0.1", port)})
        published.sync(names(taken=Listener("taken", port, "127.0.0.2", "tcp", origin=SERVICE)))
        assert f"--publish {port}=" in published.closed["taken"].fix


def test_only_what_changed_is_opened_and_closed(engine: Accepting) -> None:
    listeners = Listeners(engine, 1, {})
    first, second = free_port(), free_port()
    listeners.sync(names(a=Listener("a", first, "127.0.0.1"), b=Listener("b", second, "127.0.0.1")))
    kept = engine.open["a"]
    listeners.sync(names(a=Listener("a", first, "127.0.0.1", host_set="other")))
    assert engine.open == {"a": kept}, "what is not about the address leaves the sockets alone"
    assert list(listeners.opened) == ["a"]


def test_two_listeners_may_swap_their_ports(engine: Accepting) -> None:
    listeners = Listeners(engine, 2, {})
    first, second = free_port(), free_port()
    listeners.sync(names(a=Listener("a", first, "127.0.0.1"), b=Listener("b", second, "127.0.0.1")))
    kept = dict(engine.open)
    listeners.sync(names(a=Listener("a", second, "127.0.0.1"), b=Listener("b", first, "127.0.0.1")))
    assert engine.open == {"a": kept["b"], "b": kept["a"]}, "a socket that closes resets who is connecting to it"
    assert {name: (one.port, one.address) for name, one in listeners.opened.items()} == {
        "a": (second, f"127.0.0.1:{second}"),
        "b": (first, f"127.0.0.1:{first}"),
    }
    listeners.sync({})
    assert not engine.open


def test_a_place_passes_on_and_its_heir_leaves_its_own(engine: Accepting) -> None:
    listeners = Listeners(engine, 1, {})
    first, second = free_port(), free_port()
    listeners.sync(names(a=Listener("a", first, "127.0.0.1"), b=Listener("b", second, "127.0.0.1")))
    kept = engine.open["b"]
    listeners.sync(names(a=Listener("a", second, "127.0.0.1")))
    assert engine.open == {"a": kept}
    assert list(listeners.opened) == ["a"]
    assert listeners.opened["a"].address == f"127.0.0.1:{second}"
    listeners.sync(names(c=Listener("c", second, "127.0.0.1"), b=Listener("b", first, "127.0.0.1")))
    assert {name: one.port for name, one in listeners.opened.items()} == {"c": second, "b": first}
    assert not listeners.problems


def test_of_two_that_want_a_place_one_has_it(engine: Accepting) -> None:
    """And the table says the same one."""
    listeners = Listeners(engine, 1, {})
    port = free_port()
    place = str(Bind("127.0.0.1", port))

    def apply(*wanted: str) -> dict[str, str]:
        config = {name: Listener(name, port, "127.0.0.1") for name in wanted}
        places = listeners.places(config.values())
        listeners.sync(config)
        assert list(places.values()) == list(listeners.opened)
        assert list(listeners.closed) == [name for name in wanted if name not in listeners.opened]
        return places

    assert apply("a", "b") == {place: "a"}
    assert apply("b", "a") == {place: "a"}, "who has it keeps it"
    assert apply("b", "c") == {place: "b"}, "it passes to who comes first"
    assert apply("c") == {place: "c"}
    assert engine.calls == [f"open {place}", f"pass {place} to b", f"pass {place} to c"]


@pytest.mark.parametrize("transport", ["http", "udp"])
def test_of_two_at_a_place_of_several_addresses_one_has_it(engine: Accepting, transport: ListenerProtocol) -> None:
    """A listener on one address shares the port with one on all of them, not with both of those."""
    listeners = Listeners(engine, 1, {})
    port = free_port()
    every, other = Listener("every", port, "", transport), Listener("other", port, "", transport)
    one = Listener("one", port, "127.0.0.2", transport)
    listeners.sync(names(every=every, one=one, other=other))
    assert list(listeners.closed) == ["other"]
    listeners.retry(names(every=every, one=one, other=other))
    assert list(listeners.closed) == ["other"]
    listeners.sync(names(one=one, other=other))
    assert sorted(listeners.opened) == sorted(engine.open) == ["one", "other"]
    listeners.sync({})
    assert not engine.open


def test_who_is_to_have_a_place_alone_gets_it(engine: Accepting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when whoever keeps it from both goes away between their tries: the table has named one of them."""
    port = free_port()
    listeners = Listeners(engine, 1, {})
    wanted = names(a=Listener("a", port, "127.0.0.1"), b=Listener("b", port, "127.0.0.1"))
    with socket.create_server(("127.0.0.1", port)) as holder:

        def fail_and_go(*_: object, **__: object) -> list[socket.socket]:
            holder.close()
            monkeypatch.undo()
            raise OSError(errno.EADDRINUSE, "in use")

        monkeypatch.setattr("lb.sockets.open_sockets", fail_and_go)
        listeners.sync(wanted)
    assert not listeners.opened
    assert listeners.closed["b"].why == "listener a is to have it"
    listeners.retry(wanted)
    assert list(listeners.opened) == ["a"]


def test_free_ports_stay_with_their_listener(engine: Accepting) -> None:
    listeners = Listeners(engine, 1, {(80, "tcp"): Bind("127.0.0.1", 0)})
    listeners.sync(names(web=Listener("web", 80), more=Listener("more", 80)))
    assert len({opened[0].getsockname() for opened in engine.open.values()}) == 2
    listeners.sync(names(front=Listener("front", 80), more=Listener("more", 80)))
    assert list(engine.open) == ["more", "front"]
    assert not listeners.problems


def test_udp_sockets_pass_on_as_those_of_tcp_do(engine: Accepting) -> None:
    """Their sessions would end with them. A port of TCP with the same number is another place."""
    listeners = Listeners(engine, 2, {})
    port = free_port()
    listeners.sync(names(a=udp("a", port), web=Listener("web", port, "127.0.0.1")))
    kept = dict(engine.open)
    wanted = names(b=udp("b", port), web=Listener("web", port, "127.0.0.1"))
    assert sorted(listeners.places(wanted.values()).values()) == ["b", "web"]
    listeners.sync(wanted)
    assert engine.open == {"b": kept["a"], "web": kept["web"]}
    assert not listeners.problems


def test_a_unix_socket_replaces_a_dead_one_only(engine: Accepting, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listeners = Listeners(engine, 2, {})
    listeners.sync(names(web=Listener("web", 0, f"unix:{path}")))
    assert len(engine.open["web"]) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    rival = Listeners(engine, 1, {})
    rival.sync(names(rival=Listener("rival", 0, f"unix:{path}")))
    assert rival.problems[0].code == "LB6001"
    assert rival.problems[0].why == f"somebody listens on {path}"
    listeners.close()
    assert not path.exists()
    path.write_text("precious")
    listeners.sync(names(web=Listener("web", 0, f"unix:{path}")))
    assert listeners.problems
    assert path.read_text() == "precious"


def test_a_socket_file_that_cannot_be_removed_stops_nothing_else(engine: Accepting, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    unix, port = Listener("unix", 80, f"unix:{directory}/web.sock"), free_port()
    listeners = Listeners(engine, 1, {})
    listeners.sync(names(unix=unix))
    directory.rename(tmp_path / "away")
    directory.write_text("a file")
    listeners.sync(names(web=Listener("web", port, "127.0.0.1")))
    assert list(listeners.opened) == list(engine.open) == ["web"]


@pytest.mark.parametrize("by_name", [True, False])
def test_a_socket_from_systemd_is_used_and_stays_open(engine: Accepting, by_name: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as activated:
        port = activated.getsockname()[1]
        listeners = Listeners(engine, 4, {}, [("web" if by_name else "unknown", activated)])
        listeners.sync(names(web=Listener("web", 81 if by_name else port)))
        assert len(engine.open["web"]) == 1, "all threads share it"
        assert listeners.opened["web"].activated
        assert activated.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        listeners.close()
        socket.create_connection(("127.0.0.1", port), 20).close()


def test_a_socket_from_systemd_is_one_listeners(engine: Accepting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as activated:
        port = activated.getsockname()[1]
        listeners = Listeners(engine, 1, {}, [("web", activated)])
        wanted = names(a=Listener("a", port, "127.0.0.1"), b=Listener("b", port, "127.0.0.1"))
        listeners.sync(wanted)
        assert list(listeners.closed) == ["b"]
        assert list(engine.open) == ["a"]
        listeners.sync(names(b=wanted["b"]))
        assert list(listeners.opened) == list(engine.open) == ["b"]


def test_what_could_not_be_opened_opens_when_it_can(engine: Accepting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rival:
        wanted = names(web=Listener("web", rival.getsockname()[1], "127.0.0.1"))
        listeners = Listeners(engine, 2, {})
        listeners.sync(wanted)
        (problem,) = listeners.problems
        listeners.retry(wanted)
        assert listeners.problems == (problem,)
        assert not engine.open
    listeners.retry({})
    assert listeners.problems == (problem,), "a change is under way, and sync will see to it"
    listeners.retry(wanted)
    assert not listeners.problems
    assert list(listeners.opened) == list(engine.open) == ["web"]


def test_every_thread_has_a_udp_socket_of_the_port(engine: Accepting) -> None:
    listeners = Listeners(engine, 3, {})
    port = free_port()
    listeners.sync(names(dns=udp("dns", port), web=Listener("web", port, "127.0.0.1")))
    assert [one.type for one in engine.open["dns"]] == [socket.SOCK_DGRAM] * 3
    assert {one.getsockname() for one in engine.open["dns"]} == {("127.0.0.1", port)}
    assert listeners.opened["dns"].address == f"127.0.0.1:{port}/udp"
    assert listeners.opened["web"].address == f"127.0.0.1:{port}", "TCP has ports of its own"
    listeners.close()
    assert "web" not in listeners.opened
    assert "dns" in listeners.opened, "sessions under way need it until the engine stops"


def test_a_udp_port_that_is_taken_is_a_problem(engine: Accepting) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as rival:
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        rival.bind(("127.0.0.1", 0))
        port = rival.getsockname()[1]
        listeners = Listeners(engine, 2, {})
        listeners.sync(names(dns=udp("dns", port)))
    (problem,) = listeners.problems
    assert (problem.code, problem.what) == ("LB6001", f"listener dns cannot be opened at 127.0.0.1:{port}/udp")
    assert problem.why == "another listener of lb listens there"
    assert problem.fix.endswith(f"--publish {port}=ADDRESS:PORT/udp")


@pytest.mark.parametrize("address", ["127.0.0.1", "::"])
def test_a_udp_socket_from_systemd_gets_siblings(engine: Accepting, address: str) -> None:
    """Each thread needs one of its own; the two that systemd may give for one port are told apart by their type."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as activated, socket.create_server(("127.0.0.1", 0)) as tcp:
        activated.bind((address, tcp.getsockname()[1]))
        port = activated.getsockname()[1]
        listeners = Listeners(engine, 3, {}, [("dns", tcp), ("dns", activated)])
        listeners.sync(names(dns=udp("dns", port, "" if address == "::" else address)))
        assert {one.getsockname()[:2] for one in engine.open["dns"]} == {(address, port)}
        assert len(engine.open["dns"]) == 3
        assert listeners.opened["dns"].activated
        (unused,) = listeners.unused()
        assert unused == f"systemd's socket dns at 127.0.0.1:{port} belongs to no listener: clients wait there in vain"
        listeners.close()
        assert activated.getsockname()[1] == port, "it is systemd's, and stays open"


def test_sockets_are_closed_when_one_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[socket.socket] = []
    real = socket.socket.listen

    def fail_at_third(self: socket.socket, backlog: int) -> None:
        opened.append(self)
        if len(opened) == 3:
            raise OSError("no more")
        real(self, backlog)

    monkeypatch.setattr(socket.socket, "listen", fail_at_third)
    with pytest.raises(OSError, match="no more"):
        open_sockets(Bind("127.0.0.1", 0), 4)
    assert all(one.fileno() == -1 for one in opened)


def test_a_published_listener_that_cannot_be_opened_is_not_called_missing(engine: Accepting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rival:
        listeners = Listeners(engine, 1, {(80, "tcp"): Bind("127.0.0.1", rival.getsockname()[1])})
        listeners.sync(names(http=Listener("http", 80)))
        assert len(listeners.problems) == 1
        assert not listeners.unused()


def test_who_forgets_udp_is_told(engine: Accepting) -> None:
    listeners = Listeners(engine, 1, {(53, "tcp"): Bind("127.0.0.1", 5353)})
    listeners.sync(names(dns=Listener("dns", 53, "nowhere", "udp")))
    (told,) = listeners.unused()
    assert told.endswith("no TCP listener has port 53, but a UDP one has: write /udp behind it")


def test_what_serves_nothing_is_told(engine: Accepting) -> None:
    with socket.create_server(("127.0.0.1", 0)) as activated:
        listeners = Listeners(
            engine, 1, {(81, "tcp"): Bind("127.0.0.1", 8081), (82, "tcp"): Bind("127.0.0.1", 0)}, [("web", activated)]
        )
        listeners.sync(names(other=Listener("other", 82)))
        publish, passed = listeners.unused()
        assert publish == "--publish 81=127.0.0.1:8081: no TCP listener has port 81"
        assert passed.startswith("systemd's socket web at 127.0.0.1:")
        listeners.sync(names(web=Listener("web", 81), other=Listener("other", 82)))
        assert not listeners.unused()
