"""Groups of problems stay sorted and complete, whether few or many of them change."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lb.problems import Origin, Problem
from lb.translate.groups import Group, Groups

GROUPS = st.tuples(st.integers(0, 1), st.just(""), st.integers(0, 300).map(str))
PROBLEMS = st.lists(
    st.sampled_from("abc").map(lambda what: Problem("LB3001", Origin(), what)), max_size=2, unique=True
).map(tuple)
UPDATES = st.dictionaries(GROUPS, PROBLEMS, max_size=5)


@given(st.integers(0, 300), st.lists(UPDATES, max_size=8))
def test_patching_is_what_a_sorted_dictionary_does(count: int, batches: list[dict[Group, tuple[Problem, ...]]]) -> None:
    first = {(0, "", str(number)): (Problem("LB3001", Origin(), "first"),) for number in range(count)}
    groups = Groups().patch(first)
    wanted: dict[Group, tuple[Problem, ...]] = dict(first)
    for updates in batches:
        before = (list(groups.keys), list(groups.problems))
        patched = groups.patch(updates)
        assert (groups.keys, groups.problems) == before
        wanted = {group: problems for group, problems in {**wanted, **updates}.items() if problems}
        assert patched.keys == sorted(wanted)
        assert patched.flat() == tuple(problem for group in sorted(wanted) for problem in wanted[group])
        assert all(patched.get(group) == wanted.get(group, ()) for group in {*wanted, *updates})
        groups = patched


def test_nothing_to_patch_is_the_same_object() -> None:
    groups = Groups().patch({(0, "", "x"): (Problem("LB3001", Origin(), "x"),)})
    assert groups.patch({}) is groups
