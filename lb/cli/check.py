"""`lb check`: all that is wrong with the input, grouped by object, with places and fixes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.text import Text

from lb.certs.expiry import judge, judge_lists
from lb.cli.inputs import Flags, Input, config_option, path_arguments, read_input, translation_options
from lb.cli.output import output_option
from lb.cli.places import Place, Places
from lb.cli.terminal import Terminal
from lb.compile.tls import check as check_tls
from lb.model.config import Config
from lb.problems import CODES, SEVERITIES, Origin, Problem
from lb.settings import Settings, place_of, unusable_files
from lb.sources.locate import locate_all

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
EXCERPT_WIDTH = 100
_INDENT = "  "


class _Finding(msgspec.Struct, frozen=True):
    """A problem and its place, when it could be found."""

    problem: Problem
    place: Place | None

    @property
    def where(self) -> str:
        origin = self.problem.origin
        if self.place is not None:
            return f"{origin.file}:{self.place.line}:{self.place.column}"
        return origin.place


@click.command(short_help="Tell what is wrong with objects and native files.")
@path_arguments
@config_option
@translation_options
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@output_option("text")
def command(paths: tuple[str, ...], config_file: str | None, flags: Flags, strict: bool, output: str) -> None:
    """Tell what is wrong with objects and native files.

    Every problem is told with its object, file, line and column, why it matters and how to fix it. Exits with 0 when
    there is no error, with 1 when there are some, with 2 for wrong usage.
    """
    read = _with_certificates(read_input(paths, config_file, flags))
    if config_file is not None:
        read = msgspec.structs.replace(read, problems=(*read.problems, *_unusable(config_file, read.settings)))
    findings = _locate(read.problems)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(_to_json(findings, read)), indent=2))
    else:
        # Lines stay whole off a terminal, for other programs.
        console = Terminal(soft_wrap=True)
        _print_findings(console, findings)
        _print_summary(console, findings, read)
    failing = ("error", "warning") if strict else ("error",)
    if any(problem.severity in failing for problem in read.problems):
        raise SystemExit(1)


def _with_certificates(read: Input) -> Input:
    """Certificates that have expired, or will soon, and what OpenSSL would refuse are told here only: what else is
    asked of the input stays true."""
    ahead_seconds = read.settings.certificates.expiry_warning_ms / 1000
    now = time.time()
    found = [
        *judge(read.config.certificates.values(), now, ahead_seconds),
        *judge_lists(read.config.revocation_lists(), now),
    ]
    return msgspec.structs.replace(read, problems=(*read.problems, *check_tls(read.config).values(), *found))


def _unusable(config_file: str, settings: Settings) -> Iterator[Problem]:
    """Files that the daemon would not start without."""
    for error in unusable_files(settings):
        _, _, line = place_of(config_file, error.path).rpartition(":")
        yield Problem(
            "LB5016",
            Origin(file=config_file, line=int(line)),
            str(error),
            why="`lb run` does not start, if it is as this user sees it here",
            fix="make the directory, let lb's user write there, or name another file",
            field=f"settings.{'.'.join(map(str, error.path))}",
        )


def _locate(problems: Sequence[Problem]) -> list[_Finding]:
    """Problems by object, the objects in the order of their files; without an object by file. First what is unread."""
    places = Places()
    findings = []
    for problem, origin in zip(problems, locate_all([problem.origin for problem in problems]), strict=True):
        found = msgspec.structs.replace(problem, origin=origin)
        findings.append(_Finding(found, places.find(found)))
    return sorted(findings, key=_order)


def _order(finding: _Finding) -> tuple[object, ...]:
    problem, origin = finding.problem, finding.problem.origin
    line = finding.place.line if finding.place is not None and not origin.kind else origin.line
    # What could not be read is missing elsewhere: the cause comes before what follows from it.
    is_effect = not (problem.code.startswith("LB1") and problem.severity == "error")
    return is_effect, origin.file, line, origin.object, SEVERITIES.index(problem.severity), problem.field


def _print_findings(console: Console, findings: Sequence[_Finding]) -> None:
    for name, group in groupby(findings, key=lambda finding: finding.problem.origin.object):
        console.print(Text(name or "input", style="bold"))
        for finding in group:
            _print_finding(console, finding)
        console.print()


def _print_finding(console: Console, finding: _Finding) -> None:
    problem = finding.problem
    line = Text(_INDENT)
    line.append(f"{finding.where}: " if finding.where else "")
    line.append(f"{problem.severity}[{problem.code}]", STYLES[problem.severity])
    line.append(f": {problem.what}")
    console.print(line)
    if finding.place is not None and finding.place.text:
        for excerpt in _excerpt(finding.place):
            console.print(Text(f"{_INDENT}{excerpt}", style="dim"))
    for label, text in (("field", problem.field), ("why", problem.why), ("fix", problem.fix)):
        if text:
            console.print(Text(f"{_INDENT * 2}{label}: {text}"))
    for step in problem.trace.splitlines():
        console.print(Text(f"{_INDENT * 2}{step}", style="dim"))


def _excerpt(place: Place) -> Iterator[str]:
    """The line, or the part of it around the place, and a marker below."""
    start = max(0, place.column - 1 - EXCERPT_WIDTH // 2) if len(place.text) > EXCERPT_WIDTH else 0
    text = place.text[start : start + EXCERPT_WIDTH]
    gutter = f"{place.line:>6} | "
    # Tabs stay tabs in the line below, so that the marker stands under its character at any tab width.
    below = "".join("\t" if character == "\t" else " " for character in text[: place.column - 1 - start])
    yield f"{gutter}{text}"
    yield f"{'|':>{len(gutter) - 1}} {below}^"


def _print_summary(console: Console, findings: Sequence[_Finding], read: Input) -> None:
    counts = _count_severities(findings)
    told = ", ".join(_plural(counts[severity], severity) for severity in SEVERITIES if counts[severity])
    serves = ", ".join(_plural(count, name) for name, count in _count_parts(read.config).items())
    console.print(Text(f"{told or 'no problems'}; serves {serves}"))


def _to_json(findings: Sequence[_Finding], read: Input) -> dict[str, Any]:
    return {
        "problems": [_finding_to_json(finding) for finding in findings],
        "summary": {**_count_severities(findings), "objects": read.store.counts(), **_count_parts(read.config)},
    }


def _finding_to_json(finding: _Finding) -> dict[str, Any]:
    problem, place = finding.problem, finding.place
    return {
        "code": problem.code,
        "severity": problem.severity,
        "title": CODES[problem.code].title,
        "object": problem.origin.object,
        "file": problem.origin.file,
        "line": place.line if place else problem.origin.line,
        "column": place.column if place else problem.origin.column,
        "item": problem.origin.item,
        "field": problem.field,
        "what": problem.what,
        "why": problem.why,
        "fix": problem.fix,
    }


def _count_severities(findings: Sequence[_Finding]) -> dict[str, int]:
    counts = Counter(finding.problem.severity for finding in findings)
    return {severity: counts[severity] for severity in SEVERITIES}


def _count_parts(config: Config) -> dict[str, int]:
    hosts = [host for host_set in config.hosts.values() for host in host_set.values()]
    return {
        "listener": len(config.listeners),
        "host": len(hosts),
        "route": sum(len(host.routes) for host in hosts),
        "upstream": len(config.upstreams),
        "endpoint": sum(len(upstream.endpoints) for upstream in config.upstreams.values()),
    }


def _plural(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
