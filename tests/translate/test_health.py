"""Health checks by annotations of a Service, over the operator's default; half understood they are not made."""

from __future__ import annotations

import msgspec
import pytest

from lb.model.health import HealthCheck
from lb.translate.annotations import GUARDED
from lb.translate.translation import Options
from tests.translate.cluster import backend, ingress, translate_text

OFF = HealthCheck()
DEFAULT = HealthCheck(type="tcp", interval_ms=10_000)


def translate(annotations: str, default: HealthCheck = OFF) -> tuple[HealthCheck, list[tuple[str, str, str]]]:
    """The check of a Service with these annotations, and its problems as (code, annotation, why)."""
    service = backend("web", "10.0.0.1").replace(
        "namespace: shop}", f"namespace: shop, annotations: {annotations}}}", 1
    )
    text = ingress("web", ("h", "Prefix", "/", "web")) + service
    translation = translate_text(text, Options(health_check=default))
    problems = [
        (one.code, one.field.removeprefix("metadata.annotations[lb/health-check").rstrip("]"), one.why)
        for one in translation.problems
        if one.origin.object == "Service shop/web"
    ]
    return translation.config.upstreams["shop/web:80"].health_check, problems


def test_nothing_said() -> None:
    assert translate("{}") == (HealthCheck(), [])
    assert translate("{}", DEFAULT) == (DEFAULT, [])


@pytest.mark.parametrize(
    ("annotations", "check"),
    [
        ("{lb/health-check: http}", HealthCheck("http")),
        (
            "{lb/health-check: http, lb/health-check-path: /healthz, lb/health-check-port: '9090',"
            " lb/health-check-statuses: '200, 300-399', lb/health-check-body: ok, lb/health-check-host: a.test,"
            ' lb/health-check-method: HEAD, lb/health-check-headers: "X-A: 1\\nX-B: 2\\n"}',
            HealthCheck(
                "http", 9090, "/healthz", "HEAD", "a.test", ("X-A: 1", "X-B: 2"), (200, "300-399"), "ok",
            ),
        ),
        (
            "{lb/health-check: grpc, lb/health-check-service: shop.v1, lb/health-check-tls: unverified,"
            " lb/health-check-interval: 2s, lb/health-check-fast-interval: 500ms, lb/health-check-down-interval: 9s,"
            " lb/health-check-timeout: 1s, lb/health-check-rise: '1', lb/health-check-fall: '5',"
            " lb/health-check-when-all-fail: refuse, lb/health-check-open-flows: reset}",
            HealthCheck(
                "grpc", service="shop.v1", tls="unverified", interval_ms=2_000, fast_interval_ms=500,
                down_interval_ms=9_000, timeout_ms=1_000, rise=1, fall=5, when_all_fail="refuse",
                open_flows="reset",
            ),
        ),
        ("{lb/health-check: tls, lb/health-check-tls: unverified}", HealthCheck("tls", tls="unverified")),
        ("{lb/health-check: tls, lb/backend-tls: 'true'}", HealthCheck("tls")),
    ],
)  # fmt: skip
def test_what_annotations_say(annotations: str, check: HealthCheck) -> None:
    assert translate(annotations) == (check, [])


def test_annotations_stand_over_the_default() -> None:
    assert translate("{lb/health-check: http}", DEFAULT) == (msgspec.structs.replace(DEFAULT, type="http"), [])
    assert translate("{lb/health-check-rise: '1'}", DEFAULT) == (msgspec.structs.replace(DEFAULT, rise=1), [])
    assert translate("{lb/health-check: 'off'}", DEFAULT) == (HealthCheck(), [])


@pytest.mark.parametrize(
    ("annotations", "field"),
    [
        ("{lb/health-check: htpp}", ""),
        ("{lb/health-check: http, lb/health-check-interval: '5'}", "-interval"),
        ("{lb/health-check: http, lb/health-check-interval: 1ms}", "-interval"),
        ("{lb/health-check: http, lb/health-check-path: healthz}", "-path"),
        ("{lb/health-check: http, lb/health-check-statuses: 2xx}", "-statuses"),
        ("{lb/health-check: http, lb/health-check-statuses: ''}", "-statuses"),
        ("{lb/health-check: http, lb/health-check-port: http}", "-port"),
        ("{lb/health-check: http, lb/health-check-headers: 'Host: a'}", "-headers"),
        ("{lb/health-check: http, lb/health-check-when-all-fail: panic}", "-when-all-fail"),
        ("{lb/health-check: tcp, lb/health-check-open-flows: 'true'}", "-open-flows"),
        ("{lb/health-check: tls}", "-tls"),
    ],
)
def test_what_cannot_be_used_turns_the_check_off_and_is_said(annotations: str, field: str) -> None:
    assert translate(annotations, DEFAULT) == (
        HealthCheck(),
        [("LB5001", field, GUARDED["health"])],
    )


def test_what_has_no_effect_is_said() -> None:
    unused = ("LB5002", "-path", "it is ignored")
    assert translate("{lb/health-check-path: /x}") == (HealthCheck(), [unused])
    assert translate("{lb/health-check: tcp, lb/health-check-path: /x}") == (HealthCheck("tcp", path="/x"), [unused])
    assert translate("{lb/health-check-path: /x}", DEFAULT)[1] == [unused]
