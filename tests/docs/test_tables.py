"""The tables in the documentation are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.tables import MARKED, TABLES, fill, pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert fill(text) == text, "run `make tables`"


def test_every_table_is_shown() -> None:
    shown = {found["name"] for page in pages() for found in MARKED.finditer(page.read_text())}
    assert shown == TABLES.keys()
