"""Health checks of an upstream: what is asked of its endpoints, how often, and what counts as an answer.

What is done with them while lb runs is in lb/health; how they combine with all else that keeps an endpoint from getting
requests is in docs/operations.md, Health checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from lb.model.units import format_duration

CheckType = Literal["off", "http", "http2", "grpc", "tcp", "tls"]
CheckTls = Literal["upstream", "off", "unverified"]
WhenAllFail = Literal["serve", "refuse"]
OpenFlows = Literal["keep", "reset"]

SHORTEST_INTERVAL_MS = 100
"""More often than this nobody learns more, and endpoints have other things to do."""
LONGEST_SERVICE_BYTES = 1_024
"""Names of gRPC services are far shorter, and the request must fit into the first window of a stream."""


class HealthCheck(msgspec.Struct, frozen=True, omit_defaults=True):
    """What endpoints are asked, how often, and what they must answer. Times in milliseconds."""

    type: CheckType = "off"
    """`http` (HTTP/1.1), `http2`, `grpc` (grpc.health.v1), `tcp` (connecting), `tls` (the handshake), or `off`."""
    port: int = 0
    """Port that is checked. 0: the endpoint's own."""
    path: str = "/"
    """Path and query of the request (http, http2)."""
    method: str = "GET"
    """Method of the request (http, http2)."""
    host: str = ""
    """Host of the request (http, http2, grpc). Empty: the endpoint's address."""
    headers: tuple[str, ...] = ()
    """Header lines of the request, `Name: value` (http, http2, grpc)."""
    statuses: tuple[int | str, ...] = ("200-399",)
    """Statuses that are good, such as `[200, "300-399"]` (http, http2)."""
    body: str = ""
    """Text that must be in the first 64 KiB of the response's body (http, http2). Empty: the head is enough."""
    service: str = ""
    """Name of the service that is asked for (grpc). Empty: the whole server."""
    tls: CheckTls = "upstream"
    """`upstream`: TLS if requests are sent by TLS, and as they are; `off`: none; `unverified`: TLS, whoever answers."""
    interval_ms: int = 5_000
    """From the start of a check to the next one, give or take a tenth."""
    fast_interval_ms: int = 1_000
    """The same while results contradict the state: after a failure of a healthy endpoint, a success of an unhealthy
    one. Never longer than `interval`."""
    down_interval_ms: int = 0
    """The same while an endpoint is unhealthy. 0: as `interval`."""
    timeout_ms: int = 2_000
    """How long a check may take, connecting included."""
    rise: int = 2
    """How many checks in a row an unhealthy endpoint must pass to be healthy again."""
    fall: int = 3
    """How many checks in a row a healthy endpoint must fail to be unhealthy. The very first check decides alone."""
    when_all_fail: WhenAllFail = "serve"
    """When no endpoint is healthy: `serve`, all get requests as if they were; `refuse`, requests are answered 503."""
    open_flows: OpenFlows = "keep"
    """What becomes of TCP connections that are carried to an endpoint when it turns unhealthy: `keep`, they go on;
    `reset`, they are reset at once."""


_HTTP = frozenset({"http", "http2"})
_REQUEST = _HTTP | {"grpc"}
_USERS: Mapping[str, frozenset[str]] = {
    "path": _HTTP,
    "method": _HTTP,
    "statuses": _HTTP,
    "body": _HTTP,
    "host": _REQUEST,
    "headers": _REQUEST,
    "service": frozenset({"grpc"}),
    "tls": _REQUEST | {"tls"},
}
"""Field -> types of checks that look at it; all look at the others."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 5.6.2."""
_TARGET = re.compile(r"/[!-~]*")
_HOST = re.compile(r"[!-.0->A-~]+")
"""Visible characters but `/` and `?`."""
_HEADER = re.compile(r"(?P<name>[^:]*):[ \t]*(?P<value>[ -~\t]*)")
_NUMBER = re.compile(r"[0-9]{1,9}")
_RANGE = re.compile(r"(?P<low>[1-5][0-9]{2})(?:-(?P<high>[1-5][0-9]{2}))?")

_OWN_HEADERS = frozenset(
    {"connection", "content-length", "host", "te", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection"}
)
"""Those that lb writes itself, or that would change how the request is read."""


def describe_check(check: HealthCheck) -> str:
    """`http GET /healthz every 5s`, or `off`."""
    if check.type == "off":
        return "off"
    asked = {
        "http": f" {check.method} {check.path}",
        "http2": f" {check.method} {check.path}",
        "grpc": f" {check.service}" if check.service else "",
    }.get(check.type, "")
    port = f" on port {check.port}" if check.port else ""
    return f"{check.type}{asked}{port} every {format_duration(check.interval_ms)}"


def header_lines(check: HealthCheck) -> Iterator[tuple[str, str]]:
    """(name, value) of the check's own header lines, which must be valid."""
    for line in check.headers:
        name, _, value = line.partition(":")
        yield name, value.strip(" \t")


def status_ranges(check: HealthCheck) -> tuple[range, ...]:
    """The good statuses, which must be valid."""
    return tuple(_range(one) for one in check.statuses)


def split_statuses(text: str) -> tuple[int | str, ...]:
    """`200,300-399` as it stands in a HealthCheck."""
    return tuple(int(one) if _NUMBER.fullmatch(one) else one for one in (part.strip() for part in text.split(",")))


def is_used(field: str, check: HealthCheck) -> bool:
    """Whether checks of this type look at the field."""
    return check.type in _USERS.get(field, {check.type})


def mistakes(check: HealthCheck, *, has_tls: bool) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it) of a check whose upstream is spoken to over TLS or not."""
    if check.port > 65_535:
        yield "port", f"{check.port} is no port"
    if _TARGET.fullmatch(check.path) is None:
        yield "path", f"{check.path!r} is not a path such as /healthz"
    if _TOKEN.fullmatch(check.method) is None or check.method == "CONNECT":
        yield "method", f"{check.method!r} is not a method such as GET"
    if check.host and _HOST.fullmatch(check.host) is None:
        yield "host", f"{check.host!r} is not a host such as shop.example.com"
    for line in check.headers:
        if mistake := _header_mistake(line):
            yield "headers", f"{line!r} {mistake}"
    for status in check.statuses:
        if not _range(status):
            yield "statuses", f"{status!r} is not a status such as 200, or a range such as 200-299"
    if not check.statuses:
        yield "statuses", "no status is good"
    if len(check.service.encode("utf-8", "replace")) > LONGEST_SERVICE_BYTES:
        yield "service", f"is longer than {LONGEST_SERVICE_BYTES:,} bytes"
    yield from _time_mistakes(check)
    for count in ("rise", "fall"):
        if getattr(check, count) < 1:
            yield count, "must be 1 or more"
    if check.type == "tls" and check.tls == "off":
        yield "tls", "a check of type tls cannot be without TLS"
    if check.type == "tls" and check.tls == "upstream" and not has_tls:
        yield "tls", "requests are not sent by TLS, so nothing says whom to verify: `unverified` only looks for TLS"


def _time_mistakes(check: HealthCheck) -> Iterator[tuple[str, str]]:
    for field in ("interval_ms", "fast_interval_ms"):
        if getattr(check, field) < SHORTEST_INTERVAL_MS:
            yield field, f"must be {format_duration(SHORTEST_INTERVAL_MS)} or longer"
    if 0 < check.down_interval_ms < SHORTEST_INTERVAL_MS:
        yield "down_interval_ms", f"must be 0, or {format_duration(SHORTEST_INTERVAL_MS)} or longer"
    if check.timeout_ms < 1:
        yield "timeout_ms", "must be longer than 0"


def _header_mistake(line: str) -> str:
    found = _HEADER.fullmatch(line)
    if found is None or _TOKEN.fullmatch(found["name"]) is None:
        return "is not like `Name: value`"
    return "is written by lb itself" if found["name"].lower() in _OWN_HEADERS else ""


def _range(status: int | str) -> range:
    """Empty for what is none."""
    found = _RANGE.fullmatch(str(status))
    return range(0) if found is None else range(int(found["low"]), int(found["high"] or found["low"]) + 1)


def read_off(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """YAML 1.1 takes a plain `off` for false."""
    return {key: "off" if value is False and key in ("type", "tls") else value for key, value in content.items()}
