"""A check by gRPC's own health service: `/grpc.health.v1.Health/Check`.

Sources: grpc/doc/health-checking.md and grpc.health.v1 (grpc-proto/grpc/health/v1/health.proto),
grpc/doc/PROTOCOL-HTTP2.md. The two messages have one field each, so they are written and read by hand.
"""

from __future__ import annotations

from urllib.parse import unquote

from lb.health.http2 import Headers, Http2Stream, request_headers, status_of
from lb.health.talk import Asked, own_headers
from lb.health.verdict import PASSED, Verdict, printable
from lb.model.grpc import STATUSES
from lb.model.health import HealthCheck

PATH = "/grpc.health.v1.Health/Check"
MESSAGE_BYTES = 4_096
"""The longest answer that is read: the message of the health service has two bytes."""

SERVING = 1
SERVING_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


class GrpcQuestion:
    """A call of Check."""

    def __init__(self, check: HealthCheck, asked: Asked) -> None:
        own = [
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", f"{min(check.timeout_ms, 99_999_999)}m"),
            *own_headers(check),
        ]
        self._headers = request_headers("POST", PATH, asked, own)
        self._body = frame(request(check.service))

    def open(self) -> GrpcTalk:
        return GrpcTalk(self._headers, self._body)


class GrpcTalk(Http2Stream):
    """A call and its answer."""

    def __init__(self, headers: Headers, body: bytes) -> None:
        super().__init__(headers, body)
        self._answer = b""
        self._status: str | None = None
        self._message = ""

    def take_headers(self, headers: dict[str, str]) -> Verdict | None:
        if ":status" in headers and status_of(headers) != 200:
            return Verdict("wrong-status", f"status {status_of(headers)}, and no gRPC")
        if "grpc-status" in headers:
            self._status = headers["grpc-status"]
            self._message = headers.get("grpc-message", "")
        elif ":status" in headers and not headers.get("content-type", "").startswith("application/grpc"):
            return Verdict("bad-response", "no gRPC: the content type is another one")
        return None

    def take_data(self, data: bytes) -> Verdict | None:
        self._answer += data
        if len(self._answer) > MESSAGE_BYTES:
            return Verdict("bad-response", "no answer of the health service: it is too long")
        return None

    def take_end(self) -> Verdict:
        if self._status is None:
            return Verdict("bad-response", "no gRPC: there is no grpc-status")
        if self._status != "0":
            return Verdict("not-serving", self._say_status())
        try:
            status = serving_status(unframe(self._answer))
        except ValueError as error:
            return Verdict("bad-response", f"no answer of the health service: {error}")
        if status == SERVING:
            return PASSED
        return Verdict(
            "not-serving", SERVING_STATUSES[status] if status < len(SERVING_STATUSES) else f"status {status}"
        )

    def _say_status(self) -> str:
        """`grpc-status 12 UNIMPLEMENTED: unknown service`."""
        status = self._status or ""
        number = int(status) if status.isascii() and status.isdigit() and len(status) < 3 else -1
        name = f"{number} {STATUSES[number]}" if 0 <= number < len(STATUSES) else "that is none"
        message = printable(unquote(self._message[:300]))
        return f"grpc-status {name}{f': {message}' if message else ''}"


def request(service: str) -> bytes:
    """HealthCheckRequest: field 1 is the name of the service; an empty one is left out."""
    name = service.encode()
    return b"\x0a" + _varint(len(name)) + name if name else b""


def frame(message: bytes) -> bytes:
    """A message that is not compressed, with its length before it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def unframe(data: bytes) -> bytes:
    """The only message in `data`. ValueError when it holds something else."""
    if len(data) < 5 or data[0] != 0 or int.from_bytes(data[1:5], "big") != len(data) - 5:
        raise ValueError("not one message")
    return data[5:]


def serving_status(message: bytes) -> int:
    """Field 1 of HealthCheckResponse; 0 when it is left out. Other fields are passed over. ValueError."""
    status, at = 0, 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _read_varint(message, at)
            if tag >> 3 == 1:
                status = value
        elif kind == 2:
            size, at = _read_varint(message, at)
            at += size
        else:
            at += {1: 8, 5: 4}.get(kind, MESSAGE_BYTES)
    if at != len(message):
        raise ValueError("the message is cut off")
    return status


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends). At most ten bytes (protobuf encoding)."""
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return value, at + index + 1
    raise ValueError("a number without an end")
