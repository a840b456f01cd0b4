"""What lb fails on by its own fault costs only the object, at start, when it changes and when it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lb.model.route import Forward
from lb.objects.view import Stored
from lb.problems import Problem
from lb.translate import load_balancers, material, native, nodes, translation
from lb.translate.annotations import SSL_PASSTHROUGH
from lb.translate.translation import Options, Translation, translate
from tests.harness.certificates import Authority
from tests.translate.cluster import FILE, ask, backend, ingress, read_store

OPTIONS = Options(load_balancers=True, tcp_services="shop/tcp", udp_services="shop/tcp")


class Cluster:
    """Objects that change, and what they mean."""

    def __init__(self, options: Options = OPTIONS) -> None:
        self._options = options
        self._store = read_store("")
        self._last: Translation | None = None

    def apply(self, text: str) -> Translation:
        """These objects in place of those of before."""
        self._store.replace_file(FILE, list(read_store(text).objects_of(FILE)))
        self._last = translate(self._store, self._options, self._store.take_changes(), self._last)
        return self._last


def fail_on(monkeypatch: pytest.MonkeyPatch, module: object, name: str, is_bad: Callable[..., bool]) -> None:
    """Let a function raise for some arguments."""
    real = getattr(module, name)

    def failing(*arguments: Any, **named: Any) -> Any:
        if is_bad(*arguments, **named):
            raise KeyError("of a bug")
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, failing)


def is_called(name: str) -> Callable[..., bool]:
    def is_bad(stored: Stored, *_: object) -> bool:
        return stored.object.metadata.name == name

    return is_bad


def faults(found: Translation) -> list[Problem]:
    return [one for one in found.problems if one.code == "LB7001"]


def the_fault(found: Translation) -> Problem:
    (fault,) = faults(found)
    assert "KeyError: 'of a bug'" in fault.what
    assert "in failing" in fault.trace
    assert "fault of lb" in fault.fix
    return fault


GOOD = ingress("good", ("good.test", "Prefix", "/", "web")) + backend("web", "10.0.0.1")
BAD = ingress("bad", ("bad.test", "Prefix", "/", "web"), ("both.test", "Prefix", "/bad", "web"))
BOTH = GOOD + ingress("other", ("both.test", "Prefix", "/", "web"))
CHANGED = BAD.replace("/bad", "/changed")


def test_an_ingress_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_on(monkeypatch, translation, "translate_ingress", is_called("bad"))
    found = Cluster().apply(BOTH + BAD)
    fault = the_fault(found)
    assert fault.origin.object == "Ingress shop/bad"
    assert fault.origin.line
    assert fault.why == "it is left out; everything else is served"
    answers = [ask(found.config, url) for url in ("good.test/", "both.test/bad", "bad.test/")]
    assert answers == ["shop/web:80", "shop/web:80", "404"]


def test_an_ingress_that_changes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    before = cluster.apply(BOTH + BAD)
    with monkeypatch.context() as patch:
        fail_on(patch, translation, "translate_ingress", is_called("bad"))
        found = cluster.apply(BOTH + CHANGED)
        assert the_fault(found).why == "its last good version stays in use"
        assert found.config == before.config
        gone = cluster.apply(BOTH)
        assert not faults(gone)
        assert ask(gone.config, "bad.test/") == "404"
        cluster.apply(BOTH + CHANGED)
    # Without the bug, the next change counts again.
    mended = cluster.apply(BOTH + CHANGED.replace("/changed", "/mended"))
    assert not faults(mended)
    assert ask(mended.config, "bad.test/") == "shop/web:80"


def test_a_service_that_fails_at_start_answers_503(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_bad(*arguments: Any) -> bool:
        return "bad" in arguments

    fail_on(monkeypatch, translation, "translate_service", is_bad)
    rules = ingress("all", ("a.test", "Prefix", "/", "web"), ("b.test", "Prefix", "/", "bad"))
    found = Cluster().apply(rules + backend("web", "10.0.0.1") + backend("bad", "10.0.0.2"))
    assert the_fault(found).origin.object == "Service shop/bad"
    assert ask(found.config, "a.test/") == "shop/web:80"
    assert ask(found.config, "b.test/").startswith("503 lb fails on it")


def test_a_service_that_changes_keeps_its_endpoints_and_one_that_goes_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = ingress("all", ("a.test", "Prefix", "/", "web"))
    cluster = Cluster()
    before = cluster.apply(rules + backend("web", "10.0.0.1"))
    fail_on(monkeypatch, translation, "translate_service", lambda *arguments: "web" in arguments)
    found = cluster.apply(rules + backend("web", "10.0.0.2"))
    assert the_fault(found).why == "its last good version stays in use"
    assert found.config.upstreams == before.config.upstreams
    gone = cluster.apply(rules)
    assert the_fault(gone)
    assert ask(gone.config, "a.test/").startswith("503 ")


def test_a_port_that_was_not_wanted_before_gets_an_upstream_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    service = backend("web", "10.0.0.1").replace("targetPort: 8080}", "targetPort: 8080}, {name: more, port: 81}")
    rules = ingress("all", ("a.test", "Prefix", "/", "web"))
    cluster = Cluster()
    cluster.apply(rules + service)
    fail_on(monkeypatch, translation, "translate_service", lambda *arguments: "web" in arguments)
    more = ingress("more", ("b.test", "Prefix", "/", "web")).replace("number: 80", "number: 81")
    found = cluster.apply(rules + more + service)
    assert ask(found.config, "a.test/") == "shop/web:80"
    assert set(found.config.upstreams) >= {"shop/web:80"}
    for host in found.config.hosts["ingress"].values():
        for route in host.routes:
            assert route.action.upstreams[0].name in found.config.upstreams  # type: ignore[union-attr]


BALANCED = """---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {type: LoadBalancer, ports: [{port: 5432}]}
"""
TCP = """---
apiVersion: v1
kind: ConfigMap
metadata: {name: tcp, namespace: shop}
data: {"9000": "shop/web:80"}
"""


def test_a_load_balancer(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    before = cluster.apply(GOOD + BALANCED)
    assert "shop/db:5432" in before.config.listeners
    fail_on(monkeypatch, translation, "claim_service", is_called("db"))
    found = cluster.apply(GOOD + BALANCED.replace("5432", "5433"))
    assert the_fault(found).origin.object == "Service shop/db"
    assert found.config.listeners == before.config.listeners
    gone = cluster.apply(GOOD)
    assert not faults(gone)
    assert "shop/db:5432" not in gone.config.listeners
    again = cluster.apply(GOOD + BALANCED)
    assert "shop/db:5432" not in again.config.listeners
    assert ask(again.config, "good.test/") == "shop/web:80"


def test_the_ports_of_a_config_map(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    before = cluster.apply(GOOD + TCP)
    with monkeypatch.context() as patch:
        fail_on(patch, load_balancers, "_read_entry", is_called("tcp"))
        found = cluster.apply(GOOD + TCP.replace("9000", "9001"))
        assert the_fault(found).origin.object == "ConfigMap shop/tcp"  # told once, though it is named for both
        assert found.config.listeners == before.config.listeners
        gone = cluster.apply(GOOD)
        assert "shop/tcp:9000" not in gone.config.listeners
        at_start = Cluster().apply(GOOD + TCP)
        assert the_fault(at_start)
        assert ask(at_start.config, "good.test/") == "shop/web:80"


def test_a_host_that_cannot_be_assembled_loses_only_what_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    cluster.apply(BOTH + BAD)
    fail_on(monkeypatch, translation, "assemble_host", lambda hostname, _: hostname == "both.test")
    found = cluster.apply(BOTH + CHANGED)
    assert "host both.test" in the_fault(found).what
    assert [ask(found.config, url) for url in ("both.test/bad", "good.test/")] == ["shop/web:80"] * 2
    gone = cluster.apply(BOTH)
    assert [route.origin.name for route in gone.config.hosts["ingress"]["both.test"].routes] == ["other"]
    at_start = Cluster().apply(BOTH + BAD)
    assert [ask(at_start.config, url) for url in ("both.test/", "good.test/")] == ["404", "shop/web:80"]


def test_a_host_that_cannot_be_assembled_leads_to_no_upstream_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table would refuse it, and with it the whole build."""
    annotated = BAD.replace("metadata:\n", f"metadata:\n  annotations: {{{SSL_PASSTHROUGH}: 'true'}}\n", 1)
    cluster = Cluster(Options(ssl_passthrough=True))
    cluster.apply(BOTH + annotated + backend("more", "10.0.0.2"))
    fail_on(monkeypatch, translation, "assemble_host", lambda hostname, _: hostname in ("bad.test", "both.test"))
    found = cluster.apply(BOTH + annotated.replace("name: web,", "name: more,") + backend("more", "10.0.0.2"))
    assert len(faults(found)) == 2
    hosts = found.config.hosts["ingress"]
    # Another Ingress still names the Service there, and nobody here.
    assert [route.origin.name for route in hosts["both.test"].routes] == ["bad", "other"]
    assert "bad.test" not in hosts
    carried = [route for listener in found.config.listeners.values() for route in listener.carried_routes]
    routes = [route.action for host in hosts.values() for route in host.routes]
    for action in (*routes, *(route.forward for route in carried)):
        assert isinstance(action, Forward)
        assert all(one.name in found.config.upstreams for one in action.upstreams)


def test_a_native_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = "---\napiVersion: lb/v1\nkind: Config\nhosts: {ingress: {n.test: [{respond: 200}]}}\n"
    cluster = Cluster()
    before = cluster.apply(GOOD + file)
    fail_on(monkeypatch, native, "read_content", lambda *_: True)
    found = cluster.apply(GOOD + file.replace("200", "201"))
    assert the_fault(found).origin.line == GOOD.count("\n") + 2
    assert found.config == before.config
    assert ask(cluster.apply(GOOD).config, "n.test/") == "404"
    at_start = Cluster().apply(GOOD + file)
    assert the_fault(at_start).why == "it is left out; everything else is served"
    assert ask(at_start.config, "good.test/") == "shop/web:80"


def secret(name: str, host: str) -> str:
    pair = Authority().issue(host)
    chain, key = (text.replace("\n", "\n    ") for text in (pair.chain, pair.key))
    return f"""---
apiVersion: v1
kind: Secret
metadata: {{name: {name}, namespace: shop}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
    {chain}
  tls.key: |
    {key}
"""


def test_a_secret_keeps_its_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = GOOD.replace("spec:\n", "spec:\n  tls: [{hosts: [good.test], secretName: pair}]\n", 1)
    assert "secretName" in rules
    cluster = Cluster()
    before = cluster.apply(rules + secret("pair", "good.test"))
    assert list(before.config.certificates) == ["shop/pair"]
    fail_on(monkeypatch, material, "_parse_pair", lambda one: one.metadata.name == "pair")
    found = cluster.apply(rules + secret("pair", "good.test"))
    assert the_fault(found).origin.object == "Secret shop/pair"
    assert found.config.certificates == before.config.certificates
    at_start = Cluster().apply(rules + secret("pair", "good.test"))
    assert the_fault(at_start).why == "its hosts get the default certificate"
    assert ask(at_start.config, "good.test/") == "shop/web:80"


def test_a_node_is_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(
        f"""---
apiVersion: v1
kind: Node
metadata: {{name: {name}}}
status: {{addresses: [{{type: InternalIP, address: {address}}}]}}
"""
        for name, address in (("one", "10.1.0.1"), ("bad", "10.1.0.2"))
    )
    service = GOOD.replace("port: 80,", "port: 80, nodePort: 30080,")
    fail_on(monkeypatch, nodes, "_addresses", is_called("bad"))
    found = Cluster(Options(targets="nodeports")).apply(service + text)
    assert the_fault(found).origin.object == "Node bad"
    assert [one.address for one in found.config.upstreams["shop/web:80"].endpoints] == ["10.1.0.1"]


@pytest.mark.parametrize("what", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_no_fault_of_an_object_goes_through(monkeypatch: pytest.MonkeyPatch, what: type[BaseException]) -> None:
    def stop(*_: object) -> None:
        raise what

    monkeypatch.setattr(translation, "translate_ingress", stop)
    with pytest.raises(what):
        Cluster().apply(GOOD)
