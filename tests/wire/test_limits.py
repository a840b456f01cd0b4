"""Limits of connections a second, of a listener and of a client: who is let in, who is turned away, and how."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.harness.backend import RawBackend
from tests.harness.client import get
from tests.harness.native import Native, respond
from tests.harness.ports import free_port
from tests.harness.proxy_header import v2
from tests.harness.serving import Serving, serving
from tests.harness.tcp import TcpServer, echo
from tests.harness.udp import UdpServer, ask, udp_client
from tests.harness.udp import echo as udp_echo
from tests.harness.waiting import DEADLINE, wait_until

PROXY = "127.0.0.7"
RATE = 3
MOST = 200
"""Attempts within which a rate of RATE must show: they would have to take a minute."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    native = Native()
    with ExitStack() as stack:
        server = stack.enter_context(TcpServer(echo))
        native.upstream("server", [server.key])
        native.serve("shop.test", stack.enter_context(RawBackend()))
        for name, options in {
            "all": {"max_connection_rate": RATE},
            "each": {"max_connection_rate_per_client": RATE},
            "both": {"max_connection_rate": 10, "max_connection_rate_per_client": RATE},
        }.items():
            native.carry(f"tcp-{name}", free_port(), "server", proxy_protocol=[PROXY], **options)
            native.listen(f"http-{name}", free_port(), proxy_protocol=[PROXY], **options)
        udp = stack.enter_context(UdpServer(udp_echo))
        native.upstream("udp", [udp.key])
        native.carry_datagrams("udp-all", free_port(), "udp", max_session_rate=RATE)
        native.carry_datagrams("udp-each", free_port(), "udp", max_session_rate_per_client=RATE)
        yield stack.enter_context(serving(tmp_path_factory.mktemp("limits"), native))


def is_let_in(site: Serving, listener: str, source: str, header: bytes = b"") -> bool:
    """Whether a new connection is served; if it is not, it must have been turned away as it should be."""
    tcp = listener.startswith("tcp")
    try:
        with site.connect(listener, source=source) as client:
            client.send(header + (b"hello" if tcp else get("shop.test")))
            data = client.socket.recv(10_000)
    except (ConnectionResetError, BrokenPipeError):
        return False  # even connecting may be told so
    if tcp:
        return data == b"hello"
    refusal = b"HTTP/1.1 503 " if listener == "http-all" else b"HTTP/1.1 429 "
    assert data.startswith((b"HTTP/1.1 200 ", refusal)) or (header and not data)
    return data.startswith(b"HTTP/1.1 200 ")


def count_until_refused(site: Serving, listener: str, source: str, header: bytes = b"") -> int:
    """How many connections are let in before the first one that is not."""
    for count in range(MOST):
        if not is_let_in(site, listener, source, header):
            return count
    raise AssertionError(f"{MOST} connections in a row were let in")


@pytest.mark.parametrize("protocol", ["tcp", "http"])
@pytest.mark.parametrize(("limit", "reason"), [("all", "connection-rate"), ("each", "client-connection-rate")])
def test_a_rate_is_kept(site: Serving, protocol: str, limit: str, reason: str) -> None:
    listener = f"{protocol}-{limit}"
    ended = site.lb.metric("lb_exchange_end_total", reason=reason)
    rejected = site.lb.metric("lb_listener_connections_rejected_total", listener=listener)
    assert count_until_refused(site, listener, "127.0.0.11") >= RATE
    wait_until(lambda: site.lb.metric("lb_exchange_end_total", reason=reason) > ended, "it is counted")
    assert site.lb.metric("lb_listener_connections_rejected_total", listener=listener) > rejected
    record = site.lb.wait_log(1, listener=listener, client="127.0.0.11", reason=reason)[-1]
    status = {"tcp-all": 0, "tcp-each": 0, "http-all": 503, "http-each": 429}[listener]
    assert (record["status"], record["protocol"], record["duration"]) == (status, "TCP", 0)
    assert record["client_port"]
    wait_until(lambda: is_let_in(site, listener, "127.0.0.11"), "time brings new ones")


@pytest.mark.parametrize("protocol", ["tcp", "http"])
def test_a_client_over_its_rate_takes_nothing_from_others(site: Serving, protocol: str) -> None:
    listener = f"{protocol}-both"
    count_until_refused(site, listener, "127.0.0.12")
    before = site.lb.metric("lb_exchange_end_total", reason="connection-rate")
    for _ in range(20):  # more than the listener's rate
        is_let_in(site, listener, "127.0.0.12")
    assert site.lb.metric("lb_exchange_end_total", reason="connection-rate") == before
    wait_until(lambda: is_let_in(site, listener, "127.0.0.13"), "the other one is let in")


@pytest.mark.parametrize("protocol", ["tcp", "http"])
def test_behind_a_proxy_it_is_the_clients_rate(site: Serving, protocol: str) -> None:
    listener = f"{protocol}-each"
    assert count_until_refused(site, listener, PROXY, v2("192.0.2.1")) >= RATE
    for number in range(2, 2 + 2 * RATE):
        assert is_let_in(site, listener, PROXY, v2(f"192.0.2.{number}"))
    record = site.lb.wait_log(1, listener=listener, client="192.0.2.1", reason="client-connection-rate")[-1]
    assert (record["proxy"], record["status"]) == (PROXY, 0), "it is closed without an answer"


@pytest.mark.parametrize(("limit", "reason"), [("all", "connection-rate"), ("each", "client-connection-rate")])
def test_new_udp_sessions_a_second(site: Serving, limit: str, reason: str) -> None:
    """What is over the rate is dropped; sessions that are there go on."""
    listener = f"udp-{limit}"

    def dropped() -> float:
        return site.lb.metric("lb_listener_datagrams_dropped_total", listener=listener, reason=reason)

    with ExitStack() as stack:
        clients = [stack.enter_context(udp_client(site.address(listener), "127.0.0.15")) for _ in range(RATE)]
        for client in clients:
            assert ask(client, b"hello") == b"hello"
        sent = 0
        while not dropped() and sent < MOST:
            stack.enter_context(udp_client(site.address(listener), "127.0.0.15")).send(b"one more")
            sent += 1
        assert dropped()
        record = site.lb.wait_log(1, listener=listener, client="127.0.0.15", reason=reason)[0]
        assert (record["protocol"], record["status"], record["duration"]) == ("UDP", 0, 0)
        for client in clients:
            assert ask(client, b"again") == b"again"


def test_a_change_resets_no_bucket(tmp_path: Path) -> None:
    native = Native()
    with TcpServer(echo) as server:
        native.upstream("server", [server.key])
        native.carry("tcp-each", free_port(), "server", max_connection_rate_per_client=1)
        with serving(tmp_path, native) as site:
            let_in = changes = 0
            while let_in == changes:  # every change would let in one more; time alone lets in one a second
                native.upstreams["server"]["max_queue"] = changes + 1
                site.apply()
                changes += 1
                let_in += is_let_in(site, "tcp-each", "127.0.0.14")
                assert changes < MOST


def test_refusals_push_no_record_of_who_is_served_out(tmp_path: Path) -> None:
    """While nobody reads the log, its ring fills: those who are turned away get half of it."""
    native = Native()
    native.listen("full", free_port(), max_connections=1)
    native.listen("open", free_port())
    native.host("own.test", respond("own", 200, "own"))
    pipe, end = os.pipe()
    try:
        # Long records keep the writer at each of them: what it cannot write for a second, it gives up.
        form = "%{listener} %{target:raw} %{reason} " + 2_000 * "x"
        options = ("--access-log", f"/proc/{os.getpid()}/fd/{end}", "--log-format", form)
        with serving(tmp_path, native, None, *options, threads=1) as site, site.connect("full") as holder:
            assert holder.ask(get("own.test")).status == 200
            knocks = 0
            while not site.lb.metric("lb_access_log_dropped_total"):
                for _ in range(500):
                    with suppress(ConnectionResetError), site.connect("full"):
                        knocks += 1
                assert knocks < 20_000
            with site.connect("open") as client:
                assert client.ask(get("own.test", "/served")).status == 200
            log, seen = b"", 0
            while b"open /served local-answer" not in log:
                assert select.select([pipe], [], [], DEADLINE)[0]
                log = log[-3_000:] + os.read(pipe, 65_536)
                seen += log.count(b"full  too-many-connections")
            assert seen
    finally:
        os.close(pipe)
        os.close(end)
