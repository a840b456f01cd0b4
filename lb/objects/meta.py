"""What every Kubernetes object has: its metadata and the key it is known by."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Key(NamedTuple):
    """What identifies an object in the store. `namespace` is empty for cluster-wide kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class ObjectMeta(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """The metadata that routing depends on."""

    name: str
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None
    """RFC 3339 in UTC as the API server writes it; such texts sort by time as they are."""
    deletion_timestamp: str | None = None
    generation: int = 0


class Object(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Base of all kinds. `kind` and `apiVersion` choose the type while decoding and are not kept."""

    metadata: ObjectMeta
