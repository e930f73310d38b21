"""What a killed save leaves, who removes it, and who is to wait for whom."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import dormant
from dormant.cli.destination import new_folder
from dormant.publication import staging
from dormant.publication.locking import locked
from dormant.publication.publication import Publication, written_aside
from dormant.publication.staging import remove_abandoned, staging_folder

THREADS = pytest.param("threads", marks=pytest.mark.threads)
SYSTEM_CALLS = ("mkdir", "open", "stat", "fstat", "unlink", "rmdir", "fsync", "replace", "link")


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def in_child(work: Callable[[], object]) -> int:
    """The status of a forked process that did `work`; 1 where that raised."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1]


def abandon(context: contextlib.AbstractContextManager[object]) -> None:
    """Has a process enter it and be killed."""

    def work() -> None:
        with context:
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(in_child(work))


class Killing:
    """Kills the process at the n-th call of the functions of `os` that change or look at files."""

    def __init__(self, n: int) -> None:
        self.n, self.calls = n, 0

    def install(self) -> None:
        for name in SYSTEM_CALLS:
            setattr(os, name, self._of(getattr(os, name)))
        fcntl.flock = self._of(fcntl.flock)

    def _of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.n:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call


def publish(folder: Path) -> None:
    with Publication(folder) as publication:
        publication.write("a", b"new")
        with publication.create_path("b") as path:
            path.write_bytes(b"new")
        publication.publish()


def kill_at_every_call(work: Callable[[], object], check: Callable[[int], None]) -> int:
    """Runs `work` in processes that are killed at the first, second, ... call, until one is not."""
    for n in range(1, 1000):

        def attempt(n: int = n) -> None:
            Killing(n).install()
            work()

        status = in_child(attempt)
        assert os.WIFSIGNALED(status) or status == 0
        check(n)
        if status == 0:
            return n
    raise AssertionError("no end")


def test_what_a_kill_at_any_call_leaves_is_removed_by_the_next_publication(tmp_path: Path) -> None:
    left = set()

    def check(n: int) -> None:
        left.add(len(hidden(tmp_path)))
        with Publication(tmp_path):
            assert hidden(tmp_path) == [], n

    for name in "ab":
        (tmp_path / name).write_bytes(b"old")
    assert kill_at_every_call(lambda: publish(tmp_path), check) > 20
    assert left == {0, 1}
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"new"}


def test_what_a_kill_while_leftovers_are_removed_leaves_is_removed(tmp_path: Path) -> None:
    def leave() -> None:
        with staging_folder(tmp_path) as left:
            (left.files / "file").write_bytes(b"x")
            (left.files / "folder").mkdir()
            (left.files / "folder" / "file").write_bytes(b"x")
            (left.files / "link").symlink_to(left.files / "folder")
            os.kill(os.getpid(), signal.SIGKILL)

    def check(n: int) -> None:
        remove_abandoned(tmp_path)
        assert hidden(tmp_path) == [], n
        assert os.WIFSIGNALED(in_child(leave))
        assert len(hidden(tmp_path)) == 1

    assert os.WIFSIGNALED(in_child(leave))
    assert kill_at_every_call(lambda: remove_abandoned(tmp_path), check) > 10


def test_a_save_that_is_killed_in_the_middle_leaves_its_room_to_the_next(tmp_path: Path) -> None:
    def save(value: float, **options: Any) -> None:
        dormant.save({"a": torch.full((1 << 20,), value)}, tmp_path, **options)

    save(1.0)
    torch.set_num_threads(1)

    def kill_at_the_end(done: int, total: int) -> None:
        if done == total:
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(in_child(lambda: save(2.0, progress=kill_at_the_end)))
    (left,) = hidden(tmp_path)
    assert [path.stat().st_size >> 20 for path in (tmp_path / left / "files").iterdir()] == [4]
    save(3.0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert dormant.open_checkpoint(tmp_path)["a"][0] == 3


def test_torch_save_and_recipes_remove_what_is_left(tmp_path: Path) -> None:
    with dormant.lazy_init():
        lazy = torch.zeros(4)
    path = tmp_path / "file.pt"
    for write in (torch.save, dormant.save_recipe):
        path.write_bytes(b"old")
        killed = functools.partial(_killed_at_a_rename, write, lazy, path)
        assert os.WIFSIGNALED(in_child(killed))
        assert path.read_bytes() == b"old"
        assert len(hidden(tmp_path)) == 1
        write({"a": lazy}, path)
        assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


@pytest.mark.parametrize("out", ["new", "empty"])
def test_a_killed_conversion_leaves_its_folder_to_the_next(out: str, tmp_path: Path) -> None:
    path, place = tmp_path / "out", tmp_path
    if out == "empty":
        path.mkdir()
        place = path

    def write() -> None:
        with new_folder(path, force=False) as folder:
            (folder / "file").write_bytes(b"x")
            if not survives:
                os.kill(os.getpid(), signal.SIGKILL)

    survives = False
    assert os.WIFSIGNALED(in_child(write))
    assert len(hidden(place)) == 1
    survives = True
    write()
    assert hidden(place) == []
    assert [file.name for file in path.iterdir()] == ["file"]
    (tmp_path / "plain").mkdir()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def _killed_at_a_rename(write: Callable[..., object], lazy: torch.Tensor, path: Path) -> None:
    def killed(*args: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.replace = killed  # type: ignore[assignment]
    write({"a": lazy}, path)


# ---- what is in use


@contextlib.contextmanager
def living_maker(folder: Path) -> Iterator[str]:
    """Another process with a hidden folder in use; its name."""
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), staging_folder(folder) as made:
            (made.files / "precious").write_bytes(b"x")
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0 if (made.files / "precious").read_bytes() == b"x" else 1)
        os._exit(2)
    os.read(ready[0], 1)
    (name,) = hidden(folder)
    try:
        yield name
    finally:
        os.write(done[1], b"x")
        status = os.waitpid(child, 0)[1]
    assert status == 0


def test_what_a_living_process_uses_stays(tmp_path: Path) -> None:
    with living_maker(tmp_path) as name:
        for _ in range(3):
            publish(tmp_path)
            assert hidden(tmp_path) == [name]
    remove_abandoned(tmp_path)
    assert hidden(tmp_path) == []


def test_what_another_thread_uses_stays(tmp_path: Path) -> None:
    with staging_folder(tmp_path) as made:
        thread = threading.Thread(target=remove_abandoned, args=(tmp_path,))
        thread.start()
        thread.join()
        remove_abandoned(tmp_path)
        assert made.files.is_dir()
    assert hidden(tmp_path) == []


def test_a_process_forked_meanwhile_removes_nothing(tmp_path: Path) -> None:
    with staging_folder(tmp_path) as made:
        child = os.fork()
        if child != 0:
            assert os.waitpid(child, 0)[1] == 0
            assert made.files.is_dir()
    if child == 0:
        os._exit(0)
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("kind", [THREADS, "processes"])
def test_makers_beside_removers_keep_what_is_theirs(kind: str, tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for j in range(60):
                with Publication(tmp_path) as publication:
                    publication.write(f"{i}", b"%d" % j)
                    remove_abandoned(tmp_path)
                    publication.publish()
        except BaseException as error:
            failures.append(error)
            raise

    if kind == "threads":
        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
    else:
        children = []
        for i in range(3):
            children.append(os.fork())
            if children[-1] == 0:
                with contextlib.suppress(BaseException):
                    work(i)
                    os._exit(0)
                os._exit(1)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"59"}


@pytest.mark.parametrize("moment", ["made", "opened", "locked"])
def test_a_folder_that_is_taken_for_abandoned_too_early_is_made_again(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remover that comes between two calls of the maker."""
    real_mkdir, real_open, real_flock = os.mkdir, os.open, fcntl.flock
    times = 2

    def remove_now() -> None:
        nonlocal times
        if times > 0:
            times -= 1
            with monkeypatch.context() as undone:
                undone.setattr(os, "mkdir", real_mkdir)
                undone.setattr(os, "open", real_open)
                undone.setattr(fcntl, "flock", real_flock)
                remove_abandoned(tmp_path)

    def mkdir(path: Any, *args: Any, **options: Any) -> None:
        real_mkdir(path, *args, **options)
        if moment == "made" and str(path).endswith(".tmp"):
            remove_now()

    def opening(path: Any, *args: Any, **options: Any) -> int:
        if moment == "opened" and path == "lock":
            remove_now()
        return real_open(path, *args, **options)

    def flock(*args: Any) -> None:
        if moment == "locked":
            remove_now()
        real_flock(*args)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(fcntl, "flock", flock)
    with staging_folder(tmp_path) as made:
        assert made.files.is_dir()
        assert len(hidden(tmp_path)) == 1
        assert times == 0
    assert hidden(tmp_path) == []


# ---- what only looks like an abandoned folder


def abandoned_name(folder: Path, token: str = "0" * 16) -> str:
    with staging_folder(folder):
        (name,) = hidden(folder)
    return re.sub(r"[0-9a-f]{16}\.tmp$", f"{token}.tmp", name)


def test_names_that_only_look_similar_stay(tmp_path: Path) -> None:
    name = abandoned_name(tmp_path)
    similar = [
        name.upper(),
        name + "x",
        "x" + name,
        name.removesuffix(".tmp"),
        name.replace("0" * 16, "0" * 15),
        name.replace("0" * 16, "0" * 16 + "\n"),
        ".dormant-0123456789abcdef-0123456789abcdef.tmp",  # of another boot, or another mount
        ".dormant-unlocked-0123456789abcdef.tmp",
        ".dormant-kept-0123456789abcdef.tmp",
        ".model.safetensors.01234567.tmp",
    ]
    for path in similar:
        (tmp_path / path / "files").mkdir(parents=True)
        (tmp_path / path / "files" / "precious").write_bytes(b"x")
        (tmp_path / path / "lock").write_bytes(b"")
    remove_abandoned(tmp_path)
    for path in similar:
        assert (tmp_path / path / "files" / "precious").read_bytes() == b"x", path


def _file(place: Path, target: Path) -> None:
    place.write_bytes(b"x")


def _link(place: Path, target: Path) -> None:
    place.symlink_to(target)


def _link_as_lock(place: Path, target: Path) -> None:
    (place / "files").mkdir(parents=True)
    (place / "lock").symlink_to(target / "lock")


def _link_as_files(place: Path, target: Path) -> None:
    place.mkdir()
    (place / "lock").write_bytes(b"")
    (place / "files").symlink_to(target / "files")


def _link_among_files(place: Path, target: Path) -> None:
    (place / "files" / "sub").mkdir(parents=True)
    (place / "lock").write_bytes(b"")
    (place / "files" / "link").symlink_to(target)
    (place / "files" / "sub" / "link").symlink_to(target / "files" / "precious")


def _no_lock(place: Path, target: Path) -> None:
    (place / "files").mkdir(parents=True)
    (place / "files" / "precious").write_bytes(b"x")


def _pipe_as_lock(place: Path, target: Path) -> None:
    (place / "files").mkdir(parents=True)
    os.mkfifo(place / "lock")


HOSTILE = [
    _file,
    _link,
    _link_as_lock,
    _link_as_files,
    _link_among_files,
    _no_lock,
    _pipe_as_lock,
]


@pytest.mark.parametrize("make", HOSTILE)
def test_links_lead_nowhere(make: Callable[[Path, Path], None], tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "files").mkdir(parents=True)
    (target / "files" / "precious").write_bytes(b"x")
    (target / "lock").write_bytes(b"")
    folder = tmp_path / "folder"
    folder.mkdir()
    place = folder / abandoned_name(folder)
    make(place, target)
    remove_abandoned(folder)
    assert (target / "files" / "precious").read_bytes() == b"x"
    assert (target / "lock").exists()
    if make is _no_lock:
        assert (place / "files" / "precious").read_bytes() == b"x"
    if make is _link_among_files:
        assert not place.exists()
    publish(folder)


def test_a_folder_that_is_exchanged_for_a_link_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    for name in ("target", "moved"):
        (tmp_path / name / "files").mkdir(parents=True)
        (tmp_path / name / "files" / "precious").write_bytes(b"x")
    folder = tmp_path / "folder"
    folder.mkdir()
    place = folder / abandoned_name(folder)
    (tmp_path / "moved" / "lock").write_bytes(b"")
    (tmp_path / "moved").rename(place)
    real = fcntl.flock

    def exchange(*args: Any) -> None:
        place.rename(tmp_path / "moved")
        place.symlink_to(target)
        real(*args)

    monkeypatch.setattr(fcntl, "flock", exchange)
    remove_abandoned(folder)
    assert (target / "files" / "precious").read_bytes() == b"x"
    assert list((tmp_path / "moved").iterdir()) == []


def test_folders_of_other_users_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / abandoned_name(tmp_path)
    _link_among_files(place, tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    remove_abandoned(tmp_path)
    assert len(list((place / "files").iterdir())) == 2
    monkeypatch.undo()
    remove_abandoned(tmp_path)
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("other", ["boot", "mount"])
def test_folders_made_elsewhere_stay(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandon(staging_folder(tmp_path))
    (name,) = hidden(tmp_path)
    with monkeypatch.context() as elsewhere:
        if other == "boot":
            boot = tmp_path / "boot_id"
            boot.write_text("another")
            elsewhere.setattr(staging, "_BOOT", boot)
        else:
            real = os.stat

            def mounted(*args: Any, **options: Any) -> os.stat_result:
                fields = list(real(*args, **options))
                fields[stat.ST_DEV] += 1
                return os.stat_result(fields)

            elsewhere.setattr(os, "stat", mounted)
        remove_abandoned(tmp_path)
        assert hidden(tmp_path) == [name]
    remove_abandoned(tmp_path)
    assert hidden(tmp_path) == []


# ---- filesystems without locks


def flock_that_refuses(
    monkeypatch: pytest.MonkeyPatch, refuses: Callable[[int], bool], error: int = errno.EBADF
) -> None:
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if refuses(descriptor):
            raise OSError(error, os.strerror(error))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_nothing_can_be_locked_nothing_is_removed(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        flock_that_refuses(without, lambda _: True, error)
        with staging_folder(tmp_path):
            (name,) = hidden(tmp_path)
            without.undo()
            remove_abandoned(tmp_path)  # by one whose locks work
            assert hidden(tmp_path) == [name]
        assert hidden(tmp_path) == []
        flock_that_refuses(without, lambda _: True, error)
        publish(tmp_path)
        publish(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_where_the_boot_is_not_known_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_BOOT", tmp_path / "nothing")
    abandon(staging_folder(tmp_path))
    remove_abandoned(tmp_path)
    assert len(hidden(tmp_path)) == 1


class Critical:
    """Notes whether two are inside at a time, in a file, so that processes see each other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder.with_name("inside")

    def enter(self, rounds: int) -> None:
        for _ in range(rounds):
            with locked(self.folder):
                os.close(os.open(self.place, os.O_CREAT | os.O_EXCL))
                threading.Event().wait(0.0005)
                self.place.unlink()


@pytest.mark.parametrize("locks", ["of folders", "of files"])
@pytest.mark.parametrize("kind", [THREADS, "processes"])
def test_one_at_a_time_is_in_a_folder(
    kind: str, locks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if locks == "of files":  # as NFS answers
        flock_that_refuses(monkeypatch, is_folder)
    critical = Critical(folder)
    if kind == "threads":
        failures: list[BaseException] = []

        def enter() -> None:
            try:
                critical.enter(40)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=enter) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
    else:
        children = []
        for _ in range(4):
            children.append(os.fork())
            if children[-1] == 0:
                with contextlib.suppress(BaseException):
                    critical.enter(40)
                    os._exit(0)
                os._exit(1)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0, 0]
    assert list(folder.iterdir()) == []


def test_a_killed_process_holds_no_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock_that_refuses(monkeypatch, is_folder)
    abandon(locked(tmp_path))
    assert hidden(tmp_path) == [".dormant-lock.tmp"]
    publish(tmp_path)
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_what_has_the_name_of_the_lock_file_is_left_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock_that_refuses(monkeypatch, is_folder)
    place, target = tmp_path / ".dormant-lock.tmp", tmp_path / "target"
    target.write_bytes(b"x")
    if kind == "link":
        place.symlink_to(target)
    elif kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(place)
    publish(tmp_path)
    assert target.read_bytes() == b"x"
    assert hidden(tmp_path) == [".dormant-lock.tmp"]
    assert (tmp_path / "a").read_bytes() == b"new"


# ---- what cannot be put back


def test_what_cannot_be_put_back_stays_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with Publication(tmp_path) as publication:
        publication.write("a", b"new")
        publication.write("b", b"new")
        real, calls = os.replace, 0

        def failing(*args: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise OSError(errno.EIO, "no answer")
            real(*args)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match=r"earlier contents in .*\.dormant-kept-") as caught:
            publication.publish()
        assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    publish(tmp_path)
    (kept,) = hidden(tmp_path)
    assert kept in str(caught.value)
    assert b"old" in [path.read_bytes() for path in (tmp_path / kept / "files").iterdir()]


def test_written_aside_keeps_links_and_permissions(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    with written_aside(link, "a test") as aside:
        aside.write_bytes(b"new")
        assert aside.name == "target"
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    with pytest.raises(RuntimeError), written_aside(link, "a test") as aside:
        aside.write_bytes(b"newer")
        raise RuntimeError
    assert target.read_bytes() == b"new"
    with pytest.raises(FileNotFoundError, match=r"a test: cannot create .*none/file"):
        written_aside(tmp_path / "none" / "file", "a test").__enter__()
    assert hidden(tmp_path) == []
