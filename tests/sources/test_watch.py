"""Changes of files reach the store, however they are made. Real files, real inotify."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lb.sources import inotify
from lb.sources.files import FileSource, Reading
from lb.sources.store import Store
from lb.sources.watch import HOLD_OFF_MS, Watcher
from tests.sources.test_files import names, write

DEADLINE_S = 20


class Watched:
    """A store that a running Watcher keeps."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.store = Store()
        self.source = FileSource(paths, self.store)
        self.changes = 0
        self._changed = asyncio.Condition()
        self.watcher = Watcher(self.source, self._note)
        self.gaps: list[list[str]] = []
        """What the store held after each change."""

    def _note(self) -> None:
        self.changes += 1
        self.gaps.append(names(self.store))

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.005)
        assert condition(), what

    async def until_names(self, *expected: str) -> None:
        try:
            await self.until(lambda: names(self.store) == sorted(expected), "names")
        except TimeoutError:
            assert names(self.store) == sorted(expected)
        # What follows must not be taken for an echo of this.
        await self.until(lambda: self.watcher.ready.is_set() and self.source.is_settled, "settled")


@asynccontextmanager
async def watching(*paths: Path) -> AsyncIterator[Watched]:
    async with unwatched(*paths) as watched:
        async with asyncio.timeout(DEADLINE_S):
            await watched.watcher.ready.wait()
        yield watched


@asynccontextmanager
async def unwatched(*paths: Path) -> AsyncIterator[Watched]:
    """Before, or without, the kernel telling of changes."""
    watched = Watched(paths)
    task = asyncio.create_task(watched.watcher.run())
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_writing_into_a_file_and_adding_and_removing_files(tmp_path: Path) -> None:
    first = write(tmp_path / "d/a.yaml", "a")
    async with watching(tmp_path / "d") as watched:
        assert names(watched.store) == ["a"]
        write(first, "a", "b")
        await watched.until_names("a", "b")
        write(tmp_path / "d/c.yaml", "c")
        await watched.until_names("a", "b", "c")
        first.unlink()
        await watched.until_names("c")


async def test_a_file_renamed_over_another_shows_no_gap(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a")
    async with watching(path) as watched:
        for name in ("b", "c", "d"):
            write(tmp_path / ".new", name).rename(path)
            await watched.until_names(name)
        assert [] not in watched.gaps


async def test_an_editor_that_moves_the_old_file_away(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a")
    async with watching(path) as watched:
        path.rename(tmp_path / "a.yaml~")
        write(path, "b")
        (tmp_path / "a.yaml~").unlink()
        await watched.until_names("b")
        assert [] not in watched.gaps


async def test_the_swap_of_a_mounted_config_map(tmp_path: Path) -> None:
    """As kubelet does it (pkg/volume/util/atomic_writer.go): a new directory, then one rename of `..data`."""

    def swap(version: str, *content: str) -> None:
        write(tmp_path / f"d/..{version}/web.yaml", *content)
        (tmp_path / "d/..data_tmp").symlink_to(f"..{version}")
        (tmp_path / "d/..data_tmp").rename(tmp_path / "d/..data")

    swap("v1", "a")
    (tmp_path / "d/web.yaml").symlink_to("..data/web.yaml")
    async with watching(tmp_path / "d") as watched:
        assert names(watched.store) == ["a"]
        swap("v2", "b")
        shutil.rmtree(tmp_path / "d/..v1")
        await watched.until_names("b")
        swap("v3", "c")
        await watched.until_names("c")
        assert [] not in watched.gaps
    async with watching(tmp_path / "d/web.yaml") as watched:
        swap("v4", "d")
        await watched.until_names("d")
        assert watched.store.files() == [str(tmp_path / "d/web.yaml")]


async def test_a_linked_directory_that_is_swapped(tmp_path: Path) -> None:
    for version, name in (("v1", "a"), ("v2", "b")):
        write(tmp_path / f"releases/{version}/conf/x.yaml", name)
    current = tmp_path / "current"
    current.symlink_to("releases/v1")
    async with watching(current / "conf") as watched:
        assert names(watched.store) == ["a"]
        (tmp_path / "next").symlink_to("releases/v2")
        (tmp_path / "next").rename(current)
        await watched.until_names("b")
        write(tmp_path / "releases/v2/conf/y.yaml", "c")
        await watched.until_names("b", "c")


async def test_a_link_to_a_file_elsewhere(tmp_path: Path) -> None:
    real = write(tmp_path / "real/a.yaml", "a")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/a.yaml").symlink_to(real)
    async with watching(tmp_path / "conf") as watched:
        write(real, "b")
        await watched.until_names("b")


async def test_directories_that_come_later_and_come_again(tmp_path: Path) -> None:
    async with watching(tmp_path / "not/yet") as watched:
        assert [problem.code for problem in watched.store.problems()] == ["LB1001"]
        write(tmp_path / "not/yet/a.yaml", "a")
        await watched.until_names("a")
        write(tmp_path / "not/yet/deep/er/b.yaml", "b")
        await watched.until_names("a", "b")
        write(tmp_path / "not/yet/deep/er/c.yaml", "c")
        await watched.until_names("a", "b", "c")
        shutil.rmtree(tmp_path / "not")
        await watched.until(lambda: bool(watched.store.problems()), "the missing path")
        assert names(watched.store) == ["a", "b", "c"], "what was named and is away keeps what it had"
        write(tmp_path / "not/yet/d.yaml", "d")
        await watched.until_names("d")
        (tmp_path / "not").rename(tmp_path / "old")
        write(tmp_path / "new/yet/e.yaml", "e")
        (tmp_path / "new").rename(tmp_path / "not")
        await watched.until_names("e")
        write(tmp_path / "not/yet/e.yaml", "f")
        await watched.until_names("f")


async def test_a_directory_made_again_before_anybody_looks(tmp_path: Path) -> None:
    """Many file systems give it the inode of the old one, so its numbers are the same, yet nobody watches it."""
    path = write(tmp_path / "d/a.yaml", "a")
    async with watching(tmp_path / "d") as watched:
        for number in range(3):
            shutil.rmtree(path.parent)
            write(path, f"made-{number}")
            await watched.until_names(f"made-{number}")
            write(path, f"written-{number}")
            await watched.until_names(f"written-{number}")


async def test_a_directory_by_two_names(tmp_path: Path) -> None:
    """What happens in it happens under both: here the file concerns us by the one, the directory by the other."""
    os.utime(write(tmp_path / "real/a.yaml", "a"), (1, 1))
    (tmp_path / "link").symlink_to("real")
    async with watching(tmp_path / "link", tmp_path / "real/a.yaml") as watched:
        write(tmp_path / "real/b.yaml", "b")
        await watched.until_names("a", "b")
        write(tmp_path / "real/a.yaml", "c")
        await watched.until_names("b", "c")


async def test_a_half_written_export_is_not_used_before_it_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "a")
    services = [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}} for name in "bc"]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": services}).encode()
    async with watching(path) as watched:
        with path.open("wb") as stream:
            for place in range(len(text)):
                stream.write(text[place : place + 1])
                stream.flush()
                # Long enough to be read in between.
                await asyncio.sleep(HOLD_OFF_MS / 1000 * 1.5 if place == 100 else 0)
                assert names(watched.store) == ["a"] or place == len(text) - 1
        await watched.until_names("b", "c")
        assert watched.store.problems() == []


async def test_many_events_make_one_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "d/a.yaml", "a")
    async with watching(tmp_path / "d") as watched:
        await watched.until(lambda: watched.source.is_settled, "settled")
        before = watched.changes
        started = asyncio.get_running_loop().time()
        for number in range(50):
            write(tmp_path / f"d/{number}.yaml", f"s{number}")
        write(path, "last")
        await watched.until_names("last", *(f"s{number}" for number in range(50)))
        # However slow this machine is: no two readings are nearer to each other than the hold-off.
        elapsed_ms = (asyncio.get_running_loop().time() - started) * 1000
        assert watched.changes - before <= elapsed_ms / HOLD_OFF_MS + 1


@pytest.fixture
def endless_hold_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read in these tests is read without waiting for the hold-off."""
    monkeypatch.setattr("lb.sources.watch.HOLD_OFF_MS", 1_000_000)
    monkeypatch.setattr("lb.sources.watch.LONGEST_HOLD_OFF_MS", 1_000_000)


@pytest.mark.usefixtures("endless_hold_off")
async def test_json_that_is_whole_does_not_wait(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "a")
    async with watching(path) as watched:
        write(path, "b")
        await watched.until(lambda: names(watched.store) == ["b"], "the new content")


@pytest.mark.usefixtures("endless_hold_off")
async def test_a_file_renamed_over_another_does_not_wait(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a")
    new = write(tmp_path / ".new", "b")
    os.utime(new, (1, 1))
    async with watching(path) as watched:
        new.rename(path)
        await watched.until(lambda: names(watched.store) == ["b"], "the new content")


@pytest.mark.usefixtures("endless_hold_off")
@pytest.mark.parametrize("name", ["written.yaml", "cut.json", "new.json"])
async def test_what_may_be_half_waits_for_the_hold_off(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / "whole.json", "whole")
    path = write(tmp_path / name, "old") if name != "new.json" else tmp_path / name
    before = ["whole"] if name == "new.json" else ["old", "whole"]
    async with watching(tmp_path) as watched:
        if name == "cut.json":
            path.write_bytes(path.read_bytes()[:-5])
        else:
            write(path, "new")
        write(whole, "later")
        await watched.until(lambda: "later" in names(watched.store), "the file that is whole")
        assert names(watched.store) == sorted({*before, "later"} - {"whole"})


async def test_other_files_are_of_no_concern(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a")
    os.utime(path, (1, 1))
    async with watching(path) as watched:
        for number in range(5):
            write(tmp_path / f"other-{number}.yaml", "x")
        write(tmp_path / "deep/er.yaml", "x")
        write(path, "b")
        await watched.until_names("b")
        assert watched.store.files() == [str(path)]


async def test_a_log_beside_the_file_is_of_no_concern_either(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a")
    async with watching(path) as watched:

        async def log() -> None:
            with (tmp_path / "x.log").open("w") as stream:
                while True:
                    stream.write("x")
                    stream.flush()
                    await asyncio.sleep(0.002)

        logging = asyncio.create_task(log())
        for name in "bcd":
            write(path, name)
            await watched.until(lambda name=name: names(watched.store) == [name], "the new content")
        logging.cancel()


async def test_nothing_wakes_a_watcher_but_the_look_now_and_then(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a")
    os.utime(path, (1, 1))
    async with watching(path) as watched:
        loop: Any = asyncio.get_running_loop()
        await watched.until(lambda: bool(far(loop)), "the timer")
        assert len(far(loop)) == 1


def far(loop: Any) -> list[asyncio.TimerHandle]:
    """The timers of a loop, when all are further away than any pause of the watcher."""
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]
    return timers if all(timer.when() > loop.time() + 2 for timer in timers) else []


async def test_rescan_reads_what_no_date_tells(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a")
    async with watching(path) as watched:
        await watched.until(lambda: watched.source.is_settled, "settled")
        await watched.watcher.rescan()
        assert names(watched.store) == ["a"]
        write(path, "b")
        await watched.watcher.rescan()
        assert names(watched.store) == ["b"]


async def test_more_events_than_the_kernel_keeps(tmp_path: Path) -> None:
    """Among those that are lost is the end of a watch, so it is made anew."""
    room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    path = write(tmp_path / "d/a.yaml", "a")
    os.utime(path, (1, 1))  # or it would be looked at again soon in any case
    others = [write(tmp_path / f"d/other-{number}.yaml", "x") for number in range(2)]
    async with watching(path) as watched:
        for number in range(room + 1):  # in turns, because the kernel makes one of two that are alike
            os.utime(others[number % 2])
        shutil.rmtree(tmp_path / "d")
        write(path, "b")
        await watched.until_names("b")
        write(path, "c")
        await watched.until_names("c")


async def test_a_directory_is_watched_as_soon_as_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "d/deep/a.yaml", "a")
    os.utime(path, (1, 1))
    with monkeypatch.context() as patch:  # permissions do not keep root from it
        forbid(patch, str(path.parent), None)
        async with watching(tmp_path / "d") as watched:
            patch.undo()
            path.parent.chmod(0o700)
            await watched.until(lambda: str(path.parent) in watched.watcher._inotify._watches, "the watch")
            write(path, "b")
            await watched.until_names("b")


def forbid(patch: pytest.MonkeyPatch, directory: str, error: OSError | None) -> list[str]:
    """Let one directory not be watched. Returns who tried."""
    tries = []
    really_add = inotify._add_watch

    def add(descriptor: int, path: str) -> int | None:
        if path != directory:
            return really_add(descriptor, path)
        tries.append(path)
        if error is not None:
            raise error
        return None

    patch.setattr("lb.sources.inotify._add_watch", add)
    return tries


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """What the log tells of watching."""
    monkeypatch.setattr("lb.sources.watch._UNWATCHED_MS", 20)
    with capture_logs() as logs:
        yield lambda: [entry.get("why", entry["event"]) for entry in logs]


async def test_directories_beyond_the_limit_are_looked_at_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[[], list[str]]
) -> None:
    path = write(tmp_path / "d/a.yaml", "a")
    with monkeypatch.context() as patch:
        tries = forbid(patch, str(path.parent), inotify._error(errno.ENOSPC))
        async with unwatched(path) as watched:
            await watched.until(lambda: len(tries) > 2, "tries")
            write(path, "b")
            await watched.until(lambda: names(watched.store) == ["b"], "read all the same")
            assert told() == ["fs.inotify.max_user_watches is reached"]
            patch.undo()
            async with asyncio.timeout(DEADLINE_S):
                await watched.watcher.ready.wait()
            assert told()[1:] == ["all files can be watched again"]
            write(path, "c")
            await watched.until_names("c")


async def test_without_inotify_files_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Callable[[], list[str]]
) -> None:
    path = write(tmp_path / "a.yaml", "a")

    def refuse() -> int:
        raise inotify._error(errno.EMFILE)

    with monkeypatch.context() as patch:
        patch.setattr("lb.sources.inotify._open", refuse)
        async with unwatched(path) as watched:
            await watched.until(lambda: bool(told()), "the warning")
            write(path, "b")
            await watched.until(lambda: names(watched.store) == ["b"], "read all the same")
            assert "max_user_instances" in told()[0]
            patch.undo()
            async with asyncio.timeout(DEADLINE_S):
                await watched.watcher.ready.wait()
            assert told()[1:] == ["all files can be watched again"]
            write(path, "c")
            await watched.until_names("c")


async def test_nobody_is_woken_by_what_concerns_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.yaml", "a")
    os.utime(path, (1, 1))
    async with watching(path) as watched:
        readings = 0
        really_load = watched.source.load

        def load(force: bool = False) -> Reading:
            nonlocal readings
            readings += 1
            return really_load(force)

        taken = []
        really_take = watched.watcher._inotify._take

        def take() -> inotify.Happened | None:
            taken.append(happened := really_take())
            return happened

        monkeypatch.setattr(watched.source, "load", load)
        monkeypatch.setattr(watched.watcher._inotify, "_take", take)
        write(tmp_path / "other.yaml", "x")
        path.read_text()
        await watched.until(lambda: any(taken), "the event")
        assert readings == 0
        write(path, "b")
        await watched.until_names("b")
        assert readings > 0
