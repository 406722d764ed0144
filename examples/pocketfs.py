"""A file system in 150 lines: docs/tutorial.md goes through it step by step.

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
import stat
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from libfs.api import Attr, StatFs, refusal
from libfs.contents import block_at, block_of, blocks_for, bytes_of, cut, one_more
from libfs.flat import Flat
from xok_host.abi.blocks import Blocks
from xok_host.abi.calls import Op, OpKind
from xok_host.abi.declare import Structure, array, chars, pad, u32, u64
from xok_host.abi.install import install_type
from xok_host.abi.ops import in_blocks
from xok_host.abi.record import record
from xok_host.abi.template import Template
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, TYPE_XN_DB
from xok_host.abi.udf import META, Function

TABLE = 32
"""Blocks of the table: 255 files and the directory."""
NAME_MAX, EXTENTS = 184, 18

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


class File(record(FILE, "ino")):
    """One sector of the table; `ino` is its number."""

    @property
    def place(self) -> tuple[int, int]:
        """Its block of the table, and the partition there."""
        return divmod(self.ino, SECTORS)


class PocketFS(Flat):
    """One mounted file system."""

    name_max = NAME_MAX

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self.blocks = blocks
        self.root_ino = blocks.root[0] * SECTORS
        self.sectors = range(self.root_ino, self.root_ino + TABLE * SECTORS)
        table = b"".join(blocks.read((db, 0), db) for db in blocks.root)
        found = [File.unpack(table[at * SECTOR :][:SECTOR], ino=ino) for at, ino in enumerate(self.sectors)]
        used = sorted((file for file in found if file.mode), key=lambda file: file.stamp)
        self.files = {file.ino: file for file in used}
        self.names = {file.name: file.ino for file in used if file.name}  # of two the younger
        for ino in self.files.keys() - self.names.values():
            self.drop(self.files[ino])  # PFS-3

    def cross(self, file: File, ops: Sequence[Op] = ()) -> None:
        """The file becomes as given, with what `ops` allocate, free and publish (PFS-1)."""
        write = (file.place[1] * SECTOR, file.pack())
        self.blocks.transact([*ops, self.blocks.op(OpKind.MODIFY, file.place, writes=[write])])
        self.files[file.ino] = file

    # ---- names

    def create(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0) -> Attr:
        self.check_new(name, mode)
        ino = next((ino for ino in self.sectors if ino not in self.files), None)
        if ino is None:
            raise refusal(errno.ENOSPC)
        now = time.time_ns()
        self.cross(File(ino, mode, uid, gid, generation=now >> 10 & 0xFFFF_FFFF, mtime=now, stamp=now, name=name))
        self.names[name] = ino
        return self.getattr(ino)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        ino, other = self.check_rename(name, new_name, flags)
        if ino == other:
            return
        self.cross(replace(self.files[ino], name=new_name, stamp=time.time_ns()))
        self.names[new_name] = self.names.pop(name)
        if other is not None:
            self.fsync(None)  # the new name is durable before what had it goes (PFS-3)
            self.leave(self.files[other])

    def unlink(self, parent: int, name: bytes) -> None:
        self.leave(self.files[self.find(name)])
        del self.names[name]

    def leave(self, file: File) -> None:
        """It has no name any more: it goes now, or with its last user."""
        if file.ino in self.opens:
            self.cross(replace(file, name=b""))
        else:
            self.drop(file)

    def last_release(self, ino: int) -> None:
        if not self.files[ino].name:
            self.drop(self.files[ino])

    def drop(self, file: File) -> None:
        """The sector is free, and the blocks."""
        self.shrink(replace(file, mode=0), 0)
        del self.files[file.ino]

    # ---- files

    def getattr(self, ino: int) -> Attr:
        if ino not in self.files:
            raise refusal(errno.ESTALE)
        return Attr.of(ino, self.files[ino])

    def read(self, ino: int, offset: int, size: int) -> list[memoryview]:
        return [memoryview(bytes_of(self.blocks, self.files[ino], offset, size))]

    def write(self, ino: int, offset: int, data: bytes) -> int:
        if offset > self.files[ino].size:
            self.setattr(ino, size=offset)
        for index, at, piece in in_blocks(offset, data):
            self.write_block(self.files[ino], index, at, piece)
        return len(data)

    def write_block(self, file: File, index: int, at: int, piece: bytes) -> None:
        """A new page for the file's block `index`, which XN puts in place of the old one, or a new block with it."""
        page = block_of(self.blocks, file, index)
        page[at : at + len(piece)] = piece
        kind, extents = OpKind.PUBLISH, file.extents
        if not block_at(extents, index):
            kind, extents = OpKind.ALLOC, one_more(extents, self.blocks.free, file.ino * 1021, EXTENTS)
        size = max(file.size, index * BLOCK + at + len(piece))
        put = self.blocks.put(kind, file.place, block_at(extents, index), page)
        self.cross(replace(file, size=size, mtime=time.time_ns(), extents=extents), [put])

    def shrink(self, after: File, keep: int) -> None:
        """The file becomes as given, with the first `keep` blocks that it had; the others are free."""
        kept, gone = cut(self.files[after.ino].extents, keep)
        free = [self.blocks.op(OpKind.FREE, after.place, db=db, count=count, type=TYPE_XN_DB) for db, count in gone]
        self.cross(replace(after, extents=kept), free)

    def change(self, ino: int, size: int | None = None, atime: int | None = None, **changes: int) -> None:
        """What `setattr` asks for; a time of reading is not kept."""
        size = self.files[ino].size if size is None else size
        if size - self.files[ino].size > self.statfs().free * BLOCK:
            raise refusal(errno.ENOSPC)
        while (at := self.files[ino].size) < size:  # no holes
            self.write(ino, at, bytes(min(BLOCK, size - at)))
        self.shrink(replace(self.files[ino], size=size, **changes), blocks_for(size))

    def statfs(self) -> StatFs:
        free, spare = self.blocks.free_count(), len(self.sectors) - len(self.files)
        return StatFs(BLOCK, self.blocks.free.nblocks, free, free, len(self.sectors), spare, NAME_MAX)

    def fsync(self, ino: int | None, datasync: bool = False) -> None:
        self.blocks.sync()


def mount(env: Any, dev: int, name: str, cap: int) -> PocketFS:
    env.call("type_mount", dev, data=f"{name}.type".encode())
    return PocketFS(Blocks(env, dev, name, cap))
