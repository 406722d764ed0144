"""C-FFS on disk: the one declaration of every structure, and the arithmetic of inode numbers (docs/cffs.md section 1).

LAYOUT-1  `ino & 3` is a slot, 1 to 3: never 0.
LAYOUT-2  A sector is complete in itself: what it owns, references and counts follows from its own 512 bytes.
"""

from __future__ import annotations

import struct

from xok_host.abi.declare import Structure, array, chars, nested, pad, u8, u16, u32, u64
from xok_host.abi.types import BLOCK, SECTOR, SECTORS

BLOCK_BYTES = BLOCK

FORMAT_VERSION = 1

DIR_MAGIC = 0xCF
NODE_MAGIC = 0xCE

HEADER_BYTES = 16
INODE_BYTES = 128
SLOTS = 3
NAME_MAX = 255
CHAIN_MAX = 15
LINK_MAX = 65535
SYMLINK_MAX = 4095

SECTOR_HEADER = Structure(
    "cffs-sector",
    u8("magic", "0xCF; 0: the sector was never used"),
    u8("version", "FORMAT_VERSION"),
    u8("used", "bit s: slot s holds an inode"),
    u8("names", "how many name entries"),
    u16("end", "first byte after the names; 0 means 16"),
    pad(2),
    u64("owner", "inode number of the directory that owns this block; 0: the root extent"),
    size=HEADER_BYTES,
    doc="Names follow from byte 16; slots 1, 2, 3 are at 128, 256, 384.",
)

SHARED_HEADER = Structure(
    "cffs-shared-sector",
    u8("magic", "0xCF; 0: the sector was never used"),
    u8("version", "FORMAT_VERSION"),
    u8("used", "bit s: slot s holds an inode"),
    u8("names", "how many name entries"),
    u16("end", "first byte after the names"),
    u16("logical", "number of the block in its directory's table"),
    u64("owner", "inode number of the directory that owns this block; 0: the root extent"),
    size=HEADER_BYTES,
    doc="The sector header of a shared volume.",
)

VERSION_SHIFT = 6

NAME_ENTRY = Structure(
    "cffs-name",
    u8("length", "bytes of the name, 1 to 255"),
    u8("kind", "bits 0-3: file type (st_mode >> 12); 4-5: slot in this sector, 0: elsewhere; 6-7: version"),
    u8("chain", "number of ancestors' inode numbers, 0 to 15; only if elsewhere"),
    doc="If the inode is elsewhere, its number and the chain follow as u64; then the name.",
)

EXTENT = Structure(
    "cffs-extent",
    u32("logical", "first block in the file"),
    u32("count", "blocks"),
    u64("start", "first block on the disk"),
)

DIRECT = 4
INODE = Structure(
    "cffs-inode",
    u16("mode", "as in st_mode"),
    u16("flags", "bits 0-2 tree depth, 3 INLINE, 4-7 table level, 8 GROWING"),
    u32("nlink", "names on disk"),
    u32("uid"),
    u32("gid"),
    u64("size", "bytes; a directory's: how many of its names are directories"),
    u64("mtime", "ns"),
    u64("ctime", "ns"),
    u64("atime", "ns"),
    u32("generation", "changes when the slot is used again"),
    u32("group", "first block of the explicit group / 16"),
    array("extents", EXTENT, DIRECT),
    u64("tree", "extent node, or 0"),
    size=INODE_BYTES,
)

NODE_HEADER = Structure(
    "cffs-node-sector",
    u8("magic", "0xCE; 0: never used"),
    u8("level", "0: leaf"),
    u8("content", "0: data, 1: directory blocks"),
    u8("used", "entries in this sector"),
    size=HEADER_BYTES,
    doc="31 extents follow; above level 0 `start` is a child node and `count` is 1.",
)
MAP_HEADER = Structure(
    "cffs-shared-map-sector",
    u8("magic", "0xCE; 0: not used"),
    u8("level", "0"),
    u8("content", "1"),
    u8("used", "entries in this sector"),
    pad(4),
    u64("owner", "inode number of the directory whose table this is"),
    size=HEADER_BYTES,
    doc="A sector of the one node that a shared volume's directory may have; 31 extents of one block each follow.",
)
SECTOR_ENTRIES = (SECTOR - HEADER_BYTES) // EXTENT.size
NODE_ENTRIES = SECTOR_ENTRIES * SECTORS

INLINE_OFFSET = INODE.offset("extents")
INLINE_BYTES = INODE_BYTES - INLINE_OFFSET

TRUE_BYTES = ((INODE.offset("uid"), INODE.offset("atime")), (INLINE_OFFSET, INODE_BYTES))
"""Where an inode says, besides its mode, what a change of ctime goes with: not its link count, atime and group."""

# Inode flags
DEPTH_MASK = 7
INLINE = 8
LEVEL_SHIFT = 4
LEVEL_MASK = 0xF0
GROWING = 0x100

# Hot paths use these; `Structure` checks them below.
INODE_STRUCT = struct.Struct("<HHIIIQQQQII" + "IIQ" * DIRECT + "Q")
INODE_INLINE_STRUCT = struct.Struct(f"<HHIIIQQQQII{INLINE_BYTES}s")
EXTENT_STRUCT = struct.Struct("<IIQ")
assert INODE_STRUCT.size == INODE.size == INODE_INLINE_STRUCT.size and EXTENT_STRUCT.size == EXTENT.size

DIR_TYPE_NAME = "cffs-dir-1"
NODE_TYPE_NAME = "cffs-extents-1"
SHARED_DIR_TYPE_NAME = "cffs-shared-dir-1"
SHARED_MAP_TYPE_NAME = "cffs-shared-map-1"
SHARED_NODE_TYPE_NAME = "cffs-shared-extents-1"

DIR_SECTOR = Structure(
    "cffs-directory-sector",
    nested("header", SECTOR_HEADER),
    chars("names", INODE_BYTES - HEADER_BYTES, "and on, as far as slots are free"),
    array("slots", INODE, SLOTS, "slot s is the element s - 1"),
)
NODE_SECTOR = Structure("cffs-node-sector", nested("header", NODE_HEADER), array("entries", EXTENT, SECTOR_ENTRIES))
SECTOR_OF = {DIR_TYPE_NAME: DIR_SECTOR, NODE_TYPE_NAME: NODE_SECTOR}
"""What a partition of each type is, with names for every byte."""
assert DIR_SECTOR.size == NODE_SECTOR.size == SECTOR

ROOT_SLOT, ORPHANS_SLOT = 3, 2
ROOT_NAME, ORPHANS_NAME = b"/", b"orphans"

HIDDEN = b"\0"
"""First byte of the names of what has been removed and is still in use: the inode number (8 bytes) follows."""

HIDDEN_BYTES = 9

MAX_LOGICAL = 1 << 32
"""Blocks in the largest file: 16 TiB."""

BUCKET = 8
"""Blocks in a bucket of a directory's table."""
GROWTH_SHIFT = 3
MAX_LEVEL = 6
SHARED_MAX_LEVEL = 1
SHARED_BLOCKS = BUCKET * ((1 << GROWTH_SHIFT * (SHARED_MAX_LEVEL + 1)) - 1) // ((1 << GROWTH_SHIFT) - 1)
"""Blocks in a shared volume's largest directory: so that one node has its whole table."""
assert SHARED_BLOCKS <= NODE_ENTRIES


def ino_of(block: int, sector: int, slot: int) -> int:
    return block << 5 | sector << 2 | slot


def block_of(ino: int) -> int:
    return ino >> 5


def sector_of(ino: int) -> int:
    """Sector in the block."""
    return ino >> 2 & 7


def sector_key(ino: int) -> int:
    """Block and sector as one number: the overlay's key."""
    return ino >> 2


def slot_of(ino: int) -> int:
    return ino & 3


def hidden_name(ino: int) -> bytes:
    """The name that a removed inode keeps while it is in use."""
    return HIDDEN + ino.to_bytes(8, "little")


def newer(kind: int, other: int) -> bool:
    """Of two entries of one name, whether the one with `kind` has replaced the other."""
    return (kind >> VERSION_SHIFT) - (other >> VERSION_SHIFT) & 3 == 1


def table_base(level: int) -> int:
    """First logical block of the table of that level."""
    return BUCKET * ((1 << GROWTH_SHIFT * level) - 1) // ((1 << GROWTH_SHIFT) - 1)


def table_buckets(level: int) -> int:
    return 1 << GROWTH_SHIFT * level


FNV_OFFSET, FNV_PRIME = 0xCBF2_9CE4_8422_2325, 0x0000_0100_0000_01B3


def name_hash(name: bytes) -> int:
    """FNV-1a, 64 bits, folded so that the low bits depend on all of it."""
    value = FNV_OFFSET
    for byte in name:
        value = (value ^ byte) * FNV_PRIME & 0xFFFF_FFFF_FFFF_FFFF
    return value ^ value >> 32


def bucket_base(level: int, name: bytes) -> int:
    """First logical block of the bucket that `name` belongs to."""
    if level == 0:
        return 0
    return table_base(level) + BUCKET * (name_hash(name) & table_buckets(level) - 1)
