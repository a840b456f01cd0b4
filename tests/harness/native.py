"""Native files for tests: listeners, hosts and upstreams in few words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.harness.backend import RawBackend
from tests.harness.certificates import Pair

Target = RawBackend | str | Mapping[str, object]
"""A scripted backend, `address:port`, or an endpoint written out."""


@dataclass
class Native:
    """The content of a native file; `write` replaces a file with it atomically."""

    listeners: dict[str, dict[str, Any]] = field(default_factory=dict)
    hosts: dict[str, Any] = field(default_factory=dict)
    upstreams: dict[str, dict[str, Any]] = field(default_factory=dict)
    certificates: dict[str, dict[str, str]] = field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Host sets beside `hosts`, which is the one that listeners serve."""

    def listen(self, name: str, port: int, *, address: str = "127.0.0.1", **http: object) -> None:
        """A listener with these HTTP options, for example `head_timeout="300ms"`."""
        self.listeners[name] = {"address": address, "port": port, **({"http": http} if http else {})}

    def carry(self, name: str, port: int, forward: object, **stream: object) -> None:
        """A listener that carries TCP to an upstream, or to several by weight."""
        self.listeners[name] = {
            "address": "127.0.0.1",
            "port": port,
            "protocol": "tcp",
            "stream": {"forward": forward, **stream},
        }

    def carry_tls(
        self, name: str, port: int, names: Mapping[str, object], *, tls: object = None, **stream: object
    ) -> None:
        """A listener that carries TLS by server name; `names` maps them to upstreams, or to routes."""
        self.listeners[name] = {
            "address": "127.0.0.1",
            "port": port,
            "protocol": "tls",
            "stream": {"names": dict(names), **stream},
            **({"tls": tls} if tls else {}),
        }

    def carry_datagrams(
        self, name: str, port: int, forward: object, *, address: str = "127.0.0.1", **datagram: object
    ) -> None:
        """A listener that carries UDP to an upstream, or to several by weight."""
        self.listeners[name] = {
            "address": address,
            "port": port,
            "protocol": "udp",
            "datagram": {"forward": forward, **datagram},
        }

    def listen_tls(
        self, name: str, port: int, hosts: Mapping[str, object], *, http: object = None, **tls: object
    ) -> None:
        """A listener that speaks TLS; `hosts` maps names to certificates."""
        self.listeners[name] = {
            "address": "127.0.0.1",
            "port": port,
            "protocol": "https",
            "tls": {"hosts": dict(hosts), **tls},
            **({"http": http} if http else {}),
        }

    def certificate(self, name: str, pair: Pair) -> None:
        self.certificates[name] = {"chain": pair.chain, "key": pair.key}

    def upstream(self, name: str, targets: Iterable[Target], **fields: object) -> None:
        self.upstreams[name] = {"endpoints": [_endpoint(target) for target in targets], **fields}

    def host(self, hostname: str, *routes: dict[str, object]) -> None:
        self.hosts[hostname] = list(routes)

    def serve(
        self, hostname: str, *targets: Target, route: Mapping[str, object] | None = None, **fields: object
    ) -> None:
        """A host whose every request goes to these endpoints. `route` and `fields` (of the upstream) are options."""
        self.upstream(hostname, targets, **fields)
        self.host(hostname, forward(hostname, hostname, **(route or {})))

    def text(self) -> str:
        content: dict[str, object] = {"apiVersion": "lb/v1", "kind": "Config", "listeners": self.listeners}
        content |= {"hosts": {"default": self.hosts, **self.sets}, "upstreams": self.upstreams}
        if self.certificates:
            content["certificates"] = self.certificates
        return yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False)

    def write(self, path: Path) -> None:
        half = path.with_name(f".{path.name}.new")
        half.write_text(self.text())
        half.replace(path)


def forward(name: str, *upstreams: str | tuple[str, int], path: str = "/", **options: object) -> dict[str, object]:
    """A route that forwards a path prefix."""
    weights = dict((item, 1) if isinstance(item, str) else item for item in upstreams)
    return {"name": name, "path": path, "forward": weights, **options}


def respond(name: str, status: int, body: str = "", path: str = "/") -> dict[str, object]:
    """A route that lb answers itself."""
    return {"name": name, "path": path, "respond": {"status": status, "body": body}}


def _endpoint(target: Target) -> object:
    if isinstance(target, RawBackend):
        return {"address": target.key}
    return target if isinstance(target, str) else dict(target)
