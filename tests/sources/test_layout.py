"""Reading only the changed part of a large List gives what reading the whole file gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.objects import jsontext, layout
from lb.objects.decode import Decoded, decode, decode_change
from lb.objects.layout import find_change, measure
from lb.sources.files import FileSource
from lb.sources.store import Store
from tests.sources import big_export

CONTENT: dict[str, Any] = json.loads(big_export.export_json(150))


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "BLOCK_BYTES", 8192)
        yield


def write(content: dict[str, Any], indent: int | None = 4) -> bytes:
    return json.dumps(content, indent=indent).encode() + b"\n"


def change(previous: Decoded, data: bytes) -> Decoded | None:
    """Decode `data` by its difference from what `previous` was decoded from."""
    assert previous.layout is not None

    def read_into(offset: int, room: memoryview) -> None:
        room[:] = data[offset : offset + len(room)]

    found = find_change(previous.layout, len(data), lambda offset, length: data[offset : offset + length], read_into)
    return None if found is None else decode_change(found, "a.json", previous)


def assert_same(changed: Decoded | None, data: bytes) -> Decoded:
    whole = decode(data, "a.json")
    assert changed is not None
    assert changed.entries == whole.entries
    assert changed.digests == whole.digests
    assert changed.layout is not None
    # Blocks may be cut elsewhere, but must be true.
    starts = changed.layout.starts
    assert starts[-1] == len(data)
    for block, digest in enumerate(changed.layout.digests):
        assert hash(data[starts[block] : starts[block + 1]]) == digest
    offset = jsontext.first_item_offset(data)
    assert starts[1] == offset
    assert changed.layout.first_items[-1] == len(whole.entries)
    return changed


@pytest.mark.parametrize("indent", [4, None, 1])
@settings(max_examples=25)
@given(
    edits=st.lists(st.tuples(st.sampled_from(["edit", "remove", "insert", "swap"]), st.integers(0, 10**6)), max_size=4)
)
def test_any_edits(indent: int | None, edits: list[tuple[str, int]]) -> None:
    previous = decode(write(CONTENT, indent), "a.json")
    new = dict(CONTENT, items=list(CONTENT["items"]))
    items = new["items"]
    for kind, number in edits:
        at = number % len(items)
        if kind == "edit":
            items[at] = json.loads(json.dumps(items[at]).replace("example.com", "example.org" + "x" * (number % 7)))
        elif kind == "remove":
            del items[at]
        elif kind == "insert":
            items.insert(at, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"n{number}"}})
        else:
            items[at], items[-1] = items[-1], items[at]
    data = write(new, indent)
    changed = assert_same(change(previous, data), data)
    # And the result can be the base of the next change.
    again = write(CONTENT, indent)
    assert_same(change(changed, again), again)


def test_at_both_ends() -> None:
    previous = decode(write(CONTENT), "a.json")
    for items in (CONTENT["items"][1:], CONTENT["items"][:-1], CONTENT["items"][5:-5], CONTENT["items"] * 2):
        data = write(dict(CONTENT, items=items))
        assert_same(change(previous, data), data)


def test_what_is_not_whole_items_is_left_to_the_whole_reading() -> None:
    data = write(CONTENT)
    previous = decode(data, "a.json")
    middle = data.index(b'"host"', len(data) // 2)
    comma = data.index(b"        },\n        {", len(data) // 2) + 9
    for broken in (
        data[:middle] + b"host" + data[middle:],
        data[:comma] + data[comma + 1 :],
        data[:comma] + b"," + data[comma:],
        data[: len(data) // 2],
        data + b"}",
        data.replace(b'"kind": "List"', b'"kind": "Lost"'),
        b"x" + data,
        b"",
    ):
        assert change(previous, broken) is None


def test_small_and_unusual_files_have_no_layout() -> None:
    for text in (
        write(dict(CONTENT, items=CONTENT["items"][:3])),
        write(dict({"x": {"y": {"z": 1}}}, **CONTENT)),
        write(CONTENT["items"]),
        write(dict(CONTENT, items=[*CONTENT["items"], 1])),
        write(CONTENT)[:-2] + b', "items": []}',
    ):
        items = jsontext.read_items(text)
        assert items is not None
        assert measure(text, items) is None


def test_a_changed_file_is_read_in_part(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(write(CONTENT))
    store = Store()
    source = FileSource([path], store)
    source.read()
    store.take_changes()
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"web-000075.apps', b'"other.apps'))
    reading = source.load()
    source.apply(reading)
    assert [key.name for key in store.take_changes().changed] == ["web-000075"]
    (after,) = reading.changed.values()
    assert after.decoded.layout is not None
    assert after.decoded.layout.starts[-1] == path.stat().st_size
    path.write_bytes(data)
    assert source.read()
    assert [key.name for key in store.take_changes().changed] == ["web-000075"]
