"""Reading an export and translating it: everything, and after one change."""

from __future__ import annotations

from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from lb.objects.meta import Key
from lb.objects.view import Changes
from lb.sources.files import read_paths
from lb.sources.store import Store
from lb.translate.translation import Options, Translation, translate


def test_read_export(benchmark: BenchmarkFixture, export: Path) -> None:
    store = benchmark.pedantic(read_paths, ([export],), rounds=3)
    assert store.counts()["Ingress"] == 10_000


def test_translate_everything(benchmark: BenchmarkFixture, store: Store) -> None:
    made = benchmark.pedantic(translate, (store, Options(), Changes(everything=True), None), rounds=3)
    assert len(made.config.hosts["ingress"]) == 10_000


def test_translate_one_changed_ingress(benchmark: BenchmarkFixture, store: Store, translation: Translation) -> None:
    (namespace, name), _ = next(iter(store.all("Ingress").items()))
    changes = Changes(changed=frozenset({Key("Ingress", namespace, name)}))
    made = benchmark(translate, store, Options(), changes, translation)
    assert made.config == translation.config


def test_translate_one_changed_slice(benchmark: BenchmarkFixture, store: Store, translation: Translation) -> None:
    (namespace, name), _ = next(iter(store.all("EndpointSlice").items()))
    changes = Changes(changed=frozenset({Key("EndpointSlice", namespace, name)}))
    made = benchmark(translate, store, Options(), changes, translation)
    assert made.config == translation.config
