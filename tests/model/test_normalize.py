"""The rules of normalisation, row by row, and what holds for every input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.model.normalize import Rejected, Target, normalize_host, normalize_target

HOSTS = [
    (b"", b""),
    (b"shop.example.com", b"shop.example.com"),
    (b"Shop.EXAMPLE.com", b"shop.example.com"),
    (b"shop.example.com.", b"shop.example.com"),
    (b"shop.example.com.:8080", b"shop.example.com"),
    (b"shop.example.com:8080", b"shop.example.com"),
    (b"shop.example.com:", b"shop.example.com"),
    (b"shop_1.example.com", b"shop_1.example.com"),
    (b"10.0.0.1:80", b"10.0.0.1"),
    (b"[::1]", b"[::1]"),
    (b"[FD00::1]:443", b"[fd00::1]"),
    (b"[::ffff:10.0.0.1]:", b"[::ffff:10.0.0.1]"),
    (b"a" * 253, b"a" * 253),
]
BAD_HOSTS = [
    (b"shop.example.com:x", "host-port"),
    (b"shop.example.com:65536", "host-port"),
    (b"shop.example.com:000080", "host-port"),
    (b"shop.example.com:-1", "host-port"),
    (b"a:80:80", "host-port"),
    (b"::1", "host-port"),
    (b"user@shop.example.com", "host-character"),
    (b"shop.example.com/a", "host-character"),
    (b"a,b", "host-character"),
    (b"a b", "host-character"),
    (b"*.example.com", "host-character"),
    (b"shop%2eexample.com", "host-character"),
    (b"caf\xc3\xa9.example.com", "host-character"),
    (b"shop\x00.example.com", "host-character"),
    (b".", "host-syntax"),
    (b":80", "host-syntax"),
    (b".example.com", "host-syntax"),
    (b"shop..example.com", "host-syntax"),
    (b"shop.example.com..", "host-syntax"),
    (b"a" * 254, "host-syntax"),
    (b"[::1", "host-syntax"),
    (b"[::1]x", "host-syntax"),
    (b"[::1%eth0]", "host-syntax"),
    (b"[]", "host-syntax"),
    (b"[1]", "host-syntax"),
    (b"[::1]:65536", "host-port"),
]
TARGETS = [
    (b"/", b"/", None),
    (b"/a?", b"/a", b""),
    (b"/a?b=%2e&c=..//", b"/a", b"b=%2e&c=..//"),
    (b"/a?b?c", b"/a", b"b?c"),
    # Escapes
    (b"/%61%7E%2D%5f", b"/a~-_", None),
    (b"/caf%c3%a9", b"/caf%C3%A9", None),
    (b"/%25%32%65", b"/%252e", None),
    (b"/a%20b%3f%23", b"/a%20b%3F%23", None),
    (b"/a%0d%0ab", b"/a%0D%0Ab", None),
    # Slashes
    (b"//", b"/", None),
    (b"/a//b///c//", b"/a/b/c/", None),
    # Dot segments
    (b"/a/./b", b"/a/b", None),
    (b"/a/../b", b"/b", None),
    (b"/a/b/..", b"/a/", None),
    (b"/a/b/.", b"/a/b/", None),
    (b"/.", b"/", None),
    (b"/a/..", b"/", None),
    (b"/a//../b", b"/b", None),
    (b"/a/%2e%2E/b", b"/b", None),
    (b"/a/.%2e/b", b"/b", None),
    (b"/...", b"/...", None),
    (b"/a/..;/b", b"/a/..;/b", None),
]
BAD_TARGETS = [
    (b"", "target-form"),
    (b"*", "target-form"),
    (b"a", "target-form"),
    (b"?a", "target-form"),
    (b"http://a/", "target-form"),
    (b"/a#b", "target-character"),
    (b"/a?b#c", "target-character"),
    (b"/a b", "target-character"),
    (b"/a\tb", "target-character"),
    (b"/a\x00b", "target-character"),
    (b"/a\x7fb", "target-character"),
    (b"/caf\xc3\xa9", "target-character"),
    (b"/?\x80", "target-character"),
    (b"/%", "bad-escape"),
    (b"/%4", "bad-escape"),
    (b"/%4?", "bad-escape"),
    (b"/%zz", "bad-escape"),
    (b"/%+1", "bad-escape"),
    (b"/a%00", "escaped-nul"),
    (b"/a%2Fb", "escaped-slash"),
    (b"/a%2fb", "escaped-slash"),
    (b"/a%5Cb", "escaped-slash"),
    (b"/a\\b", "escaped-slash"),
    (b"/%2f%00", "escaped-slash"),
    (b"/%00%2f", "escaped-nul"),
    (b"/..", "above-root"),
    (b"/../a", "above-root"),
    (b"/a/../../b", "above-root"),
    (b"/a//../../b", "above-root"),
    (b"/%2e%2e/a", "above-root"),
    (b"/./..", "above-root"),
]


@pytest.mark.parametrize(("value", "host"), HOSTS)
def test_host(value: bytes, host: bytes) -> None:
    assert normalize_host(value) == host


@pytest.mark.parametrize(("value", "rejection"), BAD_HOSTS)
def test_host_is_rejected(value: bytes, rejection: str) -> None:
    result = normalize_host(value)
    assert isinstance(result, Rejected)
    assert result.rejection == rejection
    assert result.why


@pytest.mark.parametrize(("target", "path", "query"), TARGETS)
def test_target(target: bytes, path: bytes, query: bytes | None) -> None:
    assert normalize_target(target) == Target(path, query)


@pytest.mark.parametrize(("target", "rejection"), BAD_TARGETS)
def test_target_is_rejected(target: bytes, rejection: str) -> None:
    result = normalize_target(target)
    assert isinstance(result, Rejected)
    assert result.rejection == rejection
    assert result.why


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"//", b"//"),
        (b"/a//b", b"/a//b"),
        (b"/a//../b", b"/a/b"),
        (b"//..", b"/"),
        (b"/a/..//b", b"//b"),
    ],
)
def test_slashes_stay_when_not_merged(target: bytes, path: bytes) -> None:
    assert normalize_target(target, merge_slashes=False) == Target(path, None)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a%2fb", b"/a%2Fb"),
        (b"/a%5cb", b"/a%5Cb"),
        (b"/a\\b", b"/a\\b"),
        (b"/a%2f../b", b"/a%2F../b"),
    ],
)
def test_escaped_slashes_stay_when_kept(target: bytes, path: bytes) -> None:
    assert normalize_target(target, escaped_slashes="keep") == Target(path, None)


def test_escaped_nul_is_rejected_even_when_escaped_slashes_are_kept() -> None:
    result = normalize_target(b"/%00", escaped_slashes="keep")
    assert isinstance(result, Rejected)
    assert result.rejection == "escaped-nul"


def _from_pieces(*pieces: str) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(pieces), max_size=12).map(lambda parts: "".join(parts).encode("latin-1"))


targets = _from_pieces(
    "/",
    "/",
    "/",
    ".",
    "..",
    "a",
    "b",
    "%",
    "%2",
    "%2e",
    "%2F",
    "%5c",
    "%61",
    "%c3",
    "%00",
    "%25",
    "\\",
    "?",
    "#",
    "\xe9",
).map(lambda rest: b"/" + rest)
hosts = _from_pieces(
    "a", "B", ".", "..", "example.com", ":", "80", "65536", "[", "]", "::1", "*", "-", "_", "%", "\xe9"
)


@given(target=targets | st.binary(), merge_slashes=st.booleans(), escaped_slashes=st.sampled_from(["reject", "keep"]))
def test_normalised_target_is_canonical(target: bytes, merge_slashes: bool, escaped_slashes: str) -> None:
    result = normalize_target(target, merge_slashes=merge_slashes, escaped_slashes=escaped_slashes)
    if isinstance(result, Rejected):
        return
    path, query = result
    again = path if query is None else path + b"?" + query
    assert normalize_target(again, merge_slashes=merge_slashes, escaped_slashes=escaped_slashes) == result
    assert path.startswith(b"/")
    assert not {b".", b".."} & set(path.split(b"/"))
    assert not (merge_slashes and b"//" in path)
    assert not (escaped_slashes == "reject" and (b"%2F" in path or b"%5C" in path or b"\\" in path))
    assert b"%00" not in path
    assert len(path) <= len(target)


@given(value=hosts | st.binary())
def test_normalised_host_is_canonical(value: bytes) -> None:
    host = normalize_host(value)
    if isinstance(host, Rejected):
        return
    assert normalize_host(host) == host
    assert host == host.lower()
    assert not host.endswith(b".")
    assert b":" not in host or host.startswith(b"[")
