"""One XN disk: its structures in core, and the life of its registry entries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cython

from xok_host.abi.calls import CatalogueEntry
from xok_host.abi.errors import LimitReached, NotInCore, WrongType
from xok_host.abi.types import ALL_SECTORS, BLOCK_LIMIT, SECTORS, TYPE_XN_DB, Flag, da_key, disk_address
from xok_host.kernel.pages import META, QUARANTINE, Access, Arena, Pages
from xok_host.kernel.tables import Counters
from xok_host.kernel.xn import order, types
from xok_host.kernel.xn.catalogue import FLAG_TEMPORARY, Catalogue
from xok_host.kernel.xn.format import Superblock
from xok_host.kernel.xn.freemap import FreeMap
from xok_host.kernel.xn.io import DeviceIo
from xok_host.kernel.xn.reboot import Reports
from xok_host.kernel.xn.registry import NO_PAGE, Cached, Registry, count_move
from xok_host.kernel.xn.types import XnType

if TYPE_CHECKING:
    from xok_host.kernel.kernel import Kernel

MAX_EVICTION_SCAN = 4096
"""Entries looked at to find one that can be evicted."""
FILL_BLOCKS = 512
"""Blocks that one `fill_uninitialised` gives zeros: their holds on one page are counted in 16 bits."""
NOBODY: frozenset[int] = frozenset()

_ATTACHED = cython.declare(cython.uint, int(Flag.ATTACHED))
_BLOCK_LIMIT = cython.declare(cython.ulonglong, BLOCK_LIMIT)
_DB_MASK = cython.declare(cython.ulonglong, BLOCK_LIMIT - 1)
_NO_PAGE = cython.declare(cython.ulonglong, NO_PAGE)
_META = cython.declare(cython.uint, int(Flag.META))
_TEMPORARY = cython.declare(cython.uint, int(Flag.TEMPORARY))
_QUARANTINE = cython.declare(cython.uint, int(Flag.QUARANTINE))
_READING = cython.declare(cython.uint, int(Flag.READING))
_VALID = cython.declare(cython.uint, int(Flag.VALID))
_WILL_FREE = cython.declare(cython.uint, int(Flag.WILL_FREE))


class Device:
    """An active disk.  Made by `startup` when its own structures have been read."""

    def __init__(self, kernel: Kernel, number: int, superblock: Superblock, freemap: memoryview) -> None:
        self.kernel = kernel
        self.number = number
        self.superblock = superblock
        self.first = superblock.first
        """Blocks from there on, below `end`, are what libFSes use."""
        self.end = superblock.nblocks
        self.registry: Registry = kernel.registry
        self.pages: Pages = kernel.pages
        self.counters: Counters = kernel.counters
        self.freemap = FreeMap(freemap, superblock.nblocks, superblock.freemap)
        self.catalogue = Catalogue(superblock)
        self.types: dict[int, XnType] = types.builtin()
        nobody = self.pages.access(NOBODY, NOBODY)
        self.own_arena = self.pages.arena(nobody, 0, META)
        self.quarantine = self.pages.arena(nobody, 0, QUARANTINE)
        self.io = DeviceIo(self, self.own_arena)
        self.reports = Reports(self)
        self.logs = self.reports.logs
        """Empty, as a rule: then nobody pays for reports."""
        self.catalogue_frees: list[order.WillFree] = []
        self.waiting_frees = 0
        """Blocks on the will-free list."""
        self.moves: list[tuple[int, int, Cached, int]] = []
        """Owned extents that changed hands: (block, count, the loser, its sector)."""
        self.roots: dict[str, list[Cached]] = {}
        """Root blocks in core, by name."""

    @property
    def nblocks(self) -> int:
        return self.superblock.nblocks

    def key(self, db: int) -> int:
        return da_key(disk_address(self.number, db))

    def get(self, db: cython.ulonglong) -> Cached | None:
        if db >= _BLOCK_LIMIT:
            return None  # it would name a block of another device
        return self.registry.get(self.number << 44 | db)

    def type_of(self, type_id: cython.ulonglong) -> XnType:
        """The type in use.  Raises WrongType."""
        found = self.types.get(type_id)
        if found is None:
            raise WrongType(f"type {type_id} is not in use on device {self.number}: type_mount it first")
        return found

    # ---- entries

    def new_entry(self, db: cython.ulonglong, xtype: XnType | None, access: Access) -> Cached:
        """An entry outside the table yet."""
        entry: Cached = Cached.__new__(Cached)
        entry.begin(self, db, self.number << 44 | db)
        entry.access = access
        if xtype is not None:
            self.set_type(entry, xtype)
        return entry

    def set_type(self, entry: Cached, xtype: XnType) -> None:
        entry.type = xtype.id
        entry.xtype = xtype
        if not xtype.data:
            entry.become_metadata()
        xtype.cached += 1

    def set_parent(self, entry: Cached, parent: Cached, part: cython.uint) -> None:
        xtype: XnType = parent.xtype
        if entry.parent is not None and entry.parent is not parent:
            count_move()
        entry.parent = parent
        entry.parent_sector = xtype.sector_of[part]
        entry.parent_da = parent.key << 12
        entry.tree = parent.tree
        entry.flags |= parent.flags & _TEMPORARY

    def insert(self, entry: Cached) -> None:
        """Put the entry in the table, evicting another if it is full.  Raises LimitReached.

        Anybody may have prefetched the block while it was nobody's: what waits in quarantine goes."""
        prefetched: Cached | None = self.registry.get(entry.key)
        if prefetched is not None:
            assert prefetched.flags & _QUARANTINE
            self.forget(prefetched)
        if self.registry.full() and not self.kernel.evict_one():
            raise LimitReached("the registry is full of blocks that are dirty, pinned or locked")
        self.registry.insert(entry)

    def set_page(self, entry: Cached, page: cython.ulonglong) -> None:
        """Give the entry a page whose hold it takes over; the old page is dropped."""
        if entry.page != _NO_PAGE:
            self.pages.drop(entry.page)
        entry.page = page
        entry.pins = 0
        arena: Arena = self.pages.arena_of(page)
        entry.writer = arena.writer
        self.registry.renew(entry)

    def access_to_children(self, entry: Cached) -> Access:
        """Who may read and write what the block controls: its guard (DESIGN 3)."""
        if entry.child_access is None:
            assert entry.xtype is not None and entry.xtype.template is not None
            read, write = entry.xtype.template.guard(self.pages.view(entry.page), entry.tree)
            entry.child_access = self.pages.access(frozenset(read), frozenset(write))
        return entry.child_access

    def metadata(self, da: cython.ulonglong) -> Cached:
        """The structured block at `da`, in core.  Raises NotInCore or WrongType."""
        entry = self.get(da >> 12 & _DB_MASK)
        if entry is None or not entry.flags & _VALID:
            raise NotInCore(f"block {da >> 12 & _DB_MASK} is not in the registry")
        if not entry.flags & _META:
            raise WrongType(f"block {entry.db} is not structured metadata")
        return entry

    def forget(self, entry: Cached) -> None:
        """Take the entry out of the table: evicted, freed, or never read."""
        xtype: XnType = entry.xtype
        if entry.counted and entry.parent is not None:
            order.count(entry, entry.parent, False)
            self.registry.publish(entry.parent)
            order.recount(entry.parent)
        if entry.total_taint:
            for wait in entry.waits:
                wait.on.waiters.remove(wait)
            entry.waits = []
            entry.total_taint = 0
            entry.taint = [0] * SECTORS
        if xtype is not None:
            xtype.cached -= 1
        if entry.charged is not None:
            del entry.charged.unsettled[entry]
            entry.charged = None
        if entry.lock_holders or entry.lock_queue:
            self.kernel.locks.entry_gone(entry)
        self.registry.remove(entry)
        if entry.page != _NO_PAGE and not entry.flags & _READING:
            self.pages.drop(entry.page)
            entry.page = NO_PAGE

    def fill_uninitialised(self) -> int:
        """Zeros for data blocks that were allocated without contents, at most FILL_BLOCKS; how many they were.

        Nothing that points to such a block may become durable (ORDER-1), so one that its owner forgets keeps all
        above it off the disk.  Who still has contents for it may publish them as ever: they take the place of these.
        """
        found = []
        for entry in self.registry.cached.values():
            if entry.device is self and entry.page == NO_PAGE and not entry.flags & (_VALID | _READING):
                found.append(entry)
                if len(found) == FILL_BLOCKS:
                    break
        if not found:
            return 0
        page = self.io.own_page()
        self.pages.zero(page)
        for entry in found:
            self.pages.hold(page)
            self.set_page(entry, page)
            entry.flags |= _VALID
            entry.dirty = ALL_SECTORS
            entry.sequence += 1
            self.registry.publish(entry)
        self.pages.drop(page)
        return len(found)

    # ---- freeing (ORDER-6)

    def free_extent(self, parent: Cached, sector: int, db: int, count: int) -> order.WillFree:
        """Blocks whose pointer was in `sector` of `parent` are owned no more.

        Gives the record; the caller calls `free_now` for those without conditions when all frees of the
        transaction are recorded.
        """
        record = order.WillFree(self, db, count)
        cached = self.cached_in(db, count)
        never_linked = len(cached) == count and not any(entry.linked for entry in cached)
        for entry in cached:
            if entry.flights:
                entry.will_free = record
                record.conditions += 1
            entry.flags |= _WILL_FREE
            if entry.waiters:
                if never_linked:
                    order.release_waiters(entry)
                else:
                    order.hand_over_waiters(entry, parent, sector)
            if self.moves:
                self.moves = [
                    (move[0], move[1], parent, sector) if move[2] is entry else move
                    for move in self.moves
                    if not (never_linked and move[2] is entry)
                ]
            self.forget(entry)
        if not never_linked and (parent.dirty | parent.in_flight | parent.written) >> sector & 1:
            order.FreeCondition(record, parent, sector)
        for _, _, loser, lost_in in self.moves_of(db, count):
            order.FreeCondition(record, loser, lost_in)
        if record.conditions:
            self.waiting_frees += count
            self.counters.add("will_free", count)
        return record

    def note_move(self, db: int, count: int, loser: Cached, sector: int) -> None:
        """The disk may hold the old pointer to the extent until that sector is durable."""
        self.moves = [move for move in self.moves if _on_its_way(move[2], move[3])]
        self.moves.append((db, count, loser, sector))

    def moves_of(self, db: int, count: int) -> list[tuple[int, int, Cached, int]]:
        """Moves of these blocks whose old pointers the disk may still hold."""
        return [
            move
            for move in self.moves
            if move[0] < db + count and db < move[0] + move[1] and _on_its_way(move[2], move[3])
        ]

    def cached_in(self, db: cython.ulonglong, count: cython.ulonglong) -> list[Cached]:
        registry = self.registry
        base: cython.ulonglong = self.number << 44
        block: cython.ulonglong
        entry: Cached | None
        if count <= registry.in_core():
            found = []
            for block in range(db, db + count):
                entry = registry.get(base | block)
                if entry is not None:
                    found.append(entry)
            return found
        return [entry for entry in registry.cached.values() if entry.device is self and db <= entry.db < db + count]

    def free_now(self, record: order.WillFree) -> None:
        """Nothing durable can lead to the blocks: they may be allocated again."""
        self.freemap.release(record.db, record.count)
        if self.reports.needed:
            self.reports.freed(record.db, record.count)
        self.counters.add("blocks_freed", record.count)

    def will_free_done(self, record: order.WillFree) -> None:
        self.waiting_frees -= record.count
        self.free_now(record)

    # ---- roots

    def root_written(self, name: str) -> None:
        """The catalogue sector that names it is put in flight: the root is attached (ORDER-4)."""
        for entry in self.roots.get(name, ()):
            entry.flags |= _ATTACHED
            entry.linked = True
            self.registry.publish(entry)

    def root_durable(self, name: str) -> None:
        for entry in self.roots.get(name, ()):
            entry.anchored = True

    def settle_roots(self) -> bool:
        """Roots that became complete may enter the disk's catalogue (CAT-1); whether there is something to write."""
        for entry in self.catalogue.pending():
            blocks = self.roots.get(entry.name)
            if entry.flags & FLAG_TEMPORARY:
                continue
            if blocks and all(order.complete(block) for block in blocks):
                self.catalogue.settle(entry.name)
        return bool(self.catalogue.dirty)

    def root_entries(self, entry: CatalogueEntry) -> list[Cached] | None:
        """The root's blocks if all are in core."""
        found = [self.get(db) for db in range(entry.db, entry.db + entry.count)]
        if any(block is None or block.dead for block in found):
            return None
        return [block for block in found if block is not None]

    def data_type(self) -> XnType:
        return self.types[TYPE_XN_DB]

    def entries(self) -> list[Cached]:
        """All blocks of the device that are in core."""
        return [entry for entry in self.registry.cached.values() if entry.device is self]

    @property
    def dirty_blocks(self) -> list[Cached]:
        return [entry for entry in self.entries() if entry.dirty]


def _on_its_way(entry: Cached, sector: int) -> bool:
    """Whether what the sector says in core may not be durable yet."""
    return bool((entry.dirty | entry.in_flight | entry.written) >> sector & 1)
