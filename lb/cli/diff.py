"""`lb diff`: what changes between two inputs, in routing terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import click
import msgspec
from rich.console import Console
from rich.text import Text

from lb.cli.inputs import Flags, check_paths, read_input, translation_options
from lb.cli.output import output_option
from lb.cli.terminal import Terminal
from lb.model.config import Config
from lb.model.diff import Change, Kind, diff

_KIND_WIDTH = max(map(len, get_args(Kind)))
SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


@click.command(short_help="Tell what would change in routing terms.")
@click.argument("before", metavar="A", type=click.Path())
@click.argument("after", metavar="B", type=click.Path())
@click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Native file whose settings count on both sides; its routes do not.",
)
@translation_options
@output_option("text")
def command(before: str, after: str, config_file: str | None, flags: Flags, output: str) -> None:
    """Tell what would change in routing terms if B were served instead of A.

    A and B are files or directories. Exits with 0 when nothing changes, with 1 when something does, with 2 for wrong
    usage.
    """
    check_paths((before, after))
    changes = diff(_read(before, config_file, flags), _read(after, config_file, flags))
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(changes), indent=2))
    else:
        _print_changes(Terminal(soft_wrap=True), changes)
    if changes:
        raise SystemExit(1)


def _print_changes(console: Console, changes: Sequence[Change]) -> None:
    for change in changes:
        sign, style = SIGNS[change.what]
        line = Text()
        line.append(f"{sign} {change.kind:{_KIND_WIDTH}} ", style)
        line.append(change.effect.removeprefix(f"{change.kind} "))
        place = change.after or change.before
        if place:
            line.append(f"  [{place}]", "dim")
        console.print(line)
    counts = [f"{sum(1 for change in changes if change.what == what)} {what}" for what in SIGNS]
    console.print(Text(", ".join(counts) if changes else "nothing changes"))


def _read(path: str, config_file: str | None, flags: Flags) -> Config:
    """One side. Errors in it are told: what they cost looks like a removal."""
    read = read_input((path,), config_file, flags, only_settings=True)
    errors = sum(1 for problem in read.problems if problem.severity == "error")
    if errors:
        click.echo(f"lb diff: {errors} error{'' if errors == 1 else 's'} in {path}; `lb check` tells which", err=True)
    return read.config
