"""The inbox: what sources bring reaches the store only when a build takes it in."""

from __future__ import annotations

import os
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
    path.write_text(SERVICE % 8080)
    files.read(force=True)
    inbox.take_in()
    assert port_of(store) == 8080
    path.write_text("apiVersion: v1\nkind: List\nitems: []\n")
    files.read(force=True)
    assert port_of(store) == 8080
    inbox.take_in()
    assert port_of(store) is None


def test_what_was_read_later_wins(tmp_path: Path) -> None:
    """A reload reads in the thread of a build, the watcher in another: its reading may come to the loop afterwards."""
    path, store, inbox = tmp_path / "web.yaml", Store(), Inbox()
    files = Files([str(path)], store, inbox)
    path.write_text(SERVICE % 80)
    overtaken = files.load()
    path.write_text(SERVICE % 8080)
    files.read(force=True)
    inbox.take_in()
    files.apply(overtaken)
    inbox.take_in()
    assert port_of(store) == 8080


def test_what_has_gone_since_a_reading_that_waits_is_gone(tmp_path: Path) -> None:
    store, inbox = Store(), Inbox()
    files = Files([str(tmp_path)], store, inbox)
    (tmp_path / "web.yaml").write_text(SERVICE % 80)
    files.read()
    (tmp_path / "web.yaml").unlink()
    files.read(force=True)
    inbox.take_in()
    assert port_of(store) is None


def test_a_link_that_leads_back_while_a_reading_waits(tmp_path: Path) -> None:
    """A release that is taken back: the file that the link leads to again is the very one that was known."""
    link, store, inbox = tmp_path / "web.yaml", Store(), Inbox()
    for port in (80, 8080):
        (tmp_path / f"{port}.txt").write_text(SERVICE % port)
        os.utime(tmp_path / f"{port}.txt", (1, 1))
    link.symlink_to("80.txt")
    files = Files([str(link)], store, inbox)
    files.read()
    inbox.take_in()
    for port in (8080, 80):
        link.unlink()
        link.symlink_to(f"{port}.txt")
        files.read()
    inbox.take_in()
    assert port_of(store) == 80


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
