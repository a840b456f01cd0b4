"""The table of HTTP/2 requests: field sections and DATA, and what has to become of them (RFC 9113 8).

A malformed request ends its stream with PROTOCOL_ERROR. What is well-formed and still not served gets an answer, as it
would over HTTP/1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.harness.http2_client import Field, replaced, request_fields, without

MALFORMED = 0
"""Status of a request that gets none."""

GET = tuple(request_fields("/case"))
POST = tuple(request_fields("/case", method="POST"))
HOST_BYTES = b"wire.test"


@dataclass(frozen=True)
class Case:
    id: str
    fields: tuple[Field, ...]
    status: int = MALFORMED
    data: tuple[bytes, ...] | None = None
    """Payloads of DATA frames, the last one with END_STREAM when no trailers follow; None: HEADERS has END_STREAM."""
    trailers: tuple[Field, ...] = ()
    begins: bool = False
    """Malformed, but that shows only behind its head. An endpoint may see what was good, and an HTTP/1 one cannot tell
    it from a whole request when all of content-length was there."""
    target: bytes = b"/case"
    method: bytes | None = None
    has: dict[str, bytes] = field(default_factory=dict)
    """What arrives: exactly one line with this value."""
    lacks: tuple[str, ...] = ()
    arrived_trailers: dict[str, bytes] = field(default_factory=dict)


def plus(*more: Field) -> tuple[Field, ...]:
    return (*GET, *more)


def posted(*more: Field) -> tuple[Field, ...]:
    return (*POST, *more)


def but(**changes: str | bytes) -> tuple[Field, ...]:
    """GET with other pseudo-header fields."""
    return tuple(replaced(GET, {f":{name}": value for name, value in changes.items()}))


def lacking(*names: str) -> tuple[Field, ...]:
    return tuple(without(GET, *names))


def malformed(id: str, fields: tuple[Field, ...], **more: object) -> Case:
    return Case(id, fields, MALFORMED, **more)  # type: ignore[arg-type]


def refused(id: str, fields: tuple[Field, ...], status: int = 400, **more: object) -> Case:
    return Case(id, fields, status, **more)  # type: ignore[arg-type]


def accepted(id: str, fields: tuple[Field, ...], **more: object) -> Case:
    return Case(id, fields, 200, **more)  # type: ignore[arg-type]


PSEUDO = [
    # RFC 9113 8.3, 8.3.1
    *(malformed(f"no {name}", lacking(name)) for name in (":method", ":scheme", ":path")),
    *(malformed(f"{name} is empty", tuple(replaced(GET, {name: ""}))) for name in (":method", ":scheme", ":path")),
    *(
        malformed(f"two {name}", (*GET[:4], item))
        for name, item in zip(("method", "scheme", "path"), GET, strict=False)
    ),
    malformed("two :authority", (*GET, GET[3])),
    malformed("two :authority that differ", (*GET, (":authority", "other.test"))),
    malformed("two :path that differ", (*GET, (":path", "/other"))),
    malformed("an unknown pseudo-header field", (*GET, (":test", "1"))),
    malformed(":status", (*GET, (":status", "200"))),
    malformed(":protocol without CONNECT", (*GET, (":protocol", "websocket"))),
    malformed("a pseudo-header field in upper case", (*lacking(":path"), (":Path", "/case"))),
    malformed("a pseudo-header field with a blank", (*GET, (":path ", "/case"))),
    malformed("a name that is only a colon", (*GET, (":", "x"))),
    malformed("a name with two colons", (*GET, ("::path", "/case"))),
    *(malformed(f"{GET[index][0]} after a field", (*GET[:index], ("x-a", "1"), *GET[index:])) for index in range(1, 4)),
    malformed("a field before all of them", (("x-a", "1"), *GET)),
    *(
        malformed(f"{name} with {what}", tuple(replaced(GET, {name: before + after})))
        for name, before in ((":method", b"GET"), (":scheme", b"http"), (":path", b"/case"), (":authority", HOST_BYTES))
        for what, after in (
            ("CR LF", b" HTTP/1.1\r\nX-Evil: 1"),
            ("CR", b"\rx"),
            ("LF", b"\nx"),
            ("NUL", b"\0x"),
            ("a blank at its end", b" "),
        )
    ),
    malformed("a blank before :path", but(path=" /case")),
    malformed("a method that is no token", but(method="G ET")),
    malformed("a method that is a request line", but(method="GET /evil HTTP/1.1")),
    refused("a method that is too long", but(method="M" * 100)),
    accepted("a method that nobody knows", but(method="PURGE"), method=b"PURGE"),
    accepted("a method in lower case is another one", but(method="get"), method=b"get"),
]

TARGETS = [
    malformed("a relative :path", but(path="case")),
    malformed("only a query", but(path="?case")),
    malformed("an absolute URI", but(path="http://wire.test/case")),
    malformed("* that is not asked with OPTIONS", but(path="*")),
    malformed("*x", but(path="*x", method="OPTIONS")),
    *(malformed(f":path {path!r}", but(path=path)) for path in (b"/a b", b"/a\x7f", b"/\x01", b"/a\tb")),
    *(
        refused(f":path {path!r}", but(path=path))
        for path in (b"/a#b", b"/\x80", b"/%00", b"/%zz", b"/%", b"/%2f", b"/%5c", b"/../x")
    ),
    refused(":path over the limit", but(path="/" + "a" * 9_000), 414),
    accepted("dots are resolved", but(path="/a/../case/./x"), target=b"/case/x"),
    accepted("slashes are merged", but(path="//wire.test//case"), target=b"/wire.test/case"),
    accepted("escapes are made normal", but(path="/%63ase?%41"), target=b"/case?%41"),
    accepted("a query may hold anything", but(path="/case?a=//../%2F&b=?"), target=b"/case?a=//../%2F&b=?"),
    accepted(":scheme https on a plain port", but(scheme="https")),
    accepted(":scheme in upper case", but(scheme="HTTP")),
    refused("another :scheme", but(scheme="ftp")),
]

AUTHORITIES = [
    accepted("host in place of :authority", (*lacking(":authority"), ("host", "wire.test"))),
    accepted("both, and they agree", plus(("host", "wire.test"))),
    accepted("both, and they agree but for case", plus(("host", "WIRE.TEST"))),
    accepted("in upper case", but(authority="WIRE.TEST")),
    accepted("with a port", but(authority="wire.test:8080")),
    accepted("with an empty port", but(authority="wire.test:")),
    malformed("neither", lacking(":authority")),
    malformed("an empty :authority", but(authority="")),
    malformed("an empty host", (*lacking(":authority"), ("host", ""))),
    refused("both, and they differ", plus(("host", "other.test"))),
    refused("both, and their ports differ", plus(("host", "wire.test:80"))),
    malformed("two hosts", (*lacking(":authority"), ("host", "wire.test"), ("host", "wire.test"))),
    refused("userinfo (RFC 9113 8.3.1)", but(authority="user@wire.test")),
    refused("userinfo with a password", but(authority="user:pass@wire.test")),
    refused("userinfo in host", (*lacking(":authority"), ("host", "user@wire.test"))),
    *(
        malformed(f":authority {text!r}", but(authority=text))
        for text in ("wire.test/case", "wire test", "wire.test?", "wire.test#", "\xff")
    ),
    *(
        refused(f":authority {text!r}", but(authority=text))
        for text in ("wire.test:port", "wire.test,wire.test", "[::1", "[wire.test]", "%77ire.test", "wire..test")
    ),
]

NAMES = [
    # RFC 9113 8.2.1
    *(
        malformed(f"the name {name!r}", plus((name, "1")))
        for name in (
            *(
                b"",
                b"X-Test",
                b"x-tesT",
                b"x test",
                b"x-test ",
                b" x-test",
                b"\tx",
                b"x:y",
                b"x-test:",
                b"x\r\ny",
                b"x\n",
            ),
            *(b"x\0", b"x\x7f", b"x\x80", b"x\xff", b"x(y)", b'x"y"', b"x,y", b"x/y", b"x=y", b"x@y", b"x[y]", b"x{y}"),
            *(
                b"x-evil: 1\r\nhost",
                b"GET / HTTP/1.1\r\nx",
                b"transfer-encoding\r",
                b"content-length ",
                b"x\\y",
                b"x;y",
            ),
        )
    ),
    accepted("every character of a token", plus(("!#$%&'*+-.^`|~x-test_09", "1"))),
    accepted("a name that servers may read as another one", plus(("x_forwarded_for", "1")), lacks=("x_forwarded_for",)),
]

VALUES = [
    *(
        malformed(f"the value {value!r}", plus(("x-test", value)))
        for value in (
            *(b"\0", b"a\0b", b"a\rb", b"a\nb", b"\r", b"\n", b"a\r\nx-evil: 1", b"a\r\n\r\nGET /evil HTTP/1.1\r\n"),
            *(b" a", b"a ", b"\ta", b"a\t", b" ", b"\x01", b"a\x1fb", b"a\x7fb"),
        )
    ),
    accepted("an empty value", plus(("x-test", "")), has={"x-test": b""}),
    accepted("blanks inside a value", plus(("x-test", "a \t b")), has={"x-test": b"a \t b"}),
    accepted("bytes beyond ASCII", plus(("x-test", b"\x80\xff")), has={"x-test": b"\x80\xff"}),
    accepted("a value that looks like a field", plus(("x-test", "a: b, c;")), has={"x-test": b"a: b, c;"}),
]

CONNECTION = [
    # RFC 9113 8.2.2
    *(
        malformed(f"{name}: {value}", plus((name, value)))
        for name, value in (
            *(("connection", "close"), ("connection", "x-test"), ("connection", "")),
            *(
                ("proxy-connection", "keep-alive"),
                ("keep-alive", "timeout=5"),
                ("upgrade", "h2c"),
                ("upgrade", "websocket"),
            ),
            *(("transfer-encoding", "chunked"), ("transfer-encoding", "identity"), ("transfer-encoding", "")),
            *(("te", "gzip"), ("te", "trailers, gzip"), ("te", "trailers;q=1"), ("te", "")),
        )
    ),
    malformed("transfer-encoding with a body", posted(("transfer-encoding", "chunked")), data=(b"0\r\n\r\n",)),
    malformed(
        "transfer-encoding and content-length", posted(("transfer-encoding", "chunked"), ("content-length", "5"))
    ),
    accepted("te: trailers", plus(("te", "trailers"))),
    accepted("http2-settings stays behind", plus(("http2-settings", "AAMAAABk")), lacks=("http2-settings",)),
    accepted(
        "proxy-authorization is not ours", plus(("proxy-authorization", "Basic eA==")), lacks=("proxy-authorization",)
    ),
]

LENGTHS = [
    # RFC 9113 8.1.1
    accepted("content-length that fits", posted(("content-length", "5")), data=(b"hello",)),
    accepted("in several frames", posted(("content-length", "5")), data=(b"he", b"", b"llo", b"")),
    accepted("leading zeros", posted(("content-length", "005")), data=(b"hello",)),
    accepted("no content-length", posted(), data=(b"hel", b"lo")),
    accepted("an empty body", posted(), data=(b"",)),
    accepted("content-length 0", posted(("content-length", "0"))),
    accepted("content-length 0 and empty DATA", posted(("content-length", "0")), data=(b"",)),
    accepted("GET with a body", plus(("content-length", "5")), data=(b"hello",)),
    malformed("more DATA than content-length", posted(("content-length", "4")), data=(b"hello",), begins=True),
    malformed("more, in another frame", posted(("content-length", "4")), data=(b"hell", b"o"), begins=True),
    malformed("less DATA than content-length", posted(("content-length", "6")), data=(b"hello",), begins=True),
    malformed(
        "less, then trailers", posted(("content-length", "6")), data=(b"hello",), trailers=(("x-t", "1"),), begins=True
    ),
    malformed("content-length and no DATA", posted(("content-length", "5"))),
    malformed("content-length and empty DATA", posted(("content-length", "5")), data=(b"",), begins=True),
    malformed(
        "content-length 0 and DATA", posted(("content-length", "0")), data=(b"GET /evil HTTP/1.1\r\n",), begins=True
    ),
    *(
        malformed(f"content-length {value!r}", posted(("content-length", value)), data=(b"hello",))
        for value in ("", "+5", "-5", "5,5", "5, 5", "0x5", "5.0", "5e0", "five", "9" * 19, "18446744073709551621")
    ),
    malformed("two content-length", posted(("content-length", "5"), ("content-length", "5")), data=(b"hello",)),
    malformed("two that differ", posted(("content-length", "5"), ("content-length", "4")), data=(b"hello",)),
]

TRAILERS = [
    accepted(
        "trailers",
        posted(),
        data=(b"hello",),
        trailers=(("x-checksum", "1"), ("etag", '"a"')),
        arrived_trailers={"x-checksum": b"1", "etag": b'"a"'},
    ),
    accepted(
        "trailers without DATA",
        posted(),
        data=(),
        trailers=(("x-checksum", "1"),),
        arrived_trailers={"x-checksum": b"1"},
    ),
    accepted(
        "what may not be a trailer stays behind",
        posted(),
        data=(b"hello",),
        trailers=(("host", "evil.test"), ("authorization", "x"), ("x-forwarded-for", "10.9.8.7"), ("x-t", "1")),
        arrived_trailers={"x-t": b"1"},
    ),
    *(
        malformed(f"the trailer {name!r}", posted(), data=(b"hello",), trailers=((name, value),), begins=True)
        for name, value in (
            *((b":path", b"/evil"), (b":method", b"GET"), (b":status", b"200"), (b":x", b"1")),
            *((b"X-Upper", b"1"), (b"", b"1"), (b"x y", b"1"), (b"x\r\ny", b"1"), (b"x:y", b"1")),
            *((b"x-t", b"a\r\nb"), (b"x-t", b"\0"), (b"x-t", b" a"), (b"x-t", b"a ")),
            *((b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"upgrade", b"x"), (b"te", b"gzip")),
        )
    ),
]

CONNECTS = [
    # RFC 9113 8.5, RFC 8441 4
    refused("CONNECT", ((":method", "CONNECT"), (":authority", "wire.test:443")), 405),
    malformed("CONNECT with :path", ((":method", "CONNECT"), (":authority", "wire.test:443"), (":path", "/"))),
    malformed("CONNECT with :scheme", ((":method", "CONNECT"), (":authority", "wire.test:443"), (":scheme", "http"))),
    malformed("CONNECT as if it were GET", but(method="CONNECT")),
    malformed("CONNECT without :authority", ((":method", "CONNECT"),)),
    refused("extended CONNECT for what nobody knows", (*but(method="CONNECT"), (":protocol", "connect-udp")), 501),
    malformed("extended CONNECT without :path", (*without(but(method="CONNECT"), ":path"), (":protocol", "websocket"))),
    malformed(
        "extended CONNECT without :scheme", (*without(but(method="CONNECT"), ":scheme"), (":protocol", "websocket"))
    ),
]

EXPECTATIONS = [
    refused("an expectation that nobody knows", plus(("expect", "202-wonder")), 417),
    accepted("Expect: 100-continue", posted(("expect", "100-continue"), ("content-length", "5")), data=(b"hello",)),
]

COOKIES = [
    # RFC 9113 8.2.3
    accepted(
        "crumbs are put together",
        plus(("cookie", "a=b"), ("cookie", "c=d"), ("cookie", "e=f")),
        has={"cookie": b"a=b; c=d; e=f"},
    ),
    accepted(
        "with others between", plus(("cookie", "a=b"), ("x-a", "1"), ("cookie", "c=d")), has={"cookie": b"a=b; c=d"}
    ),
    accepted("one cookie", plus(("cookie", "a=b; c=d")), has={"cookie": b"a=b; c=d"}),
    accepted("empty crumbs", plus(("cookie", ""), ("cookie", "a=b"), ("cookie", "")), has={"cookie": b"a=b"}),
    malformed("a crumb with CR LF", plus(("cookie", "a=b"), ("cookie", "c\r\nx-evil: 1"))),
    malformed("a crumb with a blank", plus(("cookie", "a=b"), ("cookie", " c=d"))),
    accepted(
        "many crumbs and a long target",
        (*but(path="/case?" + "0" * 7_000), *(("cookie", f"{n:02}=" + "0" * 250) for n in range(60))),
        target=b"/case?" + b"0" * 7_000,
        has={"cookie": b"; ".join(b"%02d=" % n + b"0" * 250 for n in range(60))},
    ),
]

LIMITS = [
    # One field more than these is sent, the one that tells cases apart.
    accepted("100 fields", plus(*((f"x-{n}", "1") for n in range(99)))),
    refused("102 fields", plus(*((f"x-{n}", "1") for n in range(101))), 431),
    refused("as many crumbs", plus(*(("cookie", "a=b") for _ in range(101))), 431),
    refused("a list that is too large", plus(*(("x-same", "v" * 4_000) for _ in range(9))), 431),
]

FORWARDING = [
    accepted(
        "X-Forwarded-* of a client nobody trusts are replaced",
        plus(("x-forwarded-for", "10.9.8.7"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil.test")),
        has={"x-forwarded-for": b"127.0.0.1", "x-forwarded-proto": b"http"},
    ),
    accepted("X-Request-ID is kept", plus(("x-request-id", "abc")), has={"x-request-id": b"abc"}),
]

CASES = [
    *(*PSEUDO, *TARGETS, *AUTHORITIES, *NAMES, *VALUES, *CONNECTION, *LENGTHS, *TRAILERS, *CONNECTS, *EXPECTATIONS),
    *(*COOKIES, *LIMITS, *FORWARDING),
]
