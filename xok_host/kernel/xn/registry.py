# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The buffer cache registry (thesis 4.4): which blocks are in core, in which page, in which state.

The registry records; it decides nothing.  Kernel code works on `Cached` objects; the table in shared memory is their
image for libOSes, rewritten by `publish` after every change (layout: xok_host.abi.views).

REG-1  A block has at most one entry; an entry is in the table from `insert` to `remove`.
REG-2  `generation` is odd while the table's entry is being rewritten and changes whenever the page, or bytes in it
       that XN knows of, change.
REG-3  A `Cached` outlives its place in the table (`dead`) while writes of it are on their way or others wait for it.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import cython

from xok_host.abi.errors import LimitReached, NotInCore
from xok_host.abi.types import ALL_SECTORS, BLOCK_LIMIT, SECTORS, Flag
from xok_host.abi.views import (
    _HASH_MULTIPLIER as HASH_MULTIPLIER,
)
from xok_host.abi.views import (
    REGISTRY_ENTRY_BYTES,
    REGISTRY_HEADER,
    REGISTRY_HEADER_BYTES,
    REGISTRY_MAGIC,
    REGISTRY_VERSION,
    bucket_of,
    registry_entries_offset,
)

if TYPE_CHECKING:
    from xok_host.kernel.pages import Access
    from xok_host.kernel.xn.device import Device

NO_PAGE = 0xFFFF_FFFF_FFFF_FFFF

_VALID = cython.declare(cython.uint, int(Flag.VALID))
_READING = cython.declare(cython.uint, int(Flag.READING))
_META = cython.declare(cython.uint, int(Flag.META))
_QUARANTINE = cython.declare(cython.uint, int(Flag.QUARANTINE))
_ATTACHED = cython.declare(cython.uint, int(Flag.ATTACHED))


_OLDEST = cython.declare(cython.long, 8)
"""Word of the header."""
_MULTIPLIER = cython.declare(cython.ulonglong, HASH_MULTIPLIER)
_MASK32 = cython.declare(cython.uint, 0xFFFF_FFFF)
_ENTRY_BYTES = cython.declare(cython.long, REGISTRY_ENTRY_BYTES)
_ALL = cython.declare(cython.int, ALL_SECTORS)
_NO_PAGE = cython.declare(cython.ulonglong, NO_PAGE)
_BLOCKS = cython.declare(cython.ulonglong, BLOCK_LIMIT - 1)
_NO_SECTORS = (0,) * SECTORS
_NOTHING = ()


_moves = cython.declare(cython.ulonglong, 0)
"""How often a block got another parent than it had."""


def count_move() -> None:
    global _moves
    _moves += 1


@cython.freelist(512)
@cython.cclass
class Cached:
    """One block in core.

    Sector masks: `dirty` changed since last put in flight; `in_flight`; `written` but not durable; `durable` has been
    durable once since the block was allocated.  `sequence` counts modifications, `changed[s]` is its value at the
    last change of sector s.

    Ownership: `parent` owns the block by a pointer in its sector `parent_sector`; `linked` says that the pointer was
    put in flight, `anchored` that it is durable; `counted` that the parent's sector waits for this block (see `order`).
    """

    __slots__ = (
        "access",
        "anchored",
        "busy",
        "changed",
        "charged",
        "child_access",
        "counted",
        "db",
        "dead",
        "deferred",
        "device",
        "dirty",
        "durable",
        "flags",
        "flights",
        "fresh",
        "generation",
        "in_flight",
        "index",
        "key",
        "kids",
        "landing",
        "link_sequence",
        "linked",
        "lock",
        "lock_holders",
        "lock_queue",
        "memo",
        "moves",
        "page",
        "parent",
        "parent_da",
        "parent_sector",
        "pins",
        "readers",
        "sequence",
        "taint",
        "total_taint",
        "tree",
        "type",
        "unlinked",
        "waiters",
        "waits",
        "will_free",
        "writer",
        "written",
        "xtype",
    )

    def __init__(self, device: Device, db: int, key: int) -> None:
        self.begin(device, db, key)

    def begin(self, device: Device, db: cython.ulonglong, key: cython.ulonglong) -> None:
        """A block of which nothing is known yet."""
        if not cython.compiled:
            self._clear()
        self.device = device
        self.db = db
        self.key = key
        self.index = -1
        self.page = _NO_PAGE
        self.landing = _NO_PAGE
        """Where a read brings the block, before it is copied to `page`."""
        self.durable = _ALL
        self.linked = True
        self.anchored = True
        """The pointer of its parent is durable."""
        # Plain data, of which there is most, needs few of these: they are made when they are first used.
        self.changed: Any = _NO_SECTORS
        self.taint: Any = _NO_SECTORS
        self.kids: Any = _NOTHING
        self.fresh: Any = _NOTHING
        self.waits: Any = _NOTHING
        self.waiters: Any = _NOTHING
        self.flights: tuple[Any, ...] = _NOTHING
        """On their way, or written and not durable; of several in the order of their beginnings."""
        self.deferred: Any = _NOTHING
        self.readers: Any = _NOTHING
        self.lock_holders: Any = _NOTHING
        self.lock_queue: Any = _NOTHING

    def _clear(self) -> None:
        """What is 0, False or None in a new object when it is compiled."""
        self.generation = 0
        self.type = 0
        self.xtype: Any = None
        self.flags = 0
        self.dirty = 0
        self.in_flight = 0
        self.written = 0
        self.pins = 0
        self.writer = 0
        self.access: Access | None = None
        self.child_access: Access | None = None
        self.tree = 0
        self.parent: Cached | None = None
        self.parent_da = 0
        self.parent_sector = 0
        self.unlinked: Cached | None = None
        """This or a block above whose pointer was never in flight, as of `moves`."""
        self.moves = 0
        self.link_sequence = 0
        """Modification of the parent that made the pointer."""
        self.counted = False
        self.dead = False
        self.busy = False
        """Part of a transaction that is being carried out."""
        self.sequence = 0
        self.total_taint = 0
        self.will_free: Any = None
        self.charged: Any = None
        """The environment in whose share it is counted while it cannot leave (`apply.charge`)."""
        self.lock = 0
        self.memo: Any = None
        """Partition to what its UDFs say of the present contents: (owns, canonical; refs; refcnt), arrays; the last two
        None until verification asks for them."""

    def become_metadata(self) -> None:
        """The block turns out to be structured: it may own, wait and be waited for."""
        self.flags |= _META
        self.changed = [0] * SECTORS
        self.taint = [0] * SECTORS
        self.kids = set()
        self.fresh = []
        self.memo = {}
        self.waits = []
        self.waiters = []

    def __repr__(self) -> str:
        return (
            f"<block {self.db} type {self.type} dirty {self.dirty:02x} durable {self.durable:02x} taint {self.taint}>"
        )

    def attached(self) -> cython.bint:
        """Whether a durable pointer may lead to the block (`order`, ORDER-4).  Once it may, that is remembered; before,
        the block above to which none leads is, so that a long chain is not walked for each of its blocks."""
        chain = []
        at: Cached | None = self
        unlinked: Cached | None = None
        while at is not None and not at.flags & _ATTACHED:
            if not at.linked:
                unlinked = at
                break
            if at.unlinked is not None and at.moves == _moves and not (at.unlinked.linked or at.unlinked.dead):
                unlinked = at.unlinked
                break
            chain.append(at)
            at = at.parent
        for block in chain:
            block.unlinked = unlinked
            block.moves = _moves
            if unlinked is None:
                block.flags |= _ATTACHED
        return unlinked is None

    def evictable(self) -> cython.bint:
        """Nothing would be lost or left hanging if the entry went away."""
        return self.settled() and not (
            self.pins
            or self.lock
            or self.lock_queue
            or self.waiters
            or self.readers
            or self.busy
            or self.flags & _READING
        )

    def settled(self) -> cython.bint:
        """All of it is durable, and the disk leads to it: nothing that was done to it keeps it in core."""
        return not (
            self.dirty | self.in_flight | self.written
            or self.total_taint
            or self.durable != _ALL
            or (self.flags & _META and not (self.anchored and self.attached()))
        )


@cython.final
@cython.cclass
class Registry:
    """All `Cached` of all devices, and their image."""

    __slots__ = (
        "_buckets",
        "_entries",
        "_free",
        "_newer",
        "_older",
        "_quads",
        "_slots",
        "_table",
        "_words",
        "nbuckets",
        "nentries",
        "sequence",
    )

    def __init__(self, table: memoryview, nentries: int, nbuckets: int) -> None:
        self._table = table
        # The layout of REGISTRY_ENTRY, as words: a test holds the two together.
        self._words = table[: len(table) // 8 * 8].cast("I")
        self._quads = table[: len(table) // 8 * 8].cast("Q")
        self.nentries = nentries
        self.nbuckets = nbuckets
        self._entries = registry_entries_offset(nbuckets)
        # The order of use, as a ring through the indices of entries; `nentries` stands between newest and oldest.
        self._newer = array("i", [nentries] * (nentries + 1))
        self._older = array("i", [nentries] * (nentries + 1))
        self._slots: list[Cached | None] = [None] * nentries
        self._free = list(range(nentries - 1, -1, -1))
        self._buckets = REGISTRY_HEADER_BYTES // 4
        self.sequence = 0
        self._header()

    def _header(self) -> None:
        REGISTRY_HEADER.pack_into(
            self._table,
            0,
            REGISTRY_MAGIC,
            REGISTRY_VERSION,
            self.nentries,
            self.nbuckets,
            0,
            self.sequence,
            0,
        )

    def _count(self) -> None:
        """The two fields of the header that change."""
        self._quads[2] = self.nentries - len(self._free)
        self._quads[3] = self.sequence

    def get(self, key: cython.ulonglong) -> Cached | None:
        index: cython.long = self._place(key, -1)
        return None if index < 0 else cython.cast(Cached, self._slots[index])

    def after(self, entry: Cached | None, key: cython.ulonglong) -> Cached | None:
        """`get` of a block that may have come in together with `entry`."""
        index: cython.long = self._place(key, -1 if entry is None else entry.index)
        return None if index < 0 else cython.cast(Cached, self._slots[index])

    def run(self, key: cython.ulonglong, count: cython.ulonglong, whole: cython.bint) -> list[Any]:
        """`get` of `count` blocks from that one on.  Raises NotInCore if they shall be `whole` and one is missing."""
        found: list[Any] = []
        index: cython.long = -1
        at: cython.ulonglong
        for at in range(key, key + count):
            index = self._place(at, index)
            if index >= 0:
                found.append(self._slots[index])
            elif whole:
                raise NotInCore(f"block {at & _BLOCKS} is not in the registry")
            else:
                found.append(None)
        return found

    def _place(self, key: cython.ulonglong, near: cython.long) -> cython.long:
        """The index of the block's entry, or -1.  It is looked for on both sides of `near` (-1: nowhere) first: blocks
        that are neighbours on the disk, and came in together, are neighbours in the table."""
        first: cython.long = self._entries >> 3
        index: cython.long = near + 1
        if near >= 0:  # the table says whose a place was last, so it must be somebody's now
            if index < self.nentries and self._quads[first + index * 8] == key and self._slots[index] is not None:
                return index
            index = near - 1
            if index >= 0 and self._quads[first + index * 8] == key and self._slots[index] is not None:
                return index
        index = self._words[self._bucket(key)]
        while index:
            if self._quads[first + (index - 1) * 8] == key:
                return index - 1
            index = self._words[first * 2 + (index - 1) * 16 + 14]
        return -1

    def __getitem__(self, key: int) -> Cached:
        """The entry of a block that is in core."""
        entry = self.get(key)
        if entry is None:
            raise KeyError(key)
        return entry

    def touch(self, entry: Cached) -> None:
        """Make it the most recently used."""
        if self._older[self.nentries] != entry.index:
            self._unchain(entry.index)
            self._chain(entry.index)

    def _chain(self, index: cython.int) -> None:
        """As the most recently used."""
        last: cython.int = self._older[self.nentries]
        self._newer[last] = index
        self._older[index] = last
        self._newer[index] = self.nentries
        self._older[self.nentries] = index
        self._show_newer(last)
        self._show_newer(index)

    def _unchain(self, index: cython.int) -> None:
        newer: cython.int = self._newer[index]
        older: cython.int = self._older[index]
        self._newer[older] = newer
        self._older[newer] = older
        self._show_newer(older)

    def _show_newer(self, index: cython.int) -> None:
        """Publish what was used next after that entry, or (`nentries`) which is the oldest."""
        newer: cython.uint = self._newer[index]
        if newer == self.nentries:
            newer = 0
        else:
            newer += 1
        if index == self.nentries:
            self._words[_OLDEST] = newer
        else:
            self._words[(self._entries >> 2) + index * 16 + 15] = newer

    def oldest(self) -> Cached | None:
        """The entry that has not been used for longest."""
        return self._at_place(self._newer[self.nentries])

    def newer(self, entry: Cached) -> Cached | None:
        """The entry that was used next after this one."""
        return self._at_place(self._newer[entry.index])

    def _at_place(self, index: cython.int) -> Cached | None:
        return None if index == self.nentries else self._slots[index]

    @property
    def cached(self) -> dict[int, Cached]:
        """Key to entry, least recently used first, as it is now: a copy."""
        out = {}
        entry = self.oldest()
        while entry is not None:
            out[entry.key] = entry
            entry = self.newer(entry)
        return out

    def in_core(self) -> cython.long:
        """Number of entries."""
        return self.nentries - len(self._free)

    def full(self) -> cython.bint:
        return not self._free

    def room(self) -> cython.long:
        """Entries that still fit."""
        return len(self._free)

    def insert(self, entry: Cached) -> None:
        """Give the entry of a block that has none a place in the table, at the front of its chain.  Raises
        LimitReached."""
        if not self._free:
            raise LimitReached(f"the registry has {self.nentries} entries, all in use")
        entry.index = self._free.pop()
        self._slots[entry.index] = entry
        at: cython.long = self._at(entry)
        entry.generation = (self._words[at + 4] | 1) + 1 & _MASK32
        bucket: cython.long = self._bucket(entry.key)
        self._words[at + 4] = entry.generation | 1
        self._words[at + 14] = self._words[bucket]
        self._chain(entry.index)
        self.publish(entry)
        self._words[bucket] = entry.index + 1
        self._count()

    def remove(self, entry: Cached) -> None:
        """Take the entry out of the table.  Pages and everything else are the caller's business."""
        self._unchain(entry.index)
        at: cython.long = self._at(entry)
        self._words[at + 4] = entry.generation | 1
        place: cython.long = self._bucket(entry.key)
        while self._words[place] != entry.index + 1:
            place = ((self._entries + (self._words[place] - 1) * _ENTRY_BYTES) >> 2) + 14
        self._words[place] = self._words[at + 14]
        self._slots[entry.index] = None
        self._free.append(entry.index)
        entry.index = -1
        entry.dead = True
        self._count()

    def _bucket(self, key: cython.ulonglong) -> cython.long:
        """The 32-bit word of the table that heads the key's chain (`views.bucket_of`)."""
        if cython.compiled:
            return self._buckets + (((key >> 4) * _MULTIPLIER >> 32 << 4 | key & 15) & self.nbuckets - 1)
        else:
            return self._buckets + bucket_of(key, self.nbuckets)

    def _at(self, entry: Cached) -> cython.long:
        """The entry's first 32-bit word in the table."""
        return (self._entries + entry.index * _ENTRY_BYTES) >> 2

    @cython.boundscheck(False)
    @cython.wraparound(False)
    def publish(self, entry: Cached) -> None:
        """Rewrite the entry's image; readers see an odd generation meanwhile (REG-2)."""
        if entry.index < 0:
            return
        at: cython.long = self._at(entry)
        quad: cython.long = at >> 1
        self._words[at + 4] = entry.generation | 1
        self._quads[quad] = entry.key
        self._quads[quad + 1] = entry.page
        self._words[at + 5] = entry.type
        self._words[at + 6] = entry.flags | entry.dirty << 16 | entry.in_flight << 24
        self._words[at + 7] = entry.written | entry.durable << 8
        self._words[at + 8] = entry.pins
        self._words[at + 9] = entry.total_taint
        self._words[at + 10] = entry.writer
        self._words[at + 11] = entry.lock
        self._quads[quad + 6] = entry.parent_da
        self._words[at + 4] = entry.generation

    @cython.boundscheck(False)
    @cython.wraparound(False)
    def show_state(self, entry: Cached) -> None:
        """Publish flags and sector masks, if nothing else has changed: one aligned word, which nobody sees half."""
        state: cython.ulonglong
        if entry.index >= 0:
            state = entry.written | entry.durable << 8
            state = state << 32 | (entry.flags | entry.dirty << 16 | entry.in_flight << 24)
            self._quads[(self._at(entry) >> 1) + 3] = state

    def renew(self, entry: Cached) -> None:
        """Page or contents changed: a new generation."""
        entry.generation = entry.generation + 2 & _MASK32
        self.sequence += 1

    def image(self, entry: Cached) -> bytes:
        """The 64 bytes of the entry in the table."""
        at = self._entries + entry.index * REGISTRY_ENTRY_BYTES
        return bytes(self._table[at : at + REGISTRY_ENTRY_BYTES])
