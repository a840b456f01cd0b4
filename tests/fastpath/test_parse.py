"""The HTTP/1 parser against its oracles: the reference normalisation, h11, and a chunk decoder written the slow way."""

from __future__ import annotations

import itertools
import re

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lb._fastpath import testing
from lb.model.normalize import Rejected, normalize_host, normalize_target

PIECES = [
    b"/",
    b"//",
    b".",
    b"..",
    b"a",
    b"%2e",
    b"%2E%2e",
    b"%41",
    b"%2f",
    b"%5C",
    b"%00",
    b"%",
    b"%4",
    b"%zz",
    b"\\",
    b"?",
    b"?x=/../",
    b"~",
    b"%7e",
    b"%c3%a9",
    b";",
]
targets = st.lists(st.sampled_from(PIECES), max_size=10).map(lambda pieces: b"/" + b"".join(pieces))


@settings(max_examples=1500, deadline=None)
@given(targets, st.booleans(), st.booleans())
@example(b"//..", False, False)
@example(b"/a/./b/../../c/..", True, False)
def test_targets_are_normalised_as_the_reference_does(target: bytes, merge: bool, keep: bool) -> None:
    expected = normalize_target(target, merge_slashes=merge, escaped_slashes="keep" if keep else "reject")
    got = testing.normalize_target(target, merge, keep)
    assert got == (None if isinstance(expected, Rejected) else tuple(expected))


HOST_PIECES = [
    b"a",
    b"A",
    b".",
    b"-",
    b"_",
    b":",
    b"80",
    b"65536",
    b"[",
    b"]",
    b"::1",
    b"[::1]",
    b"%",
    b"@",
    b",",
    b" ",
    b"1.2.3.4",
    b"*",
    b"~",
    b"\xc3",
]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(HOST_PIECES), max_size=6).map(b"".join))
def test_hosts_are_normalised_as_the_reference_does(value: bytes) -> None:
    expected = normalize_host(value)
    assert testing.normalize_host(value) == (None if isinstance(expected, Rejected) else expected)


def test_a_host_of_253_bytes_is_taken_and_one_of_254_is_not() -> None:
    longest = b".".join([b"a" * 49] * 5) + b".abc"
    assert len(longest) == 253
    assert testing.normalize_host(longest) == longest
    assert testing.normalize_host(longest + b"d") is None


HEAD = b"GET /a%20b?q=1 HTTP/1.1\r\nHost: Shop.Example.com:8080\r\nX-A:  one \r\nAccept: */*\r\n\r\n"


def test_a_head_is_parsed_the_same_at_once_and_after_any_prefix() -> None:
    used, whole = testing.parse_request(HEAD)
    assert used == len(HEAD)
    assert whole["hostname"] == b"shop.example.com"
    assert whole["target"] == b"/a%20b?q=1"
    assert whole["path"] == b"/a%20b"
    assert (b"X-A", b"one", False) in whole["fields"]
    for end in range(len(HEAD)):
        assert testing.parse_request(HEAD[:end]) == (0, None), HEAD[:end]
    assert testing.parse_request(HEAD + b"GET / HTTP/1.1\r\n") == (used, whole)


@pytest.mark.parametrize(
    ("lines", "dropped"),
    [
        ([b"Connection: X-Secret", b"X-Secret: 1"], {b"Connection", b"X-Secret"}),
        ([b"X-Secret: 1", b"connection: close, x-secret"], {b"connection", b"X-Secret"}),
        (
            [
                b"Connection: Host, Content-Length, X-Forwarded-For, Authorization",
                b"Authorization: x",
                b"X-Forwarded-For: y",
            ],
            {b"Connection"},
        ),
        (
            [b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"TE: trailers"],
            {b"Keep-Alive", b"Proxy-Connection", b"TE"},
        ),
        ([b"X_Forwarded_For: 1", b"X_Free: 2"], {b"X_Forwarded_For"}),
        (
            [b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AA"],
            {b"Upgrade", b"Connection", b"HTTP2-Settings"},
        ),
        ([b"Upgrade: websocket"], {b"Upgrade"}),
        ([b"Upgrade: websocket", b"Connection: upgrade"], {b"Connection"}),
    ],
)
def test_fields_for_this_hop_only_are_dropped(lines: list[bytes], dropped: set[bytes]) -> None:
    _, head = testing.parse_request(b"GET / HTTP/1.1\r\nHost: h\r\n" + b"\r\n".join(lines) + b"\r\n\r\n")
    assert {name for name, _, drop in head["fields"] if drop} == dropped


@settings(max_examples=800, deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(HEAD)), st.integers(0, 40))
def test_no_bytes_make_the_parser_fail(noise: bytes, at: int, cut: int) -> None:
    used, result = testing.parse_request(HEAD[:at] + noise + HEAD[at + cut :])
    assert used >= -1
    assert (result is None) == (used == 0)


TOKENS = [
    b"GET",
    b"POST",
    b" ",
    b"/",
    b"/a",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"\r\n",
    b"\n",
    b"\r",
    b"Host: h",
    b"Host:h",
    b"Content-Length: 5",
    b"Content-Length: 5, 5",
    b"Transfer-Encoding: chunked",
    b"X: y",
    b"X : y",
    b" folded",
    b":",
    b"\x00",
    b"\t",
    b"X: \xff",
]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=14).map(b"".join))
def test_whatever_is_accepted_h11_accepts_with_the_same_meaning(data: bytes) -> None:
    data = data.replace(b"\n", b"\r\n").replace(b"\r\r", b"\r") + b"\r\n\r\n"
    used, ours = testing.parse_request(data)
    if used <= 0 or data.startswith(b"\r"):
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data[:used])
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert event.method == ours["method"]
    assert event.target == re.match(rb"\S+ (\S+) ", data)[1]
    assert [(name.lower(), value) for name, value, _ in ours["fields"]] == [
        (name, value) for name, value in event.headers
    ]
    lengths = [int(value) for name, value in event.headers if name == b"content-length"]
    assert ours["content_length"] == (lengths[0] if lengths else -1)


def slow_chunks(data: bytes) -> tuple[bytes, bytes] | None:
    """RFC 9112 7.1 with nothing left out of the grammar and nothing added, on a whole body."""
    body = b""
    while True:
        line = re.match(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?\r\n", data)
        if not line or int(line[1], 16) >= 1 << 52:
            return None
        data = data[line.end() :]
        size = int(line[1], 16)
        if size == 0:
            return body, data
        if len(data) < size + 2 or data[size : size + 2] != b"\r\n":
            return None
        body, data = body + data[:size], data[size + 2 :]


CHUNK_PIECES = [b"0", b"1", b"5", b"a", b"F", b";x=y", b" ", b"\r\n", b"\n", b"\r", b"hello", b"x", b"-", b"0x5"]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(CHUNK_PIECES), max_size=12).map(b"".join), st.lists(st.integers(0, 60), max_size=4))
@example(b"5\r\nhello\r\n0\r\n", [])
def test_chunks_decode_as_the_grammar_says_however_they_are_split(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    got = testing.decode_chunks([data[a:b] for a, b in itertools.pairwise(edges)])
    expected = slow_chunks(data)
    if expected is not None:
        assert got == expected
    else:
        assert got is None or len(got) == 1  # wrong, or not over yet


@pytest.mark.parametrize("size", [b"1" + b"0" * 13, b"ffffffffffffffff", b"0" * 17 + b"1"])
def test_a_chunk_size_that_could_overflow_is_refused(size: bytes) -> None:
    assert testing.decode_chunks([size + b"\r\n"]) is None


def test_chunk_extensions_are_bounded_in_a_line_and_over_many() -> None:
    assert testing.decode_chunks([b"1;" + b"x" * 2000]) is None
    assert testing.decode_chunks([(b"1;" + b"x" * 900 + b"\r\na\r\n") * 30]) is None
    assert testing.decode_chunks([b"1;x\r\na\r\n" * 5000 + b"0\r\n"]) == (b"a" * 5000, b"")


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([5, 1, 1], [0, 0, 1, 0, 2, 0, 0]),
        ([1, 1, 1], [0, 1, 2]),
        ([10, 20], [1, 0, 1]),
        ([0, 3, 0], [1]),
        ([0, 0], []),
    ],
)
def test_weights_are_spread_smoothly(weights: list[int], expected: list[int]) -> None:
    assert testing.smooth_sequence(weights) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=20))
def test_a_period_serves_each_by_its_weight(weights: list[int]) -> None:
    sequence = testing.smooth_sequence(weights)
    total = sum(weights)
    for index, weight in enumerate(weights):
        assert sequence.count(index) * total == weight * len(sequence)


def test_weights_beyond_the_period_are_scaled_and_nobody_is_forgotten() -> None:
    sequence = testing.smooth_sequence([1_000_003, 1, 499_999], 1024)
    assert 0 < len(sequence) <= 1024
    assert set(sequence) == {0, 1, 2}
    assert abs(sequence.count(0) / sequence.count(2) - 2) < 0.1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x16", None),
        (b"\x16\x03", "not-http"),
        (b"\x16\x03\x01\x02\x00\x01", "not-http"),
        (b"\x16\x04", "bad-request-line"),
        (b"\x15\x03\x01", "bad-request-line"),
    ],
)
def test_tls_on_a_plain_port_is_known(data: bytes, expected: str | None) -> None:
    assert testing.parse_request(data)[1] == expected
