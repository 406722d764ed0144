"""Several environments write one shared volume: nothing that was answered is refused; all see one tree (RULES-5)."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest
from cffs_harness import Volume

from libfs.cffs.filesystem import CFFS
from libfs.cffs.volume import EXCLUSIVE, SHARED
from xok_host.abi.channel import Completion
from xok_host.kernel.local import DEV, LocalEnvironment

NAMES = [b"n%d" % number + b"y" * (number % 5) * 20 for number in range(24)]


class Writers:
    """Mounts of one volume.  While one waits for a lock the others do what they are asked to."""

    def __init__(self, count: int, nblocks: int = 4096) -> None:
        self.volume = Volume(nblocks, shared=True)
        self.mounts = [self.volume.fs]
        self.waits = 0
        self._attend(self.volume.env)
        for _ in range(count - 1):
            self.add()

    def add(self) -> CFFS:
        env = self.volume.xok.environment(roots=["vol"])
        self._attend(env)
        fs = CFFS.mount(env, DEV, "vol", env.caps[0].index, clock=self.volume.clock)
        self.mounts.append(fs)
        return fs

    def _attend(self, env: LocalEnvironment) -> None:
        def wait(cookie: int) -> Completion:
            for turn in range(50):
                env.dispatch()
                if cookie in env._done:
                    return env._done.pop(cookie)
                self.waits += not turn
                for fs in self.mounts:
                    if fs.env is not env:
                        fs.env.dispatch()
                        fs.events()
            raise AssertionError("nobody lets go")

        env.wait = wait  # type: ignore[method-assign]

    def tree(self, fs: CFFS, directory: int, path: bytes = b"") -> dict[bytes, Any]:
        """path → inode and contents; None for a directory."""
        found: dict[bytes, Any] = {}
        names = [(name, attr.ino, attr.mode) for name, attr, _ in fs.complete(lambda: list(fs.readdir(directory, 0)))]
        assert len({name for name, _, _ in names}) == len(names), "a name is listed twice"
        for name, ino, mode in names:
            if mode & 0o170000 == 0o040000:
                found[path + b"/" + name] = None
                found |= self.tree(fs, ino, path + b"/" + name)
            else:
                data = b"".join(map(bytes, fs.complete(fs.read, ino, 0, 1 << 20)))
                found[path + b"/" + name] = data
        return found

    def check(self, expected: dict[bytes, Any]) -> None:
        for fs in self.mounts:
            assert self.tree(fs, fs.root_ino) == expected
        for fs in self.mounts:
            assert not fs.errors
            fs.close()
        volume = self.volume
        for fs in self.mounts:
            fs.env.close()
        self.mounts = []
        volume.mount()
        volume.check_disk()
        assert {path: None if kind == "dir" else data for path, (kind, data, _) in volume.tree().items()} == expected


@pytest.mark.parametrize("seed", range(12))
def test_writers_in_one_directory_and_in_siblings(seed: int) -> None:
    rng = random.Random(seed)
    writers = Writers(2 + seed % 2)
    root = writers.mounts[0].root_ino
    directories: dict[bytes, int] = {b"": root}
    model: dict[bytes, Any] = {}

    def place() -> tuple[bytes, bytes, int]:
        parent, name = rng.choice(list(directories)), rng.choice(NAMES)
        return parent + b"/" + name, name, directories[parent]

    for _ in range(350):
        fs = rng.choice(writers.mounts)
        path, name, directory = place()
        what = rng.random()
        try:
            if what < 0.4:
                ino = fs.complete(fs.create, directory, name, 0o644, 0, 0).ino
                assert path not in model
                model[path] = data = b"%d" % rng.randrange(1000) * rng.choice([0, 1, 2000])
                fs.complete(fs.write, ino, 0, data)
            elif what < 0.5 and len(directories) < 6:
                directories[path] = fs.complete(fs.mkdir, directory, name, 0o755, 0, 0).ino
                assert path not in model
                model[path] = None
            elif what < 0.65:
                fs.complete(fs.unlink, directory, name)
                assert model.pop(path) is not None
            elif what < 0.7:
                fs.complete(fs.rmdir, directory, name)
                assert not any(other.startswith(path + b"/") for other in model)
                del model[path], directories[path]
            elif what < 0.9:
                target, new_name, new_directory = place()
                if path in directories or target in directories:
                    continue
                fs.complete(fs.rename, directory, name, new_directory, new_name)
                model[target] = model.pop(path)
            elif what < 0.95:
                fs.flush()
            else:
                fs.fsync(None)
        except OSError as error:
            expected = {errno.EEXIST: path in model, errno.ENOENT: path not in model}
            expected |= {errno.EISDIR: path in directories, errno.ENOTDIR: path in model and path not in directories}
            expected[errno.ENOTEMPTY] = any(other.startswith(path + b"/") for other in model)
            assert expected.get(error.errno or 0), error
        assert not any(mount.errors for mount in writers.mounts)
    assert writers.waits > 20
    writers.check(model)


def test_two_writers_grow_a_directory() -> None:
    writers = Writers(2)
    root = writers.mounts[0].root_ino
    for number in range(400):
        fs = writers.mounts[number // 7 % 2]
        fs.complete(fs.create, root, b"file%d" % number, 0o644, 0, 0)
    assert all(fs.complete(fs.directory, root)[0].level == 1 for fs in writers.mounts)
    writers.check({b"/file%d" % number: b"" for number in range(400)})


def test_what_one_has_open_and_removed_another_leaves_alone() -> None:
    writers = Writers(2)
    one, other = writers.mounts
    root = one.root_ino
    ino = one.complete(one.create, root, b"f", 0o644, 0, 0).ino
    one.complete(one.write, ino, 0, b"contents")
    one.open(ino)
    one.complete(one.unlink, root, b"f")
    other.complete(other.create, root, b"f", 0o644, 0, 0)
    other.complete(other.unlink, root, b"f")
    other.sync_all()
    assert b"".join(map(bytes, one.complete(one.read, ino, 0, 100))) == b"contents"
    one.complete(one.release, ino)
    one.sync_all()
    writers.check({})


def test_who_comes_later_leaves_the_orphans_of_the_others_alone() -> None:
    writers = Writers(1)
    (one,) = writers.mounts
    ino = one.complete(one.create, one.root_ino, b"f", 0o644, 0, 0).ino
    one.complete(one.write, ino, 0, b"contents")
    one.open(ino)
    one.complete(one.unlink, one.root_ino, b"f")
    one.sync_all()
    two = writers.add()
    two.complete(two.create, two.root_ino, b"f", 0o644, 0, 0)
    two.sync_all()
    assert b"".join(map(bytes, one.complete(one.read, ino, 0, 100))) == b"contents"
    one.complete(one.release, ino)
    one.sync_all()
    writers.check({b"/f": b""})


def test_orphans_are_left_alone_while_nobody_has_the_lock() -> None:
    """The last who had it has died, and his successor comes; the file is another's, and open."""
    writers = Writers(3)
    one, two, three = writers.mounts
    ino = one.complete(one.create, one.root_ino, b"f", 0o644, 0, 0).ino
    one.complete(one.write, ino, 0, b"contents")
    one.open(ino)
    one.complete(one.unlink, one.root_ino, b"f")
    for name, last in ((b"d2", two), (b"d3", three)):
        last.complete(last.mkdir, last.root_ino, name, 0o755, 0, 0)
        last.sync_all()
        last.env.close()
        writers.mounts.remove(last)
        assert not one.locks.get(one.root_block)
        writers.add()
        assert b"".join(map(bytes, one.complete(one.read, ino, 0, 100))) == b"contents"
    one.complete(one.release, ino)
    one.sync_all()
    assert not one.orphans
    writers.check({b"/d2": None, b"/d3": None})


def test_a_dead_writer_leaves_what_it_had_crossed() -> None:
    writers = Writers(2)
    one, other = writers.mounts
    one.complete(one.create, one.root_ino, b"crossed", 0o644, 0, 0)
    one.flush()
    one.complete(one.create, one.root_ino, b"answered", 0o644, 0, 0)
    one.env.close()
    writers.mounts.remove(one)
    other.complete(other.create, other.root_ino, b"mine", 0o644, 0, 0)
    other.sync_all()
    writers.check({b"/crossed": b"", b"/mine": b""})


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_dead_writers_growth_is_finished_by_who_wants_to_read(stage: int) -> None:
    """The reader shares the lock, asks for the exclusive one, and what he had of the directory goes with the first."""
    writers = Writers(2)
    one, other = writers.mounts
    model = {b"/d/file%d" % number: b"" for number in range(30)}
    ino = one.complete(one.mkdir, one.root_ino, b"d", 0o755, 0, 0).ino
    for path in model:
        one.complete(one.create, ino, path[3:], 0o644, 0, 0)
    assert len(writers.tree(other, ino)) == 30  # from now on both know that the lock is wanted by others
    one.complete(one.create, ino, b"another", 0o644, 0, 0)
    writers.tree(other, ino)
    flushes = 0
    steps = one._grow_steps(ino, 1)

    def until_it_dies() -> Any:
        nonlocal flushes
        calls = next(steps)
        while flushes < stage or ino not in one.growing:
            results = yield calls
            flushes += any(call[0] == "flush" for call in calls)
            calls = steps.send(results)

    one._drive(until_it_dies())
    one.env.close()
    writers.mounts.remove(one)
    assert other.locks.get(other.root_block, 0) != EXCLUSIVE
    assert other.complete(other.getattr, ino).nlink == 2
    assert other.locks[other.root_block] == SHARED
    writers.check(model | {b"/d": None, b"/d/another": b""})
