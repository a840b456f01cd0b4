"""UDP under everything at once: clients come and go by the dozen, endpoints die and come back, tables swap.

Datagrams may be lost while an endpoint is away. What arrives must be what was sent, arrive once, and arrive at whom it
was for; and the counters must have every one.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.harness.disturbance import disturbed
from tests.harness.native import Native
from tests.harness.ports import free_port
from tests.harness.serving import Serving, serving
from tests.harness.udp import UdpServer, udp_client
from tests.harness.waiting import SANITIZED, wait_until

HEADER = struct.Struct("!III")
"""Which visit, which question of it, which part of the answer."""

SIZES = (0, 1, 100, 1_400, 1_472, 8_000, 40_000)
WINDOW = 4
"""Questions under way of one client: few enough that no socket's buffer overflows."""
PATIENCE = 0.3
"""Seconds until a question counts as lost. Answers need a thousandth of it; one that is later is no error."""


def question(seed: int, visit: int, number: int) -> bytes:
    chance = random.Random(f"{seed} {visit} {number}")
    return HEADER.pack(visit, number, 0) + chance.randbytes(chance.choice(SIZES))


def answers(data: bytes) -> Iterable[bytes]:
    """Two for each question: it back, and a short word about it."""
    visit, number, _ = HEADER.unpack_from(data)
    return HEADER.pack(visit, number, 1) + data[HEADER.size :], HEADER.pack(visit, number, 2)


class Storm:
    """Visits of clients, each from a socket of its own, to three endpoints."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.seed = seed
        self.sent = itertools.count()
        self.received: Counter[str] = Counter()

    def run(self, visits: int, at_once: int) -> None:
        native = Native()
        with contextlib.ExitStack() as stack:
            ports = [free_port() for _ in range(3)]
            servers = [UdpServer(answers, port=port) for port in ports]
            stack.callback(lambda: [server.close() for server in servers])
            native.upstream("servers", [server.key for server in servers], balance="maglev")
            native.carry_datagrams("plain", free_port(), "servers", max_sessions=24, idle_timeout="2s")
            site = stack.enter_context(serving(self.directory, native))
            with (
                disturbed(
                    site,
                    servers,
                    lambda which: UdpServer(answers, port=ports[which]),
                    seed=self.seed,
                    dying=0.3,
                    balance="maglev",
                ),
                ThreadPoolExecutor(at_once) as pool,
            ):
                list(pool.map(lambda visit: self.visit(site, visit), range(visits)))
            self.check(site)

    def visit(self, site: Serving, visit: int) -> None:
        chance = random.Random(f"{self.seed} {visit}")
        with udp_client(site.address("plain"), f"127.0.0.{1 + visit % 100}") as client:
            client.settimeout(PATIENCE)
            waiting: set[tuple[int, int]] = set()
            heard: set[tuple[int, int]] = set()
            for number in range(chance.randrange(1, 30)):
                client.send(question(self.seed, visit, number))
                next(self.sent)
                waiting |= {(number, 1), (number, 2)}
                while len(waiting) > 2 * (WINDOW - 1) and self.hear(client, visit, waiting, heard):
                    pass
            while waiting and self.hear(client, visit, waiting, heard):
                pass

    def hear(
        self, client: socket.socket, visit: int, waiting: set[tuple[int, int]], heard: set[tuple[int, int]]
    ) -> bool:
        """Check the next answer. False, and nothing is waited for any more, when none comes."""
        try:
            data = client.recv(70_000)
        except (TimeoutError, ConnectionRefusedError):
            self.received["lost"] += len(waiting)
            waiting.clear()
            return False
        whose, number, part = HEADER.unpack_from(data)
        assert whose == visit, "somebody else's answer"
        body = question(self.seed, visit, number)[HEADER.size :] if part == 1 else b""
        assert data[HEADER.size :] == body, f"visit {visit}, question {number}, part {part}: other bytes"
        assert (number, part) not in heard, "an answer came twice"
        heard.add((number, part))
        waiting.discard((number, part))
        self.received["answers"] += 1
        return True

    def check(self, site: Serving) -> None:
        sent = next(self.sent)
        assert self.received["answers"] > sent, "most of two answers a question"

        def counted() -> bool:
            received = site.lb.metric("lb_listener_datagrams_received_total", listener="plain")
            return received == sent

        wait_until(counted, f"all {sent} questions are counted")
        with udp_client(site.address("plain")) as client:
            client.send(question(self.seed, 0, 0))
            assert HEADER.unpack_from(client.recv(70_000))[:2] == (0, 0), "it serves on"
        wait_until(lambda: site.lb.metric("lb_connections_active") == 0, "all sessions have ended")
        records = [one for one in site.lb.log_records() if one["listener"] == "plain"]
        reasons = Counter(one["reason"] for one in records)
        assert set(reasons) <= {"session-timeout", "session-evicted", "upstream-reset", "connect-failed"}, reasons
        assert reasons["session-evicted"] > 0, reasons


@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_of_datagrams_mixes_up_none(tmp_path: Path, seed: int) -> None:
    Storm(tmp_path, seed).run(visits=60 if SANITIZED else 300, at_once=12)
