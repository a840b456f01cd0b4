"""UDP that is only carried: CPU time per datagram and its answer, on few busy sessions and with a session for each."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from bench.carriers import Carrier, DatagramService
from bench.figures.carried import carrying, choose
from bench.load import DatagramClient, LoadFailed, backend, echoes
from bench.measure import Cost, Figure, Row, Settings, against_best, cost_rows, cpu_cost

PEERS = ("lb", "nginx", "envoy")
LOST_MOST = 0.01
"""Of all datagrams. Their cost is in the figure, so nobody gains by losing some."""


def _cost(mode: str, sessions: int, responses: int) -> Callable[[Settings], list[Row]]:
    def run(settings: Settings) -> list[Row]:
        def take(carrier: Carrier) -> Cost:
            client = DatagramClient(mode, carrier.port, sessions, settings.seconds)
            with client, cpu_cost(carrier, there) as cost:
                client.begin()
                totals = client.read_line()
                took = cost(max(1, totals["exchanges"]))
            if totals["lost"] + totals["strays"] > totals["exchanges"] * LOST_MOST:
                raise LoadFailed(f"{carrier.name} loses datagrams, or mixes them up: {totals}")
            return took

        with backend("datagram_backend", partial(echoes, kind=socket.SOCK_DGRAM)) as (port, pid):
            there = replace(settings, backend_port=port, backend_pid=pid)
            service = DatagramService(port, responses=responses)
            with carrying(choose(settings, *PEERS), service, there) as carriers:
                return against_best(cost_rows(there.take_turns(carriers, take)), "nginx", "envoy")

    return run


UDP = Figure(
    "udp",
    "CPU per UDP datagram of 64 bytes and its answer, 8 busy sessions",
    "µs",
    "the best of nginx and Envoy",
    "≤ nginx and Envoy",
    1.0,
    "16 datagrams under way on each session, datagram_client.c, by recvmmsg and sendmmsg. HAProxy carries no UDP.",
    _cost("busy", 8, 0),
)
UDP_ONCE = Figure(
    "udp-once",
    "CPU per UDP datagram of 64 bytes and its answer, a session for each, as in DNS",
    "µs",
    "the best of nginx and Envoy",
    "≤ nginx and Envoy",
    1.0,
    "64 at a time, a port for each. With lb a session ends with its answer, with nginx and Envoy after 0.3 s: "
    "nginx loses datagrams with `proxy_responses`, Envoy does not count answers.",
    _cost("once", 64, 1),
)
