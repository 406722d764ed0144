"""Numbers of the calls, and the form of their operands and results.  What each call does: `calltable`.

A call has up to four scalar operands (`a0` … `a3`), a capability index, operand bytes, and gives an error code, two
scalars (`r0`, `r1`) and result bytes.  XN's calls carry chapter 8's names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from itertools import chain

from xok_host.abi import errors as e
from xok_host.abi.declare import Structure, chars, u32, u64


class CallNumber(IntEnum):
    NULL = 1
    PAGE_ALLOC = 10
    PAGE_FREE = 11
    CHUNK_MAP = 12
    PIN = 13
    UNPIN = 14
    INSTALL_MOUNT = 30
    TYPE_IMPORT = 31
    RESERVE_TYPE = 32
    MOUNT = 33
    TYPE_MOUNT = 34
    UNINSTALL_MOUNT = 35
    READ_AND_INSERT = 40
    INSERT_ATTR = 41
    INSERT_AND_READ = 42
    DELETE_ATTR = 43
    WRITEBACK = 44
    FLUSH = 45
    TRANSACT = 46
    READB = 47
    MARK_DIRTY = 48
    WRITEBACKV = 49
    READ_ATTR = 50
    READ_CATALOGUE = 51
    DEV_LIST = 52
    INFO = 53
    FINDFREE = 54
    LIST_WRITEABLE = 55
    ROOT = 56
    GET_REFCNT = 57
    GET_NOWNS = 58
    UDF_ENUM = 59
    LOCK = 60
    UNLOCK = 61
    WRITEB = 62
    ALLOC = 63
    FREE = 64
    ADD_EDGE = 65
    SET_TYPE = 66
    MOVE = 67
    SWAP = 68
    FILTER_INSERT = 70
    FILTER_REMOVE = 71
    READ_ERRORS = 80
    PATCH_READ = 81
    PATCH_WRITE = 82


class OpKind(IntEnum):
    """Operations of a transaction (`TRANSACT`)."""

    MODIFY = 1
    """Change bytes of one partition; what it owns and references stays, or balances over the transaction."""
    ALLOC = 2
    """Allocate an extent and change the parent's partition so that it owns it."""
    FREE = 3
    """Change the parent's partition so that it no longer owns the extent, and free it."""
    PUBLISH = 4
    """Give owned data blocks new contents: pages of the caller's own arena."""
    SET_TYPE = 5
    """Change a union's discriminator (4.2): what it owns stays as it is."""
    WITNESS = 6
    """Show a block to the protected methods (6.4) of the blocks that the transaction changes; it needs READ."""
    WRITEB = 7
    """Change bytes that no UDF reads: of plain data in core, or of a metadata block outside all partitions."""
    ADD_EDGE = 8
    """MODIFY, and the partition gains a reference to the element whose address is `db`."""
    DROP_EDGE = 9
    """MODIFY, and the partition loses a reference to the element whose address is `db`."""
    MOVE = 10
    """MODIFY, and the partition gains an extent that a partition of the block at address `page` loses."""


TEMPORARY_ROOT = 1 << 32
"""INSTALL_MOUNT, with the type: the tree is not meant to survive (4.4)."""


class OpFlag(IntFlag):
    ZERO = 1
    """ALLOC: the blocks' first contents are zeros."""
    PAGES = 2
    """ALLOC: `page` and the pages after it are the blocks' first contents."""
    DEPENDENTS = 4
    """The first vector names partitions (u32 each) that depend on what changes, of a type whose partitions overlap."""


class EntryFlag(IntFlag):
    CHAIN = 1
    """Do not start unless the entry before succeeded."""


class Event(IntEnum):
    """Completions with cookie 0: things that happen to an environment.  `r0` and `r1` are per event."""

    LOCK_WANTED = 1
    """Another environment wants the lock on `r0` in mode `r1`: flush, and let go before the deadline."""
    LOCK_LOST = 2
    """The deadline passed; the lock on `r0` is gone."""
    PAGES_WANTED = 3
    """xokd is short of pages: give up `r0` of them."""
    STOP = 4
    """Finish, flush and exit."""


OP_HEADER = struct.Struct("<BBHIQQIIQ")
"""kind, flags, number of vectors, partition id, parent da, first block, count, type id, page: 40 bytes."""
VECTOR_HEADER = struct.Struct("<II")
"""Offset in the parent block, number of bytes; the bytes follow, padded to eight."""
EXTENT = struct.Struct("<QII")
"""First block, count, and (for reads) partition id or (for dirty marks) sector mask."""

MAX_OPS = 64
"""Operations in one transaction."""
MAX_WITNESSES = 32
"""Blocks that one transaction may show to protected methods."""
MAX_DEPENDENTS = 512
"""Partitions that the operations of one transaction may name as dependents."""
MAX_VECTORS = 64
"""Vectors in one operation."""
MAX_EXTENTS = 1024
"""Extents in one operand list."""


@dataclass(slots=True)
class Op:
    """One operation of a transaction (Figure 8-1's `xn_op`, with the kind made explicit).

    `da` is the address of the parent metadata block, `own_id` its partition; `writes` are (offset in that block,
    bytes).  `db`, `count`, `type` name the extent of ALLOC, FREE and MOVE, and what PUBLISH fills from `page` on.
    `xok_host.abi.ops` builds operations under chapter 8's names.
    """

    kind: OpKind
    da: int
    own_id: int = 0
    db: int = 0
    count: int = 0
    type: int = 0
    page: int = 0
    flags: int = 0
    writes: Sequence[tuple[int, bytes]] = ()
    dependents: Sequence[int] = ()
    """Other partitions that the writes may concern, if partitions overlap."""

    def pack(self) -> bytes:
        writes, flags = self.writes, self.flags
        if self.dependents:
            writes = [(0, struct.pack(f"<{len(self.dependents)}I", *self.dependents)), *writes]
            flags |= OpFlag.DEPENDENTS
        header = OP_HEADER.pack(
            self.kind,
            flags,
            len(writes),
            self.own_id,
            self.da,
            self.db,
            self.count,
            self.type,
            self.page,
        )
        if not writes:
            return header
        parts = [header]
        for offset, data in writes:
            parts.append(VECTOR_HEADER.pack(offset, len(data)))
            parts.append(bytes(data))
            parts.append(b"\0" * (-len(data) % 8))
        return b"".join(parts)


def pack_transaction(ops: Iterable[Op]) -> bytes:
    return b"".join([op.pack() for op in ops])


def pack_extents(extents: Iterable[tuple[int, int, int]]) -> bytes:
    listed = list(extents)
    return struct.pack("<" + "QII" * len(listed), *chain.from_iterable(listed))


def unpack_extents(data: bytes) -> list[tuple[int, int, int]]:
    if len(data) % EXTENT.size or len(data) // EXTENT.size > MAX_EXTENTS:
        raise e.BadCall(f"an extent list has {EXTENT.size} bytes an extent and at most {MAX_EXTENTS} of them")
    return list(EXTENT.iter_unpack(data))


CATALOGUE_FIELDS = Structure(
    "catalogue entry",
    chars("name", 64, "UTF-8, zeros behind it; empty: no entry"),
    u64("db", "first block"),
    u32("count", "blocks"),
    u32("type", "type id: of a root, or that the type has"),
    u64("capability", "of the tree"),
    u32("kind", "1 root, 2 type, 3 reserved type"),
    u32("uid", "owner"),
    u64(
        "flags",
        "bit 0: reconstruction tainted the tree; bit 1: the tree is temporary (never set on the disk); "
        "bits 32 to 63: type id that raw blocks will have",
    ),
)
CATALOGUE_ENTRY = struct.Struct("<64sQIIQIIQ")
"""`CATALOGUE_FIELDS`, for speed."""
assert CATALOGUE_ENTRY.size == CATALOGUE_FIELDS.size


@dataclass(slots=True, frozen=True)
class CatalogueEntry:
    """A root or a type on one device (4.5)."""

    name: str
    db: int
    count: int
    type: int
    capability: int
    kind: int
    uid: int
    flags: int

    ROOT = 1
    TYPE = 2
    RESERVED = 3

    def pack(self) -> bytes:
        return CATALOGUE_ENTRY.pack(
            self.name.encode(),
            self.db,
            self.count,
            self.type,
            self.capability,
            self.kind,
            self.uid,
            self.flags,
        )

    @classmethod
    def unpack(cls, data: bytes) -> CatalogueEntry:
        name, *rest = CATALOGUE_ENTRY.unpack(data)
        return cls(name.rstrip(b"\0").decode(), *rest)


class ErrorKind(IntEnum):
    """What reconstruction finds wrong (4.5)."""

    OVER_COUNT = 1
    """A count above the number of references: benign."""
    UNDER_COUNT = 2
    """A count below the number of references."""
    DANGLING = 3
    """A reference to what is no element with a count."""
    DOUBLE = 4
    """A block that is owned twice."""
    RANGE = 5
    """An extent outside the disk, or in XN's own structures."""
    TYPE = 6
    """A block of a type that does not exist, or a type that cannot be loaded."""
    UDF = 7
    """A partition of which the type's functions say nothing valid."""
    UNREADABLE = 8
    """A block that the disk does not give."""
    FREE_MAP = 9
    """A sector of XN's own free map."""

    @property
    def word(self) -> str:
        return self.name.lower().replace("_", "-") if self is not ErrorKind.FREE_MAP else "free map"


FOUND_ERROR_FIELDS = Structure(
    "error",
    u32("kind", "ErrorKind"),
    u32("part", "UDF: the partition"),
    u64("db", "the block that it is about"),
    u64("parent", "the metadata block that says so; 0: the root catalogue"),
    u64("da", "the element, of counts and references; else 0"),
    u64("count", "what the element counts; RANGE: blocks of the extent"),
    u64("references", "what it should count"),
)
FOUND_ERROR = struct.Struct("<2I5Q")
assert FOUND_ERROR.size == FOUND_ERROR_FIELDS.size


@dataclass(slots=True, frozen=True)
class FoundError:
    """One line of the error log, as READ_ERRORS gives it."""

    kind: ErrorKind
    db: int
    parent: int = 0
    da: int = 0
    count: int = 0
    references: int = 0
    part: int = 0

    def pack(self) -> bytes:
        return FOUND_ERROR.pack(
            self.kind, self.part, self.db, self.parent, self.da, self.count & (1 << 64) - 1, self.references
        )

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> FoundError:
        kind, part, db, parent, da, count, references = FOUND_ERROR.unpack(data)
        return cls(ErrorKind(kind), db, parent, da, count, references, part)


def unpack_errors(data: bytes) -> list[FoundError]:
    """What READ_ERRORS gives."""
    return [FoundError.unpack(data[at : at + FOUND_ERROR.size]) for at in range(0, len(data), FOUND_ERROR.size)]
