"""Which endpoint a hash chooses, in plain Python: `lb explain` asks it, and it is the oracle of the data plane's own
(lb/_fastpath/shares.pyx and balance.pyx). The same endpoints give the same choices in every process and on every node.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, ip_address
from typing import NamedTuple

_WORD = 2**64 - 1
_MIX_A = 0x9E3779B97F4A7C15
_MIX_B = 0xD6E8FEB86659FD93
_LOOKUPS = 32

SIZES = (16_381, 131_071, 1_048_573)
_TURNS = 25
"""An endpoint has so many turns at least before the next larger table is taken, so that equal ones differ by 4 %."""


class Share(NamedTuple):
    """An endpoint as balancing sees it."""

    key: str
    weight: int


def hash_bytes(data: bytes) -> int:
    """FNV-1a over 64 bits with a final mix (lb_hash in base.h)."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & _WORD
    h ^= h >> 32
    h = (h * _MIX_A) & _WORD
    return h ^ (h >> 29)


def pack_client(address: str) -> bytes:
    """The address as the data plane has it: 16 bytes, IPv4 as ::ffff:a.b.c.d."""
    parsed = ip_address(address)
    return b"\0" * 10 + b"\xff\xff" + parsed.packed if isinstance(parsed, IPv4Address) else parsed.packed


def hash_client(address: str) -> int:
    """What hash key `source` and client affinity choose by."""
    return hash_bytes(pack_client(address))


def table_size(count: int) -> int:
    """Of the Maglev table of so many endpoints with weight: a prime."""
    return next((size for size in SIZES if count <= size // _TURNS), SIZES[-1])


def maglev_table(endpoints: Sequence[Share], size: int = 0) -> list[int]:
    """The index of an endpoint for each slot (Eisenbud et al., NSDI 2016, 3.4); empty when none has weight.

    Each endpoint has a permutation of all slots, made of its own hash alone. In turns, at 0, 1/weight, 2/weight and so
    on, equals in the order of their hashes, each takes its next slot that is still free.
    """
    order = sorted((hash_bytes(key.encode()), index) for index, (key, weight) in enumerate(endpoints) if weight > 0)
    if not order:
        return []
    size = size or table_size(len(order))
    table = [-1] * size
    turns = []
    for place, (h, index) in enumerate(order):
        turns.append((0.0, place, index, (h >> 32) % size, (h & 0xFFFFFFFF) % (size - 1) + 1))
    heapq.heapify(turns)
    for _ in range(size):
        due, place, index, at, skip = turns[0]
        while table[at] >= 0:
            at = (at + skip) % size
        table[at] = index
        heapq.heapreplace(turns, (due + 1.0 / endpoints[index].weight, place, index, at, skip))
    return table


def choose_by_maglev(
    endpoints: Sequence[Share], table: Sequence[int], h: int, serves: Callable[[int], bool]
) -> int | None:
    """The index of the endpoint for a hash: of its slot, and while that one may not serve, of the hash hashed again."""
    for step in range(_LOOKUPS if table else 0):
        index = table[(_mix(h + step * _MIX_A) >> 32) * len(table) >> 32]
        if serves(index):
            return index
    return choose_by_rendezvous(endpoints, h, serves)


def choose_by_rendezvous(endpoints: Sequence[Share], h: int, serves: Callable[[int], bool]) -> int | None:
    """The index of the endpoint with the highest score for a hash (weighted rendezvous hashing)."""
    best, best_score = None, 0.0
    for index, (key, weight) in enumerate(endpoints):
        if weight <= 0 or not serves(index):
            continue
        uniform = ((_mix(h ^ hash_bytes(key.encode())) >> 11) + 0.5) / 2**53
        score = -weight / math.log(uniform)
        if best is None or score > best_score:
            best, best_score = index, score
    return best


def _mix(h: int) -> int:
    h = (h * _MIX_A) & _WORD
    h = ((h ^ (h >> 32)) * _MIX_B) & _WORD
    return h ^ (h >> 32)
