"""YAML text to plain JSON-like values, with the place of everything.

Owns the splitting into documents, the reading of scalars as Kubernetes reads them, and the bounds that keep hostile
text from costing more than its length. It knows nothing of kinds or of files. libyaml does the parsing (`CParser`,
explicitly: `yaml.safe_load` would take the parser written in Python).

Scalars are read as sigs.k8s.io/yaml does (go-yaml v2, `resolve.go`): `yes`, `on` and `n` are booleans, `010` is octal,
timestamps and `1:30` stay text.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

import yaml
from yaml._yaml import CParser
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_DEPTH = 200
"""Kubernetes objects nest less than 40 levels deep. libyaml's composer recurses on the C stack: a limit is vital."""
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"

ALIAS_ALLOWANCE = 100_000
"""How many values aliases may add beyond what the text itself spells out: a bound for "billion laughs"."""

_PLAIN = "plain"
_TEXT = "tag:yaml.org,2002:str"
_TAGS = "tag:yaml.org,2002:"

_WORDS: dict[str, bool | float | None] = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"))
    | dict.fromkeys(("true", "True", "TRUE", "y", "Y", "yes", "Yes", "YES", "on", "On", "ON"), True)
    | dict.fromkeys(("false", "False", "FALSE", "n", "N", "no", "No", "NO", "off", "Off", "OFF"), False)
    | dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan"))
    | dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf"))
    | dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf"))
)

_NUMBER_START = frozenset("+-.0123456789")
_INTEGER = re.compile(r"[-+]?(?:0[bB][01]+|0[oO]?[0-7]+|0[xX][0-9a-fA-F]+|0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_LONGEST_INTEGER = 20
"""What exceeds 64 bits is a float to Kubernetes, and Python refuses very long decimal texts."""

_DOCUMENT_START = re.compile(rb"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_NOTHING = re.compile(rb"(?:[ \t]*(?:#[^\n]*|%[^\n]*|---[ \t]*(?:#[^\n]*)?|\.\.\.[ \t]*)?\r?(?:\n|\Z))*\Z")
# What libyaml's reader takes (YAML 1.1 5.1, without the byte order mark).
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


class Chunk(NamedTuple):
    """The bytes of one document with its `---` line."""

    first_line: int
    """Lines of the file before this document."""
    data: bytes


class YamlError(Exception):
    """Text that is not YAML, or not YAML that lb takes. Line and column count from 1, within the chunk."""

    def __init__(
        self, what: str, line: int, column: int, fix: str = "", begin_line: int = 0, at_end: bool = False
    ) -> None:
        super().__init__(what)
        self.what = what
        self.line = line
        self.column = column
        self.fix = fix
        self.begin_line = begin_line
        """Where the thing begins that is wrong, when that is another line; else 0."""
        self.at_end = at_end
        """The text ends where something is still open: it is probably half of a file."""


def split(data: bytes) -> list[Chunk]:
    """Cut a file into documents, so that a broken one costs only itself; documents without content are left out.

    A line that begins with `---` cannot be inside a value (YAML 1.2, c-forbidden), so no parsing is needed.
    """
    starts = [match.start() for match in _DOCUMENT_START.finditer(data)]
    bounds = [0, *starts, len(data)]
    chunks = []
    line = 0
    for begin, end in pairwise(bounds):
        piece = data[begin:end]
        if not _NOTHING.match(piece):
            chunks.append(Chunk(line, piece))
        line += piece.count(b"\n")
    return chunks


def compose(data: bytes) -> list[Node]:
    """The documents of one chunk as nodes (more than one only after a `...` line). Raises YamlError."""
    text = _decode(data)
    try:
        composer = _Composer(text)
        roots = []
        while composer.check_node():
            root = composer.get_node()
            if root is not None:
                roots.append(root)
    except yaml.MarkedYAMLError as error:
        raise _from_marked(error, text) from None
    except yaml.reader.ReaderError as error:
        raise _from_reader(error, text) from None
    return roots


class Nulls(Enum):
    """What becomes of a null in a mapping."""

    KEEP = 1
    DROP = 2
    """It says what a missing field says: Go's zero value."""
    EMPTY = 3
    """It is an empty text: so Kubernetes reads it in its maps of texts."""


class Converter:
    """Turns nodes into plain values. One per chunk: it counts what aliases add."""

    __slots__ = ("_depth", "_left")

    def __init__(self, chunk_length: int) -> None:
        # Every value that is spelled out takes a character of its own, so only aliases can exceed this.
        self._left = chunk_length + ALIAS_ALLOWANCE
        self._depth = 0

    def spend(self, node: Node) -> None:
        """Count one value. Raises YamlError when aliases have added too many."""
        self._left -= 1
        if self._left < 0:
            raise _error_at(node, "aliases repeat too much of this document", "write the values out")

    def mapping(self, node: MappingNode, nulls: Nulls = Nulls.DROP) -> dict[str, object]:
        """A mapping as a dict. Raises YamlError."""
        values: dict[str, object] = {}
        merged: list[dict[str, object]] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise _error_at(key_node, "a key must be text", "write the key as a plain word")
            if key_node.value == "<<" and key_node.tag == _PLAIN:
                merged.extend(self._merged(value_node, nulls))
                continue
            key = _key(key_node)
            if key in values:
                raise _twice(key_node, key)
            if key == "managedFields":
                continue
            below = Nulls.EMPTY if nulls is Nulls.DROP and key in TEXT_MAPS else nulls
            values[key] = self._value(value_node, below)
        for other in merged:
            for key, value in other.items():
                values.setdefault(key, value)
        return _with_nulls(values, nulls)

    def _value(self, node: Node, nulls: Nulls) -> object:
        if isinstance(node, ScalarNode):
            self._left -= 1  # counted here, judged at the next list or mapping
            return _scalar(node)
        self.spend(node)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error_at(node, "an alias contains itself", "write the value out")
        if isinstance(node, MappingNode):
            value: object = self.mapping(node, nulls)
        elif isinstance(node, SequenceNode):
            value = [self._value(item, nulls) for item in node.value]
        else:
            raise _error_at(node, "this is neither a value, a list nor a mapping")
        self._depth -= 1
        return value

    def _merged(self, node: Node, nulls: Nulls) -> list[dict[str, object]]:
        """What `<<` brings in: a mapping or a list of mappings, the first one first (yaml.org/type/merge)."""
        nodes = node.value if isinstance(node, SequenceNode) else [node]
        dicts = []
        for item in nodes:
            value = self._value(item, nulls)
            if not isinstance(value, dict):
                raise _error_at(item, "`<<` takes a mapping or a list of mappings")
            dicts.append(value)
        return dicts


def _with_nulls(values: dict[str, object], nulls: Nulls) -> dict[str, object]:
    if nulls is Nulls.KEEP or None not in values.values():
        return values
    if nulls is Nulls.EMPTY:
        return {key: "" if value is None else value for key, value in values.items()}
    return {key: value for key, value in values.items() if value is not None}


TEXT_MAPS = frozenset(("annotations", "labels", "data", "stringData", "selector"))
"""Fields that map text to text: see Nulls.EMPTY."""


def member(node: Node, name: str) -> Node | None:
    """The value of a key of a mapping node."""
    if isinstance(node, MappingNode):
        for key_node, value_node in node.value:
            if isinstance(key_node, ScalarNode) and key_node.value == name:
                found: Node = value_node
                return found
    return None


def only_member(node: Node, name: str) -> Node | None:
    """The same. Raises YamlError when the key stands twice."""
    keys = [key for key, _ in node.value if key.value == name] if isinstance(node, MappingNode) else []
    if len(keys) > 1:
        raise _twice(keys[1], name)
    return member(node, name)


def _twice(key_node: Node, key: str) -> YamlError:
    return _error_at(key_node, f"the key `{key}` stands twice in this mapping", "remove one of the two")


def member_text(node: Node, name: str) -> str:
    """The value of a key of a mapping node if it is a text, else an empty one."""
    found = member(node, name)
    if not isinstance(found, ScalarNode) or (found.tag == _PLAIN and not isinstance(read_plain(found.value), str)):
        return ""
    return str(found.value)


def position(node: Node, path: Sequence[str | int] = ()) -> tuple[int, int]:
    """Line and column, from 1 within the chunk, of what `path` leads to, or of the last part of it that exists."""
    for part in path:
        if isinstance(part, str):
            below = member(node, part)
        else:
            below = node.value[part] if isinstance(node, SequenceNode) and part < len(node.value) else None
        if below is None:
            break
        node = below
    return node.start_mark.line + 1, node.start_mark.column + 1


def key_position(node: Node, path: Sequence[str | int]) -> tuple[int, int]:
    """Line and column of the key that `path` ends with; of what it leads to before, where a merge brought the key."""
    for part in path[:-1]:
        below = member(node, part) if isinstance(part, str) else None
        if isinstance(part, int) and isinstance(node, SequenceNode) and part < len(node.value):
            below = node.value[part]
        if below is None:
            break
        node = below
    keys = [key for key, _ in node.value if key.value == path[-1]] if isinstance(node, MappingNode) else []
    mark = (keys[0] if keys else node).start_mark
    return mark.line + 1, mark.column + 1


def lines(node: Node, first_line: int) -> dict[str, int]:
    """Path (`listeners.http`, `upstreams.web.endpoints[0]`) -> line in the file, for everything below `node`."""
    found: dict[str, int] = {}
    waiting: list[tuple[str, Node]] = [("", node)]
    seen: set[int] = set()
    while waiting:
        path, below = waiting.pop()
        if id(below) in seen:
            continue  # an alias: its values are told where they are written
        seen.add(id(below))
        if isinstance(below, MappingNode):
            for key_node, value_node in below.value:
                key_path = f"{path}.{key_node.value}" if path else str(key_node.value)
                found[key_path] = first_line + key_node.start_mark.line + 1
                waiting.append((key_path, value_node))
        elif isinstance(below, SequenceNode):
            for index, item in enumerate(below.value):
                item_path = f"{path}[{index}]"
                found[item_path] = first_line + item.start_mark.line + 1
                waiting.append((item_path, item))
    return found


class _Composer(CParser):
    """libyaml with just enough of a resolver: a node's tag is `plain`, text, or the tag that is written."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def resolve(self, kind: type[Node], value: object, implicit: tuple[bool, bool] | bool) -> str:
        # libyaml says (plain, quoted) for scalars, one bool for lists and mappings, whose tags nobody asks for.
        return _PLAIN if isinstance(implicit, tuple) and implicit[0] else _TEXT

    def descend_resolver(self, parent: Node | None, index: object) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = parent.start_mark if parent is not None else None
            raise yaml.composer.ComposerError(None, None, _TOO_DEEP, mark)

    def ascend_resolver(self) -> None:
        self._depth -= 1


def _key(node: ScalarNode) -> str:
    """A key as JSON text: `8080` and `true` become "8080" and "true"."""
    if node.tag == _TEXT:
        return str(node.value)
    value = _scalar(node)
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise _error_at(node, "a key is missing", "write the key before the colon")


def _scalar(node: ScalarNode) -> object:
    text = str(node.value)
    tag = node.tag
    if tag == _PLAIN:
        return read_plain(text)
    if tag == _TEXT:
        return text
    return _tagged(node, text, str(tag))


def read_plain(text: str) -> object:
    """What an unquoted scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMBER_START:
        return text
    digits = text.replace("_", "")
    if _INTEGER.match(digits) and len(digits) <= _LONGEST_INTEGER:
        return _integer(digits)
    if _FLOAT.match(digits):
        return float(digits)
    return text


def _integer(digits: str) -> int:
    unsigned = digits.lstrip("+-")
    base = 10
    if len(unsigned) > 1 and unsigned[0] == "0":
        base = {"b": 2, "o": 8, "x": 16}.get(unsigned[1].lower(), 8)
    return int(digits, base)


def _tagged(node: ScalarNode, text: str, tag: str) -> object:
    """A scalar whose type is written before it."""
    if tag == _TAGS + "binary":
        try:
            return base64.b64decode(text, validate=False).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise _error_at(node, "`!!binary` is not base64 of a text") from None
    if tag == _TAGS + "timestamp":
        return text
    value = read_plain(text)
    wanted: dict[str, tuple[type, ...]] = {
        _TAGS + "int": (int,),
        _TAGS + "float": (float, int),
        _TAGS + "bool": (bool,),
        _TAGS + "null": (type(None),),
    }
    if tag not in wanted:
        raise _error_at(node, f"the tag `{tag}` is not known", "remove the tag")
    if not isinstance(value, wanted[tag]) or (isinstance(value, bool) and tag != _TAGS + "bool"):
        raise _error_at(node, f"`{text[:40]}` is not what its tag `{tag.replace(_TAGS, '!!')}` says")
    return value


def _decode(data: bytes) -> str:
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line_start = before.rfind(b"\n") + 1
        column = len(before[line_start:].decode(errors="replace")) + 1
        what = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise YamlError(what, before.count(b"\n") + 1, column, "save the file as UTF-8") from None


def _error_at(node: Node, what: str, fix: str = "") -> YamlError:
    return YamlError(what, node.start_mark.line + 1, node.start_mark.column + 1, fix)


def _from_marked(error: yaml.MarkedYAMLError, text: str) -> YamlError:
    problem = str(error.problem or error.context or "not YAML")
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return YamlError(problem, 1, 1)
    context = error.context_mark
    if problem == "second occurrence":
        problem = "an anchor is defined twice"
    elif "nesting depth" in problem:  # libyaml 0.2.6 looks ahead and has a limit of its own, of 1,000
        return YamlError(_TOO_DEEP, mark.line + 1, mark.column + 1, _advice(problem, text, mark.index))
    what = f"{problem}, {error.context}" if error.context and context else problem
    begin_line = context.line + 1 if context and context.line != mark.line else 0
    at_end = not text[mark.index :].strip()
    return YamlError(what, mark.line + 1, mark.column + 1, _advice(problem, text, mark.index), begin_line, at_end)


def _advice(problem: str, text: str, index: int) -> str:
    if "tab" in problem or text[index : index + 1] == "\t":
        return "indent with spaces: YAML takes no tabs"
    if "mapping values are not allowed" in problem:
        return "check the indentation of this line and the one before; put a value that contains `: ` in quotes"
    if "undefined alias" in problem:
        return "an unquoted `*` begins an alias: put the value in quotes"
    if "end of stream" in problem:
        return "close the quote"
    if "could not find expected ':'" in problem:
        return "write `key: value`"
    return "check the indentation and the quotes"


def _from_reader(error: yaml.reader.ReaderError, text: str) -> YamlError:
    found = _FORBIDDEN.search(text)
    if found is None:
        return YamlError(str(error.reason), 1, 1)
    before = text[: found.start()]
    what = f"character U+{ord(found.group()):04X} is not allowed"
    return YamlError(
        what, before.count("\n") + 1, len(before) - before.rfind("\n"), "remove it or write it in quotes as an escape"
    )
