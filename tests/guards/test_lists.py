"""One list per concept: codes, reasons, metrics and annotations are used as listed, and all of them are documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from lb._fastpath.engine import LOG_FIELDS, REASONS
from lb.model.explain import STATUS
from lb.observe.metrics import METRICS
from lb.problems import CODES
from lb.sources.store import EXPORT_COMMAND
from lb.translate.annotations import ANNOTATIONS
from lb.translate.vendors import LOAD_BALANCER_CLASS
from tests.guards.sources import FASTPATH, ROOT, files, name

LB = files(".py", under="lb")
DOCS = ROOT / "docs"
CODE = re.compile(r"LB[0-9]{4}")
METRIC_SUFFIXES = ("_total", "_info", "_bucket", "_sum", "_count")


def test_every_problem_code_is_used() -> None:
    used = {text for path, text in _texts() if CODE.fullmatch(text) and path.name != "problems.py"}
    assert used == CODES.keys()


def test_every_problem_code_is_documented() -> None:
    sections = re.findall(r"^### (LB\d{4})\n\n\*(.+)\*$", (DOCS / "problems.md").read_text(), re.MULTILINE)
    assert sections == [(code, about.title) for code, about in CODES.items()]


def test_problem_sections_say_what_effect_and_fix() -> None:
    sections = re.split(r"^### ", (DOCS / "problems.md").read_text(), flags=re.MULTILINE)[1:]
    assert len(sections) == len(CODES)
    for section in sections:
        assert re.findall(r"^- \*\*(\w+)\*\*:", section, re.MULTILINE) == ["What", "Effect", "Fix"], section[:6]


def test_documentation_names_only_codes_that_exist() -> None:
    for path in files(".md"):
        unknown = set(CODE.findall(path.read_text())) - CODES.keys()
        assert not unknown, name(path)


def test_the_export_is_one_command_everywhere() -> None:
    """Without Secrets or EndpointSlices it looks like an outage; what it writes holds keys."""
    for path in files(".md"):
        text = path.read_text()
        exports = re.findall(r"kubectl get \S+,\S+ -A [^`>\n]*json", text)
        assert set(exports) <= {EXPORT_COMMAND}, name(path)
        written = re.findall(r".*kubectl get \S+,\S+ -A .*json > ", text)
        assert "umask 077" in text or not written, name(path)


def test_metric_names_stand_in_one_place() -> None:
    """Others that want a metric's name take it from METRICS, so that a name is changed in one line."""
    strays = [f"{name(path)}: {text}" for path, text in _texts() if text in METRICS and path.name != "metrics.py"]
    assert not strays


def test_documentation_names_only_metrics_that_exist() -> None:
    for path in files(".md", under="docs"):
        for metric in re.findall(
            r"\blb_(?:listener|route|upstream|endpoint|config|exchange|reactor)_\w+", path.read_text()
        ):
            base = next((metric.removesuffix(end) for end in METRIC_SUFFIXES if metric.endswith(end)), metric)
            assert base in METRICS or metric in METRICS, f"{name(path)}: {metric}"


def test_reasons_are_those_of_the_header() -> None:
    assert [reason for reason, _ in _reasons()] == list(REASONS)


def test_explain_ends_as_the_data_plane_does() -> None:
    """The model may not know the data plane, so it has a copy of the statuses it needs."""
    statuses = {reason: int(status) for reason, status in _reasons()}
    assert {reason: statuses.get(reason) for reason in STATUS} == STATUS


def test_every_reason_is_documented() -> None:
    """With the status that lb answers; `-` where it closes without an answer, or the endpoint's own is sent."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (\d+|-) \| \S.*\|$", _section("operations.md", "Reasons"), re.MULTILINE)
    assert rows == [(reason, status if status != "0" else "-") for reason, status in _reasons()]


def test_every_log_field_is_documented() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| \S.*\|$", _section("operations.md", "Access log"), re.MULTILINE)
    assert rows == list(LOG_FIELDS)


def test_annotations_have_one_place() -> None:
    listed = {one.name for one in ANNOTATIONS}
    assert len(listed) == len(ANNOTATIONS)
    strays = [f"{name(path)}: {text}" for path, text in _texts() if text in listed and path.name != "annotations.py"]
    assert not strays


def test_exported_annotations_exist() -> None:
    """Those that documentation and examples use."""
    listed = {one.name for one in ANNOTATIONS} | {"lb/v1", "lb/ingress", "lb/gateway", LOAD_BALANCER_CLASS}
    for path in [*files(".md"), *files(".yaml", ".json", under="conf")]:
        for found in re.findall(r"(?<![\w./-])lb/[a-z][a-z0-9-]+(?![\w./])", path.read_text()):
            assert found in listed, f"{name(path)}: {found}"


def _texts() -> Iterator[tuple[Path, str]]:
    """Every string constant in lb/, docstrings aside."""
    for path in LB:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value


def _reasons() -> list[tuple[str, str]]:
    """(reason, status) as the data plane has them."""
    return re.findall(r'LB_REASON\(\w+, "([a-z0-9-]+)", (\d+)\)', (FASTPATH / "c/reasons.h").read_text())


def _section(page: str, heading: str) -> str:
    """The text of one section of a page."""
    text = (DOCS / page).read_text()
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no section {heading}"
    return found[1]
