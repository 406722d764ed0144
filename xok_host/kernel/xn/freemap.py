"""The free map of one device: one bit a block, 1 = in use or waiting to be freed.

It lives in shared memory, where every libOS sees it.  FREEMAP-1: a bit that was cleared here may still be set on the
disk, and one that was set here reaches the disk with the flush that first makes the block's contents durable, so the
disk never shows a block as free to which something durable points (FORMAT-2).
FREEMAP-2: blocks of temporary trees are in use here and free on the disk, so a restart has them back whatever happened.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import cython

from xok_host.abi.types import SECTORS
from xok_host.abi.views import FreeMapView
from xok_host.kernel.xn.format import (
    BITS_PER_SECTOR,
    BYTES_PER_SECTOR,
    pack_freemap_sector,
    reserve,
    unpack_freemap_sector,
)

from .format import Superblock


class FreeMap:
    """The in-core map and which of its sectors must be written."""

    __slots__ = ("_bytes", "_dirty", "_temporary", "_view", "free", "memory", "nblocks", "start")

    def __init__(self, memory: memoryview, nblocks: int, start: int) -> None:
        self.memory = memory
        self._bytes = memory
        self.nblocks = nblocks
        self.start = start
        """First block of the map on the disk."""
        self._dirty: set[int] = set()
        self._temporary: bytearray | None = None
        """The blocks of FREEMAP-2, made at the first one."""
        self._view = FreeMapView(memory, nblocks)
        self.free = 0

    def load_sector(self, index: int, raw: bytes | memoryview) -> None:
        """Take over what the disk says.  Raises BadDisk."""
        bits = unpack_freemap_sector(index, raw)
        at = index * BYTES_PER_SECTOR
        room = len(self.memory) - at
        if room > 0:
            self.memory[at : at + min(room, len(bits))] = bits[:room]

    def loaded(self, superblock: Superblock) -> None:
        """After the last sector: count, and never trust the disk about XN's own blocks."""
        reserve(self.memory, superblock)
        used = int.from_bytes(self.memory[: (self.nblocks + 7) // 8], "little").bit_count()
        self.free = (self.nblocks + 7) // 8 * 8 - used

    def replace(self, bits: bytes | bytearray) -> None:
        """Take another map as a whole (after reconstruction); all of it is dirty."""
        self.memory[: len(bits)] = bits[: len(self.memory)]
        self._dirty.update(range((self.nblocks + BITS_PER_SECTOR - 1) // BITS_PER_SECTOR))

    def is_free(self, db: cython.ulonglong, count: cython.ulonglong = 1) -> cython.bint:
        """Whether the whole extent lies on the disk and is free."""
        if db > self.nblocks or count > self.nblocks - db:
            return False
        memory = self._bytes
        block: cython.ulonglong
        for block in range(db, db + count):
            if memory[block >> 3] >> (block & 7) & 1:
                return False
        return True

    def allocate(self, db: cython.ulonglong, count: cython.ulonglong, temporary: cython.bint = False) -> None:
        """Mark as in use.  The caller has asked `is_free`."""
        memory = self._bytes
        block: cython.ulonglong
        for block in range(db, db + count):
            memory[block >> 3] |= 1 << (block & 7)
        if temporary:
            if self._temporary is None:
                self._temporary = bytearray((self.nblocks + BITS_PER_SECTOR - 1) // BITS_PER_SECTOR * BYTES_PER_SECTOR)
            for block in range(db, db + count):
                self._temporary[block >> 3] |= 1 << (block & 7)
        self.free -= count
        self._touch(db, count)

    def release(self, db: cython.ulonglong, count: cython.ulonglong) -> None:
        """Mark as free."""
        memory = self._bytes
        block: cython.ulonglong
        for block in range(db, db + count):
            memory[block >> 3] &= ~(1 << (block & 7)) & 0xFF
        if self._temporary is not None:
            for block in range(db, db + count):
                self._temporary[block >> 3] &= ~(1 << (block & 7)) & 0xFF
        self.free += count
        self._touch(db, count)

    def find(self, hint: int, count: int) -> int | None:
        return self._view.find_run(hint if hint < self.nblocks else 0, count)

    def _touch(self, db: cython.ulonglong, count: cython.ulonglong) -> None:
        first = db // BITS_PER_SECTOR
        last = (db + count - 1) // BITS_PER_SECTOR
        if first == last:
            self._dirty.add(first)
        else:
            self._dirty.update(range(first, last + 1))

    def take_dirty(self) -> list[tuple[int, bytes]]:
        """(sector on the disk, 512 bytes) of every dirty sector, which are clean afterwards."""
        out = []
        for index in sorted(self._dirty):
            at = index * BYTES_PER_SECTOR
            bits = self.memory[at : at + BYTES_PER_SECTOR]
            if self._temporary is not None:
                hidden = self._temporary[at : at + BYTES_PER_SECTOR]
                bits = memoryview(bytes(b & ~h for b, h in zip(bits, hidden, strict=False)))
            raw = pack_freemap_sector(index, bits)
            out.append((self.start * SECTORS + index, raw))
        self._dirty.clear()
        return out

    def mark_dirty(self, sector: int) -> None:
        """A write of that sector of the disk failed."""
        self._dirty.add(sector - self.start * SECTORS)

    @property
    def dirty(self) -> int:
        return len(self._dirty)


def mark_used(bits: bytearray, db: cython.ulonglong, count: cython.ulonglong) -> list[int]:
    """Set the bits of an extent, which lies in the map; gives the blocks whose bits were set already."""
    taken: list[int] = []
    block: cython.ulonglong
    end: cython.ulonglong = db + count
    first: cython.ulonglong = db + 7 >> 3
    last: cython.ulonglong = end >> 3
    edges: Iterable[int] = range(db, end)
    if last > first and not any(bits[first:last]):
        bits[first:last] = b"\xff" * (last - first)
        edges = chain(range(db, first << 3), range(last << 3, end))
    for block in edges:
        if bits[block >> 3] >> (block & 7) & 1:
            taken.append(block)
        bits[block >> 3] |= 1 << (block & 7)
    return taken
