"""Whatever bytes come: decoding never raises, and never takes longer than the text is worth."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lb.objects.decode import Decoded, decode
from lb.objects.view import Stored
from lb.problems import CODES
from tests.sources import big_export
from tests.sources.reading import problems

FILES = st.sampled_from(["a.json", "a.yaml"])
SEEDS = [
    big_export.export_json(2),
    big_export.export_json(2, indent=None),
    big_export.export_yaml(2),
    b"apiVersion: lb/v1\nkind: Config\nlisteners: {http: {port: 80}}\n---\na: &x {b: [1, yes]}\nc: *x\n",
]
SPLINTERS = [
    *(
        mark.encode()
        for mark in ("\n", "---\n", "\t", "'", '"', "{", "}", "[", "]", ":", ", ", "- ", "&a ", "*a", "!!int ")
    ),
    *(mark.encode() for mark in ("<<: ", "\0", "null", "\\", "#", "|\n", "%YAML 1.1\n", "...\n", "? ", "\ufeff", "\r")),
    b"\xff",
]


def check(decoded: Decoded) -> None:
    for problem in problems(decoded):
        assert problem.code in CODES
        assert problem.what
        assert problem.origin.file.startswith("a.")
        assert problem.origin.line >= 0
    for stored in decoded.parts().stored:
        assert isinstance(stored, Stored)
        assert stored.object.metadata.name
        assert stored.origin.line or stored.origin.item or stored.origin.file == "a.json"


@given(st.binary(max_size=300), FILES)
@example(b"\xef\xbb\xbf", "a.json")
@example(b"{}", "a.json")
@example(b"[]", "a.json")
@example(b"null", "a.json")
@example(b'{"items":null}', "a.json")
@example(b'{"items":{}}', "a.json")
@example(b'{"kind":1,"apiVersion":[]}', "a.json")
@example(b'{"apiVersion":"v1","kind":"Service","metadata":{"name":"\xff"}}', "a.json")
@example(b"? ", "a.yaml")
@example(b"- " * 5000, "a.yaml")
@example(b"%", "a.yaml")
@example(b"---\n%YAML 9.9\n---\n", "a.yaml")
@example(b"%YAML 3.0\n--- x\n", "a.yaml")
@example(b"a: !<", "a.yaml")
@example("a: \ud7ff\uffff".encode(), "a.yaml")
@settings(max_examples=200)
def test_any_bytes(data: bytes, file: str) -> None:
    check(decode(data, file))


@given(st.text(alphabet="ab:-{}[],\n \t'\"&*!|>?#%@0.~<", max_size=60))
@settings(max_examples=300)
def test_any_marks(text: str) -> None:
    check(decode(text.encode(), "a.yaml"))


@given(st.data(), st.sampled_from(SEEDS), FILES)
@settings(max_examples=150)
def test_mutations_of_good_files(data: st.DataObject, seed: bytes, file: str) -> None:
    text = seed
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.sampled_from([0, 0, 1, 2, 20, 500]))
        text = text[:at] + data.draw(st.sampled_from(SPLINTERS) | st.just(b"")) + text[at + length :]
    previous = decode(seed, file)
    decoded = decode(text, file, previous)
    check(decoded)
    assert decoded.entries == decode(text, file).entries, "what is kept from before changes no result"


# JSON writes characters beyond 16 bits as two escapes, which YAML does not take; controls are no YAML at all.
TEXTS = st.text(alphabet="ab0-:# ä日", max_size=3)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3),
    max_leaves=6,
)
INGRESS = json.loads(big_export.export_json(1))["items"][4]


def paths(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        found.extend(below for key, item in value.items() for below in paths(item, (*path, key)))
    elif isinstance(value, list):
        found.extend(below for key, item in enumerate(value) for below in paths(item, (*path, key)))
    return found


@given(st.sampled_from(paths(INGRESS)), JSON_VALUES)
@settings(max_examples=150)
def test_any_value_in_any_field(path: tuple[Any, ...], value: Any) -> None:
    """JSON and YAML (which JSON is) give the same object, or the same Problem."""
    content = json.loads(json.dumps(INGRESS))
    below = content
    for part in path[:-1]:
        below = below[part]
    below[path[-1]] = value
    text = json.dumps(content).encode()
    as_json, as_yaml = decode(text, "a.json"), decode(b"--- " + text, "a.yaml")
    check(as_json)
    assert [one.object for one in as_json.parts().stored] == [one.object for one in as_yaml.parts().stored]
    assert [(one.code, one.what) for one in problems(as_json)] == [(one.code, one.what) for one in problems(as_yaml)]
