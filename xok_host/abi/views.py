"""xokd's tables as libOSes see them: shared memory, mapped read-only, never asked for by a call.

xokd is the only writer.  A reader takes no lock: it reads an entry, uses it, and looks at the generation again; an
entry whose generation is odd or changed was being rewritten.  Layouts are declared here once, for both sides.

    registry    header | buckets u32[nbuckets] (entry index + 1, 0 empty) | entries 64 bytes each
    free map    one bit a block, 1 = in use or waiting to be freed; bit b is byte b // 8, bit b % 8
    counters    u64 each, in the order of `COUNTERS`
    environments  records of `ENVIRONMENT_RECORD`
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

REGISTRY_MAGIC = 0x4B4F5852
REGISTRY_HEADER = struct.Struct("<IIIIQQI4x")
"""magic, version, entries, buckets, entries in use, sequence of the last change, index + 1 of the entry that has not
been used for longest."""
REGISTRY_HEADER_BYTES = 64
REGISTRY_VERSION = 3

REGISTRY_ENTRY = struct.Struct("<QQIIHBBBBHIIIIQII")
"""key (device and block), page, generation, type, flags, sectors: dirty, in flight, written, durable, pad, pins, taint,
writer's environment, lock word (0 free, n shared, 0xFFFFFFFF exclusive), parent da, next index + 1 in the chain, index
+ 1 of the entry that was used next after this one (0: none)."""
REGISTRY_ENTRY_BYTES = 64

LOCK_EXCLUSIVE = 0xFFFF_FFFF
MAX_CHAIN = 4096
"""A reader gives up on a chain longer than this: it was being relinked."""

_HASH_MULTIPLIER = 0x9E37_79B9_7F4A_7C15


def bucket_of(key: int, nbuckets: int) -> int:
    """Fibonacci hashing of groups of 16 blocks, whose buckets are neighbours: who goes through blocks in order finds
    them in one line of the processor's cache.  `nbuckets` is a power of two."""
    group = (key >> 4) * _HASH_MULTIPLIER >> 32
    return (group << 4 | key & 15) & nbuckets - 1


def registry_bytes(nentries: int, nbuckets: int) -> int:
    """Size of the table in bytes, entries aligned to 64."""
    return registry_entries_offset(nbuckets) + nentries * REGISTRY_ENTRY_BYTES


def registry_entries_offset(nbuckets: int) -> int:
    return REGISTRY_HEADER_BYTES + (nbuckets * 4 + 63) // 64 * 64


@dataclass(slots=True, frozen=True)
class RegistryEntry:
    """A copy of one entry.  `index` finds it again without the hash."""

    index: int
    key: int
    page: int
    generation: int
    type: int
    flags: int
    dirty: int
    in_flight: int
    written: int
    durable: int
    pins: int
    taint: int
    writer: int
    lock: int
    parent: int


class RegistryView:
    """Lock-free reader of the registry."""

    def __init__(self, memory: memoryview) -> None:
        magic, version, self.nentries, self.nbuckets, *_ = REGISTRY_HEADER.unpack_from(memory, 0)
        if magic != REGISTRY_MAGIC or version != REGISTRY_VERSION:
            raise ValueError("not a registry table of this version")
        self._memory = memory
        self._entries = registry_entries_offset(self.nbuckets)

    def lookup(self, key: int) -> RegistryEntry | None:
        """The entry for device and block `key` (`types.da_key`), or None when it is not in core."""
        memory = self._memory
        at = REGISTRY_HEADER_BYTES + bucket_of(key, self.nbuckets) * 4
        (index,) = struct.unpack_from("<I", memory, at)
        for _ in range(MAX_CHAIN):
            if not 0 < index <= self.nentries:
                return None
            fields = REGISTRY_ENTRY.unpack_from(memory, self._entries + (index - 1) * REGISTRY_ENTRY_BYTES)
            if fields[0] == key and not fields[2] & 1:
                return RegistryEntry(index - 1, *fields[:9], *fields[10:15])
            index = fields[15]
        return None

    def at(self, index: int) -> RegistryEntry:
        fields = REGISTRY_ENTRY.unpack_from(self._memory, self._entries + index * REGISTRY_ENTRY_BYTES)
        return RegistryEntry(index, *fields[:9], *fields[10:15])

    def generation_offset(self, index: int) -> int:
        """Byte of entry `index`'s generation (u32) in the table: one load tells whether a page is still that page."""
        return self._entries + index * REGISTRY_ENTRY_BYTES + 16

    def least_recently_used(self, most: int) -> list[RegistryEntry]:
        """The LRU list from its old end, as it is while it is read: what XN evicts first, unless something keeps it."""
        found: list[RegistryEntry] = []
        index = REGISTRY_HEADER.unpack_from(self._memory, 0)[6]
        while 0 < index <= self.nentries and len(found) < most:
            found.append(self.at(index - 1))
            index = REGISTRY_ENTRY.unpack_from(self._memory, self._entries + (index - 1) * REGISTRY_ENTRY_BYTES)[16]
        return found

    def in_use(self) -> int:
        return int(REGISTRY_HEADER.unpack_from(self._memory, 0)[4])


COUNTERS: tuple[str, ...] = (
    "crossings",
    "entries",
    "refusals",
    "transactions",
    "operations",
    "udf_runs",
    "udf_instructions",
    "disk_reads",
    "disk_writes",
    "disk_flushes",
    "disk_blocks_read",
    "disk_blocks_written",
    "registry_hits",
    "registry_evictions",
    "lock_waits",
    "lock_revocations",
    "locks_taken",
    "blocks_allocated",
    "blocks_freed",
    "will_free",
    "tainted_refusals",
    "reported_children",
    "cycle_refusals",
    "environments_created",
    "environments_destroyed",
    "pages_in_use",
    "pages_total",
)


class CountersView:
    def __init__(self, memory: memoryview) -> None:
        self._words = memory[: len(COUNTERS) * 8].cast("Q")

    def as_dict(self) -> dict[str, int]:
        return dict(zip(COUNTERS, self._words, strict=True))

    def word(self, name: str) -> memoryview:
        """One counter, as it is whenever its element 0 is read."""
        at = COUNTERS.index(name)
        return self._words[at : at + 1]


class FreeMapView:
    """Which blocks of one device are in use."""

    def __init__(self, memory: memoryview, nblocks: int) -> None:
        self._memory = memory
        self.nblocks = nblocks

    def is_free(self, db: int) -> bool:
        return db < self.nblocks and not self._memory[db >> 3] >> (db & 7) & 1

    def run_of_free(self, start: int, limit: int) -> int:
        """How many blocks from `start` on are free, up to `limit`."""
        count = 0
        while count < limit and self.is_free(start + count):
            count += 1
        return count

    def find_run(self, hint: int, count: int) -> int | None:
        """First block of `count` free ones at or after `hint`, wrapping around once; None when there is no such run."""
        for begin, end in ((hint, self.nblocks), (0, min(hint + count - 1, self.nblocks))):
            found = self._scan(begin, end, count)
            if found is not None:
                return found
        return None

    def _scan(self, begin: int, end: int, count: int) -> int | None:
        memory = self._memory
        at = begin
        run = 0
        while at < end:
            if not at & 7 and run == 0 and memory[at >> 3] == 0xFF:
                at += 8
                continue
            if memory[at >> 3] >> (at & 7) & 1:
                run = 0
            else:
                run += 1
                if run == count:
                    return at - count + 1
            at += 1
        return None
