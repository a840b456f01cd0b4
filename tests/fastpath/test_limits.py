"""Connection rates against a bucket of tokens in plain Python, by a clock of the test's own."""

from __future__ import annotations

import ipaddress
import random
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from lb._fastpath import testing

SECOND_NS = 1_000_000_000
RATES = [1, 2, 5, 10, 1_000, 1_000_000]


def packed(text: str) -> bytes:
    address = ipaddress.ip_address(text)
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


class Bucket:
    """Holds `rate` tokens, and gets as many a second."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.tokens = Fraction(rate)
        self.now_ns = 0

    def take(self, now_ns: int) -> bool:
        self.tokens = min(Fraction(self.rate), self.tokens + Fraction((now_ns - self.now_ns) * self.rate, SECOND_NS))
        self.now_ns = now_ns
        taken = self.tokens >= 1
        self.tokens -= taken
        return taken


pauses = st.lists(st.one_of(st.just(0), st.integers(0, SECOND_NS // 10), st.integers(0, 3 * SECOND_NS)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(RATES), pauses, st.sampled_from([None, packed("192.0.2.1"), packed("2001:db8::1")]))
def test_a_rate_is_a_bucket(rate: int, between: list[int], client: bytes | None) -> None:
    bucket, now_ns, moments = Bucket(rate), SECOND_NS, []
    for pause in between:
        now_ns += pause
        moments.append(now_ns)
    got = testing.connections_in_rate(rate, [(moment, client) for moment in moments])
    assert got == [bucket.take(moment) for moment in moments]


def test_a_burst_is_what_one_second_brings() -> None:
    for rate in (1, 3, 7, 333):
        assert testing.connections_in_rate(rate, [(5, None)] * (rate + 5)) == [True] * rate + [False] * 5


def test_clients_count_for_themselves() -> None:
    clients = [packed(f"192.0.2.{number}") for number in range(1, 200)]
    assert all(testing.connections_in_rate(1, [(5, client) for client in clients]))


def test_an_ipv6_client_is_a_network() -> None:
    draw = random.Random(1)
    network = ipaddress.ip_network("2001:db8:1:2::/64")
    clients = [packed(str(network[draw.getrandbits(64)])) for _ in range(1_000)]
    assert testing.connections_in_rate(3, [(5, client) for client in clients]).count(True) == 3
    assert (
        testing.connections_in_rate(1, [(5, packed("2001:db8:1:2::1")), (5, packed("2001:db8:1:3::1"))]) == [True] * 2
    )


def test_translated_ipv4_clients_are_no_network() -> None:
    """Behind a stateless translator all of the IPv4 world comes from 64:ff9b::/96 (RFC 6052)."""
    clients = [packed(f"64:ff9b::192.0.2.{number}") for number in (1, 2, 1)]
    assert testing.connections_in_rate(1, [(5, client) for client in clients]) == [True, True, False]


def test_a_flood_of_addresses_is_bounded() -> None:
    """The table has a fixed size. A client is forgotten only when more of them come at a time than it knows."""
    draw = random.Random(2)
    flood = [(5, draw.randbytes(16)) for _ in range(100_000)]
    assert testing.connections_in_rate(1, flood).count(True) > 99_990
    steady = packed("192.0.2.1")
    few = [(5, steady), *flood[:10_000], (6, steady)]
    assert testing.connections_in_rate(1, few)[-1] is False
