"""Carrying out a verified transaction: first everything that can fail, then everything else (TXN-1)."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import cython

from xok_host.abi.calls import OpFlag
from xok_host.abi.errors import BadCall, BadCapability, BogusUpdate, LimitReached, Locked
from xok_host.abi.types import ALL_SECTORS, BLOCK_LIMIT, CHUNK_PAGES, SECTORS, TYPE_XN_DB, Flag
from xok_host.abi.views import LOCK_EXCLUSIVE
from xok_host.kernel.pages import DATA, Access, Arena, Pages
from xok_host.kernel.pageset import PageSet
from xok_host.kernel.tables import INDEX
from xok_host.kernel.xn import order, traced, udf
from xok_host.kernel.xn.registry import NO_PAGE, Cached, Registry
from xok_host.kernel.xn.shadow import (
    CHECKED,
    MAX_ALLOC,
    NO_PARTITION,
    Move,
    Shadow,
    Touched,
    Transaction,
    noted,
    survivor,
)
from xok_host.kernel.xn.types import XnType

if cython.compiled:
    from cython.cimports.xok_host.kernel.xn.order import recount
else:
    from xok_host.kernel.xn.order import recount

if TYPE_CHECKING:
    from xok_host.kernel.core import Core
    from xok_host.kernel.env import Environment
    from xok_host.kernel.xn.device import Device

_ALL = cython.declare(cython.int, ALL_SECTORS)
_BLOCKS = cython.declare(cython.ulonglong, BLOCK_LIMIT - 1)
_CHUNK = cython.declare(cython.ulonglong, CHUNK_PAGES)
_EXCLUSIVE = cython.declare(cython.uint, LOCK_EXCLUSIVE)
_NO_PAGE = cython.declare(cython.ulonglong, NO_PAGE)
_READING = cython.declare(cython.uint, int(Flag.READING))
_TEMPORARY = cython.declare(cython.uint, int(Flag.TEMPORARY))
_VALID = cython.declare(cython.uint, int(Flag.VALID))
_TRANSACTIONS = cython.declare(cython.int, INDEX["transactions"])
_OPERATIONS = cython.declare(cython.int, INDEX["operations"])
_ZERO = int(OpFlag.ZERO)
_PAGES = int(OpFlag.PAGES)


LOOK = 256
"""Entries of an environment's share that a call looks at, beside as many as it adds: those that settled leave it."""


def charge(env: Environment, entry: Cached) -> None:
    """Count the block in the environment's share, before it changes it.  It is in one share until it is settled."""
    held = entry.charged
    if held is env:
        return
    if held is not None:
        if not entry.settled():
            return
        del held.unsettled[entry]
    entry.charged = env
    env.unsettled[entry] = None


def check_share(kernel: Core, env: Environment, count: cython.long) -> None:
    """Room in the environment's share for `count` blocks more: three quarters of what is in core are the most that can
    be kept there by what one environment did, so that others have room.  Raises LimitReached, naming a block."""
    mine = env.unsettled
    most: cython.long = kernel.share
    if len(mine) + count <= most:
        return
    for entry in list(islice(mine, count + LOOK)):
        del mine[entry]
        if entry.settled():
            entry.charged = None
            if len(mine) + count <= most:
                return
        else:
            mine[entry] = None  # looked at again after all others
    first = next((entry.db for entry in islice(mine, LOOK) if entry.dirty), next(iter(mine)).db if mine else 0)
    raise LimitReached(
        f"{len(mine)} blocks, of {most} that one environment may keep in core, wait to be durable: write back and "
        f"flush some, such as block {first}",
        r0=first,
    )


def adds(env: Environment, entry: Cached | None) -> cython.bint:
    """Whether the block, when the environment changes it, is one more that cannot leave because of it."""
    return entry is None or entry.charged is not env or entry.settled()


def _added(t: Transaction) -> int:
    """Blocks that the transaction adds to its environment's share."""
    device, env = t.device, t.env
    assert device is not None
    added = 0
    for shadow in t.shadows:
        added += bool(shadow.changed) and not shadow.fresh and adds(env, shadow.entry)
    for move in t.allocs:
        added += move.count
    for move in t.publishes:
        for db in range(move.db, move.db + move.count):
            added += adds(env, device.get(db))
    return added


def reserve(t: Transaction) -> None:
    """Everything that could still fail: pages, places in the registry, the environment's share (TXN-1)."""
    device = t.device
    assert device is not None
    cached: Cached | None
    entry: Cached | None
    move: Move
    shadow: Shadow
    if not t.allocs and not t.publishes and not copies(t):
        if len(t.env.unsettled) + len(t.shadows) > t.kernel.share:
            check_share(t.kernel, t.env, _added(t))
        return
    registry: Registry = device.registry
    number: cython.ulonglong = device.number
    needed: cython.ulonglong = 0
    for move in t.allocs:
        needed += move.count
    if needed > MAX_ALLOC:
        raise LimitReached(f"{needed} blocks in one transaction, at most {MAX_ALLOC}")
    for move in t.publishes:
        if move.touched.part == NO_PARTITION:
            entry = device.get(move.db)
            assert entry is not None and entry.access is not None
            check_own_pages(t, move.page, move.count, entry.access)
            continue
        shadow = move.touched.shadow
        if CHECKED and not udf.owns(move.touched.after, move.db, move.count, TYPE_XN_DB):
            raise BogusUpdate(f"partition {move.touched.part} does not own {move.count} plain blocks at {move.db}")
        check_own_pages(t, move.page, move.count, child_access(t, shadow))
        move.found = registry.run(number << 44 | move.db, move.count, False)
        for cached in move.found:
            if cached is None:
                needed += 1
            elif cached.lock == _EXCLUSIVE and t.env not in cached.lock_holders:
                raise Locked(f"block {cached.db} is locked by another environment")
        for shadow in t.shadows:
            if move.db <= shadow.entry.db < move.db + move.count:
                raise BadCall(f"block {shadow.entry.db} is written and published in one transaction")
    for move in t.allocs:
        if move.flags & _PAGES:
            check_own_pages(t, move.page, move.count, child_access(t, move.touched.shadow))
    check_pages_once(t)
    most_added: cython.ulonglong = len(t.shadows) + needed
    for move in t.publishes:
        most_added += move.count
    if len(t.env.unsettled) + most_added > t.kernel.share:
        check_share(t.kernel, t.env, _added(t))
    if not needed and not t.allocs and not copies(t):
        return  # nothing has to make room
    involved = _involved(t)
    for entry in involved:
        entry.busy = True
    try:
        _reserve_room(t, needed)
    finally:
        for entry in involved:
            entry.busy = False


def copies(t: Transaction) -> cython.bint:
    """Whether a page must be copied because somebody holds it as it is."""
    pages = t.device.pages
    shadow: Shadow
    for shadow in t.shadows:
        if shadow.changed and not shadow.fresh and pages.shared(shadow.entry.page):
            return True
    return False


def _involved(t: Transaction) -> list[Cached]:
    """Blocks in core that must not be evicted to make room for the transaction that changes them."""
    device = t.device
    assert device is not None
    found = [shadow.entry for shadow in t.shadows]
    for key in t.freed or ():
        found.append(t.kernel.registry[key])
    for move in t.publishes:
        found += device.cached_in(move.db, move.count)
    return found


def _reserve_room(t: Transaction, needed: int) -> None:
    """Places in the registry, and pages."""
    device, pages = t.device, t.kernel.pages
    assert device is not None
    if needed and not device.kernel.make_room(needed):
        raise LimitReached("the registry is full of blocks that are dirty, pinned or locked")
    for move in t.allocs:
        data = device.type_of(move.type).data
        if not data or move.flags & _ZERO:
            arena = pages.arena(child_access(t, move.touched.shadow))
            for _ in range(move.count):
                zeroed = pages.alloc(arena)
                move.zeroed = noted(move.zeroed, zeroed)
                t.new_pages = noted(t.new_pages, zeroed)
    for shadow in t.shadows:
        if shadow.changed and not shadow.fresh and pages.shared(shadow.entry.page):
            arena = pages.arena_of(shadow.entry.page)
            if shadow.plain:  # the copy is xokd's to write: the one who had the page keeps it as it was
                arena = pages.arena(arena.access)
            shadow.copy_to = pages.alloc(arena)
            t.new_pages = noted(t.new_pages, shadow.copy_to)


def child_access(t: Transaction, shadow: Shadow) -> Access:
    device = t.device
    assert device is not None
    entry = shadow.entry
    if not shadow.fresh:
        return device.access_to_children(entry)
    if entry.child_access is None:
        assert entry.xtype is not None and entry.xtype.template is not None
        read, write = entry.xtype.template.guard(shadow.whole, entry.tree)
        entry.child_access = device.pages.access(frozenset(read), frozenset(write))
    return entry.child_access


def check_own_pages(t: Transaction, page: cython.ulonglong, count: cython.ulonglong, access: Access) -> None:
    """Pages of the caller's, unpublished, in the arena of those who may access the blocks."""
    mine: PageSet = t.env.pages
    pages: Pages = t.kernel.pages
    if not mine.holds(page, count):
        while mine.holds(page, 1):
            page += 1
        raise BadCapability(f"page {page} is not an unpublished page of the caller's")
    at: cython.ulonglong = page
    while at < page + count:
        arena: Arena = pages.arena_of(at)
        if arena.access is not access or arena.kind != DATA:
            raise BadCapability(f"page {at} is in the arena of another capability")
        at += _CHUNK - at % _CHUNK


def check_pages_once(t: Transaction) -> None:
    """No page for two blocks."""
    move: Move
    after: cython.ulonglong = 0
    ascending: cython.bint = True
    for move in t.publishes:
        ascending = ascending and move.page >= after
        after = move.page + move.count
    if ascending and not t.allocs:
        return
    runs = [(move.page, move.count) for move in t.publishes]
    runs += [(move.page, move.count) for move in t.allocs if move.flags & _PAGES]
    runs.sort()
    end = 0
    for page, count in runs:
        if page < end:
            raise BadCapability("a page is given to two blocks")
        end = page + count


def apply(t: Transaction) -> None:
    device = t.device
    assert device is not None
    registry = device.registry
    shadow: Shadow
    move: Move
    touched: Touched
    for move in t.allocs:
        apply_alloc(t, device, move)
    for shadow in t.shadows:
        if shadow.changed:
            apply_shadow(t, device, shadow)
    for touched in t.touched:
        if touched.shadow.changed:
            remember(touched)
    for move in t.allocs:
        for db in range(move.db, move.db + move.count):
            child = device.get(db)
            assert child is not None
            order.hang(child, move.touched.shadow.entry)
    for move in t.publishes:
        apply_publish(t, device, move)
    for loser, gainer, db, count in t.moved:
        apply_move(t, device, loser, gainer, db, count)
    for later, sector, earlier, on_sector in t.edges:
        order.add_wait(later, sector, earlier, on_sector)
    if t.frees:
        free(t, device)
    for shadow in t.shadows:
        recount(shadow.entry)
        registry.publish(shadow.entry)
    counters = device.counters
    counters.count(_TRANSACTIONS, 1)
    counters.count(_OPERATIONS, t.nops)


def free(t: Transaction, device: Device) -> None:
    """All frees are recorded before the first blocks are free."""
    records = []
    for move in t.frees:
        source = survivor(move.touched, t.freed)
        records.append(device.free_extent(source.shadow.entry, source.sector, move.db, move.count))
    for record in records:
        if not record.conditions:
            device.free_now(record)


def apply_alloc(t: Transaction, device: Device, move: Move) -> None:
    pages = device.pages
    parent = move.touched.shadow.entry
    device.freemap.allocate(move.db, move.count, parent.flags & _TEMPORARY != 0)
    device.counters.add("blocks_allocated", move.count)
    xtype = device.type_of(move.type)
    access = child_access(t, move.touched.shadow)
    for index in range(move.count):
        db = move.db + index
        child = t.children.get(db) if t.children else None
        if child is None:
            child = device.new_entry(db, xtype, access)
            device.set_parent(child, parent, move.touched.part)
            child.linked = False
        child.access = access
        child.durable = 0
        charge(t.env, child)
        page = NO_PAGE
        if move.flags & _PAGES:
            page = move.page + index
            t.env.pages.remove(page, 1)
        elif not xtype.data or move.flags & _ZERO:
            page = move.zeroed[index]
            pages.zero(page)
        device.insert(child)
        if page != NO_PAGE:
            device.set_page(child, page)
            child.flags |= _VALID
            child.dirty = ALL_SECTORS
            child.sequence = 1
            if not xtype.data:
                child.changed = [1] * SECTORS
        recount(child)
        device.registry.publish(child)


def remember(touched: Touched) -> None:
    """What the partition's UDFs say of its block from now on, if it is something else."""
    said = touched.said
    if (
        said is None
        or touched.shadow.fresh
        or not (touched.after is said[0] and touched.references is said[1] and touched.counts is said[2])
    ):
        touched.shadow.entry.memo[touched.part] = (touched.after, touched.references, touched.counts)


def apply_shadow(t: Transaction, device: Device, shadow: Shadow) -> None:
    entry: Cached = shadow.entry
    pages: Pages = device.pages
    changed: cython.int = shadow.changed
    sector: cython.int
    charge(t.env, entry)
    if shadow.copy_to != _NO_PAGE:
        pages.view(shadow.copy_to)[:] = shadow.whole
        device.set_page(entry, shadow.copy_to)
    else:
        pages.put_sectors(entry.page, shadow.held, changed)
    if shadow.reading is not None:
        traced.applied(shadow)
    device.registry.touch(entry)
    entry.sequence += 1
    entry.dirty |= changed
    if not shadow.plain:
        for sector in range(8):
            if changed >> sector & 1:
                entry.changed[sector] = entry.sequence
    xtype: XnType = entry.xtype
    if not xtype.guard_constant:
        entry.child_access = None
    device.registry.renew(entry)


def apply_publish(t: Transaction, device: Device, move: Move) -> None:
    parent = move.touched.shadow.entry
    pages: Pages = device.pages
    registry: Registry = device.registry
    entry: Cached | None
    arena: Arena | None = None
    page: cython.ulonglong = move.page
    old: cython.ulonglong = 0  # replaced pages, until a run of them ends
    olds: cython.long = 0
    key: cython.ulonglong = device.number << 44 | move.db
    env = t.env
    env.pages.remove(move.page, move.count)
    for entry in move.found or registry.run(key, move.count, True):
        if entry is None or entry.dead:
            entry = registry.get(key)  # the transaction itself has brought it in, in place of what waited in quarantine
        if entry is None:
            access = child_access(t, move.touched.shadow)
            entry = device.new_entry(key & _BLOCKS, device.data_type(), access)
            device.set_parent(entry, parent, move.touched.part)
            device.insert(entry)
        else:
            registry.touch(entry)
        if entry.charged is not env:
            charge(env, entry)
        if entry.page != _NO_PAGE:
            if entry.flags & _READING and entry.landing == entry.page:
                pages.hold(entry.landing)  # the read still ends there, and is forgotten then
            if olds and (entry.page != old + olds or entry.page % _CHUNK == 0):
                pages.drop_run(old, olds)
                olds = 0
            if not olds:
                old = entry.page
            olds += 1
        if arena is None or page % _CHUNK == 0:
            arena = pages.arena_of(page)
        entry.page = page
        entry.pins = 0
        entry.writer = arena.writer
        entry.flags |= _VALID
        entry.sequence += 1
        entry.dirty = _ALL
        if entry.counted != (entry.durable != _ALL):  # plain data is complete when it was durable once
            recount(entry)
        registry.renew(entry)
        registry.publish(entry)
        page += 1
        key += 1
    if olds:
        pages.drop_run(old, olds)


def apply_move(t: Transaction, device: Device, loser: Touched, gainer: Touched, db: int, count: int) -> None:
    """The blocks hang below another sector now; whether a pointer is on the disk stays as it was."""
    old, new = loser.shadow.entry, gainer.shadow.entry
    for block in range(db, db + count):
        entry = device.get(block)
        if entry is None:
            continue
        counted = entry.counted
        if counted:
            order.count(entry, old, False)
        device.set_parent(entry, new, gainer.part)
        if counted:
            order.count(entry, new, True)
        order.hang(entry, new)
        device.registry.publish(entry)
    source = survivor(loser, t.freed)
    device.note_move(db, count, source.shadow.entry, source.sector)
