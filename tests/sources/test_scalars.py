"""YAML scalars mean what they mean to kubectl (sigs.k8s.io/yaml, go-yaml v2 resolve.go and its tests)."""

from __future__ import annotations

import math

import pytest

from lb.objects import yamltext


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("Yes", True), ("on", True), ("y", True),
        ("FALSE", False), ("no", False), ("Off", False), ("n", False), ("tRue", "tRue"), ("yeS", "yeS"),
        ("~", None), ("null", None), ("", None), ("Null", None), ("nULL", "nULL"),
        ("0", 0), ("80", 80), ("+12", 12), ("-5", -5), ("1_000", 1000),
        ("010", 8), ("0o14", 12), ("0b101", 5), ("0x1F", 31),
        ("08", 8.0), ("1.5", 1.5), (".5", 0.5), ("1e3", 1000.0), ("1.", 1.0), ("12e-1", 1.2), ("-.inf", -math.inf),
        ("1:30", "1:30"), ("190:20:30", "190:20:30"),
        ("2025-01-02", "2025-01-02"), ("2025-01-02T03:04:05Z", "2025-01-02T03:04:05Z"),
        ("10.0.0.1", "10.0.0.1"), ("1.2.3", "1.2.3"), ("v1", "v1"), ("-", "-"), (".", "."), ("0x", "0x"),
        ("0b2", "0b2"), ("+", "+"), ("=", "="), ("<<", "<<"), ("1k", "1k"), ("--5", "--5"), ("_1", "_1"),
    ],
)  # fmt: skip
def test_plain_scalars(text: str, value: object) -> None:
    found = yamltext.read_plain(text)
    assert found == value
    assert type(found) is type(value)


def test_numbers_beyond_any_type() -> None:
    assert math.isnan(yamltext.read_plain(".nan"))  # type: ignore[arg-type]
    assert yamltext.read_plain("9" * 5000) == math.inf
    assert yamltext.read_plain("18446744073709551615") == 2**64 - 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 'yes'", "yes"), ('a: "80"', "80"), ("a: !!str 80", "80"), ("a: !!int '80'", 80), ("a: !!float 1", 1),
        ("a: !!bool on", True), ("a: !!binary aGVsbG8=", "hello"), ("a: !!timestamp 2025-01-02", "2025-01-02"),
        ("a: |\n  x\n  y\n", "x\ny\n"), ("a: >-\n  x\n  y\n", "x y"), ("a: {b: [1, x]}", {"b": [1, "x"]}),
    ],
)  # fmt: skip
def test_values(text: str, value: object) -> None:
    (root,) = yamltext.compose(text.encode())
    converter = yamltext.Converter(len(text))
    assert converter.mapping(root)["a"] == value  # type: ignore[arg-type]


def test_keys_become_texts() -> None:
    text = "80: a\ntrue: b\n1.5: c\n'x': d\nyes: e\n"
    with pytest.raises(yamltext.YamlError, match="`true` stands twice"):
        yamltext.Converter(1).mapping(yamltext.compose(text.encode())[0])  # type: ignore[arg-type]
    (root,) = yamltext.compose(text.replace("yes: e\n", "").encode())
    assert list(yamltext.Converter(1).mapping(root)) == ["80", "true", "1.5", "x"]  # type: ignore[arg-type]


def test_splitting_into_documents() -> None:
    text = b"# head\n--- # one\na: 1\n...\n---\nb: |\n  ---\n  x\n---x: no\n--- {c: 1}\n\n---\n"
    chunks = yamltext.split(text)
    assert [(chunk.first_line, chunk.data.splitlines()[0]) for chunk in chunks] == [
        (1, b"--- # one"),
        (4, b"---"),
        (9, b"--- {c: 1}"),
    ]
