"""The bytes of a file to typed objects: JSON, YAML, Lists, streams of documents, mixed.

Owns the rule that one bad item costs only itself, and the reuse of what did not change since the last reading of the
same file. It does no I/O and keeps nothing between calls but what the caller hands back as `previous`.

The fast path decodes each JSON item straight into its struct; places and reasons are worked out only for what failed.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec.structs import force_setattr, replace
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lb.objects import jsontext, yamltext
from lb.objects.core import Secret
from lb.objects.fields import SHAPES, Checker, Stray, find_strays
from lb.objects.kinds import KINDS, NATIVE_API_VERSION, NATIVE_KIND, SUPERSEDED, Kind, name_unknown
from lb.objects.layout import Change, Layout, measure, read_change, splice
from lb.objects.meta import Key, Object, ObjectMeta
from lb.objects.view import NativeConfig, Stored
from lb.problems import Origin, Problem

DEFAULT_NAMESPACE = "default"
"""Where kubectl puts an object that names no namespace."""

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""A copy of the whole object in an annotation; it is dropped, it would double the memory."""

UNUSED_SECRETS = frozenset(
    (
        "helm.sh/release.v1",
        "kubernetes.io/service-account-token",
        "kubernetes.io/dockerconfigjson",
        "kubernetes.io/dockercfg",
        "bootstrap.kubernetes.io/token",
    )
)
"""Secrets that no route can use; their content, which may be large, is not kept."""

_MAX_LIST_DEPTH = 4
_EXCERPT_LENGTH = 80
_MAX_SECOND_TRY_BYTES = 4 << 20
"""Longer texts in braces are exports: reading one as YAML takes minutes, only to fail."""
_BEGINS_AS_JSON = re.compile(rb"""\s*(?:\{\s*["}]|\[\s*[{\]])""")
_NAMES_A_SECRET = re.compile(rb"""kind["']?\s*:\s*["']?Secret|PRIVATE KEY""")
"""Texts of which no line is ever quoted."""


LEFT_OUT = "it is left out"
"""What becomes of a rejected object that has no last good version."""


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """An item that could not be decoded."""

    problem: Problem
    key: Key | None = None
    """The object that it would have been, when that can be told."""


class Doubted(Stored, frozen=True, gc=False):
    """An object with fields that are probably misspelt. It is used as it was read."""

    doubts: tuple[Problem, ...] = ()


Entry = Stored | Rejected | str
"""What an item became: an object, a Problem, or the name of a kind that lb does not read."""

AnyEntry = Entry | tuple[Entry, ...]
"""A List within a List becomes a tuple."""


class Decoded(msgspec.Struct, frozen=True):
    """All that one file holds."""

    entries: list[AnyEntry]
    """In the file's order."""
    errors: tuple[Problem, ...] = ()
    """Syntax errors: parts of the file that are not even items."""
    truncated: bool = False
    """The text ends where something is still open."""
    incomplete: bool = False
    """The last YAML document lacks what every object has: it may have been cut at the end of a line."""

    # Kept for the next reading of the same file.
    digests: array[int] | None = None
    """JSON: the hash of each entry's text."""
    layout: Layout | None = None
    """JSON: where the items stand in a large List."""
    chunks: dict[int, _ChunkEntries] | None = None
    """YAML: by the hash of each document's text."""

    def flat(self) -> Iterator[Entry]:
        for entry in self.entries:
            if isinstance(entry, tuple):
                yield from entry
            else:
                yield entry

    def parts(self) -> Parts:
        """The entries by what they became."""
        if set(map(type, self.entries)) <= {Stored}:  # the usual case, and a large one
            return Parts(self.entries, [], Counter(), [])  # type: ignore[arg-type]
        parts = Parts([], [], Counter(), [])
        for entry in self.flat():
            if isinstance(entry, Stored):
                parts.stored.append(entry)
                if isinstance(entry, Doubted):
                    parts.doubts.extend(entry.doubts)
            elif isinstance(entry, Rejected):
                parts.rejected.append(entry)
            else:
                parts.unknown[entry] += 1
        return parts


class Parts(NamedTuple):
    """What a file holds, sorted out."""

    stored: list[Stored]
    rejected: list[Rejected]
    unknown: Counter[str]
    doubts: list[Problem]
    """What is told of objects that are used."""


class _ChunkEntries(NamedTuple):
    first_line: int
    entries: tuple[Entry, ...]
    errors: tuple[Problem, ...]
    at_end: bool
    incomplete: bool


def decode(data: bytes, file: str, previous: Decoded | None = None) -> Decoded:
    """Read a file. Never raises: what is wrong becomes a Problem.

    `previous` is what the same file held before; items whose text is the same keep their objects.
    """
    if jsontext.looks_like_json(data) or (file.endswith(".json") and not data.strip()):
        decoded = _decode_json(data.removeprefix(b"\xef\xbb\xbf"), file, previous)
        if not decoded.errors or file.endswith(".json") or len(data) > _MAX_SECOND_TRY_BYTES:
            return decoded
        # YAML may begin with a brace too, and JSON documents may stand among YAML ones.
        as_yaml = _decode_yaml(data, file, previous)
        return as_yaml if _is_rather_yaml(data, as_yaml, decoded) else decoded
    return _decode_yaml(data, file, previous)


def _is_rather_yaml(data: bytes, as_yaml: Decoded, as_json: Decoded) -> bool:
    if not as_yaml.errors or len(as_yaml.entries) != len(as_json.entries):
        return len(as_yaml.entries) >= len(as_json.entries)
    return not _BEGINS_AS_JSON.match(data)  # both are broken: whose error is of use?


# JSON


def _decode_json(data: bytes, file: str, previous: Decoded | None) -> Decoded:
    try:
        items = jsontext.read_items(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if "trailing characters" in str(error):
            return _decode_stream(data, file)
        return _decode_broken(data, file, error)
    if items is None:
        entry = _json_entry(data, file, "", 0)
        return Decoded([entry])
    prefix = "" if data.lstrip()[:1] == b"[" else "items"
    digests, entries = _decode_items(items, file, prefix, 0, _KnownItems(previous))
    if prefix and jsontext.has_two_lists(data, items):
        line, column = jsontext.line_and_column(data, jsontext.first_item_offset(data) or 0)
        origin = Origin(file=file, line=line, column=column)
        return Decoded(entries, (_stands_twice(("items",), origin),), digests=digests)
    return Decoded(entries, digests=digests, layout=measure(data, items))


def decode_change(change: Change, file: str, previous: Decoded) -> Decoded | None:
    """The new content of a file of which only a part changed; None when that part is not whole items by itself."""
    if previous.layout is None or previous.digests is None:
        return None
    try:
        items = read_change(change)
    except (msgspec.DecodeError, RecursionError):
        return None
    if items is None:
        return None
    first, end = change.first_item, change.end_item
    known = _KnownItems(previous, first, end)
    digests, entries = _decode_items(items, file, "items", first, known)
    after = previous.entries[end:]
    if len(items) != end - first:
        start = first + len(items)
        after = [_at_index(entry, "items", start + place) for place, entry in enumerate(after)]
    return Decoded(
        previous.entries[:first] + entries + after,
        digests=previous.digests[:first] + digests + previous.digests[end:],
        layout=splice(previous.layout, change, items),
    )


def _decode_items(
    items: Sequence[msgspec.Raw], file: str, prefix: str, first: int, known: _KnownItems
) -> tuple[array[int], list[AnyEntry]]:
    """The items of a List from number `first` on, with their hashes."""
    digests = array("q")
    entries: list[AnyEntry] = []
    for index, raw in enumerate(items, first):
        text = bytes(raw)
        digest = hash(text)
        digests.append(digest)
        entry = known.find(index, digest, prefix)
        if entry is None:
            entry = known.same_object(index, _json_entry(text, file, f"{prefix}[{index}]", 0))
        entries.append(entry)
    return digests, entries


def _at_index(entry: AnyEntry, prefix: str, index: int) -> AnyEntry:
    """An entry whose text stands at another index now."""
    item = f"{prefix}[{index}]"
    if isinstance(entry, Doubted):
        doubts = tuple(_with_item(doubt, item) for doubt in entry.doubts)
        return Doubted(entry.object, replace(entry.origin, item=item), doubts)
    if isinstance(entry, Stored):
        return Stored(entry.object, replace(entry.origin, item=item))
    if isinstance(entry, Rejected):
        return Rejected(_with_item(entry.problem, item), entry.key)
    return entry


def _with_item(problem: Problem, item: str) -> Problem:
    return replace(problem, origin=replace(problem.origin, item=item))


class _KnownItems:
    """The entries of the previous reading from `first` to `end`, by the hash of their text and by their key."""

    __slots__ = ("_by_key", "_digests", "_end", "_entries", "_first", "_where")

    def __init__(self, previous: Decoded | None, first: int = 0, end: int | None = None) -> None:
        self._digests: array[int] = array("q")
        self._entries: list[AnyEntry] = []
        if previous is not None and previous.digests is not None:
            self._digests, self._entries = previous.digests, previous.entries
        self._first = first
        self._end = len(self._digests) if end is None else end
        self._where: dict[int, int] | None = None
        self._by_key: dict[_Identity, Stored] | None = None

    def find(self, index: int, digest: int, prefix: str) -> AnyEntry | None:
        """What the same text became before, with its new place."""
        if index < self._end and self._digests[index] == digest:
            return self._entries[index]
        if self._where is None:
            self._where = {self._digests[place]: place for place in range(self._first, self._end)}
        old_index = self._where.get(digest)
        if old_index is None or isinstance(self._entries[old_index], tuple):
            return None
        return _at_index(self._entries[old_index], prefix, index)

    def same_object(self, index: int, entry: AnyEntry) -> AnyEntry:
        """The old object in place of an equal new one: often only what lb does not keep has changed."""
        if self._first == self._end or not isinstance(entry, Stored):
            return entry
        old = self._entries[index] if index < self._end else None
        if not isinstance(old, Stored) or _identity(old) != _identity(entry):
            if self._by_key is None:
                known = (self._entries[place] for place in range(self._first, self._end))
                self._by_key = {_identity(stored): stored for stored in known if isinstance(stored, Stored)}
            old = self._by_key.get(_identity(entry))
        if old is None or old.object != entry.object:
            return entry
        if isinstance(entry, Doubted) or isinstance(old, Doubted):
            return replace(entry, object=old.object)
        return old if old.origin == entry.origin else Stored(old.object, replace(old.origin, item=entry.origin.item))


_Identity = tuple[type[Object], str, str]


def _identity(stored: Stored) -> _Identity:
    metadata = stored.object.metadata
    return stored.object.__class__, metadata.namespace, metadata.name


def _decode_stream(data: bytes, file: str) -> Decoded:
    """Several JSON documents, one after the other."""
    documents, broken = jsontext.read_documents(data)
    entries: list[AnyEntry] = [
        _json_entries(text, file, f"documents[{index}]", 0) for index, text in enumerate(documents)
    ]
    if broken is None:
        return Decoded(entries)
    return Decoded(entries, (_syntax_problem(data, file, broken),), truncated=broken.truncated)


def _decode_broken(data: bytes, file: str, error: Exception) -> Decoded:
    """A List that is not JSON: whatever items in it are whole, and a Problem for each broken one."""
    found = jsontext.explain(data, error)
    entries: list[AnyEntry] = []
    errors: list[Problem] = []
    for index, piece in enumerate(jsontext.salvage(data)):
        if piece.error is None:
            entries.append(_json_entry(piece.data, file, f"items[{index}]", 0))
        elif not found.truncated:
            errors.append(_syntax_problem(data, file, piece.error))
    if not errors:
        errors.append(_syntax_problem(data, file, found))
    return Decoded(entries, tuple(errors), truncated=found.truncated)


def _syntax_problem(data: bytes, file: str, found: jsontext.JsonError) -> Problem:
    excerpt = "" if _NAMES_A_SECRET.search(data) else _excerpt(data, found.offset)
    return Problem(
        "LB1006" if found.truncated else "LB1002",
        Origin(file=file, line=found.line, column=found.column),
        found.what + (f": `{excerpt}`" if excerpt else ""),
        fix="write the file whole, best under another name and then renamed" if found.truncated else "",
    )


def _excerpt(data: bytes, offset: int) -> str:
    """The text around an offset, within its line."""
    start = max(data.rfind(b"\n", 0, offset) + 1, offset - _EXCERPT_LENGTH // 2)
    end = data.find(b"\n", offset)
    end = min(len(data) if end < 0 else end, start + _EXCERPT_LENGTH)
    return data[start:end].decode(errors="replace").strip()


def _json_entries(data: bytes, file: str, item: str, depth: int) -> tuple[Entry, ...]:
    """A JSON value that may be a List itself."""
    items = jsontext.read_items(data) if depth < _MAX_LIST_DEPTH else None
    if items is None:
        entry = _json_entry(data, file, item, depth)
        return entry if isinstance(entry, tuple) else (entry,)
    entries: list[Entry] = []
    for index, raw in enumerate(items):
        entry = _json_entry(bytes(raw), file, f"{item}.items[{index}]", depth + 1)
        entries.extend(entry) if isinstance(entry, tuple) else entries.append(entry)
    return tuple(entries)


def _json_entry(data: bytes, file: str, item: str, depth: int) -> AnyEntry:
    entry = _read_json_entry(data, file, item, depth)
    if isinstance(entry, Stored) and (path := jsontext.repeated_key(data)) is not None:
        return Rejected(_stands_twice(path, entry.origin), _key_of(entry.origin))
    return entry


def _stands_twice(path: Sequence[str | int], origin: Origin) -> Problem:
    """As yamltext says it."""
    what = f"the key `{path[-1]}` stands twice in this mapping"
    why = f"nobody can tell which of the two is meant; {LEFT_OUT}" if origin.kind else ""
    return Problem("LB1002", origin, what, why, "remove one of the two", _write_path(path))


def _read_json_entry(data: bytes, file: str, item: str, depth: int) -> AnyEntry:
    try:
        head = jsontext.read_head(data)
        kind = KINDS.get((head.api_version, head.kind))
        if kind is None:
            return _json_other(data, file, item, head, depth)
        entry = _finish(_DECODERS[kind.type].decode(data), head.kind, kind, file, item)
        if _CHECKERS[head.kind].has_unknown(data):
            return _with_doubts(entry, _json_strays(head.kind, data), None)
        return entry
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _json_slowly(data, file, item)


def _json_strays(kind: str, data: bytes) -> Sequence[Stray]:
    try:
        return find_strays(kind, msgspec.json.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()  # in a part that lb does not use: it does not reject the object


def _json_other(data: bytes, file: str, item: str, head: jsontext.Head, depth: int) -> AnyEntry:
    """What is not one of the kinds: a List within a List, a native file, an old form, an unknown kind."""
    if head.kind.endswith("List") and depth < _MAX_LIST_DEPTH and jsontext.read_items(data) is not None:
        return _json_entries(data, file, item, depth)
    if (head.api_version, head.kind) == (NATIVE_API_VERSION, NATIVE_KIND):
        content = msgspec.json.decode(data, type=dict[str, object])
        return _native(content, {}, Origin(file=file, item=item))
    if head.api_version and head.kind and (head.api_version, head.kind) not in SUPERSEDED:
        return _unknown(head.api_version, head.kind, Origin(file=file, item=item))
    return _json_slowly(data, file, item)


def _json_slowly(data: bytes, file: str, item: str) -> Entry:
    """An item that the fast path refused: nulls read as missing fields, or a Problem that says where."""
    origin = Origin(file=file, item=item)
    try:
        content = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        found = jsontext.explain(data, error)
        return Rejected(Problem("LB1002", origin, found.what, fix="export the object again"))
    try:
        content = _without_nulls(content, False, 0)
    except RecursionError:
        return Rejected(Problem("LB1003", origin, "nested too deeply", LEFT_OUT))
    return _convert(content, origin, None)


def _without_nulls(value: object, in_text_map: bool, depth: int) -> object:
    """A null says what a missing field says, and is an empty text in a text map (Go's encoding/json, Unmarshal)."""
    if depth > yamltext.MAX_DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        if in_text_map:
            return {key: "" if below is None else below for key, below in value.items()}
        return {
            key: _without_nulls(below, key in yamltext.TEXT_MAPS, depth + 1)
            for key, below in value.items()
            if below is not None
        }
    if isinstance(value, list):
        return [_without_nulls(below, False, depth + 1) for below in value]
    return value


# YAML


def _decode_yaml(data: bytes, file: str, previous: Decoded | None) -> Decoded:
    known = (previous.chunks if previous else None) or {}
    objects: dict[_Identity, Object] = {}
    if previous is not None:
        objects = {_identity(stored): stored.object for stored in previous.flat() if isinstance(stored, Stored)}
    chunks: dict[int, _ChunkEntries] = {}
    entries: list[AnyEntry] = []
    errors: list[Problem] = []
    at_end = incomplete = False
    for chunk in yamltext.split(data):
        digest = hash(chunk.data)
        read = _moved(known.get(digest), chunk.first_line)
        if read is None:
            read = _yaml_chunk(chunk, file)
            read = read._replace(entries=tuple(_with_old_object(entry, objects) for entry in read.entries))
        chunks[digest] = read
        entries.extend(read.entries)
        errors.extend(read.errors)
        at_end, incomplete = read.at_end, read.incomplete
    return Decoded(_name_natives(entries, file), tuple(errors), at_end, incomplete, chunks=chunks)


def _with_old_object(entry: Entry, objects: Mapping[_Identity, Object]) -> Entry:
    """The old object in place of an equal new one."""
    if not isinstance(entry, Stored):
        return entry
    old = objects.get(_identity(entry))
    return replace(entry, object=old) if old is not None and old == entry.object else entry


def _moved(read: _ChunkEntries | None, first_line: int) -> _ChunkEntries | None:
    """A document read before, at the line where it stands now."""
    if read is None or read.first_line == first_line:
        return read
    shift = first_line - read.first_line
    entries: list[Entry] = []
    for entry in read.entries:
        if not isinstance(entry, Stored):
            entries.append(entry)
        elif isinstance(entry.object, NativeConfig) or isinstance(entry, Doubted):
            return None  # lines are part of it
        else:
            entries.append(Stored(entry.object, replace(entry.origin, line=entry.origin.line + shift)))
    if read.errors or any(isinstance(entry, Rejected) for entry in entries):
        return None
    return read._replace(first_line=first_line, entries=tuple(entries))


def _yaml_chunk(chunk: yamltext.Chunk, file: str) -> _ChunkEntries:
    converter = yamltext.Converter(len(chunk.data))
    entries: list[Entry] = []
    incomplete = False
    try:
        for root in yamltext.compose(chunk.data):
            entries.extend(_yaml_entries(root, chunk, file, converter, 0))
            incomplete = _lacks_identity(root)
    except yamltext.YamlError as error:
        problem = _yaml_problem(error, chunk, Origin(file=file))
        return _ChunkEntries(chunk.first_line, tuple(entries), (problem,), error.at_end, False)
    return _ChunkEntries(chunk.first_line, tuple(entries), (), False, incomplete)


def _lacks_identity(root: Node) -> bool:
    """kubectl writes keys in order (`kind` of a List comes last), so a cut file lacks some of these."""
    if not isinstance(root, MappingNode):
        return True
    kind = yamltext.member(root, "kind")
    if kind is None or yamltext.member(root, "apiVersion") is None:
        return True
    known = (yamltext.member_text(root, "apiVersion"), str(kind.value)) in KINDS
    return known and yamltext.member(root, "metadata") is None


def _yaml_entries(
    root: Node, chunk: yamltext.Chunk, file: str, converter: yamltext.Converter, depth: int
) -> Iterator[Entry]:
    line, column = yamltext.position(root)
    origin = Origin(file=file, line=chunk.first_line + line, column=column)
    items = yamltext.only_member(root, "items")
    if (
        isinstance(items, SequenceNode)
        and depth < _MAX_LIST_DEPTH
        and yamltext.member_text(root, "kind")[-4:] in ("", "List")
    ):
        for item in items.value:
            converter.spend(item)
            yield from _yaml_entries(item, chunk, file, converter, depth + 1)
        return
    if isinstance(root, ScalarNode) and not root.value:
        return  # an empty document
    if not isinstance(root, MappingNode):
        yield Rejected(
            Problem("LB1003", origin, "this is no object", LEFT_OUT, fix="write `apiVersion`, `kind` and `metadata`")
        )
        return
    yield _yaml_entry(root, chunk, origin, converter)


def _yaml_entry(root: MappingNode, chunk: yamltext.Chunk, origin: Origin, converter: yamltext.Converter) -> Entry:
    api_version, kind = yamltext.member_text(root, "apiVersion"), yamltext.member_text(root, "kind")
    try:
        if (api_version, kind) == (NATIVE_API_VERSION, NATIVE_KIND):
            content = converter.mapping(root, yamltext.Nulls.KEEP)
            return _native(content, yamltext.lines(root, chunk.first_line), origin)
        if api_version and kind and (api_version, kind) not in KINDS and (api_version, kind) not in SUPERSEDED:
            return _unknown(api_version, kind, origin)
        return _convert(converter.mapping(root), origin, _Places(root, chunk.first_line))
    except yamltext.YamlError as error:
        named = _named_origin(api_version, kind, _yaml_metadata(root), origin)
        return Rejected(_yaml_problem(error, chunk, named), _key_of(named))


def _yaml_metadata(root: MappingNode) -> dict[str, object]:
    metadata = yamltext.member(root, "metadata")
    if metadata is None:
        return {}
    return {name: yamltext.member_text(metadata, name) for name in ("namespace", "name")}


def _yaml_problem(error: yamltext.YamlError, chunk: yamltext.Chunk, origin: Origin) -> Problem:
    what = error.what
    if error.begin_line:
        what += f" (it begins on line {chunk.first_line + error.begin_line})"
    if not _NAMES_A_SECRET.search(chunk.data):
        text = chunk.data.split(b"\n")[error.line - 1 : error.line]
        excerpt = text[0].decode(errors="replace").strip()[:_EXCERPT_LENGTH] if text else ""
        what += f": `{excerpt}`" if excerpt else ""
    place = replace(origin, line=chunk.first_line + error.line, column=error.column)
    return Problem("LB1002", place, what, fix=error.fix)


def _name_natives(entries: list[AnyEntry], file: str) -> list[AnyEntry]:
    """A native document is known by its file, and by its number in it from the second one on."""
    number = 0
    for index, entry in enumerate(entries):
        if isinstance(entry, Stored) and isinstance(entry.object, NativeConfig):
            number += 1
            name = file if number == 1 else f"{file}#{number}"
            if entry.object.metadata.name != name:
                renamed = replace(entry.object, metadata=ObjectMeta(name=name))
                entries[index] = Stored(renamed, entry.origin)
    return entries


# Both


class _Places:
    """Finds the line of a field in a YAML document."""

    __slots__ = ("_first_line", "_root")

    def __init__(self, root: Node, first_line: int) -> None:
        self._root = root
        self._first_line = first_line

    def of(self, path: Sequence[str | int]) -> tuple[int, int]:
        line, column = yamltext.position(self._root, path)
        return self._first_line + line, column

    def of_key(self, path: Sequence[str | int]) -> tuple[int, int]:
        """Where the name of a field stands rather than its value, which may begin on a later line."""
        line, column = yamltext.key_position(self._root, path)
        return self._first_line + line, column


_DECODERS: dict[type[Object], msgspec.json.Decoder[Object]] = {
    kind.type: msgspec.json.Decoder(kind.type) for kind in KINDS.values()
}

_CHECKERS = {name: Checker(name) for name in SHAPES}


def _convert(content: object, origin: Origin, places: _Places | None) -> Entry:
    """Plain values to an object or a Problem."""
    if not isinstance(content, dict):
        return Rejected(
            Problem("LB1003", origin, "this is no object", LEFT_OUT, fix="write `apiVersion`, `kind` and `metadata`")
        )
    api_version, kind_name = content.get("apiVersion"), content.get("kind")
    if not isinstance(api_version, str) or not api_version:
        return Rejected(
            Problem("LB1003", origin, "apiVersion is missing or is no string", LEFT_OUT, field="apiVersion")
        )
    if not isinstance(kind_name, str) or not kind_name:
        return Rejected(Problem("LB1003", origin, "kind is missing or is no string", LEFT_OUT, field="kind"))
    named = _named_origin(api_version, kind_name, content.get("metadata"), origin)
    if (api_version, kind_name) in SUPERSEDED:
        return Rejected(_superseded(api_version, kind_name, named))
    kind = KINDS.get((api_version, kind_name))
    if kind is None:
        return _unknown(api_version, kind_name, origin)
    try:
        entry = _finish(
            msgspec.convert(content, kind.type), kind_name, kind, origin.file, origin.item, origin.line, origin.column
        )
        return _with_doubts(entry, find_strays(kind_name, content), places)
    except msgspec.ValidationError as error:
        return Rejected(_wrong_field(error, content, named, places), _key_of(named))


def _unknown(api_version: str, kind: str, origin: Origin) -> Rejected | str:
    """What is none of lb's kinds. In lb's own group that is a mistake: a native file must not vanish by it."""
    if api_version.partition("/")[0] != NATIVE_API_VERSION.partition("/")[0]:
        return name_unknown(api_version, kind)
    fix = f"write `apiVersion: {NATIVE_API_VERSION}` and `kind: {NATIVE_KIND}`"
    return Rejected(Problem("LB1003", origin, f"lb has no kind {kind} in {api_version}", LEFT_OUT, fix, "kind"))


def _superseded(api_version: str, kind: str, origin: Origin) -> Problem:
    successor = SUPERSEDED[api_version, kind]
    return Problem(
        "LB1007",
        origin,
        f"{api_version} {kind} is an old form that lb does not read",
        why="Kubernetes itself stopped serving it",
        fix=f"convert it with `kubectl convert --output-version {successor}`, or export it from the cluster again",
        field="apiVersion",
    )


def _named_origin(api_version: str, kind_name: str, metadata: object, origin: Origin) -> Origin:
    """The origin with as much of the object's name as can be read."""
    values = metadata if isinstance(metadata, dict) else {}
    namespace, name = values.get("namespace"), values.get("name")
    kind = KINDS.get((SUPERSEDED.get((api_version, kind_name), api_version), kind_name))
    if kind is None or not kind.namespaced:
        namespace = ""
    elif not isinstance(namespace, str) or not namespace:
        namespace = DEFAULT_NAMESPACE
    return replace(origin, kind=kind_name, namespace=namespace, name=name if isinstance(name, str) else "")


def _key_of(named: Origin) -> Key | None:
    return Key(named.kind, named.namespace, named.name) if named.name else None


def _finish(found: Object, kind_name: str, kind: Kind, file: str, item: str, line: int = 0, column: int = 0) -> Entry:
    """Complete an object that nobody has seen yet, as the API server would, and drop what lb never uses.

    The place comes in parts: an Origin that is not kept would cost time. The structs are frozen for everybody else;
    here they are still being made.
    """
    metadata = found.metadata
    name = metadata.name
    namespace = ""
    if kind.namespaced:
        # Equal texts of many objects are kept once.
        namespace = sys.intern(metadata.namespace or DEFAULT_NAMESPACE)
    force_setattr(metadata, "namespace", namespace)
    if not name:
        named = Origin(kind_name, namespace, "", file, line, column, item)
        return Rejected(Problem("LB1003", named, "metadata.name is empty", LEFT_OUT, field="metadata.name"))
    if "labels" not in kind.keeps:
        force_setattr(metadata, "labels", None)
    if metadata.annotations is not None:
        force_setattr(metadata, "annotations", _annotations(metadata, kind))
    if isinstance(found, Secret) and found.type in UNUSED_SECRETS:
        force_setattr(found, "data", None)
        force_setattr(found, "string_data", None)
    return Stored(found, Origin(sys.intern(kind_name), namespace, name, file, line, column, item))


def _with_doubts(entry: Entry, strays: Sequence[Stray], places: _Places | None) -> Entry:
    """An object that lets in more than it says is rejected, as the API server would; of others it is told."""
    if not strays or not isinstance(entry, Stored):
        return entry
    problems = [_stray_field(stray, entry.origin, places) for stray in strays]
    if strays[0].danger:
        return Rejected(problems[0], _key_of(entry.origin))
    return Doubted(entry.object, entry.origin, tuple(problems))


def _stray_field(stray: Stray, origin: Origin, places: _Places | None) -> Problem:
    field = _write_path(stray.path)
    if places is not None:
        line, column = places.of_key(stray.path)
        origin = replace(origin, line=line, column=column)
    what = f"{field} is no field of {origin.kind}: did you mean {stray.meant}?"
    fix = f"write {stray.meant}; `kubectl apply --dry-run=server` finds such mistakes too"
    if stray.danger:
        return Problem("LB1010", origin, what, f"{stray.danger}; {LEFT_OUT}", fix, field)
    return Problem("LB1009", origin, what, "lb reads the object as if the field were not there", fix, field)


def _annotations(metadata: ObjectMeta, kind: Kind) -> dict[str, str] | None:
    if metadata.annotations is None or "annotations" not in kind.keeps:
        return None
    # The keys are long and the same in many objects.
    return {sys.intern(key): value for key, value in metadata.annotations.items() if key != LAST_APPLIED} or None


def _native(content: dict[str, object], lines: dict[str, int], origin: Origin) -> Stored:
    return Stored(NativeConfig(ObjectMeta(name=origin.file), content, lines), origin)


_VALIDATION = re.compile(r"^(.*?)(?: - at `\$(.*)`)?$", re.DOTALL)
_PATH_PART = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[(\.\.\.)\]")
_EXPECTED = re.compile(r"^Expected `(.*)`, got `(.*)`$")
_BOUND = re.compile(r"^Expected `int` ([<>])= (\d+)$")
_MISSING = re.compile(r"^Object missing required field `(.*)`$")


def _wrong_field(error: Exception, content: object, origin: Origin, places: _Places | None) -> Problem:
    """What msgspec says, in the object's own terms."""
    match = _VALIDATION.match(str(error))
    message, path_text = (match[1], match[2] or "") if match else (str(error), "")
    path = _read_path(path_text, content)
    what, fix = message, ""
    if missing := _MISSING.match(message):
        path.append(missing[1])
        what, fix = "is missing", "add the field"
    elif expected := _EXPECTED.match(message):
        what = f"must be {' or '.join(map(_type_name, expected[1].split(' | ')))}, not {_type_name(expected[2])}"
        fix = _fix_of_type(expected[1], expected[2])
    elif bound := _BOUND.match(message):
        what = f"must be at {'least' if bound[1] == '>' else 'most'} {bound[2]}"
        fix = f"write {bound[2]} or {'more' if bound[1] == '>' else 'less'}"
    field = _write_path(path)
    if places is not None:
        line, column = places.of(path)
        origin = replace(origin, line=line, column=column)
    why = f"the API server would refuse this object; {LEFT_OUT}"
    return Problem("LB1003", origin, f"{field or 'the object'} {what}", why, fix, field)


def _fix_of_type(wanted: str, found: str) -> str:
    if "str" in wanted and found in _SCALARS:
        return "put the value in quotes"
    if found == "str" and wanted in _SCALARS:
        return f"write {_type_name(wanted)}, without quotes"
    return f"write {' or '.join(map(_type_name, wanted.split(' | ')))}"


_SCALARS = frozenset(("bool", "int", "float"))
_TYPE_NAMES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "array": "a list",
    "object": "a map",
}


def _type_name(name: str) -> str:
    """msgspec's name of a type as Kubernetes says it."""
    return _TYPE_NAMES.get(name, name)


def _read_path(text: str, content: object) -> list[str | int]:
    """`.spec.rules[0]` as parts. msgspec says `[...]` for a key of a text map: the key is looked up."""
    path: list[str | int] = []
    value = content
    for name, index, any_key in _PATH_PART.findall(text):
        part: str | int = name or (int(index) if index else "")
        if any_key and isinstance(value, dict):
            part = next((key for key, below in value.items() if not isinstance(below, str)), "")
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        path.append(part)
    return path


def _write_path(path: Sequence[str | int]) -> str:
    text = ""
    for part in path:
        if isinstance(part, int) or "." in part or "/" in part:
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text
