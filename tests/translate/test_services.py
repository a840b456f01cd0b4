"""What no file can hold (Resolutions), and that translation depends on what its input says it does."""

from __future__ import annotations

import pytest

from lb.objects.meta import ObjectMeta
from lb.objects.view import Resolution
from lb.translate.translation import Options, translate
from tests.translate.cluster import ask, backend, codes, ingress, read_store, translate_text
from tests.translate.objects import stored

EXTERNAL = """---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {type: ExternalName, externalName: api.example.net, ports: [{name: https, port: 443, targetPort: 8443}]}
"""
H2C = "port: 80, appProtocol: kubernetes.io/h2c"


def test_the_addresses_of_an_external_name_are_its_endpoints() -> None:
    store = read_store(EXTERNAL + ingress("web", ("h", "Prefix", "/", "api:https")))
    translation = translate(store, Options(), store.take_changes(), None)
    assert translation.config.upstreams["shop/api:443"].resolve == "api.example.net"
    assert ask(translation.config, "h/") == "503 external name api.example.net is not resolved yet"

    addresses = ("198.51.100.1", "2001:db8::1", "198.51.100.1")
    store.put(stored(Resolution(ObjectMeta("api.example.net"), addresses)))
    translation = translate(store, Options(), store.take_changes(), translation)
    upstream = translation.config.upstreams["shop/api:443"]
    assert [one.key for one in upstream.endpoints] == ["198.51.100.1:8443", "[2001:db8::1]:8443"]
    assert upstream.unavailable == ""

    store.put(stored(Resolution(ObjectMeta("api.example.net"), (), "no such name")))
    translation = translate(store, Options(), store.take_changes(), translation)
    assert ask(translation.config, "h/") == "503 name api.example.net cannot be resolved: no such name"
    assert codes(translation.problems, "LB2001") == ["LB4005 Service shop/api spec.externalName"]


def test_a_native_upstream_that_is_resolved_keeps_what_it_lists_until_then() -> None:
    native = """---
apiVersion: lb/v1
kind: Config
listeners: {http: {port: 80, host_set: ingress}}
hosts: {ingress: {h: [{forward: api}]}}
upstreams: {api: {resolve: api.example.net, endpoints: [10.0.0.1:8443]}}
"""
    store = read_store(native)
    translation = translate(store, Options(), store.take_changes(), None)
    assert [one.key for one in translation.config.upstreams["api"].endpoints] == ["10.0.0.1:8443"]
    store.put(stored(Resolution(ObjectMeta("api.example.net"), ("198.51.100.1",))))
    translation = translate(store, Options(), store.take_changes(), translation)
    assert [one.key for one in translation.config.upstreams["api"].endpoints] == ["198.51.100.1:8443"]


def test_a_service_that_nothing_refers_to_makes_no_upstream() -> None:
    assert not translate_text(backend("web", "10.0.0.1")).config.upstreams


def test_a_slice_that_moves_to_another_service_changes_both() -> None:
    rules = ingress("web", ("h", "Prefix", "/one", "one"), ("h", "Prefix", "/two", "two"))
    text = rules + backend("one", "10.0.0.1") + backend("two")
    store = read_store(text)
    translation = translate(store, Options(), store.take_changes(), None)
    assert (ask(translation.config, "h/one"), ask(translation.config, "h/two")[:3]) == ("shop/one:80", "503")
    moved = text.replace("service-name: one", "service-name: two")
    store.replace_file("test.yaml", list(read_store(moved).objects_of("test.yaml")))
    translation = translate(store, Options(), store.take_changes(), translation)
    assert (ask(translation.config, "h/one")[:3], ask(translation.config, "h/two")) == ("503", "shop/two:80")


@pytest.mark.parametrize(
    ("annotations", "port"),
    [
        ("lb/backend-protocol: http2, lb/proxy-protocol: v2", "port: 80"),
        ("lb/proxy-protocol: v2", H2C),
        ('lb/transparent: "true"', H2C),
    ],
)
def test_http2_gives_way_where_connections_are_for_one_client(annotations: str, port: str) -> None:
    service = f"""---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop, annotations: {{{annotations}}}}}
spec: {{ports: [{{{port}}}]}}
"""
    translation = translate_text(ingress("web", ("h", "Prefix", "/", "web")) + service)
    upstream = translation.config.upstreams["shop/web:80"]
    assert (upstream.protocol, upstream.proxy_protocol) == ("http1", "v2" if "proxy" in annotations else "none")
    assert upstream.transparent == ("transparent" in annotations)
    assert [one.code for one in translation.problems].count("LB5013") == 1


def test_a_native_listener_may_lead_to_a_udp_port() -> None:
    native = """---
apiVersion: lb/v1
kind: Config
listeners:
  dns: {port: 53, protocol: udp, datagram: {forward: shop/dns:53/udp}}
  dns-tcp: {port: 53, protocol: tcp, stream: {forward: shop/dns:53}}
  gone: {port: 54, protocol: udp, datagram: {forward: shop/dns:54/udp}}
"""
    service = """---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: shop}
spec: {ports: [{name: a, port: 53, protocol: UDP, targetPort: 5353}, {name: b, port: 53}, {name: c, port: 54}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-1, namespace: shop, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{name: a, port: 5353, protocol: UDP}, {name: b, port: 53}]
endpoints: [{addresses: [10.0.0.1]}]
"""
    translation = translate_text(native + service)
    targets = {name: [one.key for one in found.endpoints] for name, found in translation.config.upstreams.items()}
    assert targets == {"shop/dns:53": ["10.0.0.1:53"], "shop/dns:53/udp": ["10.0.0.1:5353"], "shop/dns:54/udp": []}
    (problem,) = [one for one in translation.problems if one.code == "LB4002"]
    assert problem.what == "Service shop/dns has no UDP port 54"


@pytest.mark.parametrize("protocol", ["https", "kubernetes.io/h2c"])
def test_what_endpoints_speak_matters_to_requests_only(protocol: str) -> None:
    """Bytes that are carried speak for themselves, also while an Ingress leads to the same port."""
    service = f"""---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop, annotations: {{lb/proxy-protocol: v1}}}}
spec: {{type: LoadBalancer, loadBalancerClass: lb/lb, ports: [{{port: 80, appProtocol: {protocol}}}]}}
"""
    about_protocols = {"LB4009", "LB5013"}
    alone = translate_text(service)
    assert not about_protocols & {one.code for one in alone.problems}
    assert (alone.config.upstreams["shop/web:80"].protocol, alone.config.upstreams["shop/web:80"].tls) == (
        "http1",
        None,
    )
    both = translate_text(service + ingress("web", ("h", "Prefix", "/", "web")))
    assert about_protocols & {one.code for one in both.problems}
    assert both.config.upstreams["shop/web:80"].tls is None
