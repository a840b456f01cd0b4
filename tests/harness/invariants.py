"""What must hold for every request that reaches a backend, whatever the client sent. Used by every scripted backend."""

from __future__ import annotations

import re
from dataclasses import dataclass

import h11

from tests.harness.messages import Request, body_framing

_HOP_BY_HOP = ("keep-alive", "proxy-connection", "http2-settings", "proxy-authenticate")
_OWN_CONNECTION_TOKENS = {b"keep-alive", b"close", b"upgrade", b"te"}
_ONCE = (
    "host",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-real-ip",
    "x-request-id",
)
_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ENCODED_UNRESERVED = re.compile(rb"%(2[DdEe]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")


@dataclass(frozen=True)
class Rules:
    """How the listener in front of the backend is set; see HttpOptions."""

    escaped_slashes: bool = False
    double_slashes: bool = False
    unix_clients: bool = False
    """Clients have no address."""


STRICT = Rules()


def violations(request: Request, rules: Rules) -> list[str]:
    """What is wrong with a request as it arrived at the backend; empty when nothing is."""
    return [
        *_start_line(request),
        *_path(request.target.split(b"?", 1)[0], rules),
        *_fields(request, rules),
        *_framing(request),
        *_trailers(request),
        *_second_opinion(request),
    ]


def _start_line(request: Request) -> list[str]:
    found = []
    if request.version != b"1.1":
        found.append(f"version {request.version!r}")
    if not request.target.startswith(b"/"):
        found.append(f"target {request.target!r} is not in origin form")
    if b"#" in request.target:
        found.append(f"target {request.target!r} has a fragment")
    return found


def _path(path: bytes, rules: Rules) -> list[str]:
    found = []
    if {b".", b".."} & set(path.split(b"/")):
        found.append(f"path {path!r} has dot segments")
    if b"//" in path and not rules.double_slashes:
        found.append(f"path {path!r} has an empty segment")
    lower = path.lower()
    if b"%00" in lower:
        found.append(f"path {path!r} has an encoded NUL")
    if (b"%2f" in lower or b"%5c" in lower) and not rules.escaped_slashes:
        found.append(f"path {path!r} has an encoded slash")
    if _PERCENT.search(path):
        found.append(f"path {path!r} has a broken percent encoding")
    if _ENCODED_UNRESERVED.search(path):
        found.append(f"path {path!r} encodes unreserved characters (RFC 3986 6.2.2.2)")
    return found


def _fields(request: Request, rules: Rules) -> list[str]:
    headers = request.headers
    # A request for no host at all (HTTP/1.0) has nothing to say in X-Forwarded-Host.
    once = [name for name in _ONCE if name != "x-forwarded-host" or headers.all("host") != [b""]]
    if rules.unix_clients:
        once = [name for name in once if name not in ("x-forwarded-for", "x-real-ip", "x-forwarded-port")]
    found = [f"{len(headers.all(name))} lines of {name}" for name in once if len(headers.all(name)) != 1]
    found += [f"hop-by-hop field {name}" for name in _HOP_BY_HOP if headers.all(name)]
    connection = headers.tokens("connection")
    if b"te" in connection and not headers.all("te"):
        found.append("Connection: te without TE")
    if connection - _OWN_CONNECTION_TOKENS:
        found.append(f"Connection {connection}")
    if headers.all("upgrade") and b"upgrade" not in connection:
        found.append("Upgrade without Connection: upgrade")
    if headers.tokens("te") - {b"trailers"}:
        found.append(f"TE {headers.all('te')}")
    port = headers.all("x-forwarded-port")
    if port and not port[0].isdigit():
        found.append(f"X-Forwarded-Port {port[0]!r}")
    if headers.all(
        "x-request-id",
    ) == [b""]:
        found.append("X-Request-ID is empty")
    return found


def _framing(request: Request) -> list[str]:
    framing, _ = body_framing(request.headers)
    if framing == "none" and request.method in (b"POST", b"PUT", b"PATCH"):
        return [] if not request.body else ["body without framing"]
    return []


def _trailers(request: Request) -> list[str]:
    forbidden = ("content-length", "transfer-encoding", "host", "authorization", "connection", "x-forwarded-for")
    return [f"trailer {name}" for name in forbidden if request.trailers.all(name)]


def _second_opinion(request: Request) -> list[str]:
    """h11 must read the same head."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(request.raw_head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        return [f"h11 refuses the head: {error}"]
    if not isinstance(event, h11.Request):
        return [f"h11 reads {event!r}"]
    if (event.method, event.target) != (request.method, request.target):
        return [f"h11 reads {event.method!r} {event.target!r}"]
    return []
