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

from typing import TYPE_CHECKING, Any

import cython

from xok_host.abi.errors import LimitReached
from xok_host.abi.types import ALL_SECTORS, SECTORS, Flag
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

_VALID = int(Flag.VALID)
_READING = int(Flag.READING)
_META = int(Flag.META)
_QUARANTINE = int(Flag.QUARANTINE)
_ATTACHED = int(Flag.ATTACHED)


_MULTIPLIER = cython.declare(cython.ulonglong, HASH_MULTIPLIER)
_NO_SECTORS = (0,) * SECTORS
_NOTHING = ()


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
        "waiters",
        "waits",
        "will_free",
        "writer",
        "written",
        "xtype",
    )

    def __init__(self, device: Device, db: int, key: int) -> None:
        self.device = device
        self.db = db
        self.key = key
        self.index = -1
        self.page = NO_PAGE
        self.landing = NO_PAGE
        """Where a read brings the block, before it is copied to `page`."""
        self.generation = 0
        self.type = 0
        self.xtype: Any = None
        self.flags = 0
        self.dirty = 0
        self.in_flight = 0
        self.written = 0
        self.durable = ALL_SECTORS
        self.pins = 0
        self.writer = 0
        self.access: Access | None = None
        self.child_access: Access | None = None
        self.tree = 0
        self.parent: Cached | None = None
        self.parent_da = 0
        self.parent_sector = 0
        self.linked = True
        self.anchored = True
        """The pointer of its parent is durable."""
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
        # Plain data, of which there is most, needs few of these: they are made when they are first used.
        self.changed: Any = _NO_SECTORS
        self.taint: Any = _NO_SECTORS
        self.kids: Any = _NOTHING
        self.fresh: Any = _NOTHING
        self.waits: Any = _NOTHING
        self.memo: Any = None
        """Partition to what its UDFs say of the present contents: (owns, canonical; refs; refcnt), arrays."""
        self.waiters: Any = _NOTHING
        self.flights: Any = _NOTHING
        self.deferred: Any = _NOTHING
        self.readers: Any = _NOTHING
        self.lock_holders: Any = _NOTHING
        self.lock_queue: Any = _NOTHING

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
        """Whether a durable pointer may lead to the block (`order`, ORDER-4).  Once it may, that is remembered."""
        chain = []
        at: Cached | None = self
        while at is not None and not at.flags & _ATTACHED:
            if not at.linked:
                return False
            chain.append(at)
            at = at.parent
        for block in chain:
            block.flags |= _ATTACHED
        return True

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
            or self.durable != ALL_SECTORS
            or (self.flags & _META and not (self.anchored and self.attached()))
        )


class Registry:
    """All `Cached` of all devices, and their image."""

    __slots__ = (
        "_buckets",
        "_entries",
        "_free",
        "_quads",
        "_image",
        "_table",
        "_words",
        "cached",
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
        self.cached: dict[int, Cached] = {}
        """Key to entry, least recently used first."""
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
            len(self.cached),
            self.sequence,
        )

    def get(self, key: cython.ulonglong) -> Cached | None:
        return self.cached.get(key)

    def touch(self, entry: Cached) -> None:
        """Make it the most recently used."""
        cached = self.cached
        del cached[entry.key]
        cached[entry.key] = entry

    def full(self) -> cython.bint:
        return not self._free

    def room(self) -> cython.long:
        """Entries that still fit."""
        return len(self._free)

    def insert(self, entry: Cached) -> None:
        """Give the entry a place in the table, at the front of its chain.  Raises LimitReached."""
        if not self._free:
            raise LimitReached(f"the registry has {self.nentries} entries, all in use")
        assert entry.key not in self.cached
        entry.index = self._free.pop()
        words = self._words
        at: cython.long = self._at(entry)
        entry.generation = (words[at + 4] | 1) + 1 & 0xFFFF_FFFF
        bucket: cython.long = self._bucket(entry.key)
        words[at + 4] = entry.generation | 1
        words[at + 14] = words[bucket]
        self.cached[entry.key] = entry
        self.publish(entry)
        words[bucket] = entry.index + 1
        self._header()

    def remove(self, entry: Cached) -> None:
        """Take the entry out of the table.  Pages and everything else are the caller's business."""
        del self.cached[entry.key]
        words = self._words
        at: cython.long = self._at(entry)
        words[at + 4] = entry.generation | 1
        place: cython.long = self._bucket(entry.key)
        while words[place] != entry.index + 1:
            place = (self._entries + (words[place] - 1) * REGISTRY_ENTRY_BYTES) // 4 + 14
        words[place] = words[at + 14]
        self._free.append(entry.index)
        entry.index = -1
        entry.dead = True
        self._header()

    def _bucket(self, key: cython.ulonglong) -> cython.long:
        """The 32-bit word of the table that heads the key's chain (`views.bucket_of`)."""
        if cython.compiled:
            return self._buckets + (key * _MULTIPLIER >> 32 & self.nbuckets - 1)
        else:
            return self._buckets + bucket_of(key, self.nbuckets)

    def _at(self, entry: Cached) -> cython.long:
        """The entry's first 32-bit word in the table."""
        return (self._entries + entry.index * REGISTRY_ENTRY_BYTES) >> 2

    def publish(self, entry: Cached) -> None:
        """Rewrite the entry's image; readers see an odd generation meanwhile (REG-2)."""
        if entry.index < 0:
            return
        words = self._words
        quads = self._quads
        at: cython.long = self._at(entry)
        quad: cython.long = at >> 1
        words[at + 4] = entry.generation | 1
        quads[quad] = entry.key
        quads[quad + 1] = entry.page
        words[at + 5] = entry.type
        words[at + 6] = entry.flags | entry.dirty << 16 | entry.in_flight << 24
        words[at + 7] = entry.written | entry.durable << 8
        words[at + 8] = entry.pins
        words[at + 9] = entry.total_taint
        words[at + 10] = entry.writer
        words[at + 11] = entry.lock
        quads[quad + 6] = entry.parent_da
        words[at + 4] = entry.generation

    def renew(self, entry: Cached) -> None:
        """Page or contents changed: a new generation."""
        entry.generation = entry.generation + 2 & 0xFFFF_FFFF
        self.sequence += 1

    def image(self, entry: Cached) -> bytes:
        """The 64 bytes of the entry in the table."""
        at = self._entries + entry.index * REGISTRY_ENTRY_BYTES
        return bytes(self._table[at : at + REGISTRY_ENTRY_BYTES])
