"""Secrets and TLS sections over time: what changes costs only itself, and what turns bad keeps what it had."""

from __future__ import annotations

import base64

import msgspec
import pytest

from lb.model.tls import TlsHost
from lb.objects.core import Secret
from lb.objects.meta import ObjectMeta
from lb.objects.view import Changes, Stored
from lb.problems import Origin
from lb.sources.store import Store
from lb.translate.translation import TLS_LISTENER, Options, Translation, translate
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
