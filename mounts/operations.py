"""FUSE requests answered by a library file system.

One method a request, in pyfuse3's terms; each is a thin translation to the libFS's synchronous calls.  A libFS call
works on what is in core and raises `NotInCore` before it has changed anything when a block is missing; `_run` fetches
and calls again.  A defect costs one request, never the mount.

Inode numbers are the libFS's own, except that FUSE wants 1 for the root.

OPS-1  What only this mount changes, the kernel may keep as long as it likes.  Of a file system that others change
       as well (`shared`) it keeps nothing: names and attributes it asks for each time, and with the attributes it sees
       whether the pages that it has of an open file are still good.  Opening a file drops them.  So what another
       mount has answered is seen here by whatever is asked later, and nobody waits for an invalidation.
OPS-2  Of such a file system a handle says which inode it is of, not only the number: others may have removed the file
       and used the number again.  What is written with O_APPEND goes to the end as it is now, not as the kernel knew
       it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from mounts.errors import errno_of
from mounts.invalidate import Invalidator
from mounts.lookups import LookupCounts

T = TypeVar("T")

FUSE_ROOT = pyfuse3.ROOT_INODE
MAX_FETCHES = 256
"""Rounds of fetching one request may need: more than the deepest path of any one structure."""
CACHE_SECONDS = 3600.0
"""How long the kernel may keep names and attributes: until we invalidate them."""
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_DOTS = 2
"""The cookie of ".."; a libFS's own cookies are beyond it, and it lists neither "." nor ".."."""
_SETUID_BITS = stat.S_ISUID | stat.S_ISGID
_INO_BITS = 49
"""Of a handle of a shared file system; above them are those of the generation, and whether it appends."""
_INO_MASK = (1 << _INO_BITS) - 1
_GENERATION_MASK = (1 << 14) - 1
_APPENDS = 1 << 63


class VolumeOperations(pyfuse3.Operations):  # type: ignore[misc]
    """One mounted file system.

    `fs` follows the libFS interface (docs/libfs.md); `not_in_core` is the exception class it raises for a fetch.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, fs: Any, not_in_core: type[Exception]) -> None:
        super().__init__()
        self.fs = fs
        self._not_in_core = not_in_core
        self._root = fs.root_ino
        self._shared = bool(getattr(fs, "shared", False))
        self._cache_seconds = 0.0 if self._shared else CACHE_SECONDS
        self._keeps_pages = not self._shared
        self.lookups = LookupCounts(self._forgotten)
        self._privileged: dict[int, int] = {}
        self._opens: dict[int, int] = {}
        """How often each file of a shared file system is open."""
        self._seen: dict[int, tuple[int, int, int]] = {}
        """Of open files: ctime up to which the kernel's pages are good, with mtime and size as it knows them."""
        self._invalidator = Invalidator(lambda inode: pyfuse3.invalidate_inode(inode, attr_only=False))
        fs.on_invalidate = self.invalidate

    # ---- translation

    async def _run(self, operation: Callable[..., T], *args: Any, **named: Any) -> T:
        for _ in range(MAX_FETCHES):
            try:
                return operation(*args, **named)
            except self._not_in_core as missing:
                try:
                    await self.fs.afetch(missing.requests)  # type: ignore[attr-defined]
                except Exception as error:
                    raise FUSEError(errno_of(error)) from error
            except Exception as error:
                raise FUSEError(errno_of(error)) from error
        raise FUSEError(errno.EIO)

    def _in(self, ino: int) -> int:
        return self._root if ino == FUSE_ROOT else ino

    def _out(self, ino: int) -> int:
        return FUSE_ROOT if ino == self._root else ino

    def _attributes(self, attr: Any) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = self._out(attr.ino)
        entry.generation = attr.generation
        entry.entry_timeout = self._cache_seconds
        entry.attr_timeout = self._cache_seconds
        entry.st_mode = attr.mode
        entry.st_nlink = attr.nlink
        entry.st_uid = attr.uid
        entry.st_gid = attr.gid
        entry.st_rdev = attr.rdev
        entry.st_size = attr.size
        entry.st_blksize = 4096
        entry.st_blocks = attr.blocks
        entry.st_atime_ns = attr.atime_ns
        entry.st_mtime_ns = attr.mtime_ns
        entry.st_ctime_ns = attr.ctime_ns
        if self._seen and (seen := self._seen.get(attr.ino)) is not None and seen[1:] != (attr.mtime_ns, attr.size):
            self._seen[attr.ino] = (attr.ctime_ns, attr.mtime_ns, attr.size)  # the kernel drops the pages
        return entry

    def _entry(self, attr: Any) -> EntryAttributes:
        """The reply to a request that names an inode: counted."""
        self.lookups.add(attr.ino)
        return self._attributes(attr)

    def _forgotten(self, ino: int) -> None:
        forget = getattr(self.fs, "forget", None)
        if forget is not None:
            forget(ino)

    # ---- handles (OPS-2)

    def _handle(self, attr: Any, flags: int) -> int:
        ino: int = attr.ino
        if not self._shared:
            return ino
        return ino | (attr.generation & _GENERATION_MASK) << _INO_BITS | (_APPENDS if flags & os.O_APPEND else 0)

    def _of(self, handle: int) -> int:
        """The inode number of a handle."""
        return handle & _INO_MASK if self._shared else handle

    def _checked(self, handle: int) -> Any:
        """The attributes of a handle's inode, which is still the one that was opened.  As operations raise."""
        attr = self.fs.getattr(handle & _INO_MASK)
        if (attr.generation ^ handle >> _INO_BITS) & _GENERATION_MASK:
            raise OSError(errno.ESTALE, "the file has been removed")
        return attr

    def _read(self, handle: int, offset: int, size: int) -> Any:
        if not self._shared:
            return self.fs.read(handle, offset, size)
        return self.fs.read(self._checked(handle).ino, offset, size)

    def _write(self, handle: int, offset: int, data: bytes) -> int:
        ino = handle
        if self._shared:
            attr = self._checked(handle)
            ino = attr.ino
            if handle & _APPENDS:
                offset = attr.size
        written: int = self.fs.write(ino, offset, data)
        return written

    def invalidate(self, ino: int, names: Sequence[bytes] = ()) -> None:
        """The libFS says that another environment changed `ino` (and, for a directory, these names)."""
        if self._shared and ino not in self._opens:
            return  # OPS-1: what is open may also be mapped
        if ino in self.lookups or ino == self._root:
            for name in names:
                pyfuse3.invalidate_entry_async(self._out(ino), name, ignore_enoent=True)
            self._invalidator.add(self._out(ino))

    # ---- names

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._run(self.fs.lookup, self._in(parent_inode), name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self.lookups.forget(self._in(ino), count)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        attr = await self._run(self.fs.create, self._in(parent_inode), name, _regular(mode), ctx.uid, ctx.gid)
        self.fs.open(attr.ino)
        self._opened(attr)
        return FileInfo(fh=self._handle(attr, flags), keep_cache=self._keeps_pages), self._entry(attr)

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        attr = await self._run(
            self.fs.create, self._in(parent_inode), name, _regular(mode), ctx.uid, ctx.gid, rdev=rdev
        )
        return self._entry(attr)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        attr = await self._run(self.fs.mkdir, self._in(parent_inode), name, stat.S_IMODE(mode), ctx.uid, ctx.gid)
        return self._entry(attr)

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        attr = await self._run(self.fs.symlink, self._in(parent_inode), name, target, ctx.uid, ctx.gid)
        return self._entry(attr)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(await self._run(self.fs.link, self._in(inode), self._in(new_parent_inode), new_name))

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._run(self.fs.unlink, self._in(parent_inode), name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._run(self.fs.rmdir, self._in(parent_inode), name)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise FUSEError(errno.EINVAL)
        await self._run(
            self.fs.rename,
            self._in(parent_inode_old),
            name_old,
            self._in(parent_inode_new),
            name_new,
            flags,
        )

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return bytes(await self._run(self.fs.readlink, self._in(inode)))

    # ---- attributes

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        attr = await self._run(self.fs.getattr, self._in(inode))
        if self._seen and attr.ino in self._seen:
            attr = await self._with_good_pages(attr)
        return self._attributes(attr)

    async def _with_good_pages(self, attr: Any) -> Any:
        """The attributes of an open file, and the kernel has no page that is older.

        It sees by size and mtime whether pages are old; who sets mtime back shows only in ctime."""
        while (seen := self._seen.get(attr.ino)) is not None:
            if seen[0] == attr.ctime_ns or seen[1:] != (attr.mtime_ns, attr.size):
                break
            await trio.to_thread.run_sync(self._drop_pages, self._out(attr.ino), abandon_on_cancel=True)
            if attr.ino in self._seen:
                self._seen[attr.ino] = (attr.ctime_ns, attr.mtime_ns, attr.size)
            attr = await self._run(self.fs.getattr, attr.ino)
        return attr

    @staticmethod
    def _drop_pages(inode: int) -> None:
        """In a thread: this waits for requests that the loop has to answer."""
        with contextlib.suppress(OSError):
            pyfuse3.invalidate_inode(inode, attr_only=False)

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        ino = self._in(inode)
        changes: dict[str, int] = {}
        if fields.update_mode:
            changes["mode"] = attr.st_mode
        if fields.update_uid:
            changes["uid"] = attr.st_uid
        if fields.update_gid:
            changes["gid"] = attr.st_gid
        if fields.update_size:
            changes["size"] = attr.st_size
        if fields.update_atime:
            changes["atime"] = attr.st_atime_ns
        if fields.update_mtime:
            changes["mtime"] = attr.st_mtime_ns
        if ("uid" in changes or "gid" in changes or "size" in changes) and "mode" not in changes:
            old = await self._run(self.fs.getattr, ino)
            if stat.S_ISREG(old.mode) and old.mode & _SETUID_BITS:
                changes["mode"] = _without_privilege(old.mode)
        return self._attributes(await self._run(self.fs.setattr, ino, **changes))

    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return True  # the kernel checks permissions: the mount has default_permissions

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        answer = await self._run(self.fs.statfs)
        data = StatvfsData()
        data.f_bsize = data.f_frsize = answer.block_size
        data.f_blocks = answer.blocks
        data.f_bfree = answer.free
        data.f_bavail = answer.available
        data.f_files = answer.files
        data.f_ffree = data.f_favail = answer.files_free
        data.f_namemax = answer.name_max
        return data

    # ---- files

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        ino = self._in(inode)
        if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY:
            await self._run(self.fs.setattr, ino, size=0)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            attr = await self._run(self.fs.getattr, ino)
            if attr.mode & _SETUID_BITS:
                self._privileged[ino] = attr.mode
        attr = await self._run(self._open, ino)
        return FileInfo(fh=self._handle(attr, flags), keep_cache=self._keeps_pages)

    def _open(self, ino: int) -> Any:
        attr = self.fs.getattr(ino)
        self.fs.open(ino)
        self._opened(attr)
        return attr

    def _opened(self, attr: Any) -> None:
        if self._shared:
            self._opens[attr.ino] = self._opens.get(attr.ino, 0) + 1
            self._seen.setdefault(attr.ino, (attr.ctime_ns, attr.mtime_ns, attr.size))

    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:
        pages = await self._run(self._read, fh, off, size)
        if len(pages) == 1:
            return pages[0]
        return b"".join(pages)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        if self._privileged and (mode := self._privileged.pop(self._of(fh), None)) is not None:
            await self._run(self.fs.setattr, self._of(fh), mode=_without_privilege(mode))
        return await self._run(self._write, fh, off, buf)

    async def flush(self, fh: int) -> None:
        # What `write` answered needs nothing at close.  ENOSYS tells the kernel not to ask again.
        raise FUSEError(errno.ENOSYS)

    async def release(self, fh: int) -> None:
        ino = self._of(fh)
        await self._run(self.fs.release, ino)
        if self._opens and ino in self._opens:
            self._opens[ino] -= 1
            if not self._opens[ino]:
                del self._opens[ino], self._seen[ino]

    async def fsync(self, fh: int, datasync: bool) -> None:
        try:
            await self.fs.afsync(self._of(fh), datasync)
        except Exception as error:
            raise FUSEError(errno_of(error)) from error

    # ---- directories

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self._in(inode)

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        cookie = start_id
        for number, (name, ino) in enumerate(((b".", fh), (b"..", self.fs.parent(fh))), 1):
            if start_id < number:
                attr = await self._run(self.fs.getattr, ino)
                if not pyfuse3.readdir_reply(token, name, self._attributes(attr), number):
                    return
        if cookie <= _DOTS:
            cookie = 0
        while True:
            entries = await self._run(self._some_entries, fh, cookie)
            if not entries:
                return
            for name, attr, cookie in entries:
                if not pyfuse3.readdir_reply(token, name, self._attributes(attr), cookie):
                    return
                self.lookups.add(attr.ino)  # the kernel counts all names but "." and ".."

    def _some_entries(self, ino: int, cookie: int) -> list[tuple[bytes, Any, int]]:
        """A restartable portion of a directory: all of it is in core, or `NotInCore` is raised."""
        found = []
        for entry in self.fs.readdir(ino, cookie):
            found.append(entry)
            if len(found) == 64:
                break
        return found

    async def releasedir(self, fh: int) -> None:
        return None

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.fsync(fh, datasync)

    # ---- extended attributes: not supported.  ENOSYS makes the kernel say so itself, and spares a request each write
    # (it looks for security.capability).

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENOSYS)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        raise FUSEError(errno.ENOSYS)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        raise FUSEError(errno.ENOSYS)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        raise FUSEError(errno.ENOSYS)


def _regular(mode: int) -> int:
    """A mode without file type means a regular file."""
    return mode if stat.S_IFMT(mode) else mode | stat.S_IFREG


def _without_privilege(mode: int) -> int:
    """`mode` after somebody wrote: no setuid, and no setgid on what group may execute."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode
