"""Finding and reading files: what is found, once each, and what happens to files that cannot be read."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

import pytest

from lb.objects.decode import Decoded, decode
from lb.sources.files import FileSource, find, read_paths
from lb.sources.store import Store
from tests.harness.descriptors import no_descriptors


def write(path: Path, *names: str, address: str = "10.0.0.1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    documents = (f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n" for name in names)
    path.write_text("---\n".join(f"{document}spec: {{clusterIP: {address}}}\n" for document in documents))
    return path


def names(store: Store) -> list[str]:
    return sorted(name for _, name in store.all("Service"))


def test_any_mix_of_files_and_directories(tmp_path: Path) -> None:
    write(tmp_path / "d/one.yaml", "one")
    write(tmp_path / "d/deep/er/two.yml", "two")
    write(tmp_path / "d/three.json", "three")  # YAML inside: the content decides
    write(tmp_path / "d/readme.txt", "no")
    write(tmp_path / "d/.hidden.yaml", "no")
    write(tmp_path / "d/.git/no.yaml", "no")
    named = write(tmp_path / "export.txt", "four")
    hidden = write(tmp_path / ".five.yaml", "five")
    store = read_paths([tmp_path / "d", str(named), hidden])
    assert names(store) == ["five", "four", "one", "three", "two"]
    assert store.files() == sorted(
        str(tmp_path / part) for part in ("d/one.yaml", "d/deep/er/two.yml", "d/three.json", "export.txt", ".five.yaml")
    )
    assert not store.problems()


def test_paths_are_shown_as_they_were_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "d/one.yaml", "one")
    monkeypatch.chdir(tmp_path)
    assert read_paths(["d"]).files() == ["d/one.yaml"]
    assert read_paths(["./d/one.yaml"]).files() == ["./d/one.yaml"]
    assert read_paths(["."]).files() == ["./d/one.yaml"]


def test_no_file_twice(tmp_path: Path) -> None:
    write(tmp_path / "d/one.yaml", "one")
    (tmp_path / "d/again.yaml").symlink_to("one.yaml")
    os.link(tmp_path / "d/one.yaml", tmp_path / "d/hard.yaml")
    (tmp_path / "d/loop").symlink_to(tmp_path / "d")
    (tmp_path / "d/nowhere.yaml").symlink_to("gone.yaml")
    (tmp_path / "d/self.yaml").symlink_to("self.yaml")
    store = read_paths([tmp_path / "d", tmp_path / "d/one.yaml", tmp_path / "d"])
    assert len(store.files()) == 2  # the content, and the link that cannot be followed
    assert names(store) == ["one"]
    assert [(problem.code, problem.origin.file) for problem in store.problems()] == [
        ("LB1001", str(tmp_path / "d/self.yaml"))
    ]


def test_a_mounted_config_map_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "..2025_01/web.yaml", "web")
    (tmp_path / "..data").symlink_to("..2025_01")
    (tmp_path / "web.yaml").symlink_to("..data/web.yaml")
    store = read_paths([tmp_path])
    assert store.files() == [str(tmp_path / "web.yaml")]
    assert names(store) == ["web"]
    assert not store.problems()


def test_what_cannot_be_found_or_read(tmp_path: Path) -> None:
    good = write(tmp_path / "good.yaml", "good")
    store = read_paths([tmp_path / "none.yaml", good, good / "below"])
    assert names(store) == ["good"]
    problems = store.problems()
    assert [problem.code for problem in problems] == ["LB1001", "LB1001"]
    assert "No such file" in problems[1].what
    assert problems[1].fix == "check the path"
    assert problems[1].origin.file == str(tmp_path / "none.yaml")


def test_a_file_that_becomes_unreadable_keeps_its_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "d/a.yaml", "a")
    store = Store()
    source = FileSource([tmp_path / "d"], store)
    source.read()
    store.take_changes()

    # Tests may run as root, whom no permission stops: the kernel's answer is put in its place.
    def refuse(name: str, *_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied", name)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        source.read(force=True)
    (problem,) = store.problems()
    assert (problem.code, problem.origin.file) == ("LB1001", str(path))
    assert "Permission denied" in problem.what
    assert "the one object that it had stays in use" in problem.why
    source.read()
    assert not store.problems()
    with monkeypatch.context() as patch:
        patch.setattr("os.listdir", refuse)
        source.read(force=True)
    (problem,) = store.problems()
    assert problem.origin.file == str(tmp_path / "d")
    assert names(store) == ["a"]
    assert not store.has_changes
    source.read(force=True)
    assert not store.problems()
    assert not store.has_changes


@pytest.mark.parametrize("known", [False, True])
def test_a_file_that_no_descriptor_was_left_for_is_read_when_there_is_one(tmp_path: Path, known: bool) -> None:
    """The file itself has nothing to change for that."""
    path = tmp_path / "a.yaml"
    store = Store()
    source = FileSource([path], store)
    if known:
        write(path, "old")
        os.utime(path, (0, 0))
        source.read()
    write(path, "new")
    os.utime(path, (0, 0))
    with no_descriptors():
        source.read()
        source.read()
    (problem,) = store.problems()
    assert problem.what == f"{path} cannot be read: Too many open files"
    assert problem.fix == "raise the limit of open files"
    assert names(store) == ["old"] * known
    assert not source.is_settled, "it is looked at again soon"
    source.read()
    assert not store.problems()
    assert names(store) == ["new"]
    assert source.is_settled


def test_a_directory_that_no_descriptor_was_left_for_is_looked_into_when_there_is_one(tmp_path: Path) -> None:
    os.utime(write(tmp_path / "d/a.yaml", "a"), (0, 0))
    store = Store()
    source = FileSource([tmp_path / "d"], store)
    with no_descriptors():
        source.read()
    assert [problem.fix for problem in store.problems()] == ["raise the limit of open files"]
    assert not source.is_settled, "it is looked at again soon"
    source.read()
    assert not store.problems()
    assert names(store) == ["a"]
    assert source.is_settled


def test_files_come_change_and_go(tmp_path: Path) -> None:
    store = Store()
    source = FileSource([tmp_path / "d"], store)
    source.read()
    assert [problem.code for problem in store.problems()] == ["LB1001"]
    first = write(tmp_path / "d/a.yaml", "a", "b")
    write(tmp_path / "d/c.yaml", "c")
    source.read()
    assert names(store) == ["a", "b", "c"]
    assert not store.problems()
    store.take_changes()
    write(first, "b", "d")
    source.read(force=True)
    changes = store.take_changes()
    assert {key.name for key in changes.changed} == {"d"}
    assert {key.name for key in changes.removed} == {"a"}
    first.unlink()
    source.read()
    assert names(store) == ["c"]
    (tmp_path / "d").rename(tmp_path / "away")
    source.read()
    assert names(store) == ["c"], "what was named and is away keeps what it had"
    assert [problem.code for problem in store.problems()] == ["LB1001"]
    (tmp_path / "away").rename(tmp_path / "d")
    (tmp_path / "d/c.yaml").unlink()
    source.read()
    assert names(store) == []
    assert not store.problems()


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a")
    os.utime(path, (1, 1))  # long settled
    source = FileSource([path], Store())
    assert source.read()
    assert not source.read()
    assert source.is_settled
    os.utime(path, (2, 2))
    assert source.read()


def test_a_file_written_just_now_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its date cannot tell a second change within the same tick of the clock."""
    path = write(tmp_path / "a.yaml", "a")
    now = path.stat().st_mtime_ns
    store = Store()
    source = FileSource([path], store)
    monkeypatch.setattr("time.time_ns", lambda: now + 1_000_000)
    source.read()
    assert not source.is_settled
    write(path, "b")
    os.utime(path, ns=(now, now))
    monkeypatch.setattr("time.time_ns", lambda: now + 10**9)
    source.read()
    assert names(store) == ["b"]
    assert source.is_settled


def test_what_takes_long_to_decode_is_no_more_settled_than_it_was_when_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.yaml", "a")
    written = path.stat().st_mtime_ns
    monkeypatch.setattr("time.time_ns", lambda: written + 1_000_000)

    def slowly(data: bytes, *others: object) -> Decoded:
        decoded = decode(data, *others)  # type: ignore[arg-type]
        monkeypatch.setattr("time.time_ns", lambda: written + 10**9)
        return decoded

    monkeypatch.setattr("lb.sources.files.decode", slowly)
    source = FileSource([path], Store())
    source.read()
    assert not source.is_settled


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.yaml", "a")
    store = Store()
    source = FileSource([path], store)
    source.read()
    store.take_changes()
    fstat, ticks = os.fstat, iter(range(1, 100))

    def restless(handle: int) -> os.stat_result:
        os.utime(path, (next(ticks), 1))
        os.utime(path, (1, next(ticks)))
        return fstat(handle)

    write(path, "b")
    with monkeypatch.context() as patch:
        patch.setattr("os.fstat", restless)
        source.read(force=True)
    assert names(store) == ["a"]
    assert [(problem.code, problem.what) for problem in store.problems()] == [
        ("LB1006", "the file is still being written")
    ]
    assert not source.is_settled
    source.read()
    assert names(store) == ["b"]
    assert not store.problems()


def test_standard_input_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write(tmp_path / "a.yaml", "a").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    store = Store()
    source = FileSource(["-"], store)
    source.read()
    source.read(force=True)
    assert names(store) == ["a"]
    assert store.files() == ["-"]
    assert not store.problems()


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """`lb check <(kubectl get ingress -o json)`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = write(tmp_path / "a.yaml", "a").read_bytes()
    writer = threading.Thread(target=lambda: pipe.write_bytes(text))
    writer.start()
    store = Store()
    source = FileSource([pipe], store)
    source.read()
    writer.join()
    source.read(force=True)
    assert names(store) == ["a"]
    assert not store.problems()


def test_pipes_and_sockets_in_directories_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    write(tmp_path / "a.yaml", "a")
    assert read_paths([tmp_path]).files() == [str(tmp_path / "a.yaml")]


def test_where_to_watch(tmp_path: Path) -> None:
    real = tmp_path / "real"
    write(real / "v1/web.yaml", "web")
    (real / "now").symlink_to("v1")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/web.yaml").symlink_to(real / "now/web.yaml")
    places = find([str(tmp_path / "conf/web.yaml")]).places()
    assert {str(tmp_path / "conf"), str(real), str(real / "v1")} <= places.directories
    assert places.concerns(str(real / "now"))
    assert places.concerns(str(real / "v1/web.yaml"))
    assert places.concerns(str(tmp_path / "conf"))
    assert not places.concerns(str(real / "v1/other.yaml"))
    assert not places.concerns(str(tmp_path / "conf/other.yaml"))
    walked = find([str(tmp_path / "conf")]).places()
    assert walked.concerns(str(tmp_path / "conf/other.yaml"))
    assert walked.concerns(str(real / "now"))
    missing = find([str(tmp_path / "not/yet/there.yaml")]).places()
    assert str(tmp_path) in missing.directories
    assert missing.concerns(str(tmp_path / "not"))
