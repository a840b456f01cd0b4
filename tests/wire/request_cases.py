"""The table of requests: bytes, and what has to become of them.

Where RFC 9112 leaves a choice, `status` lists all answers that are right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.harness.client import chunked, get

HOST = b"Host: wire.test\r\n"
GOOD = get("wire.test", "/good")
NO_ANSWER = 0
"""Status of a connection that ends without an answer."""


@dataclass(frozen=True)
class Case:
    """Bytes of one request and what has to become of it."""

    id: str
    raw: bytes
    status: int | tuple[int, ...] = 400
    closes: bool | None = None
    """Whether the connection ends; None: a rejected request may end it, an accepted one must not."""
    listener: str = "http"
    backend: str = "wire"
    target: bytes | None = None
    body: bytes | None = None
    has: dict[str, bytes | None] = field(default_factory=dict)
    """Exactly one line with this value; None: with any value."""
    lacks: tuple[str, ...] = ()

    @property
    def statuses(self) -> tuple[int, ...]:
        return (self.status,) if isinstance(self.status, int) else self.status

    @property
    def method(self) -> bytes:
        return self.raw.lstrip(b"\r\n").split(b" ", 1)[0]


def head(*lines: bytes, line: bytes = b"GET /case HTTP/1.1", host: bytes = HOST, body: bytes = b"") -> bytes:
    return line + b"\r\n" + host + b"".join(item + b"\r\n" for item in lines) + b"\r\n" + body


def rejected(
    id: str, raw: bytes, status: int | tuple[int, ...] = 400, *, closes: bool | None = True, **more: object
) -> Case:
    return Case(id, raw, status, closes, **more)  # type: ignore[arg-type]


def accepted(id: str, raw: bytes, **more: object) -> Case:
    return Case(id, raw, 200, **{"closes": False, **more})  # type: ignore[arg-type]


def coded(value: bytes, body: bytes = chunked(b"hello")) -> bytes:
    """A POST with this Transfer-Encoding."""
    return head(b"Transfer-Encoding: " + value, line=b"POST /case HTTP/1.1", body=body)


def sized(*values: bytes, body: bytes = b"hello") -> bytes:
    """A POST with these Content-Length lines."""
    return head(*(b"Content-Length: " + value for value in values), line=b"POST /case HTTP/1.1", body=body)


def in_chunks(body: bytes) -> bytes:
    """A POST with this as its chunked body."""
    return coded(b"chunked", body)


def to(target: bytes, method: bytes = b"GET") -> bytes:
    return head(line=method + b" " + target + b" HTTP/1.1")


def hosted(value: bytes) -> bytes:
    return head(host=b"Host: " + value + b"\r\n")


MESSAGE_FRAMING = [
    rejected(
        "Content-Length with Transfer-Encoding is refused",
        head(b"Content-Length: 5", b"Transfer-Encoding: chunked", line=b"POST /case HTTP/1.1", body=chunked(b"hello")),
    ),
    rejected(
        "Transfer-Encoding with Content-Length is refused in this order too",
        head(b"Transfer-Encoding: chunked", b"Content-Length: 5", line=b"POST /case HTTP/1.1", body=chunked(b"hello")),
    ),
    rejected(
        "Content-Length: 0 with Transfer-Encoding is refused",
        head(b"Content-Length: 0", b"Transfer-Encoding: chunked", line=b"POST /case HTTP/1.1", body=chunked(b"hello")),
    ),
    rejected(
        "Transfer-Encoding in HTTP/1.0 is refused",
        head(b"Transfer-Encoding: chunked", line=b"POST /case HTTP/1.0", body=chunked(b"hello")),
    ),
    rejected(
        "Transfer-Encoding in HTTP/1.0 with keep-alive is refused",
        head(
            b"Connection: keep-alive",
            b"Transfer-Encoding: chunked",
            line=b"POST /case HTTP/1.0",
            body=chunked(b"hello"),
        ),
    ),
    rejected("unknown transfer coding is not implemented", coded(b"gzip"), 501),
    rejected("gzip before chunked is not implemented", coded(b"gzip, chunked"), 501),
    rejected("identity is no transfer coding any more", coded(b"identity"), 501),
    rejected("a coding that only begins like chunked is not implemented", coded(b"chunkedd"), 501),
    rejected("a coding that only ends like chunked is not implemented", coded(b"xchunked"), 501),
    # RFC 9112 6.3: not ending in chunked is 400, an unknown coding 501; both hold.
    rejected("chunked before gzip is refused", coded(b"chunked, gzip"), (400, 501)),
    rejected("chunked in quotes is refused", coded(b'"chunked"'), (400, 501)),
    rejected("chunked with a parameter is refused", coded(b"chunked;q=1"), (400, 501)),
    rejected("chunked twice in one line is refused", coded(b"chunked, chunked")),
    rejected("empty Transfer-Encoding is refused", coded(b"")),
    rejected("Transfer-Encoding of only a comma is refused", coded(b","), (400, 501)),
    rejected(
        "two Transfer-Encoding lines are refused",
        head(
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: chunked",
            line=b"POST /case HTTP/1.1",
            body=chunked(b"hello"),
        ),
    ),
    rejected(
        "two different Transfer-Encoding lines are refused",
        head(
            b"Transfer-Encoding: gzip",
            b"Transfer-Encoding: chunked",
            line=b"POST /case HTTP/1.1",
            body=chunked(b"hello"),
        ),
        (400, 501),
    ),
    rejected("vertical tab before chunked is refused", coded(b"\x0bchunked")),
    rejected("form feed before chunked is refused", coded(b"\x0cchunked")),
    rejected("no-break space before chunked is refused", coded(b"\xa0chunked"), (400, 501)),
    accepted("Chunked is compared without case", coded(b"Chunked"), body=b"hello"),
    accepted("blanks around chunked mean nothing", coded(b"\t chunked \t"), body=b"hello"),
    rejected("Content-Length that is no number is refused", sized(b"five")),
    rejected("empty Content-Length is refused", sized(b"", body=b"")),
    rejected("Content-Length with plus sign is refused", sized(b"+5")),
    rejected("Content-Length with minus sign is refused", sized(b"-1")),
    rejected("Content-Length in hexadecimal is refused", sized(b"0x5")),
    rejected("Content-Length with a fraction is refused", sized(b"5.0")),
    rejected("Content-Length with an underscore is refused", sized(b"1_0", body=b"0123456789")),
    rejected("Content-Length of two numbers is refused", sized(b"5 5")),
    rejected("Content-Length followed by text is refused", sized(b"5x")),
    rejected("Content-Length list of equal numbers is refused", sized(b"5, 5")),
    rejected("Content-Length list of different numbers is refused", sized(b"5, 6")),
    rejected("two different Content-Length lines are refused", sized(b"5", b"6")),
    rejected("two equal Content-Length lines are refused", sized(b"5", b"5")),
    rejected("Content-Length of twenty nines overflows and is refused", sized(b"9" * 20)),
    rejected("Content-Length of 2^64+5 does not wrap round", sized(b"18446744073709551621")),
    accepted("leading zeros of Content-Length go", sized(b"0005"), body=b"hello", has={"content-length": b"5"}),
    accepted("Content-Length: 0 means no body", sized(b"0", body=b""), body=b""),
    accepted("GET with a body keeps it", head(b"Content-Length: 5", body=b"hello"), body=b"hello"),
    accepted(
        "DELETE with a body keeps it",
        head(b"Content-Length: 5", line=b"DELETE /case HTTP/1.1", body=b"hello"),
        body=b"hello",
    ),
    accepted("POST without framing has no body", head(line=b"POST /case HTTP/1.1"), body=b""),
]

HEADER_LINES = [
    accepted(
        "bare LF may end the lines of a head", b"GET /case HTTP/1.1\nHost: wire.test\nX-One: 1\n\n", has={"x-one": b"1"}
    ),
    accepted(
        "bare LF and CRLF may be mixed in a head",
        b"GET /case HTTP/1.1\r\nHost: wire.test\nX-One: 1\r\n\n",
        has={"x-one": b"1"},
    ),
    rejected(
        "bare LF in a head is refused by a strict listener",
        b"GET /case HTTP/1.1\nHost: wire.test\n\n",
        listener="strict",
    ),
    rejected(
        "one bare LF in a head is refused by a strict listener",
        b"GET /case HTTP/1.1\r\nHost: wire.test\nX: 1\r\n\r\n",
        listener="strict",
    ),
    rejected("bare CR in a value is refused", head(b"X-One: a\rb")),
    rejected("bare CR that hides a header is refused", head(b"X-One: a\rTransfer-Encoding: chunked")),
    rejected("CR CR LF is refused", b"GET /case HTTP/1.1\r\nHost: wire.test\r\r\n\r\n"),
    rejected("folded line with a blank is refused", head(b"X-One: a", b" b")),
    rejected("folded line with a tab is refused", head(b"X-One: a", b"\tb")),
    rejected(
        "folded Transfer-Encoding is refused",
        head(b"Transfer-Encoding:", b" chunked", line=b"POST /case HTTP/1.1", body=chunked(b"hello")),
    ),
    rejected("blank before the colon is refused", head(b"X-One : a")),
    rejected("tab before the colon is refused", head(b"X-One\t: a")),
    rejected(
        "blank before the colon of Content-Length is refused",
        head(b"Content-Length : 5", line=b"POST /case HTTP/1.1", body=b"hello"),
    ),
    rejected(
        "blank before the colon of Transfer-Encoding is refused",
        head(b"Transfer-Encoding : chunked", line=b"POST /case HTTP/1.1", body=chunked(b"hello")),
    ),
    rejected("blank before the first header is refused", b"GET /case HTTP/1.1\r\n Host: wire.test\r\n\r\n"),
    rejected("tab before the first header is refused", b"GET /case HTTP/1.1\r\n\tX: y\r\nHost: wire.test\r\n\r\n"),
    rejected("line without a colon is refused", head(b"X-One")),
    rejected("empty name is refused", head(b": value")),
    rejected("empty name without a value is refused", head(b":")),
    *(
        rejected(f"name with {shown} is refused", head(b"X" + byte + b"Y: a"))
        for shown, byte in {
            "a blank": b" ",
            "a parenthesis": b"(",
            "a slash": b"/",
            "an at sign": b"@",
            "a bracket": b"[",
            "a double quote": b'"',
            "a NUL": b"\0",
            "a control": b"\x01",
            "DEL": b"\x7f",
            "a byte above 0x7f": b"\xe4",
            "a semicolon": b";",
            "a comma": b",",
            "a brace": b"{",
        }.items()
    ),
    rejected("NUL in a value is refused", head(b"X-One: a\0b")),
    *(
        rejected(f"control 0x{byte:02x} in a value is refused", head(b"X-One: a" + bytes([byte]) + b"b"))
        for byte in (0x01, 0x08, 0x0B, 0x0C, 0x0E, 0x1B, 0x1F, 0x7F)
    ),
    accepted("tab inside a value stays", head(b"X-One: a\tb"), has={"x-one": b"a\tb"}),
    accepted("bytes above 0x7f in a value stay", head(b"X-One: \xe4\xff"), has={"x-one": b"\xe4\xff"}),
    accepted("blanks around a value go", head(b"X-One: \t a b \t "), has={"x-one": b"a b"}),
    accepted("empty value is a value", head(b"X-One:"), has={"x-one": b""}),
    accepted("all token characters may be in a name", head(b"!#$%&'*+-.^`|~09aZ: a"), has={"!#$%&'*+-.^`|~09aZ": b"a"}),
    accepted("name with an underscore stays", head(b"foo_bar: a"), has={"foo_bar": b"a"}),
    *(
        accepted(
            f"{name} goes, because a CGI-like backend reads it as the real one",
            head(name.encode() + b": 1"),
            lacks=(name,),
        )
        for name in (
            "X_Forwarded_For",
            "X_Real_IP",
            "x_forwarded_proto",
            "X_Forwarded-Host",
            "Content_Length",
            "Transfer_Encoding",
            "X_Request_ID",
        )
    ),
    accepted("CRLF before the request line is skipped", b"\r\n" + head()),
    accepted("CRLF that old clients send after a body is skipped", b"\r\n\r\n" + head()),
    rejected("101 header lines are too many", head(*(b"X-%d: a" % index for index in range(110))), 431),
    rejected("a line longer than the head may be is too large", head(b"X-One: " + b"a" * 40_000), 431),
    rejected(
        "many lines longer together than the head may be are too large",
        head(*(b"X-%d: " % index + b"a" * 1_000 for index in range(40))),
        431,
    ),
    accepted(
        "a head just below the limits passes",
        head(*(b"X-%d: " % index + b"a" * 400 for index in range(70))),
        has={"x-69": b"a" * 400},
    ),
]

HOSTS = [
    rejected("HTTP/1.1 without Host is refused", head(host=b"")),
    rejected("two Host lines are refused", head(b"Host: other.test")),
    rejected("two equal Host lines are refused", head(b"Host: wire.test")),
    *(
        rejected(f"Host {shown} is refused", hosted(value), closes=None)
        for shown, value in {
            "with userinfo": b"user@wire.test",
            "with a path": b"wire.test/path",
            "with a query": b"wire.test?x",
            "with a fragment": b"wire.test#x",
            "with a blank": b"wire test",
            "with a comma": b"wire.test, other.test",
            "with a backslash": b"wire.test\\x",
            "with an escape": b"wire%2etest",
            "with a byte above 0x7f": b"w\xefre.test",
            "with a word as port": b"wire.test:http",
            "with two ports": b"wire.test:80:81",
            "with a port too big": b"wire.test:65536",
            "with an open bracket": b"[::1",
            "with text after the bracket": b"[::1]x",
            "with an empty label": b"wire..test",
            "of a star": b"*",
            "with a scheme": b"http://wire.test",
            "with quotes": b'"wire.test"',
            "of one dot": b".",
            "with a negative port": b"wire.test:-1",
        }.items()
    ),
    accepted("Host with a port finds its host", hosted(b"wire.test:8080"), has={"host": b"wire.test:8080"}),
    accepted("Host with an empty port finds its host", hosted(b"wire.test:")),
    accepted("Host in upper case finds its host", hosted(b"WIRE.Test")),
    accepted("Host with a trailing dot finds its host", hosted(b"wire.test.")),
    accepted("Host of an IPv6 literal is served by the catch-all host", hosted(b"[::1]:80"), backend="star"),
    accepted("unknown Host is served by the catch-all host", hosted(b"else.test"), backend="star"),
    # The host of http cannot be empty (RFC 9110 4.2.1), but Host may (RFC 9112 3.2): refused or served by `*`.
    Case("empty Host is refused or served by the catch-all host", hosted(b""), (200, 400), backend="star"),
    Case(
        "HTTP/1.0 without Host is served by the catch-all host",
        b"GET /case HTTP/1.0\r\n\r\n",
        200,
        True,
        backend="star",
    ),
]

REQUEST_LINES = [
    rejected("two blanks after the method are refused", head(line=b"GET  /case HTTP/1.1")),
    rejected("two blanks before the version are refused", head(line=b"GET /case  HTTP/1.1")),
    rejected("tab in the request line is refused", head(line=b"GET\t/case\tHTTP/1.1")),
    rejected("blank before the method is refused", head(line=b" GET /case HTTP/1.1")),
    rejected("blank after the version is refused", head(line=b"GET /case HTTP/1.1 ")),
    rejected("bare CR in the request line is refused", head(line=b"GET /case\r HTTP/1.1"), (NO_ANSWER, 400)),
    rejected("bare CR after the version is refused", head(line=b"GET /case HTTP/1.1\r")),
    rejected("blank inside the target is refused", head(line=b"GET /a b HTTP/1.1")),
    rejected("empty target is refused", head(line=b"GET  HTTP/1.1")),
    rejected("method with a parenthesis is refused", head(line=b"GE(T /case HTTP/1.1")),
    rejected("method with a NUL is refused", head(line=b"GE\0T /case HTTP/1.1")),
    accepted("unknown method is forwarded", head(line=b"BREW /case HTTP/1.1")),
    accepted("method in lower case is another method and is forwarded", head(line=b"get /case HTTP/1.1")),
    rejected("version 9.9 is not supported", head(line=b"GET /case HTTP/9.9"), 505),
    rejected("version 2.0 is not supported in this syntax", head(line=b"GET /case HTTP/2.0"), 505),
    rejected("version 0.9 in words is not supported", head(line=b"GET /case HTTP/0.9"), (400, 505)),
    rejected("http in lower case is refused", head(line=b"GET /case http/1.1")),
    rejected("version of two digits is refused", head(line=b"GET /case HTTP/1.10"), (400, 505)),
    rejected("version with leading zero is refused", head(line=b"GET /case HTTP/01.1"), (400, 505)),
    rejected("version without minor is refused", head(line=b"GET /case HTTP/1"), (400, 505)),
    rejected("version followed by text is refused", head(line=b"GET /case HTTP/1.1x"), (400, 505)),
    rejected("another protocol is refused", head(line=b"GET /case HTTPS/1.1")),
    # RFC 9110 2.5: a higher minor version is read as the highest one known; refusing it is as safe.
    Case("version 1.2 is read as 1.1 or not supported", head(line=b"GET /case HTTP/1.2"), (200, 505)),
    rejected("HTTP/0.9 ends the connection", b"GET /case\r\n", (NO_ANSWER, 400)),
    rejected("HTTP/0.9 with headers ends the connection", b"GET /case\r\nHost: wire.test\r\n\r\n", (NO_ANSWER, 400)),
    rejected("a request line of one word ends the connection", b"GET\r\n\r\n", (NO_ANSWER, 400)),
    rejected(
        "a TLS hello on a plain port ends the connection",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x7a" * 64,
        (NO_ANSWER, 400),
    ),
    rejected(
        "what only resembles the HTTP/2 preface ends the connection",
        b"PRI * HTTP/2.0\r\n\r\n" + b"\0" * 9,
        (NO_ANSWER, 400, 505),
    ),
    rejected(
        "a PROXY header nobody asked for ends the connection",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + head(),
        (NO_ANSWER, 400),
    ),
    rejected("an SSH greeting ends the connection", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", (NO_ANSWER, 400)),
    rejected("CONNECT is not allowed", head(line=b"CONNECT wire.test:443 HTTP/1.1"), 405, closes=None),
    rejected("CONNECT with a path is not allowed", head(line=b"CONNECT /case HTTP/1.1"), (400, 405), closes=None),
    rejected("a target that is too long is refused", to(b"/" + b"a" * 9_000), 414),
    accepted("a target just below the limit passes", to(b"/" + b"a" * 8_000), target=b"/" + b"a" * 8_000),
]

TARGETS = [
    rejected("fragment in the target is refused", to(b"/case#top"), closes=None),
    rejected("byte above 0x7f in the target is refused", to(b"/c\xe4se"), closes=None),
    rejected("control in the target is refused", to(b"/c\x01se"), closes=None),
    rejected("NUL in the target is refused", to(b"/c\0se"), closes=None),
    rejected("DEL in the target is refused", to(b"/c\x7fse"), closes=None),
    rejected("fragment in the query is refused", to(b"/case?a#b"), closes=None),
    rejected("byte above 0x7f in the query is refused", to(b"/case?\xff"), closes=None),
    rejected("escaped NUL is refused", to(b"/a%00b"), closes=None),
    rejected("escaped slash is refused", to(b"/a%2Fb"), closes=None),
    rejected("escaped slash in lower case is refused", to(b"/a%2fb"), closes=None),
    rejected("escaped backslash is refused", to(b"/a%5Cb"), closes=None),
    rejected("bare backslash is refused", to(b"/a\\b"), closes=None),
    rejected("escape without digits is refused", to(b"/a%zz"), closes=None),
    rejected("escape cut short is refused", to(b"/a%4"), closes=None),
    rejected("a path above the root is refused", to(b"/../case"), closes=None),
    rejected("a path that climbs above the root later is refused", to(b"/a/../../case"), closes=None),
    rejected("an escaped path above the root is refused", to(b"/%2e%2e/case"), closes=None),
    accepted("dot segments are resolved", to(b"/a/./b/../c"), target=b"/a/c"),
    accepted("escaped dot segments are resolved", to(b"/a/%2e/b/%2E%2e/c"), target=b"/a/c"),
    accepted("a dot segment at the end leaves the slash", to(b"/a/b/.."), target=b"/a/"),
    accepted("a single dot at the end leaves the slash", to(b"/a/."), target=b"/a/"),
    accepted("slashes are merged", to(b"//a///b//"), target=b"/a/b/"),
    accepted("a target that looks like an authority is a path", to(b"//other.test/a"), target=b"/other.test/a"),
    accepted("escaped unreserved characters are decoded", to(b"/%61%7E%5f"), target=b"/a~_"),
    accepted("other escapes stay in upper case", to(b"/a%20b%c3%a4%3f"), target=b"/a%20b%C3%A4%3F"),
    accepted("nothing is decoded twice", to(b"/a%252e%252e%252f"), target=b"/a%252e%252e%252f"),
    accepted("three dots are a name", to(b"/a/.../b"), target=b"/a/.../b"),
    accepted("dots with a parameter are a name", to(b"/a/..;/b"), target=b"/a/..;/b"),
    accepted(
        "the query stays byte for byte", to(b"/a/../case?x=//../%2f%41%zz&;?"), target=b"/case?x=//../%2f%41%zz&;?"
    ),
    accepted("an empty query stays", to(b"/case?"), target=b"/case?"),
    accepted(
        "an escaped slash is kept where the listener says so",
        head(line=b"GET /a%2fb%5c HTTP/1.1", host=b"Host: loose.test\r\n"),
        listener="loose",
        backend="loose",
        target=b"/a%2Fb%5C",
    ),
    rejected(
        "an escaped NUL is refused even there",
        head(line=b"GET /a%00 HTTP/1.1", host=b"Host: loose.test\r\n"),
        listener="loose",
        closes=None,
    ),
    accepted(
        "slashes stay where the listener says so",
        head(line=b"GET //a//b HTTP/1.1", host=b"Host: loose.test\r\n"),
        listener="loose",
        backend="loose",
        target=b"//a//b",
    ),
    rejected("a target without a slash is refused", to(b"case"), closes=None),
    rejected("a target of only a query is refused", to(b"?x"), closes=None),
    rejected("GET with a star is refused", to(b"*"), closes=None),
    accepted(
        "absolute form goes on in origin form",
        to(b"http://wire.test/a/../b?c"),
        target=b"/b?c",
        has={"host": b"wire.test"},
    ),
    accepted("absolute form without a path is the root", to(b"http://wire.test"), target=b"/"),
    accepted("absolute form with only a query is the root with a query", to(b"http://wire.test?a=b"), target=b"/?a=b"),
    accepted("absolute form and Host are compared without case", to(b"HTTP://WIRE.test/case"), target=b"/case"),
    rejected("absolute form that differs from Host is refused", to(b"http://other.test/case"), closes=None),
    accepted(
        "absolute form wins over Host where the listener says so",
        head(line=b"GET http://loose.test/case HTTP/1.1"),
        listener="loose",
        backend="loose",
        target=b"/case",
        has={"host": b"loose.test", "x-forwarded-host": b"loose.test"},
    ),
    rejected(
        "absolute form does not replace a missing Host", head(line=b"GET http://wire.test/case HTTP/1.1", host=b"")
    ),
    rejected("absolute form with userinfo is refused", head(line=b"GET http://u@wire.test/case HTTP/1.1"), closes=None),
    rejected("absolute form without a host is refused", head(line=b"GET http:///case HTTP/1.1"), closes=None),
    rejected(
        "absolute form with another scheme is refused", head(line=b"GET ftp://wire.test/case HTTP/1.1"), closes=None
    ),
    Case(
        "absolute form in HTTP/1.0 needs no Host",
        b"GET http://wire.test/case HTTP/1.0\r\n\r\n",
        200,
        True,
        target=b"/case",
        has={"host": b"wire.test"},
    ),
    accepted("OPTIONS with a path is forwarded", to(b"/case", b"OPTIONS"), target=b"/case"),
]

CHUNKS = [
    accepted("a chunked body arrives", in_chunks(chunked(b"hello", b" ", b"world")), body=b"hello world"),
    accepted("an empty chunked body arrives", in_chunks(chunked()), body=b""),
    accepted(
        "chunk sizes may have upper and lower case digits",
        in_chunks(b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n"),
        body=b"01234567890123456789",
    ),
    accepted("chunk sizes may have leading zeros", in_chunks(b"0005\r\nhello\r\n000\r\n\r\n"), body=b"hello"),
    accepted("chunk extensions are dropped", in_chunks(b'5;a=b;c="d;e";f\r\nhello\r\n0;last\r\n\r\n'), body=b"hello"),
    *(
        rejected(f"{shown} is refused", in_chunks(body))
        for shown, body in {
            "chunk size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
            "chunk size with plus": b"+5\r\nhello\r\n0\r\n\r\n",
            "chunk size with minus": b"-5\r\nhello\r\n0\r\n\r\n",
            "chunk size with an underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
            "chunk size with a blank before it": b" 5\r\nhello\r\n0\r\n\r\n",
            "chunk size with a tab before it": b"\t5\r\nhello\r\n0\r\n\r\n",
            "chunk size followed by text": b"5 x\r\nhello\r\n0\r\n\r\n",
            "chunk size followed by a letter": b"5g\r\nhello\r\n0\r\n\r\n",
            "empty chunk size": b"\r\nhello\r\n0\r\n\r\n",
            "chunk size of only an extension": b";a=b\r\nhello\r\n0\r\n\r\n",
            "chunk longer than its size": b"3\r\nhello\r\n0\r\n\r\n",
            "chunk longer than its size by two": b"3\r\nhelxx0\r\n\r\n",
            "chunk without CRLF after it": b"5\r\nhello0\r\n\r\n",
            "chunk followed by a bare LF": b"5\r\nhello\n0\r\n\r\n",
            "chunk followed by a bare CR": b"5\r\nhello\r0\r\n\r\n",
            "chunk size line that ends in a bare LF": b"5\nhello\r\n0\r\n\r\n",
            "chunk size line that ends in a bare CR": b"5\rhello\r\n0\r\n\r\n",
            "last chunk line that ends in a bare LF": b"5\r\nhello\r\n0\n\r\n",
            "last line that is a bare LF": b"5\r\nhello\r\n0\r\n\n",
            "chunk extension that ends in a bare LF": b"5;a\nhello\r\n0\r\n\r\n",
            "chunk extension with a bare CR": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            "chunk extension with a control": b"5;a=\x01\r\nhello\r\n0\r\n\r\n",
            "chunk extension with a NUL": b"5;a=\0\r\nhello\r\n0\r\n\r\n",
            "chunk size of 2^64-1": b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            "chunk size of 2^64+5, which must not wrap round,": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
            "chunk size of 2^63": b"8000000000000000\r\nhello\r\n0\r\n\r\n",
            "chunk size of forty digits": b"0" * 20 + b"f" * 20 + b"\r\nhello\r\n0\r\n\r\n",
            "chunk extension of five kilobytes": b"5;" + b"a" * 5_000 + b"\r\nhello\r\n0\r\n\r\n",
            "body that is nearly all chunk extensions": (b"1;" + b"a" * 900 + b"\r\nx\r\n") * 200 + b"0\r\n\r\n",
            "trailer without a colon": b"0\r\nX-Trailer\r\n\r\n",
            "trailer with a blank before the colon": b"0\r\nX-Trailer : a\r\n\r\n",
            "trailer with a NUL": b"0\r\nX-Trailer: \0\r\n\r\n",
            "folded trailer": b"0\r\nX-Trailer: a\r\n b\r\n\r\n",
        }.items()
    ),
    rejected(
        "trailers larger than a head may be are refused",
        in_chunks(b"0\r\nX-Trailer: " + b"a" * 40_000 + b"\r\n\r\n"),
        (400, 431),
    ),
    rejected(
        "more trailers than headers are allowed are refused",
        in_chunks(b"0\r\n" + b"".join(b"X-%d: a\r\n" % index for index in range(150)) + b"\r\n"),
        (400, 431),
    ),
    accepted(
        "trailers that frame, route or authenticate never reach the backend as trailers or headers",
        in_chunks(
            chunked(
                b"hello",
                trailers=(
                    "Content-Length: 3",
                    "Transfer-Encoding: gzip",
                    "Host: other.test",
                    "Authorization: Basic eDp5",
                    "X-Forwarded-For: 10.9.8.7",
                    "Connection: close",
                ),
            )
        ),
        body=b"hello",
        has={"host": b"wire.test", "x-forwarded-for": b"127.0.0.1", "transfer-encoding": b"chunked"},
        lacks=("authorization",),
    ),
]

FORWARDING = [
    accepted(
        "hop-by-hop fields stay behind",
        head(b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"TE: gzip", b"Connection: keep-alive, TE"),
        lacks=("keep-alive", "proxy-connection", "te"),
    ),
    accepted(
        "fields the client nominates stay behind",
        head(b"Connection: X-One, x-two", b"X-One: 1", b"X-Two: 2", b"X-Three: 3"),
        lacks=("x-one", "x-two"),
        has={"x-three": b"3"},
    ),
    accepted(
        "fields nominated on several lines stay behind",
        head(b"X-One: 1", b"Connection: X-One", b"X-Two: 2", b"Connection: ,X-Two,"),
        lacks=("x-one", "x-two"),
    ),
    *(
        accepted(
            f"nominating {name} does not take it away",
            head(b"Connection: " + name.encode(), *lines, line=b"POST /case HTTP/1.1", body=b"hello"),
            has=has,
            body=b"hello",
        )
        for name, lines, has in (
            ("Host", (b"Content-Length: 5",), {"host": b"wire.test"}),
            ("Content-Length", (b"Content-Length: 5",), {"content-length": b"5"}),
            ("X-Forwarded-For", (b"Content-Length: 5",), {"x-forwarded-for": b"127.0.0.1"}),
            ("X-Forwarded-Proto", (b"Content-Length: 5",), {"x-forwarded-proto": b"http"}),
            ("X-Forwarded-Host", (b"Content-Length: 5",), {"x-forwarded-host": b"wire.test"}),
            ("X-Forwarded-Port", (b"Content-Length: 5",), {"x-forwarded-port": None}),
            ("X-Real-IP", (b"Content-Length: 5",), {"x-real-ip": b"127.0.0.1"}),
            ("X-Request-ID", (b"Content-Length: 5",), {"x-request-id": None}),
            ("Authorization", (b"Content-Length: 5", b"Authorization: Basic eDp5"), {"authorization": b"Basic eDp5"}),
        )
    ),
    accepted(
        "nominating Transfer-Encoding does not take it away",
        head(
            b"Connection: Transfer-Encoding",
            b"Transfer-Encoding: chunked",
            line=b"POST /case HTTP/1.1",
            body=chunked(b"hello"),
        ),
        body=b"hello",
    ),
    Case(
        "close with nominated fields closes and strips",
        head(b"Connection: close, X-One", b"X-One: 1"),
        200,
        True,
        lacks=("x-one",),
    ),
    Case("Close is compared without case", head(b"Connection: Close"), 200, True),
    accepted(
        "what the client says about itself is replaced",
        head(
            b"X-Forwarded-For: 10.9.8.7",
            b"X-Forwarded-Proto: https",
            b"X-Forwarded-Host: evil.test",
            b"X-Forwarded-Port: 1",
            b"X-Real-IP: 10.9.8.7",
        ),
        has={
            "x-forwarded-for": b"127.0.0.1",
            "x-forwarded-proto": b"http",
            "x-forwarded-host": b"wire.test",
            "x-real-ip": b"127.0.0.1",
        },
    ),
    accepted(
        "Forwarded of a client nobody trusts goes", head(b"Forwarded: for=10.9.8.7;proto=https"), lacks=("forwarded",)
    ),
    accepted(
        "a trusted proxy is believed and extended",
        head(
            b"X-Forwarded-For: 203.0.113.7",
            b"X-Forwarded-Proto: https",
            b"X-Forwarded-Host: front.test",
            b"X-Forwarded-Port: 8443",
        ),
        listener="trusted",
        has={
            "x-forwarded-for": b"203.0.113.7, 127.0.0.1",
            "x-forwarded-proto": b"https",
            "x-forwarded-host": b"front.test",
            "x-forwarded-port": b"8443",
            "x-real-ip": b"203.0.113.7",
        },
    ),
    accepted(
        "lines of a trusted proxy's X-Forwarded-For are joined in order",
        head(b"X-Forwarded-For: 203.0.113.7, 203.0.113.8", b"X-Forwarded-For: 203.0.113.9"),
        listener="trusted",
        has={"x-forwarded-for": b"203.0.113.7, 203.0.113.8, 203.0.113.9, 127.0.0.1"},
    ),
    accepted(
        "a trusted proxy that says nothing changes nothing",
        head(),
        listener="trusted",
        has={"x-forwarded-for": b"127.0.0.1", "x-forwarded-proto": b"http", "x-forwarded-host": b"wire.test"},
    ),
    accepted(
        "a trusted proxy's client cannot nominate the proxy's fields away",
        head(b"X-Forwarded-For: 203.0.113.7", b"Connection: X-Forwarded-For"),
        listener="trusted",
        has={"x-forwarded-for": b"203.0.113.7, 127.0.0.1"},
    ),
    accepted(
        "Forwarded is sent where the listener says so",
        head(),
        listener="trusted",
        has={"forwarded": None},
    ),
    accepted("several lines of one field stay several lines or one list", head(b"X-One: 1", b"X-One: 2")),
    accepted(
        "Cookie and Accept pass unchanged",
        head(b"Cookie: a=b; c=d", b"Accept: */*"),
        has={"cookie": b"a=b; c=d", "accept": b"*/*"},
    ),
    accepted("Upgrade without Connection: upgrade stays behind", head(b"Upgrade: websocket"), lacks=("upgrade",)),
    # An upgrade to h2c would carry requests past every route (RFC 9113 took it out).
    accepted(
        "an upgrade to h2c stays behind",
        head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"),
        lacks=("upgrade", "http2-settings"),
    ),
    Case(
        "an upgrade in HTTP/1.0 stays behind",
        head(b"Connection: Upgrade", b"Upgrade: websocket", line=b"GET /case HTTP/1.0"),
        200,
        True,
        lacks=("upgrade",),
    ),
    accepted("TE: trailers may pass, other codings may not", head(b"TE: trailers, deflate;q=0.5", b"Connection: TE")),
    accepted(
        "Expect is met or passed on, never refused when it asks for 100-continue",
        head(b"Expect: 100-continue", b"Content-Length: 5", line=b"POST /case HTTP/1.1", body=b"hello"),
        body=b"hello",
    ),
    Case("HTTP/1.0 closes", head(line=b"GET /case HTTP/1.0"), 200, True),
    accepted("HTTP/1.0 with keep-alive stays open", head(b"Connection: keep-alive", line=b"GET /case HTTP/1.0")),
    Case(
        "HTTP/1.0 with a body closes",
        head(b"Content-Length: 5", line=b"POST /case HTTP/1.0", body=b"hello"),
        200,
        True,
        body=b"hello",
    ),
    Case(
        "HTTP/1.0 with keep-alive and close closes",
        head(b"Connection: keep-alive, close", line=b"GET /case HTTP/1.0"),
        200,
        True,
    ),
]

CASES = [*MESSAGE_FRAMING, *HEADER_LINES, *HOSTS, *REQUEST_LINES, *TARGETS, *CHUNKS, *FORWARDING]
