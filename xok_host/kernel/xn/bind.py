"""Binding (thesis 4.5): a block gets its type, its access and its arena from the parent that owns it.

BIND-1  A block enters the registry under a parent only if the parent's `owns`, of the partition named, names it.
BIND-2  Who may read it was decided by the parent's guard, for a capability that the caller named.
BIND-3  Before that it may only wait in quarantine, where nobody can read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cython

from xok_host.abi.errors import BadCall, BadCapability, LimitReached, NotInCore, NotOwned, XokError
from xok_host.abi.types import Flag
from xok_host.kernel.extents import Extents
from xok_host.kernel.pages import Access, Arena, Pages
from xok_host.kernel.xn import udf
from xok_host.kernel.xn.io import MAX_RUN, DeviceIo
from xok_host.kernel.xn.pending import Pending
from xok_host.kernel.xn.registry import NO_PAGE, Cached, Registry
from xok_host.kernel.xn.types import XnType

if TYPE_CHECKING:
    from xok_host.kernel.xn.device import Device

MAX_READ = 4096
"""Blocks that one call may bring in."""

_ATTACHED = cython.declare(cython.uint, int(Flag.ATTACHED))
_QUARANTINE = cython.declare(cython.uint, int(Flag.QUARANTINE))
_READING = cython.declare(cython.uint, int(Flag.READING))
_RUN = cython.declare(cython.ulonglong, MAX_RUN)

_MAX_READ = cython.declare(cython.ulonglong, MAX_READ)


def check_extents(device: Device, extents: Extents) -> None:
    """On the disk and not too many.  Raises BadCall."""
    i: cython.Py_ssize_t
    total: cython.ulonglong = 0
    for i in range(extents.n):
        db: cython.ulonglong = extents.db(i)
        count: cython.ulonglong = extents.count(i)
        total += count
        if not count or db < device.first or db >= device.end or count > device.end - db or total > _MAX_READ:
            raise BadCall(
                f"{count} blocks at {db}: outside what libFSes use on the disk, or more than {MAX_READ} at once"
            )


def read_and_insert(device: Device, extents: Extents, pending: Pending) -> int:
    """Prefetch into quarantine (BIND-3); how many blocks will come in."""
    check_extents(device, extents)
    entry: Cached | None
    block: cython.ulonglong
    i: cython.Py_ssize_t
    started: cython.int = 0
    for i in range(extents.n):
        for block in range(extents.db(i), extents.db(i) + extents.count(i)):
            entry = device.get(block)
            if entry is not None:
                if entry.flags & _READING:
                    device.io.await_read(entry, pending)
                continue
            entry = device.new_entry(block, None, device.quarantine.access)
            entry.flags |= _QUARANTINE
            _start(device, entry, device.pages.alloc(device.quarantine))
            device.io.read([entry], pending)
            started += 1
    return started


def _start(device: Device, entry: Cached, page: cython.ulonglong) -> None:
    """Enter a block that is to be read to this page, whose hold it takes over."""
    entry.page = entry.landing = page
    entry.writer = device.pages.arena_of(page).writer
    entry.flags |= _READING
    try:
        device.insert(entry)
    except XokError:
        device.pages.drop(page)
        raise


def bind(
    device: Device,
    parent: Cached,
    capability: Any,
    extents: Extents,
    pending: Pending | None,
    quarantined_only: cython.bint,
) -> cython.long:
    """Bind the extents (block, count, partition) to `parent`, reading what is not in core; how many reads start.

    With `quarantined_only` (insert_attr) blocks must be in core already.
    """
    check_extents(device, extents)
    access: Access = device.access_to_children(parent)
    if capability not in access.read:
        raise BadCapability(f"the guard of block {parent.db} does not let this capability read")
    asked = Owned(parent)
    i: cython.Py_ssize_t
    for i in range(extents.n):
        _check_owned(device, parent, asked, extents.third(i), extents.db(i), extents.count(i))
    block: cython.ulonglong
    end: cython.ulonglong
    if quarantined_only:
        for i in range(extents.n):
            for block in range(extents.db(i), extents.db(i) + extents.count(i)):
                if device.get(block) is None:
                    raise NotInCore(f"block {block} is not in the registry")
    entry: Cached | None
    child: XnType
    started: cython.long = 0
    hits: cython.long = 0
    run: cython.Py_ssize_t
    registry: Registry = device.registry
    base: cython.ulonglong = device.number << 44
    for i in range(extents.n):
        part: cython.uint = extents.third(i)
        its = asked.by(part)
        run_end: cython.ulonglong = 0
        block = extents.db(i)
        end = block + extents.count(i)
        entry = None
        while block < end:
            if block >= run_end:
                run = udf.run_of(its, block)
                child = device.type_of(udf.kind(its, run))
                run_end = udf.end(its, run)
            entry = registry.after(entry, base | block)
            if entry is None:
                absent: cython.ulonglong = _absent(device, block, min(end, run_end, block + _RUN))
                _bring_in(device, parent, part, child, access, block, absent - block, pending)
                started += absent - block
                block = absent
                continue
            if entry.flags & _QUARANTINE:
                _leave_quarantine(device, entry, access)
                _adopt(device, entry, parent, part, child)
                registry.publish(entry)
            registry.touch(entry)
            hits += 1
            if entry.flags & _READING and pending is not None:
                device.io.await_read(entry, pending)
            block += 1
    device.counters.add("registry_hits", hits)
    return started


class Owned:
    """What `owns` says of the partitions of a block, each asked at most once and remembered with the block.

    All that is asked for one call is bounded together."""

    __slots__ = ("_asked", "_parent", "_since")

    def __init__(self, parent: Cached) -> None:
        self._parent = parent
        self._asked: dict[int, Any] | None = None
        self._since = parent.xtype.template.spent

    def by(self, part: cython.uint) -> Any:
        """The canonical set of a partition.  Raises UdfFailed."""
        parent: Cached = self._parent
        xtype: XnType = parent.xtype
        if not xtype.traced:
            remembered = parent.memo.get(part)
            if remembered is not None:
                return remembered[0]
        if self._asked is None:
            self._asked = {}
        its = self._asked.get(part)
        if its is None:
            its = self._asked[part] = xtype.template.owns(parent.device.pages.view(parent.page), part)
            xtype.template.bound(self._since)
            if not xtype.traced:
                parent.memo[part] = (its, None, None)  # verification asks the others when it needs them
        return its


def _check_owned(
    device: Device,
    parent: Cached,
    asked: Owned,
    part: cython.uint,
    db: cython.ulonglong,
    count: cython.ulonglong,
) -> None:
    """The partition owns all these blocks, and their types are in use: before the first of them leaves quarantine.
    Raises NotOwned or WrongType."""
    run: cython.Py_ssize_t
    end: cython.ulonglong = db + count
    its = asked.by(part)
    if not udf.owns(its, db, count):
        raise NotOwned(f"partition {part} of block {parent.db} does not own {count} blocks at {db}")
    while db < end:
        run = udf.run_of(its, db)
        device.type_of(udf.kind(its, run))
        db = udf.end(its, run)


def _absent(device: Device, block: cython.ulonglong, end: cython.ulonglong) -> cython.ulonglong:
    """The first block from there on that is in core, or `end`; the first of them is not."""
    block += 1
    while block < end and device.registry.get(device.number << 44 | block) is None:
        block += 1
    return block


def _bring_in(
    device: Device,
    parent: Cached,
    part: cython.uint,
    child: XnType,
    access: Access,
    block: cython.ulonglong,
    count: cython.ulonglong,
    pending: Pending | None,
) -> None:
    """Start reading blocks that are not in core, at most MAX_RUN."""
    pages: Pages = device.pages
    registry: Registry = device.registry
    io: DeviceIo = device.io
    arena: Arena = pages.arena(access)
    writer: cython.uint = arena.writer
    entry: Cached
    page: cython.ulonglong
    length: cython.ulonglong
    if not device.kernel.make_room(count):
        raise LimitReached("the registry is full of blocks that are dirty, pinned or locked")
    for first, length in pages.alloc_runs(arena, count):
        blocks: list[Cached] = []
        for page in range(first, first + length):
            entry = device.new_entry(block, None, access)
            _adopt(device, entry, parent, part, child)
            entry.page = entry.landing = page
            entry.writer = writer
            entry.flags |= _READING
            registry.insert(entry)
            blocks.append(entry)
            block += 1
        io.read(blocks, pending)


def _adopt(device: Device, entry: Cached, parent: Cached, part: cython.uint, xtype: XnType) -> None:
    """Type and parent of a block whose contents are the disk's: the pointer to it was written long ago, and metadata
    that is not attached never leaves the registry."""
    device.set_type(entry, xtype)
    device.set_parent(entry, parent, part)
    entry.flags |= _ATTACHED


def _leave_quarantine(device: Device, entry: Cached, access: Access) -> None:
    """Move the block to a page of the arena of those who may read it now."""
    page = device.pages.alloc(device.pages.arena(access))
    entry.flags &= ~_QUARANTINE
    entry.access = access
    if entry.flags & _READING:
        entry.page = page  # the read lands in quarantine and is copied when it has ended
    else:
        device.pages.view(page)[:] = device.pages.view(entry.page)
        device.pages.drop(entry.page)
        entry.page = page
    entry.writer = 0
    device.registry.renew(entry)


__all__ = ["NO_PAGE", "bind", "check_extents", "read_and_insert"]
