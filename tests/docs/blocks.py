"""Commands in the documentation: finds them, and compares what they print with what the page shows.

Every fenced `console` block is run, unless a comment right above it says why not: `<!-- not run: needs root -->`.
`<!-- with: demo -->` runs it while the demo serves. In a block, `$ ` begins a command and the lines after it are its
output, in which `…` stands for any text and a line of just `…` for any lines. A command that shows no output must only
succeed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"(?:^<!-- (?P<marker>[^\n]*?) -->\n)?^```console\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


class Command(NamedTuple):
    line: str
    output: str


class Block(NamedTuple):
    page: Path
    line: int
    marker: str
    commands: tuple[Command, ...]

    @property
    def id(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def is_run(self) -> bool:
        return not self.marker.startswith("not run:")

    @property
    def needs_demo(self) -> bool:
        return self.marker == "with: demo"


def find_blocks(page: Path) -> Iterator[Block]:
    """The console blocks of a page."""
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("body"))
        yield Block(page, line, found["marker"] or "", tuple(_commands(found["body"])))


def differs(shown: str, printed: str) -> bool:
    """Whether a command printed something else than the page shows."""
    if not shown.strip():
        return False
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "…" else ".*?".join(map(re.escape, line.rstrip().split("…"))) + "\n"
        for line in shown.rstrip("\n").split("\n")
    )
    cleaned = "".join(f"{line.rstrip()}\n" for line in printed.rstrip("\n").split("\n"))
    return re.fullmatch(pattern, cleaned) is None


def _commands(body: str) -> Iterator[Command]:
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        lines = part.split("\n")
        last = next(index for index, line in enumerate(lines) if not line.endswith("\\"))
        yield Command("\n".join(lines[: last + 1]), "\n".join(lines[last + 1 :]))
