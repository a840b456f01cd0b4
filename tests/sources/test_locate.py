"""The line of an object in a JSON file, found when asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from lb.problems import Origin
from lb.sources.files import read_paths
from lb.sources.locate import locate, locate_all
from lb.sources.store import Store
from tests.sources import big_export


def lines_of(store: Store, path: Path) -> None:
    """Every object is found where its text says it is."""
    lines = path.read_text().split("\n")
    found = locate_all(stored.origin for stored in store.objects_of(str(path)))
    assert found
    for origin in found:
        assert origin.line
        text = "\n".join(lines[origin.line - 1 :])[origin.column - 1 :]
        assert text.startswith("{")
        assert text.index(f'"name": "{origin.name}"') < text.index('"resourceVersion"')


@pytest.mark.parametrize("indent", [4, None])
def test_every_item_of_a_list(indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(big_export.export_json(20, indent=indent))
    lines_of(read_paths([path]), path)


def test_a_single_object_and_what_is_known_already(tmp_path: Path) -> None:
    single, known = tmp_path / "a.json", tmp_path / "b.yaml"
    single.write_text('\n\n  {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}')
    known.write_text("# x\napiVersion: v1\nkind: Service\nmetadata: {name: b}\n")
    store = read_paths([single, known])
    first, second = store.get("Service", "default", "a"), store.get("Service", "default", "b")
    assert first is not None
    assert second is not None
    assert locate(first).place == f"{single}:3:3"
    assert locate(second) is second.origin
    assert locate(second).place == f"{known}:2:1"


def test_what_cannot_be_found_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(big_export.export_json(20))
    origins = [stored.origin for stored in read_paths([path]).objects_of(str(path))]
    origins.append(Origin("Resolution", "", "db.example.com"))
    path.write_bytes(big_export.export_json(5))
    found = locate_all(origins)
    for before, after in zip(origins, found, strict=True):
        assert after == before or (after.line and replace(after, line=0, column=0) == before)
    assert [bool(origin.line) for origin in found].count(True) == 4 + 5
    for text in (b"{", b"", b"a: b\n", b"[1]", b"\xff"):
        path.write_bytes(text)
        assert locate_all(origins) == origins
    path.unlink()
    assert locate_all(origins) == origins
