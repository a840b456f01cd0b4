"""A file cut anywhere: never an exception, never an object that the whole file does not hold, never a lost one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from lb.objects.decode import decode
from lb.objects.meta import Object
from lb.sources.files import FileSource, read_paths
from lb.sources.store import Store
from tests.sources import big_export

INGRESSES = 12
FORMS = {
    "indented.json": big_export.export_json(INGRESSES),
    "compact.json": big_export.export_json(INGRESSES, indent=None),
    "list.yaml": big_export.export_yaml(INGRESSES),
}


def objects(data: bytes, file: str) -> list[Object]:
    return [stored.object for stored in decode(data, file).parts().stored]


@pytest.mark.parametrize("file", FORMS)
def test_a_cut_export_that_replaces_a_good_one_changes_nothing(file: str, tmp_path: Path) -> None:
    """In JSON every cut is noticed; in YAML too, since `kind: List` stands at the end of what kubectl writes."""
    data = FORMS[file]
    path = tmp_path / file
    path.write_bytes(data)
    store = Store()
    source = FileSource([path], store)
    source.read()
    store.take_changes()
    before = store.counts()
    assert before["Ingress"] == INGRESSES
    step = 37 if file.endswith("json") else 211  # YAML is slower to read
    whole = (
        len(data.rstrip()) - len("metadata:\n  resourceVersion: ''") if file.endswith("yaml") else len(data.rstrip())
    )
    for length in [0, 1, *range(2, whole, step), whole - 1]:
        path.write_bytes(data[:length])
        source.read(force=True)
        assert not store.has_changes, f"cut at {length}"
        (problem,) = store.problems()
        assert problem.code == "LB1006"
        assert f"the {sum(before.values())} objects of its last good version stay in use" in problem.why
    path.write_bytes(data)
    source.read(force=True)
    assert not store.problems()
    assert not store.has_changes


@pytest.mark.parametrize("file", FORMS)
def test_the_first_reading_of_a_cut_export_has_only_whole_objects(file: str) -> None:
    data = FORMS[file]
    whole = objects(data, file)
    counts = set()
    for length in range(0, len(data.rstrip()) - 1, 97 if file.endswith("json") else 311):
        decoded = decode(data[:length], file)
        found = [stored.object for stored in decoded.parts().stored]
        if file.endswith("json"):
            assert found == whole[: len(found)], f"cut at {length}"
            assert decoded.truncated
            counts.add(len(found))
        else:
            # A YAML text may end at any line and still be YAML: the last item may lack fields, no other one.
            assert found[:-1] == whole[: len(found[:-1])], f"cut at {length}"
            assert decoded.truncated or decoded.incomplete or length > len(data) - 60 or decoded.errors or not found
    if file.endswith("json"):
        assert counts == set(range(len(whole) + 1))


@pytest.mark.parametrize("text", [b"", b" \n", b'{"apiVersion": "v1", "kind": "List", "items": [{"apiV'])
def test_a_cut_file_without_a_good_version_is_told(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    (problem,) = read_paths([path]).problems()
    assert problem.code == "LB1006"
    assert problem.why == "no good version is known: its 0 whole objects are used"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"apiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  clusterIP: 10.0", "last line has no end"),
        (b"apiVersion: v1\nkind: Service\nmetadata:\n  name: 'a", "ends in the middle"),
        (b"apiVersion: v1\nkind: Service\nmetadata: {name: a,\n", "ends in the middle"),
        (b"apiVersion: v1\nkind: Service\n", "no kind or no metadata"),
        (b"apiVersion: v1\n", "no kind or no metadata"),
    ],
)
def test_cut_yaml_files(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("apiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  clusterIP: 10.0.0.1\n")
    store = Store()
    source = FileSource([path], store)
    source.read()
    store.take_changes()
    path.write_bytes(content)
    source.read(force=True)
    assert not store.has_changes
    (problem,) = store.problems()
    assert problem.code == "LB1006"
    assert why in problem.what


def test_a_syntax_error_adds_and_changes_but_loses_nothing(tmp_path: Path) -> None:
    def document(name: str, address: str) -> str:
        return f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: '{address}'}}\n"

    path = tmp_path / "a.yaml"
    path.write_text("---\n".join(document(name, "1") for name in "abc"))
    store = Store()
    source = FileSource([path], store)
    source.read()
    store.take_changes()
    path.write_text("---\n".join((document("a", "2"), "kind: Service: x\n", document("d", "1"))))
    source.read(force=True)
    addresses = {name: stored.object.spec.cluster_ip for (_, name), stored in store.all("Service").items()}  # type: ignore[attr-defined]
    assert addresses == {"a": "2", "b": "1", "c": "1", "d": "1"}
    (problem,) = store.problems()
    assert (problem.code, problem.origin.line) == ("LB1002", 6)
    assert "2 objects stay as they were" in problem.why
    path.write_text("---\n".join((document("a", "2"), document("d", "1"))))
    source.read(force=True)
    assert sorted(name for _, name in store.all("Service")) == ["a", "d"]
    assert not store.problems()


@pytest.mark.parametrize("head", ["apiVersion: lb/v1\nkind: Configs\n", "apiVersion: lb/v11\nkind: Config\n"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_native_file_does_not_vanish_by_a_wrong_word_in_its_head(tmp_path: Path, head: str, as_json: bool) -> None:
    path = tmp_path / ("lb.json" if as_json else "lb.yaml")

    def write(head: str, more: str) -> None:
        text = f"{head}hosts: {{default: {{}}}}\n{more}"
        path.write_text(json.dumps(yaml.safe_load(text)) if as_json else text)
        source.read(force=True)

    store = Store()
    source = FileSource([path], store)
    write("apiVersion: lb/v1\nkind: Config\n", "")
    (before,) = store.all("NativeConfig").values()
    assert not store.problems()
    write(head, "upstreams: {}\n")
    assert list(store.all("NativeConfig").values()) == [before]
    (problem,) = store.problems()
    assert (problem.code, problem.severity) == ("LB1003", "error")
    assert "(1 object stays as it was)" in problem.why
    write("apiVersion: lb/v1\nkind: Config\n", "upstreams: {}\n")
    assert list(store.all("NativeConfig").values()) != [before]
    assert not store.problems()


def test_an_item_that_cannot_be_decoded_keeps_its_last_good_form(tmp_path: Path) -> None:
    def document(name: str, port: str) -> str:
        return f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"

    path = tmp_path / "a.yaml"

    def write(*documents: str) -> Sequence[str]:
        path.write_text("---\n".join(documents))
        source.read(force=True)
        return sorted(name for _, name in store.all("Service"))

    store = Store()
    source = FileSource([path], store)
    assert write(document("a", "80"), document("b", "81"), document("c", "82")) == ["a", "b", "c"]
    store.take_changes()
    # b is wrong and stays; c is gone on purpose.
    assert write(document("a", "80"), document("b", "x")) == ["a", "b"]
    assert [key.name for key in store.take_changes().removed] == ["c"]
    (problem,) = store.problems()
    assert problem.code == "LB1003"
    assert problem.why == "the API server would refuse this object; its last good version stays in use"
    assert write(document("a", "80"), document("b", "y")) == ["a", "b"]
    assert write(document("a", "80")) == ["a"]
    assert not store.problems()
