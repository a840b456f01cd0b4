"""JSON text to raw items: cutting an export into its objects without decoding them, and saying where it is broken.

Knows the outer form (`{"items": [...]}`, a bare list, a stream of documents) and nothing of kinds or files.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import msgspec

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BYTE = re.compile(r"^(?:JSON is malformed: )?(.*?)(?: \(byte (\d+)\))?$")
_BLANKS = b" \t\r\n"
_BLANK_RUN = re.compile(rb"[ \t\r\n]*")
_HEAD = re.compile(rb'\{\s*"apiVersion"\s*:\s*"([^"\\]{1,100})"\s*,\s*"kind"\s*:\s*"([^"\\]{1,100})"\s*[,}]')
_ESCAPED_COLON = re.compile(rb"\\u003[aA]")
_ITEMS = re.compile(
    rb'\s*\{(?:\s*"(?!items")[^"\\]*"\s*:\s*(?:"[^"\\]*"|\{(?:\s*"[^"\\]*"\s*:\s*"[^"\\]*"\s*,?)*\s*\})\s*,)*\s*"items"\s*:\s*\[\s*'
)
"""The beginning of a List up to its first item, in the forms that Kubernetes writes: plain members before `items`."""


class Head(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """Just enough of an object to know what it is."""

    kind: str = ""
    api_version: str = ""


class Outer(msgspec.Struct, rename="camel", gc=False):
    """A whole document: a List when it has items."""

    kind: str = ""
    api_version: str = ""
    items: list[msgspec.Raw] | None = None


class JsonError(NamedTuple):
    """Where the text is not JSON. Line and column count from 1."""

    what: str
    line: int
    column: int
    offset: int
    truncated: bool


class Piece(NamedTuple):
    """One object found in broken text: its bytes, or the error that is in it."""

    data: bytes
    error: JsonError | None = None


_outer = msgspec.json.Decoder(Outer)
_array = msgspec.json.Decoder(list[msgspec.Raw])
_head = msgspec.json.Decoder(Head)
_raw = msgspec.json.Decoder(msgspec.Raw)
_encode = msgspec.json.Encoder().encode


def looks_like_json(data: bytes) -> bool:
    return data[:4096].removeprefix(_BYTE_ORDER_MARK).lstrip(_BLANKS)[:1] in (b"{", b"[")


def read_head(data: bytes) -> Head:
    """Kind and apiVersion. Raises msgspec.ValidationError when one of them is no text."""
    match = _HEAD.match(data)
    return _known_head(match[1], match[2]) if match else _head.decode(data)


@lru_cache(256)
def _known_head(api_version: bytes, kind: bytes) -> Head:
    return Head(kind.decode(errors="replace"), api_version.decode(errors="replace"))


def read_items(data: bytes) -> list[msgspec.Raw] | None:
    """The undecoded items of a List or of a bare array, None for a single object. Raises msgspec.DecodeError."""
    try:
        return _outer.decode(data).items
    except msgspec.ValidationError:
        # A bare array, or an object whose `items` is something else: then it is no List.
        return _array.decode(data) if data.lstrip(_BLANKS)[:1] == b"[" else None


def read_array(data: bytes | memoryview) -> list[msgspec.Raw]:
    """The undecoded elements of an array. Raises msgspec.DecodeError."""
    return _array.decode(data)


def read_documents(data: bytes) -> tuple[list[bytes], JsonError | None]:
    """The documents of a stream (`kubectl get --watch -o json`) up to the first broken one, and what is wrong there."""
    found: list[bytes] = []
    offset = _skip_blanks(data, 0)
    with memoryview(data) as view:
        while offset < len(data):
            try:
                _raw.decode(view[offset:])
                end = len(data)
            except (msgspec.DecodeError, RecursionError) as error:
                length = _end_before_trailing(str(error))
                if length is None:
                    local = explain(data[offset:], error)
                    return found, _at(data, local.what, offset + local.offset, local.truncated)
                end = offset + length
            found.append(data[offset:end])
            offset = _skip_blanks(data, end)
    return found, None


def _skip_blanks(data: bytes, offset: int) -> int:
    match = _BLANK_RUN.match(data, offset)
    return match.end() if match else offset


def _end_before_trailing(message: str) -> int | None:
    found = re.search(r"trailing characters \(byte (\d+)\)", message)
    # msgspec has already stepped over the first trailing character when it complains.
    return int(found[1]) - 1 if found else None


def repeated_key(data: bytes) -> tuple[str | int, ...] | None:
    """The path of a key that stands twice in its map: decoders take the last one without a word. None: there is none,
    or the text is no JSON, which others tell.

    The usual text costs one scan and no look at its keys (_keeps_all).
    """
    try:
        return None if _keeps_all(data) else _find_twice(_pairs.decode(data.decode()), ())
    except (ValueError, RecursionError):
        return None


def _keeps_all(data: bytes) -> bool:
    """Whether no member is lost when a text is read: what was read has as many colons then. An escaped one could hide
    that a member has gone: it is read as one, and is none in the text. False also when nobody can tell, because of a
    number that is too large in a part that lb does not read.
    """
    try:
        as_many = _encode(msgspec.json.decode(data)).count(b":") == data.count(b":")
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return as_many and not _ESCAPED_COLON.search(data)


class _Twice(dict[str, object]):
    """A map one of whose keys stands twice in the text."""

    key = ""


def _note_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    found = _Twice(values)
    found.key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return found


_pairs = json.JSONDecoder(object_pairs_hook=_note_twice)


def _find_twice(value: object, path: tuple[str | int, ...]) -> tuple[str | int, ...] | None:
    if isinstance(value, _Twice):
        return (*path, value.key)
    below: Iterable[tuple[str | int, object]] = ()
    if isinstance(value, dict):
        below = value.items()
    elif isinstance(value, list):
        below = enumerate(value)
    found = (_find_twice(one, (*path, part)) for part, one in below)
    return next((one for one in found if one is not None), None)


def explain(data: bytes, error: Exception) -> JsonError:
    """Line and column of what msgspec refused."""
    message = str(error)
    if isinstance(error, RecursionError):
        return JsonError("nested too deeply", 1, 1, 0, False)
    if isinstance(error, UnicodeDecodeError):
        # The error knows the text that it stands in, not that text's place.
        offset = max(data.find(bytes(error.object)), 0) + error.start
        return _at(data, f"byte 0x{error.object[error.start]:02x} is not UTF-8", offset, False)
    if message == "Input data was truncated":
        return _at(data, "the text ends in the middle", len(data.rstrip(_BLANKS)), True)
    match = _BYTE.match(message)
    what, offset = (match[1], int(match[2] or 0)) if match else (message, 0)
    if what == "trailing characters":
        offset -= 1
        what = "more text after the end of the document"
    return _at(data, what, offset, False)


def _at(data: bytes, what: str, offset: int, truncated: bool) -> JsonError:
    line, column = line_and_column(data, offset)
    return JsonError(what, line, column, offset, truncated)


def line_and_column(data: bytes, offset: int) -> tuple[int, int]:
    """Both from 1; the column counts characters."""
    return data.count(b"\n", 0, offset) + 1, column(data, offset)


def column(data: bytes, offset: int) -> int:
    """Characters from the beginning of the line, from 1."""
    line_start = data.rfind(b"\n", 0, offset) + 1
    return len(data[line_start:offset].decode(errors="replace")) + 1


def first_item_offset(data: bytes) -> int | None:
    """Where the first item of a List begins, when the text before it has one of the usual forms."""
    match = _ITEMS.match(data)
    return match.end() if match else None


def has_two_lists(data: bytes, items: list[msgspec.Raw]) -> bool:
    """Whether `items`, which a List was read to have, are not the ones that stand first in it: the key stands twice."""
    start = first_item_offset(data)
    if start is None:
        return False
    if not items:
        return data[start : start + 1] != b"]"
    return not data.startswith(bytes(items[0]), start)


def salvage(data: bytes) -> list[Piece]:
    """The whole items of a List that is not JSON as a whole, and the broken ones with their errors.

    An indented export is cut where a line opens an item at the items' own indentation (a JSON text holds no raw line
    break inside a string, so such a line is never inside a value); each piece must then be JSON by itself. In a compact
    export everything before the first error is found.
    """
    start = first_item_offset(data)
    if start is None:
        return []
    line_start = data.rfind(b"\n", 0, start) + 1
    indent = data[line_start:start]
    if line_start and not indent.strip(_BLANKS) and indent:
        return _salvage_lines(data, start, b"\n" + indent + b"{")
    return _salvage_compact(data, start)


def _salvage_lines(data: bytes, start: int, opening: bytes) -> list[Piece]:
    pieces = []
    while True:
        following = data.find(opening, start)
        end = len(data) if following < 0 else following
        pieces.append(_piece(data, start, end, last=following < 0))
        if following < 0:
            return pieces
        start = following + len(opening) - 1


def _piece(data: bytes, start: int, end: int, last: bool) -> Piece:
    text = data[start:end].rstrip(_BLANKS)
    text = text.removesuffix(b",")
    try:
        _raw.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        stop = _end_before_trailing(str(error))
        # After the last item stands the end of the List.
        if last and stop is not None and text[stop:].lstrip(_BLANKS)[:1] == b"]":
            return Piece(text[:stop])
        local = explain(text, error)
        return Piece(b"", _at(data, local.what, start + local.offset, local.truncated))
    return Piece(text)


def _salvage_compact(data: bytes, start: int) -> list[Piece]:
    text = data[start:].decode("latin-1")  # one character per byte, so that offsets stay true
    scanner = json.JSONDecoder()
    pieces = []
    position = 0
    while position < len(text) and text[position] == "{":
        try:
            _, end = scanner.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        pieces.append(Piece(data[start + position : start + end]))
        position = end
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
    return pieces
