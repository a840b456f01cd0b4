"""Follows the settings file while lb runs.

Settings are read at start only. So somebody has to say that they have changed, and that lb would not start with them,
before the next start finds it out.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from lb.problems import Origin, Problem
from lb.settings import SettingsError, load_settings, problem_with

log = structlog.stdlib.get_logger(__name__)

_WHY = "lb goes on with the settings that it was started with, and would not start with these"


class SettingsFile:
    """The file that `-c` names, if any."""

    def __init__(self, file: str | None) -> None:
        """SettingsError, OSError when the settings in it cannot be read."""
        self._file = file
        self._at_start = load_settings(file) if file else None
        self._stamp = _stamp(file)
        self.problems: tuple[Problem, ...] = ()
        """As of the last look."""

    @property
    def has_changed(self) -> bool:
        """Whether it is another one than at the last look."""
        return _stamp(self._file) != self._stamp

    def look(self) -> None:
        """Tell what has become of the settings."""
        if self._file is None:
            return
        self._stamp = _stamp(self._file)
        self.problems = ()
        try:
            if load_settings(self._file) != self._at_start:
                log.warning("settings have changed: they are read at start only", file=self._file)
        except SettingsError as error:
            self._tell(problem_with(self._file, error, _WHY), str(error))
        except OSError as error:
            what = f"the settings cannot be read: {error.strerror}"
            fix = "put the file back, or let lb's user read it"
            self._tell(Problem("LB1001", Origin(file=self._file), what, _WHY, fix), str(error))

    def _tell(self, problem: Problem, error: str) -> None:
        self.problems = (problem,)
        log.error("settings cannot be read: lb would not start with them", error=error)


def _stamp(file: str | None) -> tuple[int, ...]:
    """What changes with the content of a file; nothing when there is none."""
    try:
        status = Path(file).stat() if file else None
    except OSError:
        return ()
    return () if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)
