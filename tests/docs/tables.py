"""Tables in the documentation that come from the code. `make tables` writes them, test_tables.py compares.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from lb.health.verdict import RESULTS
from lb.model.datagram import DatagramOptions
from lb.model.form import option_fields
from lb.model.health import HealthCheck
from lb.model.listener import HttpOptions
from lb.model.route import RouteOptions
from lb.model.schema import field_texts
from lb.model.stream import StreamOptions
from lb.model.units import format_duration, format_size
from lb.model.upstream import UpstreamOptions
from lb.observe import metrics
from lb.problems import CODES
from lb.settings import Settings
from lb.translate.annotations import ANNOTATIONS
from lb.translate.vendors import VENDOR_ANNOTATIONS

DOCS = Path(__file__).resolve().parents[2] / "docs"
MARKED = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str) -> str:
    """The page with every marked table made anew."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found['name']]()}\n{found[3]}", text)


def options_table(options: type[msgspec.Struct]) -> str:
    """The options of a struct as they are written in the native file."""
    meanings = field_texts(options)
    rows = [
        (
            f"`{field.key}`",
            _default(field.unit, field.default),
            _cell(meanings.get(field.attribute) or _spelled(field.key)),
        )
        for field in option_fields(options)
    ]
    return _table(("option", "default", "meaning"), rows)


def settings_table() -> str:
    """Every setting with its path."""
    return _table(("setting", "default", "meaning"), _settings_rows(Settings, ""))


def problems_table() -> str:
    """All problem codes."""
    rows = [(f"[{code}](#{code.lower()})", about.severity, about.title) for code, about in CODES.items()]
    return _table(("code", "severity", "title"), rows)


def health_results_table() -> str:
    """How a health check can end."""
    return _table(("result", "meaning"), [(f"`{result}`", _cell(meaning)) for result, meaning in RESULTS.items()])


def annotations_table() -> str:
    """Our own annotations."""
    rows = [(f"`{one.name}`", ", ".join(one.places), _cell(one.text)) for one in ANNOTATIONS]
    return _table(("annotation", "on", "meaning"), rows)


def vendor_annotations_table() -> str:
    """Annotations of other load balancers that count."""
    rows = [(f"`{one.name}`", _cell(one.text)) for one in VENDOR_ANNOTATIONS]
    return _table(("annotation", "meaning"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "listener-options": lambda: options_table(HttpOptions),
    "stream-options": lambda: options_table(StreamOptions),
    "datagram-options": lambda: options_table(DatagramOptions),
    "route-options": lambda: options_table(RouteOptions),
    "upstream-options": lambda: options_table(UpstreamOptions),
    "health-check-options": lambda: options_table(HealthCheck),
    "health-results": health_results_table,
    "metrics": metrics.table,
    "problems": problems_table,
    "annotations": annotations_table,
    "vendor-annotations": vendor_annotations_table,
}


_OPTIONS = tuple(f"defaults.{name}" for name in ("http", "stream", "datagram", "route", "upstream", "health_check"))


def _settings_rows(section: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, str, str]]:
    meanings = field_texts(section)
    for field in option_fields(section):
        path = f"{prefix}{field.key}"
        if path in _OPTIONS:
            name = path.removeprefix("defaults.").replace("_", " ")
            yield f"`{path}`", "", f"Options as in the table of {name} options."
        elif isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _settings_rows(field.type, f"{path}.")
        else:
            meaning = _cell(meanings.get(field.attribute) or _spelled(field.key))
            yield f"`{path}`", _default(field.unit, field.default), meaning


def _default(unit: str, value: object) -> str:
    if value is None or value is msgspec.NODEFAULT or value in ("", (), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{', '.join(map(str, value))}`"
    if isinstance(value, int) and value:
        return f"`{ {'duration': format_duration, 'size': format_size, 'plain': int}[unit](value) }`"
    return f"`{value}`"


def _spelled(key: str) -> str:
    """For a name that says all: `max_headers` is "Max headers."."""
    return key.replace("_", " ").capitalize() + "."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))


def pages() -> list[Path]:
    """The pages with tables."""
    return [path for path in sorted(DOCS.glob("*.md")) if MARKED.search(path.read_text())]


if __name__ == "__main__":
    for page in pages():
        page.write_text(fill(page.read_text()))
        print(page.name, file=sys.stderr)
