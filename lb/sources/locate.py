"""Finds the line of an object from a JSON file, when somebody asks.

Lines are not kept for JSON: finding them costs a scan of the file, which only the few places that are shown are worth.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from lb.objects import jsontext
from lb.objects.layout import item_offsets
from lb.objects.view import Stored
from lb.problems import Origin

_INDEX = re.compile(r"items\[(\d+)\]\Z")


class _Named(msgspec.Struct, frozen=True):
    name: str = ""
    namespace: str = ""


class _Head(msgspec.Struct, frozen=True):
    kind: str = ""
    metadata: _Named = _Named()


def locate(stored: Stored) -> Origin:
    """The origin of an object, with line and column if they can be found."""
    return locate_all([stored.origin])[0]


def locate_all(origins: Iterable[Origin]) -> list[Origin]:
    """The same origins with their lines. Each file is read once; what cannot be found or has changed stays."""
    origins = list(origins)
    wanted: dict[str, list[int]] = {}
    for number, origin in enumerate(origins):
        if origin.file and not origin.line and (not origin.item or _INDEX.match(origin.item)):
            wanted.setdefault(origin.file, []).append(number)
    for file, numbers in wanted.items():
        try:
            data = Path(file).read_bytes()
        except OSError:
            continue
        _locate_in(data, origins, numbers)
    return origins


def _locate_in(data: bytes, origins: list[Origin], numbers: list[int]) -> None:
    if not jsontext.looks_like_json(data):
        return
    try:
        items = jsontext.read_items(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    offset = jsontext.first_item_offset(data)
    offsets = item_offsets(data, items, offset) if items and offset is not None else None
    counted_to, line = 0, 1
    for number in sorted(numbers, key=lambda number: _index(origins[number])):
        origin = origins[number]
        index = _index(origin)
        if index < 0:
            text, begin = data, len(data) - len(data.lstrip())
        elif items is not None and offsets is not None and index < len(items):
            text, begin = bytes(items[index]), offsets[index]
        else:
            continue
        if not _is_same(text, origin):
            continue
        line += data.count(b"\n", counted_to, begin)
        counted_to = begin
        column = jsontext.column(data, begin)
        origins[number] = replace(origin, line=line, column=column)


def _index(origin: Origin) -> int:
    """The item's number, -1 for an object that is the whole file."""
    match = _INDEX.match(origin.item)
    return int(match[1]) if match else -1


def _is_same(text: bytes, origin: Origin) -> bool:
    """Whether this is still the object: the file may have changed since it was read."""
    if not origin.kind:
        return True
    try:
        head = msgspec.json.decode(text, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return (head.kind, head.metadata.name) == (origin.kind, origin.name)
