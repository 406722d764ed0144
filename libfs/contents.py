"""The contents of a file without holes: a list of extents, whose last block the file's size may leave partly unused.

For libFSes on `xok_host.abi.blocks`, which keep a file's extents whole and write a block at a time.  A file is whatever
has the three attributes of `Stored`.

CON-1  Extents are values: what changes them gives others, and the file is as it was until its owner has written them.
CON-2  Bytes beyond the size are zeros, whatever the block has there.
CON-3  Every block is reached through the file's own `place`, so what the file does not own is not read.
"""

from __future__ import annotations

import errno
from typing import Any, Protocol

from libfs.api import refusal
from xok_host.abi.blocks import Blocks, Place
from xok_host.abi.types import BLOCK

ROOM = 64
"""Free blocks in a row where a new extent starts, if there are: the file can grow there."""

Extents = tuple[tuple[int, int], ...]
"""(first block, count) in the order of the file; no count is 0."""


class Stored(Protocol):
    """A file that has contents."""

    @property
    def place(self) -> Place:
        """What owns its blocks."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def extents(self) -> Extents: ...


def blocks_for(size: int) -> int:
    """How many blocks so many bytes take."""
    return -(-size // BLOCK)


def block_at(extents: Extents, index: int) -> int:
    """The disk's block that is the file's block `index`; 0 beyond the end."""
    for start, count in extents:
        if index < count:
            return start + index
        index -= count
    return 0


def one_more(extents: Extents, free: Any, near: int, most: int) -> Extents:
    """With a block more: the one behind the last if it is free, else one with room to go on, else any.

    `free` is the free map (`Blocks.free`), `near` where a first block is looked for, modulo the disk; nobody has been
    told of the choice yet.  Raises ENOSPC, and EFBIG when it would be more than `most` extents."""
    if extents:
        *kept, (start, count) = extents
        near = start + count
        if free.is_free(near):
            return (*kept, (start, count + 1))
    near %= free.nblocks
    found = free.find_run(near, ROOM) or free.find_run(near, 1)
    if not found:
        raise refusal(errno.ENOSPC)
    if len(extents) >= most:
        raise refusal(errno.EFBIG)
    return (*extents, (found, 1))


def cut(extents: Extents, keep: int) -> tuple[Extents, Extents]:
    """The first `keep` blocks, and the others."""
    kept, gone = [], []
    for start, count in extents:
        stay = min(count, keep)
        keep -= stay
        if stay:
            kept.append((start, stay))
        if stay < count:
            gone.append((start + stay, count - stay))
    return tuple(kept), tuple(gone)


def block_of(blocks: Blocks, file: Stored, index: int) -> bytearray:
    """A copy of one block, zeros where the file has nothing (CON-2).  Raises as `Blocks.read`."""
    db = block_at(file.extents, index)
    raw = blocks.read(file.place, db)[: max(0, file.size - index * BLOCK)] if db else b""
    return bytearray(raw.ljust(BLOCK, b"\0"))


def bytes_of(blocks: Blocks, file: Stored, offset: int, size: int) -> bytes:
    """Up to `size` bytes from `offset` on, fewer at the end of the file; what is not in core comes in one crossing."""
    end = min(offset + size, file.size)
    indices = range(offset // BLOCK, blocks_for(end))
    blocks.bring(file.place, [db for index in indices if (db := block_at(file.extents, index))])
    data = b"".join(block_of(blocks, file, index) for index in indices)
    return data[offset % BLOCK :][: max(0, end - offset)]
