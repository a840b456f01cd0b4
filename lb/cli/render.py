"""`lb render`: the model of any input as a native file."""

from __future__ import annotations

import click

from lb.cli.inputs import Flags, config_option, make_options, path_arguments, read_input, translation_options
from lb.model.text import to_text


@click.command(short_help="Print what would be served as a native file.")
@path_arguments
@config_option
@translation_options
@click.option("--show-secrets", is_flag=True, help="Print private keys, too; without it `hidden` stands for them.")
def command(paths: tuple[str, ...], config_file: str | None, flags: Flags, show_secrets: bool) -> None:
    """Print what would be served as a native file.

    `lb run` serves the printed file as it serves the input, if it holds the private keys (--show-secrets). Exits with
    1 when there were errors; what they cost is not in the file, and `lb check` tells of them.
    """
    read = read_input(paths, config_file, flags)
    defaults = make_options(read.settings, flags)
    click.echo(to_text(read.config, show_secrets=show_secrets, defaults=defaults), nl=False)
    errors = sum(1 for problem in read.problems if problem.severity == "error")
    if errors:
        click.echo(f"lb render: {errors} errors in the input; `lb check` tells which", err=True)
        raise SystemExit(1)
