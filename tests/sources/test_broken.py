"""Broken input: each class of it says exactly where, what and how to mend it, and costs only itself."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from lb.objects.decode import decode
from lb.objects.meta import Key
from tests.sources import big_export
from tests.sources.reading import only_problem, problems

GOOD = "apiVersion: v1\nkind: Service\nmetadata:\n  name: good\n"


class Broken(NamedTuple):
    text: str | bytes
    line: int
    column: int
    what: str
    fix: str


SYNTAX = {
    "colon in a value": Broken("apiVersion: v1\nkind: a: b\n", 2, 8, "mapping values are not allowed", "in quotes"),
    "an item indented too far": Broken("a:\n- b: 1\n   c: 2\n", 3, 5, "mapping values are not allowed", "indentation"),
    "tab as indentation": Broken("metadata:\n\tname: x\n", 2, 1, "cannot start any token", "spaces"),
    "tab in a plain value": Broken("a: b\n\tc: d\n", 2, 1, "tab", "spaces"),
    "open quote": Broken("a: 'x\nb: c\n", 3, 1, "end of stream", "close the quote"),
    "open bracket": Broken("a: [1,\nb: c\n", 3, 1, "expected", "check"),
    "wrong indentation": Broken("a:\n  b: 1\n c: 2\n", 3, 2, "did not find expected", "indentation"),
    "list and mapping": Broken("- a\nb: c\n", 2, 1, "did not find expected '-'", "indentation"),
    "unknown alias": Broken("a: *x\n", 1, 4, "undefined alias", "quotes"),
    "anchor twice": Broken("a: &x 1\nb: &x 2\n", 2, 4, "anchor is defined twice", ""),
    "key without value": Broken("kind\napiVersion: v1\n", 2, 11, "mapping values are not allowed", ""),
    "control character": Broken("a: b\nc: \x01d\n", 2, 4, "U+0001", "remove"),
    "not UTF-8": Broken(b"a: b\nc: d\xff\n", 2, 5, "0xff is not UTF-8", "UTF-8"),
    "UTF-16": Broken("a: b\n".encode("utf-16"), 1, 1, "not UTF-8", "UTF-8"),
    "too deep in brackets": Broken("a: " + "[" * 100_000, 1, 202, "nested deeper", ""),
    "too deep in lists": Broken("- " * 100_000, 1, 399, "nested deeper", ""),
}


def _seen_ahead(broken: Broken) -> tuple[int, int] | None:
    """libyaml from 0.2.6 on finds brackets beyond its own limit before lb has come to its own."""
    return (1, 1003) if broken is SYNTAX["too deep in brackets"] else None


@pytest.mark.parametrize("broken", SYNTAX.values(), ids=SYNTAX.keys())
def test_yaml_syntax_errors(broken: Broken) -> None:
    problem = only_problem(broken.text)
    assert problem.code == "LB1002"
    assert (problem.origin.line, problem.origin.column) in ((broken.line, broken.column), _seen_ahead(broken))
    assert broken.what in problem.what
    assert broken.fix in problem.fix


# UTF-16 cannot stand between UTF-8 documents.
IN_BETWEEN = {name: broken for name, broken in SYNTAX.items() if name != "UTF-16"}


@pytest.mark.parametrize("broken", IN_BETWEEN.values(), ids=IN_BETWEEN.keys())
def test_a_broken_yaml_document_costs_only_itself(broken: Broken) -> None:
    text = broken.text if isinstance(broken.text, bytes) else broken.text.encode()
    before, after = GOOD.encode(), GOOD.replace("good", "last").encode()
    decoded = decode(before + b"---\n" + text + b"\n---\n" + after, "a.yaml")
    assert [stored.object.metadata.name for stored in decoded.parts().stored] == ["good", "last"]
    (problem,) = problems(decoded)
    lines_before = 5
    assert problem.origin.line - lines_before in (broken.line, broken.line + 1)  # an open one ends a line later
    assert decoded.parts().stored[1].origin.line > problem.origin.line - 1


def service(body: str) -> str:
    return "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n" + body


FIELDS = {
    "bool for text": Broken(
        service("spec:\n  clusterIP: yes\n"), 5, 14, "spec.clusterIP must be a string, not a boolean", "quotes"
    ),
    "number for text": Broken(
        service("spec:\n  ports:\n  - name: 80\n    port: 80\n"), 6, 11, "ports[0].name", "quotes"
    ),
    "text for number": Broken(
        service("spec:\n  ports:\n  - port: '80'\n"), 6, 11, "spec.ports[0].port must be an integer", "without quotes"
    ),
    "port of 0": Broken(
        service("spec:\n  ports:\n  - port: 0\n"), 6, 11, "spec.ports[0].port must be at least 1", "1 or more"
    ),
    "port over all": Broken(
        service("spec:\n  ports:\n  - port: 80\n    nodePort: 65536\n"),
        7,
        15,
        "nodePort must be at most 65535",
        "65535 or less",
    ),
    "port of many digits": Broken(
        service("spec:\n  ports:\n  - port: " + "9" * 20 + "\n"), 6, 11, "spec.ports[0].port must be at most", "or less"
    ),
    "target port below 0": Broken(
        service("spec:\n  ports:\n  - port: 80\n    targetPort: -1\n"),
        7,
        17,
        "targetPort must be at least 0",
        "0 or more",
    ),
    "missing field": Broken(service("spec:\n  ports:\n  - name: a\n"), 6, 5, "spec.ports[0].port is missing", "add"),
    "mapping for list": Broken(service("spec:\n  ports: {a: b}\n"), 5, 10, "spec.ports must be a list", "a list"),
    "text for mapping": Broken(service("spec: x\n"), 4, 7, "spec must be a map, not a string", "a map"),
    "number as annotation": Broken(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n    a/b: x\n    lb/x: 5\n",
        7,
        11,
        "metadata.annotations[lb/x] must be a string, not an integer",
        "quotes",
    ),
    "on as annotation": Broken(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n    lb/x: on\n",
        6,
        11,
        "metadata.annotations[lb/x] must be a string, not a boolean",
        "quotes",
    ),
    "no kind": Broken("apiVersion: v1\nmetadata: {name: a}\n", 1, 1, "kind is missing", ""),
    "no apiVersion": Broken("kind: Service\nmetadata: {name: a}\n", 1, 1, "apiVersion is missing", ""),
    "no metadata": Broken("apiVersion: v1\nkind: Service\n", 1, 1, "metadata is missing", "add"),
    "no name": Broken(
        "apiVersion: v1\nkind: Service\nmetadata:\n  generateName: x\n", 4, 3, "metadata.name is missing", ""
    ),
    "empty name": Broken("apiVersion: v1\nkind: Service\nmetadata: {name: ''}\n", 1, 1, "metadata.name is empty", ""),
    "text for an object": Broken("hello\n", 1, 1, "no object", "apiVersion"),
    "list for an object": Broken("- a\n- b\n", 1, 1, "no object", "apiVersion"),
}


@pytest.mark.parametrize("broken", FIELDS.values(), ids=FIELDS.keys())
def test_wrong_fields(broken: Broken) -> None:
    problem = only_problem(broken.text)
    assert problem.code == "LB1003"
    assert broken.what in problem.what
    assert problem.why.endswith("it is left out")
    assert (problem.origin.line, problem.origin.column) == (broken.line, broken.column)
    assert broken.fix in problem.fix


DUPLICATES = {
    "duplicate key": Broken(
        service("spec:\n  clusterIP: a\n  clusterIP: b\n"), 6, 3, "`clusterIP` stands twice", "remove"
    ),
    "unknown tag": Broken(service("spec:\n  clusterIP: !secret a\n"), 5, 14, "tag `!secret`", "remove"),
    "tag that lies": Broken(service("spec:\n  ports: !!int x\n"), 5, 10, "not what its tag `!!int` says", ""),
    "list as a key": Broken(service("spec:\n  ? [a]\n  : b\n"), 5, 5, "a key must be text", ""),
    "alias of itself": Broken(service("spec: &a\n  ports: [*a]\n"), 4, 7, "alias contains itself", ""),
    "merge of a text": Broken(service("spec:\n  <<: x\n"), 5, 7, "`<<` takes a mapping", ""),
}


@pytest.mark.parametrize("broken", DUPLICATES.values(), ids=DUPLICATES.keys())
def test_yaml_that_no_object_can_be_made_of(broken: Broken) -> None:
    decoded = decode(f"{broken.text}---\n{GOOD}".encode(), "a.yaml")  # type: ignore[str-bytes-safe]
    (problem,) = problems(decoded)
    assert problem.code == "LB1002"
    assert broken.what in problem.what
    assert (problem.origin.line, problem.origin.column) == (broken.line, broken.column)
    assert problem.origin.object == "Service shop/web"
    assert [rejected.key for rejected in decoded.parts().rejected] == [Key("Service", "shop", "web")]
    assert len(decoded.parts().stored) == 1


TWICE = {
    "a field": ('"spec": {"clusterIP": "a", "clusterIP": "b"}', "spec.clusterIP"),
    "a part of the object": ('"spec": {}, "spec": {"clusterIP": "b"}', "spec"),
    "an annotation": (
        '"metadata": {"name": "web", "annotations": {"a/b": "1", "a/b": "1"}}',
        "metadata.annotations[a/b]",
    ),
    "in a list": ('"spec": {"ports": [{"port": 1}, {"port": 1, "name": "a", "port" :2}]}', "spec.ports[1].port"),
    "spelled in another way": ('"spec": {"type": null, "clusterIP": "a", "cluster\\u0049P": "b"}', "spec.clusterIP"),
    "in what lb does not read": ('"status": {"a": {"b": 1, "b": 2}}', "status.a.b"),
    "beside a huge number": ('"spec": {"clusterIP": "a", "clusterIP": "b"}, "status": {"x": 1e999}', "spec.clusterIP"),
    "beside an escaped colon": ('"spec": {"clusterIP": "a", "clusterIP": "b", "x": "\\u003a"}', "spec.clusterIP"),
    "beside another one": ('"spec": {"clusterIP": "a", "clusterIP": "b", "x": "\\u003A"}', "spec.clusterIP"),
}


@pytest.mark.parametrize(("members", "field"), TWICE.values(), ids=TWICE.keys())
def test_a_key_that_stands_twice_in_json(members: str, field: str) -> None:
    """Decoders take the last one without a word."""
    head = '{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "%s"}, '
    named = head.replace('"metadata": {"name": "%s"}, ', "") if "metadata" in members else head % "web"
    good = head % "good" + '"spec": {}}'
    decoded = decode(f'{{"kind": "List", "items": [{named}{members}}}, {good}]}}'.encode(), "a.json")
    (problem,) = problems(decoded)
    assert (problem.code, problem.field, problem.fix) == ("LB1002", field, "remove one of the two")
    assert "stands twice in this mapping" in problem.what
    assert (problem.origin.item, problem.origin.object) == ("items[0]", "Service default/web")
    assert [rejected.key for rejected in decoded.parts().rejected] == [Key("Service", "default", "web")]
    assert [stored.object.metadata.name for stored in decoded.parts().stored] == ["good"]


def test_a_key_that_stands_twice_in_a_native_json_file() -> None:
    problem = only_problem('{"apiVersion": "lb/v1", "kind": "Config", "hosts": {"a": [], "a": []}}', "a.json")
    assert (problem.code, problem.field) == ("LB1002", "hosts.a")


@pytest.mark.parametrize("lists", [("a", "b"), ("a b", ""), ("", "a b")])
def test_a_list_whose_items_stand_twice(lists: tuple[str, str]) -> None:
    """Half of the objects may not be there."""
    items = [
        ", ".join(
            f'{{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "{name}"}}}}' for name in names.split()
        )
        for names in lists
    ]
    text = f'{{"apiVersion": "v1",\n"items": [{items[0]}],\n"items": [{items[1]}],\n"kind": "List"}}'
    for file, data in (("a.json", text), ("a.yaml", text.replace("{", "{ # YAML\n", 1))):
        problem = only_problem(data, file)
        assert (problem.code, problem.fix) == ("LB1002", "remove one of the two")
        assert "the key `items` stands twice" in problem.what
        assert problem.origin.line > 1


def test_texts_that_only_look_like_keys_that_stand_twice() -> None:
    looks = r'{"a\\u003ab": "\"x\": 1, \"x\":\u003a 2", "x": "x", "name": "x"}'
    text = f'{{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {{"name": "name"}}, "data": {looks}}}'
    assert problems(decode(text.encode(), "a.json")) == []


def test_a_bad_item_of_a_yaml_list_costs_only_itself() -> None:
    text = "kind: List\napiVersion: v1\nitems:\n"
    for port in ("80", "x", "81"):
        text += f"- apiVersion: v1\n  kind: Service\n  metadata: {{name: s{port}}}\n"
        text += f"  spec:\n    ports:\n    - port: {port}\n"
    decoded = decode(text.encode(), "a.yaml")
    assert [stored.object.metadata.name for stored in decoded.parts().stored] == ["s80", "s81"]
    (problem,) = problems(decoded)
    assert (problem.origin.place, problem.field) == ("a.yaml:15:13", "spec.ports[0].port")


def test_a_bad_item_of_a_json_list_costs_only_itself() -> None:
    content = json.loads(big_export.export_json(10))
    content["items"][6]["spec"]["rules"][0]["http"]["paths"][0]["path"] = 7
    content["items"][8]["metadata"]["annotations"]["a.b/c"] = True
    decoded = decode(json.dumps(content).encode(), "a.json")
    assert len(decoded.parts().stored) == len(content["items"]) - 2
    first, second = problems(decoded)
    assert (first.origin.item, first.field) == ("items[6]", "spec.rules[0].http.paths[0].path")
    assert first.what == "spec.rules[0].http.paths[0].path must be a string, not an integer"
    assert first.origin.object == "Ingress team-000/web-000002"
    assert second.field == "metadata.annotations[a.b/c]"


def test_the_path_of_a_null_in_a_list_of_objects() -> None:
    problem = only_problem(
        '{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[null]}}', "a.json"
    )
    assert problem.field == "spec.ports[0]"


JSON_SYNTAX = {
    "trailing comma": Broken('{\n  "kind": "List",\n}', 3, 1, "trailing comma", ""),
    "single quotes": Broken("{\n  'kind': 1}", 2, 3, "", ""),
    "bare word": Broken('{"a":\n nope}', 2, 3, "invalid character", ""),
    "bad escape": Broken('{"a": "\\q"}', 1, 9, "escape", ""),
    "raw line break in a text": Broken('{"a": "x\ny"}', 1, 9, "invalid character", ""),
    "missing comma": Broken('{"a": 1\n "b": 2}', 2, 2, "expected ','", ""),
    "wide characters before": Broken('{"ä": "日本" x}', 1, 12, "", ""),
    "not UTF-8": Broken(
        b'{"apiVersion": "v1", "kind": "x",\n "items": [], "kind": "ab\xff"}', 2, 26, "0xff is not UTF-8", ""
    ),
    "garbage behind": Broken('{"a": 1}\n\n garbage', 3, 2, "", ""),
}


@pytest.mark.parametrize("broken", JSON_SYNTAX.values(), ids=JSON_SYNTAX.keys())
def test_json_syntax_errors(broken: Broken) -> None:
    text = broken.text if isinstance(broken.text, bytes) else broken.text.encode()
    found = [one for one in problems(decode(text, "a.json")) if one.code == "LB1002"]
    assert len(found) == 1
    assert (found[0].origin.line, found[0].origin.column) == (broken.line, broken.column)
    assert broken.what in found[0].what


def test_a_syntax_error_in_an_indented_list_costs_only_its_items() -> None:
    text = big_export.export_json(40).decode()
    lines = text.split("\n")
    hosts = [number for number, line in enumerate(lines) if '"host":' in line]
    for number in (hosts[3], hosts[20]):
        lines[number] = lines[number].replace('"host"', "host")
    decoded = decode("\n".join(lines).encode(), "a.json")
    whole = decode(text.encode(), "a.json")
    missing = {stored.object.metadata.name for stored in whole.parts().stored} - {
        stored.object.metadata.name for stored in decoded.parts().stored
    }
    assert missing == {"web-000003", "web-000020"}
    assert [problem.origin.line for problem in decoded.errors] == [hosts[3] + 1, hosts[20] + 1]
    assert all(problem.code == "LB1002" for problem in decoded.errors)
    assert "host" in decoded.errors[0].what


def test_a_syntax_error_in_a_compact_list_keeps_what_stands_before_it() -> None:
    data = big_export.export_json(20, indent=None)
    at = data.index(b'"host": "web-000010.')
    decoded = decode(data[:at] + b"host" + data[at + 6 :], "a.json")
    assert len(decoded.parts().stored) == 4 + 10
    (problem,) = decoded.errors
    assert (problem.origin.line, problem.origin.column) == (1, at + 1)


def test_braces_in_yaml_files() -> None:
    problem = only_problem("{a: b, c: [}", "a.yaml")
    assert (problem.code, problem.origin.column) == ("LB1002", 12)
    problem = only_problem('{"a": "b" "c": 1}', "a.yaml")
    assert problem.what.startswith("expected ','")
    mixed = decode(
        b'{"apiVersion": "v1", "kind": "Foo"}\n---\na: b: c\n---\n{"apiVersion": "v1", "kind": "Bar"}\n', "a.yaml"
    )
    assert [*mixed.flat()] == ["Foo", "Bar"]
    assert [problem.origin.line for problem in mixed.errors] == [3]


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_excerpts_never_show_secrets(suffix: str) -> None:
    if suffix == "json":
        text = '{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a"},"data":{"key": "hunter2"x}}'
    else:
        text = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\nstringData:\n  key: hunter2: x\n"
    problem = only_problem(text, f"a.{suffix}")
    assert problem.code == "LB1002"
    assert "hunter2" not in str(problem)


def test_billion_laughs_cost_no_more_than_their_length() -> None:
    text = "a: &a [x,x,x,x,x,x,x,x,x]\n"
    for name, below in zip("bcdefghi", "abcdefgh", strict=True):
        text += f"{name}: &{name} [" + ",".join([f"*{below}"] * 9) + "]\n"
    problem = only_problem(service("spec:\n") + "  " + text.replace("\n", "\n  ").rstrip() + "\n")
    assert "aliases repeat too much" in problem.what
    lists = "items: &a [{apiVersion: v1, kind: Foo}]\nkind: List\napiVersion: v1\n"
    assert not problems(decode(lists.encode(), "a.yaml"))
    nested = "x0: &x0 {kind: List, items: [{a: b}]}\n"
    nested += "".join(f"x{n}: &x{n} {{kind: List, items: [{', '.join([f'*x{n - 1}'] * 200)}]}}\n" for n in range(1, 4))
    found = problems(decode((nested + "kind: List\nitems: [*x3, *x3, *x3, *x3]\n").encode(), "a.yaml"))
    assert "aliases repeat too much" in found[0].what


def test_aliases_and_merge_keys_within_reason() -> None:
    text = """
apiVersion: v1
kind: Service
metadata: {name: &name web, labels: &labels {a: b}}
base: &base {clusterIP: 10.0.0.1, type: NodePort}
spec:
  <<: *base
  clusterIP: 10.0.0.2
  selector: *labels
  externalName: *name
"""
    (stored,) = decode(text.encode(), "a.yaml").parts().stored
    spec = stored.object.spec  # type: ignore[attr-defined]
    assert (spec.cluster_ip, spec.type, spec.selector, spec.external_name) == (
        "10.0.0.2",
        "NodePort",
        {"a": "b"},
        "web",
    )


def test_json_nested_too_deeply() -> None:
    assert only_problem('{"a":' * 100_000, "a.json").code == "LB1002"
    deep = '{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"x":' + "[" * 5000 + "]" * 5000 + "}"
    assert only_problem(deep, "a.json").code in ("LB1002", "LB1003")
