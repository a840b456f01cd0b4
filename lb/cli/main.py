"""The command `lb`: finds the verb and hands over. A verb's file is imported when the verb is used, so that
`lb --help` and shell completion need no more than this file.
"""

from __future__ import annotations

import difflib
from importlib import import_module

import click

from lb import __version__

VERBS = {
    "run": "Serve what objects and native files say.",
    "check": "Tell what is wrong with objects and native files.",
    "explain": "Tell which rule serves a request, and why not the others.",
    "render": "Print what would be served as a native file.",
    "diff": "Tell what would change in routing terms.",
    "ctl": "Look at and operate a running daemon.",
    "schema": "Print the JSON Schema of the native file.",
    "completion": "Print the shell's completion script.",
    "man": "Print the manual page.",
}
"""Verb -> what it does, in the order of `lb --help`. The file is lb/cli/VERB.py, the click command in it `command`."""


class Verbs(click.Group):
    """Imports a verb's file when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"lb.cli.{cmd_name}").command
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, n=1)
            ctx.fail(f"there is no command `{args[0]}`{f'; did you mean `{near[0]}`?' if near else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="lb %(version)s")
def main() -> None:
    """lb serves the routing objects of a Kubernetes cluster, from exports and files.

    PATH is any mix of files and directories of kubectl exports (YAML, JSON, lists, several documents), manifests and
    native files; `-` is standard input.
    """
