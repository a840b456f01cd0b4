"""Requests and their answers, through the reference matcher. Each id is the sentence that the case shows.

Sources: the example tables of the Ingress documentation, the features of ingress-controller-conformance, and the e2e
suite of ingress-nginx (its cases without annotations, as far as plain HTTP goes).
"""

# ruff: noqa: E501  # tables: one case, one line
from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from lb.sources.store import Store
from lb.translate.options import Options
from lb.translate.translation import Translation, translate
from tests.golden.test_golden import HERE, translate_file
from tests.translate.cluster import FILE, ask, backend, ingress, read_store, translate_text

ONE, TWO, THREE = "shop/one:80", "shop/two:80", "shop/three:80"
NO_RESOURCE = "404 resource backends are not served: Bucket files"

# (golden input, sentence, host and path, who answers)
GOLDEN_CASES = [
    # The documentation's path table, row by row.
    ("path-table", "Prefix / takes every path", "prefix-root.example.com/any/path", ONE),
    ("path-table", "Exact /foo takes /foo", "exact-foo.example.com/foo", ONE),
    ("path-table", "Exact /foo does not take /bar", "exact-foo.example.com/bar", "404"),
    ("path-table", "Exact /foo does not take /foo/", "exact-foo.example.com/foo/", "404"),
    ("path-table", "Exact /foo does not take /FOO", "exact-foo.example.com/FOO", "404"),
    ("path-table", "Exact /foo/ does not take /foo", "exact-foo-slash.example.com/foo", "404"),
    ("path-table", "Exact /foo/ takes /foo/", "exact-foo-slash.example.com/foo/", ONE),
    ("path-table", "Prefix /foo takes /foo", "prefix-foo.example.com/foo", ONE),
    ("path-table", "Prefix /foo takes /foo/", "prefix-foo.example.com/foo/", ONE),
    ("path-table", "Prefix /foo does not take /FOO", "prefix-foo.example.com/FOO", "404"),
    ("path-table", "Prefix /foo/ takes /foo", "prefix-foo-slash.example.com/foo", ONE),
    ("path-table", "Prefix /foo/ takes /foo/", "prefix-foo-slash.example.com/foo/", ONE),
    ("path-table", "Prefix /aaa/bb does not take /aaa/bbb", "prefix-aaa-bb.example.com/aaa/bbb", "404"),
    ("path-table", "Prefix /aaa/bbb takes /aaa/bbb", "prefix-aaa-bbb.example.com/aaa/bbb", ONE),
    ("path-table", "Prefix /aaa/bbb/ takes /aaa/bbb", "prefix-aaa-bbb-slash.example.com/aaa/bbb", ONE),
    ("path-table", "Prefix /aaa/bbb/ takes /aaa/bbb/", "prefix-aaa-bbb-slash.example.com/aaa/bbb/", ONE),
    ("path-table", "Prefix /aaa/bbb takes /aaa/bbb/", "prefix-aaa-bbb.example.com/aaa/bbb/", ONE),
    ("path-table", "Prefix /aaa/bbb takes the subpath /aaa/bbb/ccc", "prefix-aaa-bbb.example.com/aaa/bbb/ccc", ONE),
    ("path-table", "Prefix /aaa/bbb does not take /aaa/bbbxyz", "prefix-aaa-bbb.example.com/aaa/bbbxyz", "404"),
    ("path-table", "of / and /aaa, /aaa takes /aaa/ccc", "two-prefixes.example.com/aaa/ccc", TWO),
    ("path-table", "of / and /aaa, / takes /aaaccc", "two-prefixes.example.com/aaaccc", ONE),
    ("path-table", "of three prefixes the longest takes /aaa/bbb", "three-prefixes.example.com/aaa/bbb", THREE),
    ("path-table", "of three prefixes the longest takes /aaa/bbb/ccc", "three-prefixes.example.com/aaa/bbb/ccc", THREE),
    ("path-table", "of three prefixes / takes /ccc", "three-prefixes.example.com/ccc", ONE),
    ("path-table", "Prefix /aaa leaves /ccc to the default backend", "prefix-aaa.example.com/ccc", "404"),
    ("path-table", "Exact /foo is preferred to Prefix /foo", "mixed.example.com/foo", TWO),
    ("path-table", "Prefix /foo takes what Exact /foo leaves", "mixed.example.com/foo/bar", ONE),
    # What the table leaves open.
    ("paths", "Prefix /foo/ is longer than /foo and takes /foo", "slashes.example.com/foo", TWO),
    ("paths", "Prefix /foo/ is longer than /foo and takes /foo/x", "slashes.example.com/foo/x", TWO),
    ("paths", "Exact /foo is preferred to Prefix /foo/", "exact-and-slash.example.com/foo", TWO),
    ("paths", "Exact /foo/ is preferred to Prefix /foo/", "exact-and-slash.example.com/foo/", THREE),
    ("paths", "Prefix /foo/ takes what both Exact paths leave", "exact-and-slash.example.com/foo/x", ONE),
    ("paths", "ImplementationSpecific /foo takes /foobar", "specific.example.com/foobar", ONE),
    ("paths", "ImplementationSpecific without a path takes everything", "specific.example.com/other", TWO),
    ("paths", "Exact wins over the other kinds", "kinds.example.com/foo", THREE),
    ("paths", "Prefix wins over ImplementationSpecific of the same length", "kinds.example.com/foo/x", TWO),
    ("paths", "ImplementationSpecific takes what Prefix does not", "kinds.example.com/foobar", ONE),
    ("paths", "a rule in UTF-8 takes the escaped request", "escapes.example.com/caf%c3%a9/menu", ONE),
    ("paths", "a rule with a blank takes the escaped request", "escapes.example.com/a%20b", TWO),
    ("paths", "a rule with a needless escape takes the plain request", "escapes.example.com/~user", THREE),
    ("paths", "a rule with a bare % takes the escaped one", "escapes.example.com/100%25", ONE),
    ("paths", "the longest path of two Prefixes wins", "well-known.example.com/.well-known/acme-challenge/x", ONE),
    # Hosts.
    ("hosts", "*.foo.com takes bar's neighbour", "baz.foo.com/", TWO),
    ("hosts", "*.foo.com does not take two labels", "a.b.foo.com/", "404"),
    ("hosts", "*.foo.com does not take foo.com", "foo.com/", "404"),
    ("hosts", "an exact host beats the wildcard", "bar.foo.com/exact-only", ONE),
    ("hosts", "an exact host without the path does not fall back to the wildcard", "bar.foo.com/", "404"),
    ("hosts", "an exact host without the path does not fall back to the catch-all", "foo.bar.com/catch-all", "404"),
    ("hosts", "the longer wildcard takes its own hosts", "x.bar.foo.com/", THREE),
    ("hosts", "a rule without a host takes any host", "unknown.example.com/catch-all", THREE),
    ("hosts", "a rule without a host takes an address", "198.51.100.7/catch-all", THREE),
    ("hosts", "a rule without a host takes no host", "/catch-all", THREE),
    ("hosts", "an unknown host and path is nobody's", "unknown.example.com/", "404"),
    ("hosts", "a host is compared without case, port and trailing dot", "FOO.bar.com.:8080/exact-only", ONE),
    ("hosts", "a rule without http leaves its host to the default backend", "nothing.example.com/catch-all", "404"),
    ("hosts", "a rule with an invalid host is ignored", "with-port.example.com/", "404"),
    # Default backends.
    ("default-backend", "a rule wins over the default backend", "a.example.com/app", ONE),
    ("default-backend", "the default backend takes the rest of its Ingress's hosts", "a.example.com/other", TWO),
    ("default-backend", "the default backend takes a host without http", "b.example.com/x", TWO),
    ("default-backend", "Prefix / wins over the default backend", "c.example.com/x", THREE),
    ("default-backend", "the default backend does not take other hosts", "unknown.example.com/", "404"),
    ("default-backend", "another Ingress's host without http is answered 404", "d.example.com/", "404"),
    ("default-backend", "another Ingress's host without the path is answered 404", "e.example.com/other", "404"),
    ("default-backend-only", "the oldest Ingress with only a default backend takes all hosts", "any.example.com/x", TWO),
    ("default-backend-only", "it takes requests without a host", "/resource", TWO),
    ("default-backend-only", "it does not take the rest of a known host", "known.example.com/other", "404"),
    # Conflicts.
    ("conflicts", "the oldest Ingress wins for the same host and path", "shop.example.com/other", ONE),
    ("conflicts", "a different pathType is no conflict", "shop.example.com/", THREE),
    ("conflicts", "different paths of a host merge", "shop.example.com/younger", TWO),
    ("conflicts", "equal ages are decided by name", "same.example.com/", ONE),
    ("conflicts", "unknown ages are decided by namespace, then name", "none.example.com/", "blog/one:80"),
    ("conflicts", "the first of two equal rules of an Ingress wins", "twice.example.com/", ONE),
    ("conflicts", "two rules for one host merge", "twice.example.com/more", THREE),
    ("exact-and-prefix", "11: Exact and Prefix on one path", "echo.example.com/exact", ONE),
    ("exact-and-prefix", "13: the younger duplicate gets nothing", "echo.example.com/exact/suffix", TWO),
    # Backends.
    ("backends", "a missing Service is answered 503", "missing.example.com/", "503 Service shop/nowhere does not exist"),
    ("backends", "rules beside a missing Service are served", "missing.example.com/good", ONE),
    ("backends", "a missing port is answered 503", "no-port.example.com/", "503 Service shop/one has no TCP port 81"),
    ("backends", "a missing named port is answered 503", "no-port.example.com/named", "503 Service shop/one has no TCP port https"),
    ("backends", "a port may be named", "no-port.example.com/good", ONE),
    ("backends", "50: a resource backend is answered 404", "resource.example.com/", NO_RESOURCE),
    ("backends", "50: rules beside a resource backend are served", "resource.example.com/good", ONE),
    ("backends", "no backend is answered 404", "neither.example.com/", "404 the backend has no service"),
    ("backends", "two ports at once are answered 503", "two-ports.example.com/", "503 the backend's port has both a name and a number"),
    ("backends", "a UDP port is no port for HTTP", "udp.example.com/", "503 Service shop/udp has no TCP port 53"),
    ("backends", "49: a Service without endpoints is answered 503", "no-endpoints.example.com/", "503 Service shop/empty has no ready endpoint"),
    ("backends", "a Service with unready endpoints is answered 503", "not-ready.example.com/", "503 Service shop/sleepy has no ready endpoint"),
    ("backends", "a rule without pathType is ignored", "no-type.example.com/", "404"),
    ("backends", "rules beside one without pathType are served", "no-type.example.com/good", ONE),
    ("backends", "a missing default Service is answered 503", "default.example.com/x", "503 Service shop/nowhere does not exist"),
    ("invalid-paths", "rules beside invalid paths are served", "shop.example.com/good", ONE),
    # Services.
    ("services", "59: a Service with a name of 63 characters", "sixty-three.example.com/", f"shop/s{'x' * 62}:80"),
    ("services", "name and number give the same upstream", "cluster-ip.example.com/named", "shop/cluster-ip:80"),
    ("services", "a targetPort is taken where no port fits", "cluster-ip.example.com/target", "shop/cluster-ip:8081"),
    ("services", "a headless Service is served", "headless.example.com/", "shop/headless:8080"),
    ("services", "a Service with its own slices is served", "by-hand.example.com/", "shop/by-hand:80"),
    ("services", "a Service with only Endpoints is served", "legacy.example.com/", "shop/legacy:80"),
    ("readiness", "terminating endpoints serve while nobody is ready", "all-terminating.example.com/", "shop/all-terminating:80"),
    ("external-names", "55: an invalid external name is answered 503", "invalid.example.com/", "503 externalName 'no_such name' of Service shop/invalid is neither a DNS name nor an address"),
    ("external-names", "a loopback name is refused", "localhost.example.com/", "503 externalName 'localhost' of Service shop/localhost is a loopback name"),
    ("external-names", "an external address is served", "address.example.com/", "shop/address:80"),
    # Classes.
    ("classes-controller", "61: a class of another controller is not served", "field-other.example.com/", "404"),
    ("classes-controller", "62: a class by field is served", "field-lb.example.com/", ONE),
    ("classes-controller", "62: a class by annotation is served", "annotation-lb.example.com/", ONE),
    ("classes-controller", "no class and no default is not served", "no-class.example.com/", "404"),
    ("classes-controller", "the field wins over the annotation", "field-lb-annotation-other.example.com/", ONE),
    ("classes-controller", "a foreign field wins over our annotation", "field-other-annotation-lb.example.com/", "404"),
    ("classes-controller", "a class that does not exist is not served", "field-gone.example.com/", "404"),
    ("classes-default", "no class is served by the default class", "no-class.example.com/", ONE),
    ("classes-foreign-default", "no class is not served by a foreign default class", "no-class.example.com/", "404"),
    ("classes-none", "68: everything is served when nothing names lb", "field-other.example.com/", ONE),
    ("classes-by-name", "70: --class serves by annotation without an IngressClass", "annotation-nginx.example.com/", ONE),
    ("classes-by-name", "67: --class serves by field", "field-nginx.example.com/", ONE),
    ("classes-by-name", "67: --class does not serve what names no class", "no-class.example.com/", "404"),
    ("classes-take-over", "--take-over serves the controller's class", "field-nginx.example.com/", ONE),
    ("classes-take-over", "--take-over does not serve others", "field-other.example.com/", "404"),
    # The rest.
    ("several-hosts", "23: the first host has its own Service", "first.host/", ONE),
    ("several-hosts", "23: the second host has its own Service", "second.host/", TWO),
    ("namespaces", "a Service is looked for in the Ingress's namespace", "web.example.com/blog", "blog/one:80"),
    ("namespaces", "it is not looked for in other namespaces", "web.example.com/lost", "503 Service lost/one does not exist"),
    ("tls", "a host with TLS is served over HTTP", "web.example.com/", ONE),
    ("nothing", "1: without any Ingress every request is answered 404", "foo.bar.com/demo", "404"),
]  # fmt: skip


@cache
def _golden(name: str) -> Translation:
    return translate_file(name)[0]


@pytest.mark.parametrize(
    ("name", "url", "answer"),
    [pytest.param(name, url, answer, id=sentence) for name, sentence, url, answer in GOLDEN_CASES],
)
def test_request(name: str, url: str, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    assert ask(_golden(name).config, url) == answer


def test_every_golden_input_of_requests_exists() -> None:
    assert {name for name, *_ in GOLDEN_CASES} <= {path.name.removesuffix(".in.yaml") for path in Path(HERE).iterdir()}


# (sentence, objects, host and path, who answers); ingress-nginx e2e by number
SMALL_CASES = [
    ("5: only a default backend", ingress("web", default="one"), "foo.example.com/", ONE),
    ("7: only a backend that does not exist", ingress("web", default="gone"), "doesnotexist/", "503 Service shop/gone does not exist"),
    ("8: a rule without a host", ingress("web", ("", "Prefix", "/", "one")), "anything.example.com/", ONE),
    ("14: Exact / takes /", ingress("web", ("h", "Exact", "/", "one"), ("h", "Prefix", "/", "two")), "h/", ONE),
    ("14: Prefix / takes /bar", ingress("web", ("h", "Exact", "/", "one"), ("h", "Prefix", "/", "two")), "h/bar", TWO),
    ("16: Prefix /aaa takes /aaa", ingress("web", ("h", "Prefix", "/aaa", "one")), "h/aaa", ONE),
    ("16: Prefix /aaa takes /aaa/", ingress("web", ("h", "Prefix", "/aaa", "one")), "h/aaa/", ONE),
    ("16: Prefix /aaa takes /aaa/cccc", ingress("web", ("h", "Prefix", "/aaa", "one")), "h/aaa/cccc", ONE),
    ("16: Prefix /aaa does not take /aaacccc", ingress("web", ("h", "Prefix", "/aaa", "one")), "h/aaacccc", "404"),
    ("a query is no part of the path", ingress("web", ("h", "Exact", "/foo", "one")), "h/foo?bar=1", ONE),
    ("dot segments are resolved first", ingress("web", ("h", "Exact", "/foo", "one")), "h/bar/../foo", ONE),
    ("repeated slashes are one", ingress("web", ("h", "Prefix", "/foo/bar", "one")), "h/foo//bar", ONE),
]  # fmt: skip


@pytest.mark.parametrize(
    ("objects", "url", "answer"),
    [pytest.param(objects, url, answer, id=sentence) for sentence, objects, url, answer in SMALL_CASES],
)
def test_small_request(objects: str, url: str, answer: str) -> None:
    objects += backend("one", "10.0.0.1") + backend("two", "10.0.0.2")
    assert ask(translate_text(objects).config, url) == answer


WEB = ingress("web", ("h", "Prefix", "/", "one"))
WEB_OF_CLASS = ingress("web", ("h", "Prefix", "/", "one"), more="  ingressClassName: lb\n")
CATCH_ALL = ingress("web", ("", "Prefix", "/", "one"))
PODS = backend("one", "10.0.0.1")
LB_CLASS = """---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: lb}
spec: {controller: lb/ingress}
"""
EXTERNAL = """---
apiVersion: v1
kind: Service
metadata: {{name: one, namespace: shop}}
spec: {{type: ExternalName, externalName: {name}}}
"""
NOBODY = "503 Service shop/one has no ready endpoint"
LOOPBACK = "503 externalName 'localhost' of Service shop/one is a loopback name"

# (sentence, the objects one after the other, host and path, answers)
CHANGES = [
    ("10: a catch-all that comes and goes", [PODS + WEB, PODS + CATCH_ALL, PODS + WEB], "foo/", ["404", ONE, "404"]),
    ("52: a Service gets pods and loses them", [WEB + backend("one"), WEB + PODS, WEB + backend("one")], "h/", [NOBODY, ONE, NOBODY]),
    ("56: an external name that changes", [WEB + EXTERNAL.format(name="192.0.2.1"), WEB + EXTERNAL.format(name="localhost")], "h/", [ONE, LOOPBACK]),
    ("64, 65: the class is removed and set again", [PODS + LB_CLASS + one for one in (WEB_OF_CLASS, WEB, WEB_OF_CLASS)], "h/", [ONE, "404", ONE]),
    ("a Service that is missing at first", [WEB, WEB + PODS], "h/", ["503 Service shop/one does not exist", ONE]),
    ("a class of lb that takes the others away", [WEB + PODS, WEB + PODS + LB_CLASS], "h/", [ONE, "404"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "url", "answers"),
    [pytest.param(texts, url, answers, id=sentence) for sentence, texts, url, answers in CHANGES],
)
def test_change_without_restart(texts: list[str], url: str, answers: list[str]) -> None:
    """The store gets one text after the other, and translation gets what changed."""
    store = Store()
    translation = None
    got = []
    for text in texts:
        store.replace_file(FILE, list(read_store(text).objects_of(FILE)))
        translation = translate(store, Options(), store.take_changes(), translation)
        got.append(ask(translation.config, url))
    assert got == answers
