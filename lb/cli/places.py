"""Where exactly in a file a problem is: from object and field path to a line, a column and the line's text.

Translation knows objects and field paths, not columns. The file is read again here, when somebody wants to see the
place; a file that is gone, or no longer what it was, has no excerpt.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lb.objects import yamltext
from lb.problems import Problem

MAX_FILE_BYTES = 4 << 20
"""Larger files are exports of whole clusters: finding a place in them takes longer than it helps."""


class Place(NamedTuple):
    """A place in a file."""

    line: int
    column: int
    text: str
    """The whole line."""


class Places:
    """Finds places; keeps each file's nodes for the next problem in it."""

    def __init__(self) -> None:
        self._files: dict[str, _File | None] = {}

    def find(self, problem: Problem) -> Place | None:
        """The place of a problem, as exactly as the file allows."""
        origin = problem.origin
        if origin.file not in self._files:
            self._files[origin.file] = _read(origin.file)
        file = self._files[origin.file]
        return None if file is None else file.find(problem)


class _Document(NamedTuple):
    lines_before: int
    root: Node

    def line(self, node: Node) -> int:
        return self.lines_before + int(node.start_mark.line) + 1


class _File:
    def __init__(self, data: bytes) -> None:
        self._lines = data.decode("utf-8", "replace").splitlines()
        self._holds_a_key = b"PRIVATE KEY" in data
        self._documents = list(_compose(data))
        self._objects = [(document, node) for document in self._documents for node in _objects(document.root)]

    def find(self, problem: Problem) -> Place | None:
        place = self._find(problem)
        # Where the file makes no sense any line may be one of a key.
        unclear = self._holds_a_key and not problem.field
        if place is not None and (unclear or _may_hold_a_secret(problem, place.text)):
            return Place(place.line, place.column, "")
        return place

    def _find(self, problem: Problem) -> Place | None:
        origin = problem.origin
        if origin.line and not problem.field:
            return self._place(origin.line, origin.column)
        found = self._find_object(origin.line, origin.item)
        if found is not None:
            document, node = found
            below = _descend(node, problem.field)
            return self._place(document.line(below), below.start_mark.column + 1)
        return None

    def _find_object(self, line: int, item: str) -> tuple[_Document, Node] | None:
        """The object that begins at `line` (the last one before it, for a place inside), or stands at `item`."""
        if not line or item:  # the objects of a JSON list may all stand on one line
            return (self._documents[0], _descend(self._documents[0].root, item)) if self._documents else None
        index = bisect_right(self._objects, line, key=lambda entry: entry[0].line(entry[1]))
        return self._objects[index - 1] if index else None

    def _place(self, line: int, column: int) -> Place | None:
        """The column is where the line's text begins, when it is not known better."""
        if not 0 < line <= len(self._lines):
            return None
        text = self._lines[line - 1]
        return Place(line, column or len(text) - len(text.lstrip()) + 1, text)


_NAMES_A_SECRET = re.compile(r"""kind["']?\s*:\s*["']?Secret""")


def _may_hold_a_secret(problem: Problem, text: str) -> bool:
    """Whether the line is not to be shown: it is a Secret's or a certificate's, or a whole export on one line."""
    return (
        problem.origin.kind == "Secret"
        or problem.field.startswith("certificates")
        or _NAMES_A_SECRET.search(text) is not None
    )


def _read(name: str) -> _File | None:
    path = Path(name)
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            return None
        return _File(path.read_bytes())
    except OSError:
        # The problem itself says that the file cannot be read; there is just no excerpt.
        return None


def _compose(data: bytes) -> Iterator[_Document]:
    """The documents that are YAML (JSON is, too). Broken ones have their own problem, with line and column."""
    for chunk in yamltext.split(data):
        try:
            for root in yamltext.compose(chunk.data):
                yield _Document(chunk.first_line, root)
        except yamltext.YamlError:
            continue


def _objects(root: Node) -> Iterator[Node]:
    yield root
    items = yamltext.member(root, "items")
    if isinstance(items, SequenceNode):
        yield from items.value


def _descend(node: Node, path: str) -> Node:
    """What `spec.rules[0].host` leads to, or the last part of it that exists: the value, or the key of what is nested.

    Keys may have dots (`hosts.default.shop.example.com[0]`): the longest key that fits is taken. Those of data and
    annotations stand in brackets (`data[5432]`, `metadata.annotations[lb/addresses]`).
    """
    mark = node
    while path:
        index = re.match(r"\.?\[([0-9]+)\]", path)
        if isinstance(node, SequenceNode) and index is not None and int(index[1]) < len(node.value):
            mark = node = node.value[int(index[1])]
            path = path[index.end() :]
            continue
        entry = _entry(node, path)
        if entry is None:
            break
        key, node, taken = entry
        mark = node if isinstance(node, ScalarNode) else key
        path = path[taken:]
    return mark


def _entry(node: Node, path: str) -> tuple[ScalarNode, Node, int] | None:
    """The key that a path begins with, its value, and how much of the path says so."""
    fitting = [
        (key, value, said.end())
        for key, value in (node.value if isinstance(node, MappingNode) else ())
        if isinstance(key, ScalarNode)
        and (said := re.match(rf"\[{re.escape(key.value)}\]|\.?{re.escape(key.value)}(?=[.\[]|$)", path))
    ]
    return max(fitting, key=lambda entry: entry[2], default=None)
