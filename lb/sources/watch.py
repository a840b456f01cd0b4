"""Follows files and directories: says when to read them again, soon after a change is complete.

Owns when to read: 100 ms after the last event, at most 500 ms after the first. What the events say does not matter,
only that there were some: FileSource compares all files with what it knows, so a lost, doubled or misleading event
costs nothing. It watches the directories that hold the files, never the files themselves, because exporters, editors
and kubelet replace files rather than write into them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping

import structlog
from watchfiles._rust_notify import RustNotify

from lb.sources.files import FileSource

HOLD_OFF_MS = 100
"""Quiet time after the last event before files are read."""
LONGEST_HOLD_OFF_MS = 500
"""A file that is written without pause is looked at this often."""
_STEP_MS = 20
"""How often watchfiles looks into its queue of events."""
_LONGEST_WAIT_MS = 60_000
"""After so long without events the directories are looked at again, in case the kernel's queue has overflowed."""
_RETRY_MS = 500
"""Pause before reading again what was still being written, and before watching what could not be watched."""

_log = structlog.get_logger(__name__)

_Watched = Mapping[str, tuple[int, int]]
"""Directory -> device and inode: one that is deleted and made again has the same path, but is not watched any more."""


async def watch(source: FileSource, read: Callable[[], Awaitable[object]], ready: asyncio.Event | None = None) -> None:
    """Call `read`, which is to call `source.read()`, whenever files have changed; until cancelled.

    `ready` is set while changes are noticed: all that came before was read, all that comes will be.
    """
    stop = _Stop()
    ready = ready or asyncio.Event()
    try:
        while True:
            await _follow(source, read, ready, stop)
            ready.clear()
    finally:
        stop.is_stopped = True
        ready.clear()


async def _follow(source: FileSource, read: Callable[[], Awaitable[object]], ready: asyncio.Event, stop: _Stop) -> None:
    """Follow one set of directories until it is no longer the right one."""
    stale = await asyncio.to_thread(source.is_stale)
    watched = _identify(source.places.directories)
    try:
        notify = _notify(watched)
    except (OSError, RuntimeError) as error:  # a directory has gone meanwhile, or the kernel's limit is reached
        _log.warning("files cannot be watched", error=str(error), retry_ms=_RETRY_MS)
        if stale:
            await read()
        await asyncio.sleep(_RETRY_MS / 1000)
        return
    with notify:
        # What changed before the watch began sent no event, so the first look needs none.
        while True:
            if await asyncio.to_thread(source.is_stale):
                await read()
            if watched != _identify(source.places.directories):
                return
            ready.set()
            await _wait(source, notify, stop)


async def _wait(source: FileSource, notify: RustNotify, stop: _Stop) -> None:
    """Until files have changed and then kept still, or until it is time to look without an event."""
    wait_ms = _LONGEST_WAIT_MS if source.is_settled else _RETRY_MS
    while True:
        events = await asyncio.to_thread(notify.watch, _STEP_MS, _STEP_MS, wait_ms, stop)
        if isinstance(events, str):
            return
        if any(source.places.concerns(path) for _, path in events):
            break
    loop = asyncio.get_running_loop()
    first = loop.time()
    while (left_ms := int(LONGEST_HOLD_OFF_MS - (loop.time() - first) * 1000)) > 0:
        wait_ms = min(left_ms, HOLD_OFF_MS - _STEP_MS)
        events = await asyncio.to_thread(notify.watch, _STEP_MS, _STEP_MS, wait_ms, stop)
        if isinstance(events, str):
            return


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
