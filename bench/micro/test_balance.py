"""Choosing an endpoint, by algorithm and number of endpoints, and making the Maglev table of as many.

A round of `test_choose` is 10,000 choices with their releases in one call; the figures are per round.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from lb._fastpath.testing import Balancer, maglev_table
from lb.compile.table import BALANCES

COUNTS = (3, 100, 5_000)


def keys(count: int) -> list[str]:
    return [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:8080" for number in range(count)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("balance", [*BALANCES, "affinity"])
def test_choose(benchmark: BenchmarkFixture, balance: str, count: int) -> None:
    one = Balancer()
    one.swap([(key, 1) for key in keys(count)], BALANCES.get(balance, 0), affinity=balance == "affinity")
    rounds = 2 if count == 5_000 and balance in ("least-connections", "affinity") else 30
    benchmark.pedantic(one.nanoseconds, args=(10_000,), rounds=rounds, warmup_rounds=1)


@pytest.mark.parametrize("count", COUNTS)
def test_make_maglev_table(benchmark: BenchmarkFixture, count: int) -> None:
    """With the copy to a list, for Python to see it."""
    table = benchmark.pedantic(maglev_table, args=(keys(count), [1] * count), rounds=5)
    assert len(set(table)) == count
