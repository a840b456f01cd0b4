"""`lb run`: turns the command line and the settings file into Settings, and runs the daemon."""

from __future__ import annotations

import errno
from pathlib import Path

import click
from msgspec.structs import replace

from lb.cli.inputs import (
    Flags,
    check_paths,
    config_option,
    make_options,
    path_arguments,
    publish_option,
    translation_options,
)
from lb.observe import logs
from lb.observe.access import FormatError
from lb.settings import (
    ACCESS_LOG_PATH,
    FieldError,
    Settings,
    SettingsError,
    has_routing,
    load_settings,
    parse_bind,
    parse_publish,
    place_of,
)
from lb.sources.store import EXPORT_COMMAND

USAGE = f"""name at least one PATH with objects to serve, for example:

    (umask 077; {EXPORT_COMMAND} > export.json)
    lb run export.json --publish 80=:8080 --publish 443=:8443

or try `lb run --demo`"""


@click.command(short_help="Serve what objects and native files say.")
@path_arguments
@config_option
@translation_options
@publish_option
@click.option("--admin", "admin_address", metavar="ADDR:PORT", help="Also serve the admin API there, for reading.")
@click.option("--admin-socket", metavar="PATH", help="Unix socket of the admin API.")
@click.option("--threads", type=click.IntRange(min=0), help="Threads that carry traffic; 0 is one for each core.")
@click.option("--access-log", metavar="PATH|-", help="Write an access log there; - is standard output.")
@click.option("--log-format", metavar="json|combined|TEMPLATE", help="Format of the access log.")
@click.option("--demo", is_flag=True, help="Serve an example (or PATH) with echo servers in place of its pods.")
def command(
    paths: tuple[str, ...],
    config_file: str | None,
    flags: Flags,
    publish: tuple[str, ...],
    admin_address: str | None,
    admin_socket: str | None,
    threads: int | None,
    access_log: str | None,
    log_format: str | None,
    demo: bool,
) -> None:
    """Serve what objects and native files say, and follow their changes.

    SIGHUP reads everything again, SIGUSR1 reopens the access log, SIGTERM finishes what is under way and ends; a second
    SIGTERM ends now.
    """
    # Building the daemon's parts takes a while; `lb run --help` and wrong usage need not wait for it.
    from lb.app import run
    from lb.demo import DEMO_PATH, DEMO_PUBLISH

    try:
        settings = load_settings(config_file) if config_file else Settings()
        settings = replace(
            settings,
            threads=settings.threads if threads is None else threads,
            publish=(*settings.publish, *publish),
            admin=replace(
                settings.admin,
                socket=admin_socket or settings.admin.socket,
                address=admin_address or settings.admin.address,
            ),
            access_log=replace(
                settings.access_log,
                path=settings.access_log.path if access_log is None else access_log,
                format=log_format or settings.access_log.format,
            ),
            kubernetes=flags.apply(settings.kubernetes),
        )
        parse_publish(settings.publish)
        if settings.admin.address:
            parse_bind(settings.admin.address)
        if demo:
            paths = paths or (_shown(DEMO_PATH),)
            settings = replace(settings, publish=settings.publish or (DEMO_PUBLISH,))
        inputs = [*paths, *([config_file] if config_file and config_file not in paths else [])]
        if not paths and not (config_file and has_routing(config_file)):
            raise click.UsageError(USAGE)
        check_paths(paths)
        logs.set_up(settings.log.level, settings.log.format)
        run(settings, make_options(settings, flags, config_file), inputs, settings_file=config_file, demo=demo)
    except FieldError as error:
        raise click.UsageError(_said(error, config_file, access_log)) from None
    except (SettingsError, FormatError) as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"cannot start: {_reason(error)}") from None


def _said(error: FieldError, config_file: str | None, access_log: str | None) -> str:
    """The mistake, with the place where the value was given."""
    if error.path == ACCESS_LOG_PATH and (access_log is not None or config_file is None):
        return f"--access-log: {error.what}"
    return str(error) if config_file is None else f"{place_of(config_file, error.path)}: {error}"


def _reason(error: OSError) -> str:
    """Without the number that Python puts before it."""
    text = error.strerror or str(error)
    if error.filename:
        text += f": {error.filename}"
    if error.errno == errno.EADDRINUSE:  # of the admin API: a listener that cannot be opened is a problem instead
        text += "\nIf another lb runs, give this one --admin-socket (and --admin) of its own."
    return text


def _shown(path: Path) -> str:
    """As short as the user would write it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
