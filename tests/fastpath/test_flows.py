"""Looks at what is carried, as the control plane starts and ends them."""

from __future__ import annotations

from lb._fastpath.engine import Engine
from tests.harness.waiting import wait_until


def test_one_look_at_a_time_and_none_is_left_behind() -> None:
    """Reactors write to a look until they have all answered, so it stays with the engine as long."""
    engine = Engine(threads=2)
    look = engine.look_at_flows()
    assert look is not None
    assert look.waits_for() == [0, 1]
    assert engine.look_at_flows() is None
    look.cancel()
    del look
    assert engine.look_at_flows() is None
    engine.collect()
    engine.start()
    again = wait_until(engine.look_at_flows, "the first look is over")
    assert again is not None
    wait_until(lambda: not again.waits_for(), "all reactors have answered")
    assert again.result() == ([], 0, [])
    engine.collect()
    assert engine.look_at_flows(limit=0) is not None
    engine.stop()


def test_an_engine_may_end_in_the_middle_of_a_look() -> None:
    engine = Engine(threads=2)
    look = engine.look_at_flows()
    del engine
    assert look is not None
    assert look.waits_for() == [0, 1]
