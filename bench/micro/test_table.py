"""Compiling a model, everything and after one change, and looking routes up in the table."""

from __future__ import annotations

import itertools

import msgspec
from pytest_benchmark.fixture import BenchmarkFixture

from bench.export import Cluster
from lb._fastpath.engine import Engine
from lb.compile.table import Compiler
from lb.model.config import Config


def test_compile_everything(benchmark: BenchmarkFixture, config: Config) -> None:
    table = benchmark.pedantic(lambda: Compiler(Engine(threads=1)).compile(config, 1), rounds=3)
    assert table.host_count == 10_000


def test_compile_one_changed_host(benchmark: BenchmarkFixture, config: Config) -> None:
    compiler = Compiler(Engine(threads=1))
    compiler.compile(config, 1)
    hosts = config.hosts["ingress"]
    hostname, host = next(iter(hosts.items()))
    without = {**hosts, hostname: msgspec.structs.replace(host, routes=())}
    turns = itertools.cycle([msgspec.structs.replace(config, hosts={**config.hosts, "ingress": without}), config])
    table = benchmark(lambda: compiler.compile(next(turns), 2))
    assert table.host_count == 10_000


def test_match(benchmark: BenchmarkFixture, config: Config, cluster: Cluster) -> None:
    """With the call from Python, which costs more than the look-up."""
    table = Compiler(Engine(threads=1)).compile(config, 1)
    listener = next(iter(config.listeners))
    route = cluster.routes[4321]
    found = benchmark(table.match, listener, route.host.encode(), route.target("128").encode())
    assert found[0] == route.host
