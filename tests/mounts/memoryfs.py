"""A libFS in memory, with the libFS interface: the mount's tests need no disk, and FUSE's own cost can be measured.

With `miss_every` set, every n-th operation first raises `NotInCore`, as a cold cache would.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


class NotInCore(Exception):
    def __init__(self, requests: list[int]) -> None:
        super().__init__("not in core")
        self.requests = requests


@dataclass
class Node:
    ino: int
    mode: int
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    rdev: int = 0
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    generation: int = 1
    opens: int = 0

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def blocks(self) -> int:
        return (len(self.data) + 511) // 512


@dataclass
class Stat:
    block_size: int = 4096
    blocks: int = 1000
    free: int = 900
    available: int = 900
    files: int = 1000
    files_free: int = 900
    name_max: int = 255


class MemoryFileSystem:
    root_ino = 7777

    def __init__(self, miss_every: int = 0) -> None:
        self.nodes = {self.root_ino: Node(self.root_ino, stat.S_IFDIR | 0o755, nlink=2)}
        self._next = 10_000
        self._calls = 0
        self._miss_every = miss_every
        self._missed = False
        self.fetched: list[list[int]] = []
        self.synced: list[int | None] = []
        self.on_invalidate = lambda ino, names=(): None

    async def afetch(self, requests: list[int]) -> None:
        self.fetched.append(requests)

    async def afsync(self, ino: int | None, datasync: bool) -> None:
        self.synced.append(ino)

    def _touch(self) -> None:
        self._calls += 1
        if self._miss_every and self._calls % self._miss_every == 0:
            raise NotInCore([self._calls])

    def _dir(self, ino: int) -> Node:
        node = self.nodes[ino]
        if not stat.S_ISDIR(node.mode):
            raise OSError(errno.ENOTDIR, "not a directory")
        return node

    def lookup(self, parent: int, name: bytes) -> Node:
        self._touch()
        ino = self._dir(parent).names.get(name)
        if ino is None:
            raise OSError(errno.ENOENT, "no such name")
        return self.nodes[ino]

    def getattr(self, ino: int) -> Node:
        self._touch()
        return self.nodes[ino]

    def setattr(self, ino: int, **changes: int) -> Node:
        self._touch()
        node = self.nodes[ino]
        if "mode" in changes:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(changes["mode"])
        node.uid = changes.get("uid", node.uid)
        node.gid = changes.get("gid", node.gid)
        if "size" in changes:
            size = changes["size"]
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))
        node.atime_ns = changes.get("atime", node.atime_ns)
        node.mtime_ns = changes.get("mtime", node.mtime_ns)
        return node

    def create(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Node:
        self._touch()
        if name in self._dir(parent).names:
            raise OSError(errno.EEXIST, "exists")
        if len(name) > 255:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        now = time.time_ns()
        self._next += 1
        node = Node(self._next, mode, uid, gid, rdev=rdev, atime_ns=now, mtime_ns=now, ctime_ns=now)
        self.nodes[node.ino] = node
        self.nodes[parent].names[name] = node.ino
        return node

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Node:
        node = self.create(parent, name, stat.S_IFDIR | mode, uid, gid)
        node.nlink = 2
        return node

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Node:
        node = self.create(parent, name, stat.S_IFLNK | 0o777, uid, gid)
        node.data[:] = target
        return node

    def link(self, ino: int, parent: int, name: bytes) -> Node:
        self._touch()
        self._dir(parent).names[name] = ino
        self.nodes[ino].nlink += 1
        return self.nodes[ino]

    def unlink(self, parent: int, name: bytes) -> None:
        self._touch()
        node = self.nodes[self._dir(parent).names.pop(name)]
        node.nlink -= 1
        self._reap(node)

    def rmdir(self, parent: int, name: bytes) -> None:
        self._touch()
        if self._dir(self._dir(parent).names[name]).names:
            raise OSError(errno.ENOTEMPTY, "not empty")
        del self.nodes[self._dir(parent).names.pop(name)]

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        self._touch()
        if flags & 1 and new_name in self._dir(new_parent).names:
            raise OSError(errno.EEXIST, "exists")
        self._dir(new_parent).names[new_name] = self._dir(parent).names.pop(name)

    def readlink(self, ino: int) -> bytes:
        self._touch()
        return bytes(self.nodes[ino].data)

    def parent(self, ino: int) -> int:
        return next((node.ino for node in self.nodes.values() if ino in node.names.values()), ino)

    def readdir(self, ino: int, cookie: int) -> Iterator[tuple[bytes, Node, int]]:
        self._touch()
        for position, (name, child) in enumerate(sorted(self._dir(ino).names.items())):
            if position >= cookie >> 32:
                yield name, self.nodes[child], (position + 1) << 32

    def open(self, ino: int) -> None:
        self.nodes[ino].opens += 1

    def release(self, ino: int) -> None:
        node = self.nodes[ino]
        node.opens -= 1
        self._reap(node)

    def _reap(self, node: Node) -> None:
        if node.nlink == 0 and node.opens == 0:
            del self.nodes[node.ino]

    def read(self, ino: int, offset: int, size: int) -> list[memoryview]:
        self._touch()
        data = bytes(self.nodes[ino].data[offset : offset + size])
        half = len(data) // 2
        return [memoryview(data[:half]), memoryview(data[half:])] if offset % 2 else [memoryview(data)]

    def write(self, ino: int, offset: int, data: bytes) -> int:
        self._touch()
        target = self.nodes[ino].data
        if len(target) < offset:
            target.extend(bytes(offset - len(target)))
        target[offset : offset + len(data)] = data
        return len(data)

    def statfs(self) -> Stat:
        return Stat()


def open_fuse(directory: str) -> int:
    """A FUSE mount on `directory` as the launcher makes it; the descriptor."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    nosuid_nodev = 2 | 4
    if libc.mount(b"xok-test", directory.encode(), b"fuse", nosuid_nodev, data.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    return descriptor


def unmount(directory: str) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.umount2(directory.encode(), 2)
