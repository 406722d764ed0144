"""XN's own structures on the disk: where they are and what they look like.

    block 0             superblock, in its first sector
    1 … 8               catalogue: 4 entries in each sector
    9 … 9 + F - 1       free map: 504 bytes of bits in each sector
    …                   what libFSes allocate
    last block          second superblock

FORMAT-1  Every sector is complete in itself, with its own checksum: a write that a crash cuts leaves whole sectors.
FORMAT-2  The free map never shows a block as free to which something durable points (it may show too much in use).
FORMAT-3  The superblock says `clean` only between an orderly shutdown, or what makes up for one, and the next start.
FORMAT-4  Of the two superblocks the one with the higher sequence number and a right checksum counts.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

from xok_host.abi.calls import CATALOGUE_ENTRY
from xok_host.abi.declare import Structure, array, chars, u32, u64
from xok_host.abi.errors import BadDisk
from xok_host.abi.types import BLOCK, BLOCK_LIMIT, SECTOR, SECTORS

VERSION = 1
"""Of the disk's format."""
MAGIC = b"XN disk\0"
MIN_BLOCKS = 64

SUPERBLOCK = Structure(
    "superblock",
    chars("magic", 8, "`XN disk` and a zero"),
    u32("version", "of the format: 1"),
    u32("checksum", "CRC-32 of the sector with this field zero"),
    u64("sequence", "rises with each write of a superblock"),
    chars("identity", 16, "random, given when the disk was formatted"),
    u64("nblocks", "blocks of the disk, this one included"),
    u64("catalogue", "first catalogue block"),
    u64("catalogue_blocks"),
    u64("freemap", "first free-map block"),
    u64("freemap_blocks"),
    u64("first", "first block that can be allocated"),
    u32("clean", "1: shut down in order; 0: in use, or crashed"),
    u32("next_type", "lowest type id that was never given out"),
    u64("session", "random, not 0, while in use; what logs report of other sessions is not heard (thesis 4.6)"),
    u32("surplus", "1: the free map may show too much in use: after a crash the disk was started without a walk"),
    u32("walk", "1: it is being repaired: if that does not come to its end, the trees are walked before it is used"),
    size=SECTOR,
)

CATALOGUE_MAGIC = 0x7A43_4E58
ENTRIES_PER_SECTOR = 4
CATALOGUE_SECTOR = Structure(
    "catalogue sector",
    u32("magic", "`XNCz`"),
    u32("checksum", "CRC-32 of the sector with this field zero"),
    u64("sequence"),
    array("entries", Structure("entry", chars("raw", CATALOGUE_ENTRY.size, "catalogue entry, below")), 4),
    size=SECTOR,
)
CATALOGUE_BLOCKS = 8
CATALOGUE_LIMIT = CATALOGUE_BLOCKS * SECTORS * ENTRIES_PER_SECTOR
"""Roots and types on one disk."""

FREEMAP_HEADER = 8
FREEMAP_SECTOR = Structure(
    "free-map sector",
    u32("checksum", "CRC-32 of the rest of the sector and the sector's index"),
    u32("index", "which sector of the free map this is"),
    chars("bits", SECTOR - FREEMAP_HEADER, "1: in use; bit b % 8 of byte b // 8"),
    size=SECTOR,
)
BITS_PER_SECTOR = (SECTOR - FREEMAP_HEADER) * 8
BYTES_PER_SECTOR = SECTOR - FREEMAP_HEADER


@dataclass(slots=True, frozen=True)
class Superblock:
    """Values of `SUPERBLOCK`."""

    sequence: int
    identity: bytes
    nblocks: int
    catalogue: int
    catalogue_blocks: int
    freemap: int
    freemap_blocks: int
    first: int
    clean: bool
    next_type: int
    session: int = 0
    surplus: bool = False
    walk: bool = False

    def pack(self) -> bytes:
        sector = bytearray(
            SUPERBLOCK.pack(
                magic=MAGIC,
                version=VERSION,
                sequence=self.sequence,
                identity=self.identity,
                nblocks=self.nblocks,
                catalogue=self.catalogue,
                catalogue_blocks=self.catalogue_blocks,
                freemap=self.freemap,
                freemap_blocks=self.freemap_blocks,
                first=self.first,
                clean=int(self.clean),
                next_type=self.next_type,
                session=self.session,
                surplus=int(self.surplus),
                walk=int(self.walk),
            )
        )
        SUPERBLOCK.view(sector).checksum = zlib.crc32(sector)
        return bytes(sector)

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Superblock:
        """Raises BadDisk when the sector is not a superblock of this version."""
        sector = bytearray(raw[:SECTOR])
        fields = SUPERBLOCK.unpack(sector)
        if fields.magic != MAGIC:
            raise BadDisk("it is not an XN disk, which `xok format` makes")
        SUPERBLOCK.view(sector).checksum = 0
        if zlib.crc32(sector) != fields.checksum:
            raise BadDisk("the superblock's checksum is wrong")
        if fields.version != VERSION:
            raise BadDisk(f"format version {fields.version}; this program knows {VERSION}")
        return cls(
            fields.sequence,
            fields.identity,
            fields.nblocks,
            fields.catalogue,
            fields.catalogue_blocks,
            fields.freemap,
            fields.freemap_blocks,
            fields.first,
            bool(fields.clean),
            fields.next_type,
            fields.session,
            bool(fields.surplus),
            bool(fields.walk),
        )

    def renewed(self, *, clean: bool, next_type: int | None = None, session: int | None = None) -> Superblock:
        """To be written next.  A disk that is clean has no session."""
        return replace(
            self,
            sequence=self.sequence + 1,
            clean=clean,
            session=0 if clean else self.session if session is None else session,
            next_type=self.next_type if next_type is None else next_type,
        )


def layout(nblocks: int, identity: bytes, first_type: int) -> Superblock:
    """The superblock of a fresh disk.  Raises BadDisk when the disk is too small or too large."""
    if nblocks < MIN_BLOCKS:
        raise BadDisk(f"{nblocks} blocks of {BLOCK} bytes are too few, XN needs {MIN_BLOCKS}")
    if nblocks > BLOCK_LIMIT:
        raise BadDisk(f"{nblocks} blocks are more than 2**44")
    freemap = 1 + CATALOGUE_BLOCKS
    sectors = (nblocks + BITS_PER_SECTOR - 1) // BITS_PER_SECTOR
    freemap_blocks = (sectors + SECTORS - 1) // SECTORS
    return Superblock(
        1,
        identity,
        nblocks,
        1,
        CATALOGUE_BLOCKS,
        freemap,
        freemap_blocks,
        freemap + freemap_blocks,
        True,
        first_type,
    )


def newest(first: bytes | memoryview, second: bytes | memoryview) -> Superblock:
    """The superblock that counts (FORMAT-4).  Raises BadDisk when neither is good."""
    found: list[Superblock] = []
    problem: BadDisk | None = None
    for raw in (first, second):
        try:
            found.append(Superblock.unpack(raw))
        except BadDisk as error:
            problem = problem or error
    if not found:
        assert problem is not None
        raise problem
    return max(found, key=lambda superblock: superblock.sequence)


def pack_catalogue_sector(sequence: int, entries: list[bytes]) -> bytes:
    sector = bytearray(
        CATALOGUE_SECTOR.pack(magic=CATALOGUE_MAGIC, sequence=sequence, entries=[{"raw": raw} for raw in entries])
    )
    CATALOGUE_SECTOR.view(sector).checksum = zlib.crc32(sector)
    return bytes(sector)


def unpack_catalogue_sector(raw: bytes | memoryview) -> tuple[int, list[bytes]]:
    """Sequence and raw entries.  Raises BadDisk when it is damaged."""
    sector = bytearray(raw[:SECTOR])
    fields = CATALOGUE_SECTOR.unpack(sector)
    CATALOGUE_SECTOR.view(sector).checksum = 0
    if fields.magic != CATALOGUE_MAGIC or zlib.crc32(sector) != fields.checksum:
        raise BadDisk("a catalogue sector is damaged")
    return fields.sequence, [entry.raw for entry in fields.entries]


def pack_freemap_sector(index: int, bits: bytes | bytearray | memoryview) -> bytes:
    body = index.to_bytes(4, "little") + bytes(bits).ljust(BYTES_PER_SECTOR, b"\xff")
    return zlib.crc32(body).to_bytes(4, "little") + body


def unpack_freemap_sector(index: int, raw: bytes | memoryview) -> bytes:
    """The sector's bits.  Raises BadDisk when it is damaged or another sector's."""
    body = bytes(raw[4:SECTOR])
    if zlib.crc32(body) != int.from_bytes(raw[:4], "little") or int.from_bytes(body[:4], "little") != index:
        raise BadDisk(f"free-map sector {index} is damaged")
    return body[4:]


def fresh_sectors(superblock: Superblock) -> dict[int, bytes]:
    """Every sector that formatting writes, by number: all but the superblocks, which come last."""
    sectors: dict[int, bytes] = {}
    for index in range(CATALOGUE_BLOCKS * SECTORS):
        sectors[superblock.catalogue * SECTORS + index] = pack_catalogue_sector(1, [])
    bits = bytearray(superblock.freemap_blocks * SECTORS * BYTES_PER_SECTOR)
    reserve(bits, superblock)
    for index in range(superblock.freemap_blocks * SECTORS):
        at = index * BYTES_PER_SECTOR
        sectors[superblock.freemap * SECTORS + index] = pack_freemap_sector(index, bits[at : at + BYTES_PER_SECTOR])
    return sectors


def reserve(bits: bytearray | memoryview, superblock: Superblock) -> None:
    """Mark XN's own blocks, the last block, and what lies beyond the disk as in use."""
    for db in range(superblock.first):
        bits[db >> 3] |= 1 << (db & 7)
    end = superblock.nblocks - 1
    while end & 7:
        bits[end >> 3] |= 1 << (end & 7)
        end += 1
    start = end >> 3
    bits[start:] = b"\xff" * (len(bits) - start)
    last = superblock.nblocks - 1
    bits[last >> 3] |= 1 << (last & 7)
