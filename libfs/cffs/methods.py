"""The protected methods of a shared volume: what every writer of it must keep (docs/cffs.md section 7; thesis 6.4).

A shared volume is written by environments that distrust one another.  XN runs these programs for every sector that a
transaction changes, and refuses what they do not approve, however the writer came to the bytes.

M1  A used sector says which directory its block is of and where in its table; that was true when the sector came into
    use, and never changes.  The root extent keeps its names and slots.
M2  Names lie without gaps up to `end`, which is not beyond the lowest used slot, and `names` counts them.  A name is no
    `.` or `..`, has no slash, and its slot is used.  A hidden name is the number of its inode.
M3  A new name is in the bucket that it belongs to, at the directory's level, and nowhere else in it, but for one entry
    whose version is the one before or after: the later has replaced the other.  So a name always resolves to one inode.
    While the directory grows, only names of the old table come into the new.
M4  What an inode says changes only with a ctime of about now, by xokd's clock, and ctime never goes back.
M5  A directory starts at level 0 and grows by one level: first GROWING is set, and it is cleared when the old table
    shows no name.  A block once used stays at its place in its directory's table, alone there.

They hold of every state by induction: a fresh block is empty, and the methods see all changes.  That M1 and M5 can be
held without a look at the state before is what a sector's `owner` and `logical` and a map node's `owner` are for: a
block may be given a place in a table only if its own sectors say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from libfs.cffs import layout as l
from xok_host.abi.method import CONTEXT_HEADER, WITNESS, Witnesses
from xok_host.abi.types import BLOCK, SECTOR, SECTORS
from xok_host.abi.udf import CONTEXT, META, NEW, STACK_BASE, Cond, Expr, Fields, Function, Operand, Var, bit, load

LATE_NS = 60_000_000_000
"""A change must reach XN this long after its ctime: C-FFS answers first and crosses later."""
AHEAD_NS = 1_000_000_000
"""How far a ctime may be ahead of xokd's clock, which is that of the start of its turn."""

_IFMT, _IFDIR = 0xF000, 0x4000
_TABLE = l.LEVEL_MASK | l.GROWING
_GROWING = 1 << l.LEVEL_SHIFT | l.GROWING
_GROWN = 1 << l.LEVEL_SHIFT
_EXTENTS = l.INODE.offset("extents")
_PLACES = 8 * l.BUCKET
"""Bytes of a list of a bucket's blocks on the stack."""
_DOT, _SLASH = 0x2E, 0x2F


class _Method:
    """What both programs are made of."""

    def __init__(self, directory_type: int, map_type: int) -> None:
        self.f = f = Function()
        self.directory_type, self.map_type = directory_type, map_type
        with f.if_(f.part >= SECTORS):
            f.return_(0)
        self.here = f.var(NEW + f.part * SECTOR)
        self.before = f.var(META + f.part * SECTOR)
        self.shown = Witnesses(f)
        self.context = self.shown.context

    def refuse_if(self, condition: Cond) -> None:
        with self.f.if_(condition):
            self.f.return_(0)

    def approve(self) -> bytes:
        self.f.return_(1)
        return self.f.finish()

    def find(self, block: Operand, kind: int) -> Var:
        """The bytes of a witness of that type; refused if it is not shown.  Other types' bytes mean nothing to us."""
        f = self.f
        wanted = f.var(block)
        found = f.var(0)
        with self.shown.each() as (witness, data), f.if_((witness.block == wanted) & (witness.type == kind)):
            f.set(found, data)
            f.break_()
        self.refuse_if(found == 0)
        return found

    def check_place(self, data: Expr, owner: Expr, logical: Expr) -> None:
        """A block may be at this place of this directory's table: its used sectors say so."""
        f = self.f
        with f.for_range(0, BLOCK, SECTOR) as at:
            header = f.at(l.SHARED_HEADER, data + at)
            self.refuse_if((header.magic != 0) & ((header.owner != owner) | (header.logical != logical)))

    def inode_of(self, number: Expr) -> Fields:
        """The inode of a directory, which must be shown."""
        f = self.f
        slot = f.var(number & 3)
        self.refuse_if(slot == 0)
        sector = f.var(self.find(number >> 5, self.directory_type) + (number >> 2 & 7) * SECTOR)
        self.refuse_if((load(sector + l.SECTOR_HEADER.offset("used"), 1) >> slot & 1) == 0)
        inode = f.at(l.INODE, sector + slot * l.INODE_BYTES)
        self.refuse_if((inode.mode & _IFMT) != _IFDIR)
        return inode

    @contextmanager
    def table_of(self, inode: Fields) -> Iterator[Fields]:
        """Each entry of a directory's table: in the inode or in the one node, which must be shown."""
        f = self.f
        rows = f.var(1)
        start = f.var(inode.address("extents"))
        deep = f.var(inode.flags & l.DEPTH_MASK)
        with f.if_(deep != 0):
            f.set(start, self.find(inode.tree, self.map_type))
            f.set(rows, SECTORS)
        with f.for_range(0, rows):
            used = f.var(l.DIRECT)
            at = f.var(start)
            with f.if_(deep != 0):
                f.set(used, load(start + l.NODE_HEADER.offset("used"), 1))
                f.set(at, start + l.HEADER_BYTES)
            with f.for_each(l.EXTENT, at, used) as entry, f.if_(entry.count != 0):
                yield entry
            f.set(start, start + SECTOR)

    def same_extent(self, one: Fields, other: Fields) -> Cond:
        return (load(one.address(), 8) == load(other.address(), 8)) & (one.start == other.start)

    def same_bytes(self, one: Expr, other: Expr, length: Expr) -> Var:
        """1: the names are equal."""
        f = self.f
        same = f.var(1)
        with f.for_range(0, length) as at, f.if_(load(one + at, 1) != load(other + at, 1)):
            f.set(same, 0)
            f.break_()
        return same


class _Directory(_Method):
    """The method of directory blocks."""

    def __init__(self, directory_type: int, map_type: int) -> None:
        super().__init__(directory_type, map_type)
        f = self.f
        self.new = f.at(l.SHARED_HEADER, self.here)
        self.old = f.at(l.SHARED_HEADER, self.before)
        self.root = f.var(0)
        """1: a sector of the root extent."""
        self.inode = f.var(0)
        """Address of the directory's inode once `locate` has run."""

    def program(self) -> bytes:
        self.header()
        self.inodes()
        self.names()
        return self.approve()

    # ---- M1

    def header(self) -> None:
        f, new, old = self.f, self.new, self.old
        self.refuse_if((new.magic != l.DIR_MAGIC) | (new.version != l.FORMAT_VERSION))
        with f.if_(self.context.parent == 0):
            f.set(self.root, 1)
        with f.if_(old.magic != 0):
            self.refuse_if((new.owner != old.owner) | (new.logical != old.logical))
            with f.if_(self.root != 0):
                self.refuse_if((new.used != old.used) | (new.names != old.names))
        with f.else_():
            with f.if_(self.root != 0):
                self.refuse_if((f.part != 0) | (new.owner != 0) | (new.logical != 0))
            with f.else_():
                self.locate()

    def locate(self) -> None:
        """Find the directory's inode, that this block is where its header says, and the bucket's blocks: their bytes
        go to a list on the stack, those of the old table while the directory grows behind them."""
        f, new = self.f, self.new
        inode = self.inode_of(new.owner)
        f.set(self.inode, inode.address())
        growing = f.var(inode.flags & l.GROWING)
        base = f.var(new.logical & ~(l.BUCKET - 1))
        present = f.var(0)
        with self.table_of(inode) as entry:
            place = f.var(entry.logical - base)
            with f.if_((place >= l.BUCKET) & (growing != 0)):
                f.set(place, entry.logical + l.BUCKET)
                with f.if_(entry.logical >= l.BUCKET):
                    f.set(place, 2 * l.BUCKET)
            with f.if_((place < l.BUCKET) | ((growing != 0) & (place < 2 * l.BUCKET))):
                cell = f.var(STACK_BASE + place * 8)
                self.refuse_if(load(cell, 8) != 0)
                data = f.var(NEW)
                with f.if_(entry.start != self.context.block):
                    f.set(data, self.find(entry.start, self.directory_type))
                with f.else_():
                    self.refuse_if(entry.logical != new.logical)
                    f.set(present, 1)
                f.store(cell, data, 8)
        self.refuse_if(present == 0)

    # ---- M4 and M5

    def inodes(self) -> None:
        f = self.f
        self.refuse_if(bit(self.new.used, 0xFF & ~0xE))
        with f.for_range(1, l.SLOTS + 1) as slot, f.if_((self.new.used >> slot & 1) != 0):
            inode = f.at(l.INODE, self.here + slot * l.INODE_BYTES)
            was = f.at(l.INODE, self.before + slot * l.INODE_BYTES)
            same = f.var(0)
            with f.if_(((self.old.used >> slot & 1) != 0) & (was.generation == inode.generation)):
                f.set(same, 1)
            self.times(inode, was, same)
            with f.if_((inode.mode & _IFMT) == _IFDIR):
                number = f.var(self.context.block << 5 | f.part << 2 | slot)
                self.growth(inode, was, same)
                self.table(inode, was, same, number)

    def times(self, inode: Fields, was: Fields, same: Var) -> None:
        f, now = self.f, self.context.now
        changed = f.var(1)
        with f.if_(same != 0):
            self.refuse_if(((inode.mode ^ was.mode) & _IFMT) != 0)
            self.refuse_if(inode.ctime < was.ctime)
            f.set(changed, (inode.mode ^ was.mode) | ((inode.flags ^ was.flags) & (l.DEPTH_MASK | l.INLINE)))
            for start, end in l.TRUE_BYTES:
                with f.for_range(start, end, 8) as at:
                    f.set(changed, changed | (load(inode.address() + at, 8) ^ load(was.address() + at, 8)))
        with f.if_(changed != 0):
            self.refuse_if(inode.ctime + LATE_NS < now)
            with f.if_(inode.ctime > now + AHEAD_NS):
                # A clock that was set back: what was true stays.
                self.refuse_if((same == 0) | (inode.ctime != was.ctime))

    def growth(self, inode: Fields, was: Fields, same: Var) -> None:
        f = self.f
        self.refuse_if(bit(inode.flags, l.INLINE | l.DEPTH_MASK & ~1))
        state = f.var(inode.flags & _TABLE)
        before = f.var(0)
        with f.if_(same != 0):
            f.set(before, was.flags & _TABLE)
        with f.if_(state != before):
            with f.if_(before == _GROWING):
                self.refuse_if(state != _GROWN)
                with self.table_of(inode) as entry, f.if_(entry.logical < l.BUCKET):
                    data = self.find(entry.start, self.directory_type)
                    with f.for_range(0, BLOCK, SECTOR) as at:
                        self.refuse_if(load(data + at + l.SECTOR_HEADER.offset("names"), 1) != 0)
            with f.else_():
                self.refuse_if((before != 0) | (state != _GROWING))

    def table(self, inode: Fields, was: Fields, same: Var, number: Var) -> None:
        f = self.f
        with f.if_(bit(inode.flags, l.DEPTH_MASK)):
            with f.if_((same == 0) | ~bit(was.flags, l.DEPTH_MASK) | (inode.tree != was.tree)):
                node = self.find(inode.tree, self.map_type)
                with f.for_range(0, BLOCK, SECTOR) as at:
                    header = f.at(l.MAP_HEADER, node + at)
                    self.refuse_if((header.magic != 0) & (header.owner != number))
        with f.else_(), f.for_range(_EXTENTS, _EXTENTS + l.DIRECT * l.EXTENT.size, l.EXTENT.size) as at:
            entry = f.at(l.EXTENT, inode.address() + at)
            with f.if_(entry.count != 0):
                self.refuse_if((entry.count != 1) | (entry.logical >= l.SHARED_BLOCKS))
                known = f.var(0)
                with f.for_range(_EXTENTS, _EXTENTS + l.DIRECT * l.EXTENT.size, l.EXTENT.size) as other:
                    beside = f.at(l.EXTENT, inode.address() + other)
                    self.refuse_if((other != at) & (beside.count != 0) & (beside.logical == entry.logical))
                    held = f.at(l.EXTENT, was.address() + other)
                    with f.if_((same != 0) & ~bit(was.flags, l.DEPTH_MASK) & self.same_extent(held, entry)):
                        f.set(known, 1)
                with f.if_(known == 0):
                    self.check_place(self.find(entry.start, self.directory_type), number, entry.logical)

    # ---- M2 and M3

    def names(self) -> None:
        f, new = self.f, self.new
        self.refuse_if((new.end < l.HEADER_BYTES) | (new.end > SECTOR))
        for number in range(1, l.SLOTS + 1):
            self.refuse_if(bit(new.used, 1 << number) & (new.end > number * l.INODE_BYTES))
        at = f.var(self.here + l.HEADER_BYTES)
        end = f.var(self.here + new.end)
        count = f.var(0)
        with f.while_(at < end):
            text = f.var(at + l.NAME_ENTRY.size)
            self.refuse_if(text > end)
            entry = f.at(l.NAME_ENTRY, at)
            slot = f.var(entry.kind >> 4 & 3)
            target = f.var(self.context.block << 5 | f.part << 2 | slot)
            with f.if_(slot != 0):
                self.refuse_if((entry.chain != 0) | ((new.used >> slot & 1) == 0))
            with f.else_():
                self.refuse_if((entry.chain > l.CHAIN_MAX) | (text + 8 > end))
                f.set(target, load(text, 8))
                f.set(text, text + 8 + entry.chain * 8)
            length = f.var(entry.length)
            self.refuse_if((length == 0) | (text + length > end))
            with f.if_(load(text, 1) == l.HIDDEN[0]):
                self.refuse_if((length != l.HIDDEN_BYTES) | (load(text + 1, 8) != target))
            with f.else_():
                self.visible(at, entry, text, length, target)
            f.set(count, count + 1)
            f.set(at, text + length)
        self.refuse_if(count != new.names)

    @contextmanager
    def names_at(self, sector: Expr) -> Iterator[tuple[Var, Fields, Var]]:
        """Each entry of a sector that was approved: (address, fields, address of the name)."""
        f = self.f
        at = f.var(sector + l.HEADER_BYTES)
        end = f.var(sector + load(sector + l.SECTOR_HEADER.offset("end"), 2))
        following = f.var(at)
        with f.while_(at < end):
            entry = f.at(l.NAME_ENTRY, at)
            text = f.var(at + l.NAME_ENTRY.size)
            with f.if_((entry.kind & 0x30) == 0):
                f.set(text, text + 8 + entry.chain * 8)
            f.set(following, text + entry.length)
            yield at, entry, text
            f.set(at, following)

    def visible(self, at: Var, entry: Fields, text: Var, length: Var, target: Var) -> None:
        """One name of the sector: it was here before, or it must be alone."""
        f = self.f
        known = f.var(0)
        with self.names_at(self.before) as (_, old, old_text):
            with f.if_((old.length == length) & (old.kind == entry.kind)):
                held = f.var(target)
                with f.if_((old.kind & 0x30) == 0):
                    f.set(held, load(old_text - 8 - old.chain * 8, 8))
                with f.if_((held == target) & (self.same_bytes(old_text, text, length) != 0)):
                    f.set(known, 1)
                    f.break_()
        with f.if_(known == 0):
            with f.if_(self.root != 0):
                self.refuse_if(self.old.magic != 0)
            with f.else_():
                with f.if_(self.inode == 0):
                    self.locate()
                self.belongs(text, length)
                self.alone(at, entry, text, length, target)

    def belongs(self, text: Var, length: Var) -> None:
        """A name as names may be, in its bucket."""
        f = self.f
        self.refuse_if((length == 1) & (load(text, 1) == _DOT))
        self.refuse_if((length == 2) & (load(text, 2) == _DOT << 8 | _DOT))
        value = f.var(l.FNV_OFFSET)
        with f.for_range(text, text + length) as at:
            byte = f.var(load(at, 1))
            self.refuse_if((byte == 0) | (byte == _SLASH))
            f.set(value, (value ^ byte) * l.FNV_PRIME)
        inode = f.at(l.INODE, self.inode)
        level = f.var((inode.flags & l.LEVEL_MASK) >> l.LEVEL_SHIFT)
        bucket = f.var(0)
        with f.if_(level != 0):
            f.set(bucket, (value ^ value >> 32) & l.table_buckets(1) - 1)
            f.set(bucket, bucket + l.table_base(1) // l.BUCKET)
        self.refuse_if(bucket != self.new.logical >> (l.BUCKET.bit_length() - 1))

    def alone(self, at: Var, entry: Fields, text: Var, length: Var, target: Var) -> None:
        f = self.f
        replaced = f.var(0)
        moved = f.var(0)
        with f.for_range(STACK_BASE, STACK_BASE + 2 * _PLACES, 8) as cell:
            data = f.var(load(cell, 8))
            with f.if_(data != 0), f.for_range(0, BLOCK, SECTOR) as offset:
                sector = f.var(data + offset)
                with self.names_at(sector) as (other, held, held_text):
                    with f.if_((held.length == length) & (other != at)):
                        with f.if_(self.same_bytes(held_text, text, length) != 0):
                            with f.if_(cell < STACK_BASE + _PLACES):
                                ahead = f.var((entry.kind >> l.VERSION_SHIFT) - (held.kind >> l.VERSION_SHIFT) & 3)
                                self.refuse_if((replaced != 0) | ((ahead != 1) & (ahead != 3)))
                                f.set(replaced, 1)
                            with f.else_():
                                found = f.var(held.kind >> 4 & 3)
                                with f.if_(found != 0):
                                    f.set(found, found | self.number(data) << 5 | offset >> 7)
                                with f.else_():
                                    f.set(found, load(held_text - 8 - held.chain * 8, 8))
                                with f.if_(found == target):
                                    f.set(moved, 1)
        inode = f.at(l.INODE, self.inode)
        self.refuse_if(bit(inode.flags, l.GROWING) & (moved == 0))

    def number(self, data: Expr) -> Expr:
        """The block whose bytes as a witness are at `data`."""
        index = data - (CONTEXT + BLOCK) >> (BLOCK.bit_length() - 1)
        return load((index << (WITNESS.size.bit_length() - 1)) + CONTEXT + CONTEXT_HEADER.size, 8)


class _Map(_Method):
    """The method of the node that has a directory's table when the inode is too small for it."""

    def program(self) -> bytes:
        f = self.f
        new, old = f.at(l.MAP_HEADER, self.here), f.at(l.MAP_HEADER, self.before)
        with f.if_(new.magic == 0):
            self.refuse_if((load(self.here, 8) | new.owner) != 0)
            f.return_(1)
        self.refuse_if((new.magic != l.NODE_MAGIC) | (new.level != 0) | (new.content != 1))
        self.refuse_if(new.used > l.SECTOR_ENTRIES)
        owner = f.var(new.owner)
        with f.if_(old.magic != 0):
            self.refuse_if(owner != old.owner)
        with f.else_():
            inode = self.inode_of(owner)
            self.refuse_if(~bit(inode.flags, l.DEPTH_MASK) | (inode.tree != self.context.block))
        with f.for_each(l.EXTENT, self.here + l.HEADER_BYTES, new.used) as entry, f.if_(entry.count != 0):
            self.refuse_if((entry.count != 1) | (entry.logical >= l.SHARED_BLOCKS))
            known = f.var(0)
            with f.for_each(l.EXTENT, self.before + l.HEADER_BYTES, old.used) as held:
                with f.if_(self.same_extent(held, entry)):
                    f.set(known, 1)
            with f.if_(known == 0):
                self.check_place(self.find(entry.start, self.directory_type), owner, entry.logical)
                times = f.var(0)
                with f.for_range(NEW, NEW + BLOCK, SECTOR) as row:
                    used = load(row + l.MAP_HEADER.offset("used"), 1)
                    with f.for_each(l.EXTENT, row + l.HEADER_BYTES, used) as held:
                        with f.if_((held.count != 0) & (held.logical == entry.logical)):
                            f.set(times, times + 1)
                self.refuse_if(times != 1)
        return self.approve()


def directory_method(directory_type: int, map_type: int) -> bytes:
    return _Directory(directory_type, map_type).program()


def map_method(directory_type: int, map_type: int) -> bytes:
    return _Map(directory_type, map_type).program()
