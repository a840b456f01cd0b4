"""The two ends of a connection through lb, each with a plan of what to send, how to read and how to end; and what must
hold afterwards between what one did and the other saw.

A plan says all from the beginning, so that a seed gives the same storm again.
"""

from __future__ import annotations

import contextlib
import errno
import random
import select
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Literal

from tests.harness.payload import MEGABYTE, payload
from tests.harness.tcp import reset
from tests.harness.waiting import DEADLINE

_NOISE = memoryview(payload(MEGABYTE) * 2)
HEADER = struct.Struct("!Q")
"""Number of the flow: what a client sends before what its plan says."""


@dataclass(frozen=True)
class Plan:
    """What one side does."""

    size: int
    """Bytes that it means to send; their content follows from the number of the flow and the side."""
    piece: int
    """Most bytes handed to the kernel at once."""
    chunk: int
    """Most bytes read at once."""
    pause: float
    """How likely it is that it rests for some milliseconds before the next step."""
    ends: Literal["fin", "reset", "close"]
    """`fin`: ends its half behind the last byte, and reads on to the end of the other; else it goes before that."""
    until: int
    """How many bytes have been sent and received in all when it goes."""


def make_plan(chance: random.Random) -> Plan:
    size = chance.choice((0, 1, 100, 1_000, 5_000, 70_000, 300_000, 1_500_000))
    return Plan(
        size,
        chance.choice((11, 1_448, 16_384, 65_536, 1 << 20))
        if size < 10_000
        else chance.choice((8_192, 65_536, 1 << 20)),
        chance.choice((1_000, 65_536, 1 << 20)),
        chance.choice((0, 0, 0.02, 0.2)),
        chance.choice(("fin", "fin", "fin", "reset", "close")),
        chance.choice((0, 1, 100, 50_000, 500_000)),
    )


@dataclass
class Outcome:
    """What one side has seen."""

    sent: int = 0
    received: int = 0
    finished: bool = False
    """It has ended its half."""
    saw: Literal["end", "reset", "nothing"] = "nothing"
    """How the other half ended; `nothing` when this side went before."""
    went: bool = False
    """It closed or reset the connection by its plan."""
    mistakes: list[str] = field(default_factory=list)


def play(connected: socket.socket, plan: Plan, outgoing: int, incoming: int, seed: int) -> Outcome:
    """Follow a plan to the end of the connection. `outgoing` and `incoming` name the content of both directions."""
    chance = random.Random(seed)
    done = Outcome()
    connected.setblocking(False)
    poll = select.poll()
    poll.register(connected)
    try:
        while True:
            if plan.ends != "fin" and done.sent + done.received >= min(plan.until, plan.size):
                done.went = True
                if plan.ends == "reset":
                    reset(connected)
                return done
            if done.sent == plan.size and plan.ends == "fin" and not done.finished:
                done.finished = True
                connected.shutdown(socket.SHUT_WR)
            if done.saw == "end" and (done.finished or done.sent == plan.size):
                return done
            wanted = (select.POLLIN if done.saw == "nothing" else 0) | (select.POLLOUT if done.sent < plan.size else 0)
            poll.modify(connected, wanted)
            if not poll.poll(DEADLINE * 1_000):
                done.mistakes.append("nothing has happened for too long")
                return done
            if chance.random() < plan.pause:
                time.sleep(chance.uniform(0, 0.004))
            _step(connected, plan, outgoing, incoming, done)
    except OSError as error:
        if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
            raise
        done.saw = "reset"
        return done


def _step(connected: socket.socket, plan: Plan, outgoing: int, incoming: int, done: Outcome) -> None:
    if done.sent < plan.size:
        with contextlib.suppress(BlockingIOError):
            done.sent += connected.send(content(outgoing, done.sent, min(plan.piece, plan.size - done.sent)))
    if done.saw == "nothing":
        try:
            data = connected.recv(plan.chunk)
        except BlockingIOError:
            return
        if not data:
            done.saw = "end"
        elif data != content(incoming, done.received, len(data)):
            done.mistakes.append(f"bytes {done.received} to {done.received + len(data)} are others than were sent")
        done.received += len(data)


def content(number: int, start: int, size: int) -> memoryview:
    """A piece of the stream that has this number; no two of them are alike, nor are their parts within a megabyte."""
    first = (number * 104_729 + start) % MEGABYTE
    return _NOISE[first : first + min(size, MEGABYTE)]


def judge(client: Outcome, plan: Plan, server: Outcome | None, server_plan: Plan) -> list[str]:
    """What is wrong between two outcomes; `server` is None when no server has got to know of the flow."""
    if server is None:
        # Its endpoint has gone before it took the connection. What the client hears of that is no end.
        return [*client.mistakes, *(["an end that nobody made"] if client.saw == "end" else [])]
    found = [*client.mistakes, *server.mistakes]
    for name, one, other, theirs in (("client", client, server, server_plan), ("server", server, client, plan)):
        ended = other.finished or (other.went and theirs.ends == "close")
        if one.received > other.sent:
            found.append(f"{name}: {one.received} bytes have come, {other.sent} were sent")
        if one.saw == "end" and (one.received != other.sent or not ended):
            found.append(
                f"{name}: an end after {one.received} of {other.sent} bytes, {'made' if ended else 'not made'}"
            )
    if plan.ends == server_plan.ends == "fin" and (client.saw, server.saw) != ("end", "end"):
        found.append(f"both end in order, and see: {client.saw}, {server.saw}")
    return found
