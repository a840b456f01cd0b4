"""NAME.in.yaml -> NAME.out.yaml: the model and the problems that objects give.

A first line `# options: {…}` holds the options of translation. One input covers one part of the semantics; the
requests that go with them are in test_requests.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from lb.model.text import from_content, to_text
from lb.objects.view import Changes
from lb.problems import Origin, Problem, Problems
from lb.sources.files import read_paths
from lb.translate.translation import Options, Translation, translate

HERE = Path(__file__).parent
NAMES = sorted(path.name.removesuffix(".in.yaml") for path in HERE.glob("*.in.yaml"))
OPTIONS_MARK = "# options: "


@pytest.mark.parametrize("name", NAMES)
def test_objects_give_the_expected_model(name: str, update_golden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    got = render(*translate_file(name))
    expected = HERE / f"{name}.out.yaml"
    if update_golden:
        expected.write_text(got)
    wanted = expected.read_text() if expected.exists() else ""
    difference = "\n".join(difflib.unified_diff(wanted.splitlines(), got.splitlines(), "expected", "got", lineterm=""))
    assert got == wanted, f"pytest --update-golden takes this over:\n{difference}"


@pytest.mark.parametrize("name", NAMES)
def test_the_rendered_model_reads_back_to_itself(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(HERE)
    translation, _ = translate_file(name)
    text = to_text(translation.config, show_secrets=True)
    read, problems = from_content(yaml.safe_load(text), Origin(file="rendered.yaml"))
    assert read == translation.config
    # A path that never matches, endpoints that are not verified and hosts without TLS are part of the model; nothing
    # else may be wrong.
    wrong = [problem for problem in problems if problem.code != "LB5003" or "never matches" not in problem.what]
    assert [problem for problem in wrong if problem.code not in ("LB5009", "LB5014")] == []
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(text)
    again = translate(read_paths([rendered]), Options(), Changes(everything=True), None)
    assert again.config == translation.config


def test_every_expected_file_has_an_input() -> None:
    assert sorted(path.name.removesuffix(".out.yaml") for path in HERE.glob("*.out.yaml")) == NAMES


def translate_file(name: str) -> tuple[Translation, list[Problem]]:
    """The translation of an input, and what is wrong with the file itself."""
    file = f"{name}.in.yaml"
    store = read_paths([file])
    return translate(store, read_options(HERE / file), Changes(everything=True), None), list(store.problems())


def read_options(path: Path) -> Options:
    first, _, _ = path.read_text().partition("\n")
    content = yaml.safe_load(first.removeprefix(OPTIONS_MARK)) if first.startswith(OPTIONS_MARK) else {}
    return msgspec.convert(content, Options)


def render(translation: Translation, reading: list[Problem]) -> str:
    problems = list(Problems([*reading, *translation.problems]))
    return f"{to_text(translation.config)}---\nproblems:\n" + "\n".join(
        chunk for one in problems for chunk in _lines(one)
    )


def _lines(problem: Problem) -> Iterator[str]:
    place = f" ({problem.origin.place})" if problem.origin.place else ""
    yield f"- {problem.code} {problem.severity}: {problem.origin.object or 'input'}{place} {problem.field}".rstrip()
    for label, text in (("what", problem.what), ("why", problem.why), ("fix", problem.fix)):
        if text:
            yield f"    {label}: {text}"
    yield ""
