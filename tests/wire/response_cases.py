"""The table of responses: what a backend sends, and what the client has to see of it.

Where RFC 9112 leaves a choice, `status` lists all answers that are right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tests.harness.client import chunked

TRUNCATED = 0
"""Status of an answer that breaks off, so that the client knows it is not whole."""

POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


@dataclass(frozen=True)
class Case:
    """Bytes of one response and what has to become of them."""

    id: str
    reply: bytes
    status: int | tuple[int, ...] = 502
    then: Literal["keep", "close", "reset"] = "keep"
    """What the backend does with the connection afterwards."""
    method: str = "GET"
    lines: tuple[str, ...] = ()
    """More lines of the request's head."""
    body: bytes | None = None
    has: dict[str, list[bytes]] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    interim: tuple[int, ...] = ()
    """What an HTTP/1.1 client must see before it."""
    trailers: dict[str, bytes] = field(default_factory=dict)
    reused: bool | None = None
    """Whether the connection to the backend carries the next request."""

    spills: bool = False
    """Bytes follow that answer nothing. They come with the response: later ones could not be told from the next one."""

    @property
    def statuses(self) -> tuple[int, ...]:
        return (self.status,) if isinstance(self.status, int) else self.status


def reply(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK", body: bytes = b"") -> bytes:
    return status + b"\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def length(count: int) -> bytes:
    return b"Content-Length: %d" % count


def passes(id: str, data: bytes, status: int = 200, **more: object) -> Case:
    return Case(id, data, status, **{"reused": True, **more})  # type: ignore[arg-type]


def broken(id: str, data: bytes, *also: int, **more: object) -> Case:
    """502, or whatever else is right; the connection never carries another request."""
    return Case(id, data, (502, *also), **{"reused": False, **more})  # type: ignore[arg-type]


OK_2 = (length(2),)

FRAMING = [
    broken(
        "Content-Length with Transfer-Encoding",
        reply(length(5), b"Transfer-Encoding: chunked", body=chunked(b"hello")),
    ),
    broken("two different Content-Length lines", reply(length(2), length(5), body=b"hello")),
    # RFC 9112 6.3 lets a recipient take equal values as one.
    Case("two equal Content-Length lines", reply(length(5), length(5), body=b"hello"), (200, 502)),
    broken("Content-Length list of different numbers", reply(b"Content-Length: 5, 6", body=b"hello")),
    broken("negative Content-Length", reply(b"Content-Length: -1", body=b"hello")),
    broken("Content-Length with plus sign", reply(b"Content-Length: +5", body=b"hello")),
    broken("empty Content-Length", reply(b"Content-Length:", body=b"hello")),
    broken("Content-Length in words", reply(b"Content-Length: five", body=b"hello")),
    broken("Content-Length of 2^64+5", reply(b"Content-Length: 18446744073709551621", body=b"hello")),
    broken("unknown transfer coding", reply(b"Transfer-Encoding: gzip", body=b"hello"), then="close"),
    broken("chunked twice", reply(b"Transfer-Encoding: chunked, chunked", body=chunked(b"hello"))),
    broken("chunked before gzip", reply(b"Transfer-Encoding: chunked, gzip", body=chunked(b"hello")), then="close"),
    broken("two Transfer-Encoding lines", reply(*[b"Transfer-Encoding: chunked"] * 2, body=chunked(b"hello"))),
    broken("empty Transfer-Encoding", reply(b"Transfer-Encoding:", body=chunked(b"hello"))),
    # RFC 9112 6.1: the framing of such a message is faulty.
    broken(
        "Transfer-Encoding in HTTP/1.0",
        reply(b"Transfer-Encoding: chunked", status=b"HTTP/1.0 200 OK", body=chunked(b"hello")),
    ),
    *(
        broken(f"{name}, which breaks off or is refused", reply(b"Transfer-Encoding: chunked", body=body), TRUNCATED)
        for name, body in {
            "chunk size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
            "chunk size with a blank before it": b" 5\r\nhello\r\n0\r\n\r\n",
            "chunk size with plus": b"+5\r\nhello\r\n0\r\n\r\n",
            "empty chunk size": b"\r\nhello\r\n0\r\n\r\n",
            "chunk size of 2^64+5": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
            "chunk longer than its size": b"3\r\nhello\r\n0\r\n\r\n",
            "chunk without CRLF after it": b"5\r\nhello0\r\n\r\n",
            "chunk size line that ends in a bare LF": b"5\nhello\r\n0\r\n\r\n",
            "chunk extension with a NUL": b"5;\0\r\nhello\r\n0\r\n\r\n",
            "garbage after a good chunk": b"5\r\nhello\r\ngarbage\r\n",
            "trailer without a colon": b"5\r\nhello\r\n0\r\nbad\r\n\r\n",
            "endless trailers": b"0\r\n" + b"X-T: a\r\n" * 30_000 + b"\r\n",
        }.items()
    ),
    passes("a body with its length", reply(*OK_2, body=b"ok"), body=b"ok"),
    passes("an empty body", reply(length(0)), body=b""),
    passes("a chunked body", reply(b"Transfer-Encoding: chunked", body=chunked(b"hel", b"lo")), body=b"hello"),
    passes("an empty chunked body", reply(b"Transfer-Encoding: chunked", body=chunked()), body=b""),
    passes(
        "chunk extensions and odd but legal sizes",
        reply(b"transfer-encoding: Chunked", body=b'005;a="b"\r\nhello\r\nA\r\n0123456789\r\n000\r\n\r\n'),
        body=b"hello0123456789",
    ),
    passes(
        "gRPC trailers",
        reply(
            b"Transfer-Encoding: chunked",
            b"Content-Type: application/grpc",
            b"Trailer: grpc-status",
            body=chunked(b"hello", trailers=("grpc-status: 0",)),
        ),
        lines=("TE: trailers", "Connection: TE"),
        body=b"hello",
        trailers={"grpc-status": b"0"},
    ),
    passes("leading zeros in Content-Length", reply(b"Content-Length: 0002", body=b"ok"), body=b"ok"),
    Case("a body up to the end", reply(body=b"until the end"), 200, then="close", body=b"until the end"),
    Case("an empty body up to the end", reply(), 200, then="close", body=b""),
    Case("a body cut short", reply(length(100), body=b"hello"), (TRUNCATED, 502), then="close", reused=False),
    Case(
        "a body cut short by a reset", reply(length(100), body=b"hello"), (TRUNCATED, 502), then="reset", reused=False
    ),
    Case(
        "a chunked body without its end",
        reply(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"),
        (TRUNCATED, 502),
        then="close",
        reused=False,
    ),
    Case(
        "a chunked body cut in a chunk",
        reply(b"Transfer-Encoding: chunked", body=b"ff\r\nhello"),
        (TRUNCATED, 502),
        then="close",
        reused=False,
    ),
    Case(
        "a chunked body cut before its last CRLF",
        reply(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n"),
        (TRUNCATED, 502),
        then="close",
        reused=False,
    ),
    Case(
        "a chunked body cut by a reset",
        reply(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"),
        (TRUNCATED, 502),
        then="reset",
        reused=False,
    ),
]

HEADS = [
    broken("nothing at all", b"", then="close"),
    broken("a reset instead of an answer", b"", then="reset"),
    broken("a head that breaks off", b"HTTP/1.1 200 OK\r\nContent-Le", then="close"),
    broken("a status line that breaks off", b"HTTP/1.", then="close"),
    broken("a head that is reset", b"HTTP/1.1 200 OK\r\nContent-Le", then="reset"),
    broken("a head without its empty line", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", then="close"),
    broken("garbage", b"\x00\x01\x02\xff\xfe garbage\r\n\r\n"),
    broken("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    broken("a TLS alert", b"\x15\x03\x01\x00\x02\x02\x46", then="close"),
    broken("an HTTP/2 frame", b"\x00\x00\x06\x04" + b"\0" * 11, then="close"),
    broken("HTTP/0.9", b"<html>hello</html>\n", then="close"),
    broken("a request instead of a response", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    broken("version 2.0", reply(*OK_2, status=b"HTTP/2.0 200 OK", body=b"ok")),
    broken("http in lower case", reply(*OK_2, status=b"http/1.1 200 OK", body=b"ok")),
    broken("a status of two digits", reply(*OK_2, status=b"HTTP/1.1 20 OK", body=b"ok")),
    broken("a status of four digits", reply(*OK_2, status=b"HTTP/1.1 2000 OK", body=b"ok")),
    broken("a status below 100", reply(*OK_2, status=b"HTTP/1.1 099 OK", body=b"ok")),
    broken("a status in words", reply(*OK_2, status=b"HTTP/1.1 abc OK", body=b"ok")),
    broken("two blanks before the status", reply(*OK_2, status=b"HTTP/1.1  200 OK", body=b"ok")),
    broken("a control in the reason", reply(*OK_2, status=b"HTTP/1.1 200 O\x01K", body=b"ok")),
    passes("an empty reason", reply(*OK_2, status=b"HTTP/1.1 200 ", body=b"ok"), body=b"ok"),
    Case("no blank after the status", reply(*OK_2, status=b"HTTP/1.1 200", body=b"ok"), (200, 502)),
    Case("an unknown status", reply(*OK_2, status=b"HTTP/1.1 299 Odd", body=b"ok"), 299, body=b"ok"),
    broken("bare CR in a value", reply(*OK_2, b"X-One: a\rb", body=b"ok")),
    broken("NUL in a value", reply(*OK_2, b"X-One: a\0b", body=b"ok")),
    broken("a line without a colon", reply(*OK_2, b"X-One", body=b"ok")),
    broken("an empty name", reply(*OK_2, b": a", body=b"ok")),
    broken("a name with a blank", reply(*OK_2, b"X One: a", body=b"ok")),
    broken("a name with a NUL", reply(*OK_2, b"X\0One: a", body=b"ok")),
    broken("a blank before the first line", b"HTTP/1.1 200 OK\r\n X-One: a\r\nContent-Length: 2\r\n\r\nok"),
    # RFC 9112 2.2, 5.1 and 5.2 let a proxy repair these; what it sends on must be right.
    Case("bare LF line ends", b"HTTP/1.1 200 OK\nContent-Length: 2\nX-One: 1\n\nok", (200, 502)),
    Case("a folded line", reply(*OK_2, b"X-One: a", b" b", body=b"ok"), (200, 502)),
    Case("a blank before a colon", reply(*OK_2, b"X-One : a", body=b"ok"), (200, 502)),
    broken("a head of 100 kB in one line", reply(*OK_2, b"X-One: " + b"a" * 100_000, body=b"ok")),
    broken("a head of 200 kB in many lines", reply(*[b"X-One: " + b"a" * 1_000] * 200, *OK_2, body=b"ok")),
    broken("2,000 header lines", reply(*[b"X: a"] * 2_000, *OK_2, body=b"ok")),
    passes(
        "end-to-end fields pass in order",
        reply(
            *OK_2,
            b"Set-Cookie: a=1",
            b"Server: own",
            b"Set-Cookie: b=2",
            b'ETag: "x"',
            b"X-A: \xe4",
            body=b"ok",
        ),
        has={"set-cookie": [b"a=1", b"b=2"], "server": [b"own"], "etag": [b'"x"'], "x-a": [b"\xe4"]},
        body=b"ok",
    ),
    passes(
        "hop-by-hop fields stay behind",
        reply(
            *OK_2,
            b"Connection: keep-alive, X-Hop",
            b"X-Hop: 1",
            b"Keep-Alive: timeout=60",
            b"Proxy-Connection: x",
            b"X-Stay: 1",
            body=b"ok",
        ),
        lacks=("x-hop", "keep-alive", "proxy-connection"),
        has={"x-stay": [b"1"]},
    ),
    passes(
        "nominating Content-Length does not take it away",
        reply(*OK_2, b"Connection: Content-Length", body=b"ok"),
        body=b"ok",
    ),
]

NO_BODY = [
    passes(
        "204", reply(status=b"HTTP/1.1 204 No Content"), 204, body=b"", lacks=("content-length", "transfer-encoding")
    ),
    Case(
        "204 with a body and its length",
        reply(length(len(POISON)), status=b"HTTP/1.1 204 No Content", body=POISON),
        (204, 502),
        body=b"",
        reused=False,
        spills=True,
    ),
    Case(
        "204 with a chunked body",
        reply(b"Transfer-Encoding: chunked", status=b"HTTP/1.1 204 No Content", body=chunked(POISON)),
        (204, 502),
        body=b"",
        reused=False,
        spills=True,
    ),
    Case(
        "204 followed by a body without framing",
        reply(status=b"HTTP/1.1 204 No Content", body=POISON),
        204,
        body=b"",
        reused=False,
        spills=True,
    ),
    passes(
        "304 with the length of what it does not send",
        reply(length(1_000), b"ETag: x", status=b"HTTP/1.1 304 Not Modified"),
        304,
        has={"etag": [b"x"]},
        reused=None,
    ),
    Case(
        "304 with a body",
        reply(length(len(POISON)), status=b"HTTP/1.1 304 Not Modified", body=POISON),
        304,
        body=b"",
        reused=False,
        spills=True,
    ),
    Case("HEAD with a length", reply(length(1_000)), 200, method="HEAD", has={"content-length": [b"1000"]}),
    passes("HEAD with chunked", reply(b"Transfer-Encoding: chunked"), method="HEAD", body=b"", reused=None),
    passes("HEAD without framing", reply(), method="HEAD", body=b"", reused=None),
    Case(
        "HEAD with a body nobody asked for",
        reply(length(len(POISON)), body=POISON),
        200,
        method="HEAD",
        reused=False,
        spills=True,
    ),
    Case(
        "HEAD with a chunked body nobody asked for",
        reply(b"Transfer-Encoding: chunked", body=chunked(POISON)),
        200,
        method="HEAD",
        reused=False,
        spills=True,
    ),
    Case("bytes after the response", reply(*OK_2, body=b"ok" + POISON), 200, body=b"ok", reused=False, spills=True),
    Case(
        "bytes after a chunked response",
        reply(b"Transfer-Encoding: chunked", body=chunked(b"ok") + POISON),
        200,
        body=b"ok",
        reused=False,
        spills=True,
    ),
    Case("two responses to one request", reply(*OK_2, body=b"ok") + POISON, 200, body=b"ok", reused=False, spills=True),
    Case("one byte too many", reply(*OK_2, body=b"ok!"), 200, body=b"ok", reused=False, spills=True),
    Case("a line end after the response", reply(*OK_2, body=b"ok\r\n"), 200, body=b"ok", spills=True),
]

INTERIM = [
    passes(
        "103 before the answer",
        reply(b"Link: </a.css>", status=b"HTTP/1.1 103 Early Hints") + reply(*OK_2, body=b"ok"),
        interim=(103,),
        body=b"ok",
    ),
    passes(
        "several interim answers",
        b"".join(
            reply(status=b"HTTP/1.1 " + item) for item in (b"102 Processing", b"103 Early Hints", b"103 Early Hints")
        )
        + reply(*OK_2, body=b"ok"),
        interim=(102, 103, 103),
        body=b"ok",
    ),
    Case("100 nobody asked for", reply(status=b"HTTP/1.1 100 Continue") + reply(*OK_2, body=b"ok"), 200, body=b"ok"),
    Case("199, which nobody knows", reply(status=b"HTTP/1.1 199 Odd") + reply(*OK_2, body=b"ok"), 200, body=b"ok"),
    Case(
        "1,000 interim answers",
        reply(status=b"HTTP/1.1 103 Early Hints") * 1_000 + reply(*OK_2, body=b"ok"),
        (200, 502),
    ),
    broken("an interim answer and then nothing", reply(status=b"HTTP/1.1 103 Early Hints"), then="close"),
    broken("an interim answer and then garbage", reply(status=b"HTTP/1.1 103 Early Hints") + b"garbage\r\n\r\n"),
    Case(
        "an interim answer with a length",
        reply(length(5), status=b"HTTP/1.1 103 Early Hints") + reply(*OK_2, body=b"ok"),
        (200, 502),
    ),
    broken(
        "101 nobody asked for",
        reply(b"Connection: Upgrade", b"Upgrade: websocket", status=b"HTTP/1.1 101 Switching Protocols", body=POISON),
    ),
    broken("101 without Upgrade", reply(status=b"HTTP/1.1 101 Switching Protocols", body=POISON)),
]

CONNECTIONS = [
    Case(
        "Connection: close keeps the client's connection",
        reply(*OK_2, b"Connection: close", body=b"ok"),
        200,
        then="close",
        body=b"ok",
        reused=False,
    ),
    Case(
        "Connection: close is obeyed although the server stays",
        reply(*OK_2, b"Connection: close", body=b"ok"),
        200,
        body=b"ok",
        reused=False,
    ),
    Case("HTTP/1.0 with a length", reply(*OK_2, status=b"HTTP/1.0 200 OK", body=b"ok"), 200, body=b"ok", reused=False),
    Case(
        "HTTP/1.0 with a length, and it closes",
        reply(*OK_2, status=b"HTTP/1.0 200 OK", body=b"ok"),
        200,
        then="close",
        body=b"ok",
        reused=False,
    ),
    Case(
        "HTTP/1.0 up to the end",
        reply(status=b"HTTP/1.0 200 OK", body=b"until the end"),
        200,
        then="close",
        body=b"until the end",
    ),
    Case(
        "HTTP/1.0 with keep-alive",
        reply(*OK_2, b"Connection: keep-alive", status=b"HTTP/1.0 200 OK", body=b"ok"),
        200,
        body=b"ok",
    ),
    Case("Keep-Alive with a short timeout", reply(*OK_2, b"Keep-Alive: timeout=1", body=b"ok"), 200, body=b"ok"),
    Case("Keep-Alive with a timeout of nothing", reply(*OK_2, b"Keep-Alive: timeout=0", body=b"ok"), 200, body=b"ok"),
    Case("Keep-Alive with nonsense", reply(*OK_2, b"Keep-Alive: timeout=\xff, max=-1", body=b"ok"), 200, body=b"ok"),
    Case(
        "Connection: close with chunks",
        reply(b"Connection: close", b"Transfer-Encoding: chunked", body=chunked(b"ok")),
        200,
        then="close",
        body=b"ok",
        reused=False,
    ),
    Case("a length and no keep-alive, closed at once", reply(*OK_2, body=b"ok"), 200, then="close", body=b"ok"),
]

CASES = [*FRAMING, *HEADS, *NO_BODY, *INTERIM, *CONNECTIONS]
