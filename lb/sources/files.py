"""Files and directories of objects: finding them, reading them, and never letting half a file replace a whole one.

The rule: what cannot be read never replaces what could. A file that is cut off, empty or changing under the reader
keeps its last good content whole; a file with a syntax error may add and change objects, but loses none; an item that
cannot be decoded keeps its last good form. A file that is gone takes its objects with it.

Reading is split in two. `load` touches no store and may run in a thread (it holds the GIL for one JSON scan at a time,
about 1 ms per megabyte; the data plane needs no GIL); `apply` is short and runs where the store lives. Each reading
tells what changed since the one before, so all must be applied, in the order in which they were loaded.
"""

# Paths stay texts, as the user wrote them, and links must not be resolved on the way.
# ruff: noqa: PTH100, PTH114, PTH116, PTH118, PTH123, PTH208
from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from lb.objects.decode import LEFT_OUT, Decoded, Parts, decode, decode_change
from lb.objects.layout import find_change
from lb.objects.meta import Key
from lb.objects.view import Stored
from lb.problems import Origin, Problem
from lb.sources.certificates import Inlined, inline
from lb.sources.paths import Places, Signature, is_passing, is_settled, make_places, note_way, os_problem, signature
from lb.sources.store import Store, key_of

STDIN = "-"
SUFFIXES = (".yaml", ".yml", ".json")
_READ_ATTEMPTS = 3
"""How often a file that changes while it is read is read again at once."""

_READ_ONCE = Signature(0, 0, 0, 0, 0)
"""Of standard input and pipes."""


class _Content(msgspec.Struct, frozen=True):
    """What is known of one file."""

    signature: Signature | None
    decoded: Decoded
    """The reading that the next one reuses items of."""
    stored: Sequence[Stored]
    """What the store gets: the items of `decoded`, and those of earlier readings that must stay."""
    problems: Sequence[Problem]
    unknown: Mapping[str, int]
    ends_with_newline: bool
    settled: bool = True
    """Whether a file with this signature must have this content."""
    inlined: Inlined | None = None
    """Of native files that name certificate files: with what those hold."""


class Reading(msgspec.Struct, frozen=True):
    """What `load` found: to be given to `apply`."""

    changed: Mapping[str, _Content]
    removed: Sequence[str]


class Found(msgspec.Struct):
    """What the paths lead to."""

    files: dict[str, os.stat_result]
    """By the path to show."""
    problems: dict[str, Problem]
    passing: set[str]
    """Those of `problems` that will pass without anything changing there."""
    walked: set[str]
    ways: set[str]

    def places(self) -> Places:
        return make_places(self.walked, self.ways)

    def add_problem(self, path: str, error: OSError) -> None:
        self.problems[path] = os_problem(path, error)
        if is_passing(error):
            self.passing.add(path)


def read_paths(paths: Sequence[str | Path]) -> Store:
    """Read files and directories once into a new store. What is wrong with them is in Store.problems."""
    store = Store()
    FileSource(paths, store).read()
    return store


class FileSource:
    """Keeps a store in step with files and directories."""

    def __init__(self, paths: Sequence[str | Path], store: Store) -> None:
        self.places = Places(frozenset(), frozenset(), frozenset())
        """Where to watch, as of the last look."""
        self._paths = [str(path) for path in paths]
        self._store = store
        self._contents: dict[str, _Content] = {}
        """As loaded last, whether that was applied already or not."""

    def read(self, force: bool = False) -> bool:
        """Load and apply at once. Returns whether there was anything new."""
        reading = self.load(force)
        self.apply(reading)
        return bool(reading.changed or reading.removed)

    @property
    def is_settled(self) -> bool:
        """Whether no file was still being written when it was read last. If one was, look again soon."""
        return all(
            content.settled and (content.inlined is None or content.inlined.settled)
            for content in self._contents.values()
        )

    def load(self, force: bool = False) -> Reading:
        """Find all files and read those that changed, or all with `force`. Any thread, one call at a time."""
        found = self._find()
        changed: dict[str, _Content] = {}
        for file, status in sorted(found.files.items()):
            if self._is_news(file, status, force):
                changed[file] = _read(file, status, self._contents.get(file))
        for path, problem in found.problems.items():
            before = self._contents.get(path)
            content = _unreadable(problem, before, None)
            content = msgspec.structs.replace(content, settled=path not in found.passing)
            if before is None or before.problems != content.problems or before.signature is not None:
                changed[path] = content
        self._read_named_files(found, changed, force)
        present = found.files.keys() | found.problems.keys()
        # What is below a directory that cannot be read now has not gone, nor what is below one that was named and is
        # away.
        closed = tuple(path + "/" for path in found.problems)
        removed = [file for file in self._contents if file not in present and not file.startswith(closed)]
        return self._note(Reading(changed, removed))

    def load_whole(self) -> Reading:
        """Read, of the files that changed, those that are whole beyond doubt, so that they need not wait for the
        hold-off.

        A known file that another one was renamed over is whole, and so is JSON that decodes without an error: it says
        itself where it ends. YAML that is being written does not, nor does a file that was not there before.
        """
        changed: dict[str, _Content] = {}
        for file, status in sorted(self._find().files.items()):
            before = self._contents.get(file)
            if before is None or before.signature is None or not self._is_news(file, status, False):
                continue
            # Writing sets both dates alike; a rename afterwards sets only the second one.
            renamed = before.signature.inode != status.st_ino and status.st_ctime_ns > status.st_mtime_ns
            if not renamed and not file.endswith(".json"):
                continue
            content = _read(file, status, before)
            if all(problem.severity != "error" for problem in content.problems):
                changed[file] = _with_named_files(content, before)
        return self._note(Reading(changed, ()))

    def apply(self, reading: Reading) -> None:
        """Put what was loaded into the store."""
        for file in reading.removed:
            self._store.remove_file(file)
        for file, content in reading.changed.items():
            stored, problems = content.stored, content.problems
            if content.inlined is not None:
                stored, problems = content.inlined.stored, [*problems, *content.inlined.problems]
            self._store.replace_file(file, stored, problems, content.unknown)

    def _note(self, reading: Reading) -> Reading:
        for file in reading.removed:
            del self._contents[file]
        self._contents.update(reading.changed)
        return reading

    def _read_named_files(self, found: Found, changed: dict[str, _Content], force: bool) -> None:
        """What native files name is read with them, and again when it changes."""
        for file in found.files:
            before = self._contents.get(file)
            content = changed.get(file, before)
            if content is None:
                continue
            if file not in changed and (content.inlined is None or not (force or content.inlined.is_stale())):
                continue
            new = _with_named_files(content, before, force)
            if file in changed or new.inlined != content.inlined:
                changed[file] = new
        self.places = self._all_places(found, changed)

    def _all_places(self, found: Found, changed: Mapping[str, _Content]) -> Places:
        walked, ways = set(found.walked), set(found.ways)
        for content in {**self._contents, **changed}.values():
            if content.inlined is not None:
                walked |= content.inlined.walked
                ways |= content.inlined.ways
        return make_places(walked, ways)

    def _find(self) -> Found:
        found = find(self._paths)
        self.places = self._all_places(found, {})
        return found

    def _is_news(self, file: str, status: os.stat_result, force: bool) -> bool:
        before = self._contents.get(file)
        if before is None:
            return True
        if not stat.S_ISREG(status.st_mode):
            return False  # standard input or a pipe: it can be read only once
        return force or not before.settled or before.signature != signature(status)


def _with_named_files(content: _Content, before: _Content | None, force: bool = False) -> _Content:
    known = before.inlined if before is not None else None
    return msgspec.structs.replace(content, inlined=inline(content.stored, known, force))


# Finding


def find(paths: Iterable[str]) -> Found:
    """All files that the paths lead to, each once, whatever links lead to it."""
    found = Found({}, {}, set(), set(), set())
    seen: set[tuple[int, int]] = set()
    for path in sorted(paths):
        _find(path, found, seen)
    return found


def _find(path: str, found: Found, seen: set[tuple[int, int]]) -> None:
    """A path that was named: any file, hidden or not, with any suffix."""
    if path == STDIN:
        found.files[STDIN] = os.stat_result((0,) * 10)
        return
    note_way(path, found.ways)
    try:
        status = os.stat(path)
    except OSError as error:
        found.add_problem(path, error)
        return
    if stat.S_ISDIR(status.st_mode):
        _walk(path, status, found, seen)
    elif (status.st_dev, status.st_ino) not in seen:
        seen.add((status.st_dev, status.st_ino))
        found.files[path] = status


def _walk(directory: str, status: os.stat_result, found: Found, seen: set[tuple[int, int]]) -> None:
    """The files below a directory. Hidden names are left out: what `..data` holds is met by its links."""
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    found.walked.add(os.path.abspath(directory))
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        found.add_problem(directory, error)
        return
    for name in names:
        if not name.startswith("."):
            _visit(os.path.join(directory, name), found, seen)


def _visit(path: str, found: Found, seen: set[tuple[int, int]]) -> None:
    try:
        if os.path.islink(path):
            note_way(path, found.ways)
        status = os.stat(path)
    except FileNotFoundError:
        return  # a link that leads nowhere, or a file that has just gone
    except OSError as error:
        found.add_problem(path, error)
        return
    if stat.S_ISDIR(status.st_mode):
        _walk(path, status, found, seen)
    elif stat.S_ISREG(status.st_mode) and path.endswith(SUFFIXES) and (status.st_dev, status.st_ino) not in seen:
        seen.add((status.st_dev, status.st_ino))
        found.files[path] = status


# Reading


class _Read(NamedTuple):
    """A file as it was at one moment."""

    decoded: Decoded
    signature: Signature | None
    """None: the file was changing while it was read."""
    settled: bool
    empty: bool
    ends_with_newline: bool


def _read(file: str, status: os.stat_result, before: _Content | None) -> _Content:
    try:
        read = _read_part(file, before) if before is not None else None
        read = read or _read_whole(file, before.decoded if before else None)
    except OSError as error:
        content = _unreadable(os_problem(file, error), before, signature(status))
        return msgspec.structs.replace(content, settled=False) if is_passing(error) else content
    return _judge(file, read, before)


def _read_part(file: str, before: _Content) -> _Read | None:
    """A large List, read only where it differs from what it was; None when the whole file must be read.

    Every block is compared by its hash: 1 GB takes less than a second, and no more than a block of it stays in memory.
    """
    layout = before.decoded.layout
    if layout is None:
        return None
    with open(file, "rb", buffering=0) as stream:
        handle = stream.fileno()
        at_start = os.fstat(handle)
        change = find_change(
            layout,
            at_start.st_size,
            lambda offset, length: os.pread(handle, length, offset),
            lambda offset, room: _read_into(handle, offset, room),
        )
        at_ns, at_end = time.time_ns(), os.fstat(handle)
    if change is None or signature(at_start) != signature(at_end):
        return None
    decoded = decode_change(change, file, before.decoded)
    if decoded is None:
        return None
    settled = is_settled(signature(at_end), at_ns)
    return _Read(decoded, signature(at_end), settled, False, before.ends_with_newline)


def _read_into(handle: int, offset: int, room: memoryview) -> None:
    """Fill `room` from a file; less than it holds only when the file has just been cut, which its size then tells."""
    done = 0
    while done < len(room):
        count = os.preadv(handle, [room[done:]], offset + done)
        if not count:
            return
        done += count


def _read_whole(file: str, previous: Decoded | None) -> _Read:
    data, signature, settled = _read_bytes(file)
    return _Read(decode(data, file, previous), signature, settled, not data, data.endswith(b"\n"))


def _read_bytes(file: str) -> tuple[bytes, Signature | None, bool]:
    """What it holds, how to know it by, and whether that must be what it holds as long as it looks like this."""
    if file == STDIN:
        return sys.stdin.buffer.read(), _READ_ONCE, True
    data = b""
    for _ in range(_READ_ATTEMPTS):
        with open(file, "rb") as stream:
            at_start = os.fstat(stream.fileno())
            data = stream.read()
            at_ns, at_end = time.time_ns(), os.fstat(stream.fileno())
        if not stat.S_ISREG(at_start.st_mode):
            return data, _READ_ONCE, True
        if signature(at_start) == signature(at_end) and len(data) == at_end.st_size:
            return data, signature(at_end), is_settled(signature(at_end), at_ns)
    return data, None, False


def _judge(file: str, read: _Read, before: _Content | None) -> _Content:
    """What of a new reading is used."""
    decoded = read.decoded
    good = before if before is not None and before.stored else None
    if good is not None and (cut := _why_cut(read, good)):
        return _keep_all(file, read, good, cut)
    parts = decoded.parts()
    kept = _kept_items(decoded, parts, good)
    problems = [*decoded.errors, *(rejected.problem for rejected in parts.rejected)]
    if read.signature is None:
        problems.append(Problem("LB1006", Origin(file=file), "the file changed while it was read"))
    if kept:
        problems = [_say_kept(problem, kept) for problem in problems]
    elif decoded.truncated:
        count = len(parts.stored)
        problems = [
            _say(problem, f"no good version is known: its {count} whole objects are used") for problem in problems
        ]
    problems.extend(parts.doubts)
    return _Content(
        read.signature,
        decoded,
        [*parts.stored, *kept] if kept else parts.stored,
        problems,
        parts.unknown,
        read.ends_with_newline,
        read.settled,
    )


def _why_cut(read: _Read, good: _Content) -> str:
    """Why the new content is taken for half of a file; empty when it is not."""
    if read.signature is None:
        return "the file is still being written"
    if read.empty:
        return "the file is empty"
    if read.decoded.truncated:
        return "the file ends in the middle"
    if read.decoded.incomplete:
        return "the last document has no kind or no metadata"
    # Every exporter ends its last line; a text cut inside that line may still be YAML, but says something else.
    if good.ends_with_newline and not read.ends_with_newline and read.decoded.chunks is not None:
        return "the last line has no end"
    return ""


def _keep_all(file: str, read: _Read, good: _Content, why: str) -> _Content:
    last = next((problem for problem in read.decoded.errors), None)
    origin = last.origin if last is not None else Origin(file=file)
    problem = Problem(
        "LB1006",
        origin,
        why,
        why=_in_use("of its last good version ", len(good.stored)),
        fix="write the file whole, best under another name and then renamed over it",
    )
    return msgspec.structs.replace(good, signature=read.signature, problems=[problem], settled=read.settled)


def _kept_items(decoded: Decoded, parts: Parts, good: _Content | None) -> list[Stored]:
    """Objects of the last good version that must not be lost to what cannot be read."""
    if good is None or not (decoded.errors or parts.rejected):
        return []
    present = {key_of(stored) for stored in parts.stored}
    wanted: set[Key] | None = {item.key for item in parts.rejected if item.key is not None}
    if decoded.errors or any(item.key is None for item in parts.rejected):
        wanted = None  # which objects the broken text was about is not known: none is lost
    return [
        stored for stored in good.stored if (key := key_of(stored)) not in present and (wanted is None or key in wanted)
    ]


def _say_kept(problem: Problem, kept: Sequence[Stored]) -> Problem:
    """Tell what of the last good version stays because of this problem."""
    origin = problem.origin
    if not origin.name:
        why = f"until this is mended, nothing that the file held is removed ({_stay(len(kept))})"
    elif any(key_of(stored) == (origin.kind, origin.namespace, origin.name) for stored in kept):
        why = "its last good version stays in use"
    else:
        return problem
    before = problem.why.removesuffix(LEFT_OUT).removesuffix("; ")
    return _say(problem, f"{before}; {why}" if before else why)


def _stay(count: int) -> str:
    return "1 object stays as it was" if count == 1 else f"{count} objects stay as they were"


def _in_use(which: str, count: int) -> str:
    return f"the one object {which}stays in use" if count == 1 else f"the {count} objects {which}stay in use"


def _say(problem: Problem, why: str) -> Problem:
    return msgspec.structs.replace(problem, why=why)


def _unreadable(problem: Problem, before: _Content | None, signature: Signature | None) -> _Content:
    """What cannot be read keeps what it had, and so does a path that was named and is away: an unmounted share or a
    slip of the hand must not stop everything. To serve nothing, put an empty List there; files below a directory go
    when deleted.
    """
    if before is None:
        return _Content(signature, Decoded([]), (), (problem,), {}, ends_with_newline=False)
    kept = msgspec.structs.replace(problem, why=_in_use("that it had ", len(before.stored)))
    return msgspec.structs.replace(before, signature=signature, problems=[kept])
