"""Balancing, on an upstream by itself: shares, what moves when endpoints change, whom the algorithms pass over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from socket import AF_INET, AF_INET6

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb._fastpath.engine import Engine
from lb._fastpath.testing import Balancer, maglev_table
from lb.compile.table import BALANCES, HASH_KEYS, Compiler
from lb.model.balance import (
    Share,
    choose_by_maglev,
    choose_by_rendezvous,
    hash_bytes,
    hash_client,
)
from lb.model.balance import maglev_table as reference_table
from lb.model.config import Config
from lb.model.health import HealthCheck
from lb.model.upstream import Balance, Endpoint, Upstream, UpstreamOptions

NONE, FULL, UNHEALTHY, NO_FAMILY = -1, -2, -3, -4
READY, DRAIN, DOWN = 0, 1, 2
OK, UNTESTED, FAILED = 0, 1, 2
REFUSE = 2
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


# -- Families


IPV6_KEYS = [f"[fd00::{number}]:80" for number in range(1, 4)]


def of_both_families(balance: str, **policy: int) -> Balancer:
    """Three endpoints of IPv4 before three of IPv6."""
    made = Balancer()
    made.swap([(key, 1) for key in [*KEYS[:3], *IPV6_KEYS]], BALANCES[balance], **policy)
    return made


@pytest.mark.parametrize("balance", ["round-robin", "least-connections", "random-two", "maglev"])
def test_who_needs_a_family_gets_nobody_else(balance: str) -> None:
    one = of_both_families(balance)
    for family, keys in ((AF_INET, KEYS[:3]), (AF_INET6, IPV6_KEYS)):
        chosen = {one.pick(hash_, family=family) for hash_ in hashes(100)}
        assert chosen == set(keys)
        assert one.pick(1, tried=keys, family=family) == NONE
    assert one.pick(1, family=-1) == NO_FAMILY


@pytest.mark.parametrize("balance", ["round-robin", "least-connections"])
def test_families_take_turns_apart(balance: str) -> None:
    """Clients of both that come in turn must not meet the same endpoint each time."""
    one = of_both_families(balance)
    counts: Counter[str | int] = Counter()
    for number in range(60):
        key = one.pick(family=(AF_INET, AF_INET6)[number % 2])
        assert isinstance(key, str)
        one.release(key)
        counts[key] += 1
    assert set(counts.values()) == {10}


def test_a_family_that_fails_its_checks_is_judged_alone() -> None:
    one = of_both_families("round-robin", checked=REFUSE)
    for key in IPV6_KEYS:
        one.set(key, health=FAILED)
    assert one.pick(family=AF_INET6) == UNHEALTHY
    assert one.pick(family=AF_INET) in KEYS[:3]


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


def test_weights_far_apart_cost_no_more() -> None:
    weights = [1_000_000] + [1] * 4_999
    keys = [f"10.{number >> 8}.{number & 255}.1:80" for number in range(5_000)]
    counts = Counter(maglev_table(keys, weights))
    assert counts[0] == counts.total() - 4_999  # one for each of the others


def test_a_table_is_made_anew_only_for_other_endpoints_or_weights() -> None:
    compiler = Compiler(Engine(threads=1))

    def table(*weights: int, **options: int) -> object:
        endpoints = tuple(Endpoint(f"10.0.0.{number}", 80, weight) for number, weight in enumerate(weights))
        web = Upstream("web", "maglev", endpoints, options=UpstreamOptions(**options))  # type: ignore[arg-type]
        return compiler.compile(Config(upstreams={"web": web}), 1).upstreams["web"].maglev

    first = table(1, 1, 2)
    assert table(1, 1, 2, connect_timeout_ms=1) is first
    assert table(1, 1, 3) is not first
    assert table(1, 1) is not first


@pytest.mark.parametrize("count", [3, 10, 100])
def test_few_move_when_an_endpoint_goes_or_comes(count: int) -> None:
    one = balancer("maglev", (1,) * count)
    before = choices(one, 5_000)
    one.swap([(key, 1) for key in KEYS[: count - 1]], BALANCES["maglev"])
    after = choices(one, 5_000)
    moved = sum(was != now for was, now in zip(before, after, strict=True))
    orphans = before.count(KEYS[count - 1])
    assert orphans <= moved
    # The paper's figure 12: a few of the others move, too.
    assert moved - orphans < 0.02 * 5_000
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


# -- Slow start

SLOW = ["least-connections", "random-two", "round-robin"]


@pytest.mark.parametrize("balance", SLOW)
@pytest.mark.parametrize("reactors", [1, 2])
def test_the_share_of_a_newcomer_grows(balance: str, reactors: int) -> None:
    # With little to do least-connections knows the weights no better: who has most of it comes first.
    most = 1 if balance == "least-connections" else 2
    one = balancer(balance, (1, 1, most, 1), reactors=reactors, slow_start_ms=10_000)
    late = KEYS[2]
    one.set(late, joins=True)
    for share in (0.1, 0.1, 0.2, 0.5, 0.8, 1.0, 1.0):  # each second from the second one on
        counts = Counter(one.count(20_000))
        wanted = 20_000 * most * share / (3 + most * share)
        assert abs(counts[late] - wanted) < 5 * wanted**0.5  # chance stays within five standard deviations
        others = [counts[key] for key in KEYS[:4] if key != late]
        assert max(others) - min(others) < 0.1 * max(others)
        one.pass_time({0.1: 1_000, 0.2: 3_000, 0.5: 3_000, 0.8: 2_000, 1.0: 1}[share])


@pytest.mark.parametrize("balance", ["least-connections", "random-two"])
def test_under_load_a_newcomer_is_not_overrun(balance: str) -> None:
    one = balancer(balance, (1,) * 10, slow_start_ms=10_000)
    one.set(KEYS[9], admin=DRAIN)
    under_way = [key for key in (one.pick() for _ in range(900)) if isinstance(key, str)]
    one.set(KEYS[9], admin=READY, joins=True)

    def churn() -> int:
        """How many of 900 the newcomer has after each of them has ended and another one has begun, three times."""
        for _ in range(2_700):
            one.release(under_way.pop(0))
            key = one.pick()
            assert isinstance(key, str)
            under_way.append(key)
        return one.active()[KEYS[9]]

    # Its weight is 0.1 of 9.1, then 0.5 of 9.5, then 1 of 10.
    assert 3 <= churn() <= 20
    one.pass_time(5_000)
    assert 35 <= churn() <= 60
    one.pass_time(5_000)
    assert 80 <= churn() <= 100


@pytest.mark.parametrize("balance", SLOW)
def test_who_starts_slowly_is_not_made_to_wait_for_nobody(balance: str) -> None:
    one = balancer(balance, slow_start_ms=10_000, max_connections_per_endpoint=20)
    for key in KEYS[:3]:
        one.set(key, joins=True)
    counts = Counter(one.count(9_000))  # all alike
    assert min(counts[key] for key in KEYS[:3]) > 2_700
    one.set(KEYS[0], active=20)
    one.set(KEYS[1], admin=DRAIN)
    assert {picked(one) for _ in range(50)} == {KEYS[2]}


@pytest.mark.parametrize("balance", SLOW)
def test_who_was_ejected_starts_slowly(balance: str) -> None:
    one = balancer(balance, slow_start_ms=10_000)
    for _ in range(EJECT_AFTER):
        one.connect(KEYS[1], succeeds=False)
    assert KEYS[1] not in one.count(300)
    one.pass_time(EJECT_MS)
    assert 200 < one.count(10_000)[KEYS[1]] < 800  # 0.1 of 2.1 is 476
    one.connect(KEYS[1], succeeds=True)
    assert 200 < one.count(10_000)[KEYS[1]] < 800
    one.pass_time(10_000)
    assert 3_000 < one.count(10_000)[KEYS[1]] < 3_700
    # One that a last resort has connected to is back at once, and starts then.
    for _ in range(EJECT_AFTER):
        one.connect(KEYS[1], succeeds=False)
    one.connect(KEYS[1], succeeds=True)
    assert 200 < one.count(10_000)[KEYS[1]] < 800
    one.pass_time(10_000)
    assert 3_000 < one.count(10_000)[KEYS[1]] < 3_700


def test_who_starts_slowly_in_an_engine() -> None:
    engine = Engine(threads=1)
    compiler = Compiler(engine)
    hour = UpstreamOptions(slow_start_ms=3_600_000)
    check = HealthCheck(type="tcp")

    def serve(*members: int, balance: Balance = "round-robin", checked: bool = False) -> None:
        endpoints = tuple(Endpoint(f"10.0.0.{number}", 80) for number in members)
        health_check = check if checked else HealthCheck()
        web = Upstream("web", balance, endpoints, options=hour, health_check=health_check)
        engine.publish(compiler.compile(Config(upstreams={"web": web}), 1))

    def slow() -> list[int]:
        """The last bytes of the addresses of those that start slowly."""
        shares = {one["key"]: one["slow_share"] for one in engine.endpoint_stats("web")}
        assert set(shares.values()) <= {1.0, 0.1}
        return [int(key.split(":")[0].rpartition(".")[2]) for key, share in shares.items() if share < 1]

    serve(1, 2)
    assert slow() == []  # a start of lb is none of theirs
    serve(1, 2, 3)
    assert slow() == [3]
    serve(1, 2)
    serve(1, 2, 3)
    assert slow() == [3]
    serve(4, 5)
    assert slow() == []  # nobody is left whom they could leave requests to
    engine.set_endpoint("web", "10.0.0.4:80", admin="drain")
    engine.set_endpoint("web", "10.0.0.4:80", admin="ready")
    engine.set_endpoint("web", "10.0.0.5:80", admin="ready")
    assert slow() == [4]
    serve(4, 5, checked=True)
    engine.set_health("web", "10.0.0.5:80", False)
    assert slow() == [4]
    engine.set_health("web", "10.0.0.5:80", True)
    assert slow() == [4, 5]
    serve(4, 5, balance="maglev")
    assert slow() == []


# -- Ejection


def fail(one: Balancer, key: str, times: int = EJECT_AFTER) -> None:
    for _ in range(times):
        one.connect(key, succeeds=False)


def test_after_an_ejection_one_connection_is_the_probe() -> None:
    one = balancer("round-robin")
    fail(one, KEYS[1])
    assert KEYS[1] not in one.count(30)
    one.pass_time(EJECT_MS)
    assert one.count(30)[KEYS[1]] == 10
    one.begin_to_connect(KEYS[1], timeout_ms=5_000)
    assert KEYS[1] not in one.count(30)
    one.connect(KEYS[1], succeeds=True)
    assert one.count(30)[KEYS[1]] == 10
    one.begin_to_connect(KEYS[1], timeout_ms=5_000)  # no probe any more
    assert one.count(30)[KEYS[1]] == 10


def test_a_probe_that_comes_to_nothing_gives_way_to_another() -> None:
    one = balancer("round-robin")
    fail(one, KEYS[1])
    one.pass_time(EJECT_MS)
    one.begin_to_connect(KEYS[1], timeout_ms=5_000)
    one.pass_time(5_000 + 1_000)  # its client has gone
    assert one.count(30)[KEYS[1]] == 10
    one.begin_to_connect(KEYS[1], timeout_ms=5_000)
    assert KEYS[1] not in one.count(30)


def test_ejections_grow_while_probes_fail() -> None:
    one = balancer("round-robin")
    fail(one, KEYS[1])
    for lasts in (10_000, 20_000, 40_000, 60_000, 60_000):
        one.pass_time(lasts - 1)
        assert KEYS[1] not in one.count(30)
        one.pass_time(1)
        assert one.count(30)[KEYS[1]] == 10
        one.begin_to_connect(KEYS[1], timeout_ms=5_000)
        one.pass_time(5_000)
        one.connect(KEYS[1], succeeds=False)  # once is enough
    assert one.ejections() == (6, 1)
    one.connect(KEYS[1], succeeds=True)
    assert one.ejections() == (6, 2)
    fail(one, KEYS[1], EJECT_AFTER - 1)
    assert one.count(30)[KEYS[1]] == 10
    fail(one, KEYS[1], 1)
    one.pass_time(EJECT_MS)
    assert one.count(30)[KEYS[1]] == 10


def test_what_began_before_an_ejection_makes_it_no_longer() -> None:
    one = balancer("round-robin")
    fail(one, KEYS[1], 50)
    one.pass_time(5_000)
    fail(one, KEYS[1], 50)
    assert one.ejections() == (1, 1)
    one.pass_time(EJECT_MS - 5_000)
    assert one.count(30)[KEYS[1]] == 10


def test_who_is_ejected_for_a_failure_that_was_just_forgiven_is_forgiven_with_the_next_success() -> None:
    """One thread counts a failure, another one forgives it, and the first ejects the endpoint for it."""
    one = balancer("round-robin")
    fail(one, KEYS[1])
    one.set(KEYS[1], failures_in_row=0)
    one.pass_time(EJECT_MS)
    one.begin_to_connect(KEYS[1], timeout_ms=5_000)
    one.connect(KEYS[1], succeeds=True)
    assert one.count(30)[KEYS[1]] == 10
    assert one.ejections() == (1, 2)


def test_who_answers_on_a_kept_connection_after_its_time_is_ejected_no_longer() -> None:
    one = balancer("round-robin")
    fail(one, KEYS[1])
    one.answer(KEYS[1])
    assert one.is_ejected(KEYS[1]), "what was under way ends no ejection"
    one.pass_time(EJECT_MS)
    assert one.is_ejected(KEYS[1])
    for _ in range(2):
        one.answer(KEYS[1])
        assert not one.is_ejected(KEYS[1])
    assert one.ejections() == (1, 2)


def test_an_answer_on_a_kept_connection_does_not_make_up_for_those_that_failed() -> None:
    """New connections may be what fails: the next one is a probe, and its failure ejects the endpoint for longer."""
    one = balancer("round-robin")
    fail(one, KEYS[1])
    one.pass_time(EJECT_MS)
    one.answer(KEYS[1])
    one.begin_to_connect(KEYS[1], timeout_ms=5_000)
    assert KEYS[1] not in one.count(30)
    one.connect(KEYS[1], succeeds=False)
    assert one.is_ejected(KEYS[1])
    assert one.ejections() == (2, 3)
    one.pass_time(2 * EJECT_MS - 1)
    assert KEYS[1] not in one.count(30)
    one.pass_time(1)
    one.answer(KEYS[1])
    one.connect(KEYS[1], succeeds=True)
    assert not one.is_ejected(KEYS[1])
    fail(one, KEYS[1])
    assert one.is_ejected(KEYS[1])


# -- Affinity


def sticky(count: int = 3, timeout_ms: int = 60_000, **policy: int) -> Balancer:
    return balancer("round-robin", (1,) * count, affinity=True, affinity_timeout_ms=timeout_ms, **policy)


def resize(one: Balancer, keys: Sequence[str], timeout_ms: int = 60_000) -> None:
    one.swap([(key, 1) for key in keys], affinity=True, affinity_timeout_ms=timeout_ms)


def test_clients_stay_when_endpoints_are_added() -> None:
    one = sticky()
    before = choices(one, 2_000)
    resize(one, KEYS[:50])
    assert choices(one, 2_000) == before
    assert len({picked(one, h) for h in hashes(3_000)[2_000:]}) == 50  # new ones use all


def test_clients_move_only_when_their_endpoint_goes() -> None:
    one = sticky(4)
    before = choices(one, 2_000)
    resize(one, KEYS[1:4])
    after = choices(one, 2_000)
    assert all(was == now for was, now in zip(before, after, strict=True) if was != KEYS[0])
    assert {now for was, now in zip(before, after, strict=True) if was == KEYS[0]} == set(KEYS[1:4])
    resize(one, KEYS[:4])
    assert choices(one, 2_000) == after  # where they are now


@pytest.mark.parametrize("how", ["failed", "ejected", "drain", "tried"])
def test_a_client_whose_endpoint_may_not_serve_moves_for_good(how: str) -> None:
    one = sticky()
    before = choices(one, 500)
    gone = KEYS[1]
    if how == "ejected":
        for _ in range(EJECT_AFTER):
            one.connect(gone, succeeds=False)
    one.set(gone, health=FAILED if how == "failed" else None, admin=DRAIN if how == "drain" else None)
    after = [picked(one, h, (gone,) if how == "tried" else ()) for h in hashes(500)]
    assert gone not in after
    assert all(was == now for was, now in zip(before, after, strict=True) if was != gone)
    one.set(gone, health=OK, admin=READY)
    one.pass_time(EJECT_MS)
    assert choices(one, 500) == after


def test_a_client_waits_for_its_endpoint_when_that_is_full() -> None:
    one = sticky(max_connections_per_endpoint=1)
    home = one.pick(7)
    assert isinstance(home, str)
    assert one.pick(7) == FULL
    one.release(home)
    assert one.pick(7) == home


def test_a_client_that_was_silent_for_long_is_forgotten() -> None:
    one = sticky(timeout_ms=10_000)
    before = choices(one, 300)
    resize(one, KEYS[:30], timeout_ms=10_000)
    for _ in range(5):
        one.pass_time(9_900)
        assert choices(one, 300) == before
    one.pass_time(10_200)
    fresh = balancer("round-robin", (1,) * 30, affinity=True)
    assert choices(one, 300) == choices(fresh, 300) != before


def test_zero_keeps_a_client_for_ever() -> None:
    one = sticky(timeout_ms=0)
    before = choices(one, 100)
    resize(one, KEYS[:30], timeout_ms=0)
    one.pass_time(10**9)
    assert choices(one, 100) == before


def test_those_that_were_unused_longest_are_forgotten_first() -> None:
    one = sticky()
    places = 32_768 * 8
    one.count(places, first_hash=10_000)
    one.pass_time(100)
    one.count(10_000)
    one.pass_time(100)
    before = choices(one, 10_000)
    resize(one, KEYS[:50])
    for number in range(25):  # twice as many as there is room for
        one.pass_time(100)
        one.count(places // 12, first_hash=places * (2 + number))
        one.pass_time(100)
        after = choices(one, 10_000)
        # A set that happens to have many of them may lose one.
        assert sum(was != now for was, now in zip(before, after, strict=True)) <= 10
    # Those that were never asked for again have made room: they are spread anew.
    counts = Counter(one.count(20_000, first_hash=10_000))
    assert len(counts) == 50
    assert sum(counts[key] for key in KEYS[:3]) < 0.1 * 20_000


def test_threads_lose_no_client() -> None:
    one = sticky_threads(4)
    homes = [picked(one, number) for number in range(1_000)]
    resize(one, KEYS[:20])
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda by: one.moves(homes, 300, by), range(4))) == 0


def sticky_threads(reactors: int) -> Balancer:
    return balancer("round-robin", (1,) * 3, reactors=reactors, affinity=True, affinity_timeout_ms=3_600_000)
