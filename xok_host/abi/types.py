"""Names for the things that must not be mixed.

Every quantity that crosses the boundary between a libOS and xokd is one of these.  On disk and in shared memory all
integers are little-endian and unsigned.

Disk addresses follow chapter 8 of the thesis: a `da` names device, block and byte in one 64-bit integer, so that a
pointer to an element inside a block (an embedded inode, say) is as cheap as a pointer to the block.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NewType

BLOCK = 4096
"""Bytes in a block, the unit of allocation and of the registry."""
SECTOR = 512
"""Bytes in a sector, the unit of atomic writing and of durability."""
SECTORS = BLOCK // SECTOR
ALL_SECTORS = (1 << SECTORS) - 1
"""Sector mask of a whole block."""

CHUNK_PAGES = 1024
"""Pages in one arena chunk.  A page number is `chunk * CHUNK_PAGES + slot`."""
CHUNK_BYTES = CHUNK_PAGES * BLOCK

ENVIRONMENT_UID_BASE = 0x7000_0000
"""First uid of the range that environments run under: above systemd's container range, below nothing in use."""
ENVIRONMENT_LIMIT = 4096
"""Most environments alive at once."""

BlockNumber = NewType("BlockNumber", int)
"""Block on one device, below 2**44."""
DiskAddress = NewType("DiskAddress", int)
"""`da`: device (8 bits), block (44 bits), byte in the block (12 bits)."""
DeviceNumber = NewType("DeviceNumber", int)
"""Active XN disk, counted from 1."""
TypeId = NewType("TypeId", int)
PageNumber = NewType("PageNumber", int)
EnvId = NewType("EnvId", int)

_BLOCK_BITS = 44
_OFFSET_BITS = 12
BLOCK_LIMIT = 1 << _BLOCK_BITS

TYPE_NIL = TypeId(0)
TYPE_XN_DB = TypeId(1)
"""Plain data: no pointers, the writer's business."""
TYPE_XN_TYPE = TypeId(2)
"""Blocks that hold an imported template."""
TYPE_FIRST_LIBFS = TypeId(16)


class Right(IntFlag):
    """What a capability allows on the objects whose guard names it."""

    READ = 1
    WRITE = 2
    GRANT = 4
    """May delegate a copy (with fewer rights) to another environment."""


class LockMode(IntEnum):
    """Registry locks; many may share, one may exclude."""

    SHARED = 1
    EXCLUSIVE = 2


class Flag(IntFlag):
    """State bits of a registry entry, `RegistryEntry.flags`."""

    VALID = 1
    """The page holds the block's contents."""
    READING = 2
    META = 4
    """Written by xokd alone."""
    QUARANTINE = 8
    """Prefetched: type and parent unknown, readable by nobody yet."""
    ATTACHED = 16
    """The disk may hold a pointer to this block that survives a crash."""
    ROOT = 32
    WILL_FREE = 64
    TEMPORARY = 128
    """Belongs to a file system that is not meant to survive; never ordered."""


def disk_address(dev: int, db: int, offset: int = 0) -> DiskAddress:
    """Pack a `da`.  `offset` is in bytes and below `BLOCK`."""
    return DiskAddress(dev << (_BLOCK_BITS + _OFFSET_BITS) | db << _OFFSET_BITS | offset)


def da_device(da: int) -> DeviceNumber:
    return DeviceNumber(da >> (_BLOCK_BITS + _OFFSET_BITS) & 0xFF)


def da_block(da: int) -> BlockNumber:
    return BlockNumber(da >> _OFFSET_BITS & BLOCK_LIMIT - 1)


def da_offset(da: int) -> int:
    """Byte inside the block."""
    return da & BLOCK - 1


def da_key(da: int) -> int:
    """Device and block as one integer: the registry's key."""
    return da >> _OFFSET_BITS


def page_chunk(page: int) -> int:
    return page // CHUNK_PAGES


def page_slot(page: int) -> int:
    return page % CHUNK_PAGES
