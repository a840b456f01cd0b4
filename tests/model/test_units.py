"""Durations, sizes and rule paths as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.model.normalize import Rejected, normalize_rule_path, normalize_target
from lb.model.units import format_duration, format_size, parse_duration, parse_size


@given(number=st.integers(0, 10**15))
def test_what_is_formatted_parses_to_the_same(number: int) -> None:
    assert parse_duration(format_duration(number)) == number
    assert parse_size(format_size(number)) == number


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("1h30m", 5_400_000), ("1.5s", 1_500), ("250ms", 250), (0, 0), ("0s", 0), ("90s", 90_000)],
)
def test_duration(text: object, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize(
    ("text", "size"), [("32Ki", 32_768), ("1.5M", 1_500_000), (512, 512), ("512", 512), ("2Gi", 1 << 31)]
)
def test_size(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "value", ["5", 5, -1, "", "5 s", "5d", "s", "-1s", "9" * 400 + ".5s", "9" * 5000 + "s", True, None, [], 1.5]
)
def test_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="is not a duration such as"):
        parse_duration(value)


@pytest.mark.parametrize("value", ["", "5 Ki", "5kb", "9" * 400 + ".5Mi", "9" * 5000, -1, True, None, 1.5, "-1"])
def test_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="is not a size such as"):
        parse_size(value)


@pytest.mark.parametrize(
    ("path", "partial", "normal"),
    [
        ("/", False, "/"),
        ("/café bar", False, "/caf%C3%A9%20bar"),
        ("/a?b#c", False, "/a%3Fb%23c"),
        ("/a%2fb/%7e", False, "/a%2Fb/~"),
        ("/a//b/../c", False, "/a//c"),
        ("/a/.", False, "/a/"),
        ("/a/.", True, "/a/."),
        ("", True, ""),
    ],
)
def test_rule_path_is_written_as_requests_are_matched(path: str, partial: bool, normal: str) -> None:
    assert normalize_rule_path(path, partial=partial) == normal


@pytest.mark.parametrize("path", ["", "a", "/..", "/%zz", "/%00"])
def test_rule_path_that_no_request_has(path: str) -> None:
    assert isinstance(normalize_rule_path(path), Rejected)


@given(path=st.text(max_size=12).map("/".__add__))
def test_normal_rule_path_is_a_path_that_requests_can_have(path: str) -> None:
    normal = normalize_rule_path(path)
    if not isinstance(normal, Rejected):
        assert normalize_target(normal.encode(), merge_slashes=False, escaped_slashes="keep") == (normal.encode(), None)
        assert normalize_rule_path(normal) == normal
