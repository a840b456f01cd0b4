"""Rise and fall, against the rule as HAProxy's manual tells it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.health.state import Health, State


def says(passed: bool) -> State:
    return "healthy" if passed else "unhealthy"


def run(results: list[bool], rise: int, fall: int, inherited: State = "untested") -> list[State]:
    """The state after each result."""
    health = Health(inherited)
    states: list[State] = []
    for passed in results:
        before = health.state
        assert health.take(passed=passed, rise=rise, fall=fall) == (health.state != before)
        states.append(health.state)
    return states


@given(
    st.lists(st.booleans(), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["untested", "healthy", "unhealthy"]),
)
def test_a_state_changes_exactly_after_as_many_results_in_a_row(
    results: list[bool], rise: int, fall: int, inherited: State
) -> None:
    states = run(results, rise, fall, inherited)
    assert states[0] == says(results[0]), "the first check decides alone"
    for index, (before, after) in enumerate(pairwise(states), 1):
        needed = rise if before == "unhealthy" else fall
        # Results of before the last change count no more: the machine begins anew with each state.
        changed = max(one for one in range(index) if one == 0 or states[one] != states[one - 1])
        recent = results[changed + 1 : index + 1][-needed:]
        contradicts = len(recent) == needed and all(says(one) != before for one in recent)
        assert (after != before) == contradicts


def test_one_failure_of_a_healthy_endpoint_changes_nothing_and_hurries_the_next_check() -> None:
    health = Health()
    assert health.pace == "normal"
    health.take(passed=True, rise=2, fall=3)
    for _ in range(2):
        health.take(passed=False, rise=2, fall=3)
        assert (health.state, health.pace) == ("healthy", "fast")
    health.take(passed=True, rise=2, fall=3)
    assert (health.state, health.pace) == ("healthy", "normal")


def test_an_unhealthy_endpoint_is_checked_at_its_own_pace_until_it_passes() -> None:
    health = Health()
    health.take(passed=False, rise=2, fall=3)
    assert (health.state, health.pace) == ("unhealthy", "down")
    health.take(passed=True, rise=2, fall=3)
    assert (health.state, health.pace) == ("unhealthy", "fast")
    health.take(passed=True, rise=2, fall=3)
    assert (health.state, health.pace) == ("healthy", "normal")


@pytest.mark.parametrize("inherited", ["healthy", "unhealthy"])
def test_what_is_inherited_stands_until_the_first_result_which_decides(inherited: State) -> None:
    assert Health(inherited).state == inherited
    assert run([True], 3, 3, inherited) == ["healthy"]
    assert run([False], 3, 3, inherited) == ["unhealthy"]
