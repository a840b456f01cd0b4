"""The store: what it tells, what counts as a change, who wins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.objects.core import ConfigMap, Service, ServiceSpec
from lb.objects.discovery import SERVICE_NAME_LABEL, EndpointSlice
from lb.objects.meta import Key, ObjectMeta
from lb.objects.view import Resolution, Stored, View
from lb.problems import Origin, Problem
from lb.sources.store import Store


def service(name: str, address: str = "", file: str = "a.yaml", line: int = 1) -> Stored:
    spec = ServiceSpec(cluster_ip=address)
    return Stored(Service(ObjectMeta(name, "shop"), spec), Origin("Service", "shop", name, file, line))


def endpoint_slice(name: str, service_name: str, address_type: str = "IPv4", file: str = "a.yaml") -> Stored:
    metadata = ObjectMeta(name, "shop", {SERVICE_NAME_LABEL: service_name} if service_name else None)
    return Stored(EndpointSlice(metadata, address_type), Origin("EndpointSlice", "shop", name, file, 1))


def address(store: Store, name: str = "web") -> str | None:
    stored = store.get("Service", "shop", name)
    if stored is None:
        return None
    assert isinstance(stored.object, Service)
    return stored.object.spec.cluster_ip


KEY = Key("Service", "shop", "web")


@pytest.fixture
def store() -> Store:
    found = Store()
    assert found.take_changes().everything
    return found


def test_it_is_a_view(store: Store) -> None:
    view: View = store
    assert view.get("Service", "shop", "web") is None
    assert not view.all("Service")
    assert view.slices_of("shop", "web") == []


def test_objects_come_change_and_go(store: Store) -> None:
    first = service("web", "1")
    store.replace_file("a.yaml", [first, service("api", "1")])
    assert store.get(*KEY) is first
    assert set(store.all("Service")) == {("shop", "web"), ("shop", "api")}
    assert store.counts() == {"Service": 2}
    changes = store.take_changes()
    assert changes.changed == {KEY, Key("Service", "shop", "api")}
    assert not changes.removed
    assert not changes.everything

    store.replace_file("a.yaml", [service("web", "2")])
    changes = store.take_changes()
    assert (set(changes.changed), set(changes.removed)) == ({KEY}, {Key("Service", "shop", "api")})

    store.remove_file("a.yaml")
    store.remove_file("never.yaml")
    changes = store.take_changes()
    assert (set(changes.changed), set(changes.removed)) == (set(), {KEY})
    assert store.counts() == {}
    assert store.files() == []
    assert not store.has_changes


def test_an_equal_object_is_no_change_and_keeps_its_identity(store: Store) -> None:
    first = service("web", "1", line=1)
    store.replace_file("a.yaml", [first])
    store.take_changes()
    store.replace_file("a.yaml", [service("web", "1", line=1)])
    assert store.get(*KEY) is first
    store.replace_file("a.yaml", [service("api"), service("web", "1", line=9)])
    found = store.get(*KEY)
    assert found is not None
    assert found.object is first.object
    assert found.origin.line == 9
    assert store.take_changes().changed == {Key("Service", "shop", "api")}
    # The same object in another file.
    store.replace_file("b.yaml", [service("web", "1", "b.yaml")])
    store.remove_file("a.yaml")
    found = store.get(*KEY)
    assert found is not None
    assert found.object is first.object
    assert found.origin.file == "b.yaml"
    assert KEY not in store.take_changes().changed


def test_what_is_undone_before_anybody_asked(store: Store) -> None:
    store.replace_file("a.yaml", [service("web")])
    store.remove_file("a.yaml")
    changes = store.take_changes()
    assert (set(changes.changed), set(changes.removed)) == (set(), {KEY})
    store.replace_file("a.yaml", [service("web")])
    store.take_changes()
    store.remove_file("a.yaml")
    store.replace_file("a.yaml", [service("web")])
    changes = store.take_changes()
    assert (set(changes.changed), set(changes.removed)) == ({KEY}, set())


def test_the_file_that_sorts_first_wins_in_whatever_order_files_come(store: Store) -> None:
    store.replace_file("b.yaml", [service("web", "b", "b.yaml")])
    store.replace_file("c.yaml", [service("web", "c", "c.yaml")])
    assert address(store) == "b"
    store.replace_file("a.yaml", [service("web", "a", "a.yaml", line=3)])
    assert address(store) == "a"
    problems = store.problems()
    assert [(problem.code, problem.origin.file) for problem in problems] == [("LB1004", "b.yaml"), ("LB1004", "c.yaml")]
    assert problems[0].what == "Service shop/web already stands in a.yaml:3; this one is not used"
    assert "differ" in problems[0].why
    store.take_changes()
    store.remove_file("b.yaml")
    assert not store.has_changes
    store.remove_file("a.yaml")
    assert address(store) == "c"
    assert store.take_changes().changed == {KEY}
    assert store.problems() == []


def test_twice_in_one_file(store: Store) -> None:
    store.replace_file(
        "a.yaml", [service("web", "1", line=1), service("web", "2", line=5), service("web", "1", line=9)]
    )
    assert address(store) == "1"
    assert [problem.origin.line for problem in store.problems()] == [5, 9]
    assert "equal" in store.problems()[1].why
    kept = store.objects_of("a.yaml")
    store.take_changes()
    # The first one goes: the second one is served.
    store.replace_file("a.yaml", list(kept[1:]))
    assert address(store) == "2"
    assert store.take_changes().changed == {KEY}
    # One comes before the unchanged ones.
    store.replace_file("a.yaml", [service("web", "0", line=1), *kept[1:]])
    assert address(store) == "0"
    store.replace_file("a.yaml", [kept[1]])
    assert address(store) == "2"
    assert store.problems() == []


def test_slices_by_service(store: Store) -> None:
    store.replace_file(
        "a.yaml", [endpoint_slice("web-b", "web"), endpoint_slice("web-a", "web"), endpoint_slice("x", "")]
    )
    assert [stored.object.metadata.name for stored in store.slices_of("shop", "web")] == ["web-a", "web-b"]
    assert store.slices_of("other", "web") == []
    store.replace_file("a.yaml", [endpoint_slice("web-b", "api"), endpoint_slice("web-a", "web", "IPv6")])
    assert [stored.object.metadata.name for stored in store.slices_of("shop", "web")] == ["web-a"]
    assert [stored.object.address_type for stored in store.slices_of("shop", "web")] == ["IPv6"]  # type: ignore[attr-defined]
    assert [stored.object.metadata.name for stored in store.slices_of("shop", "api")] == ["web-b"]
    store.remove_file("a.yaml")
    assert store.slices_of("shop", "web") == store.slices_of("shop", "api") == []


def test_what_comes_from_no_file(store: Store) -> None:
    def resolution(*addresses: str) -> Stored:
        return Stored(Resolution(ObjectMeta("db.example.com"), addresses), Origin("Resolution", name="db.example.com"))

    key = Key("Resolution", "", "db.example.com")
    store.put(resolution("10.0.0.1"))
    assert store.take_changes().changed == {key}
    store.put(resolution("10.0.0.1"))
    assert not store.has_changes
    store.put(resolution("10.0.0.2"))
    assert store.take_changes().changed == {key}
    store.drop(key)
    store.drop(key)
    assert store.take_changes().removed == {key}


def test_problems_and_unknown_kinds(store: Store) -> None:
    wrong = Problem("LB1002", Origin(file="b.yaml", line=2), "syntax")
    store.replace_file("b.yaml", [], [wrong], {"Pod": 2})
    store.replace_file("a.yaml", [], [], {"Pod": 1, "Deployment": 4})
    assert store.unknown() == {"Deployment": 4, "Pod": 3}
    nothing = store.problems()[1]
    assert nothing.code == "LB1005"
    assert nothing.what.endswith("Deployment, Pod")
    assert store.problems()[0] is wrong
    store.replace_file("c.yaml", [service("web")])
    assert store.problems() == [wrong]
    store.remove_file("b.yaml")
    assert store.problems() == []
    assert store.unknown() == {"Deployment": 4, "Pod": 1}


NAMES = st.sampled_from(["a", "b", "c"])
ITEMS = st.lists(st.tuples(NAMES, st.sampled_from(["1", "2"]), st.booleans()), max_size=4)
STEPS = st.lists(st.tuples(st.sampled_from(["1.yaml", "2.yaml", "3.yaml"]), st.none() | ITEMS), max_size=12)


@settings(max_examples=300)
@given(STEPS)
def test_any_history_ends_like_a_fresh_store_and_tells_all_changes(steps: list[tuple[str, Any]]) -> None:
    """The oracle: a store that sees only the last content, and a copy that is kept up by the changes alone."""
    store, contents, known = Store(), dict[str, list[Stored]](), dict[Key, object]()
    store.take_changes()
    for file, items in steps:
        if items is None:
            contents.pop(file, None)
            store.remove_file(file)
        else:
            contents[file] = _read_again(contents.get(file, []), file, items)
            store.replace_file(file, contents[file])
        changes = store.take_changes()
        for key in changes.removed:
            assert store.get(*key) is None
            known.pop(key, None)
        for key in changes.changed:
            stored = store.get(*key)
            assert stored is not None
            known[key] = stored.object
        fresh = Store()
        for name in sorted(contents):
            fresh.replace_file(name, contents[name])
        assert dict(store.all("ConfigMap")) == dict(fresh.all("ConfigMap"))
        assert store.problems() == fresh.problems()
        assert known == {Key("ConfigMap", *name): one.object for name, one in store.all("ConfigMap").items()}
        assert all(known[Key("ConfigMap", *name)] is one.object for name, one in store.all("ConfigMap").items())


def _read_again(old: list[Stored], file: str, items: list[tuple[str, str, bool]]) -> list[Stored]:
    """What reading a file gives: some items keep their identity, and their place where it is the same."""
    known = {(one.object.metadata.name, str(one.object)): one for one in old}
    new = []
    for line, (name, value, keeps) in enumerate(items, 1):
        config = ConfigMap(ObjectMeta(name, "shop"), {"value": value})
        found = Stored(config, Origin("ConfigMap", "shop", name, file, line))
        before = known.pop((name, str(config)), None) if keeps else None
        if before is not None:
            found = before if before.origin == found.origin else Stored(before.object, found.origin)
        new.append(found)
    return new
