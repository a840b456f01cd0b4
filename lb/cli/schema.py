"""`lb schema`: the JSON Schema of the native file, for editors and other tools."""

from __future__ import annotations

import json

import click

from lb.model.schema import make_schema, struct_schema
from lb.settings import Settings


@click.command(short_help="Print the JSON Schema of the native file.")
def command() -> None:
    """Print the JSON Schema of the native file.

    Editors use it when the file's first line is `# yaml-language-server: $schema=PATH`.
    """
    click.echo(json.dumps(make_schema(struct_schema(Settings)), indent=2))
