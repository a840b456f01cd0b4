"""Follows files and directories: tells the store of changes soon after they are complete.

Owns when to read: 100 ms after the last event, at most 500 ms after the first; what is whole beyond doubt (renamed
over the file before, or JSON to its last brace) at the first event already. What the events say does not matter, only
that there were some: FileSource compares all files with what it knows, so a lost, doubled or misleading event costs
nothing. It watches the directories that hold the files, never the files themselves, because exporters, editors and
kubelet replace files rather than write into them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from lb.sources.files import FileSource, Reading
from lb.sources.inotify import Inotify

HOLD_OFF_MS = 100
"""Quiet time after the last event before files are read."""
LONGEST_HOLD_OFF_MS = 500
"""A file that is written without pause is looked at this often."""
_STEP_MS = 20
"""Pause after an event before the next one is waited for: they come in crowds, and each costs a turn of the loop."""
_LONGEST_STEP_MS = 160
"""The same where others write without pause, such as logs beside an export."""
_LONGEST_WAIT_MS = 60_000
"""After so long without events the directories are looked at again: some file systems (NFS, FUSE) tell of no changes
that others make.
"""
_RETRY_MS = 100
"""Pause before reading again what was still being written."""
_UNWATCHED_MS = 1_000
"""Pause before looking again while not all can be watched."""

_log = structlog.get_logger(__name__)


class Watcher:
    """Keeps a FileSource read. `changed` is called in the event loop after the store has taken something in."""

    def __init__(self, source: FileSource, changed: Callable[[], None]) -> None:
        self._source = source
        self._changed = changed
        self._lock = asyncio.Lock()
        self._inotify = Inotify()
        self._limit = ""
        """Why not all can be watched, as it was told."""
        self.ready = asyncio.Event()
        """Set while changes are noticed: all that came before was read, all that comes will be."""

    async def run(self) -> None:
        """Read everything, then follow changes until cancelled."""
        try:
            while True:
                await self._read()
                await self._watch()
        finally:
            self._inotify.close()
            self.ready.clear()

    async def rescan(self) -> None:
        """Read everything again now (SIGHUP), whatever the files' dates say."""
        await self._read(force=True)

    async def _watch(self) -> None:
        """Watch where the last reading says, until it is time for another one."""
        longest_ms = _LONGEST_WAIT_MS
        try:
            if self._inotify.follow(self._source.places.directories):
                self.ready.clear()
                return  # what changed before the watch began sent no event
        except OSError as error:
            self._tell(error.strerror or str(error))
            self.ready.clear()
            longest_ms = _UNWATCHED_MS
        else:
            self._tell("")
            self.ready.set()
        await self._wait(longest_ms if self._source.is_settled else _RETRY_MS)

    def _tell(self, limit: str) -> None:
        """Say once that not all can be watched, and once that it can be again."""
        if limit == self._limit:
            return
        self._limit = limit
        if limit:
            _log.warning(
                "not all files can be watched: all are looked at now and then instead",
                why=limit,
                fix="raise that limit",
                every_ms=_UNWATCHED_MS,
            )
        else:
            _log.info("all files can be watched again")

    async def _wait(self, longest_ms: int) -> None:
        """Until files have changed and then kept still, or until it is time to look without an event."""
        if not await self._has_news(longest_ms):
            return
        loop = asyncio.get_running_loop()
        await asyncio.sleep(_STEP_MS / 1000)
        await self._read_whole()
        end = loop.time() + LONGEST_HOLD_OFF_MS / 1000
        while (left_ms := (end - loop.time()) * 1000) > 0:
            if not await self._has_news(min(left_ms, HOLD_OFF_MS)):
                return
            await asyncio.sleep(_STEP_MS / 1000)

    async def _has_news(self, longest_ms: float) -> bool:
        """Wait until something happens that concerns the files; False when nothing did for so long."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        end = now + longest_ms / 1000
        step = _STEP_MS / 1000
        while now < end:
            happened = await self._inotify.wait(end - now)
            if happened is None:
                return False
            if happened.anywhere or any(map(self._source.places.concerns, happened.paths)):
                return True
            was_quiet = loop.time() - now > _LONGEST_STEP_MS / 1000
            step = _STEP_MS / 1000 if was_quiet else min(2 * step, _LONGEST_STEP_MS / 1000)
            await asyncio.sleep(min(step, max(end - loop.time(), 0)))
            now = loop.time()
        return False

    async def _read(self, force: bool = False) -> None:
        async with self._lock:
            self._take(await asyncio.to_thread(self._source.load, force))

    async def _read_whole(self) -> None:
        async with self._lock:
            self._take(await asyncio.to_thread(self._source.load_whole))

    def _take(self, reading: Reading) -> None:
        if reading.changed or reading.removed:
            self._source.apply(reading)
            self._changed()
