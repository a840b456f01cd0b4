"""TCP that is only carried: CPU time per exchange, per connection and per GiB, and memory of idle flows."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import median
from typing import NamedTuple

from bench.carriers import (
    ADDRESSES,
    CARRIERS,
    Carrier,
    CopyingHAProxy,
    HAProxyCarrier,
    NamedService,
    Service,
    SplicingHAProxy,
)
from bench.certificate import make_certificate
from bench.contenders import Contender
from bench.load import LoadFailed, StreamClient, backend, targets_file, tls_backend
from bench.machine import cpu_seconds, resident_bytes
from bench.measure import (
    Cost,
    Figure,
    Row,
    Settings,
    against_best,
    all_started,
    client_cost,
    cost_rows,
    cpu_cost,
    started,
)

PLAIN = ("floor", "lb", "nginx", "haproxy", "envoy")
PEERS = ("lb", "nginx", "haproxy", "envoy")
NAMES = 100
GIB = 1 << 30
FEW = 1000
MANY = min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] * 8 // 10 // 2)
"""Idle flows. Each has two descriptors, and lb keeps some back."""


@contextmanager
def carrying(kinds: list[type[Carrier]], service: Service, settings: Settings) -> Iterator[list[Carrier]]:
    """All of them that start, in front of one service."""
    carriers = [kind(service, settings.directory) for kind in kinds]
    with all_started(carriers, Carrier.check, settings) as ready:
        yield ready


def choose(settings: Settings, *names: str) -> list[type[Carrier]]:
    return [CARRIERS[kind.name] for kind in settings.choose(*names)]


@contextmanager
def _streams(kinds: list[type[Carrier]], settings: Settings) -> Iterator[tuple[list[Carrier], Settings]]:
    with backend("stream_backend") as (port, pid):
        there = replace(settings, backend_port=port, backend_pid=pid)
        with carrying(kinds, Service(port), there) as carriers:
            yield carriers, there


def _cost(mode: str, compared: str) -> Callable[[Settings], list[Row]]:
    """Of an exchange. Ratios are to `compared`."""

    def run(settings: Settings) -> list[Row]:
        def take(carrier: Carrier) -> Cost:
            with StreamClient(mode, carrier.port, 64, settings.seconds) as client, cpu_cost(carrier, there) as cost:
                client.begin()
                return cost(client.read_line()["exchanges"])

        with _streams(choose(settings, *PLAIN), settings) as (carriers, there):
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

    kinds = choose(settings, *PEERS)
    if HAProxyCarrier in kinds:
        place = kinds.index(HAProxyCarrier)
        kinds[place : place + 1] = CopyingHAProxy, SplicingHAProxy
    with _streams(kinds, settings) as (carriers, there):
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
            with started(carrier, Carrier.check):
                base = _hold(carrier, FEW)
                values.append((_hold(carrier, MANY) - base) / (MANY - FEW))
        return Row(kind.name, values)

    with backend("stream_backend") as (port, _):
        return settings.each(settings.choose(*PEERS), take)


def _passthrough(settings: Settings) -> list[Row]:
    names = tuple(f"app-{number:02d}.example.com" for number in range(NAMES))
    certificate = make_certificate(settings.directory, ["*.example.com"])

    def take(carrier: Carrier) -> Cost:
        return client_cost(carrier, there, targets, "resumed")

    with tls_backend(settings.directory, certificate, ADDRESSES) as (port, pid):
        there = replace(settings, backend_port=port, backend_pid=pid)
        service = NamedService(port, names=names, certificate=certificate)
        with (
            carrying(choose(settings, *PEERS), service, there) as carriers,
            targets_file([(names[NAMES // 2], "/")]) as targets,
        ):
            return against_best(cost_rows(there.take_turns(carriers, take)), "haproxy")


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
PASSTHROUGH = Figure(
    "passthrough",
    "CPU per TLS connection that is passed through by its server name: handshake, one request, close",
    "µs",
    "HAProxy",
    "≤ HAProxy",
    1.0,
    f"64 at a time, one of {NAMES} names with an upstream each; the endpoint (nginx) has the key and closes. TLS 1.3, "
    "resumed handshakes, client.c, closed loop. HAProxy has `req.ssl_sni`, nginx `ssl_preread`, Envoy `tls_inspector`.",
    _passthrough,
)
