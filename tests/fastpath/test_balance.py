"""Balancing, on an upstream by itself: shares, what moves when endpoints change, whom the algorithms pass over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb._fastpath.testing import Balancer, maglev_table
from lb.compile.table import BALANCES, HASH_KEYS
from lb.model.balance import (
    Share,
    choose_by_maglev,
    choose_by_rendezvous,
    hash_bytes,
    hash_client,
)
from lb.model.balance import maglev_table as reference_table

NONE, FULL, UNHEALTHY = -1, -2, -3
READY, DRAIN, DOWN = 0, 1, 2
OK, UNTESTED, FAILED = 0, 1, 2
EJECT_AFTER, EJECT_MS = 3, 10_000

KEYS = [f"10.0.0.{number}:80" for number in range(1, 101)]
PRIMES = (101, 251, 1009)


def balancer(
    balance: str, weights: Sequence[int] = (1, 1, 1), *, reactors: int = 1, seed: int = 1, **policy: int
) -> Balancer:
    made = Balancer(reactors, seed)
    made.swap(list(zip(KEYS, weights, strict=False)), BALANCES[balance], **policy)
    return made


def picked(one: Balancer, hash_: int = 0, tried: Sequence[str] = ()) -> str:
    key = one.pick(hash_, tried)
    assert isinstance(key, str)
    one.release(key)
    return key


def hashes(count: int) -> list[int]:
    return [hash_bytes(number.to_bytes(8, "little")) for number in range(count)]


def choices(one: Balancer, count: int) -> list[str]:
    return [picked(one, h) for h in hashes(count)]


def chi_square(counts: Counter[str], weights: Sequence[int]) -> float:
    total, all_weights = counts.total(), sum(weights)
    wanted = {key: total * weight / all_weights for key, weight in zip(KEYS, weights, strict=False) if weight}
    assert counts.keys() <= wanted.keys()
    return sum((counts[key] - many) ** 2 / many for key, many in wanted.items())


# -- Random two


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 1), (1, 0, 3), (1000, 1, 30), (7,) * 100])
def test_random_two_obeys_weights_while_there_is_little_to_do(weights: Sequence[int]) -> None:
    counts = Counter(balancer("random-two", weights).count(100_000))
    # Chance lies above 1.9 times the degrees of freedom, and 20 more, once in more than a million seeds.
    assert chi_square(counts, weights) < 1.9 * len(weights) + 20


def test_random_two_prefers_whoever_has_less_under_way() -> None:
    one = balancer("random-two", (1, 1))
    one.set(KEYS[0], active=50)
    # The busy one is chosen only when it is drawn twice.
    assert 0.23 < one.count(20_000)[KEYS[0]] / 20_000 < 0.27


def test_random_two_measures_load_by_weight() -> None:
    one = balancer("random-two", (4, 1))
    one.set(KEYS[0], active=9)
    one.set(KEYS[1], active=3)  # 3 for each weight is more than 9 for 4
    assert 0.03 < one.count(20_000)[KEYS[1]] / 20_000 < 0.05  # drawn twice: 1/5 of 1/5


def test_random_two_keeps_load_even() -> None:
    one = balancer("random-two", (1,) * 50)
    for _ in range(5_000):
        assert isinstance(one.pick(), str)
    loads = one.active().values()
    assert sum(loads) == 5_000
    # 100 each; one random choice would be off by 25 and more.
    assert max(loads) - min(loads) <= 8


def test_random_two_finds_the_last_one_that_serves() -> None:
    one = balancer("random-two", (1,) * 100)
    for key in KEYS[1:]:
        one.set(key, admin=DRAIN)
    assert {picked(one) for _ in range(50)} == {KEYS[0]}
    one.set(KEYS[0], admin=DOWN)
    assert one.pick() == NONE


# -- Maglev


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(0, 300), min_size=1, max_size=40),
    size=st.sampled_from(PRIMES),
    names=st.randoms(use_true_random=False),
)
def test_the_table_is_the_reference_table(weights: list[int], size: int, names: object) -> None:
    keys = names.sample(KEYS, len(weights))  # type: ignore[attr-defined]
    reference = reference_table(list(map(Share, keys, weights)), size)
    assert maglev_table(keys, weights, size) == reference
    assert set(reference) == {index for index, weight in enumerate(weights) if weight}


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 16_381), (655, 16_381), (656, 131_071), (5_243, 1_048_573)])
def test_the_table_grows_with_the_endpoints(count: int, size: int) -> None:
    keys = [f"10.{number // 250}.{number % 250}.1:80" for number in range(count)]
    assert len(maglev_table(keys, [1] * count)) == size


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    down=st.sets(st.integers(0, 7)),
    numbers=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20),
)
def test_choices_are_those_of_the_reference(weights: list[int], down: set[int], numbers: list[int]) -> None:
    endpoints = list(map(Share, KEYS, weights))
    table = reference_table(endpoints)
    one, sticky = balancer("maglev", weights), balancer("round-robin", weights, affinity=True)
    for index in down & set(range(len(weights))):
        one.set(KEYS[index], admin=DRAIN)
        sticky.set(KEYS[index], admin=DRAIN)
    for number in numbers:
        wanted = choose_by_maglev(endpoints, table, number, lambda index: index not in down)
        assert one.pick(number) == (NONE if wanted is None else KEYS[wanted])
        wanted = choose_by_rendezvous(endpoints, number, lambda index: index not in down)
        assert sticky.pick(number) == (NONE if wanted is None else KEYS[wanted])


@pytest.mark.parametrize("weights", [(1,) * 10, (10, 5, 1), (3, 0, 2), (1,) * 100])
def test_slots_are_shared_out_by_weight(weights: Sequence[int]) -> None:
    table = Counter(maglev_table(KEYS[: len(weights)], weights))
    size, total = table.total(), sum(weights)
    for index, weight in enumerate(weights):
        assert abs(table[index] - size * weight / total) <= 2


def test_the_order_of_endpoints_means_nothing() -> None:
    weights = [1 + number % 3 for number in range(20)]
    table = maglev_table(KEYS[:20], weights)
    backwards = maglev_table(KEYS[19::-1], weights[::-1])
    assert [KEYS[index] for index in table] == [KEYS[19 - index] for index in backwards]


@pytest.mark.parametrize("count", [3, 10, 100])
def test_few_move_when_an_endpoint_goes_or_comes(count: int) -> None:
    one = balancer("maglev", (1,) * count)
    before = choices(one, 5_000)
    one.swap([(key, 1) for key in KEYS[: count - 1]], BALANCES["maglev"])
    after = choices(one, 5_000)
    moved = sum(was != now for was, now in zip(before, after, strict=True))
    orphans = before.count(KEYS[count - 1])
    assert orphans <= moved
    # The paper's figure 12: of the others a few in a hundred move, too.
    assert moved - orphans < 0.06 * 5_000
    one.swap([(key, 1) for key in KEYS[:count]], BALANCES["maglev"])
    assert choices(one, 5_000) == before


@pytest.mark.parametrize("how", ["failed", "ejected", "drain", "down", "tried", "full"])
def test_nobody_else_moves_when_an_endpoint_may_not_serve(how: str) -> None:
    one = balancer("maglev", (1, 2, 1, 1), max_connections_per_endpoint=100)
    gone = KEYS[1]
    before = choices(one, 3_000)
    if how == "ejected":
        for _ in range(EJECT_AFTER):
            one.connect(gone, succeeds=False)
    one.set(
        gone,
        health=FAILED if how == "failed" else None,
        admin={"drain": DRAIN, "down": DOWN}.get(how),
        active=100 if how == "full" else None,
    )
    tried = (gone,) if how == "tried" else ()
    after = [picked(one, h, tried) for h in hashes(3_000)]
    assert all(was == now for was, now in zip(before, after, strict=True) if was != gone)
    # Those it had go to all others, by their weights.
    orphans = Counter(now for was, now in zip(before, after, strict=True) if was == gone)
    assert set(orphans) == {KEYS[0], KEYS[2], KEYS[3]}
    assert min(orphans.values()) > 0.8 * orphans.total() / 3
    one.pass_time(EJECT_MS)
    one.set(gone, health=OK, admin=READY, active=0)
    assert choices(one, 3_000) == before


def test_a_retry_goes_elsewhere_with_many_endpoints_too() -> None:
    one = balancer("maglev", (1,) * 100)
    for h in hashes(300):
        first = picked(one, h)
        second = picked(one, h, [first])
        assert len({first, second, picked(one, h, [first, second])}) == 3


@pytest.mark.parametrize("balance", sorted(BALANCES))
def test_limits_hold_whoever_chooses(balance: str) -> None:
    one = balancer(balance, (3, 1, 1), max_connections_per_endpoint=4)
    for h in hashes(12):
        assert isinstance(one.pick(h), str)
    assert one.active() == dict.fromkeys(KEYS[:3], 4)
    assert one.pick(99) == FULL
    one.release(KEYS[1])
    assert one.pick(99) == KEYS[1]


@pytest.mark.parametrize("balance", sorted(BALANCES))
@pytest.mark.parametrize(("checked", "wanted"), [(1, {KEYS[0], KEYS[1], KEYS[2]}), (2, {UNHEALTHY})])
def test_when_all_fail_the_upstream_says_who_serves(balance: str, checked: int, wanted: set[object]) -> None:
    one = balancer(balance, checked=checked)
    for key in one.keys:
        one.set(key, health=FAILED)
    assert {one.pick(h) for h in hashes(50)} == wanted
    one.set(KEYS[1], health=UNTESTED)
    assert {one.pick(h) for h in hashes(50)} == {KEYS[1]}


@pytest.mark.parametrize("balance", sorted(BALANCES))
def test_without_weight_nobody_is_chosen(balance: str) -> None:
    assert balancer(balance, (0, 0)).pick(1) == NONE
    assert balancer(balance, ()).pick(1) == NONE


# -- Keys


def test_what_flows_are_chosen_by() -> None:
    client, destination = b"\0" * 10 + b"\xff\xff\x0a\x01\x02\x03", b"\xfd" + b"\0" * 14 + b"\x07"

    def key(name: str, port: int = 5000, to: bytes = destination, to_port: int = 443, protocol: int = 6) -> int:
        return balancer("maglev", hash_key=HASH_KEYS[name]).flow_hash(client, port, to, to_port, protocol)

    others = ({"port": 5001}, {"to": client}, {"to_port": 80}, {"protocol": 17})
    assert [key("source", **one) == key("source") for one in others] == [True] * 4  # type: ignore[arg-type]
    assert [key("source-port", **one) == key("source-port") for one in others] == [False, True, True, True]  # type: ignore[arg-type]
    assert [key("flow", **one) == key("flow") for one in others] == [False] * 4  # type: ignore[arg-type]
    assert key("source") == hash_client("10.1.2.3") == hash_client("::ffff:10.1.2.3")
    assert key("flow") == hash_bytes(client + b"\x13\x88" + destination + b"\x01\xbb\x06")
    # Affinity is to a client, whatever the key; who chooses by nothing is spared the hash.
    assert balancer("maglev", hash_key=2, affinity=True).flow_hash(client, 1, destination, 2, 6) == key("source")
    assert balancer("random-two", hash_key=2).flow_hash(client, 1, destination, 2, 6) == 0
