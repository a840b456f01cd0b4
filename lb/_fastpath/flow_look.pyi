"""Looking at flows: what was asked, and what the reactors have answered."""

from collections.abc import Mapping
from typing import TypedDict

class CarriedFlow(TypedDict):
    """A live TCP flow or UDP session, as it was when its reactor looked at it."""

    kind: str
    """`tcp` or `udp`."""
    state: str
    """One of CARRIED_STATES."""
    thread: int
    listener: str
    peer: bytes | None
    """16 bytes, IPv4 as ::ffff:a.b.c.d, after a PROXY header; None: it has come by a Unix socket."""
    peer_port: int
    has_proxy: bool
    """A PROXY header has told who the client is."""
    proxy: bytes | None
    """Who sent it; None: it came by a Unix socket."""
    server_name: str
    """What its first TLS message said, where somebody has looked."""
    route: str
    upstream: str
    endpoint: str
    attempts: int
    age_ms: int
    idle_ms: int
    """Since the last byte; while it connects, since that began."""
    drain_ms: int | None
    """What its removed endpoint's time has left; None: it is not removed."""
    bytes_in: int
    bytes_out: int
    datagrams_in: int
    datagrams_out: int
    waits_for_endpoint: int
    """Bytes in lb that it has not taken yet."""
    waits_for_client: int

class CarriedTotal(TypedDict):
    """All that was asked for and goes to one endpoint."""

    upstream: str
    endpoint: str
    flows: int
    sessions: int
    bytes_in: int
    bytes_out: int
    waits_for_endpoint: int
    waits_for_client: int

CARRIED_STATES: tuple[str, ...]
LOOK_ORDERS: Mapping[str, int]
"""`age`, `idle`, `bytes`: the greatest first."""

class FlowLook:
    """A question about what is carried; asked by Engine.look_at_flows."""

    def waits_for(self) -> list[int]:
        """The threads that have not answered yet."""
    def cancel(self) -> None:
        """Nobody wants to know any more: the reactors leave off, and end no more flows."""
    def result(self) -> tuple[list[CarriedFlow], int, list[CarriedTotal]]:
        """(the first of them in the order that was asked for, how many there are, totals by endpoint), when nothing is
        waited for. MemoryError when there was none for the totals."""
