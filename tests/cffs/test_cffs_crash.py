"""Power failures at any write, with any subset of the unflushed sectors on the disk."""

from __future__ import annotations

import random
import stat

import pytest
from cffs_harness import Volume

NAMES = [b"n%d" % number + b"y" * (number % 7) * 9 for number in range(30)]


class PowerFails(Exception):
    pass


class Run:
    """Random operations, a record of what the last fsync promised, and a failure in the middle."""

    def __init__(self, seed: int, shared: bool) -> None:
        self.rng = random.Random(seed)
        self.volume = Volume(1024, shared=shared)
        self.left = 1 << 60
        self.paths: dict[bytes, tuple[int, bytes | None]] = {b"": (self.volume.root, None)}
        """path → (inode, contents; None: a directory)"""
        self.promised: dict[bytes, bytes | None] = {}
        self.touched: set[bytes] = set()

    def on_write(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise PowerFails

    def directories(self) -> list[bytes]:
        return [path for path, (_, data) in self.paths.items() if data is None]

    def step(self) -> None:
        volume, rng = self.volume, self.rng
        parent = rng.choice(self.directories())
        name = rng.choice(NAMES)
        path = parent + b"/" + name
        directory = self.paths[parent][0]
        what = rng.random()
        files = [path for path, (_, data) in self.paths.items() if data is not None]
        if what < 0.35 and path not in self.paths:
            data = bytes([rng.randrange(256)]) * rng.choice([0, 10, 5000, 20000])
            self.touch(path)
            self.paths[path] = (volume.file(directory, name, data), data)
        elif what < 0.45 and path not in self.paths and len(self.directories()) < 8:
            self.touch(path)
            self.paths[path] = (volume("mkdir", directory, name, 0o755, 0, 0).ino, None)
        elif what < 0.6 and files:
            victim = rng.choice(files)
            self.touch(victim)
            volume("unlink", self.paths[victim.rpartition(b"/")[0]][0], victim.rpartition(b"/")[2])
            del self.paths[victim]
        elif what < 0.75 and files:
            source = rng.choice(files)
            if source == path or self.paths.get(path, (0, b""))[1] is None:
                return
            self.touch(source)
            self.touch(path)
            volume("rename", self.paths[source.rpartition(b"/")[0]][0], source.rpartition(b"/")[2], directory, name)
            self.paths[path] = self.paths.pop(source)
        elif what < 0.9 and files:
            changed = rng.choice(files)
            self.touch(changed)
            ino, data = self.paths[changed]
            assert data is not None
            text = b"w" * rng.choice([5, 4096])
            offset = rng.choice([0, 100, 4096])
            volume("write", ino, offset, text)
            data = data.ljust(offset, b"\0")
            self.paths[changed] = (ino, data[:offset] + text + data[offset + len(text) :])
        elif what < 0.93:
            for candidate in self.directories()[1:]:
                if not any(other.startswith(candidate + b"/") for other in self.paths):
                    self.touch(candidate)
                    volume("rmdir", self.paths[candidate.rpartition(b"/")[0]][0], candidate.rpartition(b"/")[2])
                    del self.paths[candidate]
                    break
        elif what < 0.97:
            volume.fs.flush()
        else:
            volume.fs.fsync(None)
            self.promised = {path: data for path, (_, data) in self.paths.items() if path}
            self.touched.clear()

    def touch(self, path: bytes) -> None:
        self.touched.add(path)


@pytest.mark.parametrize(
    "seed, shared", [*((seed, False) for seed in range(60)), *((seed, True) for seed in range(10, 50))]
)
def test_fsynced_survives_and_the_rest_is_sane(seed: int, shared: bool) -> None:
    run = Run(seed, shared)
    rng = run.rng
    for _ in range(60):
        run.step()
    run.volume.fs.fsync(None)
    run.promised = {path: data for path, (_, data) in run.paths.items() if path}
    run.touched.clear()
    run.left = rng.randrange(120)
    run.volume.xok.disk.on_write = run.on_write
    try:
        for _ in range(200):
            run.step()
            if rng.random() < 0.1:
                run.volume.fs.sync_all()
    except PowerFails:
        pass
    run.volume.xok.disk.on_write = lambda: None
    volume = run.volume
    report = volume.crash(lambda sector: rng.random() < 0.5)
    assert report.sound, (report.violations, report.unmarked)
    found = volume.tree()
    for path, data in run.promised.items():
        if path in run.touched:
            continue
        kind = "dir" if data is None else "file"
        assert path in found, f"{path!r} was promised"
        assert found[path][0] == kind
        if data is not None:
            assert found[path][1] == data
    # Nothing shows what was never written: every file holds a prefix-like state of known bytes.
    for path, (kind, data, nlink) in found.items():
        assert nlink >= 1, path
        if kind == "file":
            assert set(data) <= set(range(256))
    # And the volume can be used: everything can be removed, and its blocks are free again.
    remove_all(volume, volume.root)
    volume.fs.sync_all()
    assert not volume.fs.errors
    assert volume.listing(volume.root) == {}


def remove_all(volume: Volume, directory: int) -> None:
    for name, ino in volume.listing(directory).items():
        if stat.S_ISDIR(volume("getattr", ino).mode):
            remove_all(volume, ino)
            volume("rmdir", directory, name)
        else:
            volume("unlink", directory, name)


@pytest.mark.parametrize("written", range(12))
def test_a_rename_over_a_name_in_another_sector_never_leaves_none_or_two(written: int) -> None:
    """The inode's own sector, which its name has left, has room for the new name; the name that it replaces is in
    another one.  Whatever reaches the disk first, one of both is there."""
    for kept in (lambda sector: True, lambda sector: sector % 8 == 0, lambda sector: sector % 8 != 0):
        volume = Volume(1024)
        directory = volume("mkdir", volume.root, b"d", 0o755, 0, 0).ino
        files = [volume.file(volume.root, b"n%d" % number, b"%d" % number) for number in range(6)]
        volume("rename", volume.root, b"n1", directory, b"away")
        volume.fs.fsync(None)
        assert files[1] >> 2 != files[5] >> 2
        volume("rename", directory, b"away", volume.root, b"n5")
        left = iter(range(written))

        def on_write(left: object = left) -> None:
            if next(left, None) is None:  # type: ignore[call-overload]
                raise PowerFails

        volume.xok.disk.on_write = on_write
        try:
            volume.fs.fsync(None)
        except PowerFails:
            pass
        volume.xok.disk.on_write = lambda: None
        report = volume.crash(kept)
        assert report.sound
        found = volume.tree()
        assert found[b"/n5"][1] in (b"1", b"5")
        assert b"/d/away" in found or found[b"/n5"][1] == b"1"


def test_directories_that_change_places_never_make_a_circle() -> None:
    """A renamed directory is at its old name, too, until that is durably gone: one that moves below it must wait."""
    volume = Volume(1024)
    first = volume("mkdir", volume.root, b"first", 0o755, 0, 0).ino
    second = volume("mkdir", volume.root, b"second", 0o755, 0, 0).ino
    volume.file(first, b"x")
    volume.file(second, b"y")
    volume.fs.fsync(None)
    volume("rename", volume.root, b"second", first, b"inner")
    volume("rename", first, b"inner", volume.root, b"outer")
    volume("rename", volume.root, b"first", second, b"inner")
    assert set(volume.tree()) == {b"/outer", b"/outer/y", b"/outer/inner", b"/outer/inner/x"}
    volume.fs.flush()
    volume.xok.sync()
    volume.crash()
    for path in volume.tree():
        assert path.count(b"/") <= 3, path
