"""The store: every object of every source, by key, with where it came from and what changed since the last build.

Owns precedence between files that hold the same object (the file that sorts first wins; the others are LB1004) and the
indexes that translation needs. It knows nothing of routing. Not thread-safe: one thread owns it.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from lb.objects.discovery import SERVICE_NAME_LABEL, EndpointSlice
from lb.objects.meta import Key
from lb.objects.view import Changes, Stored
from lb.problems import Origin, Problem

EXPORT_COMMAND = "kubectl get ingressclass,ingress,service,endpointslice,secret,configmap,node -A -o json"
"""Prints all kinds that lb serves. What it prints holds keys."""

_NOTHING: Mapping[tuple[str, str], Stored] = MappingProxyType({})
_NO_FILE = ""
"""Stands before every file name: what is put without a file wins over files."""


class _File(msgspec.Struct):
    """What one file contributes."""

    stored: Sequence[Stored]
    problems: Sequence[Problem]
    unknown: Mapping[str, int]


def key_of(stored: Stored) -> Key:
    """The key an object is stored under."""
    metadata = stored.object.metadata
    return Key(stored.object.__class__.__name__, metadata.namespace, metadata.name)


class Store:
    """Implements lb.objects.view.View, and takes what sources bring."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[tuple[str, str], Stored]] = {}
        self._slices: dict[tuple[str, str], list[str]] = {}
        """(namespace, service) -> sorted names of its EndpointSlices."""
        self._files: dict[str, _File] = {}
        self._rivals: dict[Key, list[Stored]] = {}
        """Where an object stands more than once: all of them, the one that is served first."""
        self._changed: set[Key] = set()
        self._removed: set[Key] = set()
        self._everything = True

    # The view

    def get(self, kind: str, namespace: str, name: str) -> Stored | None:
        return self._objects.get(kind, _NOTHING).get((namespace, name))

    def all(self, kind: str) -> Mapping[tuple[str, str], Stored]:
        """(namespace, name) -> object. Live and read-only."""
        found = self._objects.get(kind)
        return _NOTHING if found is None else MappingProxyType(found)

    def slices_of(self, namespace: str, service: str) -> Sequence[Stored]:
        """The EndpointSlices of a Service, by name."""
        names = self._slices.get((namespace, service), ())
        slices = self._objects.get("EndpointSlice", _NOTHING)
        return [slices[namespace, name] for name in names]

    # What sources bring

    def replace_file(
        self,
        file: str,
        stored: Sequence[Stored],
        problems: Sequence[Problem] = (),
        unknown: Mapping[str, int] | None = None,
    ) -> None:
        """Take the whole content of a file in place of what it held before. `unknown` counts its other kinds."""
        before = self._files.get(file)
        old = before.stored if before else ()
        self._files[file] = _File(stored, problems, unknown or {})
        if not old:
            self._add_all(stored)
            return
        arrived, left = _compare(stored, old)
        known = {id(entry.object) for entry in left}
        moved: set[int] = set()
        entries: dict[Key, list[Stored]] = {}
        for entry in arrived:
            here = id(entry.object)
            if here in known and here not in moved and self._move(entry):
                moved.add(here)
            else:
                entries.setdefault(key_of(entry), []).append(entry)
        gone = Counter(key_of(entry) for entry in left if id(entry.object) not in moved)
        entries.update({key: [] for key in gone if key not in entries})
        repeated = {key for key in entries if self._count_in(key, file) > gone[key]}
        if repeated:  # unchanged places of this file hold the same objects: their order in the file decides
            entries.update({key: [] for key in repeated})
            for entry in stored:
                if (key := key_of(entry)) in repeated:
                    entries[key].append(entry)
        for key, found in entries.items():
            self._settle(key, file, found)

    def remove_file(self, file: str) -> None:
        """Forget a file and what only it held."""
        if file in self._files:
            self.replace_file(file, ())
            del self._files[file]

    def put(self, stored: Stored) -> None:
        """Add or replace an object that comes from no file."""
        self._settle(key_of(stored), _NO_FILE, [stored])

    def drop(self, key: Key) -> None:
        """Remove an object that came from no file."""
        self._settle(key, _NO_FILE, [])

    # What the pipeline asks

    def take_changes(self) -> Changes:
        """What changed since the last call, and forget it. The first call says `everything`."""
        changes = Changes(frozenset(self._changed), frozenset(self._removed), self._everything)
        self._changed.clear()
        self._removed.clear()
        self._everything = False
        return changes

    @property
    def has_changes(self) -> bool:
        """Whether take_changes would tell anything."""
        return self._everything or bool(self._changed or self._removed)

    def problems(self) -> Sequence[Problem]:
        """What is wrong with the files, by file, then objects that stand more than once."""
        found = [problem for _, file in sorted(self._files.items()) for problem in file.problems]
        found.extend(problem for key in sorted(self._rivals) for problem in self._duplicates(self._rivals[key]))
        if self._files and not any(self._objects.values()) and any(file.unknown for file in self._files.values()):
            names = ", ".join(sorted(self.unknown()))
            found.append(
                Problem(
                    "LB1005",
                    Origin(file=min(self._files)),
                    f"only kinds that lb does not serve were found: {names}",
                    fix=f"export the kinds that lb serves: {EXPORT_COMMAND}",
                )
            )
        return found

    def counts(self) -> dict[str, int]:
        """Objects by kind."""
        return {kind: len(objects) for kind, objects in sorted(self._objects.items()) if objects}

    def unknown(self) -> dict[str, int]:
        """Objects of kinds that lb does not read, by kind."""
        total: Counter[str] = Counter()
        for file in self._files.values():
            total.update(file.unknown)
        return dict(sorted(total.items()))

    def files(self) -> list[str]:
        """The files that contribute, sorted."""
        return sorted(self._files)

    def objects_of(self, file: str) -> Sequence[Stored]:
        """What a file holds, in its order, also what another file's object takes precedence over."""
        found = self._files.get(file)
        return found.stored if found else ()

    # Inside

    def _add_all(self, entries: Sequence[Stored]) -> None:
        """The content of a new file: one look-up for each object, since almost none has a rival."""
        for entry in entries:
            metadata = entry.object.metadata
            kind = entry.object.__class__.__name__
            name = (metadata.namespace, metadata.name)
            objects = self._objects.setdefault(kind, {})
            if name in objects:
                key = Key(kind, *name)
                same_file = [other for other in self._holders(key) if other.origin.file == entry.origin.file]
                self._settle(key, entry.origin.file, [*same_file, entry])
                continue
            objects[name] = entry
            if not self._everything:
                self._note_changed(Key(kind, *name))
            if kind == "EndpointSlice":
                self._index_slice(entry)

    def _holders(self, key: Key) -> list[Stored]:
        rivals = self._rivals.get(key)
        if rivals is not None:
            return rivals
        current = self.get(*key)
        return [] if current is None else [current]

    def _count_in(self, key: Key, file: str) -> int:
        return sum(1 for held in self._holders(key) if held.origin.file == file)

    def _settle(self, key: Key, file: str, entries: Sequence[Stored]) -> None:
        """Decide who is served under a key after `file` holds `entries` for it."""
        others = [held for held in self._holders(key) if held.origin.file != file]
        # Sorting is stable: within a file the first one wins.
        holders = sorted([*others, *entries], key=lambda held: held.origin.file)
        if len(holders) > 1:
            self._rivals[key] = holders
        else:
            self._rivals.pop(key, None)
        if holders:
            self._serve(key, holders[0])
        else:
            self._withdraw(key)

    def _move(self, entry: Stored) -> bool:
        """Tell the new place of the very object that is served; False when that takes more thought."""
        metadata = entry.object.metadata
        objects = self._objects[entry.object.__class__.__name__]
        name = (metadata.namespace, metadata.name)
        served = objects.get(name)
        if served is None or served.object is not entry.object or served.origin.file != entry.origin.file:
            return False
        if self._rivals and key_of(entry) in self._rivals:
            return False
        objects[name] = entry
        return True

    def _serve(self, key: Key, stored: Stored) -> None:
        objects = self._objects.setdefault(key.kind, {})
        name = (key.namespace, key.name)
        before = objects.get(name)
        if before is stored:
            return
        if before is not None and before.object == stored.object:
            # The same object at another place: no change, but its new place is told.
            objects[name] = before if before.origin == stored.origin else Stored(before.object, stored.origin)
            return
        if before is not None:
            self._unindex_slice(before)
        objects[name] = stored
        self._index_slice(stored)
        self._note_changed(key)

    def _withdraw(self, key: Key) -> None:
        before = self._objects.get(key.kind, {}).pop((key.namespace, key.name), None)
        if before is not None:
            self._unindex_slice(before)
            self._changed.discard(key)
            self._removed.add(key)

    def _note_changed(self, key: Key) -> None:
        self._removed.discard(key)
        self._changed.add(key)

    def _index_slice(self, stored: Stored) -> None:
        service = _service_of(stored)
        if service:
            insort(self._slices.setdefault(service, []), stored.object.metadata.name)

    def _unindex_slice(self, stored: Stored) -> None:
        service = _service_of(stored)
        if service:
            names = self._slices[service]
            names.remove(stored.object.metadata.name)
            if not names:
                del self._slices[service]

    def _duplicates(self, holders: Sequence[Stored]) -> list[Problem]:
        served = holders[0]
        found = []
        for other in holders[1:]:
            what = f"{key_of(other)} already stands in {served.origin.place}; this one is not used"
            why = "the two differ: the file that sorts first wins, then the place in it"
            if other.object == served.object:
                why = "the two are equal"
            found.append(Problem("LB1004", other.origin, what, why, "remove one of them"))
        return found


def _service_of(stored: Stored) -> tuple[str, str] | None:
    """The Service a slice belongs to."""
    if not isinstance(stored.object, EndpointSlice):
        return None
    metadata = stored.object.metadata
    service = (metadata.labels or {}).get(SERVICE_NAME_LABEL, "")
    return (metadata.namespace, service) if service else None


def _compare(new: Sequence[Stored], old: Sequence[Stored]) -> tuple[list[Stored], list[Stored]]:
    """What is new and what has left, by identity: most of a large file stays as it was."""
    if len(new) == len(old):
        pairs = [(after, before) for after, before in zip(new, old, strict=True) if after is not before]
        return [after for after, _ in pairs], [before for _, before in pairs]
    before_ids, after_ids = set(map(id, old)), set(map(id, new))
    return [after for after in new if id(after) not in before_ids], [
        before for before in old if id(before) not in after_ids
    ]
