"""Paths and what the kernel says of them: whether a file may have changed, and what lies on the way to it."""

# Paths stay texts, as the user wrote them, and links must not be resolved on the way.
# ruff: noqa: PTH100, PTH112, PTH114, PTH115, PTH116, PTH118, PTH120
from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from lb.problems import Origin, Problem

CHECK_PATH = "check the path"
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_CLOCK_TICK_NS = 20_000_000
"""File dates are this coarse: the kernel's tick, 10 ms at most, and some more."""


class Signature(NamedTuple):
    """Says whether a file may have changed."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


class Places(NamedTuple):
    """Where to watch for changes, and which of them matter. All paths absolute."""

    walked: frozenset[str]
    """Directories of which every entry matters."""
    ways: frozenset[str]
    """Files, links and directories on the way to what was named."""
    directories: frozenset[str]
    """The existing directories that hold all these."""

    def concerns(self, path: str) -> bool:
        """Whether an event at `path` may have changed what is read."""
        return path in self.ways or os.path.dirname(path) in self.walked


def make_places(walked: set[str], ways: set[str]) -> Places:
    """The places of directories that are walked and of ways to what was named."""
    holders = walked | {os.path.dirname(way) for way in ways}
    return Places(frozenset(walked), frozenset(ways), frozenset(path for path in holders if os.path.isdir(path)))


def signature(status: os.stat_result) -> Signature:
    return Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def signature_at(path: str) -> Signature | None:
    """Of what `path` leads to now; None when it leads nowhere."""
    try:
        return signature(os.stat(path))
    except OSError:
        return None


def is_settled(found: Signature | None, at_ns: int) -> bool:
    """A file written within the last tick of its clock may change once more and keep its date. `at_ns`: just before it
    was looked at. What is done with it may take longer than a tick, and the change would hide in between.
    """
    return found is not None and abs(at_ns - found.modified_ns) > _CLOCK_TICK_NS


def note_way(path: str, ways: set[str]) -> None:
    """Add every directory, link and file on the way to `path`: whichever is replaced, `path` is something else."""
    waiting = [os.path.abspath(path)]
    while waiting:
        whole = part = waiting.pop()
        while part not in ways and part != "/":
            ways.add(part)
            if os.path.islink(part):
                target = os.path.join(os.path.dirname(part), os.readlink(part))
                waiting.append(os.path.normpath(target + whole[len(part) :]))
            part = os.path.dirname(part)


def read_regular(path: str, most_bytes: int) -> bytes:
    """A regular file of moderate size: a pipe or a device would keep us waiting for ever. OSError, ValueError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > most_bytes:
            raise ValueError(f"it is larger than {most_bytes} bytes")
        with open(handle, "rb", closefd=False) as stream:
            return stream.read(most_bytes)
    finally:
        os.close(handle)


def os_problem(path: str, error: OSError) -> Problem:
    """LB1001 for a file that the system will not read."""
    reason = error.strerror or str(error)
    fix = "check its permissions"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        fix = CHECK_PATH
    elif error.errno in _NO_DESCRIPTORS:
        fix = "raise the limit of open files"
    return Problem("LB1001", Origin(file=path), f"{path} cannot be read: {reason}", fix=fix)


def is_passing(error: OSError) -> bool:
    """Whether nothing need change about the file for it to be read: it was the host that had too little left."""
    return error.errno in (*_NO_DESCRIPTORS, errno.ENOMEM)
