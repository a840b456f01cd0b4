"""Follows files and directories: tells the store of changes soon after they are complete.

Owns when to read: 100 ms after the last event, at most 500 ms after the first; what is whole beyond doubt (renamed
over the file before, or JSON to its last brace) at the first event already. What the events say does not matter, only
that there were some: FileSource compares all files with what it knows, so a lost, doubled or misleading event costs
nothing. It watches the directories that hold the files, never the files themselves, because exporters, editors and
kubelet replace files rather than write into them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

import structlog
from watchfiles._rust_notify import RustNotify

from lb.sources.files import FileSource, Reading

HOLD_OFF_MS = 100
"""Quiet time after the last event before files are read."""
LONGEST_HOLD_OFF_MS = 500
"""A file that is written without pause is looked at this often."""
_STEP_MS = 20
"""How often watchfiles looks into its queue of events."""
_LONGEST_WAIT_MS = 60_000
"""After so long without events the directories are looked at again, in case the kernel's queue has overflowed."""
_RETRY_MS = 100
"""Pause before reading again what was still being written, and before watching what could not be watched."""

_log = structlog.get_logger(__name__)

_Watched = Mapping[str, tuple[int, int]]
"""Directory -> device and inode: one that is deleted and made again has the same path, but is not watched any more."""


class Watcher:
    """Keeps a FileSource read. `changed` is called in the event loop after the store has taken something in."""

    def __init__(self, source: FileSource, changed: Callable[[], None]) -> None:
        self._source = source
        self._changed = changed
        self._lock = asyncio.Lock()
        self.ready = asyncio.Event()
        """Set while changes are noticed: all that came before was read, all that comes will be."""

    async def run(self) -> None:
        """Read everything, then follow changes until cancelled."""
        stop = _Stop()
        try:
            await self._read()
            while True:
                await self._watch(stop)
        finally:
            stop.is_stopped = True
            self.ready.clear()

    async def rescan(self) -> None:
        """Read everything again now (SIGHUP), whatever the files' dates say."""
        await self._read(force=True)

    async def _watch(self, stop: _Stop) -> None:
        """Follow one set of directories until it is no longer the right one."""
        watched = _identify(self._source.places.directories)
        try:
            notify = _notify(watched)
        except (OSError, RuntimeError) as error:  # a directory has gone meanwhile, or the kernel's limit is reached
            _log.warning("files cannot be watched", error=str(error), retry_ms=_RETRY_MS)
            await asyncio.sleep(_RETRY_MS / 1000)
            await self._read()
            return
        with notify:
            await self._read()  # what changed before the watch began sent no event
            while watched == _identify(self._source.places.directories):
                self.ready.set()
                await self._wait(notify, stop)
                await self._read()
        self.ready.clear()

    async def _wait(self, notify: RustNotify, stop: _Stop) -> None:
        """Until files have changed and then kept still, or until it is time to look without an event."""
        wait_ms = _LONGEST_WAIT_MS if self._source.is_settled else _RETRY_MS
        while True:
            events = await asyncio.to_thread(notify.watch, _STEP_MS, _STEP_MS, wait_ms, stop)
            if isinstance(events, str):
                return
            if any(self._source.places.concerns(path) for _, path in events):
                break
        await self._read_whole()
        loop = asyncio.get_running_loop()
        first = loop.time()
        while (left_ms := int(LONGEST_HOLD_OFF_MS - (loop.time() - first) * 1000)) > 0:
            wait_ms = min(left_ms, HOLD_OFF_MS - _STEP_MS)
            events = await asyncio.to_thread(notify.watch, _STEP_MS, _STEP_MS, wait_ms, stop)
            if isinstance(events, str):
                return

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


class _Stop:
    """What watchfiles asks, from its thread, whether to go on."""

    is_stopped = False

    def is_set(self) -> bool:
        return self.is_stopped


def _identify(directories: frozenset[str]) -> _Watched:
    found = {}
    for path in directories:
        try:
            status = os.stat(path)  # noqa: PTH116 - only two numbers are wanted, for many paths
        except OSError:
            continue  # it has gone: its parent's event will tell
        found[path] = (status.st_dev, status.st_ino)
    return found


def _notify(directories: _Watched) -> RustNotify:
    """Watch each directory by itself: below a file's directory there may be a whole disk.

    watchfiles documents this class ("Rust backend direct usage"); its awatch() does not say when the watch has begun.
    """
    debug, force_polling, poll_delay_ms, recursive, ignore_permission_denied = False, False, 300, False, True
    return RustNotify(sorted(directories), debug, force_polling, poll_delay_ms, recursive, ignore_permission_denied)
