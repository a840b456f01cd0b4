"""Where the items of a large JSON List stand, so that a changed file is read only where it changed.

A List is seen as a head, blocks of whole items, and a tail. When the beginning and the end of a file are, block by
block, what they were, then only the blocks between them have to be parsed again. Knows nothing of kinds or of files.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from lb.objects import jsontext

BLOCK_BYTES = 64 * 1024
"""A block is some whole items of at least this length: few enough to hash in one go, small enough to parse again."""

_END = re.compile(rb'[ \t\r\n]*\](?![\s\S]*"items")')
_BETWEEN = b", \t\r\n"
_BLANKS = b" \t\r\n"
_COMMA, _OPEN, _CLOSE = b",[]"


class Layout(msgspec.Struct, frozen=True, gc=False):
    """Block 0 is the head, up to the first item; the last block is the tail, behind the last item."""

    starts: array[int]
    """Byte offset of each block, and the size of the file at the end."""
    digests: array[int]
    """The hash of each block's text."""
    first_items: array[int]
    """Index of each block's first item; for the tail, the number of items."""


class Change(NamedTuple):
    """The part of a List that is not as it was."""

    first_block: int
    end_block: int
    """The blocks of the old layout that `text` stands for, end exclusive."""
    first_item: int
    end_item: int
    text: bytearray
    """Items with the commas between and behind them, and a spare byte before and behind: a part may be large, and so no
    copy of it is needed to read it as an array."""
    at_tail: bool
    """Nothing but the tail follows, so that no comma stands behind the last item."""
    shift: int
    """How many bytes later the rest now stands."""


def measure(data: bytes, items: Sequence[msgspec.Raw]) -> Layout | None:
    """The layout of a whole List; None when its form is not one of the usual ones or it is too small to matter."""
    offset = jsontext.first_item_offset(data)
    if offset is None or len(data) < 4 * BLOCK_BYTES or not items:
        return None
    offsets = item_offsets(data, items, offset)
    if offsets is None:
        return None
    end = offsets.pop()
    if not _END.match(data, end):
        return None
    starts, first_items = array("q", (0,)), array("q", (0,))
    _cut(offsets, 0, starts, first_items)
    starts.extend((end, len(data)))
    first_items.append(len(items))
    digests = array("q", (hash(data[begin:stop]) for begin, stop in pairwise(starts)))
    return Layout(starts, digests, first_items)


def find_change(
    layout: Layout,
    size: int,
    read: Callable[[int, int], bytes],
    read_into: Callable[[int, memoryview], None],
) -> Change | None:
    """Compare a file of `size` bytes with its old layout; `read` and `read_into`, given an offset, bring its text.

    None when head or tail differ: then nothing is known about the rest.
    """
    starts, digests = layout.starts, layout.digests
    tail = len(digests) - 1
    shift = size - starts[-1]

    def same(block: int, moved: int) -> bool:
        begin = starts[block]
        return hash(read(begin + moved, starts[block + 1] - begin)) == digests[block]

    if starts[tail] + shift < starts[1] or not same(0, 0) or not same(tail, shift):
        return None
    first = 1
    # The last block, behind which no comma stands, counts as end: what is appended then comes with a whole item.
    while first < tail - 1 and same(first, 0):
        first += 1
    end = tail
    # The unchanged end may not reach into the unchanged beginning of the new text.
    while end > first and starts[end - 1] + shift >= starts[first] and same(end - 1, shift):
        end -= 1
    begin, stop = starts[first], starts[end] + shift
    if stop < begin:
        return None
    text = bytearray(stop - begin + 2)
    with memoryview(text) as view, view[1:-1] as room:
        read_into(begin, room)
    return Change(first, end, layout.first_items[first], layout.first_items[end], text, end == tail, shift)


def read_change(change: Change) -> list[msgspec.Raw] | None:
    """The items of a changed part, None when it is not whole items. Raises msgspec.DecodeError."""
    text = change.text
    end = len(text) - 1
    while text[end - 1] in _BLANKS:
        end -= 1
    if end == 1:
        # Without items behind it, the comma before a part that has gone would be one too many.
        return None if change.at_tail else []
    comma = text[end - 1] == _COMMA
    if comma == change.at_tail:
        return None
    if comma:
        end -= 1
    before, behind = text[0], text[end]
    text[0], text[end] = _OPEN, _CLOSE
    try:
        items = jsontext.read_array(memoryview(text)[: end + 1])
    finally:
        text[0], text[end] = before, behind
    return items if items or change.end_item == change.first_item else None


def splice(layout: Layout, change: Change, items: Sequence[msgspec.Raw]) -> Layout | None:
    """The layout after a change."""
    text = change.text
    offsets = item_offsets(text, items, 1) if items else [0]
    if offsets is None:
        return None
    offsets.pop()
    begin = layout.starts[change.first_block]
    starts = layout.starts[: change.first_block]
    digests = layout.digests[: change.first_block]
    first_items = layout.first_items[: change.first_block]
    before = len(starts)
    if offsets:
        _cut([1, *offsets[1:]], change.first_item, starts, first_items)
    for block in range(before, len(starts)):
        stop = starts[block + 1] if block + 1 < len(starts) else len(text) - 1
        digests.append(hash(bytes(text[starts[block] : stop])))
        starts[block] += begin - 1  # the spare byte
    # The rest stands where it stood, moved by as much as this part has grown.
    more_items = len(items) - (change.end_item - change.first_item)
    starts.extend(start + change.shift for start in layout.starts[change.end_block :])
    digests.extend(layout.digests[change.end_block :])
    first_items.extend(index + more_items for index in layout.first_items[change.end_block :])
    return Layout(starts, digests, first_items)


def _cut(offsets: Sequence[int], first_item: int, starts: array[int], first_items: array[int]) -> None:
    """Append blocks of at least BLOCK_BYTES that begin at items."""
    block_start = -BLOCK_BYTES
    for index, offset in enumerate(offsets):
        if offset - block_start >= BLOCK_BYTES:
            starts.append(offset)
            first_items.append(first_item + index)
            block_start = offset


def item_offsets(data: bytes | bytearray, items: Sequence[msgspec.Raw], offset: int) -> list[int] | None:
    """Where each item begins, and where the last one ends. None when the items do not stand there."""
    offsets = []
    find = data.find
    for item in items:
        text = bytes(item)
        begin = find(b"{", offset)
        if begin < 0 or data[offset:begin].strip(_BETWEEN) or not data.startswith(text, begin):
            return None
        offsets.append(begin)
        offset = begin + len(text)
    offsets.append(offset)
    return offsets
