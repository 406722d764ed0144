"""What every library file system offers to a mount or a server (docs/libfs.md).

Calls are synchronous and work on what is in core.  When something must be fetched first, a call raises `NotInCore`
*before* it has changed anything; the caller has the requests carried out (`fetch`, or `await afetch`) and calls again.
Every other failure is an `OSError` with its errno.  Inode numbers are ints, names bytes, times ns since 1970.

An answered change is visible to every later call at once, and is durable after `fsync`.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class NotInCore(Exception):
    """Have `requests` carried out, then call again."""

    def __init__(self, requests: Sequence[Any]) -> None:
        self.requests = requests
        super().__init__(requests)


@dataclass(slots=True)
class Attr:
    """What `stat` shows.  `blocks` counts 512 bytes."""

    ino: int
    generation: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, ino: int, file: Any) -> Attr:
        """Of a file that has one name and one time: `generation`, `mode`, `uid`, `gid`, `size` and `mtime`."""
        times = (file.mtime, file.mtime, file.mtime)
        blocks = -(-file.size // 512)
        return cls(ino, file.generation, file.mode, 1, file.uid, file.gid, 0, file.size, blocks, *times)


@dataclass(slots=True)
class StatFs:
    """Sizes in blocks of `block_size` bytes."""

    block_size: int
    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    name_max: int


RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


def refusal(code: int) -> OSError:
    """The error with this errno, in the system's words."""
    return OSError(code, os.strerror(code))


class FileSystem(Protocol):
    """The interface.  A raised `NotInCore` has had no effect."""

    root_ino: int
    shared: bool
    """Whether others may change it at any moment: whoever shows it keeps nothing, and asks anew each time."""
    on_invalidate: Callable[..., None]
    """Called with an inode number (and, for a directory, names) that another environment may have changed."""

    def lookup(self, parent: int, name: bytes) -> Attr: ...
    def getattr(self, ino: int) -> Attr: ...
    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: int | None = None,
        mtime: int | None = None,
    ) -> Attr: ...
    def create(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attr: ...
    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attr: ...
    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attr: ...
    def link(self, ino: int, parent: int, name: bytes) -> Attr: ...
    def unlink(self, parent: int, name: bytes) -> None: ...
    def rmdir(self, parent: int, name: bytes) -> None: ...
    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None: ...
    def readlink(self, ino: int) -> bytes: ...
    def parent(self, ino: int) -> int: ...
    def readdir(self, ino: int, cookie: int) -> Iterator[tuple[bytes, Attr, int]]: ...
    def open(self, ino: int) -> None: ...
    def release(self, ino: int) -> None: ...
    def read(self, ino: int, offset: int, size: int) -> list[memoryview]: ...
    def write(self, ino: int, offset: int, data: bytes) -> int: ...
    def statfs(self) -> StatFs: ...
    def fsync(self, ino: int | None, datasync: bool = False) -> None: ...
    async def afsync(self, ino: int | None, datasync: bool = False) -> None: ...
    def fetch(self, requests: Sequence[Any]) -> None: ...
    async def afetch(self, requests: Sequence[Any]) -> None: ...
    def flush(self) -> None: ...
    async def async_all(self) -> None: ...
    async def aevents(self) -> None: ...
    def idle(self) -> None: ...
    def close(self) -> None: ...


class Synchronous:
    """A base for a libFS that does all of an operation within the call: it fetches for itself, and defers only `fsync`.

    A subclass has the operations of `FileSystem` that it supports; here is the rest of the interface."""

    on_invalidate: Callable[..., None] = staticmethod(lambda ino, names=(): None)
    shared = False

    root_ino: int

    def __init__(self) -> None:
        self.opens: dict[int, int] = {}
        """How often each open file is open."""

    def open(self, ino: int) -> None:
        self.opens[ino] = self.opens.get(ino, 0) + 1

    def release(self, ino: int) -> None:
        self.opens[ino] -= 1
        if not self.opens[ino]:
            del self.opens[ino]
            self.last_release(ino)

    def last_release(self, ino: int) -> None:
        """Nobody has the file open any more."""

    def fsync(self, ino: int | None, datasync: bool = False) -> None:
        raise NotImplementedError

    def getattr(self, ino: int) -> Attr:
        raise NotImplementedError

    def setattr(self, ino: int, **given: int | None) -> Attr:
        """By `change`, with what is given alone: a mode keeps the file's type, and a size changes the time as well.

        Raises EISDIR or EINVAL for the size of what has none.  Who may change what is decided before: the mount has
        default_permissions."""
        changes = {name: value for name, value in given.items() if value is not None}
        before = self.getattr(ino)
        if "mode" in changes:
            changes["mode"] = stat.S_IFMT(before.mode) | stat.S_IMODE(changes["mode"])
        if "size" in changes:
            if changes["size"] < 0 or not stat.S_ISREG(before.mode):
                raise refusal(errno.EISDIR if stat.S_ISDIR(before.mode) else errno.EINVAL)
            changes.setdefault("mtime", time.time_ns())
        self.change(ino, **changes)
        return self.getattr(ino)

    def change(self, ino: int, **changes: int) -> None:
        """What `setattr` comes to: new values of some of mode, uid, gid, size, atime and mtime."""
        raise NotImplementedError

    def parent(self, ino: int) -> int:
        return self.root_ino

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attr:
        raise PermissionError(errno.EPERM, "this file system has no directories below its root")

    def rmdir(self, parent: int, name: bytes) -> None:
        raise NotADirectoryError(errno.ENOTDIR, "not a directory")

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Attr:
        raise PermissionError(errno.EPERM, "this file system has no symbolic links")

    def readlink(self, ino: int) -> bytes:
        raise OSError(errno.EINVAL, "not a symbolic link")

    def link(self, ino: int, parent: int, name: bytes) -> Attr:
        raise PermissionError(errno.EPERM, "this file system has no links")

    async def afsync(self, ino: int | None, datasync: bool = False) -> None:
        self.fsync(ino, datasync)

    async def async_all(self) -> None:
        self.fsync(None)

    def fetch(self, requests: Sequence[Any]) -> None:
        """`NotInCore` is never raised."""

    async def afetch(self, requests: Sequence[Any]) -> None:
        """`NotInCore` is never raised."""

    def flush(self) -> None:
        """Everything crossed when it was answered."""

    def idle(self) -> None:
        """Nothing waits to cross."""

    async def aevents(self) -> None:
        """No lock is held that anybody could want."""

    def close(self) -> None:
        self.fsync(None)


class Program(Protocol):
    """What a file of one's own has to define, for `xok mkfs --type FILE` and `xok mount --program FILE`."""

    def make(self, env: Any, dev: int, name: str, uid: int, gid: int) -> None:
        """Make the empty file system `name`, whose root directory belongs to `uid` and `gid`; durable when it returns.

        `env` is an environment (`xok_host.abi.client.Environment`), `dev` the disk's number."""

    def mount(self, env: Any, dev: int, name: str, cap: int) -> FileSystem:
        """The file system `name`, ready to be used; `cap` is the index of its tree's capability."""
