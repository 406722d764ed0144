"""The whole file system against a dictionary: any sequence of operations, restarts, kills and synchronisations."""

from __future__ import annotations

import errno
import stat
from typing import Any

from cffs_harness import Volume, fails
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

BLOCK = 4096


class File:
    """A file of the model; directories have `names`."""

    def __init__(self, kind: str, data: bytes = b"") -> None:
        self.kind = kind
        self.data = bytearray(data)
        self.names: dict[bytes, File] = {}
        self.nlink = 1
        self.mode = 0o644
        self.ino = 0


names = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"dd", b"e.txt"]),
    st.integers(0, 40).map(lambda n: b"file%02d" % n),
    st.integers(0, 4).map(lambda n: b"%d" % n + b"L" * 254),
)
sizes = st.one_of(st.integers(0, 200), st.sampled_from([4095, 4096, 4097, 8192, 20000, 70000]))


class FileSystemMachine(RuleBasedStateMachine):
    """Operations on random directories and names; the model says what must come of them."""

    shared = False

    def __init__(self) -> None:
        super().__init__()
        self.volume = Volume(2048, shared=self.shared)
        self.root = File("dir")
        self.root.ino = self.volume.root
        self.open_files: list[File] = []

    # ---- choosing

    def directories(self) -> list[File]:
        found = [self.root]
        for directory in found:
            found += [child for child in directory.names.values() if child.kind == "dir"]
        return found

    def pick(self, number: int) -> File:
        everything = self.directories()
        return everything[number % len(everything)]

    def pick_file(self, directory: File, number: int) -> tuple[bytes, File] | None:
        found = (
            sorted((name, child) for name, child in directory.names.items() if child.kind == "file")
            if False
            else [
                (name, directory.names[name])
                for name in sorted(directory.names)
                if directory.names[name].kind == "file"
            ]
        )
        return found[number % len(found)] if found else None

    # ---- making and removing

    @rule(where=st.integers(0, 50), name=names, data=st.binary(max_size=50), size=sizes)
    def create(self, where: int, name: bytes, data: bytes, size: int) -> None:
        directory = self.pick(where)
        if name in directory.names:
            with fails(errno.EEXIST):
                self.volume("create", directory.ino, name, 0o644, 0, 0)
            return
        child = File("file", (data or b"x") * (size // max(1, len(data)) + 1) if size else data)
        child.ino = self.volume.file(directory.ino, name, bytes(child.data))
        directory.names[name] = child

    @rule(where=st.integers(0, 50), count=st.integers(1, 60))
    def create_many(self, where: int, count: int) -> None:
        directory = self.pick(where)
        for number in range(count):
            name = b"many%03d" % number
            if name not in directory.names:
                child = File("file")
                child.ino = self.volume.file(directory.ino, name)
                directory.names[name] = child

    @rule(where=st.integers(0, 50), name=names)
    def mkdir(self, where: int, name: bytes) -> None:
        directory = self.pick(where)
        if name in directory.names:
            with fails(errno.EEXIST):
                self.volume("mkdir", directory.ino, name, 0o755, 0, 0)
            return
        child = File("dir")
        child.ino = self.volume("mkdir", directory.ino, name, 0o755, 0, 0).ino
        directory.names[name] = child

    @rule(where=st.integers(0, 50), name=names, length=st.sampled_from([1, 72, 73, 4000]))
    def symlink(self, where: int, name: bytes, length: int) -> None:
        directory = self.pick(where)
        if name in directory.names:
            return
        child = File("link", b"t" * length)
        child.ino = self.volume("symlink", directory.ino, name, bytes(child.data), 0, 0).ino
        directory.names[name] = child

    @rule(where=st.integers(0, 50), which=st.integers(0, 50), to=st.integers(0, 50), name=names)
    def link(self, where: int, which: int, to: int, name: bytes) -> None:
        found = self.pick_file(self.pick(where), which)
        directory = self.pick(to)
        if found is None:
            return
        if name in directory.names:
            with fails(errno.EEXIST):
                self.volume("link", found[1].ino, directory.ino, name)
            return
        self.volume("link", found[1].ino, directory.ino, name)
        found[1].nlink += 1
        directory.names[name] = found[1]

    @rule(where=st.integers(0, 50), name=names)
    def unlink(self, where: int, name: bytes) -> None:
        directory = self.pick(where)
        child = directory.names.get(name)
        if child is None:
            with fails(errno.ENOENT):
                self.volume("unlink", directory.ino, name)
        elif child.kind == "dir":
            with fails(errno.EISDIR):
                self.volume("unlink", directory.ino, name)
        else:
            self.volume("unlink", directory.ino, name)
            del directory.names[name]
            child.nlink -= 1

    @rule(where=st.integers(0, 50), which=st.integers(0, 50), count=st.integers(1, 60))
    def unlink_some(self, where: int, which: int, count: int) -> None:
        directory = self.pick(where)
        for _ in range(count):
            found = self.pick_file(directory, which)
            if found is None:
                return
            self.volume("unlink", directory.ino, found[0])
            del directory.names[found[0]]
            found[1].nlink -= 1

    @rule(where=st.integers(0, 50), which=st.integers(0, 50))
    def rmdir(self, where: int, which: int) -> None:
        directory = self.pick(where)
        found = [name for name in sorted(directory.names) if directory.names[name].kind == "dir"]
        if not found:
            return
        name = found[which % len(found)]
        if directory.names[name].names:
            with fails(errno.ENOTEMPTY):
                self.volume("rmdir", directory.ino, name)
            return
        self.volume("rmdir", directory.ino, name)
        del directory.names[name]

    @rule(source=st.integers(0, 50), which=st.integers(0, 50), to=st.integers(0, 50), name=names)
    def rename(self, source: int, which: int, to: int, name: bytes) -> None:
        old, new = self.pick(source), self.pick(to)
        if not old.names:
            return
        old_name = sorted(old.names)[which % len(old.names)]
        child, victim = old.names[old_name], new.names.get(name)
        for directory in self.directories():
            # A kernel has looked up every directory that it names.
            for inner, node in directory.names.items():
                if node.kind == "dir":
                    self.volume("lookup", directory.ino, inner)
        expected = self.rename_errno(child, victim, new)
        if expected:
            with fails(*expected):
                self.volume("rename", old.ino, old_name, new.ino, name)
            return
        self.volume("rename", old.ino, old_name, new.ino, name)
        if victim is child:
            return
        if victim is not None:
            victim.nlink -= 1
        del old.names[old_name]
        new.names[name] = child

    def rename_errno(self, child: File, victim: File | None, new: File) -> tuple[int, ...]:
        if victim is not None and victim is not child:
            if child.kind == "dir" and victim.kind != "dir":
                return (errno.ENOTDIR,)
            if child.kind != "dir" and victim.kind == "dir":
                return (errno.EISDIR,)
            if victim.kind == "dir" and victim.names:
                return (errno.ENOTEMPTY, errno.EINVAL)
        if child.kind == "dir" and victim is not child:
            below = [child]
            for directory in below:
                below += [inner for inner in directory.names.values() if inner.kind == "dir"]
            if new in below:
                return (errno.EINVAL,)
        return ()

    # ---- contents

    @rule(
        where=st.integers(0, 50),
        which=st.integers(0, 50),
        offset=sizes,
        data=st.binary(min_size=1, max_size=9),
        size=sizes,
    )
    def write(self, where: int, which: int, offset: int, data: bytes, size: int) -> None:
        found = self.pick_file(self.pick(where), which)
        if found is None:
            return
        child = found[1]
        text = data * (size // len(data) + 1)
        assert self.volume("write", child.ino, offset, text) == len(text)
        if len(child.data) < offset:
            child.data.extend(bytes(offset - len(child.data)))
        child.data[offset : offset + len(text)] = text

    @rule(where=st.integers(0, 50), which=st.integers(0, 50), size=sizes)
    def truncate(self, where: int, which: int, size: int) -> None:
        found = self.pick_file(self.pick(where), which)
        if found is None:
            return
        child = found[1]
        assert self.volume("setattr", child.ino, size=size).size == size
        del child.data[size:]
        child.data.extend(bytes(size - len(child.data)))

    @rule(where=st.integers(0, 50), which=st.integers(0, 50), mode=st.integers(0, 0o7777))
    def chmod(self, where: int, which: int, mode: int) -> None:
        found = self.pick_file(self.pick(where), which)
        if found is not None:
            self.volume("setattr", found[1].ino, mode=mode)
            found[1].mode = mode

    @rule(where=st.integers(0, 50), which=st.integers(0, 50))
    def open(self, where: int, which: int) -> None:
        found = self.pick_file(self.pick(where), which)
        if found is not None and len(self.open_files) < 5:
            self.volume.fs.open(found[1].ino)
            self.open_files.append(found[1])

    @precondition(lambda self: self.open_files)
    @rule(which=st.integers(0, 50))
    def release(self, which: int) -> None:
        child = self.open_files.pop(which % len(self.open_files))
        assert self.volume.contents(child.ino) == child.data, "an open file has lost its contents"
        self.volume("release", child.ino)

    # ---- time passes

    @rule()
    def cross(self) -> None:
        self.volume.fs.flush()
        assert not self.volume.fs.errors

    @rule()
    def sync(self) -> None:
        self.volume.check_disk()

    @rule()
    def remount(self) -> None:
        self.open_files.clear()
        self.volume.remount()

    @rule()
    def crash_after_sync(self) -> None:
        """What fsync promised is there after the power failed, open-unlinked files are not."""
        self.volume.fs.sync_all()
        self.open_files.clear()
        report = self.volume.crash()
        assert report.sound, (report.violations, report.unmarked)
        self.compare()

    @rule()
    def kill(self) -> None:
        self.volume.fs.sync_all()
        self.open_files.clear()
        self.volume.kill()

    # ---- comparing

    @rule()
    def compare(self) -> None:
        self.compare_directory(self.root)

    def compare_directory(self, directory: File) -> None:
        assert self.volume.listing(directory.ino) == {name: child.ino for name, child in directory.names.items()}
        attr = self.volume("getattr", directory.ino)
        subdirectories = sum(child.kind == "dir" for child in directory.names.values())
        assert attr.nlink == 2 + subdirectories
        for name, child in directory.names.items():
            found: Any = self.volume("lookup", directory.ino, name)
            assert found.ino == child.ino
            if child.kind == "dir":
                assert stat.S_ISDIR(found.mode)
                self.compare_directory(child)
                continue
            assert found.nlink == child.nlink
            if child.kind == "link":
                assert self.volume("readlink", child.ino) == child.data
                continue
            assert found.mode == stat.S_IFREG | child.mode
            assert found.size == len(child.data)
            assert self.volume.contents(child.ino) == child.data

    @invariant()
    def no_late_errors(self) -> None:
        assert not self.volume.fs.errors

    @invariant()
    def nothing_promised_twice(self) -> None:
        fs = self.volume.fs
        assert fs.promised == sum(node.promised for node in fs.nodes.values())

    @initialize()
    def nothing(self) -> None:
        """Start empty."""

    def teardown(self) -> None:
        self.compare()
        self.open_files.clear()
        self.volume.check_disk()
        self.volume.remount()
        self.compare()


class SharedFileSystemMachine(FileSystemMachine):
    """The same on a shared volume, where XN asks the methods about every change."""

    shared = True


TestFileSystem = FileSystemMachine.TestCase
TestSharedFileSystem = SharedFileSystemMachine.TestCase
TestFileSystem.settings = TestSharedFileSystem.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
