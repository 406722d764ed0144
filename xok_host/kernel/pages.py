"""Physical pages: chunks of shared memory, grouped into arenas by who may read and write them (DESIGN 3).

PAGES-1  All pages of a chunk belong to one arena, because environments map chunks whole.
PAGES-2  An arena is (read capabilities, write capabilities, writer).  With writer 0, xokd alone writes its pages.
PAGES-3  A page is given out with one hold; it returns to its arena when the last hold is dropped.  The registry holds
         the pages of its entries, an environment those it allocated and did not publish, a pin and a write on its
         way to the disk each hold theirs.
PAGES-4  A chunk changes arenas only when no page of it is held and no living environment maps it; it is zeroed then.
PAGES-5  No arena takes more than three quarters of the chunks, so that there is always room for others.
PAGES-6  Pages are taken from the front of a chunk, and a run of them where one of LOOK_CHUNKS chunks has one:
         neighbours on the disk that are neighbours in memory are one piece of a request.
PAGES-7  No more than three quarters of the chunks are one user's, or one environment's of root's: trees have arenas of
         their own, so that many small ones take as much as a large one.
PAGES-8  An arena that nobody may read keeps its last chunk: there XN writes its own sectors, and what it has to write
         for one does not wait for room that another holds.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Protocol

import cython

if cython.compiled:
    from cython.cimports.libc.string import memcpy

from xok_host.abi.errors import LimitReached
from xok_host.abi.types import BLOCK, CHUNK_BYTES, CHUNK_PAGES, SECTOR, SECTORS

META, DATA, QUARANTINE = "meta", "data", "quarantine"
"""Kinds of chunks: what xokd alone writes, what one environment writes, and what nobody may read yet."""

ROOTS = 1 << 32
"""Root's environments pay for themselves: as ROOTS and their number."""

_ZEROS = bytes(BLOCK)
LOOK_CHUNKS = 4
"""Chunks in which a run is looked for before it is put together from pieces."""

_CHUNK = cython.declare(cython.ulonglong, CHUNK_PAGES)
_SLOTS = cython.declare(cython.long, CHUNK_PAGES)
_BLOCK = cython.declare(cython.ulonglong, BLOCK)
_SECTOR = cython.declare(cython.ulonglong, SECTOR)
_SECTORS = cython.declare(cython.int, SECTORS)


class Memory(Protocol):
    """Where chunks come from: sealed memory files (host), or plain memory (tests)."""

    limit: int
    """Most chunks that there will be."""

    def new_chunk(self, writable_by: int, kind: str) -> tuple[int, memoryview]:
        """Its number and its CHUNK_BYTES bytes, zero, writable for xokd.  Raises LimitReached."""
        ...


class PlainMemory:
    """Chunks that only this process sees."""

    def __init__(self, limit: int = 64) -> None:
        self.chunks: list[memoryview] = []
        self.limit = limit

    def new_chunk(self, writable_by: int, kind: str) -> tuple[int, memoryview]:
        if len(self.chunks) >= self.limit:
            raise LimitReached(f"{self.limit} chunks of memory are in use")
        self.chunks.append(memoryview(bytearray(CHUNK_BYTES)))
        return len(self.chunks) - 1, self.chunks[-1]


class Access:
    """Who may read and write: two sets of capability numbers.  One object for each pair, compared by identity."""

    __slots__ = ("_writer", "own", "read", "write")

    def __init__(self, read: frozenset[int], write: frozenset[int]) -> None:
        self.read = read
        self.write = write
        self._writer: int = next(iter(write)) if len(write) == 1 else 0
        self.own: Arena | None = None
        """The arena that xokd alone writes, if there is one."""

    def may_write(self, capability: cython.ulonglong) -> cython.bint:
        """Whether the capability with this number, which is not 0, is one of the writers'."""
        return capability == self._writer or capability in self.write


class Arena:
    """Pages with equal access.  `chunks` holds chunk numbers, `open` the chunks that have free pages: the last of them
    is in use, and one that has just got its first free page goes to the front."""

    __slots__ = ("access", "chunks", "kind", "open", "writer")

    def __init__(self, access: Access, writer: int, kind: str) -> None:
        self.access = access
        self.writer = writer
        self.kind = kind
        self.open: list[Chunk] = []
        self.chunks: list[int] = []


class Chunk:
    """`users[slot]` counts holds, `held` the slots that have some, and none below `low` is free; `mapped` are the
    environments that were given its memory file; `payer` is for whom it was taken last."""

    __slots__ = ("arena", "bytes", "held", "kind", "low", "mapped", "number", "payer", "users", "view")

    def __init__(self, number: int, view: memoryview, arena: Arena, kind: str) -> None:
        self.number = number
        self.view = view
        self.bytes: Any = view[:]
        """The same, as C sees it: a view of its own, because who made the other one must be able to release it."""
        self.arena = arena
        self.kind = kind
        self.users: Any = array("H", bytes(2 * CHUNK_PAGES))
        self.held = 0
        self.low = 0
        self.payer = 0
        self.mapped: set[int] = set()

    def first_free(self) -> cython.long:
        """The first free slot; none below is free.  There is one."""
        slot: cython.long = self.low
        while self.users[slot]:
            slot += 1
        self.low = slot
        return slot

    def take(self) -> cython.long:
        """The first free slot, with one hold.  There is one."""
        slot: cython.long = self.first_free()
        self.users[slot] = 1
        self.held += 1
        self.low = slot + 1
        return slot

    def find_run(self, count: cython.long) -> cython.long:
        """The first of `count` free slots in a row; -1 if there are none."""
        slot: cython.long
        length: cython.long = 0
        for slot in range(self.low, _SLOTS):
            length = 0 if self.users[slot] else length + 1
            if length == count:
                return slot - count + 1
        return -1


class Pages:
    """All pages and arenas.  `reclaim(arena)` is asked to free a page of it if none is left, and says if it did."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._chunks: list[Chunk | None] = []
        """By number."""
        self._existing = 0
        self._access: dict[tuple[frozenset[int], frozenset[int]], Access] = {}
        self._arenas: dict[tuple[Access, int, str], Arena] = {}
        self._exhausted = False
        self.payer = 0
        """For whom pages are allocated at the moment: a user, or ROOTS and an environment of root's; 0: xokd."""
        self.reclaim: Callable[[Arena], bool] = lambda arena: False
        self.reclaim_chunk: Callable[[list[Chunk]], bool] = lambda chunks: False
        """Asked to empty one of these chunks of blocks that can be read again; says whether it did."""
        self.in_use = 0

    @property
    def limit(self) -> int:
        """Most pages that there will be."""
        return self._memory.limit * CHUNK_PAGES

    @property
    def total(self) -> int:
        """Pages in all chunks that exist."""
        return self._existing * CHUNK_PAGES

    def access(self, read: frozenset[int], write: frozenset[int]) -> Access:
        key = (read, write)
        found = self._access.get(key)
        if found is None:
            found = self._access[key] = Access(read, write)
        return found

    def arena(self, access: Access, writer: cython.uint = 0, kind: str = META) -> Arena:
        """The arena of these, made at need; kind is DATA where an environment writes."""
        if kind is META and not writer and access.own is not None:
            return access.own
        key = (access, writer, kind)
        found = self._arenas.get(key)
        if found is None:
            found = self._arenas[key] = Arena(access, writer, kind)
            if kind is META and not writer:
                access.own = found
        return found

    def _of(self, page: cython.ulonglong) -> Chunk:
        """The chunk of a page that there is."""
        return self._chunks[page // _CHUNK]  # type: ignore[return-value]

    def alloc(self, arena: Arena) -> cython.ulonglong:
        """A page with one hold, contents undefined (but nobody else's, PAGES-4).  Raises LimitReached."""
        if not arena.open:
            self._refill(arena)
        chunk: Chunk = arena.open[-1]
        slot: cython.ulonglong = chunk.take()
        if chunk.held == _SLOTS:
            arena.open.pop()
        self.in_use += 1
        return chunk.number * _CHUNK + slot

    def alloc_runs(self, arena: Arena, count: cython.long) -> list[tuple[int, int]]:
        """`count` pages, as ascending (first, length) of runs within chunks: one where that can be had (PAGES-6)."""
        runs: list[tuple[int, int]] = []
        chunk: Chunk
        slot: cython.long
        end: cython.long
        if not arena.open:
            self._refill(arena)
        if count > 1:
            for chunk in arena.open[: -1 - LOOK_CHUNKS : -1]:
                slot = chunk.find_run(count)
                if slot >= 0:
                    return [self._take_run(chunk, slot, slot + count)]
        try:
            while count:
                if not arena.open:
                    self._refill(arena)
                chunk = arena.open[-1]
                slot = chunk.first_free()
                end = slot + 1
                while end < _SLOTS and end - slot < count and not chunk.users[end]:
                    end += 1
                runs.append(self._take_run(chunk, slot, end))
                count -= end - slot
        except LimitReached:
            for first, length in runs:
                self.drop_run(first, length)
            raise
        runs.sort()
        return runs

    def alloc_run(self, arena: Arena, count: int) -> list[int]:
        """The numbers of the pages of `alloc_runs`."""
        return [page for first, length in self.alloc_runs(arena, count) for page in range(first, first + length)]

    def _take_run(self, chunk: Chunk, slot: cython.long, end: cython.long) -> tuple[int, int]:
        """Those slots, which are free, with one hold each; as a run."""
        index: cython.long
        for index in range(slot, end):
            chunk.users[index] = 1
        if chunk.low == slot:
            chunk.low = end
        chunk.held += end - slot
        if chunk.held == _SLOTS:
            chunk.arena.open.remove(chunk)
        self.in_use += end - slot
        return chunk.number * _CHUNK + slot, end - slot

    def hold(self, page: cython.ulonglong) -> None:
        chunk: Chunk = self._of(page)
        chunk.users[page % _CHUNK] += 1

    def hold_run(self, page: cython.ulonglong, count: cython.long) -> None:
        """`count` pages of one chunk."""
        chunk: Chunk = self._of(page)
        slot: cython.long = page % _CHUNK
        index: cython.long
        for index in range(slot, slot + count):
            chunk.users[index] += 1

    def drop(self, page: cython.ulonglong) -> None:
        """Drop one hold; the last one frees the page."""
        self.drop_run(page, 1)

    def drop_run(self, page: cython.ulonglong, count: cython.long) -> None:
        """`drop` for `count` pages of one chunk."""
        chunk: Chunk = self._of(page)
        slot: cython.long = page % _CHUNK
        index: cython.long
        freed: cython.long = 0
        for index in range(slot, slot + count):
            assert chunk.users[index], f"page {page + (index - slot)} is not held"
            chunk.users[index] -= 1
            if not chunk.users[index]:
                freed += 1
                if index < chunk.low:
                    chunk.low = index
        if freed:
            if chunk.held == _SLOTS:
                chunk.arena.open.insert(0, chunk)
            chunk.held -= freed
            self.in_use -= freed

    def shared(self, page: cython.ulonglong) -> cython.bint:
        """Whether somebody beside the one who asks holds the page."""
        chunk: Chunk = self._of(page)
        return chunk.users[page % _CHUNK] > 1

    def view(self, page: cython.ulonglong) -> memoryview:
        chunk: Chunk = self._of(page)
        at: cython.ulonglong = page % _CHUNK * _BLOCK
        return chunk.view[at : at + _BLOCK]

    def span(self, page: cython.ulonglong, first: cython.ulonglong, count: cython.ulonglong) -> memoryview:
        """`count` sectors from sector `first` of the page on; they may reach into the pages behind it in its chunk."""
        chunk: Chunk = self._of(page)
        at: cython.ulonglong = page % _CHUNK * _BLOCK + first * _SECTOR
        return chunk.view[at : at + count * _SECTOR]

    def take_sectors(self, page: cython.ulonglong, into: bytearray, mask: cython.int) -> None:
        """The sectors in `mask` of the page into `into`, a block."""
        chunk: Chunk = self._of(page)
        at: cython.ulonglong = page % _CHUNK * _BLOCK
        sector: cython.int
        begin: cython.ulonglong
        for sector in range(_SECTORS):
            if mask >> sector & 1:
                begin = sector * _SECTOR
                if cython.compiled:
                    memcpy(cython.cast(cython.p_char, into) + begin, cython.address(chunk.bytes[at + begin]), _SECTOR)
                else:
                    into[begin : begin + _SECTOR] = chunk.view[at + begin : at + begin + _SECTOR]

    def put_sectors(self, page: cython.ulonglong, new: bytearray, mask: cython.int) -> None:
        """The sectors in `mask` of `new`, a block, into the page."""
        chunk: Chunk = self._of(page)
        at: cython.ulonglong = page % _CHUNK * _BLOCK
        sector: cython.int
        for sector in range(_SECTORS):
            if mask >> sector & 1:
                begin: cython.ulonglong = sector * _SECTOR
                if cython.compiled:
                    memcpy(cython.address(chunk.bytes[at + begin]), cython.cast(cython.p_char, new) + begin, _SECTOR)
                else:
                    chunk.view[at + begin : at + begin + _SECTOR] = new[begin : begin + _SECTOR]

    def zero(self, page: cython.ulonglong) -> None:
        self.view(page)[:] = _ZEROS

    def arena_of(self, page: cython.ulonglong) -> Arena:
        chunk: Chunk = self._of(page)
        return chunk.arena

    def chunk(self, number: int) -> Chunk | None:
        return self._chunks[number] if number < len(self._chunks) else None

    def environment_died(self, env: int) -> None:
        """What it mapped is mapped no more; its write arenas have no writer now."""
        for chunk in filter(None, self._chunks):
            chunk.mapped.discard(env)
            if chunk.payer == ROOTS + env:
                chunk.payer = 0
        for key in [key for key in self._arenas if key[1] == env]:
            arena = self._arenas.pop(key)
            heir = self.arena(arena.access, 0, DATA)
            for number in arena.chunks:
                self._of(number * CHUNK_PAGES).arena = heir
            heir.chunks += arena.chunks
            heir.open += arena.open
        self._exhausted = False

    def _refill(self, arena: Arena) -> None:
        """Give the arena at least one free page: new chunk, another arena's idle chunk, or eviction."""
        chunk = None
        mine = self._chunks_of(self.payer) if self.payer else 0
        bounded = mine * 4 >= self._memory.limit * 3
        may_grow = len(arena.chunks) * 4 < self._memory.limit * 3
        if may_grow:
            chunk = None if bounded else self._new_chunk(arena)
            chunk = chunk or self._recycle(arena, bounded)
        if chunk is None:
            while self.reclaim(arena):
                if arena.open:
                    return
            if may_grow and self.reclaim_chunk(self._foreign(arena, bounded)):
                chunk = self._recycle(arena, bounded)
        if chunk is None and bounded:
            raise LimitReached(f"{mine} of {self._memory.limit} chunks of memory are in use by the caller's trees")
        if chunk is None:
            raise LimitReached("all pages are in use")
        chunk.arena = arena
        chunk.payer = self.payer
        arena.chunks.append(chunk.number)
        arena.open.append(chunk)

    def _chunks_of(self, payer: int) -> int:
        """Chunks that were last taken for somebody."""
        return sum(chunk.payer == payer for chunk in filter(None, self._chunks))

    def _foreign(self, arena: Arena, own: bool = False) -> list[Chunk]:
        """Chunks that could serve this arena if they were empty (PAGES-4); with `own` only the present payer's."""
        return [
            chunk
            for chunk in filter(None, self._chunks)
            if chunk.kind == arena.kind
            and chunk.arena is not arena
            and (chunk.arena.access.read or len(chunk.arena.chunks) > 1)
            and not chunk.mapped
            and (not own or chunk.payer == self.payer)
        ]

    def _new_chunk(self, arena: Arena) -> Chunk | None:
        if self._exhausted:
            return None
        try:
            number, view = self._memory.new_chunk(arena.writer, arena.kind)
        except LimitReached:
            self._exhausted = True
            return None
        self._chunks += [None] * (number + 1 - len(self._chunks))
        self._existing += 1
        chunk = self._chunks[number] = Chunk(number, view, arena, arena.kind)
        return chunk

    def _recycle(self, arena: Arena, own: bool = False) -> Chunk | None:
        """An unused chunk of another arena, of the same kind because kinds are sealed differently (PAGES-4)."""
        for chunk in self._foreign(arena, own):
            if chunk.held:
                continue
            old = chunk.arena
            old.chunks.remove(chunk.number)
            old.open.remove(chunk)
            chunk.low = 0
            chunk.view[:] = bytes(CHUNK_BYTES)
            return chunk
        return None
