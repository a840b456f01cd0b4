"""How translation sees objects: typed, by key, with their places and changes. Implemented by lb/sources/store.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec

from lb.objects.meta import Key, Object
from lb.problems import Origin

ObjectT = TypeVar("ObjectT", bound=Object)


class Stored(msgspec.Struct, frozen=True, gc=False):
    """An object and its place."""

    object: Object
    origin: Origin


class Changes(msgspec.Struct, frozen=True):
    """What differs from the last build. `everything` says: forget what you know."""

    changed: frozenset[Key] = frozenset()
    """Added or different."""
    removed: frozenset[Key] = frozenset()
    everything: bool = False


class View(Protocol):
    """Read-only view of all objects."""

    def get(self, kind: str, namespace: str, name: str) -> Stored | None: ...

    def all(self, kind: str) -> Mapping[tuple[str, str], Stored]:
        """(namespace, name) -> object."""

    def slices_of(self, namespace: str, service: str) -> Sequence[Stored]:
        """The EndpointSlices of a Service, by name."""


class Resolution(Object, frozen=True, omit_defaults=True, gc=False):
    """What a name resolved to; put into the store by the resolver. `metadata.name` is the name that was asked for."""

    addresses: tuple[str, ...] = ()
    error: str = ""
    """Why there are no addresses. The last good ones are kept on a passing failure."""


class NativeConfig(Object, frozen=True, omit_defaults=True, gc=False):
    """A native file (`apiVersion: lb/v1`, `kind: Config`), undecoded: lb/model/text.py turns it into model values."""

    content: dict[str, object] = msgspec.field(default_factory=dict)
    lines: dict[str, int] = msgspec.field(default_factory=dict)
    """Path inside the document (`listeners.http`, `upstreams.web.endpoints[0]`) -> line, for YAML."""

    def __repr__(self) -> str:  # private keys may stand in it
        return f"NativeConfig({self.metadata.name})"
