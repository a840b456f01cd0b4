"""The inbox: what sources bring reaches the store only when a build takes it in."""

from __future__ import annotations

from pathlib import Path

from lb.inbox import Files, Inbox, Names
from lb.objects.meta import Key, ObjectMeta
from lb.objects.view import Resolution, Stored
from lb.problems import Origin
from lb.sources.store import Store

SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: %d}]}\n"


def port_of(store: Store) -> int | None:
    found = store.get("Service", "shop", "web")
    return None if found is None else found.object.spec.ports[0].port  # type: ignore[attr-defined, no-any-return]


def test_files_wait_in_order(tmp_path: Path) -> None:
    path, store, inbox = tmp_path / "web.yaml", Store(), Inbox()
    files = Files([str(path)], store, inbox)
    path.write_text(SERVICE % 80)
    files.read()
    assert port_of(store) is None
    assert not files.is_settled, "what waits will be looked at again"
    path.write_text(SERVICE % 8080)
    files.read(force=True)
    inbox.take_in()
    assert port_of(store) == 8080
    assert inbox.is_empty
    path.write_text("apiVersion: v1\nkind: List\nitems: []\n")
    files.read(force=True)
    assert port_of(store) == 8080
    inbox.take_in()
    assert port_of(store) is None


def test_resolved_names_wait(tmp_path: Path) -> None:
    store, inbox = Store(), Inbox()
    names = Names(store, inbox)
    stored = Stored(Resolution(ObjectMeta(name="a.test"), ("192.0.2.1",)), Origin(kind="Resolution", name="a.test"))
    names.put(stored)
    assert names.get("Resolution", "", "a.test") is None
    inbox.take_in()
    assert names.get("Resolution", "", "a.test") == stored
    names.drop(Key("Resolution", "", "a.test"))
    assert store.get("Resolution", "", "a.test") == stored
    inbox.take_in()
    assert store.get("Resolution", "", "a.test") is None


def test_a_change_that_fails_does_not_hold_up_the_others() -> None:
    inbox, done = Inbox(), []

    def fail() -> None:
        raise OSError("gone")

    inbox.add(fail)
    inbox.add(lambda: done.append(1))
    try:
        inbox.take_in()
    except OSError:
        inbox.take_in()
    assert done == [1]
