"""A file system in 200 lines: docs/tutorial.md goes through it step by step.

    xok mkfs NAME --type examples/pocketfs.py
    xok mount NAME DIR --program examples/pocketfs.py

A file is one sector of the table: its name, its attributes, and the extents with its contents.  The table is the root
extent.  Its first sector is the one directory; a file's number is the number of its sector on the disk.

PFS-1  An operation is one transaction on one sector.  Sectors reach the disk whole: after a crash each file is as it
       was before an operation or after it.
PFS-2  In core all sectors are `files`, all names `names`.  They change when XN has accepted the change, not before.
PFS-3  A file without a name was open when its name went.  Of two with one name the younger took it, and the older
       was about to go.  A crash may leave such files; mounting removes them.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from libfs.api import RENAME_NOREPLACE, Attr, StatFs, Synchronous
from xok_host.abi.blocks import Blocks
from xok_host.abi.calls import Op, OpFlag, OpKind
from xok_host.abi.declare import Structure, array, chars, pad, u32, u64
from xok_host.abi.install import install_type
from xok_host.abi.template import Template
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB
from xok_host.abi.udf import META, Function

TABLE = 32
"""Blocks of the table: 255 files and the directory."""
NAME_MAX, EXTENTS = 184, 18
ROOM = 64
"""Free blocks in a row where a new extent starts, if there are."""

# ---- on the disk

EXTENT = Structure("extent", u64("start", "first block"), u32("count", "blocks; 0: none"), pad(4))
FILE = Structure(
    "file",
    u32("mode", "as stat shows it; 0: the sector is free"),
    u32("uid"),
    u32("gid"),
    u32("generation", "tells apart files that had the same sector"),
    u64("size", "bytes"),
    u64("mtime", "ns since 1970"),
    u64("stamp", "when it got its name"),
    chars("name", NAME_MAX),
    array("extents", EXTENT, EXTENTS),
    size=SECTOR,
)


def template(name: str) -> bytes:
    """What XN is told: partition p of a block is its sector p, and it owns the extents that it lists."""
    access, owns = Function(), Function()
    access.emit(access.part * SECTOR, SECTOR, 0)
    file = owns.at(FILE, META + owns.part * SECTOR)
    with owns.for_each(EXTENT, file.address("extents"), EXTENTS) as extent:
        with owns.if_(extent.count != 0):
            owns.emit(extent.start, extent.count, int(TYPE_XN_DB))
    return Template(name=name.encode(), parts=SECTORS, access=access.finish(), owns=owns.finish()).pack()


def make(env: Any, dev: int, name: str, uid: int, gid: int) -> None:
    """The type, the table, and in it the directory."""
    kind = f"{name}.type"  # of this file system alone: nobody else says what its blocks mean
    table = env.call("install_mount", dev, 0, TABLE, install_type(env, dev, kind, template(kind)), data=name.encode())
    blocks = Blocks(env, dev, name, table.r1)
    root = File(table.r0 * SECTORS, stat.S_IFDIR | 0o755, uid, gid, name=b"/", mtime=time.time_ns())
    blocks.transact([blocks.op(OpKind.MODIFY, root.place, writes=[(0, root.pack())])])
    blocks.sync()


# ---- in core


@dataclass(frozen=True)
class File:
    """One sector of the table."""

    ino: int
    mode: int
    uid: int
    gid: int
    generation: int = 0
    size: int = 0
    mtime: int = 0
    stamp: int = 0
    name: bytes = b""
    extents: tuple[tuple[int, int], ...] = ()

    @property
    def place(self) -> tuple[int, int]:
        return divmod(self.ino, SECTORS)

    def pack(self) -> bytes:
        values = {key: value for key, value in vars(self).items() if key not in ("ino", "extents")}
        return FILE.pack(**values, extents=[{"start": start, "count": count} for start, count in self.extents])

    @classmethod
    def unpack(cls, ino: int, raw: bytes) -> File:
        values = vars(FILE.unpack(raw))
        extents = tuple((extent.start, extent.count) for extent in values.pop("extents") if extent.count)
        return cls(ino, name=values.pop("name").rstrip(b"\0"), extents=extents, **values)

    def block(self, index: int) -> int:
        """The disk block of the file's block `index`; 0 beyond the end."""
        for start, count in self.extents:
            if index < count:
                return start + index
            index -= count
        return 0


class PocketFS(Synchronous):
    """One mounted file system."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.files: dict[int, File] = {}
        self.names: dict[bytes, int] = {}
        super().__init__()
        self.root_ino = blocks.root[0] * SECTORS
        self.sectors = range(self.root_ino, self.root_ino + TABLE * SECTORS)
        left_over = []
        table = b"".join(blocks.read((db, 0), db) for db in blocks.root)
        found = [File.unpack(ino, table[at * SECTOR :][:SECTOR]) for at, ino in enumerate(self.sectors)]
        for file in sorted((file for file in found if file.mode), key=lambda file: file.stamp):
            self.files[file.ino] = file
            left_over += [self.names[file.name]] if file.name in self.names else []
            self.names[file.name] = file.ino
        left_over += [self.names.pop(b"")] if b"" in self.names else []
        for ino in left_over:
            self.drop(self.files[ino])

    def cross(self, file: File, ops: Sequence[Op] = ()) -> None:
        """The file becomes as given, with what `ops` allocate, free and publish (PFS-1)."""
        write = (file.place[1] * SECTOR, file.pack())
        self.blocks.transact([*ops, self.blocks.op(OpKind.MODIFY, file.place, writes=[write])])
        self.files[file.ino] = file

    # ---- names

    def find(self, name: bytes) -> File:
        if name not in self.names:
            raise refusal(errno.ENOENT)
        return self.files[self.names[name]]

    def lookup(self, parent: int, name: bytes) -> Attr:
        return self.getattr(self.find(name).ino)

    def readdir(self, ino: int, cookie: int) -> Iterator[tuple[bytes, Attr, int]]:
        for child in sorted(self.names.values()):
            if child > max(cookie, self.root_ino):
                yield self.files[child].name, self.getattr(child), child

    def create(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attr:
        ino = next((ino for ino in self.sectors if ino not in self.files), 0)
        if name in self.names or not stat.S_ISREG(mode):
            raise refusal(errno.EEXIST if name in self.names else errno.EPERM)
        if len(name) > NAME_MAX or not ino:
            raise refusal(errno.ENOSPC if len(name) <= NAME_MAX else errno.ENAMETOOLONG)
        now = time.time_ns()
        self.cross(File(ino, mode, uid, gid, now >> 10 & 0xFFFF_FFFF, 0, now, now, name))
        self.names[name] = ino
        return self.getattr(ino)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        file, other = self.find(name), self.files.get(self.names.get(new_name, 0))
        if flags & ~RENAME_NOREPLACE or len(new_name) > NAME_MAX:
            raise refusal(errno.EINVAL if flags else errno.ENAMETOOLONG)
        if other and flags:
            raise refusal(errno.EEXIST)
        if file is other:
            return
        self.cross(replace(file, name=new_name, stamp=time.time_ns()))
        self.names[new_name] = self.names.pop(name)
        if other:
            self.fsync(None)  # the new name is durable before what had it goes (PFS-3)
            self.leave(other)

    def unlink(self, parent: int, name: bytes) -> None:
        self.leave(self.find(name))
        del self.names[name]

    def leave(self, file: File) -> None:
        """It has no name any more: it goes now, or with its last user."""
        if file.ino in self.opens:
            self.cross(replace(file, name=b""))
        else:
            self.drop(file)

    def drop(self, file: File) -> None:
        self.shrink(replace(file, mode=0), 0)
        del self.files[file.ino]

    # ---- files

    def getattr(self, ino: int) -> Attr:
        f = self.files.get(ino)
        if f is None:
            raise refusal(errno.ESTALE)
        times = (f.mtime, f.mtime, f.mtime)
        return Attr(ino, f.generation, f.mode, 1, f.uid, f.gid, 0, f.size, -(-f.size // 512), *times)

    def last_release(self, ino: int) -> None:
        if not self.files[ino].name:
            self.drop(self.files[ino])

    def contents(self, file: File, index: int) -> bytearray:
        """One block of the file; zeros where it has nothing."""
        db = file.block(index)
        raw = self.blocks.read(file.place, db)[: max(0, file.size - index * BLOCK)] if db else b""
        return bytearray(raw.ljust(BLOCK, b"\0"))

    def read(self, ino: int, offset: int, size: int) -> list[memoryview]:
        file = self.files[ino]
        end = min(offset + size, file.size)
        blocks = range(offset // BLOCK, -(-end // BLOCK))
        self.blocks.bring(file.place, [file.block(index) for index in blocks])  # all at once
        data = b"".join(self.contents(file, index) for index in blocks)
        return [memoryview(data)[offset % BLOCK :][: max(0, end - offset)]]

    def write(self, ino: int, offset: int, data: bytes) -> int:
        if offset > self.files[ino].size:
            self.setattr(ino, size=offset)
        for at in range(offset - offset % BLOCK, offset + len(data), BLOCK):
            begin = max(offset, at)
            self.write_block(self.files[ino], begin, data[begin - offset : at + BLOCK - offset])
        return len(data)

    def write_block(self, file: File, offset: int, data: bytes) -> None:
        """A new page for the block, which XN puts in place of the old one, or a new block with it."""
        index, at = divmod(offset, BLOCK)
        page = self.contents(file, index)
        page[at : at + len(data)] = data
        kind, flags, extents = OpKind.PUBLISH, 0, file.extents
        if not file.block(index):
            kind, flags, extents = OpKind.ALLOC, OpFlag.PAGES, self.one_more(file)
        after = replace(file, size=max(file.size, offset + len(data)), mtime=time.time_ns(), extents=extents)
        place = {"db": after.block(index), "count": 1, "type": TYPE_XN_DB, "page": self.blocks.pages(page)[0]}
        self.cross(after, [self.blocks.op(kind, file.place, flags=flags, **place)])

    def one_more(self, file: File) -> tuple[tuple[int, int], ...]:
        """The file's extents with a block more: the next one if it is free, else where there is room to go on."""
        *kept, (start, count) = file.extents or [(file.ino * 1021 % self.blocks.free.nblocks, 0)]
        found = self.blocks.free.find_run(start + count, 1)
        if found == start + count and count:
            return (*kept, (start, count + 1))
        found = self.blocks.free.find_run(start + count, ROOM) or found
        if found is None or len(file.extents) == EXTENTS:
            raise refusal(errno.EFBIG if found else errno.ENOSPC)
        return (*file.extents, (found, 1))

    def shrink(self, after: File, keep: int) -> None:
        """The file becomes as given, with the first `keep` blocks that it had; the others are free."""
        extents, ops = [], []
        for start, count in self.files[after.ino].extents:
            stay = min(count, keep)
            keep -= stay
            if stay:
                extents.append((start, stay))
            if stay < count:
                gone = {"db": start + stay, "count": count - stay, "type": TYPE_XN_DB}
                ops.append(self.blocks.op(OpKind.FREE, after.place, **gone))
        self.cross(replace(after, extents=tuple(extents)), ops)

    def setattr(self, ino: int, *, size: int | None = None, atime: int | None = None, **changes: Any) -> Attr:
        if size is not None:
            if size - self.files[ino].size > self.statfs().free * BLOCK:
                raise refusal(errno.ENOSPC)
            while (at := self.files[ino].size) < size:  # no holes
                self.write(ino, at, bytes(min(BLOCK, size - at)))
            changes = {"mtime": time.time_ns(), **changes, "size": size}
        if "mode" in changes:
            changes["mode"] = stat.S_IFMT(self.files[ino].mode) | stat.S_IMODE(changes["mode"])
        after = replace(self.files[ino], **changes)
        self.shrink(after, -(-after.size // BLOCK))
        return self.getattr(ino)

    def statfs(self) -> StatFs:
        free, spare = self.blocks.free_count(), len(self.sectors) - len(self.files)
        return StatFs(BLOCK, self.blocks.free.nblocks, free, free, len(self.sectors), spare, NAME_MAX)

    def fsync(self, ino: int | None, datasync: bool = False) -> None:
        self.blocks.sync()


def refusal(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def mount(env: Any, dev: int, name: str, cap: int) -> PocketFS:
    env.call("type_mount", dev, data=f"{name}.type".encode())
    return PocketFS(Blocks(env, dev, name, cap))
