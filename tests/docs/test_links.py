"""Links between the pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT

LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for file, anchor in LINK.findall(text):
        target = (page.parent / file).resolve() if file else page
        assert target.is_relative_to(ROOT), file
        assert target.exists(), file
        if anchor:
            assert anchor in _anchors(target), f"{file}#{anchor}"


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {file for file, _ in LINK.findall((ROOT / "README.md").read_text())}
    assert linked >= {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}


def _anchors(page: Path) -> set[str]:
    """Headings as GitHub makes anchors of them."""
    headings = HEADING.findall(re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
