"""Normalisation of a request's host and target: what is matched and forwarded is the same bytes, made canonical once.

This file owns the rules. The data plane follows the same list in C (lb/_fastpath), and hypothesis compares the two. It
knows nothing of HTTP messages: absolute-form, `OPTIONS *` and CONNECT are the codec's business, which hands over the
authority as the host and the rest as the target (`/` when there is none).

Host (the value of Host or the authority of an absolute-form target, surrounding blanks removed):

 1. An empty value is the empty host; only `*` serves it.
 2. `[`: the text up to `]` must be hexadecimal digits, `:` and `.`, with at least two `:` (an IPv6 literal). The
    brackets stay. After `]` comes nothing or a port. Else host-syntax.
 3. Otherwise the host ends at the first `:` or at the end.
 4. A port is `:` and 0 to 5 digits, at most 65535. It is dropped. Else host-port.
 5. A name has letters, digits, `-`, `_` and `.` only (so no userinfo, path, comma, `*` or escape). Else host-character.
 6. One trailing dot is dropped.
 7. Then no label is empty and the name has at most 253 bytes. Else host-syntax.
 8. Upper case becomes lower case (ASCII).

Target (origin-form):

 1. The first byte is `/`. Else target-form.
 2. No byte of it, query included, is below 0x21, above 0x7e, or `#`. Else target-character.
 3. The path ends at the first `?`. What follows is the query, which stays as it is. `?` with nothing behind it is an
    empty query, no `?` is none.
 4. In the path, `%` is followed by two hexadecimal digits. Else bad-escape.
 5. %00 is rejected: escaped-nul.
 6. With escaped_slashes=reject: %2F, %5C and a bare `\\` are rejected: escaped-slash. With keep they stay as they are.
 7. An escaped unreserved character (letters, digits, `-._~`; RFC 3986 2.3) becomes that character. All other escapes
    stay, their digits in upper case. Nothing is decoded twice.
 8. With merge_slashes: runs of `/` become one.
 9. Dot segments go (RFC 3986 5.2.4), empty segments counting as segments; `.` or `..` at the end leave the `/` before
    it. `..` with nothing before it is rejected: above-root.

The rules apply in this order, and the first one that is broken names the rejection; within rules 4 to 7 that is the
leftmost escape or `\\`. Every result is a fixed point of the function that made it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Rejection = Literal[
    "host-character",
    "host-port",
    "host-syntax",
    "target-form",
    "target-character",
    "bad-escape",
    "escaped-nul",
    "escaped-slash",
    "above-root",
]
"""Each of these is answered 400, with reason `bad-host` or `bad-target`."""

MAX_HOST_BYTES = 253
"""RFC 1035 2.3.4 as text without the trailing dot."""

_DIGITS = frozenset(b"0123456789")
_HEX = _DIGITS | frozenset(b"abcdefABCDEF")
_NAME = _DIGITS | frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.")
_UNRESERVED = _NAME | frozenset(b"~")
_LITERAL = _HEX | frozenset(b":.")
_SLASHES = frozenset(b"/\\")


class Rejected(NamedTuple):
    """The request is not served: which rule it breaks, in words for people."""

    rejection: Rejection
    why: str


class Target(NamedTuple):
    """A normalised request target."""

    path: bytes
    query: bytes | None
    """Without the `?`; None when there is none."""


class _BadPathError(Exception):
    def __init__(self, rejection: Rejection, why: str) -> None:
        super().__init__(why)
        self.rejected = Rejected(rejection, why)


def normalize_host(value: bytes) -> bytes | Rejected:
    """The host a request is for: lower case, without port and trailing dot, IPv6 literals in brackets."""
    if not value:
        return b""
    if value.startswith(b"["):
        return _normalize_literal(value)
    name, colon, port = value.partition(b":")
    if not _is_port(colon, port):
        return Rejected("host-port", "the port in Host is not a number up to 65535")
    if not _NAME.issuperset(name):
        return Rejected("host-character", "Host has a character that no hostname has")
    name = name.removesuffix(b".")
    if not all(name.split(b".")) or len(name) > MAX_HOST_BYTES:
        return Rejected("host-syntax", "Host has an empty label or is too long")
    return name.lower()


def normalize_target(
    target: bytes, *, merge_slashes: bool = True, escaped_slashes: Literal["reject", "keep"] = "reject"
) -> Target | Rejected:
    """Path and query of an origin-form request target, ready for matching and forwarding."""
    if not target.startswith(b"/"):
        return Rejected("target-form", "the request target does not begin with /")
    if any(byte <= 0x20 or byte >= 0x7F or byte == 0x23 for byte in target):
        return Rejected("target-character", "the request target has a blank, a control, a #, or a byte outside ASCII")
    path, question_mark, query = target.partition(b"?")
    try:
        path = _normalize_escapes(path, reject_slashes=escaped_slashes == "reject")
        path = _remove_dot_segments(_merge_slashes(path) if merge_slashes else path)
    except _BadPathError as error:
        return error.rejected
    return Target(path, query if question_mark else None)


def normalize_rule_path(path: str, *, partial: bool = False) -> str | Rejected:
    """The value of a path condition as it stands in normalised requests, which is what conditions are compared with.

    Blanks, controls, `#`, `?` and what is not ASCII become escapes (as UTF-8); slashes are neither merged nor rejected.
    `partial` is for values that may end within a segment: their last segment is no dot segment.
    """
    if partial and not path:
        return path
    escaped = "".join(chr(byte) if _stands_for_itself(byte) else f"%{byte:02X}" for byte in path.encode())
    tail = "x" if partial else ""
    result = normalize_target(f"{escaped}{tail}".encode(), merge_slashes=False, escaped_slashes="keep")
    return result if isinstance(result, Rejected) else result.path.decode().removesuffix(tail)


def _stands_for_itself(byte: int) -> bool:
    return 0x20 < byte < 0x7F and byte not in b"#?"


def _normalize_literal(value: bytes) -> bytes | Rejected:
    literal, bracket, rest = value[1:].partition(b"]")
    colon, port = rest[:1], rest[1:]
    if not bracket or colon not in (b"", b":") or literal.count(b":") < 2 or not _LITERAL.issuperset(literal):
        return Rejected("host-syntax", "Host begins with [ but is no IPv6 address in brackets")
    if not _is_port(colon, port):
        return Rejected("host-port", "the port in Host is not a number up to 65535")
    return b"[" + literal.lower() + b"]"


def _is_port(colon: bytes, port: bytes) -> bool:
    if not port:
        return True
    return bool(colon) and len(port) <= 5 and _DIGITS.issuperset(port) and int(port) <= 65535


def _normalize_escapes(path: bytes, *, reject_slashes: bool) -> bytes:
    out = bytearray()
    position = 0
    while position < len(path):
        byte = path[position]
        if byte != ord("%"):
            if byte == ord("\\") and reject_slashes:
                raise _BadPathError("escaped-slash", "the path has a backslash")
            out.append(byte)
            position += 1
            continue
        digits = path[position + 1 : position + 3]
        if len(digits) != 2 or not _HEX.issuperset(digits):
            raise _BadPathError("bad-escape", "the path has a % that two hexadecimal digits do not follow")
        out += _normalize_escape(digits, reject_slashes=reject_slashes)
        position += 3
    return bytes(out)


def _normalize_escape(digits: bytes, *, reject_slashes: bool) -> bytes:
    byte = int(digits, 16)
    if byte == 0:
        raise _BadPathError("escaped-nul", "the path has a %00")
    if byte in _SLASHES and reject_slashes:
        raise _BadPathError("escaped-slash", "the path has an escaped slash or backslash")
    return bytes([byte]) if byte in _UNRESERVED else b"%" + digits.upper()


def _merge_slashes(path: bytes) -> bytes:
    while b"//" in path:
        path = path.replace(b"//", b"/")
    return path


def _remove_dot_segments(path: bytes) -> bytes:
    segments = path[1:].split(b"/")
    kept: list[bytes] = []
    for segment in segments:
        if segment == b"..":
            if not kept:
                raise _BadPathError("above-root", "the path leads above the root")
            kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)
