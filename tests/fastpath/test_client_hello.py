"""The reader of ClientHellos against one written the slow way, with hellos of OpenSSL, made ones and broken ones."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb._fastpath import testing
from tests.harness.client_hello import ALPN, KEY_SHARE, SERVER_NAME, TLS_1_3, Hello, record, server_name, vector

MOST = 16_384
GREASE = (0x0A0A, 0x1A1A, 0xFAFA)
Answer = tuple[bytes, tuple[bytes, ...]] | str | None


# ------------------------------------------------------------------------------------------------------- the reference


class _Bad(Exception):
    """It can become no ClientHello any more."""


class _Bytes:
    """What is left to be read of a vector."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, size: int) -> bytes:
        if size > len(self.data):
            raise _Bad
        taken, self.data = self.data[:size], self.data[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, width: int) -> _Bytes:
        return _Bytes(self.take(self.number(width)))


def reference(data: bytes) -> Answer:
    """As testing.read_client_hello answers."""
    data = data[:MOST]
    try:
        message = _message(data)
        if message is not None:
            return _read(message)
        return None if len(data) < MOST else "bad"
    except _Bad:
        return "bad"


def _message(data: bytes) -> bytes | None:
    """The body of the first handshake message; None while it is not whole."""
    message = b""
    while data:
        if data[0] != 22 or (len(data) > 1 and data[1] != 3):
            raise _Bad
        if len(data) < 5:
            return None
        size = int.from_bytes(data[3:5])
        if not 0 < size <= 16_384:
            raise _Bad
        message += data[5 : 5 + size]
        data = data[5 + size :]
        if message and message[0] != 1:
            raise _Bad
        if len(message) >= 4:
            length = int.from_bytes(message[1:4])
            if length + 4 > MOST - 5:
                raise _Bad
            if len(message) >= 4 + length:
                return message[4 : 4 + length]
    return None


def _read(message: bytes) -> Answer:
    body = _Bytes(message)
    body.take(34)
    if len(body.vector(1).data) > 32:
        raise _Bad
    suites = len(body.vector(2).data)
    if suites == 0 or suites % 2 or not body.vector(1).data:
        raise _Bad
    name, protocols = b"", ()
    extensions = body.vector(2) if body.data else _Bytes(b"")
    if body.data:
        raise _Bad
    seen = set()
    while extensions.data:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind not in (SERVER_NAME, ALPN):
            continue
        if kind in seen:
            raise _Bad
        seen.add(kind)
        if kind == SERVER_NAME:
            name = _read_name(content)
        else:
            protocols = _read_protocols(content)
    return name, protocols


def _read_name(content: _Bytes) -> bytes:
    entries = content.vector(2)
    if content.data or entries.number(1) != 0:
        raise _Bad
    name = entries.vector(2).data
    if entries.data:
        raise _Bad
    name = name.removesuffix(b".")
    if not 0 < len(name) <= 253:
        raise _Bad
    digits = set(b"0123456789")
    if set(name) <= digits | set(b".") and set(name) & digits:
        return b""
    if b":" in name and set(name) <= digits | set(b"abcdefABCDEF.:"):
        return b""
    if not set(name.lower()) <= set(b"abcdefghijklmnopqrstuvwxyz0123456789-_.") or b".." in name or name[:1] == b".":
        raise _Bad
    return name.lower()


def _read_protocols(content: _Bytes) -> tuple[bytes, ...]:
    entries, protocols = content.vector(2), []
    if content.data or not entries.data:
        raise _Bad
    while entries.data:
        protocols.append(entries.vector(1).data)
        if not protocols[-1]:
            raise _Bad
    return tuple(protocols)


# -------------------------------------------------------------------------------------------------------------- hellos


def openssl(name: str | None, protocols: Sequence[str] = (), version: ssl.TLSVersion | None = None) -> bytes:
    """What OpenSSL says first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    if protocols:
        context.set_alpn_protocols(list(protocols))
    if version is not None:
        context.maximum_version = version
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def grown() -> Hello:
    """What browsers send: GREASE among everything, a post-quantum key share, and padding."""
    shares = b"".join(group.to_bytes(2) + vector(bytes(size), 2) for group, size in ((0x11EC, 1_216), (29, 32)))
    more = {GREASE[0]: b"", KEY_SHARE: vector(shares, 2), 21: bytes(200), GREASE[1]: b"\0"}
    return Hello(b"Shop.Example.COM", versions=(GREASE[2], TLS_1_3), protocols=(b"h2", b"http/1.1"), more=more)


@functools.cache
def real() -> dict[str, tuple[bytes, Answer]]:
    many = tuple(f"protocol-{number:04}" for number in range(850))  # 12 KiB
    return {
        "1.3": (openssl("shop.example.com", ("h2", "http/1.1")), (b"shop.example.com", (b"h2", b"http/1.1"))),
        "1.2": (openssl("db.example.com", version=ssl.TLSVersion.TLSv1_2), (b"db.example.com", ())),
        "no name": (openssl(None), (b"", ())),
        "address": (openssl("192.0.2.1"), (b"", ())),
        "large": (openssl("x.example.com", many), (b"x.example.com", tuple(one.encode() for one in many))),
        "grown": (grown().records(), (b"shop.example.com", (b"h2", b"http/1.1"))),
        "several records": (grown().records(100), (b"shop.example.com", (b"h2", b"http/1.1"))),
    }


@pytest.mark.parametrize("which", list(real()))
def test_what_clients_say(which: str) -> None:
    data, answer = real()[which]
    assert testing.read_client_hello(data) == answer == reference(data)
    # Whatever follows is nothing to the reader: early data, or the client's next words.
    assert testing.read_client_hello(data + b"\x17\x03\x03\x00\x01x") == answer


@pytest.mark.parametrize("which", ["1.3", "1.2", "no name", "grown", "several records"])
def test_a_hello_that_has_not_come_whole_is_waited_for(which: str) -> None:
    data, answer = real()[which]
    for size in range(len(data)):
        assert testing.read_client_hello(data[:size]) is None, size
    assert testing.read_client_hello(data) == answer


@pytest.mark.parametrize("which", ["1.3", "grown"])
def test_a_message_may_be_cut_into_records_at_every_byte(which: str) -> None:
    data, answer = real()[which]
    message = data[5:] if which == "1.3" else grown().message()
    for size in range(1, len(message)):
        cut = record(22, message[:size]) + record(22, message[size:])
        assert testing.read_client_hello(cut) == answer, size
    each = b"".join(record(22, message[at : at + 1]) for at in range(len(message)))
    assert testing.read_client_hello(each) == answer


@pytest.mark.parametrize("over", [0, 1])
def test_the_largest_hello(over: int) -> None:
    empty = len(Hello(more={21: b""}).records())
    data = Hello(more={21: bytes(MOST - empty + over)}).records()
    assert len(data) == MOST + over
    assert testing.read_client_hello(data) == ("bad" if over else (b"shop.example.com", ()))


def test_what_never_ends_is_refused_in_time() -> None:
    message = Hello(more={21: bytes(15_000)}).message()
    data = b"".join(record(22, message[at : at + 1]) for at in range(len(message)))
    assert testing.read_client_hello(data[: MOST - 1]) is None
    assert testing.read_client_hello(data) == "bad"


BAD_BODIES = {
    "session too long": b"\3\3" + bytes(32) + b"\x21" + bytes(33) + b"\0\2\x13\1\1\0",
    "no cipher": b"\3\3" + bytes(32) + b"\0" + b"\0\0" + b"\1\0",
    "half a cipher": b"\3\3" + bytes(32) + b"\0" + b"\0\3\x13\1\0" + b"\1\0",
    "no compression": b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\0",
    "bytes behind the extensions": b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + b"\0\0" + b"x",
    "half a length": b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + b"\0",
    "half an extension": b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + b"\0\3" + b"\0\0\0",
    "a random that is cut": b"\3\3" + bytes(31),
}


@pytest.mark.parametrize("which", list(BAD_BODIES))
def test_bodies_that_do_not_add_up(which: str) -> None:
    data = record(22, b"\1" + vector(BAD_BODIES[which], 3))
    assert testing.read_client_hello(data) == "bad" == reference(data)


BAD_STARTS = {
    "plain HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "SSH": b"SSH-2.0-x\r\n",
    "an SSL 2 hello": b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + bytes(40),
    "an alert": b"\x15\x03\x01\x00\x02\x01\x00",
    "a record of version 2": b"\x16\x02\x00\x00\x05",
    "a record without bytes": b"\x16\x03\x01\x00\x00",
    "a record too long": b"\x16\x03\x01\x40\x01",
    "another message": b"\x16\x03\x01\x00\x05\x02",
    "a message too long": b"\x16\x03\x01\x40\x00\x01\x00\x3f\xf8",
    "another record in the middle": record(22, b"\1\0\1") + record(23, b"x"),
}


@pytest.mark.parametrize("which", list(BAD_STARTS))
def test_what_begins_otherwise_is_refused_at_once(which: str) -> None:
    assert testing.read_client_hello(BAD_STARTS[which]) == "bad" == reference(BAD_STARTS[which])


NAMES: dict[bytes, bytes | None] = {
    b"shop.example.com": b"shop.example.com",
    b"SHOP.Example.Com.": b"shop.example.com",
    b"_sip.example-1.com": b"_sip.example-1.com",
    b"xn--bcher-kva.example": b"xn--bcher-kva.example",
    b"cafe.de": b"cafe.de",
    b"a" * 253: b"a" * 253,
    b"192.0.2.1": b"",
    b"192.0.2.1.": b"",
    b"2001:db8::1": b"",
    b"::ffff:192.0.2.1": b"",
    b"a" * 254: None,
    b"": None,
    b".": None,
    b"..": None,
    b".example.com": None,
    b"a..b": None,
    b"a b": None,
    b"a\0.example.com": None,
    b"a/b": None,
    b"*.example.com": None,
    b"shop:443": None,
    b"b\xc3\xbccher.example": None,
}


@pytest.mark.parametrize("name", list(NAMES))
def test_names(name: bytes) -> None:
    data = Hello(b"", more={SERVER_NAME: server_name(name)}).records()
    expected: Answer = "bad" if NAMES[name] is None else (NAMES[name] or b"", ())
    assert testing.read_client_hello(data) == expected == reference(data)


BAD_EXTENSIONS = {
    "no entry": (SERVER_NAME, vector(b"", 2)),
    "nothing": (SERVER_NAME, b""),
    "two names": (SERVER_NAME, vector(2 * (b"\0" + vector(b"a.example", 2)), 2)),
    "another kind of name": (SERVER_NAME, vector(b"\1" + vector(b"a.example", 2), 2)),
    "bytes behind the names": (SERVER_NAME, server_name(b"a.example") + b"x"),
    "a name longer than its list": (SERVER_NAME, vector(b"\0\0\x20a.example", 2)),
    "no protocol": (ALPN, vector(b"", 2)),
    "an empty protocol": (ALPN, vector(b"\2h2\0", 2)),
    "a protocol longer than its list": (ALPN, vector(b"\3h2", 2)),
    "bytes behind the protocols": (ALPN, vector(b"\2h2", 2) + b"x"),
}


@pytest.mark.parametrize("which", list(BAD_EXTENSIONS))
def test_extensions_that_do_not_add_up(which: str) -> None:
    kind, content = BAD_EXTENSIONS[which]
    data = Hello(b"", more={kind: content}).records()
    assert testing.read_client_hello(data) == "bad" == reference(data)


@pytest.mark.parametrize("kind", [SERVER_NAME, ALPN])
def test_an_extension_that_is_there_twice(kind: int) -> None:
    content = server_name(b"a.example") if kind == SERVER_NAME else vector(b"\2h2", 2)
    extensions = vector(2 * (kind.to_bytes(2) + vector(content, 2)), 2)
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + extensions
    data = record(22, b"\1" + vector(body, 3))
    assert testing.read_client_hello(data) == "bad" == reference(data)


def test_a_hello_without_extensions() -> None:
    data = record(22, b"\1" + vector(b"\3\1" + bytes(32) + b"\0" + b"\0\2\0\x2f" + b"\1\0", 3))
    assert testing.read_client_hello(data) == (b"", ()) == reference(data)


# ---------------------------------------------------------------------------------------------------------------- fuzz


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A hello with some bytes changed, taken out, put in, or said again."""
    which = draw(st.sampled_from(["1.3", "1.2", "no name", "grown", "several records"]))
    data = bytearray(real()[which][0])
    for _ in range(draw(st.integers(1, 6))):
        # Most of what matters stands at the beginning.
        at = draw(st.integers(0, min(len(data), 120)) | st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "flip", "cut", "insert", "again"]))
        if kind == "change":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 60))]
    return bytes(data)


@settings(max_examples=1_000, deadline=None)
@given(mutated())
def test_what_is_broken_is_read_as_the_reference_does(data: bytes) -> None:
    assert testing.read_client_hello(data) == reference(data)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(["1.3", "1.2", "grown"]),
    st.lists(st.integers(1, 400), min_size=1, max_size=30),
    st.integers(0, 3_000),
)
def test_any_cut_into_records_and_any_part_of_it(which: str, pieces: list[int], size: int) -> None:
    data, answer = real()[which]
    message, cut = data[5:], b""
    for piece in pieces:
        if message:
            cut += record(22, message[:piece])
            message = message[piece:]
    cut += record(22, message) if message else b""
    assert testing.read_client_hello(cut) == answer
    assert testing.read_client_hello(cut[:size]) == (answer if size >= len(cut) else None)
