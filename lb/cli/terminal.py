"""Where tables and texts are printed: what objects, files and clients say must not steer the reader's terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but tabulator and end of line: C0, DEL and C1, whose ESC and CSI begin sequences."""


def visible(text: str) -> str:
    r"""The text with control characters as `\x1b`."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Terminal(Console):
    """A rich console that shows control characters instead of sending them (kubectl's CVE-2021-25743)."""

    def __init__(self, *, width: int | None = None, soft_wrap: bool = False) -> None:
        super().__init__(highlight=False, width=width, soft_wrap=soft_wrap)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does; the sequences of its own styles come behind this."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)
