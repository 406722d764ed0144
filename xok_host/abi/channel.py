"""The call ring of one environment: layout, and both ends without any waiting.

One memory file, created and sealed by xokd, mapped writable by both.  The libOS writes entries and operand bytes and
moves `sq_tail`; xokd copies an entry and its operands before it looks at either (CH-1), so later writes change
nothing; it answers into the completion ring and into the result area the entry named.

    0        header: magic, version, sizes
    64       sq_tail   (libOS writes)       128  sq_head  (xokd writes)
    192      cq_tail   (xokd writes)        256  cq_head  (libOS writes)
    4096     submission ring, 64 bytes an entry
    …        completion ring, 32 bytes each
    DATA     operand and result bytes, laid out by the libOS as it likes

CH-2  All indices are free-running u32, masked on use: no value of theirs reaches outside.
CH-3  xokd takes at most what the completion ring can answer, so it never waits for a libOS that does not read.
CH-4  Operand and result ranges are clipped to the data area; a range that does not fit is `BadCall`.
CH-5  An index is stored and loaded whole; the host is little-endian, like everything in the ring.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

MAGIC = 0x4B4F5843
VERSION = 1
HEADER = struct.Struct("<IIIIII")
"""magic, version, submission entries, completions, data offset, data bytes."""

SQ_TAIL, SQ_HEAD, CQ_TAIL, CQ_HEAD = 64, 128, 192, 256
SQ_OFFSET = 4096
ENTRY = struct.Struct("<HHIQIIIIQQQQ")
"""call, flags, capability index, cookie, operand offset and bytes, result offset and bytes, a0 … a3."""
COMPLETION = struct.Struct("<QiIQQ")
"""cookie (0: an event, code is its kind), error code (0: success), result bytes, r0, r1."""

SUBMISSIONS = 256
COMPLETIONS = 1024
DATA_BYTES = 4 * 1024 * 1024
CQ_OFFSET = SQ_OFFSET + SUBMISSIONS * ENTRY.size
DATA_OFFSET = (CQ_OFFSET + COMPLETIONS * COMPLETION.size + 4095) // 4096 * 4096
RING_BYTES = DATA_OFFSET + DATA_BYTES

_MASK32 = 0xFFFF_FFFF


@dataclass(slots=True)
class Entry:
    """A submission, already copied out of shared memory."""

    number: int
    flags: int
    cap: int
    cookie: int
    a0: int
    a1: int
    a2: int
    a3: int
    data: bytes
    out_offset: int
    out_bytes: int


@dataclass(slots=True)
class Completion:
    cookie: int
    code: int
    r0: int
    r1: int
    data: bytes


class RingFull(Exception):
    """No free submission slot, or not enough room for operands: take completions first."""


class _Ring:
    def __init__(self, memory: memoryview) -> None:
        if len(memory) < RING_BYTES:
            raise ValueError(f"a call ring has {RING_BYTES} bytes")
        self.memory = memory
        # One load or store of the processor each (CH-5); `struct` would write zeros first, which the other side sees.
        self._words = memory[:RING_BYTES].cast("I")

    def _load(self, at: int) -> int:
        return self._words[at >> 2]

    def _store(self, at: int, value: int) -> None:
        self._words[at >> 2] = value & _MASK32

    def release(self) -> None:
        """Let go of the memory, so that it can be unmapped."""
        self._words.release()
        self.memory.release()


class KernelRing(_Ring):
    """xokd's end.  Trusts nothing in the memory but what it wrote and remembers itself."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        HEADER.pack_into(memory, 0, MAGIC, VERSION, SUBMISSIONS, COMPLETIONS, DATA_OFFSET, DATA_BYTES)
        self._sq_head = 0
        self._cq_tail = 0
        self.owed = 0
        """Entries taken and not yet answered."""

    def pending(self) -> int:
        """Entries that wait; never more than the ring holds, whatever the libOS wrote."""
        return min(self._load(SQ_TAIL) - self._sq_head & _MASK32, SUBMISSIONS)

    def room(self) -> int:
        """Completions that still fit, those owed counted."""
        used = self._cq_tail - self._load(CQ_HEAD) & _MASK32
        return max(0, COMPLETIONS - min(used, COMPLETIONS) - self.owed)

    def take(self) -> Entry | None:
        """Copy out the next entry with its operands (CH-1); None when there is none or no room to answer (CH-3)."""
        if not self.pending() or not self.room():
            return None
        at = SQ_OFFSET + (self._sq_head % SUBMISSIONS) * ENTRY.size
        number, flags, cap, cookie, in_off, in_len, out_off, out_len, a0, a1, a2, a3 = ENTRY.unpack(
            bytes(self.memory[at : at + ENTRY.size])
        )
        self._sq_head = self._sq_head + 1 & _MASK32
        self._store(SQ_HEAD, self._sq_head)
        self.owed += 1
        if in_off + in_len > DATA_BYTES:
            number, in_len = 0, 0
        data = bytes(self.memory[DATA_OFFSET + in_off : DATA_OFFSET + in_off + in_len]) if in_len else b""
        if out_off + out_len > DATA_BYTES:
            out_off = out_len = 0
        return Entry(number, flags, cap, cookie, a0, a1, a2, a3, data, out_off, out_len)

    def complete(self, entry: Entry, code: int, r0: int = 0, r1: int = 0, data: bytes = b"") -> None:
        """Answer an entry; result bytes are cut to the room the entry gave."""
        data = data[: entry.out_bytes]
        if data:
            at = DATA_OFFSET + entry.out_offset
            self.memory[at : at + len(data)] = data
        self.owed -= 1
        self._push(entry.cookie, code, len(data), r0, r1)

    def event(self, kind: int, r0: int = 0, r1: int = 0) -> bool:
        """Post an event; False when the ring has no room and the caller must keep it."""
        if not self.room():
            return False
        self._push(0, kind, 0, r0, r1)
        return True

    def _push(self, cookie: int, code: int, nbytes: int, r0: int, r1: int) -> None:
        at = CQ_OFFSET + (self._cq_tail % COMPLETIONS) * COMPLETION.size
        mask = 0xFFFF_FFFF_FFFF_FFFF
        COMPLETION.pack_into(self.memory, at, cookie, code, nbytes, r0 & mask, r1 & mask)
        self._cq_tail = self._cq_tail + 1 & _MASK32
        self._store(CQ_TAIL, self._cq_tail)


@dataclass(slots=True)
class _Area:
    begin: int
    end: int
    done: bool


class ClientRing(_Ring):
    """The libOS's end.  Operand space is handed out in ring order and comes back in the order of submission."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        magic, version, *_ = HEADER.unpack_from(memory, 0)
        if magic != MAGIC or version != VERSION:
            raise ValueError("not a call ring of this version")
        self._sq_tail = self._load(SQ_TAIL)
        self._cq_head = self._load(CQ_HEAD)
        self._next_cookie = 1
        self._areas: dict[int, _Area] = {}
        self._order: deque[int] = deque()
        self._begin = 0
        self._free_at = 0
        self._held = 0
        self._results: dict[int, tuple[int, int]] = {}

    def push(
        self,
        number: int,
        scalars: tuple[int, ...] = (),
        *,
        cap: int = 0,
        data: bytes = b"",
        out_bytes: int = 0,
        flags: int = 0,
    ) -> int:
        """Queue one entry and return its cookie.  Raises `RingFull`.  xokd sees it after `publish`."""
        if self._sq_tail - self._load(SQ_HEAD) & _MASK32 >= SUBMISSIONS or len(self._areas) >= COMPLETIONS - 64:
            raise RingFull
        offset = self._reserve(len(data) + out_bytes)
        cookie = self._next_cookie
        self._next_cookie += 1
        nbytes = len(data) + out_bytes
        self._areas[cookie] = _Area(offset, offset + nbytes + -nbytes % 8, False)
        self._order.append(cookie)
        if data:
            self.memory[DATA_OFFSET + offset : DATA_OFFSET + offset + len(data)] = data
        out_offset = offset + len(data)
        self._results[cookie] = (out_offset, out_bytes)
        padded = (*scalars, 0, 0, 0, 0)[:4]
        at = SQ_OFFSET + (self._sq_tail % SUBMISSIONS) * ENTRY.size
        ENTRY.pack_into(self.memory, at, number, flags, cap, cookie, offset, len(data), out_offset, out_bytes, *padded)
        self._sq_tail = self._sq_tail + 1 & _MASK32
        return cookie

    def outstanding(self) -> int:
        """Entries queued whose answers were not taken."""
        return len(self._areas)

    def publish(self) -> None:
        self._store(SQ_TAIL, self._sq_tail)

    def pop(self) -> Completion | None:
        """The next completion or event, or None."""
        if self._cq_head == self._load(CQ_TAIL):
            return None
        at = CQ_OFFSET + (self._cq_head % COMPLETIONS) * COMPLETION.size
        cookie, code, nbytes, r0, r1 = COMPLETION.unpack_from(self.memory, at)
        self._cq_head = self._cq_head + 1 & _MASK32
        self._store(CQ_HEAD, self._cq_head)
        data = b""
        if cookie:
            out_offset, out_bytes = self._results.pop(cookie)
            if nbytes:
                start = DATA_OFFSET + out_offset
                data = bytes(self.memory[start : start + min(nbytes, out_bytes)])
            self._release(cookie)
        return Completion(cookie, code, r0, r1, data)

    def _reserve(self, nbytes: int) -> int:
        """Room for `nbytes` in the data area, which is used as a ring: [begin, free_at) is held."""
        nbytes += -nbytes % 8
        if nbytes > DATA_BYTES:
            raise ValueError(f"operands of {nbytes} bytes, at most {DATA_BYTES}")
        if not self._held:
            self._begin = self._free_at = 0
        wrapped = self._held > 0 and self._free_at <= self._begin
        if self._free_at + nbytes > (self._begin if wrapped else DATA_BYTES):
            if wrapped or nbytes > self._begin:
                raise RingFull
            self._free_at = 0
        offset = self._free_at
        self._free_at = offset + nbytes
        self._held += nbytes
        return offset

    def _release(self, cookie: int) -> None:
        self._areas[cookie].done = True
        while self._order and self._areas[self._order[0]].done:
            area = self._areas.pop(self._order.popleft())
            if area.begin != area.end:
                self._held -= area.end - area.begin
                self._begin = area.end
