"""Looks at what is carried, as the control plane starts and ends them."""

from __future__ import annotations

import pytest

from lb._fastpath.engine import Engine
from lb.compile.table import Compiler
from lb.model.config import Config
from lb.model.health import HealthCheck
from lb.model.upstream import Endpoint, Upstream
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


def test_an_endpoint_stays_until_its_flows_are_reset() -> None:
    """Reactors come back to it turn after turn, also when it is no longer served: it must not go before they say so."""
    engine = Engine(threads=2)
    compiler = Compiler(engine)

    def serve(generation: int, *keys: str) -> None:
        endpoints = tuple(Endpoint(key, 80) for key in keys)
        web = Upstream("web", endpoints=endpoints, health_check=HealthCheck("tcp"))
        engine.publish(compiler.compile(Config(upstreams={"web": web}), generation))

    def is_there() -> bool:
        try:
            engine.set_endpoint("web", "10.0.0.5:80")
        except KeyError:
            return False
        return True

    serve(1, "10.0.0.5", "10.0.0.6")
    engine.set_health("web", "10.0.0.5:80", False, True)
    serve(2, "10.0.0.6")
    for _ in range(3):
        engine.collect()
        assert is_there()
    engine.start()

    def is_gone() -> bool:
        engine.collect()
        return not is_there()

    wait_until(is_gone, "all reactors have said that they are done")
    engine.stop()


@pytest.mark.parametrize("healthy", [True, False])
def test_only_an_endpoint_that_has_just_failed_has_its_flows_reset(healthy: bool) -> None:
    """What is healthy, or failed before, holds up nothing: no reactor is asked, so it may go at once."""
    engine = Engine(threads=1)
    compiler = Compiler(engine)

    def serve(generation: int, *endpoints: Endpoint) -> None:
        web = Upstream("web", endpoints=endpoints, health_check=HealthCheck("tcp"))
        engine.publish(compiler.compile(Config(upstreams={"web": web}), generation))

    serve(1, Endpoint("10.0.0.5", 80), Endpoint("10.0.0.6", 80))
    engine.set_health("web", "10.0.0.5:80", False, False)
    engine.set_health("web", "10.0.0.5:80", healthy, True)
    serve(2, Endpoint("10.0.0.6", 80))
    engine.collect()
    with pytest.raises(KeyError):
        engine.set_endpoint("web", "10.0.0.5:80")
