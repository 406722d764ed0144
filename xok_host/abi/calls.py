"""The call table: the whole interface between a libOS and xokd.

Each call is declared once.  The client stub, xokd's dispatch, the reference page and the tests of every failure come
from this table.  A call has up to four scalar operands (`a0` … `a3`), a capability index, operand bytes, and gives an
error code, two scalars (`r0`, `r1`) and result bytes.  XN's calls carry chapter 8's names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from xok_host.abi import errors as e


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
    FILTER_INSERT = 70
    FILTER_REMOVE = 71


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


class OpFlag(IntFlag):
    ZERO = 1
    """ALLOC: the blocks' first contents are zeros."""
    PAGES = 2
    """ALLOC: `page` and the pages after it are the blocks' first contents."""


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
MAX_VECTORS = 64
"""Vectors in one operation."""
MAX_EXTENTS = 1024
"""Extents in one operand list."""


@dataclass(slots=True)
class Op:
    """One operation of a transaction (Figure 8-1's `xn_op`, with the kind made explicit).

    `da` is the address of the parent metadata block, `own_id` its partition; `writes` are (offset in that block,
    bytes).  `db`, `count`, `type` name the extent that ALLOC and FREE move, and that PUBLISH fills from `page` on.
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

    def pack(self) -> bytes:
        parts = [
            OP_HEADER.pack(
                self.kind,
                self.flags,
                len(self.writes),
                self.own_id,
                self.da,
                self.db,
                self.count,
                self.type,
                self.page,
            )
        ]
        for offset, data in self.writes:
            parts.append(VECTOR_HEADER.pack(offset, len(data)))
            parts.append(bytes(data))
            parts.append(b"\0" * (-len(data) % 8))
        return b"".join(parts)


def pack_transaction(ops: Iterable[Op]) -> bytes:
    return b"".join(op.pack() for op in ops)


def pack_extents(extents: Iterable[tuple[int, int, int]]) -> bytes:
    return b"".join(EXTENT.pack(*extent) for extent in extents)


def unpack_extents(data: bytes) -> list[tuple[int, int, int]]:
    if len(data) % EXTENT.size or len(data) // EXTENT.size > MAX_EXTENTS:
        raise e.BadCall(f"an extent list has {EXTENT.size} bytes an extent and at most {MAX_EXTENTS} of them")
    return list(EXTENT.iter_unpack(data))


CATALOGUE_ENTRY = struct.Struct("<64sQIIQIIQ")
"""name, first block, blocks, type id, capability id, kind (1 root, 2 type, 3 reserved type), owner uid, flags."""


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


@dataclass(frozen=True)
class Call:
    """One row of the table.  `scalars` names a0…a3, `data` the operand bytes, `gives` the results."""

    number: CallNumber
    scalars: tuple[str, ...] = ()
    data: str = ""
    gives: str = ""
    capability: str = ""
    doc: str = ""
    fails: dict[type[e.XokError], str] = field(default_factory=dict)
    waits: bool = False
    """May complete later than the crossing that submitted it."""

    @property
    def name(self) -> str:
        return self.number.name.lower()


_C = CallNumber
_NAME = "name: UTF-8, at most 64 bytes"

CALLS: tuple[Call, ...] = (
    Call(_C.NULL, doc="Does nothing: the cost of a crossing."),
    Call(
        _C.PAGE_ALLOC,
        ("count",),
        capability="WRITE on a tree",
        gives="r0: pages given; data: u64 page numbers, contiguous runs where possible",
        doc="Pages of the caller's own write arena for what that capability guards.",
        fails={e.BadCapability: "no write right", e.LimitReached: "the environment holds its most pages"},
    ),
    Call(
        _C.PAGE_FREE,
        data="u64 page numbers",
        doc="Give back pages that were never published.",
        fails={e.BadCapability: "a page is not the caller's, or is published"},
    ),
    Call(
        _C.CHUNK_MAP,
        ("chunk",),
        gives="r0: 1 writable, 0 read-only; the descriptor follows on the environment's socket",
        doc="The memory file of one arena chunk, writable only for the environment whose write arena it is.",
        fails={
            e.BadCapability: "no capability of the caller is in the arena's read set",
            e.NotFound: "no such chunk",
        },
    ),
    Call(
        _C.PIN,
        ("da", "generation"),
        capability="READ on the block",
        gives="r0: page",
        doc="Keep the block's present page as it is until unpinned.",
        fails={
            e.NotInCore: "not in the registry or of another generation",
            e.BadCapability: "no read right",
            e.LimitReached: "too many pins",
        },
    ),
    Call(_C.UNPIN, ("page",), doc="Release one pin.", fails={e.NotFound: "the caller has no pin on that page"}),
    Call(
        _C.INSTALL_MOUNT,
        ("dev", "db", "count", "type"),
        data=_NAME,
        gives="r0: first block, r1: index of the new tree capability",
        doc="Allocate an extent, zeroed, and enter it in the root catalogue "
        "under a new tree capability (db 0: XN chooses).",
        fails={
            e.Exists: "name taken",
            e.NotFree: "an extent block is in use",
            e.WrongType: "no such type",
            e.NoSpace: "no room on the disk or in the catalogue",
        },
    ),
    Call(
        _C.TYPE_IMPORT,
        ("dev",),
        data=_NAME,
        gives="r0: type id",
        doc="Turn a catalogue entry whose durable blocks hold a template into a type.",
        fails={
            e.NotFound: "no such entry",
            e.WrongType: "not raw blocks",
            e.Tainted: "the blocks are dirty",
            e.TypeInvalid: "the template fails a check",
        },
    ),
    Call(
        _C.RESERVE_TYPE,
        ("dev",),
        data=_NAME,
        gives="r0: type id",
        doc="A type id ahead of its template, for mutually recursive types.  "
        "An existing reservation of the caller is returned.",
        fails={e.Exists: "name taken", e.NoSpace: "the catalogue is full"},
    ),
    Call(
        _C.MOUNT,
        ("dev",),
        data=_NAME,
        capability="READ on the tree",
        gives="r0: da of the root, r1: blocks; data: catalogue entry",
        doc="Read a root's extent into the registry and give it its catalogue type.",
        fails={
            e.NotFound: "no such root",
            e.BadCapability: "not the tree's",
            e.MediaError: "",
            e.NotClean: "the tree is tainted",
        },
        waits=True,
    ),
    Call(
        _C.TYPE_MOUNT,
        ("dev",),
        data=_NAME,
        gives="r0: type id",
        doc="Load a type into use.",
        fails={e.NotFound: "no such type", e.TypeInvalid: "", e.MediaError: ""},
        waits=True,
    ),
    Call(
        _C.UNINSTALL_MOUNT,
        ("dev",),
        data=_NAME,
        capability="WRITE on the tree",
        doc="Remove a root that owns nothing any more, or a type that nothing uses.",
        fails={e.NotFound: "", e.InUse: "it still owns blocks, or is cached", e.BadCapability: ""},
    ),
    Call(
        _C.READ_AND_INSERT,
        ("dev",),
        data="extents",
        gives="r0: blocks brought in",
        doc="Prefetch into quarantine: readable by nobody until bound to a parent by insert_attr.",
        fails={e.LimitReached: "no pages", e.MediaError: "", e.BadCall: "outside the disk"},
        waits=True,
    ),
    Call(
        _C.INSERT_ATTR,
        ("parent",),
        data="extents (db, count, partition)",
        capability="READ on the parent",
        doc="Bind blocks in quarantine to the parent whose partition owns them: type, guard, arena.",
        fails={e.NotInCore: "", e.NotOwned: "", e.BadCapability: ""},
    ),
    Call(
        _C.INSERT_AND_READ,
        ("parent",),
        data="extents (db, count, partition)",
        capability="READ on the parent",
        gives="r0: disk requests",
        doc="Both stages of a read at once (4.5): bind, then fetch what is not in core.",
        fails={
            e.NotInCore: "the parent is not",
            e.NotOwned: "",
            e.BadCapability: "",
            e.LimitReached: "",
            e.MediaError: "",
        },
        waits=True,
    ),
    Call(
        _C.DELETE_ATTR,
        ("dev",),
        data="extents",
        gives="r0: entries removed",
        doc="Drop clean, unpinned, unlocked entries.",
        fails={e.InUse: "dirty, pinned, locked or in flight"},
    ),
    Call(
        _C.WRITEBACK,
        ("dev",),
        data="extents",
        gives="r0: disk requests, r1: blocks written",
        doc="Write dirty sectors of these blocks.  Anyone may: it changes no contents.  "
        "Completes when written, not durable.",
        fails={e.Tainted: "names the first block to flush", e.NotInCore: "", e.MediaError: ""},
        waits=True,
    ),
    Call(
        _C.FLUSH,
        ("dev",),
        doc="Make all that was written durable, XN's free map included; clears taint and frees what waited.",
        fails={e.MediaError: ""},
        waits=True,
    ),
    Call(
        _C.TRANSACT,
        data="operations",
        capability="WRITE on each block",
        gives="r0: index of the failing operation",
        doc="Several operations over several blocks: all or nothing, in core at once.",
        fails={
            e.NotInCore: "",
            e.BadCapability: "",
            e.Locked: "",
            e.NotFree: "",
            e.NoSpace: "",
            e.BogusUpdate: "",
            e.BogusPartition: "",
            e.UdfFailed: "",
            e.RefcountWrong: "",
            e.WouldCycle: "names what to flush",
            e.WrongType: "",
            e.Refused: "",
            e.LimitReached: "",
        },
    ),
    Call(
        _C.READB,
        ("da", "count"),
        capability="READ on the block",
        gives="data",
        doc="Copy bytes of one cached block.",
        fails={e.NotInCore: "", e.BadCapability: ""},
    ),
    Call(
        _C.MARK_DIRTY,
        ("dev",),
        data="extents (db, count, sector mask)",
        doc="Data pages of the caller's own arena were changed in place.",
        fails={e.NotInCore: "", e.BadCapability: "not the caller's page"},
    ),
    Call(
        _C.READ_ATTR,
        ("da",),
        gives="data: registry entry",
        fails={e.NotInCore: ""},
        doc="One registry entry.",
    ),
    Call(
        _C.READ_CATALOGUE,
        ("dev",),
        gives="data: catalogue entries",
        doc="The root and type catalogues.",
        fails={e.NotFound: ""},
    ),
    Call(_C.DEV_LIST, gives="data: u64 device numbers", doc="Active XN disks."),
    Call(
        _C.INFO,
        ("dev",),
        gives="data: u64 blocks, free blocks, catalogue block, free-map block, free-map bytes",
        doc="Where XN keeps its structures.",
        fails={e.NotFound: ""},
    ),
    Call(
        _C.FINDFREE,
        ("dev", "hint", "count"),
        gives="r0: first block",
        doc="First free extent from hint on.",
        fails={e.NoSpace: ""},
    ),
    Call(
        _C.LIST_WRITEABLE,
        ("dev",),
        gives="data: u64 blocks",
        doc="Dirty blocks that may be written now.",
        fails={e.NotFound: ""},
    ),
    Call(_C.ROOT, ("dev",), gives="r0: superblock's block", doc="XN's superblock.", fails={e.NotFound: ""}),
    Call(
        _C.GET_REFCNT,
        ("da",),
        capability="READ",
        gives="r0",
        doc="Reference count of an element.",
        fails={e.NotInCore: ""},
    ),
    Call(
        _C.GET_NOWNS,
        ("da",),
        capability="READ",
        gives="r0",
        doc="Partitions of the block's type.",
        fails={e.NotInCore: ""},
    ),
    Call(
        _C.UDF_ENUM,
        ("da", "begin", "end"),
        capability="READ",
        gives="data: (db u64, count u64, type u64)",
        doc="What partitions [begin, end) own.",
        fails={e.NotInCore: "", e.BogusPartition: "", e.BadCapability: ""},
    ),
    Call(
        _C.LOCK,
        ("da", "mode"),
        capability="READ (shared) or WRITE (exclusive) on the block",
        doc="Lock a registry entry.  Holders are asked to let go, and lose it after the deadline.  "
        "Locks die with their holder.",
        fails={e.NotInCore: "", e.BadCapability: "", e.LimitReached: ""},
        waits=True,
    ),
    Call(
        _C.UNLOCK,
        ("da", "mode"),
        doc="Let go, or (mode SHARED) keep only a shared lock.",
        fails={e.NotFound: "not held"},
    ),
    Call(
        _C.FILTER_INSERT,
        data="DPF filter",
        capability="an address",
        gives="r0: filter id",
        doc="Bind packets within the address to the caller's queue.",
        fails={
            e.BadCapability: "outside the address",
            e.Overlap: "",
            e.BadCall: "malformed",
            e.LimitReached: "",
        },
    ),
    Call(_C.FILTER_REMOVE, ("filter",), doc="Remove a filter of the caller's.", fails={e.NotFound: ""}),
)

BY_NUMBER: dict[int, Call] = {call.number: call for call in CALLS}
BY_NAME: dict[str, Call] = {call.name: call for call in CALLS}
