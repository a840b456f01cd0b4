"""Services of type LoadBalancer that ask for more than there is, or for what cannot be read."""

from __future__ import annotations

import msgspec
import pytest

from lb.model.stream import StreamOptions
from lb.objects.core import (
    LoadBalancerIngress,
    LoadBalancerStatus,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)
from lb.objects.discovery import SERVICE_NAME_LABEL, EndpointSlice, SliceEndpoint, SlicePort
from lb.objects.meta import ObjectMeta
from lb.objects.view import Changes
from lb.sources.store import Store
from lb.translate.load_balancers import MOST_LISTENERS
from lb.translate.translation import Options, Translation, translate
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


@pytest.mark.parametrize(
    ("annotation", "value", "stream"),
    [
        ("lb/max-connection-rate", "10/s", StreamOptions(max_connection_rate=1)),
        ("lb/max-connection-rate-per-client", "-1", StreamOptions(max_connection_rate_per_client=1)),
    ],
)
def test_a_rate_that_cannot_be_read_lets_in_few(annotation: str, value: str, stream: StreamOptions) -> None:
    translation = translate_one(annotation, value)
    [listener] = translation.config.listeners.values()
    assert listener.stream is not None
    assert listener.stream.options == stream
    assert told(translation) == [("LB5001", "one a second is let in until it is mended")]


@pytest.mark.parametrize("annotation", ["lb/max-session-rate", "lb/max-session-rate-per-client"])
def test_as_does_one_of_udp(annotation: str) -> None:
    translation = translate_one(annotation, "fast", "UDP")
    [listener] = translation.config.listeners.values()
    assert listener.datagram is not None
    options = listener.datagram.options
    assert options.max_session_rate + options.max_session_rate_per_client == 1
    assert told(translation) == [("LB5001", "one a second is let in until it is mended")]


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("lb/proxy-protocol", "v3"),
        ("lb/transparent", "yes"),
        ("service.beta.kubernetes.io/aws-load-balancer-proxy-protocol", "80"),
    ],
)
def test_endpoints_get_nothing_that_they_would_take_for_something_else(annotation: str, value: str) -> None:
    translation = translate_one(annotation, value)
    upstream = translation.config.upstreams["a/x:80"]
    assert not upstream.endpoints
    assert upstream.unavailable.startswith(f"{annotation}: ")
    assert [code for code, _ in told(translation)] == ["LB5001"]


def test_whoever_may_have_said_no_is_not_served() -> None:
    translation = translate_one("lb/load-balancer", "no")
    assert not [one for one in translation.config.listeners.values() if one.stream is not None]
    assert told(translation) == [("LB5001", "lb does not listen for it until it is mended")]


def translate_one(annotation: str, value: str, protocol: str = "TCP") -> Translation:
    """One Service of type LoadBalancer that has an endpoint."""
    store = Store()
    metadata = ObjectMeta("x", "a", annotations={annotation: value})
    store.put(stored(Service(metadata, ServiceSpec("LoadBalancer", (ServicePort(80, protocol=protocol),)))))
    store.put(stored(endpoint_slice("x", protocol)))
    return translate(store, Options(load_balancers=True), Changes(everything=True), None)


def endpoint_slice(service: str, protocol: str) -> EndpointSlice:
    return EndpointSlice(
        ObjectMeta(f"{service}-1", "a", labels={SERVICE_NAME_LABEL: service}),
        "IPv4",
        (SliceEndpoint(("10.0.0.1",)),),
        (SlicePort(port=8080, protocol=protocol),),
    )


def told(translation: Translation) -> list[tuple[str, str]]:
    return [(one.code, one.why) for one in translation.problems if one.severity == "error"]


def test_one_note_tells_of_all_who_listen_where_their_clients_do_not_look() -> None:
    store = Store()
    for number in range(1, 13):
        one = service(f"s{number:02}", 2020, 7_000 + number, 1)
        status = ServiceStatus(LoadBalancerStatus((LoadBalancerIngress(f"192.0.2.{number}"),)))
        store.put(stored(msgspec.structs.replace(one, status=status)))
    translation = translate(store, Options(load_balancers=True), Changes(everything=True), None)
    (note,) = [one for one in translation.problems if one.code == "LB4020"]
    assert note.what.startswith("12 Services listen on all addresses; their clients know a/s01 at 192.0.2.1; a/s02 at ")
    assert note.what.endswith("a/s10 at 192.0.2.10; and 2 more")
    assert note.fix.endswith("kubectl annotate service -n a s01 lb/addresses=192.0.2.1")
    assert note.severity == "note"


def test_all_addresses_can_be_meant() -> None:
    store = Store()
    one = service("x", 2020, 7_000, 1)
    store.put(
        stored(
            msgspec.structs.replace(
                one,
                metadata=msgspec.structs.replace(one.metadata, annotations={"lb/addresses": "0.0.0.0, ::"}),
                status=ServiceStatus(LoadBalancerStatus((LoadBalancerIngress("192.0.2.1"),))),
            )
        )
    )
    translation = translate(store, Options(load_balancers=True), Changes(everything=True), None)
    assert [one.code for one in translation.problems] == ["LB4003"]
    assert [one.address for one in translation.config.listeners.values()] == ["0.0.0.0", "::"]
