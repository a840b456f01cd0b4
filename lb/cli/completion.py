"""`lb completion SHELL`: the script that teaches a shell to complete lb's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_LB_COMPLETE"


@click.command(short_help="Print the shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the shell's completion script.

    For bash: lb completion bash > /etc/bash_completion.d/lb
    """
    root = context.find_root()
    completion = get_completion_class(shell)
    if completion is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    click.echo(completion(root.command, {}, root.info_name or "lb", VARIABLE).source())
