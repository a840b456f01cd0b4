"""Secrets and TLS sections over time: what changes costs only itself, and what turns bad keeps what it had."""

from __future__ import annotations

import base64
import re

import msgspec
import pytest

from lb.model.tls import ClientCertificates, TlsHost
from lb.model.upstream import Upstream
from lb.objects.core import ConfigMap, Secret
from lb.objects.meta import Key, ObjectMeta
from lb.objects.view import Changes, Stored
from lb.problems import Origin
from lb.sources.store import Store
from lb.translate.translation import HOST_SET, TLS_LISTENER, Options, Translation, translate
from tests.harness.certificates import Authority, Pair, make_key, pem
from tests.translate.cluster import read_store

AUTHORITY = Authority()

INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: shop}
spec:
  tls: [{hosts: [web.example.com], secretName: web-tls}]
  rules:
  - host: web.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}]}
  - host: plain.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}]}
"""


def secret(chain: str, key: str, name: str = "web-tls") -> Stored:
    data = {"tls.crt": base64.b64encode(chain.encode()).decode(), "tls.key": base64.b64encode(key.encode()).decode()}
    metadata = ObjectMeta(name=name, namespace="shop")
    found = Secret(metadata=metadata, type="kubernetes.io/tls", data=data)
    return Stored(found, Origin("Secret", "shop", name))


class Cluster:
    """A store and its newest translation."""

    def __init__(self) -> None:
        self.store: Store = read_store(INGRESS)
        self.translation: Translation = translate(self.store, Options(), Changes(everything=True), None)
        self.store.take_changes()

    def put(self, pair: Pair) -> Translation:
        self.store.put(secret(pair.chain, pair.key))
        before = self.translation
        self.translation = translate(self.store, Options(), self.store.take_changes(), before)
        return before

    def codes(self) -> list[str]:
        return [problem.code for problem in self.translation.problems if problem.code.startswith("LB301")]

    def served(self) -> dict[str, TlsHost]:
        tls = self.translation.config.listeners[TLS_LISTENER].tls
        assert tls is not None
        return tls.hosts

    def chain(self) -> str:
        return self.translation.config.certificates["shop/web-tls"].chain


def test_secret_that_comes_later_and_changes() -> None:
    cluster = Cluster()
    assert cluster.codes() == ["LB3010"]
    assert cluster.served() == {"web.example.com": TlsHost()}
    first, second = AUTHORITY.issue("web.example.com"), AUTHORITY.issue("web.example.com")
    before = cluster.put(first)
    assert not cluster.codes()
    assert cluster.served() == {"web.example.com": TlsHost(("shop/web-tls",))}
    assert cluster.chain() == first.chain
    assert cluster.translation.config.hosts["ingress"] is before.config.hosts["ingress"]
    before = cluster.put(second)
    assert cluster.chain() == second.chain
    assert cluster.translation.config.listeners == before.config.listeners
    assert cluster.translation.config.upstreams is before.config.upstreams


def test_secret_that_turns_bad_keeps_its_certificate() -> None:
    good = AUTHORITY.issue("web.example.com")
    cluster = Cluster()
    cluster.put(good)
    for bad in (Pair(good.chain, pem(make_key())), Pair("nothing", good.key), Pair(good.chain, "nothing")):
        cluster.put(bad)
        assert cluster.codes() == ["LB3011"]
        assert cluster.chain() == good.chain
    cluster.put(AUTHORITY.issue("web.example.com"))
    assert not cluster.codes()


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (Pair("", ""), "has no tls.crt"),
        (Pair("x", "y"), "is no PEM"),
        (AUTHORITY.issue("web.example.com", key=None, kind="RSA"), ""),
        (Pair(AUTHORITY.issue("a").chain, pem(make_key(), "secret")), "encrypted"),
        (Pair(AUTHORITY.issue("a").chain, pem(make_key(), "secret", "TraditionalOpenSSL")), "encrypted"),
        (Pair(AUTHORITY.issue("a").chain, pem(make_key())), "does not belong"),
        (Pair(AUTHORITY.issue("a").chain, pem(make_key("RSA"))), "does not belong"),
    ],
)
def test_what_is_wrong_with_a_secret_is_said_without_its_key(pair: Pair, words: str) -> None:
    cluster = Cluster()
    cluster.put(pair)
    told = [problem for problem in cluster.translation.problems if problem.code == "LB3011"]
    if not words:
        assert not told
        return
    assert words in told[0].what
    assert "PRIVATE" not in msgspec.json.encode(told).decode()


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
@pytest.mark.parametrize("kind", ["EC", "RSA"])
def test_forms_of_keys(kind: str, form: str) -> None:
    """PKCS#8, and PKCS#1 or SEC1."""
    key = make_key(kind)
    cluster = Cluster()
    cluster.put(Pair(AUTHORITY.issue("web.example.com", key=key).chain, pem(key, form=form)))
    assert not cluster.codes()


def test_plain_http_is_redirected_for_hosts_with_tls_only() -> None:
    hosts = Cluster().translation.config.hosts["ingress"]
    assert [route.options.https_redirect for route in hosts["web.example.com"].routes] == [308]
    assert [route.options.https_redirect for route in hosts["plain.example.com"].routes] == [None]


def test_key_and_certificate_in_one_value_are_taken_apart() -> None:
    """A chain may be shown."""
    pair = AUTHORITY.issue("web.example.com")
    cluster = Cluster()
    cluster.put(Pair(pair.key + pair.chain, pair.chain + pair.key))
    served = cluster.translation.config.certificates["shop/web-tls"]
    assert (served.chain, served.key) == (pair.chain, pair.key)


def test_keys_are_hidden_in_dumps() -> None:
    pair = AUTHORITY.issue("web.example.com")
    cluster = Cluster()
    cluster.put(pair)
    assert pair.key not in repr(cluster.translation)
    assert "PRIVATE KEY" not in repr(cluster.translation.config)


# Client certificates and TLS to endpoints, over time

ASKING = INGRESS.replace(
    "namespace: shop}", "namespace: shop, annotations: {lb/client-certificate: required, lb/client-ca: clients}}"
)
SERVICE = """
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop, annotations: {lb/backend-tls: "true", lb/backend-ca: configmap/internal}}
spec: {ports: [{port: 80, targetPort: 8443}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-1, namespace: shop, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{port: 8443}]
endpoints: [{addresses: [10.0.0.1]}]
"""


class Guarded(Cluster):
    """A host that asks for certificates, in front of endpoints whose certificates are verified."""

    def __init__(self) -> None:
        self.store = Store()
        written = read_store(ASKING + SERVICE)
        for kind in ("Ingress", "Service", "EndpointSlice"):
            for (namespace, name), one in written.all(kind).items():
                self.store.put(Stored(one.object, Origin(kind, namespace, name)))
        self.translation = translate(self.store, Options(), Changes(everything=True), None)
        self.store.take_changes()

    def change(self, *found: Secret | ConfigMap) -> None:
        for one in found:
            self.store.put(Stored(one, Origin(type(one).__name__, "shop", one.metadata.name)))
        self.translation = translate(self.store, Options(), self.store.take_changes(), self.translation)

    def clients(self, name: str = "web.example.com") -> ClientCertificates:
        return self.served()[name].clients

    def upstream(self) -> Upstream:
        return self.translation.config.upstreams["shop/a:80"]

    def problems(self) -> list[str]:
        return [problem.code for problem in self.translation.problems if problem.code in ("LB3013", "LB3014")]


def authorities(*found: Authority, lists: str = "") -> Secret:
    data = {"ca.crt": "".join(one.pem for one in found) or "nothing", **({"ca.crl": lists} if lists else {})}
    return Secret(metadata=ObjectMeta("clients", "shop"), string_data=data)


def internal(*found: Authority) -> ConfigMap:
    return ConfigMap(ObjectMeta("internal", "shop"), {"ca.crt": "".join(one.pem for one in found) or "nothing"})


def test_nobody_gets_in_before_there_are_authorities_and_the_last_good_ones_stay() -> None:
    cluster = Guarded()
    assert (cluster.clients().mode, cluster.clients().why) == ("nobody", "Secret shop/clients does not exist")
    assert cluster.problems() == ["LB3013"] * 2, "of the Ingress, and of the Service"
    cluster.change(authorities(AUTHORITY))
    assert (cluster.clients().mode, cluster.clients().ca) == ("required", AUTHORITY.pem)
    assert cluster.clients("plain.example.com") == cluster.clients(), "a host that no section names is no way around"
    cluster.change(authorities())
    assert cluster.clients().ca == AUTHORITY.pem
    assert "LB3014" in cluster.problems()
    other = Authority("Other")
    cluster.change(authorities(other, lists=other.revoke()))
    assert (cluster.clients().ca, bool(cluster.clients().crl)) == (other.pem, True)
    assert "LB3014" not in cluster.problems()
    cluster.store.drop(Key("Secret", "shop", "clients"))
    cluster.change()
    assert cluster.clients().mode == "nobody", "what is taken away is no mistake"


def test_endpoints_get_nothing_before_there_are_authorities_and_the_last_good_ones_stay() -> None:
    cluster = Guarded()
    assert (cluster.upstream().endpoints, cluster.upstream().unavailable) == (
        (),
        "ConfigMap shop/internal does not exist",
    )
    cluster.change(internal(AUTHORITY))
    tls = cluster.upstream().tls
    assert tls is not None
    assert (tls.verify, tls.server_name, tls.ca) == (True, "a.shop.svc", AUTHORITY.pem)
    assert len(cluster.upstream().endpoints) == 1
    before = cluster.upstream()
    cluster.change(internal())
    assert cluster.upstream() is before
    assert "LB3014" in cluster.problems()
    cluster.store.drop(Key("ConfigMap", "shop", "internal"))
    cluster.change()
    assert cluster.upstream().endpoints == ()


def test_what_nobody_names_any_more_is_forgotten() -> None:
    cluster = Guarded()
    cluster.change(authorities(), internal())
    assert sorted(cluster.problems()) == ["LB3014", "LB3014"]
    for kind, name in (("Ingress", "web"), ("Service", "a")):
        cluster.store.drop(Key(kind, "shop", name))
    cluster.change()
    assert cluster.problems() == []


@pytest.mark.parametrize("value", ["other/clients", "shop/clients", "secret/other/clients", "configmap/../clients", ""])
def test_authorities_of_another_namespace_are_refused(value: str) -> None:
    store = read_store(ASKING.replace("lb/client-ca: clients", f"lb/client-ca: '{value}'"))
    store.put(Stored(authorities(AUTHORITY), Origin("Secret", "shop", "clients")))
    translation = translate(store, Options(), Changes(everything=True), None)
    tls = translation.config.listeners[TLS_LISTENER].tls
    assert tls is not None
    assert tls.hosts["web.example.com"].clients.mode == "nobody"
    assert [problem.code for problem in translation.problems if problem.severity == "error"].count("LB5001") == 1


def test_an_older_ingress_that_asks_nothing_is_no_way_around() -> None:
    older = INGRESS.replace("name: web,", "name: older, creationTimestamp: '2020-01-01T00:00:00Z',")
    store = read_store(f"{older}\n---{ASKING}")
    store.put(Stored(authorities(AUTHORITY), Origin("Secret", "shop", "clients")))
    tls = translate(store, Options(), Changes(everything=True), None).config.listeners[TLS_LISTENER].tls
    assert tls is not None
    assert tls.hosts["web.example.com"].clients.mode == "required"


@pytest.mark.parametrize(
    ("first", "second"), [("optional", "required"), ("unverified", "optional"), ("required", "odd")]
)
def test_the_strictest_of_several_ingresses_decides(first: str, second: str) -> None:
    """A younger one that asks more is not opened by an older one; its mistake takes nothing away from an older one."""

    def asking(name: str, mode: str, year: int) -> str:
        one = ASKING.replace("name: web,", f"name: {name}, creationTimestamp: '{year}-01-01T00:00:00Z',")
        return one.replace("lb/client-certificate: required", f"lb/client-certificate: {mode}")

    store = read_store(f"{asking('older', first, 2020)}\n---{asking('younger', second, 2021)}")
    store.put(Stored(authorities(AUTHORITY), Origin("Secret", "shop", "clients")))
    translation = translate(store, Options(), Changes(everything=True), None)
    tls = translation.config.listeners[TLS_LISTENER].tls
    assert tls is not None
    assert tls.hosts["web.example.com"].clients.mode == ("required" if "required" in (first, second) else second)
    said = [one for one in translation.problems if one.code == "LB5012" and "web.example.com" in one.what]
    assert [one.severity for one in said] == ["error"]
    assert "shop/older" in said[0].what
    assert "shop/younger" in said[0].what


@pytest.mark.parametrize(
    ("mode", "redirect", "code"), [("required", 308, "LB5011"), ("optional", 0, "LB5010"), ("odd", 308, "")]
)
def test_plain_http_is_no_way_around_required_certificates(mode: str, redirect: int, code: str) -> None:
    store = read_store(
        ASKING.replace("lb/client-certificate: required", f"lb/client-certificate: {mode}, lb/ssl-redirect: 'false'")
    )
    store.put(Stored(authorities(AUTHORITY), Origin("Secret", "shop", "clients")))
    translation = translate(store, Options(), Changes(everything=True), None)
    for name in ("web.example.com", "plain.example.com"):
        host = translation.config.hosts[HOST_SET][name]
        assert {route.options.https_redirect for route in host.routes} == {redirect}
    assert not code or code in [one.code for one in translation.problems]


def test_both_mistakes_about_client_certificates_are_said() -> None:
    """No TLS section, and no redirect."""
    text = ASKING.replace(
        "lb/client-certificate: required", "lb/client-certificate: required, lb/ssl-redirect: 'false'"
    )
    store = read_store(re.sub(r"  tls:.*?\n(?=  rules)", "", text, flags=re.DOTALL))
    codes = [one.code for one in translate(store, Options(), Changes(everything=True), None).problems]
    assert {"LB5010", "LB5011"} <= set(codes)


@pytest.mark.parametrize("redirect", ["", ", annotations: {lb/ssl-redirect: 'false'}"])
def test_another_ingress_of_the_host_is_no_way_around_either(redirect: str) -> None:
    """One that has no TLS section and asks for nothing; a wildcard guards the names under it as well."""
    other = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: other, namespace: shop%s}
spec:
  rules:
  - host: %s
    http: {paths: [{path: /open, pathType: Prefix, backend: {service: {name: a, port: {number: 80}}}}]}
"""
    for name, asked in (
        ("web.example.com", ASKING),
        ("b.example.com", ASKING.replace("web.example.com", "'*.example.com'")),
    ):
        store = read_store(f"{asked}\n---{other % (redirect, name)}")
        store.put(Stored(authorities(AUTHORITY), Origin("Secret", "shop", "clients")))
        translation = translate(store, Options(), Changes(everything=True), None)
        host = translation.config.hosts[HOST_SET][name]
        assert {route.options.https_redirect for route in host.routes} == {308}
        said = [one.origin.object for one in translation.problems if one.code == "LB5011"]
        assert said == (["Ingress shop/other"] if redirect else [])
        store.put(Stored(authorities(AUTHORITY, Authority("More")), Origin("Secret", "shop", "clients")))
        again = translate(store, Options(), store.take_changes(), translation)
        assert again.config.hosts[HOST_SET][name] is host, "what does not change is not made anew"
