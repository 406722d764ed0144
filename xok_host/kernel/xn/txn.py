"""Transactions: several operations over several blocks, verified on shadows, applied all or not at all (DESIGN 4).

TXN-1  Nothing that an environment can see changes before everything was verified and every page was found.
TXN-2  Bytes change only inside the partition that the operation names, or (NO_PARTITION) in none; discriminators only
       by SET_TYPE.  Of partitions that are traced, `traced` says what is inside (PART-2, PART-3).
TXN-3  Over the partitions touched, what is owned grows by exactly the extents allocated and shrinks by exactly those
       freed.  What one partition loses and another gains has moved.
TXN-4  For every element, the change of its reference count is the change of the number of references to it.
TXN-5  Allocated blocks were free; freed metadata owns, references and counts nothing any more.
TXN-6  The order of writes that all this asks for is recorded with it (`order`).
TXN-7  A block of a type with a protected method changes only as the method approves, and nobody is asked about less
       than the transaction changes (METHOD-1 to METHOD-5).
TXN-8  What MOVE, ADD_EDGE and DROP_EDGE say of their partition is so.

Calls that are one operation (alloc, free, …) are transactions of that `SHAPES`.

A partition is touched when an operation names it, as its own or among the dependents.  The other partitions cannot have
changed (TXN-2 and TYPE-1, or PART-2).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import cython

if cython.compiled:
    from cython.cimports.libc.string import memcpy
    from cython.cimports.xok_host.kernel.xn.shadow import noted
else:
    from xok_host.kernel.xn.shadow import noted

from xok_host.abi.calls import (
    MAX_OPS,
    MAX_VECTORS,
    MAX_WITNESSES,
    OP_HEADER,
    VECTOR_HEADER,
    CallNumber,
    OpFlag,
    OpKind,
)
from xok_host.abi.errors import (
    BadCall,
    BadCapability,
    BogusPartition,
    LimitReached,
    Locked,
    NotFree,
    NotInCore,
    WouldCycle,
    WrongType,
    XokError,
)
from xok_host.abi.types import BLOCK, SECTOR, TYPE_XN_DB, TYPE_XN_TYPE, Flag
from xok_host.abi.views import LOCK_EXCLUSIVE
from xok_host.kernel.xn import apply, methods, plan, traced, udf, verify
from xok_host.kernel.xn.shadow import (
    CHECKED,
    MAX_ALLOC,
    NO_PARTITION,
    Claim,
    Move,
    Shadow,
    Touched,
    Transaction,
)

if TYPE_CHECKING:
    from xok_host.kernel.xn.device import Device
    from xok_host.kernel.xn.registry import Cached
    from xok_host.kernel.xn.types import XnType

SHAPES: dict[int, tuple[tuple[OpKind, ...], ...]] = {
    CallNumber.ALLOC: ((OpKind.ALLOC,),),
    CallNumber.FREE: ((OpKind.FREE,), (OpKind.DROP_EDGE,), (OpKind.DROP_EDGE, OpKind.MODIFY)),
    CallNumber.ADD_EDGE: ((OpKind.ADD_EDGE,), (OpKind.ADD_EDGE, OpKind.MODIFY)),
    CallNumber.SET_TYPE: ((OpKind.SET_TYPE,),),
    CallNumber.MOVE: ((OpKind.MODIFY, OpKind.MOVE),),
    CallNumber.SWAP: ((OpKind.MOVE, OpKind.MOVE),),
}
"""The operations that each call of one operation takes, beside witnesses."""

_META = int(Flag.META)
_VALID = int(Flag.VALID)
_ROOT = int(Flag.ROOT)
# The same as C variables: names of Python integers, and literals above 31 bits, would cost an object at each use.
_MODIFY = cython.declare(cython.int, int(OpKind.MODIFY))
_FREE = cython.declare(cython.int, int(OpKind.FREE))
_PUBLISH = cython.declare(cython.int, int(OpKind.PUBLISH))
_SET_TYPE = cython.declare(cython.int, int(OpKind.SET_TYPE))
_WITNESS = cython.declare(cython.int, int(OpKind.WITNESS))
_WRITEB = cython.declare(cython.int, int(OpKind.WRITEB))
_ADD_EDGE = cython.declare(cython.int, int(OpKind.ADD_EDGE))
_DROP_EDGE = cython.declare(cython.int, int(OpKind.DROP_EDGE))
_MOVE = cython.declare(cython.int, int(OpKind.MOVE))
_PAGES = int(OpFlag.PAGES)

_DB_MASK = cython.declare(cython.ulonglong, (1 << 44) - 1)
_OP_BYTES = cython.declare(cython.Py_ssize_t, OP_HEADER.size)
_VECTOR_BYTES = cython.declare(cython.Py_ssize_t, VECTOR_HEADER.size)
_OPS = cython.declare(cython.int, MAX_OPS)
_VECTORS = cython.declare(cython.int, MAX_VECTORS)
_LOOSE = cython.declare(cython.uint, NO_PARTITION)
_BLOCK_BYTES = cython.declare(cython.long, BLOCK)
_SECTOR_BYTES = cython.declare(cython.long, SECTOR)
_FLAGS = cython.declare(cython.int, int(OpFlag.ZERO | OpFlag.PAGES | OpFlag.DEPENDENTS))
_DEPENDENTS = cython.declare(cython.int, int(OpFlag.DEPENDENTS))

Header = cython.struct(
    kind=cython.uchar,
    flags=cython.uchar,
    nvec=cython.ushort,
    part=cython.uint,
    da=cython.ulonglong,
    db=cython.ulonglong,
    count=cython.uint,
    type_id=cython.uint,
    page=cython.ulonglong,
)
"""OP_HEADER as C has it."""


def run(t: Transaction, data: bytes, call: cython.int) -> None:
    """Carry out the operations in `data`, or raise; `t.at` is then the operation at fault, or their number.

    `call`: the call of `SHAPES` that they must be the operations of, or 0."""
    shadow: Shadow
    try:
        parse(t, data, call)
        if call:
            check_shape(t, call)
        t.at = t.nops
        if CHECKED:
            check(t)
        if t.device.logs:
            t.device.reports.check(t)
        if t.allocs or t.frees or t.moved or t.reference_order:  # else all that leads anywhere leads there still
            plan.order_of(t)
        apply.reserve(t)
    except XokError as error:
        if isinstance(error, WouldCycle):
            t.kernel.counters.add("cycle_refusals")
        for page in t.new_pages:
            t.kernel.pages.drop(page)
        if t.children:
            for child in t.children.values():
                assert child.xtype is not None
                child.xtype.cached -= 1
        raise
    apply.apply(t)
    for shadow in t.shadows:
        shadow.end()


def check(t: Transaction) -> None:
    """TXN-2 to TXN-5, TXN-7 and TXN-8."""
    verify.modifications(t)
    verify.question(t)
    if t.differs or t.allocs or t.frees:
        verify.ownership(t)
    if t.differs:
        verify.references(t)
    if t.frees:
        verify.frees(t)
    if t.claims:
        verify.claims(t)
    methods.approve(t)


def parse(t: Transaction, data: bytes, call: cython.int) -> None:
    at: cython.Py_ssize_t = 0
    size: cython.Py_ssize_t = len(data)
    kind: cython.int
    flags: cython.int
    nvec: cython.int
    part: cython.uint
    da: cython.ulonglong
    db: cython.ulonglong
    count: cython.uint
    type_id: cython.uint
    page: cython.ulonglong
    offset: cython.uint = 0
    nbytes: cython.uint = 0
    header = cython.declare(Header)
    while at < size:
        if t.nops == _OPS:
            raise BadCall(f"more than {MAX_OPS} operations in one transaction")
        t.at = t.nops
        if at + _OP_BYTES > size:
            raise BadCall(f"operation {t.nops} is cut short")
        if cython.compiled:
            memcpy(cython.address(header), cython.cast(cython.p_char, data) + at, cython.sizeof(Header))
            kind, flags, nvec, part = header.kind, header.flags, header.nvec, header.part
            da, db, count, type_id, page = header.da, header.db, header.count, header.type_id, header.page
        else:
            kind, flags, nvec, part, da, db, count, type_id, page = OP_HEADER.unpack_from(data, at)
        at += _OP_BYTES
        if not _MODIFY <= kind <= _MOVE or flags & ~_FLAGS:
            raise BadCall(f"operation {t.nops} has unknown kind {kind} or flags {flags}")
        if nvec > _VECTORS:
            raise BadCall(f"operation {t.nops} has {nvec} vectors, at most {MAX_VECTORS}")
        if call:
            t.kinds = noted(t.kinds, kind)
            if kind != _WITNESS:
                check_begins(t, call)
        if kind == _PUBLISH and root_data(t, da, db, count, page, nvec):
            t.nops += 1
            continue
        if kind == _WITNESS:
            show(t, da, nvec)
            t.nops += 1
            continue
        shadow = shadow_of(t, da, kind == _WRITEB)
        if kind == _WRITEB and part != NO_PARTITION:
            raise BogusPartition("writeb changes bytes that are in no partition")
        touched = touch(t, shadow, part)
        for _ in range(nvec):
            if at + _VECTOR_BYTES > size:
                raise BadCall(f"operation {t.nops} is cut short")
            if cython.compiled:
                memcpy(cython.address(offset), cython.cast(cython.p_char, data) + at, 4)
                memcpy(cython.address(nbytes), cython.cast(cython.p_char, data) + at + 4, 4)
            else:
                offset, nbytes = VECTOR_HEADER.unpack_from(data, at)
            at += _VECTOR_BYTES
            if at + nbytes > size:
                raise BadCall(f"operation {t.nops} is cut short")
            if flags >= _DEPENDENTS:
                flags &= ~_DEPENDENTS
                dependents(t, shadow, data[at : at + nbytes])
            elif nbytes:
                write_bytes(shadow, part, offset, data, at, nbytes)
            at += (nbytes + 7) // 8 * 8
        if flags >= _DEPENDENTS:
            raise BadCall(f"operation {t.nops} has no vector that names dependents")
        if kind == _SET_TYPE:
            shadow.set_type = True
        elif kind >= _ADD_EDGE:
            claim(t, kind, touched, db, count, type_id, page)
        elif kind != _MODIFY and kind != _WRITEB:
            name_extent(t, kind, touched, db, count, type_id, page, flags)
        t.nops += 1
    if not t.nops:
        raise BadCall("a transaction without operations")


def check_begins(t: Transaction, call: int) -> None:
    """An operation that the call does not take is refused as such, before it is looked into (TABLE-1)."""
    kinds = tuple(kind for kind in t.kinds if kind != _WITNESS)
    if not any(shape[: len(kinds)] == kinds for shape in SHAPES[call]):
        raise BadCall(f"{CallNumber(call).name.lower()} takes {' or '.join(map(_kind_names, SHAPES[call]))}")


def check_shape(t: Transaction, call: int) -> None:
    """A call that is one operation takes those of its kind alone."""
    if tuple(kind for kind in t.kinds if kind != _WITNESS) not in SHAPES[call]:
        raise BadCall(f"{CallNumber(call).name.lower()} takes {' or '.join(map(_kind_names, SHAPES[call]))}")
    if call == CallNumber.SWAP:
        one, other = t.claims
        if (one.source, other.source) != (other.touched.shadow.entry.key, one.touched.shadow.entry.key):
            raise BadCall("swap takes two moves, each from where the other goes")


def _kind_names(kinds: tuple[OpKind, ...]) -> str:
    return " and ".join(kind.name for kind in kinds)


def shadow_of(t: Transaction, da: cython.ulonglong, plain: cython.bint) -> Shadow:
    """The shadow of the block at `da`, made at first use after the checks that concern the block as a whole.

    With `plain` it may be plain data, which is changed as it is: nothing asks what it says."""
    shadow: Shadow | None = t.shadow(da >> 12)
    if shadow is not None:
        if shadow.plain and not plain:
            raise WrongType(f"block {shadow.entry.db} is not structured metadata")
        return shadow
    device = on_device(t, da)
    child = t.children.get(da >> 12 & _DB_MASK) if t.children else None
    shadow = Shadow.__new__(Shadow)
    if child is not None:
        shadow.begin(child, None)
    else:
        entry: Cached = written(device, da) if plain else device.metadata(da)
        assert entry.access is not None
        if not entry.access.may_write(t.capability):
            raise BadCapability(f"the capability does not allow writing block {entry.db}")
        # Sharers are asked before somebody gets the exclusive lock; what else is in the block need not be theirs.
        if entry.lock == LOCK_EXCLUSIVE and t.env not in entry.lock_holders:
            raise Locked(f"block {entry.db} is locked by another environment")
        shadow.begin(entry, device.pages)
    t.shadows = noted(t.shadows, shadow)
    return shadow


def show(t: Transaction, da: cython.ulonglong, nvec: cython.long) -> None:
    """WITNESS: a block in core that the caller may read, or one that the transaction allocates."""
    if nvec:
        raise BadCall("a witness is shown, not changed")
    if len(t.witnesses) == MAX_WITNESSES:
        raise LimitReached(f"more than {MAX_WITNESSES} witnesses in one transaction")
    device = on_device(t, da)
    if not t.children or da >> 12 & _DB_MASK not in t.children:
        entry = device.metadata(da)
        assert entry.access is not None
        if t.capability not in entry.access.read:
            raise BadCapability(f"the capability does not allow reading block {entry.db}")
    t.witnesses = noted(t.witnesses, da >> 12)


def written(device: Device, da: cython.ulonglong) -> Cached:
    """The block at `da` that WRITEB changes, in core.  Raises NotInCore."""
    entry = device.get(da >> 12 & _DB_MASK)
    if entry is None or not entry.flags & _VALID:
        raise NotInCore(f"block {da >> 12 & _DB_MASK} is not in the registry")
    return entry


def on_device(t: Transaction, da: cython.ulonglong) -> Device:
    device = t.device
    if device is None:
        device = t.device = t.kernel.device(da >> 56)
    elif device.number != da >> 56:
        raise BadCall("one transaction, one device")
    return device


def touch(t: Transaction, shadow: Shadow, part: cython.uint) -> Touched | None:
    if part == _LOOSE:
        return None
    touched: Touched
    for touched in t.touched:
        if touched.part == part and touched.shadow is shadow:
            return touched
    xtype = shadow.entry.xtype
    assert xtype is not None and xtype.template is not None
    if part >= len(xtype.sector_of):
        raise BogusPartition(f"{xtype.name} has partitions 0 to {len(xtype.sector_of) - 1}, not {part}")
    touched = Touched.__new__(Touched)
    t.touched = noted(t.touched, touched.begin(shadow, part, xtype.sector_of[part]))
    return touched


def dependents(t: Transaction, shadow: Shadow, ids: bytes) -> None:
    traced.name_dependents(t, shadow, ids, lambda part: touch(t, shadow, part))


def write_bytes(
    shadow: Shadow, part: cython.uint, offset: cython.long, data: bytes, at: cython.long, nbytes: cython.long
) -> None:
    """TXN-2, for `nbytes` of `data` from `at` on; discriminators are looked at when all bytes are there."""
    end: cython.long = offset + nbytes
    first: cython.long
    last: cython.long
    xtype: XnType = shadow.entry.xtype
    if shadow.plain:
        if end > _BLOCK_BYTES:
            raise BogusPartition(f"bytes {offset} to {end} are not in one block")
    elif part == _LOOSE:
        shadow.loose = True
        if end > _BLOCK_BYTES or reserved(xtype, offset, end):
            raise BogusPartition(f"bytes {offset} to {end} of block {shadow.entry.db} are not free of partitions")
    elif not within(xtype.windows[part], offset, end) and xtype.template.partition_of(offset, nbytes) != part:
        raise BogusPartition(f"bytes {offset} to {end} of block {shadow.entry.db} are not in partition {part}")
    first = offset // _SECTOR_BYTES
    last = (end - 1) // _SECTOR_BYTES
    if first * _SECTOR_BYTES == offset and last * _SECTOR_BYTES + _SECTOR_BYTES == end:
        shadow.present |= (2 << last) - (1 << first)  # whole sectors: nothing is left of what was there
    else:
        shadow.bring((2 << last) - (1 << first))
    if cython.compiled:
        memcpy(cython.cast(cython.p_char, shadow.held) + offset, cython.cast(cython.p_char, data) + at, nbytes)
    else:
        shadow.held[offset:end] = data[at : at + nbytes]
    shadow.changed |= (2 << last) - (1 << first)


def reserved(xtype: XnType, offset: int, end: int) -> bool:
    """Whether one of the bytes from `offset` to `end` is always a partition's."""
    template = xtype.template
    return any(start < end and offset < start + length for regions in template.reserved for start, length in regions)


def within(windows: array[int], offset: cython.ulonglong, end: cython.ulonglong) -> cython.bint:
    """Whether the bytes from `offset` to `end` lie in one window: (first, past last) as pairs in an array('Q')."""
    edges: cython.p_ulonglong = udf.words(windows)
    k: cython.Py_ssize_t
    for k in range(0, len(windows), 2):
        if edges[k] <= offset and end <= edges[k + 1]:
            return True
    return False


def claim(t: Transaction, kind: int, touched: Touched | None, db: int, count: int, type_id: int, source: int) -> None:
    """What the operation says of its partition, to be checked when all is known (TXN-8)."""
    if touched is None:
        raise BogusPartition("only a partition can own blocks or refer to something")
    if kind == _MOVE and not count:
        raise BadCall("a move of no blocks")
    change = {_ADD_EDGE: 1, _DROP_EDGE: -1}.get(kind, 0)
    t.claims = noted(t.claims, Claim(touched, t.nops, db, count, type_id, source >> 12, change))


def name_extent(
    t: Transaction,
    kind: cython.int,
    touched: Touched | None,
    db: cython.ulonglong,
    count: cython.ulonglong,
    type_id: cython.uint,
    page: cython.ulonglong,
    flags: cython.int,
) -> None:
    if touched is None:
        raise BogusPartition("only a partition can own blocks")
    device = t.device
    assert device is not None
    if not count or db > device.nblocks or db + count > device.nblocks:
        raise BadCall(f"{count} blocks at {db} are not on the disk")
    move: Move = Move.__new__(Move)
    move.begin(touched, db, count, type_id, page, flags)
    if kind == _FREE:
        t.frees = noted(t.frees, move)
    elif kind == _PUBLISH:
        t.publishes = noted(t.publishes, move)
    else:
        if count > MAX_ALLOC:
            raise LimitReached(f"{count} blocks in one allocation, at most {MAX_ALLOC}")
        if not device.freemap.is_free(db, count):
            raise NotFree(f"not all of {count} blocks at {db} are free")
        if type_id == TYPE_XN_TYPE:
            raise WrongType("types are made by type_import")
        xtype = device.type_of(type_id)
        if not xtype.data:
            if flags & _PAGES:
                raise BadCall("metadata starts as zeros; modify it in the same transaction")
            if t.children is None:
                t.children = {}
            if len(t.children) + count > MAX_ALLOC:
                raise LimitReached(f"more than {MAX_ALLOC} blocks of metadata in one transaction")
            access = device.access_to_children(touched.shadow.entry) if not touched.shadow.fresh else None
            block: cython.ulonglong
            for block in range(db, db + count):
                if block in t.children:
                    raise NotFree(f"block {block} is allocated twice")
                if xtype.traced:
                    traced.check_new(t, xtype, block, verify.UDF_BUDGET)
                child = device.new_entry(block, xtype, access or device.quarantine.access)
                child.tree = touched.shadow.entry.tree
                t.children[block] = child
        t.allocs = noted(t.allocs, move)


def root_data(
    t: Transaction,
    da: cython.ulonglong,
    db: cython.ulonglong,
    count: cython.ulonglong,
    page: cython.ulonglong,
    nvec: cython.int,
) -> cython.bint:
    """PUBLISH into a root extent of plain data, which has no parent: `da` is the address of its first block."""
    device: Device = t.kernel.device(da >> 56)
    entry: Cached | None = device.get(db) if db < device.nblocks else None
    if entry is None or not entry.flags & _ROOT or entry.flags & _META:
        return False
    if nvec:
        raise BadCall("a root of plain data has no partitions to modify")
    if not count:
        raise BadCall("no blocks to publish")
    on_device(t, da)
    for block in range(db, db + count):
        root = device.get(block)
        if root is None or not root.flags & _ROOT or root.parent_da != entry.parent_da:
            raise NotInCore(f"block {block} is not a root's in core")
        assert root.access is not None
        if t.capability not in root.access.write:
            raise BadCapability(f"the capability does not allow writing block {block}")
        if root.lock == LOCK_EXCLUSIVE and t.env not in root.lock_holders:
            raise Locked(f"block {block} is locked by another environment")
    shadow: Shadow = Shadow.__new__(Shadow)
    touched: Touched = Touched.__new__(Touched)
    move: Move = Move.__new__(Move)
    touched.begin(shadow.begin(entry, None), NO_PARTITION, 0)
    t.publishes = noted(t.publishes, move.begin(touched, db, count, TYPE_XN_DB, page, 0))
    return True
