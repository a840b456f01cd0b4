"""Metrics: valid text in both formats, exactly the listed names, and bounded labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from lb.observe.metrics import ENGINE_COUNTERS, METRICS, OTHER, Metrics, Names, fold, table
from lb.observe.settings_file import SettingsFile
from lb.pipeline import Build
from lb.problems import Origin, Problem
from lb.settings import Metrics as MetricsSettings
from tests.app.fakes import BOUNDS, FakeEngine, FakeHealth, endpoint_state, make_config, traffic


class Fixed:
    """A pipeline that has built, listeners that are open, and certificates of which one has expired."""

    def __init__(self) -> None:
        self.config = make_config()
        self.generation = 4
        stages = {"read": 0.5, "translate": 0.25, "compile": 0.125, "publish": 0.0}
        good = Build(4, "published", 1.7e9, stages, {"Ingress": 3}, {"error": 1, "warning": 0, "note": 2})
        self.newest = self.last_good = good
        self.outcomes = Counter(published=4, refused=1)
        self.opened = {"http": object()}
        self.problems = (Problem("LB6007", Origin(), "refused"),)


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.routes = {"shop/web:0:0": traffic(30, 1), "shop/web:0:1": traffic(10)}
    engine.grpc_calls = {"shop/web:0:0": [3, *[0] * 17]}
    engine.endpoints = {"shop/web:http": [endpoint_state("127.0.0.11:9001"), endpoint_state("127.0.0.12:9001")]}
    return engine


async def render(engine: FakeEngine, accept: str = "", **limits: int) -> tuple[str, str]:
    fixed: Any = Fixed()
    health: Any = FakeHealth("shop/web:http", "127.0.0.11:9001")
    metrics = Metrics(
        engine,  # type: ignore[arg-type]
        BOUNDS,
        fixed,
        fixed,
        fixed,
        SettingsFile(None),
        health,
        MetricsSettings(**limits),
    )
    text, content_type = await metrics.render(accept, ready=True)
    return text.decode(), content_type


def samples(families: Iterable[Family]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_prometheus_text_has_the_listed_metrics(engine: FakeEngine) -> None:
    text, content_type = await render(engine)
    assert content_type.startswith("text/plain")
    families = list(parse_prometheus(text))
    ours = {family.name.removesuffix("_info") for family in families if family.name.startswith("lb_")}
    assert ours == set(METRICS)
    assert any(family.name == "process_resident_memory_bytes" for family in families)
    found = samples(families)
    assert found["lb_listener_responses_total", (("code_class", "5xx"), ("listener", "http"))] == 2
    assert found["lb_route_request_duration_seconds_bucket", (("le", "0.1"), ("route", "shop/web:0:0"))] == 31
    assert found["lb_route_request_duration_seconds_bucket", (("le", "+Inf"), ("route", "shop/web:0:0"))] == 31
    assert found["lb_route_request_duration_seconds_sum", (("route", "shop/web:0:0"),)] == 7.5
    assert found["lb_exchange_end_total", (("reason", "no-route"),)] == 2
    assert found["lb_config_stage_seconds", (("stage", "translate"),)] == 0.25
    assert found["lb_config_builds_total", (("outcome", "unchanged"),)] == 0
    assert found["lb_reactor_heartbeat_age_seconds", (("thread", "1"),)] == 0.25
    labels = (("endpoint", "127.0.0.11:9001"), ("upstream", "shop/web:http"))
    assert found["lb_endpoint_healthy", labels] == 0
    assert sum(name == "lb_endpoint_healthy" for name, _ in found) == 1, "the other one is not checked"
    assert found["lb_health_checks_total", (("result", "timeout"),)] == 7
    assert found["lb_health_changes_total", (("state", "unhealthy"), ("upstream", "shop/web:http"))] == 2
    # What comes from a client goes to an endpoint.
    assert found["lb_listener_received_bytes_total", (("listener", "http"),)] == 400
    assert found["lb_upstream_sent_bytes_total", (("upstream", "shop/web:http"),)] == 400


async def test_openmetrics_on_request(engine: FakeEngine) -> None:
    text, content_type = await render(engine, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(text)}
    assert set(METRICS) <= names


async def test_every_metric_has_its_labels_and_a_help_text(engine: FakeEngine) -> None:
    text, _ = await render(engine)
    for family in parse_prometheus(text):
        name = family.name.removesuffix("_info")
        if name in METRICS:
            metric = METRICS[name]
            assert family.documentation == metric.help
            assert family.samples, f"{name} has no samples"
            labels = set(family.samples[0].labels) - {"le"}
            assert metric.type == "info" or labels == set(metric.labels)


async def test_many_names_are_summed(engine: FakeEngine) -> None:
    engine.routes = {f"r{index}": traffic(index) for index in range(50)}
    text, _ = await render(engine, max_routes=10, max_endpoints=1)
    found = samples(parse_prometheus(text))
    routes = {dict(labels)["route"] for name, labels in found if name == "lb_route_request_duration_seconds_count"}
    assert routes == {f"r{index}" for index in range(40, 50)} | {OTHER}
    assert found["lb_route_request_duration_seconds_count", (("route", OTHER),)] == sum(range(40))
    assert sum(1 for name, _ in found if name == "lb_endpoint_up") == 1


async def test_grpc_calls_are_told_by_status(engine: FakeEngine) -> None:
    one, other = [0] * 18, [0] * 18
    one[0], one[4], one[17] = 7, 2, 1
    other[0], other[14] = 3, 5
    engine.grpc_calls = {"shop/web:0:0": one, "shop/web:0:1": other}
    found = samples(parse_prometheus((await render(engine, max_routes=1))[0]))
    calls: dict[str, dict[str, float]] = {}
    for (name, labels), value in found.items():
        if name == "lb_route_grpc_calls_total":
            route, status = dict(labels)["route"], dict(labels)["grpc_status"]
            calls.setdefault(route, {})[status] = value
    assert calls == {
        "shop/web:0:0": {"OK": 7, "DEADLINE_EXCEEDED": 2, "none": 1},
        OTHER: {"OK": 3, "UNAVAILABLE": 5},
    }


def test_a_name_that_was_chosen_stays() -> None:
    names = Names(2)
    assert names.choose({"a": 1, "b": 2}) == {"a", "b"}
    assert names.choose({"a": 1, "b": 2, "c": 99}) == {"a", "b"}, "counters must not go down"
    assert names.choose({"b": 2, "c": 99, "d": 5}) == {"b", "c"}
    assert Names(0).choose({"a": 1}) == set()


def test_folding_keeps_the_sum() -> None:
    folded = fold({"a": traffic(1), "b": traffic(2, 1), "c": traffic(4)}, {"b"})  # type: ignore[type-var]
    assert folded == {"b": traffic(2, 1), OTHER: traffic(5)}


def test_the_table_for_the_documentation_lists_all() -> None:
    assert len(table().splitlines()) == len(METRICS) + 2
    assert "| `lb_exchange_end_total` | counter | `reason` |" in table()
    assert set(ENGINE_COUNTERS.values()) <= set(METRICS)


async def test_problems_of_listeners_and_certificates_are_counted_with_those_of_the_input(engine: FakeEngine) -> None:
    text, _ = await render(engine)
    found = samples(parse_prometheus(text))
    # One of the build, one of the listeners, one of the certificates.
    assert found["lb_config_problems", (("severity", "error"),)] == 3
    assert found["lb_config_problems", (("severity", "note"),)] == 2
