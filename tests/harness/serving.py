"""One lb with its listeners and scripted backends, as the tests of a module share it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.backend import RawBackend
from tests.harness.client import Address, RawClient
from tests.harness.native import Native
from tests.harness.ports import free_port
from tests.harness.process import LbProcess


@dataclass
class Serving:
    """A running lb, the native file it serves, and where to reach it."""

    lb: LbProcess
    native: Native
    path: Path
    backends: dict[str, RawBackend] = field(default_factory=dict)

    def address(self, listener: str = "http") -> Address:
        port = self.native.listeners[listener]["port"]
        assert isinstance(port, int)
        return "127.0.0.1", port

    def connect(self, listener: str = "http", **options: object) -> RawClient:
        return RawClient(self.address(listener), **options)  # type: ignore[arg-type]

    def apply(self) -> int:
        """Write the changed native file and wait until it serves; the new generation."""
        before = self.lb.generation
        self.native.write(self.path)
        return self.lb.wait_generation_after(before)


def flows(site: Serving, **filters: object) -> dict[str, Any]:
    """What is carried now, as the admin API tells it."""
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    answer: dict[str, Any] = site.lb.get(f"/v1/flows?{query}")
    assert sum(one["connections"] + one["sessions"] for one in answer["endpoints"]) == answer["total"]
    return answer


@contextmanager
def serving(
    directory: Path,
    native: Native,
    backends: dict[str, RawBackend] | None = None,
    *options: str,
    threads: int = 2,
    open_files: int | None = None,
) -> Iterator[Serving]:
    """Start lb on `native`, which gets a listener `http` when it has none; at the end lb must stop cleanly."""
    if not native.listeners:
        native.listen("http", free_port())
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "lb.yaml"
    native.write(path)
    backends = backends or {}
    try:
        with LbProcess([path], directory / "lb", *options, threads=threads, open_files=open_files) as lb:
            yield Serving(lb, native, path, backends)
            if lb.process.poll() is None:
                _end_sessions(Serving(lb, native, path))
                lb.assert_at_rest()
    finally:
        for backend in backends.values():
            backend.close()


def _end_sessions(site: Serving) -> None:
    """UDP sessions end by silence, for which nobody waits, or with their listener."""
    kept = {name: one for name, one in site.native.listeners.items() if one.get("protocol") != "udp"}
    if len(kept) == len(site.native.listeners):
        return
    site.native.listeners = kept
    if not kept:
        site.native.listen("http", free_port())
    site.apply()
