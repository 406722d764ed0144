"""What a libFS's users may expect after a power failure, kept beside the operations of a run.

MODEL-1  What an fsync has promised is there, byte for byte, unless it was changed since.
MODEL-2  A name changed since then shows what it showed at some moment since: a rename over a name never leaves nothing.
MODEL-3  A file changed since then has a size that it had, and each of its sectors is that sector of one of its
         versions since; nothing that a truncation cut off comes back with a version after it.
MODEL-4  An inode whose promised name was renamed since, or removed while it had another, has a name.
MODEL-5  There are no other names, and in files no other bytes: nothing of anybody else's.

Names are in directories, which may themselves be at an old name or a new one: all is kept by (directory, name).
"""

from __future__ import annotations

import itertools
import stat
from dataclasses import dataclass, field
from typing import Any

from crash_reader import Found, Ident

from libfs.cffs import mkfs
from libfs.cffs.filesystem import CFFS
from xok_host.abi.types import BLOCK, SECTOR
from xok_host.kernel.local import DEV

RECORD = 32
Name = tuple[Ident, bytes]
"""(directory, name)"""
ROOT: Ident = (0, 0)
"""Stands for the root directory."""


def contents(tag: bytes, number: int, version: int, size: int, offset: int = 0) -> bytes:
    """Bytes that say whose they are: which volume's, which file's, which version's, and where in the file."""
    first = offset // RECORD
    last = (offset + size + RECORD - 1) // RECORD
    raw = b"".join(b"%-8s %06d %06d %08d\n" % (tag, number, version, at) for at in range(first, last))
    return raw[offset % RECORD : offset % RECORD + size]


@dataclass(slots=True)
class Inode:
    """One file or directory.  `versions` and `attributes` are those since the last promise, the last one current."""

    ino: int
    ident: Ident
    kind: int
    number: int
    names: set[Name] = field(default_factory=set)
    versions: list[bytes] = field(default_factory=list)
    attributes: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(mode, uid, gid, mtime)"""
    safe: set[Name] = field(default_factory=set)
    """Names that were promised, or that it had when such a one went."""
    opened: int = 0


@dataclass(frozen=True, slots=True)
class Expect:
    """A snapshot of what may be found."""

    names: dict[Name, tuple[Ident | None, ...]]
    inodes: dict[Ident, tuple[int, tuple[bytes, ...], tuple[tuple[int, int, int, int], ...]]]
    """(kind, versions, attributes)"""
    needed: frozenset[Ident]

    def key(self) -> Any:
        """Equal for equal expectations."""
        return tuple(sorted(self.names.items())), tuple(self.inodes.items()), self.needed

    def check(self, view: dict[bytes, Found]) -> None:
        """Raises AssertionError."""
        named: dict[Name, Ident] = {}
        directories = {ROOT}
        for path, found in view.items():
            above, _, name = path.rpartition(b"/")
            place = (view[above].ident if above else ROOT, name)
            assert place in self.names, f"{path!r} is there and was never promised, or has been removed durably"
            named[place] = found.ident
            if stat.S_ISDIR(found.mode):
                directories.add(found.ident)
        for place, allowed in self.names.items():
            if place[0] in directories:
                ident = named.get(place)
                assert ident in allowed, f"{place} is {ident}; it may be {allowed}"
        there = set()
        for path, found in view.items():
            kind, versions, attributes = self.inodes[found.ident]
            assert stat.S_IFMT(found.mode) == kind, f"{path!r} is of another kind"
            there.add(found.ident)
            if kind == stat.S_IFDIR:
                assert found.mode in {mode for mode, *_ in attributes}, f"{path!r} has mode {found.mode:o}"
                continue
            assert (found.mode, *found.owner, found.mtime) in attributes, f"{path!r} has attributes it never had"
            if found.content not in versions:
                check_mixture(path, found.content, versions)
        missing = self.needed - there
        assert not missing, f"inodes {missing} were promised and have no name"


def check_mixture(path: bytes, content: bytes, versions: tuple[bytes, ...]) -> None:
    """MODEL-3.  Raises AssertionError."""
    size = len(content)
    of_size = [k for k, version in enumerate(versions) if len(version) == size]
    assert of_size, f"{path!r} has {size} bytes; it had {[len(version) for version in versions]}"
    problem = ""
    for k in of_size:
        problem = _mixture_problem(content, versions, k)
        if not problem:
            return
    raise AssertionError(f"{path!r}: {problem}")


def _mixture_problem(content: bytes, versions: tuple[bytes, ...], k: int) -> str:
    """Why the content is not the inode of version `k` with data of other versions; empty: it is."""
    for at in range(0, len(content), SECTOR):
        piece = content[at : at + SECTOR]
        block = at // BLOCK * BLOCK
        for j, version in enumerate(versions):
            if version[at : at + len(piece)].ljust(len(piece), b"\0") != piece:
                continue
            if all(len(between) > block for between in versions[min(j, k) : max(j, k) + 1]) or j == k:
                break
        else:
            return f"the sector at {at} holds what none of {len(versions)} versions has there: {piece[:64]!r}"
    return ""


class World:
    """One C-FFS and its model.  Operations name paths; each tells the recorder what may be found from then on."""

    def __init__(self, xok: Any, name: str, on_mark: Any) -> None:
        self.xok = xok
        self.name = name
        self.tag = name.encode()
        self.now = 1_700_000_000_000_000_000
        self._on_mark = on_mark
        self.names: dict[Name, list[Inode | None]] = {}
        """What each name was since the last promise; the last entry is what it is."""
        self.live: dict[bytes, Inode] = {}
        """What is at each path now."""
        self.inodes: list[Inode] = []
        self._numbers = itertools.count(1)
        self._versions = itertools.count(1)
        self.env = xok.environment(name=name)
        cap = mkfs.make(self.env, DEV, name, clock=self.clock)
        self.fs = CFFS.mount(self.env, DEV, name, cap, clock=self.clock)

    def clock(self) -> int:
        self.now += 1 << 20
        return self.now

    # ---- what may be found

    def expect(self) -> Expect:
        known = {inode.ident: inode for history in self.names.values() for inode in history if inode is not None}
        inodes = {
            ident: (inode.kind, tuple(inode.versions), tuple(inode.attributes))
            for ident, inode in sorted(known.items())
        }
        names = {
            place: tuple(inode.ident if inode else None for inode in history) for place, history in self.names.items()
        }
        return Expect(names, inodes, frozenset(inode.ident for inode in self.inodes if inode.safe))

    def mark(self, promise: bool = False) -> None:
        self._on_mark(promise)

    def at(self, path: bytes) -> Inode:
        return self.live[path]

    def _place(self, path: bytes) -> Name:
        above, _, name = path.rpartition(b"/")
        return (self.at(above).ident if above else ROOT), name

    def _parent(self, path: bytes) -> int:
        above = path.rpartition(b"/")[0]
        return self.at(above).ino if above else self.fs.root_ino

    @staticmethod
    def _name(path: bytes) -> bytes:
        return path.rpartition(b"/")[2]

    def _do(self, operation: str, *args: Any, **named: Any) -> Any:
        return self.fs.complete(getattr(self.fs, operation), *args, **named)

    def _now_at(self, path: bytes, inode: Inode | None) -> None:
        """What the path is from now on."""
        place = self._place(path)
        history = self.names.setdefault(place, [None])
        before = history[-1]
        if before is not None:
            before.names.discard(place)
            if place in before.safe:
                before.safe = set(before.names)
            del self.live[path]
        if inode is not None:
            inode.names.add(place)
            self.live[path] = inode
        history.append(inode)

    def _settle(self, place: Name) -> None:
        history = self.names[place]
        if history[-1] is None:
            del self.names[place]
        else:
            self.names[place] = history[-1:]

    def _attributes(self, inode: Inode) -> tuple[int, int, int, int]:
        attr = self._do("getattr", inode.ino)
        return attr.mode, attr.uid, attr.gid, attr.mtime_ns

    def _promise(self, inode: Inode) -> None:
        inode.versions = inode.versions[-1:]
        inode.attributes = [self._attributes(inode)]
        inode.safe = set(inode.names)

    # ---- operations

    def _made(self, path: bytes, attr: Any, content: bytes = b"") -> None:
        inode = Inode(attr.ino, (attr.ino, attr.generation), stat.S_IFMT(attr.mode), next(self._numbers))
        inode.versions = [content]
        inode.attributes = [(attr.mode, attr.uid, attr.gid, attr.mtime_ns)]
        self.inodes.append(inode)
        self._now_at(path, inode)
        self.mark()

    def create(self, path: bytes, size: int = 0) -> None:
        self._made(path, self._do("create", self._parent(path), self._name(path), 0o640, 7, 8))
        if size:
            self.write(path, 0, size)

    def mkdir(self, path: bytes) -> None:
        self._made(path, self._do("mkdir", self._parent(path), self._name(path), 0o750, 0, 0))

    def symlink(self, path: bytes, target: bytes) -> None:
        self._made(path, self._do("symlink", self._parent(path), self._name(path), target, 0, 0), target)

    def write(self, path: bytes, offset: int, size: int) -> None:
        self.write_to(self.at(path), offset, size)

    def write_to(self, inode: Inode, offset: int, size: int) -> None:
        data = contents(self.tag, inode.number, next(self._versions), size, offset)
        old = inode.versions[-1]
        inode.versions.append(old[:offset].ljust(offset, b"\0") + data + old[offset + size :])
        self._change(inode, lambda: self._do("write", inode.ino, offset, data))

    def truncate(self, path: bytes, size: int) -> None:
        inode = self.at(path)
        inode.versions.append(inode.versions[-1][:size].ljust(size, b"\0"))
        self._change(inode, lambda: self._do("setattr", inode.ino, size=size))

    def chmod(self, path: bytes, mode: int) -> None:
        inode = self.at(path)
        self._change(inode, lambda: self._do("setattr", inode.ino, mode=mode))

    def _change(self, inode: Inode, operation: Any) -> None:
        """An operation on contents or attributes; what it does may be on the disk before it returns."""
        self.mark()
        try:
            operation()
        except OSError:
            inode.versions.append(inode.versions[-2] if len(inode.versions) > 1 else inode.versions[-1])
            raise
        finally:
            inode.attributes.append(self._attributes(inode))
            self.mark()

    def append(self, path: bytes, size: int) -> None:
        self.write(path, len(self.at(path).versions[-1]), size)

    def link(self, path: bytes, new: bytes) -> None:
        inode = self.at(path)
        self._do("link", inode.ino, self._parent(new), self._name(new))
        self._now_at(new, inode)
        self.mark()

    def unlink(self, path: bytes) -> None:
        parent = self._parent(path)
        self._removing(path, lambda: self._do("unlink", parent, self._name(path)))

    def rmdir(self, path: bytes) -> None:
        parent = self._parent(path)
        self._removing(path, lambda: self._do("rmdir", parent, self._name(path)))

    def _removing(self, path: bytes, operation: Any) -> None:
        operation()
        self._now_at(path, None)
        self.mark()

    def rename(self, path: bytes, new: bytes) -> None:
        inode = self.at(path)
        self._do("rename", self._parent(path), self._name(path), self._parent(new), self._name(new))
        self._now_at(new, inode)
        self._now_at(path, None)
        for below in [other for other in self.live if other.startswith(path + b"/")]:
            self.live[new + below[len(path) :]] = self.live.pop(below)
        self.mark()

    def open(self, path: bytes) -> Inode:
        inode = self.at(path)
        self.fs.open(inode.ino)
        inode.opened += 1
        return inode

    def release(self, inode: Inode) -> None:
        self._do("release", inode.ino)
        inode.opened -= 1
        self.mark()

    def flush(self) -> None:
        """Cross; nothing is promised."""
        self.fs.flush()

    # ---- promises

    def fsync(self, path: bytes) -> None:
        """The file's contents and attributes, and its names; a directory's names."""
        inode = self.at(path)
        self.mark()
        self.fs.fsync(inode.ino)
        self.promised(inode)

    def fsync_open(self, inode: Inode) -> None:
        self.fs.fsync(inode.ino)
        self.promised(inode)

    def promised(self, inode: Inode) -> None:
        self._promise(inode)
        for place in list(self.names):
            if place in inode.names or (inode.kind == stat.S_IFDIR and place[0] == inode.ident):
                self._settle(place)
        self.mark(True)

    def sync(self) -> None:
        self.fs.fsync(None)
        self.all_promised()

    def all_promised(self) -> None:
        self.inodes = [inode for inode in self.inodes if inode.names or inode.opened]
        alive = {ROOT, *(inode.ident for inode in self.inodes)}
        for place in list(self.names):
            self._settle(place)
            if place[0] not in alive:
                self.names.pop(place, None)
        for inode in self.inodes:
            self._promise(inode)
        self.mark(True)
