"""Where listeners stand: who has an address and port first, and what is said of who comes too late."""

from __future__ import annotations

import ipaddress

from lb.model.address import is_ip_address
from lb.model.listener import Listener
from lb.problems import Problem

_ALL = ("0.0.0.0", "::")  # noqa: S104  # compares, does not bind
"""Of IPv4, and of IPv6."""


class Places:
    """The places that are taken so far."""

    def __init__(self) -> None:
        self._held: dict[tuple[object, ...], Listener] = {}

    def holder(self, listener: Listener) -> Listener | None:
        """Who has one of the places that the listener wants."""
        return next((self._held[place] for place in _places(listener) if place in self._held), None)

    def holder_of_rest(self, listener: Listener) -> Listener | None:
        """Who listens on all addresses, and so gets nothing at the one that the listener names."""
        address = ipaddress.ip_address(listener.address) if is_ip_address(listener.address) else None
        if address is None or address.is_unspecified:
            return None
        return self._held.get((_ALL[address.version == 6], listener.port, listener.transport))

    def take(self, listener: Listener) -> None:
        self._held |= dict.fromkeys(_places(listener), listener)


def _places(listener: Listener) -> list[tuple[object, ...]]:
    """What nobody else can have beside it: its address and port, of TCP or UDP, or its Unix socket.

    All addresses are a place of their own: who listens on one of them gets its connections, and who listens on all gets
    the others (the kernel takes the most specific socket; inet_hashtables.c, compute_score).
    """
    if listener.address and not is_ip_address(listener.address):
        return [(listener.address,)]
    if not listener.port:  # the kernel chooses one
        return []
    addresses = (str(ipaddress.ip_address(listener.address)),) if listener.address else _ALL
    return [(address, listener.port, listener.transport) for address in addresses]


def place_taken(loser: Listener, winner: Listener, fix: str = "") -> Problem:
    """The problem that somebody listens there already (LB4011), and how to fix it where more is known of the two."""
    whose = winner.origin.place or winner.origin.object or "lb's own"
    return Problem(
        "LB4011",
        loser.origin,
        f"listener {loser.name} on {loser.bind} meets listener {winner.name} on {winner.bind} ({whose})",
        why="native files and Ingresses go first, then the older object or the first in a file; this one does not "
        "listen there",
        fix=fix or "give one of them another port, or an address of its own (for Services the annotation lb/addresses)",
        field=next((route.field for route in loser.carried_routes), ""),
    )
