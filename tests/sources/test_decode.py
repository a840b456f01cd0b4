"""Whole files of every form become the right objects."""

from __future__ import annotations

import json

import msgspec
import pytest
import yaml

from lb.objects.core import Endpoints, Node, Secret, Service
from lb.objects.decode import LAST_APPLIED, Rejected, decode
from lb.objects.discovery import EndpointSlice
from lb.objects.meta import Key, Object
from lb.objects.networking import Ingress, IngressClass
from lb.objects.view import NativeConfig
from tests.sources import big_export
from tests.sources.reading import objects, only_problem, problems


def only(data: str | bytes, file: str = "a.yaml") -> Object:
    found = objects(decode(data.encode() if isinstance(data, str) else data, file))
    assert len(found) == 1
    return found[0]


def service(**spec: object) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": spec}


def test_json_and_yaml_exports_give_the_same_objects() -> None:
    from_json = objects(decode(big_export.export_json(25), "a.json"))
    from_yaml = objects(decode(big_export.export_yaml(25), "a.yaml"))
    compact = objects(decode(big_export.export_json(25, indent=None), "a.json"))
    assert from_json == from_yaml == compact
    assert len(from_json) == 25 + 2 * 2 + 4
    kinds = {type(one) for one in from_json}
    assert {Ingress, IngressClass, Service, EndpointSlice} < kinds


def test_what_an_ingress_keeps() -> None:
    ingress = objects(decode(big_export.export_json(1), "a.json"))[4]
    assert isinstance(ingress, Ingress)
    assert ingress.metadata.name == "web-000000"
    assert ingress.metadata.namespace == "team-000"
    assert ingress.metadata.annotations == {"nginx.ingress.kubernetes.io/proxy-body-size": "8m"}
    assert ingress.metadata.creation_timestamp is not None
    rule = ingress.spec.rules[0]
    assert rule.host == "web-000000.apps.example.com"
    assert rule.http is not None
    assert [(path.path, path.path_type) for path in rule.http.paths] == [("/", "Prefix"), ("/api/v0", "Exact")]


def test_unknown_kinds_and_fields_are_counted_and_ignored() -> None:
    text = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: other}
---
apiVersion: v1
kind: Service
metadata: {name: web, uid: 1, ownerReferences: [{a: b}], managedFields: [{x: 1}]}
spec: {ports: [{port: 80, unheardOf: true}], new: {field: 1}}
status: {loadBalancer: {}}
"""
    decoded = decode(text.encode(), "a.yaml")
    assert decoded.parts().unknown == {"Deployment": 2, "Service (serving.knative.dev/v1)": 1}
    assert [type(one) for one in objects(decoded)] == [Service]


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_any_list_kind_and_lists_in_lists(suffix: str) -> None:
    inner = {"apiVersion": "v1", "kind": "ServiceList", "items": [service(clusterIP="10.0.0.1")]}
    outer = {"apiVersion": "v1", "kind": "List", "items": [service(clusterIP="10.0.0.2"), inner]}
    text = json.dumps(outer) if suffix == "json" else yaml.safe_dump(outer)
    found = decode(text.encode(), f"a.{suffix}").parts().stored
    assert [stored.object.spec.cluster_ip for stored in found] == ["10.0.0.2", "10.0.0.1"]  # type: ignore[attr-defined]
    if suffix == "json":
        assert [stored.origin.item for stored in found] == ["items[0]", "items[1].items[0]"]


def test_a_bare_json_array_and_a_stream_of_json_documents() -> None:
    one, two = json.dumps(service(clusterIP="a")), json.dumps(service(clusterIP="b"))
    assert len(objects(decode(f"[{one},{two}]".encode(), "a.json"))) == 2
    stream = decode(f"{one}\n{two} {one}".encode(), "a.json")
    assert [one.spec.cluster_ip for one in objects(stream)] == ["a", "b", "a"]  # type: ignore[attr-defined]
    watched = '{"apiVersion":"v1","kind":"List","items":[' + one + "]}\n" + two
    assert len(objects(decode(watched.encode(), "a.json"))) == 2


def test_json_documents_among_yaml_documents() -> None:
    text = json.dumps(service(clusterIP="a")) + "\n---\n" + yaml.safe_dump(service(clusterIP="b"))
    assert len(objects(decode(text.encode(), "mixed.yaml"))) == 2


def test_the_order_of_keys_does_not_matter() -> None:
    text = '{"metadata":{"name":"x"},"spec":{"clusterIP":"1"},"kind":"Service","apiVersion":"v1"}'
    found = only(text, "a.json")
    assert isinstance(found, Service)
    assert found.spec.cluster_ip == "1"


def test_a_missing_namespace_is_default_and_cluster_wide_kinds_have_none() -> None:
    assert only("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n").metadata.namespace == "default"
    assert only("apiVersion: v1\nkind: Node\nmetadata: {name: a, namespace: b}\n").metadata.namespace == ""


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_null_means_missing(suffix: str) -> None:
    content = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "a",
            "labels": {"kubernetes.io/service-name": "web", "x": None},
            "creationTimestamp": None,
        },
        "addressType": "IPv4",
        "endpoints": None,
        "ports": None,
    }
    text = json.dumps(content) if suffix == "json" else yaml.safe_dump(content)
    found = only(text, f"a.{suffix}")
    assert isinstance(found, EndpointSlice)
    assert found.endpoints == ()
    assert found.ports == ()
    # In a map of texts a null is an empty text, as encoding/json makes it.
    assert found.metadata.labels == {"kubernetes.io/service-name": "web", "x": ""}
    assert found.metadata.creation_timestamp is None


def test_target_port_may_be_a_number_or_a_name() -> None:
    found = only(json.dumps(service(ports=[{"port": 80, "targetPort": 8080}, {"port": 81, "targetPort": "http"}])))
    assert isinstance(found, Service)
    assert [port.target_port for port in found.spec.ports] == [8080, "http"]


def test_legacy_endpoints() -> None:
    found = only(
        """
apiVersion: v1
kind: Endpoints
metadata: {name: web, annotations: {control-plane.alpha.kubernetes.io/leader: "{}"}}
subsets:
- addresses: [{ip: 10.0.0.1, targetRef: {kind: Pod, name: web-1}}]
  notReadyAddresses: [{ip: 10.0.0.2}]
  ports: [{port: 8080, name: http}]
"""
    )
    assert isinstance(found, Endpoints)
    assert [address.ip for address in found.subsets[0].addresses] == ["10.0.0.1"]
    assert found.metadata.annotations is None, "a leader election's heartbeat must not count as a change"


def test_a_node_keeps_labels_conditions_addresses_and_taints() -> None:
    found = only(
        """
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {zone: a}}
spec: {taints: [{key: x, effect: NoSchedule}], unschedulable: true}
status:
  addresses: [{type: InternalIP, address: 10.1.0.1}]
  conditions: [{type: Ready, status: "True", lastHeartbeatTime: "2025-01-01T00:00:00Z"}]
"""
    )
    assert isinstance(found, Node)
    assert found.metadata.labels == {"zone": "a"}
    assert found.spec.unschedulable
    assert found.status.conditions[0].status == "True"


def test_secrets_that_no_route_uses_are_emptied_and_none_are_printed() -> None:
    text = """
apiVersion: v1
kind: Secret
type: {type}
metadata: {{name: s}}
data: {{key: c2VjcmV0}}
"""
    used, unused = (only(text.format(type=kind)) for kind in ("kubernetes.io/tls", "helm.sh/release.v1"))
    assert isinstance(used, Secret)
    assert isinstance(unused, Secret)
    assert used.data == {"key": "c2VjcmV0"}
    assert unused.data is None
    assert "c2VjcmV0" not in repr(decode(text.format(type="Opaque").encode(), "a.yaml"))


def test_the_copy_of_the_object_in_its_annotations_is_dropped() -> None:
    metadata = f"name: a, annotations: {{{LAST_APPLIED}: '{{}}'}}"
    assert only(f"apiVersion: v1\nkind: Service\nmetadata: {{{metadata}}}\n").metadata.annotations is None


def test_native_files_keep_their_content_and_lines() -> None:
    text = "# mine\napiVersion: lb/v1\nkind: Config\nlisteners:\n  http: {port: 80, tls: null}\n"
    text += "upstreams:\n  web:\n    endpoints:\n    - a\n"
    found = only(text, "lb.yaml")
    assert isinstance(found, NativeConfig)
    assert found.content["listeners"] == {"http": {"port": 80, "tls": None}}
    assert found.lines["listeners.http"] == 5
    assert found.lines["upstreams.web.endpoints[0]"] == 9
    assert found.metadata.name == "lb.yaml"
    stored = decode(("apiVersion: v1\nkind: Foo\n---\n" + text + "---\n" + text).encode(), "lb.yaml").parts().stored
    assert [one.object.metadata.name for one in stored] == ["lb.yaml", "lb.yaml#2"]
    assert [one.origin.line for one in stored] == [5, 15]
    in_json = only('{"apiVersion":"lb/v1","kind":"Config","listeners":{"http":{"port":80}}}', "lb.json")
    assert isinstance(in_json, NativeConfig)
    assert in_json.content["listeners"] == {"http": {"port": 80}}


@pytest.mark.parametrize(
    ("api_version", "kind", "successor"),
    [
        ("extensions/v1beta1", "Ingress", "networking.k8s.io/v1"),
        ("networking.k8s.io/v1beta1", "Ingress", "networking.k8s.io/v1"),
        ("networking.k8s.io/v1beta1", "IngressClass", "networking.k8s.io/v1"),
        ("discovery.k8s.io/v1beta1", "EndpointSlice", "discovery.k8s.io/v1"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_superseded_forms_say_how_to_convert(api_version: str, kind: str, successor: str, suffix: str) -> None:
    content = {"apiVersion": api_version, "kind": kind, "metadata": {"name": "old", "namespace": "shop"}}
    text = json.dumps(content) if suffix == "json" else yaml.safe_dump(content)
    problem = only_problem(text, f"a.{suffix}")
    assert problem.code == "LB1007"
    assert (problem.origin.kind, problem.origin.name) == (kind, "old")
    assert successor in problem.fix


def test_places() -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata:\n    name: a\n"
    text += "- apiVersion: v1\n  kind: Service\n  metadata: {name: b}\n"
    stored = decode(text.encode(), "a.yaml").parts().stored
    assert [(one.origin.line, one.origin.column) for one in stored] == [(4, 3), (8, 3)]
    stored = decode(big_export.export_json(3), "a.json").parts().stored
    assert stored[5].origin.place == "a.json items[5]"
    assert stored[5].origin.object == "Ingress team-000/web-000001"


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# nothing\n", "---\n---\n", "%YAML 1.1\n---\n", "...\n", "--- # x\n...\n---\n"]
)
def test_nothing_is_no_problem(text: str) -> None:
    decoded = decode(text.encode(), "a.yaml")
    assert not list(decoded.flat())
    assert not problems(decoded)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks(newline: str, mark: bytes) -> None:
    text = "---\n".join(f"apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n" for name in "ab")
    decoded = decode(mark + text.replace("\n", newline).encode(), "a.yaml")
    assert [one.metadata.name for one in objects(decoded)] == ["a", "b"]
    assert [stored.origin.line for stored in decoded.parts().stored] == [1, 6]
    one = json.dumps(service(clusterIP="1"), indent=2).replace("\n", newline).encode()
    assert isinstance(only(mark + one, "a.json"), Service)


def test_the_same_text_keeps_its_objects() -> None:
    data = big_export.export_json(30)
    first = decode(data, "a.json")
    again = decode(data, "a.json", first)
    assert all(new is old for new, old in zip(again.entries, first.entries, strict=True))
    changed = decode(data.replace(b"web-000007.apps", b"new-000007.apps"), "a.json", first)
    different = [index for index, entry in enumerate(changed.entries) if entry is not first.entries[index]]
    assert different == [11]
    # What lb does not keep may change without the object changing.
    touched = decode(data.replace(b'"resourceVersion": "', b'"resourceVersion": "9'), "a.json", first)
    assert all(new is old for new, old in zip(touched.entries, first.entries, strict=True))


def test_moved_items_keep_their_objects_and_tell_their_new_place() -> None:
    content = json.loads(big_export.export_json(10))
    first = decode(json.dumps(content).encode(), "a.json")
    del content["items"][4]
    second = decode(json.dumps(content).encode(), "a.json", first)
    assert len(second.entries) == len(first.entries) - 1
    for index, stored in enumerate(second.parts().stored):
        assert stored.origin.item == f"items[{index}]"
        assert stored.object is first.parts().stored[index + (index >= 4)].object


def test_moved_yaml_documents_keep_their_objects_and_tell_their_new_line() -> None:
    documents = [f"apiVersion: v1\nkind: Service\nmetadata:\n  name: s{number}\n" for number in range(4)]
    first = decode("---\n".join(documents).encode(), "a.yaml")
    documents[0] += "  labels: {a: b}\n  annotations: {c: d}\n"
    second = decode("---\n".join(documents).encode(), "a.yaml", first)
    assert second.parts().stored[3].object is first.parts().stored[3].object
    assert [one.origin.line for one in second.parts().stored] == [1, 8, 13, 18]


def test_a_changed_yaml_list_keeps_the_objects_that_are_equal() -> None:
    data = big_export.export_yaml(5)
    first = decode(data, "a.yaml")
    second = decode(data.replace(b"host: web-000002.apps", b"host: other.apps"), "a.yaml", first)
    pairs = zip(first.parts().stored, second.parts().stored, strict=True)
    assert [before.object is after.object for before, after in pairs].count(False) == 1


def test_a_long_stream_of_documents_is_read_once() -> None:
    one = json.dumps(service(clusterIP="1")).encode() + b"\n"
    decoded = decode(one * 20_000 + b'{"broken": ', "a.json")
    assert len(decoded.parts().stored) == 20_000
    assert decoded.truncated
    assert (decoded.errors[0].origin.line, decoded.errors[0].origin.column) == (20_001, 11)


def test_rejected_items_are_found_again() -> None:
    good = json.dumps(service(clusterIP="1"))
    bad = json.dumps(service(clusterIP=5))
    first = decode(f'{{"kind":"List","items":[{good},{bad}]}}'.encode(), "a.json")
    assert [rejected.key for rejected in first.parts().rejected] == [Key("Service", "shop", "web")]
    second = decode(f'{{"kind":"List","items":[{good},{good},{bad}]}}'.encode(), "a.json", first)
    assert second.parts().rejected[0].problem.origin.item == "items[2]"
    assert isinstance(second.entries[2], Rejected)


def test_structs_are_frozen() -> None:
    found = only(json.dumps(service()))
    assert isinstance(found, Service)
    with pytest.raises(AttributeError):
        found.spec = msgspec.UNSET  # type: ignore[misc,assignment]
