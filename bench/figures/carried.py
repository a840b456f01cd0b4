"""TCP that is only carried: CPU time per exchange, per connection and per GiB, and memory of idle flows."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import median
from typing import NamedTuple

from bench.carriers import CARRIERS, Carrier, CopyingHAProxy, HAProxyCarrier, Service, SplicingHAProxy, check_carrying
from bench.contenders import Contender
from bench.load import LoadFailed, StreamClient, backend
from bench.machine import cpu_seconds, resident_bytes
from bench.measure import (
    Cost,
    Figure,
    Row,
    Settings,
    against_best,
    all_started,
    cost_rows,
    cpu_cost,
    started,
)

PLAIN = ("floor", "lb", "nginx", "haproxy", "envoy")
PEERS = ("lb", "nginx", "haproxy", "envoy")
GIB = 1 << 30
FEW = 1000
MANY = min(10_000, (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 1000) // 2)
"""Idle flows. Each has two descriptors."""


@contextmanager
def _carrying(
    names: tuple[str, ...], settings: Settings, *, bulk: bool = False
) -> Iterator[tuple[list[Carrier], Settings]]:
    """All of them, in front of one endpoint program."""
    kinds = [CARRIERS[kind.name] for kind in settings.choose(*names)]
    if bulk and HAProxyCarrier in kinds:
        place = kinds.index(HAProxyCarrier)
        kinds[place : place + 1] = CopyingHAProxy, SplicingHAProxy
    with backend("stream_backend") as (port, pid):
        there = replace(settings, backend_port=port, backend_pid=pid)
        carriers = [kind(Service(port), settings.directory) for kind in kinds]
        with all_started(carriers, check_carrying, there) as ready:
            yield ready, there


def _cost(mode: str, compared: str) -> Callable[[Settings], list[Row]]:
    """Of an exchange. Ratios are to `compared`."""

    def run(settings: Settings) -> list[Row]:
        def take(carrier: Carrier) -> Cost:
            with StreamClient(mode, carrier.port, 64, settings.seconds) as client, cpu_cost(carrier, there) as cost:
                client.begin()
                return cost(client.read_line()["exchanges"])

        with _carrying(PLAIN, settings) as (carriers, there):
            return against_best(cost_rows(there.take_turns(carriers, take)), compared)

    return run


class Bulk(NamedTuple):
    """CPU seconds per GiB."""

    down: float
    up: float


def _bulk(flows: int, settings: Settings) -> list[Row]:
    def take(carrier: Carrier) -> Bulk:
        taken = []
        for direction in Bulk._fields:
            with StreamClient(direction, carrier.port, flows, settings.seconds / 2) as client:
                before = cpu_seconds(carrier.pid)
                client.begin()
                carried = client.read_line()["bytes"]
                taken.append((cpu_seconds(carrier.pid) - before) * GIB / carried)
        return Bulk(*taken)

    with _carrying(PEERS, settings, bulk=True) as (carriers, there):
        taken = there.take_turns(carriers, take)
    rows = [
        Row(
            name,
            [500 * (turn.down + turn.up) for turn in turns],
            extra={
                direction: round(1000 * median(getattr(turn, direction) for turn in turns))
                for direction in Bulk._fields
            },
        )
        for name, turns in taken.items()
    ]
    return against_best(rows, SplicingHAProxy.name)


def _hold(carrier: Carrier, count: int) -> int:
    """Resident bytes while `count` flows are idle, each after one exchange."""
    with StreamClient("idle", carrier.port, count) as client:
        resident = resident_bytes(carrier.pid)
        client.finish()
        left = client.read_line()["open"]
    if left != count:
        raise LoadFailed(f"{carrier.name} has closed {count - left:.0f} idle flows")
    return resident


def _idle(settings: Settings) -> list[Row]:
    def take(kind: type[Contender]) -> Row:
        values = []
        for _ in range(1 if settings.quick else 3):
            carrier = CARRIERS[kind.name](Service(port), settings.directory)
            with started(carrier, check_carrying):
                base = _hold(carrier, FEW)
                values.append((_hold(carrier, MANY) - base) / (MANY - FEW))
        return Row(kind.name, values)

    with backend("stream_backend") as (port, _):
        return settings.each(settings.choose(*PEERS), take)


TCP = Figure(
    "tcp",
    "CPU per exchange over TCP that is only carried, kept connections, 128 bytes each way",
    "µs",
    "the floor",
    "≤ 1.05 × floor and below every peer",
    1.05,
    "64 connections, each with one of its own to the endpoint; stream_client.c, closed loop. Opening is not counted.",
    _cost("exchange", "floor"),
    rivals={"nginx": 1, "haproxy": 1, "envoy": 1},
)
_BULK = (
    "Down and up for the same time, every byte compared at the end. HAProxy copies with buffers of 64 KiB, and splices "
    "with pipes of 1 MiB (`option splice-request`, `splice-response`; with `splice-auto` it costs three times as much)."
)
BULK = Figure(
    "tcp-bulk",
    "CPU per GiB over TCP that is only carried, 16 flows",
    "ms",
    "HAProxy, splicing",
    "≤ HAProxy with splice",
    1.0,
    _BULK,
    partial(_bulk, 16),
)
BULK_ONE = Figure(
    "tcp-bulk-one",
    "CPU per GiB over TCP that is only carried, one flow",
    "ms",
    "HAProxy, splicing",
    "≤ HAProxy with splice",
    1.0,
    _BULK,
    partial(_bulk, 1),
)
CONNECT = Figure(
    "tcp-connect",
    "CPU per TCP connection that is only carried: connect, one exchange of 128 bytes, close",
    "µs",
    "HAProxy",
    "≤ HAProxy",
    1.0,
    "64 at a time, each with a connection of its own to the endpoint; the client closes. stream_client.c, closed loop.",
    _cost("connect", "haproxy"),
)
TCP_IDLE = Figure(
    "tcp-idle",
    "Resident memory per idle flow of TCP that is only carried",
    "bytes",
    "",
    "≤ 1,024 bytes",
    1024,
    f"Growth from {FEW:,} to {MANY:,} flows, two connections each, after one exchange. Kernel memory is not counted.",
    _idle,
)
