"""The patch program of C-FFS: mends what a crash, or a damaged disk, left in a volume (docs/cffs.md section 4).

XN runs it while the volume is in no other use, hands it its error log, and writes what it proposes only when a walk
over everything finds the tree sound (docs/xn.md).  It changes

* a link count that is not the number of the names: it becomes that number;
* an inode that nothing names any more: its slot is freed, and with it its blocks.  A directory only if it is empty;
* with `--force`, what is lost anyway: names that lead nowhere, pointers to blocks that cannot be the file's or cannot
  be read (the file has a hole there), sectors that make no sense, directories without a name, whatever is in them.

MEND-1  Each run works on the log that XN gives it, and is run again for what its changes bring to light.
"""

from __future__ import annotations

import argparse
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

from libfs.cffs import layout as l
from libfs.cffs import sector
from xok_host.abi.calls import FOUND_ERROR, ErrorKind, FoundError, unpack_errors
from xok_host.abi.types import BLOCK, SECTOR, SECTORS, Right, da_block, da_offset, disk_address

_LOG_BYTES = FOUND_ERROR.size * 512
_ADDRESS = (1 << 56) - 1
_NLINK = l.INODE.offset("nlink")
_FLAGS = l.INODE.offset("flags")
_EXTENTS = l.INODE.offset("extents")
_TREE = l.INODE.offset("tree")
_IFMT, _IFDIR = 0xF000, 0x4000
_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")


class Mender:
    """One run over the error log."""

    def __init__(self, env: Any, dev: int, name: str, cap: int, *, force: bool) -> None:
        self._env = env
        self._dev = dev
        self._name = name
        self._cap = cap
        self._force = force
        self._blocks: dict[int, bytearray] = {}
        self.done: Counter[str] = Counter()
        self.left: list[str] = []

    def run(self) -> None:
        mend = {
            ErrorKind.OVER_COUNT: self._over_count,
            ErrorKind.UNDER_COUNT: self._set_count,
            ErrorKind.DANGLING: self._dangling,
            ErrorKind.UDF: self._malformed,
            ErrorKind.DOUBLE: self._pointer,
            ErrorKind.RANGE: self._pointer,
            ErrorKind.TYPE: self._pointer,
            ErrorKind.UNREADABLE: self._pointer,
        }
        benign = (ErrorKind.OVER_COUNT, ErrorKind.UNDER_COUNT)
        for error in self.errors():
            if error.kind not in mend or not (error.parent or error.da):
                self.left.append(f"block {error.db}: {error.kind.word} in what only XN writes")
            elif error.kind not in benign and not self._force:
                self.left.append(f"block {error.db}: {error.kind.word}; --force drops what is lost")
            else:
                mend[error.kind](error)

    def errors(self) -> list[FoundError]:
        """The whole log."""
        found: list[FoundError] = []
        while True:
            data = self._name.encode()
            part = self._env.call("read_errors", self._dev, len(found), cap=self._cap, data=data, out_bytes=_LOG_BYTES)
            if not part.data:
                return found
            found += unpack_errors(part.data)

    # ---- blocks

    def _block(self, db: int) -> bytearray:
        held = self._blocks.get(db)
        if held is None:
            da = disk_address(self._dev, db)
            held = bytearray(self._env.call("patch_read", da, cap=self._cap, out_bytes=BLOCK).data)
            self._blocks[db] = held
        return held

    def _sector(self, db: int, number: int) -> bytearray:
        return self._block(db)[number * SECTOR : (number + 1) * SECTOR]

    def _put(self, db: int, at: int, data: bytes | bytearray) -> None:
        self._block(db)[at : at + len(data)] = data
        self._env.call("patch_write", disk_address(self._dev, db) + at, cap=self._cap, data=bytes(data))

    # ---- counts

    def _set_count(self, error: FoundError) -> None:
        self._put(da_block(error.da), da_offset(error.da) + _NLINK, _U32.pack(error.references))
        self.done["link counts corrected"] += 1

    def _over_count(self, error: FoundError) -> None:
        if error.references:
            self._set_count(error)
            return
        db, at = da_block(error.da), da_offset(error.da)
        number, slot = at // SECTOR, at % SECTOR // l.INODE_BYTES
        inode = bytes(self._block(db)[at : at + l.INODE_BYTES])
        if _U16.unpack_from(inode)[0] & _IFMT == _IFDIR and not self._force and not self._empty(inode):
            self.left.append(f"inode {db << 5 | number << 2 | slot} is a directory that nothing names, and not empty")
            return
        data = self._sector(db, number)
        sector.drop(data, slot)
        self._put(db, number * SECTOR, data)
        self.done["files without a name freed"] += 1

    def _empty(self, inode: bytes) -> bool:
        """Whether a directory's blocks hold neither names nor inodes."""
        for db in self._directory_blocks(inode):
            for number in range(SECTORS):
                header = self._sector(db, number)[: l.HEADER_BYTES]
                if header[0] and (header[2] or header[3]):
                    return False
        return True

    def _directory_blocks(self, inode: bytes) -> Iterator[int]:
        flags = _U16.unpack_from(inode, _FLAGS)[0]
        if flags & l.INLINE:
            return
        if flags & l.DEPTH_MASK:
            yield from self._node_blocks(_U64.unpack_from(inode, _TREE)[0], l.DEPTH_MASK)
            return
        for number in range(l.DIRECT):
            _, count, start = l.EXTENT_STRUCT.unpack_from(inode, _EXTENTS + number * l.EXTENT_STRUCT.size)
            yield from range(start, start + count)

    def _node_blocks(self, db: int, depth: int) -> Iterator[int]:
        """`depth`: levels that there can be, whatever the nodes say."""
        for number in range(SECTORS):
            data = self._sector(db, number)
            for index in range(min(data[3], l.SECTOR_ENTRIES)):
                _, count, start = l.EXTENT_STRUCT.unpack_from(data, l.HEADER_BYTES + index * l.EXTENT_STRUCT.size)
                if not data[1]:
                    yield from range(start, start + count)
                elif depth:
                    yield from self._node_blocks(start, depth - 1)

    # ---- what is lost

    def _dangling(self, error: FoundError) -> None:
        """Drop the names, in the block that has them, of an inode that is not there."""
        ino = (error.da & _ADDRESS) >> 7
        db = error.parent
        for number in range(SECTORS):
            data = self._sector(db, number)
            key = db << 3 | number
            try:
                names = [name for name, target, _, _ in sector.scan(bytes(data), key) if target == ino]
            except ValueError:
                continue
            for name in names:
                sector.remove(data, sector.find_of(data, name, key, ino))
                self.done["names that led nowhere dropped"] += 1
            if names:
                self._put(db, number * SECTOR, data)

    def _malformed(self, error: FoundError) -> None:
        """A sector that was never used takes its place."""
        self._put(error.parent, error.part * SECTOR, bytes(SECTOR))
        self.done["malformed sectors cleared"] += 1

    def _pointer(self, error: FoundError) -> None:
        """Take the block out of whatever points to it in the parent."""
        for number in range(SECTORS):
            data = self._sector(error.parent, number)
            before = bytes(data)
            if data[0] == l.NODE_MAGIC:
                self._drop_entries(data, error.db)
            elif data[0] == l.DIR_MAGIC:
                for slot in range(1, l.SLOTS + 1):
                    if data[2] >> slot & 1:
                        _drop_pointer(data, slot * l.INODE_BYTES, error.db)
            if data != before:
                self._put(error.parent, number * SECTOR, data)
                self.done["pointers to lost blocks dropped"] += 1

    @staticmethod
    def _drop_entries(data: bytearray, db: int) -> None:
        size = l.EXTENT_STRUCT.size
        count = min(data[3], l.SECTOR_ENTRIES)
        entries = [bytes(data[l.HEADER_BYTES + i * size : l.HEADER_BYTES + (i + 1) * size]) for i in range(count)]
        kept = [entry for entry in entries if not _covers(entry, db)]
        if len(kept) < count:
            data[3] = len(kept)
            data[l.HEADER_BYTES :] = b"".join(kept).ljust(SECTOR - l.HEADER_BYTES, b"\0")


def _covers(entry: bytes | bytearray, db: int) -> bool:
    _, count, start = l.EXTENT_STRUCT.unpack(entry)
    return bool(start <= db < start + max(1, count))


def _drop_pointer(data: bytearray, at: int, db: int) -> None:
    """In the inode at `at`: an extent, or its tree."""
    flags = _U16.unpack_from(data, at + _FLAGS)[0]
    if flags & l.INLINE:
        return
    if flags & l.DEPTH_MASK:
        if _U64.unpack_from(data, at + _TREE)[0] == db:
            _U16.pack_into(data, at + _FLAGS, flags & ~l.DEPTH_MASK)
            data[at + _EXTENTS : at + l.INODE_BYTES] = bytes(l.INODE_BYTES - _EXTENTS)
        return
    size = l.EXTENT_STRUCT.size
    for place in range(at + _EXTENTS, at + _EXTENTS + l.DIRECT * size, size):
        if any(data[place : place + size]) and _covers(data[place : place + size], db):
            data[place : place + size] = bytes(size)


def main(env: Any, argv: list[str]) -> int:
    """The libOS that `xok repair NAME` runs on a C-FFS."""
    options = argparse.ArgumentParser(prog="patch")
    options.add_argument("name", help="of the file system")
    options.add_argument("--dev", type=int, default=1)
    options.add_argument("--force", action="store_true", help="drop what is lost")
    wanted = options.parse_args(argv)
    both = Right.READ | Right.WRITE
    cap = next(held.index for held in env.caps if held.name == wanted.name and held.rights & both == both)
    mender = Mender(env, wanted.dev, wanted.name, cap, force=wanted.force)
    mender.run()
    for what, number in mender.done.items():
        print(f"{what}: {number}", flush=True)
    for what in mender.left:
        print(f"left as it is: {what}", flush=True)
    return 0
