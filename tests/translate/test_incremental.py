"""Translating what changed gives what translating everything gives, and what did not change is the same object."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model.config import Config
from lb.model.route import Forward
from lb.objects.meta import Object
from lb.objects.view import Changes
from lb.sources.store import Store
from lb.translate.translation import Options, Translation, translate
from tests.translate.cluster import backend, ingress, read_store
from tests.translate.objects import OBJECTS, key_of, stored

EVERYTHING = Changes(everything=True)

OPTIONS = st.sampled_from(
    [
        Options(),
        Options(),
        Options(targets="nodeports"),
        Options(classes=("lb",)),
        Options(balance="least-connections"),
        Options(load_balancers=True),
        Options(tcp_services="a/tcp"),
        Options(
            tcp_services="a/tcp", udp_services="a/tcp", ssl_passthrough=True, targets="nodeports", load_balancers=True
        ),
    ]
)


@given(OPTIONS, st.lists(st.lists(st.tuples(OBJECTS, st.booleans()), min_size=1, max_size=6), max_size=6))
@settings(max_examples=150)
def test_changes_give_what_a_full_translation_gives(options: Options, batches: list[list[tuple[Object, bool]]]) -> None:
    store = Store()
    previous = translate(store, options, store.take_changes(), None)
    for batch in batches:
        for found, keep in batch:
            if keep or store.get(*key_of(found)) is None:
                store.put(stored(found))
            else:
                store.drop(key_of(found))
        before = msgspec.json.encode(previous.config)
        translation = translate(store, options, store.take_changes(), previous)
        # What a part of a native file stays at while there is a mistake in it is known from before only.
        known = previous if any(one.code in ("LB5003", "LB5004") for one in translation.problems) else None
        full = translate(store, options, EVERYTHING, known)
        assert translation.config == full.config
        # Nor is it told in the same words when it is read a second time.
        assert translation.problems == full.problems or known is not None
        assert len(set(full.problems)) == len(full.problems)  # each is said once
        assert_equal_parts_are_the_same(translation, previous)
        assert_nothing_leads_nowhere(translation.config)
        assert msgspec.json.encode(previous.config) == before, "the old translation was changed"
        previous = translation


@given(st.lists(OBJECTS, max_size=20), OPTIONS, OPTIONS)
@settings(max_examples=50)
def test_translating_everything_again_keeps_what_is_equal(
    found: list[Object], options: Options, others: Options
) -> None:
    store = Store()
    for one in found:
        store.put(stored(one))
    first = translate(store, options, EVERYTHING, None)
    again = translate(store, options, EVERYTHING, first)
    assert again.config is first.config
    assert again.problems == first.problems
    # Other options than before: as from nothing, whatever the changes say.
    changed = translate(store, others, Changes(), first)
    assert changed.config == translate(store, others, EVERYTHING, None).config
    assert_equal_parts_are_the_same(changed, first)


def assert_nothing_leads_nowhere(config: Config) -> None:
    """Every upstream that is named is there: the compiler would refuse the build."""
    actions = [route.action for hosts in config.hosts.values() for host in hosts.values() for route in host.routes]
    forwards = [one for one in actions if isinstance(one, Forward)]
    forwards += [route.forward for listener in config.listeners.values() for route in listener.carried_routes]
    assert {upstream.name for one in forwards for upstream in one.upstreams} <= config.upstreams.keys()


def assert_equal_parts_are_the_same(new: Translation, old: Translation) -> None:
    for host_set, hosts in new.config.hosts.items():
        for hostname, host in hosts.items():
            native = [hostname in one._state.native.config.hosts.get(host_set, {}) for one in (old, new)]
            if native[0] != native[1]:
                continue  # one that passes between native files and Ingresses is made anew, even when it is equal
            before = old.config.hosts.get(host_set, {}).get(hostname)
            assert host is before or host != before, f"host {hostname} is equal, but another object"
    for name, upstream in new.config.upstreams.items():
        before_upstream = old.config.upstreams.get(name)
        assert upstream is before_upstream or upstream != before_upstream, f"upstream {name} is another object"


def test_nothing_changed_gives_the_same_config_and_problems() -> None:
    store = read_store(ingress("web", ("shop.example.com", "Prefix", "/", "web")) + backend("web", "10.0.0.1"))
    first = translate(store, Options(), EVERYTHING, None)
    again = translate(store, Options(), Changes(), first)
    assert again.config is first.config
    assert again.problems is first.problems


def test_an_endpoint_that_comes_leaves_all_hosts_alone() -> None:
    rules = ingress("web", ("shop.example.com", "Prefix", "/", "web"))
    store = read_store(rules + backend("web", "10.0.0.1"))
    first = translate(store, Options(), store.take_changes(), None)
    store.replace_file(
        "test.yaml", list(read_store(rules + backend("web", "10.0.0.1", "10.0.0.2")).objects_of("test.yaml"))
    )
    second = translate(store, Options(), store.take_changes(), first)
    assert [one.address for one in second.config.upstreams["shop/web:80"].endpoints] == ["10.0.0.1", "10.0.0.2"]
    assert second.config.hosts["ingress"] is first.config.hosts["ingress"]
