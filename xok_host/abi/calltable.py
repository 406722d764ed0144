"""The call table: the whole interface between a libOS and xokd.

Each call is declared once.  The client stub, xokd's dispatch, the reference page (docs/xn.md) and the tests of every
failure come from this table.  TABLE-1: a call fails with what its row or `COMMON` names, and with nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xok_host.abi import errors as e
from xok_host.abi.calls import CallNumber

Fails = dict[type[e.XokError], str]


@dataclass(frozen=True)
class Call:
    """One row of the table.  `scalars` names a0…a3, `data` the operand bytes, `gives` the results."""

    number: CallNumber
    scalars: tuple[str, ...] = ()
    data: str = ""
    gives: str = ""
    capability: str = ""
    doc: str = ""
    fails: Fails = field(default_factory=dict)
    waits: bool = False
    """May complete later than the crossing that submitted it."""

    @property
    def name(self) -> str:
        return self.number.name.lower()


COMMON: Fails = {
    e.BadCall: "there is no such call, or its operands are longer than the ring's data area",
    e.LimitReached: "4096 entries of the environment wait, or all of xokd's memory is in use",
    e.Cancelled: "the entry is chained to one that failed",
}
"""What every call may fail with."""

_C = CallNumber
_NAME = "name: UTF-8, at most 64 bytes"
_BAD_NAME = "the name is empty, too long, not UTF-8 or not printable"
_DEVICE: Fails = {e.NotFound: "there is no such device, or it has failed"}
_SHARE = "as many of the environment's blocks as may be in core wait to be durable; r0: one to write back and flush"
_EXTENTS = "the extent list is malformed, or "
_READABLE: Fails = {
    e.NotFound: "the address is on no active device",
    e.NotInCore: "the block is not in the registry: fetch it first",
    e.BadCapability: "the capability does not allow reading the block",
}
_OPERATION: Fails = {
    e.NotFound: "the address is on no active device",
    e.BadCall: "an operation is malformed, or the call does not take such a one",
    e.BadCapability: "the capability does not allow writing the block",
    e.NotInCore: "a block named is not in the registry: fetch it first",
    e.Locked: "another environment holds the block's exclusive lock",
    e.BogusPartition: "the type has no such partition, or a byte range is not in it",
}
"""What every operation on a partition may fail with; each call adds its own."""
_MODIFICATION: Fails = _OPERATION | {
    e.WrongType: "the block is plain data and has no partitions",
    e.UdfFailed: "a UDF faulted, ran over its budget, or gave malformed output",
    e.DependentsMissing: "partitions overlap, and not all that read the bytes changed are named",
    e.RefcountWrong: "a reference changes and its count does not, or the reverse",
    e.Refused: "the type's acl function or protected method refuses the modification",
}
_CYCLE = "two sectors would wait for one another; r0 is a block to write and flush first"
_BINDING: Fails = {
    e.NotFound: "the parent's address is on no active device",
    e.BadCall: _EXTENTS + "names no blocks, more than 4096, or blocks that no libFS can own",
    e.BadCapability: "the parent's guard does not let the capability read",
    e.WrongType: "the parent is plain data, or the type of a block is not in use: type_mount it",
    e.BogusPartition: "the parent has no such partition",
    e.NotOwned: "the partition does not own the extent",
    e.UdfFailed: "the parent's owns function gives malformed output for what the disk holds, or runs too long for all "
    "the partitions named",
}

CALLS: tuple[Call, ...] = (
    Call(_C.NULL, doc="Does nothing: the cost of a crossing."),
    Call(
        _C.PAGE_ALLOC,
        ("count",),
        capability="READ and WRITE on a tree",
        gives="r0: pages given; data: u64 page numbers, contiguous runs where possible",
        doc="Pages of the caller's own write arena for what that capability guards.",
        fails={
            e.BadCall: "no pages are asked for, or more than a chunk has (1024)",
            e.BadCapability: "there is no such capability, or it lacks a right",
            e.LimitReached: "the environment holds its most unpublished pages, or has pages for its most trees",
        },
    ),
    Call(
        _C.PAGE_FREE,
        data="u64 page numbers",
        doc="Give back pages that were never published.",
        fails={
            e.BadCall: "the numbers are not eight bytes each",
            e.BadCapability: "a page is not the caller's, is published, or is named twice",
        },
    ),
    Call(
        _C.CHUNK_MAP,
        ("chunk",),
        gives="r0: 1 writable, 0 read-only; the descriptor follows on the environment's socket",
        doc="The memory file of one arena chunk, writable only for the environment whose write arena it is.",
        fails={
            e.NotFound: "there is no such chunk",
            e.BadCapability: "no capability of the caller is in the arena's read set",
        },
    ),
    Call(
        _C.PIN,
        ("da", "generation"),
        capability="READ on the block",
        gives="r0: page",
        doc="Keep the block's present page as it is until unpinned.",
        fails=_READABLE
        | {
            e.NotInCore: "the block is not in the registry, or is of another generation",
            e.LimitReached: "the environment, or the page, has its most pins",
        },
    ),
    Call(_C.UNPIN, ("page",), doc="Release one pin.", fails={e.NotFound: "the caller has no pin on that page"}),
    Call(
        _C.INSTALL_MOUNT,
        ("dev", "db", "count", "type"),
        data=_NAME,
        gives="r0: first block, r1: index of the new tree capability",
        doc="Allocate an extent, zeroed, and enter it in the root catalogue "
        "under a new tree capability (db 0: XN chooses).  `type` with TEMPORARY_ROOT (bit 32): a temporary file "
        "system, free of any order, which the next start does not find.",
        fails=_DEVICE
        | {
            e.BadCall: _BAD_NAME + ", or the extent has no blocks or more than 256",
            e.Exists: "the name is taken",
            e.NotFree: "a block of the extent is in use or waits to be freed",
            e.WrongType: "no such type is in use, or the name is reserved for a type and the root temporary",
            e.UdfFailed: "the type's partitions are traced, and would not be empty and apart at that block",
            e.NoSpace: "there is no room on the disk or in the catalogue; r0: blocks that a flush frees",
            e.LimitReached: "the registry is full of blocks that cannot go, the caller has its most capabilities, "
            "or its user the most names",
        },
    ),
    Call(
        _C.TYPE_IMPORT,
        ("dev",),
        data=_NAME,
        gives="r0: type id",
        doc="Turn a catalogue entry whose durable blocks hold a template into a type.",
        fails={
            e.NotFound: "there is no such device or entry",
            e.BadCall: _BAD_NAME,
            e.WrongType: "the entry is not raw blocks",
            e.BadCapability: "no capability of the caller's allows writing the entry's blocks",
            e.NotInCore: "its blocks are not in the registry: mount them",
            e.Tainted: "a block is not durable; r0 names it",
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
        fails=_DEVICE
        | {
            e.BadCall: _BAD_NAME,
            e.Exists: "the name is taken",
            e.NoSpace: "the catalogue is full",
            e.LimitReached: "the caller's user has the most names",
        },
    ),
    Call(
        _C.MOUNT,
        ("dev",),
        data=_NAME,
        capability="READ on the tree",
        gives="r0: da of the root, r1: blocks; data: catalogue entry",
        doc="Read a root's extent into the registry and give it its catalogue type.",
        fails={
            e.NotFound: "there is no such device or root",
            e.BadCall: _BAD_NAME,
            e.BadCapability: "the capability is not the tree's",
            e.NotClean: "reconstruction tainted the tree: it must be repaired first",
            e.WrongType: "the root's type is not in use: type_mount it",
            e.InUse: "a block of it is in quarantine and being read: try again",
            e.LimitReached: "the registry is full of blocks that cannot go",
            e.MediaError: "the device failed to read",
        },
        waits=True,
    ),
    Call(
        _C.TYPE_MOUNT,
        ("dev",),
        data=_NAME,
        gives="r0: type id",
        doc="Load a type into use.",
        fails={
            e.NotFound: "there is no such device or type",
            e.BadCall: _BAD_NAME,
            e.TypeInvalid: "the disk holds a template that fails a check",
            e.MediaError: "the device failed to read",
        },
        waits=True,
    ),
    Call(
        _C.UNINSTALL_MOUNT,
        ("dev",),
        data=_NAME,
        capability="WRITE on the tree",
        doc="Remove a root that owns nothing any more, or a type that nothing uses.",
        fails={
            e.NotFound: "there is no such device or name",
            e.BadCall: _BAD_NAME,
            e.BadCapability: "the capability is not the entry's, or the reservation is another's",
            e.InUse: "the root owns blocks, is locked, pinned or not mounted; or blocks of the type are in core, "
            "or a root has it",
            e.UdfFailed: "the owns function gives malformed output for what the disk holds, or runs too long",
        },
    ),
    Call(
        _C.READ_AND_INSERT,
        ("dev",),
        data="extents (db, count, 0)",
        gives="r0: blocks brought in",
        doc="Prefetch into quarantine: readable by nobody until bound to a parent by insert_attr.",
        fails=_DEVICE
        | {
            e.BadCall: _EXTENTS + "names no blocks, more than 4096, or blocks that no libFS can own",
            e.LimitReached: "the registry is full of blocks that cannot go",
            e.MediaError: "the device failed to read",
        },
        waits=True,
    ),
    Call(
        _C.INSERT_ATTR,
        ("parent",),
        data="extents (db, count, partition)",
        capability="READ on the parent",
        doc="Bind blocks in quarantine to the parent whose partition owns them: type, guard, arena.",
        fails=_BINDING | {e.NotInCore: "the parent or a block is not in the registry"},
    ),
    Call(
        _C.INSERT_AND_READ,
        ("parent",),
        data="extents (db, count, partition)",
        capability="READ on the parent",
        gives="r0: disk requests",
        doc="Both stages of a read at once (4.5): bind, then fetch what is not in core.",
        fails=_BINDING
        | {
            e.NotInCore: "the parent is not in the registry",
            e.LimitReached: "the registry is full of blocks that cannot go",
            e.MediaError: "the device failed to read",
        },
        waits=True,
    ),
    Call(
        _C.DELETE_ATTR,
        ("dev",),
        data="extents (db, count, 0)",
        gives="r0: entries removed",
        doc="Drop clean, unpinned, unlocked entries.",
        fails=_DEVICE
        | {
            e.BadCall: _EXTENTS + "names no blocks, more than 4096, or blocks that no libFS can own",
            e.InUse: "a block is dirty, pinned, locked, in flight, or a root",
        },
    ),
    Call(
        _C.WRITEBACK,
        ("dev", "db", "count", "mask"),
        gives="r0: disk requests, r1: blocks written",
        doc="Write dirty sectors of these blocks (mask 0: all).  Anyone may: it changes no contents.  "
        "Completes when written, not durable.",
        fails=_DEVICE
        | {
            e.BadCall: "the extent is empty or larger than the registry",
            e.Tainted: "a sector waits for others: r0 is a block to write and flush first, r1 the one that waits; "
            "the other sectors are written",
            e.BogusUpdate: "a sector of a log would report what it may not; the other sectors are written",
            e.UdfFailed: "a UDF faulted, ran over its budget, or gave malformed output; the other sectors are written",
            e.LimitReached: "a log would report too much, or too many versions of it are on their way; "
            "the other sectors are written",
            e.NotInCore: "a block is not in the registry; nothing is written",
            e.MediaError: "the device failed to write",
        },
        waits=True,
    ),
    Call(
        _C.WRITEBACKV,
        ("dev",),
        data="extents (db, count, sector mask; 0: all)",
        gives="r0: disk requests, r1: blocks written",
        doc="`writeback` of a list of extents, in as few disk requests as their order on the disk allows.",
        fails=_DEVICE
        | {
            e.BadCall: _EXTENTS + "names more blocks than the registry holds",
            e.Tainted: "a sector waits for others: r0 is a block to write and flush first, r1 the one that waits; "
            "all other sectors are written",
            e.BogusUpdate: "a sector of a log would report what it may not; the other sectors are written",
            e.UdfFailed: "a UDF faulted, ran over its budget, or gave malformed output; the other sectors are written",
            e.LimitReached: "a log would report too much, or too many versions of it are on their way; "
            "the other sectors are written",
            e.NotInCore: "a block is not in the registry; nothing is written",
            e.MediaError: "the device failed to write",
        },
        waits=True,
    ),
    Call(
        _C.FLUSH,
        ("dev",),
        doc="Make all that was written durable, XN's free map included; clears taint and frees what waited.",
        fails=_DEVICE | {e.MediaError: "the device failed to write or flush"},
        waits=True,
    ),
    Call(
        _C.TRANSACT,
        data="operations",
        capability="WRITE on each block",
        gives="r0: number of operations; refused: r0 is the operation at fault, or their number",
        doc="Several operations over several blocks: all or nothing, in core at once.",
        fails=_MODIFICATION
        | {
            e.WrongType: "a block is plain data, or no such type is in use",
            e.NotFree: "a block to allocate is in use, waits to be freed, or is named twice",
            e.BogusUpdate: "what partitions own, or refer to, does not change as the operations say",
            e.WouldCycle: _CYCLE,
            e.LimitReached: "too many blocks are allocated, the registry is full of blocks that cannot go, or "
            + _SHARE,
        },
    ),
    Call(
        _C.WRITEB,
        ("da",),
        data="bytes",
        capability="WRITE on each block",
        gives="r0: blocks changed",
        doc="Change bytes that no UDF reads, from `da` on: plain data in core, or metadata outside all partitions.",
        fails=_OPERATION
        | {
            e.BadCall: "there are no bytes, or more than 64 blocks hold",
            e.BogusPartition: "a UDF reads some of the bytes",
            e.DependentsMissing: "overlapping partitions read some of the bytes",
            e.BogusUpdate: "the type's uses function would say something else, or the bytes are a discriminator",
            e.UdfFailed: "the type's acl function or protected method faulted, or a program that is traced",
            e.Refused: "the type's acl function or protected method refuses the modification",
        },
    ),
    Call(
        _C.ALLOC,
        data="one operation ALLOC",
        capability="WRITE on the parent",
        doc="Allocate an extent and change the parent's partition so that it owns it.",
        fails=_MODIFICATION
        | {
            e.WrongType: "the parent is plain data, or no such type is in use",
            e.NotFree: "a block is in use or waits to be freed",
            e.BogusUpdate: "the partition does not gain exactly that extent",
            e.LimitReached: "more than 4096 blocks, the registry is full of blocks that cannot go, or " + _SHARE,
        },
    ),
    Call(
        _C.FREE,
        data="one operation FREE; or DROP_EDGE, and MODIFY where the count is",
        capability="WRITE on each block",
        doc="Change the parent's partition so that it owns the extent no longer, and free it when no durable pointer "
        "leads to it; or drop one of several references to an element.",
        fails=_MODIFICATION
        | {
            e.BogusUpdate: "the partition does not lose that extent or reference, or what is freed owns blocks",
            e.WouldCycle: _CYCLE,
        },
    ),
    Call(
        _C.ADD_EDGE,
        data="one operation ADD_EDGE, and MODIFY where the count is",
        capability="WRITE on each block",
        doc="Form a reference to an element, whose count rises by one.",
        fails=_MODIFICATION | {e.BogusUpdate: "the partition does not gain that reference", e.WouldCycle: _CYCLE},
    ),
    Call(
        _C.SET_TYPE,
        data="one operation SET_TYPE",
        capability="WRITE on the block",
        doc="Change which type a union is; it owns afterwards what it owned before.",
        fails=_MODIFICATION | {e.BogusUpdate: "what the partition owns would change"},
    ),
    Call(
        _C.MOVE,
        data="operations MODIFY (where the extent is lost) and MOVE (where it is gained)",
        capability="WRITE on each block",
        doc="An extent leaves one partition and becomes another's.",
        fails=_MODIFICATION
        | {
            e.BogusUpdate: "the extent is not lost there and gained here, or it is metadata that a crash could lose",
            e.WouldCycle: _CYCLE,
        },
    ),
    Call(
        _C.SWAP,
        data="two operations MOVE, each from where the other goes",
        capability="WRITE on each block",
        doc="Two partitions of one sector exchange extents.",
        fails=_MODIFICATION
        | {
            e.BogusUpdate: "the extents do not change places",
            e.WouldCycle: "the partitions are in two sectors, neither of which could be written first: "
            "move one extent away, flush, and move both",
        },
    ),
    Call(
        _C.READB,
        ("da", "count"),
        capability="READ on each block",
        gives="r0: bytes; data: the bytes",
        doc="Copy bytes of cached blocks, from `da` on.",
        fails=_READABLE | {e.BadCall: "more than 64 blocks, or more bytes than there is room for"},
    ),
    Call(
        _C.MARK_DIRTY,
        ("dev",),
        data="extents (db, count, sector mask; 0: all)",
        doc="Data pages of the caller's own arena were changed in place.",
        fails=_DEVICE
        | {
            e.BadCall: _EXTENTS + "names more blocks than the registry holds, or sectors that there are not",
            e.NotInCore: "a block is not in the registry",
            e.BadCapability: "a page is not the caller's to write",
            e.LimitReached: _SHARE,
        },
    ),
    Call(
        _C.READ_ATTR,
        ("da",),
        gives="data: registry entry",
        fails={
            e.NotFound: "the address is on no active device",
            e.NotInCore: "the block is not in the registry",
            e.BadCall: "there is no room for 64 bytes",
        },
        doc="One registry entry.",
    ),
    Call(
        _C.READ_CATALOGUE,
        ("dev",),
        gives="r0: entries; data: catalogue entries, as many as there is room for",
        doc="The root and type catalogues.  Capability numbers are shown to their holders alone.",
        fails=_DEVICE,
    ),
    Call(
        _C.DEV_LIST,
        gives="r0: devices; data: u64 device numbers",
        doc="Active XN disks.",
        fails={e.BadCall: "there is no room for all of them"},
    ),
    Call(
        _C.INFO,
        ("dev",),
        gives="r0: free blocks, r1: blocks that wait to be freed; "
        "data: u64 blocks, free blocks, catalogue block, free-map block, free-map bytes, session (for reports)",
        doc="Where XN keeps its structures.",
        fails=_DEVICE,
    ),
    Call(
        _C.FINDFREE,
        ("dev", "hint", "count"),
        gives="r0: first block",
        doc="First free extent from hint on (hint 0: XN chooses).",
        fails=_DEVICE
        | {
            e.BadCall: "no blocks, or more than the disk has",
            e.NoSpace: "there is no such run of free blocks; r0: blocks that a flush frees",
        },
    ),
    Call(
        _C.LIST_WRITEABLE,
        ("dev",),
        gives="r0: blocks; data: u64 blocks, as many as there is room for",
        doc="Dirty blocks that may be written now: what a syncer writes back until none is left.",
        fails=_DEVICE,
    ),
    Call(_C.ROOT, ("dev",), gives="r0: superblock's block", doc="XN's superblock.", fails=_DEVICE),
    Call(
        _C.GET_REFCNT,
        ("da",),
        capability="READ on the block",
        gives="r0: count",
        doc="Reference count of an element.",
        fails=_READABLE
        | {
            e.NotInCore: "the block is not in the registry, or there is no element at that address",
            e.WrongType: "the block is plain data",
            e.UdfFailed: "the refcnt function gives malformed output for what the disk holds",
        },
    ),
    Call(
        _C.GET_NOWNS,
        ("da",),
        capability="READ on the block",
        gives="r0: partitions",
        doc="Partitions of the block's type.",
        fails=_READABLE,
    ),
    Call(
        _C.UDF_ENUM,
        ("da", "begin", "end"),
        capability="READ on the block",
        gives="r0: extents; data: (db u64, count u64, type u64) of each",
        doc="What partitions [begin, end) own.",
        fails=_READABLE
        | {
            e.BogusPartition: "the type has no such partitions",
            e.UdfFailed: "the owns function gives malformed output for what the disk holds, or runs too long for so "
            "many partitions",
            e.LimitReached: "more than 4096 extents: ask for fewer partitions at a time",
        },
    ),
    Call(
        _C.LOCK,
        ("da", "mode"),
        capability="READ (shared) or WRITE (exclusive) on the block",
        doc="Lock a registry entry.  Holders are asked to let go, and lose it after the deadline.  "
        "Locks die with their holder.",
        fails=_READABLE
        | {
            e.NotInCore: "the block is not in the registry, or was freed while the call waited",
            e.BadCapability: "the capability does not allow this lock on the block",
            e.BadCall: "there is no such mode, or the caller waits for this lock already",
            e.LimitReached: "the environment holds its most locks",
        },
        waits=True,
    ),
    Call(
        _C.UNLOCK,
        ("da", "mode"),
        doc="Let go, or (mode SHARED) keep only a shared lock.",
        fails={e.NotFound: "the caller holds no lock there"},
    ),
    Call(
        _C.FILTER_INSERT,
        data="DPF filter",
        capability="WRITE on an address",
        gives="r0: filter id",
        doc="Bind packets within the address to the caller's queue.",
        fails={
            e.NotAllowed: "xokd was started without a network",
            e.BadCapability: "the filter claims packets outside the address",
            e.Overlap: "another holder's filter claims some of the packets, and is no delegation",
            e.BadCall: "the filter is malformed",
            e.LimitReached: "the environment holds its most filters, or shapes of them",
        },
    ),
    Call(
        _C.FILTER_REMOVE,
        ("filter",),
        doc="Remove a filter of the caller's.",
        fails={
            e.NotAllowed: "xokd was started without a network",
            e.NotFound: "the caller has no such filter",
        },
    ),
    Call(
        _C.READ_ERRORS,
        ("dev", "first"),
        data=_NAME,
        capability="READ on the tree",
        gives="r0: errors found in the tree, r1: of them in the log; data: FoundError records from the first asked "
        "for, as many as there is room for",
        doc="The error log of the last reconstruction, of one tree (4.5).",
        fails=_DEVICE
        | {
            e.NotFound: "there is no such device or root",
            e.BadCall: _BAD_NAME,
            e.BadCapability: "the capability is not the tree's",
        },
    ),
    Call(
        _C.PATCH_READ,
        ("da",),
        capability="READ and WRITE on the tree that is being patched",
        gives="r0: the type of the block; data: its 4096 bytes, with what has been written so far",
        doc="A metadata block of the tree being patched: for its patch program, while the disk is in no other use.",
        fails={
            e.NotAllowed: "no tree is being patched on that device",
            e.BadCapability: "the capability is not that of the tree being patched",
            e.NotOwned: "reconstruction found no metadata of the tree there",
            e.BadCall: "there is no room for a block of results",
            e.MediaError: "the device failed to read",
        },
    ),
    Call(
        _C.PATCH_WRITE,
        ("da",),
        data="bytes",
        capability="READ and WRITE on the tree that is being patched",
        doc="Propose bytes for a metadata block, from `da` on.  They reach the disk when the program has ended with "
        "status 0 and a new walk over everything finds the tree sound; or not at all.",
        fails={
            e.NotAllowed: "no tree is being patched on that device",
            e.BadCapability: "the capability is not that of the tree being patched",
            e.NotOwned: "reconstruction found no metadata of the tree there",
            e.BadCall: "there are no bytes, or they reach beyond the block",
            e.LimitReached: "4096 blocks have been written to",
            e.MediaError: "the device failed to read",
        },
    ),
)

BY_NUMBER: dict[int, Call] = {call.number: call for call in CALLS}
BY_NAME: dict[str, Call] = {call.name: call for call in CALLS}
