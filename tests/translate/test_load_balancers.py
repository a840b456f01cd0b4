"""Services of type LoadBalancer that ask for more than there is."""

from __future__ import annotations

from lb.objects.core import Service, ServicePort, ServiceSpec
from lb.objects.meta import ObjectMeta
from lb.objects.view import Changes
from lb.sources.store import Store
from lb.translate.load_balancers import MOST_LISTENERS
from lb.translate.translation import Options, translate
from tests.translate.objects import stored


def service(name: str, year: int, first: int, count: int) -> Service:
    ports = tuple(ServicePort(port, str(port)) for port in range(first, first + count))
    metadata = ObjectMeta(name, "a", creation_timestamp=f"{year}-01-01T00:00:00Z")
    return Service(metadata, ServiceSpec("LoadBalancer", ports))


def test_older_objects_get_the_listeners_that_there_are() -> None:
    store = Store()
    store.put(stored(service("late", 2026, 1, 5)))
    store.put(stored(service("old", 2020, 10, 10)))
    store.put(stored(service("greedy", 2025, 1_000, MOST_LISTENERS)))
    translation = translate(store, Options(load_balancers=True), Changes(everything=True), None)
    assert len(translation.config.listeners) == MOST_LISTENERS
    assert {f"a/old:{port}" for port in range(10, 20)} <= translation.config.listeners.keys()
    told = [one for one in translation.problems if one.code == "LB4015"]
    assert [(one.origin.name, one.field) for one in told] == [
        ("greedy", f"spec.ports[{MOST_LISTENERS - 10}]"),
        ("late", "spec.ports[0]"),
    ]
