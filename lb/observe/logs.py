"""lb's own log: one set-up for structlog and the standard library, on standard error.

Console text on a terminal, else JSON; with a priority in front of each line when systemd's journal reads it. Nothing
here or elsewhere logs header values, bodies, key material or Secrets.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Literal, TextIO

import structlog
from structlog.typing import Processor, WrappedLogger

# Source: sd-daemon(3), SD_INFO and the others.
PRIORITIES = {"critical": 2, "error": 3, "exception": 3, "warning": 4, "info": 6, "debug": 7}


def set_up(level: str, form: Literal["auto", "console", "json"], stream: TextIO = sys.stderr) -> None:
    """Send everything to `stream`. May be called again."""
    console = form == "console" or (form == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_last(console, stream))
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)
    # What these say at `info` is not about lb: lines for each start of the admin server.
    for name in ("asyncio", "uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """`debug`, `info`, `warning` or `error`, from now on."""
    logging.getLogger().setLevel(level.upper())


def level() -> str:
    """The level in force."""
    return logging.getLevelName(logging.getLogger().level).lower()


def reads_journal(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the journal is at the other end of `stream`. Source: systemd.exec(5), $JOURNAL_STREAM."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _last(console: bool, stream: TextIO) -> list[Processor]:
    processors: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if console:
        return [*processors, structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    if not reads_journal(stream):
        return processors
    return [*processors[:-1], _journal_line]


def _journal_line(logger: WrappedLogger, method: str, event: structlog.typing.EventDict) -> str:
    """`<6>{"event": …}`: the journal takes the priority from the number."""
    priority = PRIORITIES.get(str(event.get("level")), 6)
    return f"<{priority}>{structlog.processors.JSONRenderer()(logger, method, event)!s}"
