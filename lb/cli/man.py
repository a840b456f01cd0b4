"""`lb man`: the manual page lb(1) in roff, made from the commands and their options."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator

import click

from lb import __version__

EXIT_STATUS = (
    ("0", "Success: for check no error, for diff no difference."),
    ("1", "check found errors, diff found differences, or the daemon refused or failed."),
    ("2", "Wrong usage, or no daemon answers."),
)
SIGNALS = (
    ("HUP", "Read all sources again now."),
    ("USR1", "Open the access log again, after a rotation."),
    ("TERM", "Stop accepting, finish what is under way within the drain time, exit. A second one stops at once."),
)


@click.command(short_help="Print the manual page.")
@click.pass_context
def command(context: click.Context) -> None:
    """Print the manual page, in roff: lb man | man -l -"""
    click.echo("\n".join(_page(context.find_root())))


def _page(root: click.Context) -> Iterator[str]:
    yield f'.TH LB 1 "" "lb {__version__}" "User Commands"'
    yield ".SH NAME"
    yield r"lb \- a standalone load balancer that serves a Kubernetes cluster's routing objects"
    yield ".SH SYNOPSIS"
    yield r".B lb"
    yield r"\fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]"
    yield ".SH DESCRIPTION"
    yield from _paragraphs(root.command.help)
    yield ".SH COMMANDS"
    for path, command in _walk(root.command, root):
        yield from _command(path, command, root)
    yield ".SH EXIT STATUS"
    yield from _definitions(EXIT_STATUS)
    yield ".SH SIGNALS"
    yield "To a running daemon:"
    yield from _definitions(SIGNALS)


def _walk(group: click.Command, context: click.Context, path: str = "lb") -> Iterator[tuple[str, click.Command]]:
    """All commands that do something, groups before what is in them."""
    if not isinstance(group, click.Group):
        return
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is not None:
            yield f"{path} {name}", command
            yield from _walk(command, context, f"{path} {name}")


def _command(path: str, command: click.Command, root: click.Context) -> Iterator[str]:
    context = click.Context(command, parent=root, info_name=path)
    yield f".SS {_escape(' '.join([path, *command.collect_usage_pieces(context)]))}"
    yield from _paragraphs(command.help)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1] and parameter.name != "help":
            yield from _definitions([record])


def _definitions(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, text in pairs:
        yield ".TP"
        yield rf"\fB{_escape(term)}\fR"
        yield _escape(text)


def _paragraphs(text: str | None) -> Iterator[str]:
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        yield ".PP"
        yield _escape(" ".join(paragraph.split()))


def _escape(text: str) -> str:
    """Roff takes backslashes and hyphens for its own, and a dot or quote at the start of a line for a request."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
