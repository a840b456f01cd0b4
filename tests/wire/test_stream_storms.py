"""TCP listeners under much of everything: thousands of flows at once, both directions with pauses, each order of ends,
and storms of flows that send, rest, stop reading, close and reset while endpoints and tables come and go.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.harness.client import RawClient
from tests.harness.disturbance import disturbed
from tests.harness.many import EchoLoop, descriptors
from tests.harness.native import Native
from tests.harness.payload import MEGABYTE, payload
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.sides import HEADER, Outcome, Plan, content, judge, make_plan, play
from tests.harness.tcp import TcpServer, black_hole, ends_by_reset, read_all, read_exactly, reset, sending_fails
from tests.harness.waiting import SANITIZED, wait_until

# ---------------------------------------------------------------------------------------------------------------- ends

STEPS = {
    "client ends, endpoint ends": "ok",
    "endpoint ends, client ends": "ok",
    "client ends, client resets": "client-reset",
    "client ends, endpoint resets": "upstream-reset",
    "endpoint ends, endpoint resets": "upstream-reset",
    "endpoint ends, client resets": "client-reset",
    "client resets": "client-reset",
    "endpoint resets": "upstream-reset",
}
"""What the sides do, one after the other, and the reason that the flow ends with."""


@pytest.fixture(scope="module")
def server() -> Iterator[TcpServer]:
    with TcpServer() as started:
        yield started


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, server: TcpServer) -> Iterator[Serving]:
    native = Native()
    native.upstream("server", [server.key])
    native.carry("plain", free_port(), "server")
    with serving(tmp_path_factory.mktemp("ends"), native) as started:
        yield started


@pytest.mark.parametrize("size", [0, 3_000, 2 * MEGABYTE], ids=["silent", "small", "bulk"])
@pytest.mark.parametrize("steps", STEPS)
def test_each_order_of_ends(site: Serving, server: TcpServer, steps: str, size: int) -> None:
    """Before each step as many bytes pass as there are, from whoever takes it, and all of them arrive."""
    with site.connect("plain") as client, server.accept() as peer:
        port = client.socket.getsockname()[1]
        sides = {"client": client.socket, "endpoint": peer}
        ended: set[str] = set()
        client.send(b"hello")
        assert read_exactly(peer, 5) == b"hello"  # lb knows that the endpoint has taken the connection
        for step in steps.split(", "):
            who, what = step.split()
            other = "endpoint" if who == "client" else "client"
            if who not in ended and size:
                with ThreadPoolExecutor(1) as sender:
                    sending = sender.submit(sides[who].sendall, payload(size))
                    assert read_exactly(sides[other], size) == payload(size)
                    sending.result()
            if what == "ends":
                sides[who].shutdown(socket.SHUT_WR)
                assert read_all(sides[other]) == b""
                ended.add(who)
                continue
            reset(sides[who])
            if who in ended:
                assert sending_fails(sides[other])
            else:
                assert ends_by_reset(sides[other])
        assert site.lb.wait_log(1, listener="plain", client_port=port)[-1]["reason"] == STEPS[steps]


# --------------------------------------------------------------------------------------------------------------- urgent


def test_urgent_data_stops_nothing(tmp_path: Path, server: TcpServer) -> None:
    """Reading stops before an urgent byte, although more is there (tcp(7), Sockets API: the mark). Here all of it waits
    while lb connects.
    """
    native = Native()
    with black_hole() as hole:
        native.upstream("late", [hole, server.key], connect_timeout="200ms")
        native.carry("plain", free_port(), "late")
        with serving(tmp_path, native, threads=1) as site:
            for _ in range(2):
                with site.connect("plain") as client:
                    client.send(b"before ")
                    client.socket.send(b"!", socket.MSG_OOB)
                    client.send(b"behind")
                    with server.accept() as peer:
                        assert read_exactly(peer, 13) == b"before behind"
                        client.finish()
                        assert read_all(peer) == b""


@pytest.mark.parametrize("who", ["client", "endpoint"])
def test_urgent_data_in_the_middle_of_bulk(site: Serving, server: TcpServer, who: str) -> None:
    """What is spliced stops at the mark as well, and behind a FIN that looks like the end."""
    with site.connect("plain", receive_buffer=8_192) as client, server.accept() as peer:
        one, other = (client.socket, peer) if who == "client" else (peer, client.socket)

        def send() -> None:
            one.sendall(payload(3 * MEGABYTE))
            one.send(b"!", socket.MSG_OOB)
            one.sendall(payload(2 * MEGABYTE))
            one.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        got = read_all(other)
        sender.join()
        assert len(got) == 5 * MEGABYTE
        assert got == payload(5 * MEGABYTE)


# ---------------------------------------------------------------------------------------------------------------- bulk


def test_bulk_in_both_directions_with_pauses_and_slow_readers(site: Serving, server: TcpServer) -> None:
    """Every flow turns to bulk and back again, where a side rests, and has its own pace; not a byte is another."""
    plans = [
        Plan(6 * MEGABYTE + number, piece, chunk, pause, "fin", 0)
        for number, (piece, chunk, pause) in enumerate(
            [(1 << 20, 1 << 20, 0), (65_536, 65_536, 0.1), (1 << 20, 9_000, 0.02), (7_000, 1 << 20, 0.02)] * 3
        )
    ]

    def one(number: int, connected: socket.socket, *, client: bool) -> Outcome:
        plan = plans[number] if client else plans[number - 1]
        return play(connected, plan, *content_of(number, client=client), seed=number)

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(site.connect("plain")) for _ in plans]
        peers = []
        for number, client in enumerate(clients):
            client.send(HEADER.pack(number))
        for _ in clients:
            peer = stack.enter_context(server.accept())
            peers.append((HEADER.unpack(read_exactly(peer, HEADER.size))[0], peer))
        pool = stack.enter_context(ThreadPoolExecutor(2 * len(plans)))
        playing = [pool.submit(one, number, client.socket, client=True) for number, client in enumerate(clients)]
        served = {number: pool.submit(one, number, peer, client=False) for number, peer in peers}
        for number, outcome in enumerate(playing):
            told = judge(outcome.result(), plans[number], served[number].result(), plans[number - 1])
            assert told == [], number


def test_bulk_goes_on_after_lb_was_stopped(site: Serving, server: TcpServer) -> None:
    """A signal (SIGSTOP, a debugger, a frozen cgroup) ends splice early, like a socket that is full: splice_to_socket
    in fs/splice.c. Nobody tells of room that was never missing.
    """
    rounds, got = 60, [0] * 4

    def send(peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer.sendall(payload(MEGABYTE))

    def read(number: int, client: RawClient) -> None:
        with contextlib.suppress(OSError):
            while data := client.socket.recv(MEGABYTE):
                got[number] += len(data)

    with contextlib.ExitStack() as stack:
        for number in range(len(got)):
            client = stack.enter_context(site.connect("plain"))
            peer = stack.enter_context(server.accept())
            sender = threading.Thread(target=send, args=(peer,))
            reader = threading.Thread(target=read, args=(number, client))
            for run in (sender, reader):
                run.start()
                stack.callback(run.join)
            for end in (client.socket, peer):
                stack.callback(end.shutdown, socket.SHUT_RDWR)
        for _ in range(rounds):
            with site.lb.stopped():
                before = list(got)
            wait_until(partial(all_have, got, [4 * MEGABYTE + one for one in before]), "all flows go on")


def all_have(got: list[int], wanted: list[int]) -> bool:
    return all(one > least for one, least in zip(got, wanted, strict=True))


def content_of(number: int, *, client: bool) -> tuple[int, int]:
    """The streams of a flow, as one of its sides names them: (outgoing, incoming)."""
    up, down = 2 * number, 2 * number + 1
    return (up, down) if client else (down, up)


# --------------------------------------------------------------------------------------------------------------- storms


class Storm:
    """Flows between clients and three endpoints that follow plans drawn from a seed, while endpoints close and open
    again and tables swap.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.seed = seed
        self.plans: dict[int, tuple[Plan, Plan]] = {}
        self.served: dict[int, Outcome] = {}
        self.clients: dict[int, tuple[Outcome, int]] = {}
        """Number of the flow -> what its client saw, and the client's port."""

    def run(self, flows: int, at_once: int) -> None:
        chance = random.Random(self.seed)
        self.plans = {number: (make_plan(chance), make_plan(chance)) for number in range(flows)}
        native = Native()
        with contextlib.ExitStack() as stack:
            ports = [free_port() for _ in range(3)]
            servers = [TcpServer(self.serve, port=port) for port in ports]
            stack.callback(lambda: [server.close() for server in servers])
            native.upstream("servers", [server.key for server in servers])
            native.carry("plain", free_port(), "servers", drain_timeout="0s")
            site = stack.enter_context(serving(self.directory, native))
            with (
                disturbed(
                    site, servers, lambda which: TcpServer(self.serve, port=ports[which]), seed=self.seed, dying=0.5
                ),
                ThreadPoolExecutor(at_once) as pool,
            ):
                list(pool.map(lambda number: self.visit(site, number), range(flows)))
            wait_until(lambda: site.lb.metric("lb_connections_active") == 0, "all flows have ended")
            self.check(site, flows)

    def serve(self, connected: socket.socket) -> None:
        number = HEADER.unpack(read_exactly(connected, HEADER.size))[0]
        plan = self.plans[number][1]
        self.served[number] = play(connected, plan, *content_of(number, client=False), seed=self.seed + number)

    def visit(self, site: Serving, number: int) -> None:
        plan = self.plans[number][0]
        try:
            with RawClient(site.address("plain"), receive_buffer=8_192 if number % 5 == 0 else None) as client:
                port = client.socket.getsockname()[1]
                client.socket.sendall(HEADER.pack(number))
                outcome = play(client.socket, plan, *content_of(number, client=True), seed=self.seed - number)
        except ConnectionResetError:
            outcome, port = Outcome(saw="reset"), 0
        self.clients[number] = outcome, port

    def check(self, site: Serving, flows: int) -> None:
        wait_until(lambda: not any("_serve" in thread.name for thread in threading.enumerate()), "all have been served")
        for number, (outcome, _) in self.clients.items():
            plan, theirs = self.plans[number]
            served = self.served.get(number)
            told = judge(outcome, plan, served, theirs)
            assert told == [], f"seed {self.seed}, flow {number}: {plan}, {theirs}: {outcome}, {served}"
        records = site.lb.wait_log(flows, listener="plain")
        assert len(records) == flows
        ports = Counter(record["client_port"] for record in records)
        by_port = {record["client_port"]: record for record in records if ports[record["client_port"]] == 1}
        for number, (outcome, port) in self.clients.items():
            if port in by_port and number in self.served:
                self.check_record(by_port[port], outcome, self.served[number])

    def check_record(self, record: dict[str, object], client: Outcome, server: Outcome) -> None:
        assert server.received + HEADER.size <= record["bytes_in"] <= client.sent + HEADER.size, (
            record,
            client,
            server,
        )
        assert client.received <= record["bytes_out"] <= server.sent, (record, client, server)
        if record["reason"] == "ok":
            assert record["bytes_in"] == client.sent + HEADER.size, (record, client, server)
            assert record["bytes_out"] == server.sent, (record, client, server)
        else:
            assert record["reason"] in ("client-reset", "upstream-reset"), record


@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_of_flows_loses_no_byte_and_makes_up_no_end(tmp_path: Path, seed: int) -> None:
    Storm(tmp_path, seed).run(flows=100 if SANITIZED else 400, at_once=24)


# ----------------------------------------------------------------------------------------------------------- many flows


def test_ten_thousand_flows_at_once(tmp_path: Path) -> None:
    """Each carries bytes of its own, twice, and costs lb little memory while it is idle."""
    native = Native()
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(descriptors(25_000))
        # Two of each here, and two in lb, which keeps some back and lets nobody in above 95 % of the others.
        count = 500 if SANITIZED else min(10_000, given * 8 // 10 // 2)
        servers = stack.enter_context(EchoLoop(4))
        native.upstream("echo", servers.addresses)
        native.carry("plain", free_port(), "echo")
        site = stack.enter_context(serving(tmp_path, native, None, open_files=given))
        before = site.lb.rss_bytes()
        clients = [
            stack.enter_context(RawClient(site.address("plain"), source=f"127.0.0.{2 + number % 50}"))
            for number in range(count)
        ]
        for _ in range(2):
            for number, client in enumerate(clients):
                client.send(bytes(content(number, 0, 300)))
            for number, client in enumerate(clients):
                assert read_exactly(client.socket, 300) == content(number, 0, 300)
        assert site.lb.metric("lb_listener_connections_active", listener="plain") == count
        if not SANITIZED:
            assert (site.lb.rss_bytes() - before) / count < 4_096
        for number, client in enumerate(clients):
            client.finish() if number % 2 else client.close()
        for client in clients[1::2]:
            assert read_all(client.socket) == b""
        site.lb.wait_log(count, listener="plain", reason="ok", bytes_in=600, bytes_out=600)
        site.lb.assert_at_rest()
