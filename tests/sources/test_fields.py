"""Misspelt fields are told of; legal ones that lb has no use for, and those of later versions, are not."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from lb.objects.core import Service
from lb.objects.decode import Decoded, Doubted, decode
from lb.objects.fields import MOST_STRAYS, NARROWING, SHAPES, Shape, find_strays, nearest
from lb.objects.kinds import KINDS
from lb.sources.files import FileSource
from lb.sources.store import Store
from tests.sources import big_export
from tests.sources.reading import only_problem, problems

Json = dict[str, typing.Any]


def service(**spec: object) -> Json:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "shop"}, "spec": spec}


def balancer(**spec: object) -> Json:
    return service(type="LoadBalancer", **spec)


def export(*items: Json) -> bytes:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=4).encode()


def read(item: Json, suffix: str) -> Decoded:
    text = json.dumps(item) if suffix == "json" else yaml.safe_dump(item, sort_keys=False)
    return decode(text.encode(), f"a.{suffix}")


# The tables


def test_the_tables_have_all_kinds_that_are_read() -> None:
    assert SHAPES.keys() == {kind for _, kind in KINDS}


@pytest.mark.parametrize(("api_version", "kind"), KINDS)
def test_the_tables_have_all_fields_that_are_used(api_version: str, kind: str) -> None:
    missing = list(_missing(KINDS[api_version, kind].type, SHAPES[kind], kind))
    assert missing == []


def _missing(struct: type, shape: Shape, path: str) -> Iterator[str]:
    hints = typing.get_type_hints(struct)
    for field in msgspec.structs.fields(struct):
        here = f"{path}.{field.encode_name}"
        if field.encode_name not in shape:
            yield here
            continue
        below = shape[field.encode_name]
        for inner in _structs(hints[field.name]):
            if below is not None:
                yield from _missing(inner, below[0] if isinstance(below, list) else below, here)


def _structs(hint: object) -> Iterator[type]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield hint
    for below in typing.get_args(hint):
        yield from _structs(below)


@pytest.mark.parametrize("kind", NARROWING)
def test_every_narrowing_field_is_a_field(kind: str) -> None:
    for path in NARROWING[kind]:
        below: object = SHAPES[kind]
        for part in path.split("."):
            shape = below[0] if isinstance(below, list) else below
            assert isinstance(shape, dict)
            below = shape[part.removesuffix("[]")]


@pytest.mark.parametrize(
    ("name", "legal", "meant"),
    [
        ("loadBalancerSourceRange", ("loadBalancerSourceRanges", "loadBalancerIP"), "loadBalancerSourceRanges"),
        ("load_balancer_ip", ("loadBalancerIP",), "loadBalancerIP"),
        ("sourceRanges", ("loadBalancerSourceRanges",), "loadBalancerSourceRanges"),
        ("ingressClass", ("ingressClassName",), "ingressClassName"),
        ("tsl", ("tls", "rules"), "tls"),
        ("clusterIPz", ("clusterIP", "clusterIPs"), "clusterIP"),
        ("trafficDistribution", ("externalTrafficPolicy", "ports"), ""),
        ("id", ("ip",), ""),
        ("x-common", ("spec", "status", "kind"), ""),
        ("loadBalancerIP" * 10_000, ("loadBalancerIP",), ""),
    ],
)
def test_what_is_near(name: str, legal: tuple[str, ...], meant: str) -> None:
    assert nearest(name, legal) == meant


# No false alarms


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_an_export_of_everything_that_is_legal_is_silent(suffix: str) -> None:
    items = yaml.safe_load((Path(__file__).parent / "real_export.yaml").read_text())
    whole = {"apiVersion": "v1", "kind": "List", "items": items}
    text = json.dumps(whole) if suffix == "json" else yaml.safe_dump(whole)
    decoded = decode(text.encode(), f"a.{suffix}")
    assert problems(decoded) == []
    assert {type(one.object).__name__ for one in decoded.parts().stored} == SHAPES.keys()


def test_a_big_export_is_silent() -> None:
    assert problems(decode(big_export.export_json(200), "a.json")) == []


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize(
    "item",
    [
        service(fieldOfALaterVersion=1),
        service(loadBalancerSourceRange=None),
        service(selector={"typ": "a"}, ports=[{"port": 80}]),
        service(clusterIP="10.0.0.1", clusterIPz=["10.0.0.1"]),
        balancer(loadBalancerSourceRanges=["10.0.0.0/8"], loadBalancerSourceRange=["10.0.0.0/8"]),
        {**service(), "status": {"loadBalancers": {}, "condition": []}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"dta": "x"}},
    ],
)
def test_what_is_left_alone(item: Json, suffix: str) -> None:
    assert problems(read(item, suffix)) == []


def test_an_unknown_field_that_is_no_utf8_costs_nothing() -> None:
    text = b'{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "new": "\xff"}'
    assert problems(decode(text, "a.json")) == []


# Alarms


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize(
    ("item", "code", "field"),
    [
        (service(ports=[{"port": 80}, {"port": 81, "nodeport": 30_000}]), "LB1009", "spec.ports[1].nodeport"),
        (service(loadBalancerSourceRange=["10.0.0.0/8"]), "LB1009", "spec.loadBalancerSourceRange"),
        (balancer(loadBalancerSourceRange=["10.0.0.0/8"]), "LB1010", "spec.loadBalancerSourceRange"),
        (balancer(loadBalancerIp="192.0.2.1"), "LB1010", "spec.loadBalancerIp"),
        ({**balancer(), "loadBalancerSourceRanges": ["10.0.0.0/8"]}, "LB1010", "loadBalancerSourceRanges"),
        ({**balancer(), "annotations": {"lb/allow": "10.0.0.0/8"}}, "LB1010", "annotations"),
        (balancer(ports=[{"port": 1, "loadBalancerIP": "::1"}]), "LB1010", "spec.ports[0].loadBalancerIP"),
        ({**service(), "spce": {}, "spec": None}, "LB1009", "spce"),
    ],
)
def test_what_is_told(item: Json, code: str, field: str, suffix: str) -> None:
    decoded = read(item, suffix)
    (problem,) = problems(decoded)
    assert (problem.code, problem.field, problem.origin.object) == (code, field, "Service shop/db")
    assert len(decoded.parts().stored) == (code == "LB1009")


def ingress(*rules: Json) -> Json:
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "db", "namespace": "shop"}}
    return {**kind, "spec": {"rules": list(rules)}}


PATHS = [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}]
GOOD = {"host": "a.test", "http": {"paths": PATHS}}
NO_PATH = {"pathType": "ImplementationSpecific", "backend": PATHS[0]["backend"]}


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize(
    ("item", "field", "meant"),
    [
        (ingress(GOOD, {"hostname": "b.test", "http": {"paths": PATHS}}), "spec.rules[1].hostname", "host"),
        (ingress({"Hostnames": ["b.test"], "http": {"paths": PATHS}}), "spec.rules[0].Hostnames", "host"),
        (ingress(GOOD, {"http": {"host": "b.test", "paths": PATHS}}), "spec.rules[1].http.host", "spec.rules[].host"),
        (
            ingress({"host": "a.test", "http": {"paths": [{**NO_PATH, "pathPrefix": "/a"}]}}),
            "spec.rules[0].http.paths[0].pathPrefix",
            "path",
        ),
        (
            ingress({"host": "a.test", "http": {"paths": [{**NO_PATH, "backend": {"path": "/a"}}]}}),
            "spec.rules[0].http.paths[0].backend.path",
            "spec.rules[].http.paths[].path",
        ),
        (balancer(sourceRange=["10.0.0.0/8"]), "spec.sourceRange", "loadBalancerSourceRanges"),
    ],
)
def test_other_names_and_other_places_are_told(item: Json, field: str, meant: str, suffix: str) -> None:
    """What other APIs call a field, and one that stands too deep, leave it out as a slip of the hand does."""
    decoded = read(item, suffix)
    (problem,) = problems(decoded)
    assert (problem.code, problem.field) == ("LB1010", field)
    assert f"did you mean {meant}?" in problem.what
    assert not decoded.parts().stored


@pytest.mark.parametrize(
    "item",
    [
        ingress({**GOOD, "hostname": "b.test"}),
        ingress({"http": {"paths": PATHS}}, {"host": "a.test", "http": {"host": "a.test", "paths": PATHS}}),
        ingress({"host": "a.test", "http": {"paths": PATHS, "domains": []}}),
    ],
)
def test_what_is_said_where_it_belongs_may_be_said_again(item: Json) -> None:
    assert problems(read(item, "json")) == []


def test_the_line_is_that_of_the_name() -> None:
    text = """
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  type: LoadBalancer
  loadBalancerSourceRange:

  - 10.0.0.0/8
"""
    problem = only_problem(text)
    assert (problem.origin.line, problem.origin.column) == (7, 3)
    assert "did you mean loadBalancerSourceRanges?" in problem.what
    assert problem.why == "the Service would be open to everybody; it is left out"


def test_of_one_object_only_so_much_is_told() -> None:
    ports = [{"port": 80, "targetport": 80} for _ in range(100)]
    decoded = decode(export(service(ports=ports)), "a.json")
    assert len(problems(decoded)) == MOST_STRAYS


def test_what_is_dangerous_goes_before_what_is_first() -> None:
    content = {"spec": {"type": "LoadBalancer", "ports": [{"nodeport": 1}] * 20, "loadBalancerIp": "::1"}}
    assert find_strays("Service", content)[0].path == ("spec", "loadBalancerIp")


# From one reading to the next


def test_a_doubt_moves_with_its_object_and_goes_when_it_is_mended() -> None:
    doubtful, other = service(ports=[{"port": 80, "nodeport": 1}]), service(ports=[{"port": 81}])
    other["metadata"] = {"name": "other"}
    first = decode(export(doubtful, other), "a.json")
    again = decode(export(doubtful, other), "a.json", first)
    assert problems(again) == problems(first) != []
    moved = decode(export(other, doubtful), "a.json", again)
    (problem,) = problems(moved)
    assert problem.origin.item == "items[1]"
    mended = decode(export(other, service(ports=[{"port": 80}])), "a.json", moved)
    assert problems(mended) == []
    assert mended.parts().stored[1].object is moved.parts().stored[1].object
    back = decode(export(other, doubtful), "a.json", mended)
    assert len(problems(back)) == 1
    assert back.parts().stored[1].object is mended.parts().stored[1].object


def test_the_line_of_a_doubt_follows_its_document() -> None:
    text = "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec:\n  portz: []\n"
    first = decode(text.encode(), "a.yaml")
    second = decode(b"# A remark.\n---\n" + text.encode(), "a.yaml", first)
    assert [one.origin.line for one in (*problems(first), *problems(second))] == [5, 7]
    (stored,) = second.parts().stored
    assert isinstance(stored, Doubted)
    assert stored.object is first.parts().stored[0].object


def test_the_last_good_version_stays_when_what_holds_access_back_is_misspelt(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    store = Store()
    source = FileSource([tmp_path], store)
    file.write_bytes(export(balancer(loadBalancerSourceRanges=["10.0.0.0/8"])))
    source.read()
    file.write_bytes(export(balancer(loadBalancerSourceRange=["10.0.0.0/8", "192.0.2.0/24"])))
    source.read(force=True)
    (problem,) = store.problems()
    assert problem.code == "LB1010"
    assert problem.why == "the Service would be open to everybody; its last good version stays in use"
    stored = store.get("Service", "shop", "db")
    assert stored is not None
    assert isinstance(stored.object, Service)
    assert stored.object.spec.load_balancer_source_ranges == ("10.0.0.0/8",)


def test_a_warning_is_told_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(export(service(portz=[])))
    store = Store()
    FileSource([tmp_path], store).read()
    assert [one.code for one in store.problems()] == ["LB1009"]
    assert store.counts() == {"Service": 1}
