"""What happens in directories, as the kernel tells it: inotify(7), read by the event loop.

No thread and no polling: while nothing happens, it costs nothing. Three functions of the C library are all there is to
it. A library over them, asyncinotify, knows one path of each directory, while links lead to one by several, and what
happens there concerns us under each of them.
"""

# Paths stay texts, as the user wrote them.
# ruff: noqa: PTH116, PTH118
from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# Source: inotify(7) and linux/inotify.h.
_MODIFY = 0x2
_ATTRIB = 0x4
_CLOSE_WRITE = 0x8
_MOVED_FROM = 0x40
_MOVED_TO = 0x80
_CREATE = 0x100
_DELETE = 0x200
_DELETE_SELF = 0x400
_MOVE_SELF = 0x800
_OVERFLOW = 0x4000
_IGNORED = 0x8000
_ONLY_DIRECTORIES = 0x0100_0000
_CHANGES = (
    _MODIFY
    | _ATTRIB  # a permission may have been mended, or a date set
    | _CLOSE_WRITE
    | _MOVED_FROM
    | _MOVED_TO
    | _CREATE
    | _DELETE
    | _DELETE_SELF
    | _MOVE_SELF
)
"""Not reading, opening and closing unchanged: what lb does itself would wake it."""
_HEAD = struct.Struct("iIII")
"""struct inotify_event: watch, mask, cookie, length of the name that follows."""
_READ_BYTES = 1 << 20
"""Room for the whole of a queue as long as Linux has it when nobody says otherwise, 16,384 events."""

_LIMITS = {
    errno.EMFILE: "fs.inotify.max_user_instances, or the limit of open files, is reached",
    errno.ENFILE: "fs.file-max is reached",
    errno.ENOSPC: "fs.inotify.max_user_watches is reached",
    errno.ENOMEM: "the kernel has no memory for it",
}
"""What strerror says of these, such as "No space left on device", would lead elsewhere."""

_libc = ctypes.CDLL(None, use_errno=True)


class Happened(NamedTuple):
    """What happened since the last look."""

    paths: frozenset[str]
    """Where, under every name by which the directory is watched."""
    anywhere: bool
    """The kernel's queue was full: nobody knows what else has happened."""


class _Watch(NamedTuple):
    identity: tuple[int, int]
    """Device and inode: a directory that is made again has the same path, but is not watched any more."""
    number: int


class Inotify:
    """Watches of directories. `follow` says which, `wait` what happened in them."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._watches: dict[str, _Watch] = {}
        self._paths: dict[int, set[str]] = {}
        """By number: all that lead to the same directory."""
        self._in_doubt = False
        """Events were lost, maybe those of directories that have gone and come again with the same inode."""

    def follow(self, directories: Iterable[str]) -> bool:
        """Watch these and no others; passes over those that have gone, or may not be read.

        Returns whether one is watched only from now on: what happened in it before is told by nobody. OSError when a
        limit of the kernel keeps some of them from being watched.
        """
        if self._descriptor < 0:
            self._descriptor = _open()
        present = _identify(directories)
        for path in [path for path, watch in self._watches.items() if present.get(path) != watch.identity]:
            self._drop(path)
        is_new = False
        for path, identity in present.items():
            if path not in self._watches or self._in_doubt:
                is_new |= self._add(path, identity)
        self._in_doubt = False
        return is_new

    async def wait(self, seconds: float) -> Happened | None:
        """Until something happens; None when nothing did for so long."""
        if self._descriptor < 0:
            await asyncio.sleep(seconds)
            return None
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(self._descriptor, _resolve, readable)
        try:
            await asyncio.wait((readable,), timeout=seconds)
        finally:
            loop.remove_reader(self._descriptor)
        return self._take()

    def close(self) -> None:
        """Watch nothing more. `follow` begins anew."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
        self._watches.clear()
        self._paths.clear()

    def _take(self) -> Happened | None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return None
        paths: set[str] = set()
        for number, mask, name in _events(data):
            self._in_doubt |= bool(mask & _OVERFLOW)
            holders = self._paths.get(number, ())
            paths.update(os.path.join(holder, name) if name else holder for holder in holders)
            if mask & _IGNORED:
                self._forget(number)
        return Happened(frozenset(paths), self._in_doubt)

    def _add(self, path: str, identity: tuple[int, int]) -> bool:
        """Whether it is watched in another way than before."""
        number = _add_watch(self._descriptor, path)
        before = self._watches.get(path)
        if number is None or (before is not None and before.number == number):
            return False
        if before is not None:
            self._drop(path)
        self._watches[path] = _Watch(identity, number)
        self._paths.setdefault(number, set()).add(path)
        return True

    def _forget(self, number: int) -> None:
        """The kernel has ended a watch, because its directory is deleted or unmounted."""
        for path in self._paths.pop(number, ()):
            del self._watches[path]

    def _drop(self, path: str) -> None:
        """End the watch of `path`, unless others lead to the same directory."""
        number = self._watches.pop(path).number
        paths = self._paths[number]
        paths.discard(path)
        if not paths:
            del self._paths[number]
            _libc.inotify_rm_watch(self._descriptor, number)  # it may have ended by itself meanwhile


def _open() -> int:
    descriptor = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor < 0:
        raise _error(ctypes.get_errno())
    return descriptor


def _add_watch(descriptor: int, path: str) -> int | None:
    """The number of the watch, which is the same for all paths of a directory; None when there is no such directory."""
    number = int(_libc.inotify_add_watch(descriptor, os.fsencode(path), _CHANGES | _ONLY_DIRECTORIES))
    if number >= 0:
        return number
    if (code := ctypes.get_errno()) in _LIMITS:
        raise _error(code)
    return None


def _error(code: int) -> OSError:
    return OSError(code, _LIMITS.get(code) or os.strerror(code))


def _identify(directories: Iterable[str]) -> dict[str, tuple[int, int]]:
    found = {}
    for path in directories:
        try:
            status = os.stat(path)
        except OSError:
            continue  # it has gone: its parent's event will tell
        found[path] = (status.st_dev, status.st_ino)
    return found


def _events(data: bytes) -> Iterator[tuple[int, int, str]]:
    """(watch, mask, name in the directory, or nothing for the directory itself) of every event."""
    offset = 0
    while offset < len(data):
        number, mask, _, length = _HEAD.unpack_from(data, offset)
        offset += _HEAD.size
        yield number, mask, os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
        offset += length


def _resolve(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
