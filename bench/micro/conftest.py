"""One made-up cluster for all: 10,000 Ingresses, 1,000 Services, in the store as `lb run` would have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.export import Cluster, make_cluster, write_directory
from lb.model.config import Config
from lb.objects.view import Changes
from lb.sources.files import read_paths
from lb.sources.store import Store
from lb.translate.translation import Options, Translation, translate


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return make_cluster(10_000, 1_000, 3, 9000)


@pytest.fixture(scope="session")
def export(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bench") / "export"
    write_directory(cluster, directory)
    return directory


@pytest.fixture(scope="session")
def store(export: Path) -> Store:
    store = read_paths([export])
    store.take_changes()
    return store


@pytest.fixture(scope="session")
def translation(store: Store) -> Translation:
    return translate(store, Options(), Changes(everything=True), None)


@pytest.fixture(scope="session")
def config(translation: Translation) -> Config:
    assert len(translation.config.hosts["ingress"]) == 10_000
    return translation.config
