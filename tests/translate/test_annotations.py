"""The table of annotations is complete, and every value is read as it says."""

from __future__ import annotations

import msgspec
import pytest

from lb.model.health import HealthCheck
from lb.model.route import RouteOptions
from lb.model.upstream import UpstreamOptions
from lb.objects.meta import Object, ObjectMeta
from lb.objects.view import Stored
from lb.problems import Origin, Problems
from lb.translate.annotations import ANNOTATIONS, NOTHING, Place, Values, read_annotations


def read(place: Place, **annotations: str) -> tuple[Values, Problems]:
    problems = Problems()
    named = {f"lb/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return read_annotations(Stored(Object(ObjectMeta("x", annotations=named)), Origin()), place, problems), problems


def test_every_route_and_upstream_option_has_an_annotation() -> None:
    fields = {part: {one.field for one in ANNOTATIONS if one.part == part} for part in ("route", "upstream", "health")}
    assert fields["route"] == {field.name for field in msgspec.structs.fields(RouteOptions)}
    # How long a client stays is said by the Service itself (sessionAffinityConfig).
    assert fields["upstream"] | {"affinity_timeout_ms"} == {one.name for one in msgspec.structs.fields(UpstreamOptions)}
    assert fields["health"] == {field.name for field in msgspec.structs.fields(HealthCheck)}


def test_names_are_unique_and_explained() -> None:
    assert len({one.name for one in ANNOTATIONS}) == len(ANNOTATIONS)
    assert all(one.name.startswith("lb/") and one.text.endswith(".") and one.places for one in ANNOTATIONS)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("5s", 5_000), ("500ms", 500), ("1m", 60_000), ("1m30s", 90_000), ("0", 0), (" 2s ", 2_000)],
)
def test_durations(text: str, milliseconds: int) -> None:
    values, problems = read("Ingress", response_timeout=text)
    assert values.route == {"response_timeout_ms": milliseconds}
    assert not len(problems)


@pytest.mark.parametrize(
    ("text", "size"), [("8Mi", 8 << 20), ("10m", 10 << 20), ("1g", 1 << 30), ("512", 512), ("0", 0), ("1M", 1_000_000)]
)
def test_sizes(text: str, size: int) -> None:
    values, problems = read("Ingress", max_body_size=text)
    assert values.route == {"max_body_bytes": size}
    assert not len(problems)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("response_timeout", "5"),
        ("response_timeout", ""),
        ("response_timeout", "-1s"),
        ("response_timeout", "999999999h"),
        ("max_body_size", "-1"),
        ("max_body_size", "10q"),
        ("max_body_size", "99999999999999Ti"),
        ("retries", "1.5"),
        ("retries", "99999999999"),
        ("retries", "²"),
        ("balance", "random"),
    ],
)
def test_a_value_that_cannot_be_read_is_a_problem_and_left_out(name: str, text: str) -> None:
    values, problems = read("Ingress", **{name: text})
    assert (values.route, values.balance) == ({}, None)
    assert [one.code for one in problems] == ["LB5001"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("none", ("none", ())),
        ("v1", ("v1", ())),
        ("v2", ("v2", ())),
        ("v2, ssl,unique-id,ssl", ("v2", ("ssl", "unique-id"))),
        ("v2,alpn,authority,crc32c", ("v2", ("alpn", "authority", "crc32c"))),
        ("v3", None),
        ("v1,ssl", None),
        ("v2,netns", None),
        ("ssl", None),
    ],
)
def test_a_header_and_what_it_tells(text: str, value: object) -> None:
    values, problems = read("Service", proxy_protocol=text)
    assert values.proxy_protocol == value
    assert [one.code for one in problems] == ([] if value else ["LB5001"])


def test_rates_of_a_load_balancer() -> None:
    values, problems = read("Service", max_connection_rate="100", max_connection_rate_per_client="5")
    assert values.stream == {"max_connection_rate": 100, "max_connection_rate_per_client": 5}
    assert not len(problems)
    values, problems = read("Service", max_session_rate="100", max_session_rate_per_client="5")
    assert values.datagram == {"max_session_rate": 100, "max_session_rate_per_client": 5}
    assert not len(problems)


def test_an_annotation_in_the_wrong_place_is_ignored_and_said() -> None:
    values, problems = read("Ingress", targets="nodeports", connect_timeout="1s", retries="1")
    assert values == Values(route={"retries": 1})
    assert [(one.code, one.field) for one in problems] == [
        ("LB5002", "metadata.annotations[lb/connect-timeout]"),
        ("LB5002", "metadata.annotations[lb/targets]"),
    ]


@pytest.mark.parametrize(
    ("place", "name", "value", "expected"),
    [
        ("Ingress", "client_cas", "clients", Values(mistakes={"clients": "lb/client-cas is no annotation of lb"})),
        ("Service", "backendtls", "true", Values(mistakes={"tls": "lb/backendtls is no annotation of lb"})),
        (
            "Service",
            "proxy_protocoll",
            "v2",
            Values(mistakes={"proxy_protocol": "lb/proxy-protocoll is no annotation of lb"}),
        ),
        ("Service", "address", "192.0.2.1", Values(addresses=())),
        ("Service", "load_balancers", "false", Values(load_balancer=False)),
        ("Service", "max_connection_rates", "5", Values(stream={"max_connection_rate": 1})),
    ],
)
def test_a_misspelt_name_does_not_open_what_it_guards(place: Place, name: str, value: str, expected: Values) -> None:
    values, problems = read(place, **{name: value})
    assert values == expected
    assert [one.code for one in problems] == ["LB1010"]


def test_what_is_like_a_guard_that_is_there_is_something_else() -> None:
    values, problems = read("Service", addresses="192.0.2.1", address="192.0.2.2")
    assert values == Values(addresses=("192.0.2.1",))
    assert [one.code for one in problems] == ["LB5002"]


def test_annotations_of_nobody_we_know_are_left_alone() -> None:
    problems = Problems()
    metadata = ObjectMeta("x", annotations={"example.com/owner": "shop", "lb": "x"})
    assert read_annotations(Stored(Object(metadata), Origin()), "Ingress", problems) is NOTHING
    assert not len(problems)


def test_all_annotations_of_another_controller_are_listed_those_that_control_access_first() -> None:
    harmless = [
        f"nginx.ingress.kubernetes.io/{name}" for name in ("affinity", "app-root", "backend-protocol", "x", "y")
    ]
    access = [f"nginx.ingress.kubernetes.io/{name}" for name in ("auth-url", "denylist-source-range")]
    whitelist = "nginx.ingress.kubernetes.io/whitelist-source-range"
    problems = Problems()
    metadata = ObjectMeta("x", annotations=dict.fromkeys([*harmless, whitelist, *access], "x"))
    read_annotations(Stored(Object(metadata), Origin()), "Ingress", problems)
    [problem] = problems
    assert problem.what.partition(": ")[2].split(", ") == [*access, whitelist, *harmless]


def test_annotations_of_another_controller_are_said_to_do_nothing() -> None:
    problems = Problems()
    names = ["nginx.ingress.kubernetes.io/whitelist-source-range", "alb.ingress.kubernetes.io/scheme"]
    metadata = ObjectMeta("x", annotations=dict.fromkeys(names, "x"))
    assert read_annotations(Stored(Object(metadata), Origin()), "Ingress", problems) is NOTHING
    [problem] = problems
    assert problem.code == "LB5007"
    assert all(name in problem.what for name in names)
    assert read_annotations(Stored(Object(metadata), Origin()), "Service", problems) is NOTHING
    assert len(problems) == 1
